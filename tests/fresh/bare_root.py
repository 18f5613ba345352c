"""A bare Debian in a folder, as debootstrap makes it, and commands in it: what somebody finds who starts from nothing.

`python -m tests.fresh.bare_root SUITE [COMMAND]` makes one (bookworm is Debian 12, trixie is 13), copies the working
tree into it, and runs the README's first steps there, or COMMAND. Root is needed, and about 20 GiB.

The root sees its own files, a private mount and process namespace, and the host's network. apt and pip reach what they
reach on the host: their settings are copied, and the files that these name are mounted read-only when it is entered.
Nothing of it is written on the host outside of the folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parent.parent.parent
CHECKOUT: Final = "/srv/adyton"
"""Where the root has the working tree: a folder that every user may read."""

FIRST_STEPS: Final = "apt-get install -y -qq git make ca-certificates >/dev/null && make demo && make test"
"""What the README tells somebody with a bare machine to do."""

_NEEDED_BYTES: Final = 20 << 30
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty", "fuse")
_HOST_SETTINGS: Final = (
    *("/etc/resolv.conf", "/etc/hosts"),
    *("/etc/pip.conf", "/etc/xdg/pip"),
    *(str(Path.home() / name) for name in (".config/pip", ".pip")),
)
_CERTIFICATES: Final = "/usr/local/share/ca-certificates"
_KEPT_VARIABLES: Final = re.compile(r"(PIP_.*|https?_proxy|no_proxy|HTTPS?_PROXY|NO_PROXY|SSL_CERT_FILE|TEST_ARGS)")
_KEPT_APT: Final = re.compile(r"Acquire::(https?|Check|Retries)")
_PATHS: Final = re.compile(r"(file://|^|[\s'])(/[^\s']+)")


def default_folder() -> Path:
    """Where roots are kept between runs: $ADYTON_ROOTS, or a folder of /var/tmp."""
    return Path(os.environ.get("ADYTON_ROOTS", "/var/tmp/adyton-roots"))


def missing(folder: Path) -> str | None:
    """Why no root can be made here, in words; None where one can."""
    if os.geteuid() != 0:
        return "only root can make a bare Debian in a folder"
    if shutil.which("debootstrap") is None:
        return "debootstrap is not installed (apt-get install debootstrap)"
    if not Path("/dev/fuse").exists():
        return "this machine has no /dev/fuse: modprobe fuse"
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < _NEEDED_BYTES:
        return f"{folder} has less than {_NEEDED_BYTES >> 30} GiB free (ADYTON_ROOTS names another folder)"
    return None


@dataclass(frozen=True, slots=True)
class BareRoot:
    """A Debian of one suite at `path`."""

    suite: str
    path: Path

    def run(self, command: str, *, timeout_s: float | None = None) -> int:
        """Run a shell command in the checkout of this root, its output on ours; returns its exit code."""
        # pivot_root and not chroot: the kernel gives nobody in a chroot a user namespace, which bubblewrap needs.
        enter = [f"cd {self.path}", "mkdir -p .host", "pivot_root . .host", "cd /", "umount -l /.host", "rmdir /.host"]
        script = "\n".join([*self._mounts(), *enter, f'cd {CHECKOUT}; exec /bin/sh -c "$1"'])
        words = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "sh", "-euc", script, "sh"]
        return subprocess.run([*words, command], env=_environment(), timeout=timeout_s, check=False).returncode

    def _mounts(self) -> list[str]:
        dev = f"{self.path}/dev"
        lines = ["mount --make-rprivate /", f"mount --bind {self.path} {self.path}"]
        lines += [f"mount -t proc proc {self.path}/proc", f"mount -t sysfs -o ro sysfs {self.path}/sys"]
        lines += [f"mount -t tmpfs -o mode=755 dev {dev}", f"mkdir {dev}/pts {dev}/shm"]
        for name in _DEVICES:
            lines += [f"touch {dev}/{name}", f"mount --bind /dev/{name} {dev}/{name}"]
        lines += [f"mount -t devpts -o newinstance,ptmxmode=0666 devpts {dev}/pts", f"ln -s pts/ptmx {dev}/ptmx"]
        lines += [f"mount -t tmpfs -o mode=1777 shm {dev}/shm", f"ln -s /proc/self/fd {dev}/fd"]
        lines += [f"ln -s fd/{number} {dev}/{name}" for number, name in enumerate(("stdin", "stdout", "stderr"))]
        for path in pip_paths():
            lines += self._shown(path, path)
        shared = REPOSITORY.parent / "shared"
        if (shared / "vectors").is_dir():  # recordings that lie beside the repository
            lines += self._shown(str(shared), f"{os.path.dirname(CHECKOUT)}/shared")
        return lines

    def _shown(self, source: str, target: str) -> list[str]:
        """Commands that show a file or folder of the host in the root, read-only."""
        inside = f"{self.path}{target}"
        made = (
            [f"mkdir -p {inside}"] if os.path.isdir(source) else [f"mkdir -p {os.path.dirname(inside)}; touch {inside}"]
        )
        return [*made, f"mount --bind {source} {inside}", f"mount -o remount,bind,ro {inside}"]


def make(suite: str, folder: Path) -> BareRoot:
    """A fresh root; what debootstrap fetched is kept in `folder`, so that the next one takes seconds."""
    kept, path = folder / f"{suite}.tar", folder / suite
    if path.exists():
        shutil.rmtree(path)
    if kept.exists():
        path.mkdir()
        subprocess.run(["tar", "-xpf", kept, "-C", path], check=True)
    else:
        mirror = debian_mirror()
        words = ["debootstrap", "--variant=minbase", suite, str(path), *([mirror] if mirror else [])]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["tar", "-cpf", f"{kept}.part", "-C", path, "."], check=True)
        os.replace(f"{kept}.part", kept)
    _copy_settings(path)
    _copy_checkout(path)
    subprocess.run(["chroot", path, "apt-get", "update", "-qq"], check=True)
    return BareRoot(suite, path)


def debian_mirror() -> str | None:
    """The mirror that this machine's apt takes Debian from; None leaves the choice to debootstrap."""
    words = ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Identifier: Packages"]
    shown = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    return next((line.split()[1] for line in shown.splitlines() if line.startswith("Debian ")), None)


def pip_paths() -> list[str]:
    """Files and folders of this machine that pip's settings name: folders of packages, constraints."""
    words = [sys.executable, "-m", "pip", "config", "list"]
    shown = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    found = [match for line in shown.splitlines() for match in _PATHS.findall(line.partition("=")[2])]
    named = {
        os.path.dirname(path) if lead == "file://" else path for lead, path in found
    }  # an index links beside itself
    owned = ("/etc/ssl/", "/etc/pki/", *_HOST_SETTINGS)  # certificates are installed in the root, settings copied
    return sorted(path for path in named if os.path.exists(path) and not path.startswith(owned))


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if _KEPT_VARIABLES.fullmatch(name)}
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", **kept}


def _copy_settings(root: Path) -> None:
    for path in _HOST_SETTINGS:
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.isdir(path):
            shutil.copytree(path, target, dirs_exist_ok=True)
        elif os.path.exists(path):
            shutil.copyfile(path, target)
    if os.path.isdir(_CERTIFICATES):  # taken in when ca-certificates is installed
        shutil.copytree(_CERTIFICATES, root / _CERTIFICATES.lstrip("/"), dirs_exist_ok=True)
    shown = subprocess.run(["apt-config", "dump", "--no-empty"], capture_output=True, text=True, check=False).stdout
    settings = [line for line in shown.splitlines() if _KEPT_APT.match(line)]
    (root / "etc/apt/apt.conf.d/90host").write_text("\n".join(settings) + "\n")
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")  # an installed package starts no service
    (root / "usr/sbin/policy-rc.d").chmod(0o755)


def _copy_checkout(root: Path) -> None:
    target = root / CHECKOUT.lstrip("/")
    target.mkdir(parents=True)
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, target / name)
    subprocess.run(["chmod", "-R", "a+rX", target], check=True)


def main() -> int:
    """Make the root that the first argument names, and run the second, or the README's first steps, in it."""
    reason = missing(default_folder())
    if reason is not None:
        sys.stderr.write(f"{reason}\n")
        return 2
    root = make(sys.argv[1], default_folder())
    return root.run(sys.argv[2] if len(sys.argv) > 2 else FIRST_STEPS)


if __name__ == "__main__":
    sys.exit(main())
