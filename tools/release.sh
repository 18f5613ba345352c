#!/bin/sh
# Make a release of the commit that is checked out, and sign it.  Usage: release.sh KEY PYTHON [FOLDER]
# KEY: an SSH key, as ssh-keygen -f takes it; PYTHON: the interpreter of the locked environment; FOLDER: a new one.
set -eu
key=$1 python=$2
[ -n "$key" ] || {
    echo "release: name your signing key: make release KEY=~/.ssh/release (docs/releasing.md)" >&2
    exit 1
}
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
case $key in /*) ;; *) key=$PWD/$key ;; esac
to=${3:-dist/release}
case $to in /*) ;; *) to=$PWD/$to ;; esac
cd "$(dirname "$0")/.."
[ -z "$(git status --porcelain)" ] || {
    echo "release: there are changes that are not committed; a release is a commit" >&2
    git status --short >&2
    exit 1
}
mkdir -p "$(dirname "$to")"
mkdir "$to" || {
    echo "release: $to is there already; a release is never written over another" >&2
    exit 1
}
"$python" tools/dist.py --to "$to" >/dev/null
"$python" tools/sbom.py --to "$to/adyton.cdx.json" >/dev/null
mkdir "$to/requirements"
cp requirements/*.txt "$to/requirements/"
git rev-parse HEAD >"$to/COMMIT"
cd "$to"
find . -type f ! -name 'SHA256SUMS*' | sed 's|^\./||' | LC_ALL=C sort | xargs -d '\n' sha256sum >SHA256SUMS
ssh-keygen -q -Y sign -f "$key" -n adyton-release SHA256SUMS
cat SHA256SUMS
echo "signed: $to/SHA256SUMS.sig"
