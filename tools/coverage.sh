#!/bin/sh
# The unit tests with their coverage: the total of lines and branches, and the ten modules that have the least.
# Usage: coverage.sh PYTHON [PYTEST_OPTIONS]
# coverage.py gets a folder of its own. It brings a .pth file that runs code at every start of Python, if a variable of
# the environment says so. That has no place where protected programs run, and would change the runtime's identity.
set -eu
python=$1
shift
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
cd "$(dirname "$0")/.."
to=$PWD/build/coverage
if ! cmp -s requirements/coverage.txt "$to/requirements.txt"; then
    rm -rf "$to"
    "$python" -m pip install -q --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --target "$to" -r requirements/coverage.txt
    cp requirements/coverage.txt "$to/requirements.txt"
fi
export PYTHONPATH="$to" COVERAGE_FILE="$to/.coverage"
"$python" -m pytest tests/unit -m "not slow" --cov=adyton --cov-branch --cov-report= "$@"
report=$("$python" -m coverage report --sort=cover --precision=1)
echo "$report" | head -n 12
echo "$report" | tail -n 1
