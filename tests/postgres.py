"""A real PostgreSQL for tests: Debian's package, in a temporary folder, on a socket in it, as a user without rights."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def programs() -> Path | None:
    """The folder of initdb and postgres, if PostgreSQL is installed."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    found = shutil.which("initdb")
    if found is not None:
        places.append(Path(found).resolve().parent)
    return next((place for place in places if (place / "initdb").exists()), None)


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server; yields the URL of an empty database."""
    where = programs()
    if where is None:
        raise RuntimeError("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="adyton-pg-"))
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        name = next(name for name in ("postgres", "nobody") if _exists(name))
        entry = pwd.getpwnam(name)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
        who = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    data = folder / "data"
    command: list[str | Path] = [
        where / "initdb",
        "-D",
        data,
        "-U",
        "adyton",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
        "-N",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **who)
    command = [where / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "max_connections=60"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **who)
    try:
        deadline = time.monotonic() + 30
        while not (folder / ".s.PGSQL.5432").exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "log").read_text()[-1000:])
            time.sleep(0.05)
        yield f"postgresql+psycopg://adyton@/postgres?host={folder}"
    finally:
        server.send_signal(2)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
