#!/bin/sh
# Inference with private data: the whole workflow on one machine, with a simulated TEE.
#   sh run.sh [FOLDER]      FOLDER (new) keeps everything for a look; SERVER=HOST:PORT moves the key server
# `adyton` and `python` must be in PATH (make setup; . .venv/bin/activate).
set -eu
example=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$(mktemp -d)/search-private}
server=${SERVER:-127.0.0.1:4433}
mkdir -p "$folder" && cp "$example"/*.py "$example"/*.t* "$folder" && cd "$folder"
serving=
trap 'kill $serving 2>/dev/null || :' EXIT
trap 'exit 130' INT TERM
export OMP_NUM_THREADS=1 ADYTON_HOME="$PWD/hospital" ADYTON_SIM_PLATFORM="$PWD/platform"

echo "== the hospital: its notes and questions, a public model, its identity, a key"
python prepare.py plain
mkdir model && mv plain/model.safetensors plain/vocabulary.txt model
adyton init --name hospital
adyton key new hospital

echo "== the cloud has a machine with a TEE, here a simulated one; the hospital gets its collateral"
adyton platform new platform
adyton platform export platform -o collateral.json
adyton collateral import collateral.json

echo "== the hospital encrypts, runs the script once at home, builds, and approves what it built"
adyton encrypt plain/notes.txt plain/questions.txt -o storage/in --key hospital
mkdir -p storage/out
adyton new --name seen search.py model/model.safetensors model/vocabulary.txt plain/notes.txt plain/questions.txt plain/answers.txt
adyton build search.manifest.template -D entrypoint="$(command -v python)"
adyton approve search.manifest --key hospital --tee "$(adyton platform name platform)"

echo "== the hospital's key server; the cloud's run"
adyton serve --listen "$server" --ready-file ready.json &
serving=$!
until [ -e ready.json ]; do kill -0 $serving || exit 1; sleep 0.1; done
adyton run search.manifest --tee sim --key-server "$server"

echo "== the hospital reads the answers"
adyton decrypt storage/out/answers.txt -o answers.txt --key hospital
cat answers.txt
cmp answers.txt plain/answers.txt
echo "== everything is in $PWD"
