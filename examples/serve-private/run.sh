#!/bin/sh
# A server with private weights and customers with private requests: the whole workflow on one machine, with a simulated TEE.
#   sh run.sh [FOLDER]      FOLDER (new) keeps everything for a look; SERVER=HOST:PORT moves the key server,
#                           LISTEN=HOST:PORT the ingress, PORT=PORT the server inside; CUSTOMER=COMMAND is one more customer
# `adyton` and `python` must be in PATH (make setup; . .venv/bin/activate).
set -eu
example=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$(mktemp -d)/serve-private}
server=${SERVER:-127.0.0.1:4433}
listen=${LISTEN:-127.0.0.1:8443}
port=${PORT:-8000}
mkdir -p "$folder" && cp "$example"/serve.py "$example/../search-private/search.py" "$example"/*.template "$folder"
cp "$example/customer.py" "$folder"
cd "$folder"
serving= running=
trap 'kill $running $serving 2>/dev/null || :; wait 2>/dev/null || :' EXIT
trap 'exit 130' INT TERM
export OMP_NUM_THREADS=1 ADYTON_HOME="$PWD/vendor" ADYTON_SIM_PLATFORM="$PWD/platform"

echo "== the vendor: its weights and its handbook, its identity, a key"
python "$example/prepare.py" plain
adyton init --name vendor
adyton key new vendor

echo "== the cloud has a machine with a TEE, here a simulated one; vendor and customer get its collateral"
adyton platform new platform
adyton platform export platform -o collateral.json
adyton collateral import collateral.json

echo "== the vendor encrypts, runs the server once at home, builds, and approves what it built"
adyton encrypt plain/model.safetensors plain/vocabulary.txt plain/handbook.txt -o storage/in --key vendor
adyton new --name seen --serve "$port" --client 'python customer.py http://{addr} Hello' serve.py plain/model.safetensors plain/vocabulary.txt plain/handbook.txt "$port"
adyton build serve.manifest.template -D entrypoint="$(command -v python)" -D listen="$listen" -D port="$port"
adyton approve serve.manifest --key vendor --tee "$(adyton platform name platform)"

echo "== the vendor's key server; the cloud runs the server"
adyton serve --listen "$server" --ready-file ready.json &
serving=$!
until [ -e ready.json ]; do kill -0 $serving || exit 1; sleep 0.1; done
adyton run serve.manifest --tee sim --key-server "$server" &
running=$!

echo "== a customer writes down which program it trusts, from the manifest that it checked"
export ADYTON_HOME="$PWD/customer"
adyton connect --print-policy serve.manifest --tee "$(adyton platform name platform)" > api.toml
adyton policy check api.toml || [ $? = 1 ]
until adyton connect "$listen" --policy api.toml --collateral collateral.json --once -- curl -sSf "http://{addr}/health" 2>health.log; do
    kill -0 $running || { cat health.log >&2; exit 1; }
    sleep 0.5
done

echo "== the customer asks with the OpenAI client, over connections that are each verified"
adyton connect "$listen" --policy api.toml --collateral collateral.json --once -- python customer.py "http://{addr}" "The line is bent, and an alarm sounds. What now?"
[ -z "${CUSTOMER:-}" ] || adyton connect "$listen" --policy api.toml --collateral collateral.json --once -- $CUSTOMER

echo "== everything is in $PWD"
