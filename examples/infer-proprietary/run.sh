#!/bin/sh
# Inference with a proprietary model: two owners, two key servers, a third key for the result; with a simulated TEE.
#   sh run.sh [FOLDER]      FOLDER (new) keeps everything for a look; MAKER, CLINIC=HOST:PORT move the key servers
# `adyton` and `python` must be in PATH (make setup; . .venv/bin/activate).
set -eu
example=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$(mktemp -d)/infer-proprietary}
maker=${MAKER:-127.0.0.1:4433} clinic=${CLINIC:-127.0.0.1:4434}
mkdir -p "$folder" && cp "$example"/*.py "$example"/*.template "$folder" && cd "$folder"
serving=
trap 'kill $serving 2>/dev/null || :' EXIT
trap 'exit 130' INT TERM
export OMP_NUM_THREADS=1 ADYTON_SIM_PLATFORM="$PWD/platform"

echo "== the maker: a model that is her trade secret, and a picture of her own to try it with"
python prepare.py model maker-plain/model.safetensors
python prepare.py photo maker-plain/photo.jpg
adyton init --home maker --name maker
adyton key new model --home maker
adyton encrypt maker-plain/model.safetensors -o storage/model/model.safetensors --key model --home maker

echo "== the doctor makes the key of the result, and gives it to the clinic"
adyton init --home doctor --name doctor
adyton key new result --home doctor
adyton key export result -o result.key --home doctor

echo "== the clinic: a photo that nobody else may see"
python prepare.py photo clinic-plain/photo.jpg
adyton init --home clinic --name clinic
adyton key new photo --home clinic
adyton key new result --from result.key --home clinic
adyton encrypt clinic-plain/photo.jpg -o storage/in/photo.jpg --key photo --home clinic

echo "== the cloud has a machine with a TEE, here a simulated one; both owners get its collateral"
adyton platform new platform
adyton platform export platform -o collateral.json
adyton collateral import collateral.json --home maker
adyton collateral import collateral.json --home clinic

echo "== the maker runs the script once at home and builds; the clinic builds the same, and compares"
mkdir -p storage/out
adyton new --name seen infer.py maker-plain/model.safetensors maker-plain/photo.jpg maker-plain/result.txt
adyton build infer.manifest.template -D entrypoint="$(command -v python)" --home maker
adyton build infer.manifest.template -D entrypoint="$(command -v python)" --home clinic -o clinic-built
cmp infer.manifest clinic-built/infer.manifest

echo "== two key servers"
adyton serve --listen "$maker" --ready-file maker.json --home maker &
serving=$!
adyton serve --listen "$clinic" --ready-file clinic.json --home clinic &
serving="$serving $!"
until [ -e maker.json ] && [ -e clinic.json ]; do kill -0 $serving || exit 1; sleep 0.1; done

echo "== nobody has approved: nothing starts, and both say why"
if adyton run infer.manifest --tee sim --key-server "maker=$maker" --key-server "clinic=$clinic"; then exit 1; fi

echo "== the maker approves, the clinic does not yet: nothing starts"
adyton approve infer.manifest --key model --tee "$(adyton platform name platform)" --home maker
if adyton run infer.manifest --tee sim --key-server "maker=$maker" --key-server "clinic=$clinic"; then exit 1; fi

echo "== both have approved"
adyton approve infer.manifest --key photo --key result --tee "$(adyton platform name platform)" --home clinic
adyton run infer.manifest --tee sim --key-server "maker=$maker" --key-server "clinic=$clinic"

echo "== the doctor reads the result; it is the one of a plain run"
adyton decrypt storage/out/result.txt -o result.txt --key result --home doctor
cat result.txt
cmp result.txt maker-plain/result.txt
echo "== everything is in $PWD"
