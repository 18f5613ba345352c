"""What is in a guest image, and what is left out. Pure: names only.

The system is Debian 12's Python with what Adyton runs on. The kernel comes from Debian 13's backports, because RTMR3
stands in sysfs from Linux 6.16 on. Only files that something needs are taken: no shell, no login, no network service
is among them, and the build fails where one is.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

PYTHON: Final = "3.11"

SYSTEM: Final = (
    *("libc6", "libcrypt1", "libgcc-s1", "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5"),
    *("libuuid1", "libcap2", "libselinux1", "libpcre2-8-0", "bubblewrap", "fuse3", "libfuse3-3"),
    *(f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib"),
)
"""Packages whose files make the root file system."""
STUB: Final = "systemd-boot-efi"
STUB_FILE: Final = "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
FIRMWARE: Final = "ovmf"
FIRMWARE_FILE: Final = "usr/share/ovmf/OVMF.fd"
FIRMWARE_NAME: Final = "OVMF.fd"
KERNEL_META: Final = "linux-image-cloud-amd64"
"""The package that names the newest kernel."""

SUITES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "system": ("bookworm", "bookworm-updates", "bookworm-security"),
        "boot": ("trixie", "trixie-updates", "trixie-security"),
        "kernel": ("trixie-backports",),
    }
)
"""Where `--update-lock` looks: group of packages -> suites."""

WHEELS: Final = ("cffi", "cryptography", "mfusepy", "pyopenssl", "typing-extensions")
"""What `adyton run` imports beside the standard library."""

PROGRAMS: Final = frozenset({f"usr/bin/python{PYTHON}", "usr/bin/bwrap", "usr/bin/fusermount3"})
"""All that is kept of the folders for programs."""
PROGRAM_FOLDERS: Final = ("bin/", "sbin/", "usr/bin/", "usr/sbin/")
LIBRARIES: Final = "usr/lib/x86_64-linux-gnu/"
PACKAGES_FOLDER: Final = "usr/lib/python3/dist-packages"
STANDARD_LIBRARY: Final = f"usr/lib/python{PYTHON}"

LEFT_OUT: Final = (
    *("usr/share/", "var/", "etc/", "lib/udev/", "usr/lib/udev/", "usr/libexec/", "lib/systemd/", "usr/lib/systemd/"),
    *(f"{LIBRARIES}gconv/", f"{LIBRARIES}audit/", f"{LIBRARIES}perl", f"{LIBRARIES}engines-3/"),
    *(f"{STANDARD_LIBRARY}/{name}/" for name in ("distutils", "lib2to3", "pydoc_data", "unittest", "idlelib")),
    *(f"{STANDARD_LIBRARY}/{name}/" for name in ("tkinter", "turtledemo", "ensurepip", "venv", "curses", "sqlite3")),
    f"{STANDARD_LIBRARY}/sitecustomize.py",
)
"""Beginnings of paths."""
EXTENSIONS_LEFT_OUT: Final = ("_curses", "readline", "_sqlite3", "_dbm", "_gdbm", "nis", "_tkinter", "ossaudiodev")
"""Beginnings of names of Python's compiled modules whose libraries the image does not have."""

NEVER: Final = frozenset(
    {"sh", "bash", "dash", "busybox", "ash", "zsh", "ksh", "csh", "tcsh", "su", "sudo", "login", "agetty", "getty"}
    | {"sshd", "ssh", "telnetd", "dropbear", "systemd", "init", "passwd", "perl", "apt", "dpkg"}
)
"""Names that no file of the image may have."""

FOLDERS: Final = ("dev", "proc", "sys", "run", "tmp", "root", "var", "home", "mnt", "usr/sbin")
"""Places for mounts, and folders that programs expect."""
LINKS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bin": "usr/bin",
        "sbin": "usr/sbin",
        "lib": "usr/lib",
        "lib64": "usr/lib64",
        "usr/bin/python3": f"python{PYTHON}",
        "etc/hosts": "/run/adyton/hosts",
        "etc/resolv.conf": "/run/adyton/resolv.conf",
        "etc/mtab": "/proc/self/mounts",
    }
)
ETC: Final[Mapping[str, str]] = MappingProxyType(
    {
        "etc/passwd": "root:x:0:0::/root:/nonexistent\nnobody:x:65534:65534::/nonexistent:/nonexistent\n",
        "etc/group": "root:x:0:\nnogroup:x:65534:\n",
        "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
        "etc/ssl/openssl.cnf": "",
    }
)
"""Small files that the image has instead of Debian's. No account has a password or a shell."""

INITRD_MODULES: Final = ("dm-verity", "erofs", "virtio_blk", "virtio_scsi", "sd_mod", "hv_storvsc")
"""What it takes to reach the root file system, here and in clouds. NVMe is in the kernel."""
ROOT_MODULES: Final = (
    *("virtio_net", "virtio-rng", "tun", "wireguard", "sev-guest", "tdx-guest", "tsm", "hv_netvsc", "gve", "ena"),
    *("sha512_generic", "overlay"),
)
"""What the first program of the root file system loads before it shuts the door. Those that a kernel has built in, or
does not have, are left out."""

COMMAND_LINE: Final = (
    "adyton.root={root} console=ttyS0 quiet panic=-1 oops=panic lockdown=confidentiality init_on_alloc=1 slab_nomerge"
    " vsyscall=none page_alloc.shuffle=1 random.trust_cpu=off"
)
"""The kernel's command line. `random.trust_cpu=off`: RDRAND is mixed in, and not counted as entropy."""
LOCKDOWN: Final = " lockdown=confidentiality"
"""Left out of the command line of an image with GPUs: nobody whom the kernel knows signs their modules. Process 1 locks
the kernel down once it has loaded them from the verified root file system."""
