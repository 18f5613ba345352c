#!/bin/sh
# Training with private data: the whole workflow on one machine, with a simulated TEE.
#   sh run.sh [FOLDER]      FOLDER (new) keeps everything for a look; SERVER=HOST:PORT moves the key server
# `adyton` and `python` must be in PATH (make setup; . .venv/bin/activate).
set -eu
example=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$(mktemp -d)/train-private}
server=${SERVER:-127.0.0.1:4433}
mkdir -p "$folder" && cp "$example"/*.py "$example"/*.template "$folder" && cd "$folder"
trap 'kill $serving $running 2>/dev/null || :' EXIT
trap 'exit 130' INT TERM
export OMP_NUM_THREADS=1 ADYTON_HOME="$PWD/hospital" ADYTON_SIM_PLATFORM="$PWD/platform"
serving= running=

echo "== the hospital: its records, its identity, a key"
python prepare.py plain
adyton init --name hospital
adyton key new hospital

echo "== the cloud has a machine with a TEE, here a simulated one; the hospital gets its collateral"
adyton platform new platform
adyton platform export platform -o collateral.json
adyton collateral import collateral.json

echo "== the hospital encrypts the records, runs the script once at home, builds, and approves what it built"
adyton encrypt plain/records.csv -o storage/in/records.csv --key hospital
mkdir -p storage/out
adyton new --name seen train.py plain/records.csv plain/trial 1
adyton build train.manifest.template -D entrypoint="$(command -v python)"
adyton approve train.manifest --key hospital --tee "$(adyton platform name platform)"

echo "== the hospital's key server; the cloud's run"
adyton serve --listen "$server" --ready-file ready.json &
serving=$!
until [ -e ready.json ]; do kill -0 $serving || exit 1; sleep 0.1; done
adyton run train.manifest --tee sim --key-server "$server" &
running=$!
until [ -e storage/out/checkpoint.pt ]; do kill -0 $running || exit 1; sleep 0.05; done
kill -9 $running
running=

echo "== the cloud killed it in the middle; started again, it goes on from its encrypted checkpoint"
adyton run train.manifest --tee sim --key-server "$server"
adyton decrypt train.log -o train.log.txt --key hospital
grep "going on" train.log.txt

echo "== the hospital opens the model, and diagnoses new patients with it"
adyton decrypt storage/out/model.pt -o model.pt --key hospital
python diagnose.py model.pt plain/new.csv
echo "== everything is in $PWD"
