#!/bin/sh
# A Gradio page with a vendor's weights, made a confidential program by one command, and visited over a proved connection.
#   sh page.sh [FOLDER]     FOLDER (new) keeps everything for a look; SERVER=HOST:PORT moves the key server
# `adyton` and `python` must be in PATH (make setup; . .venv/bin/activate). Gradio (400 MB with what it needs) is installed
# into FOLDER/page-env. Port 8443 must be free: it is what `adyton protect --serve` writes into the manifest.
set -eu
example=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$(mktemp -d)/serve-private}
server=${SERVER:-127.0.0.1:4433}
mkdir -p "$folder/vendor" && folder=$(cd "$folder" && pwd)
cp "$example"/*.py "$example/../search-private/search.py" "$folder/vendor"
cd "$folder/vendor"
serving= running=
trap 'kill $running $serving 2>/dev/null || :; wait 2>/dev/null || :' EXIT
trap 'exit 130' INT TERM
export OMP_NUM_THREADS=1 ADYTON_HOME="$folder/home" ADYTON_SIM_PLATFORM="$folder/platform"

echo "== Gradio, in an environment of its own that finds PyTorch beside it"
python -m venv "$folder/page-env"
page=$folder/page-env/bin/python
"$page" -m pip install -q --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r "$example/../../requirements/page.txt"
python -c "import sysconfig; print(sysconfig.get_path('purelib'))" >"$("$page" -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beside.pth"
python "$example/prepare.py" .

echo "== the vendor: one command from the script to an approved program"
adyton protect --tee sim --python "$page" --serve 7860 --client "$page visitor.py http://{addr} Hello" \
    page.py model.safetensors vocabulary.txt handbook.txt 7860
adyton serve --listen "$server" --ready-file ready.json &
serving=$!
until [ -e ready.json ]; do kill -0 $serving || exit 1; sleep 0.1; done
adyton run page.manifest --tee sim --key-server "$server" &
running=$!

echo "== a visitor: a policy from the manifest, then the page at an address of its own machine"
adyton platform export "$ADYTON_SIM_PLATFORM" -o collateral.json
adyton connect --print-policy page.manifest --tee "$(adyton platform name "$ADYTON_SIM_PLATFORM")" >page.toml
visit() {
    adyton connect 127.0.0.1:8443 --policy page.toml --collateral collateral.json --once -- "$@"
}
until visit curl -sSf -o page.html "http://{addr}/" 2>visit.log; do
    kill -0 $running || { cat visit.log >&2; exit 1; }
    sleep 0.5
done
visit "$page" visitor.py "http://{addr}" "The line is bent, and an alarm sounds. What now?"
echo "== everything is in $folder"
