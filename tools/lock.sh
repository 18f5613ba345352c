#!/bin/sh
# Write requirements/*.txt anew from pyproject.toml: exact versions, with the SHA-256 of every file that may be installed.
# Usage: lock.sh PYTHON [UV_OPTIONS, as --upgrade].  Versions that are locked stay, unless --upgrade is given.
set -eu
python=$1
shift
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install -q --disable-pip-version-check uv==0.13.9
# Wheels only: to build from source would take tools that no lock holds.
compile() {
    "$work/venv/bin/uv" pip compile -q --universal --python-version 3.11 --generate-hashes --no-build \
        --no-header --no-annotate "$@" >/dev/null
}
heading() {
    printf '# Made by `make lock`; do not edit.  %s\n' "$1"
}
# uv keeps the versions of the file that it writes to; the hashes it must ask for anew.
keep() {
    [ ! -e "requirements/$1" ] || sed '/^ /d; s/ *\\$//' "requirements/$1" >"$work/$1"
}
finish() {
    sed '/^#/d; /^$/d' "$work/$1"
}

"$python" - >"$work/more.in" <<'END'
import tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
print("\n".join(project["build-system"]["requires"]))
with open("requirements/uv.toml", "rb") as file:
    torch = tomllib.load(file)["dependency-metadata"][0]
assert f"torch=={torch['version']}" in project["project"]["optional-dependencies"]["demo"], "uv.toml: another torch"
END
keep lock.txt
compile --config-file requirements/uv.toml --all-extras --no-emit-package torch "$@" \
    pyproject.toml "$work/more.in" -o "$work/lock.txt"

torch=$(sed -n 's/^ *"\(torch==[^"]*\)",$/\1/p' pyproject.toml)
echo "$torch" >"$work/torch.in"
keep torch.txt
compile --no-deps "$@" "$work/torch.in" -o "$work/torch.txt"

sed '/^ /d; s/ *\\$//' "$work/lock.txt" >"$work/constraints.txt"
compile --no-config -c "$work/constraints.txt" pyproject.toml -o "$work/run.txt"

# What the CUDA build needs beyond lock.txt.
keep cuda.txt
known=$(sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p' "$work/constraints.txt")
(cd "$work" && compile --no-config -c constraints.txt $known --no-emit-package torch "$@" torch.in -o cuda.txt)

# What `make coverage` adds, in a folder of its own.
keep coverage.txt
printf 'coverage\npytest-cov\n' >"$work/coverage.in"
compile --no-config --no-deps "$@" "$work/coverage.in" -o "$work/coverage.txt"

# The web page of examples/serve-private, in an environment of its own: Gradio wants other versions than the rest.
keep page.txt
echo gradio >"$work/page.in"
compile --no-config "$@" "$work/page.in" -o "$work/page.txt"

{
    heading "All that Adyton, its demo, tests and documentation need, but PyTorch."
    finish lock.txt
} >requirements/lock.txt
{
    heading "The part of lock.txt that Adyton itself needs to run."
    finish run.txt
} >requirements/run.txt
{
    heading "PyTorch alone, as the package index has it; torch-cpu.txt comes first."
    finish torch.txt
} >requirements/torch.txt
{
    heading "The libraries of PyTorch's CUDA build; its CPU builds need none of them."
    finish cuda.txt
} >requirements/cuda.txt
{
    heading 'What `make coverage` adds, in a folder of its own.'
    finish coverage.txt
} >requirements/coverage.txt
{
    heading "Gradio and what it needs, for the web page of examples/serve-private, in an environment of its own."
    finish page.txt
} >requirements/page.txt
