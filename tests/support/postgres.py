"""A real PostgreSQL for tests: Debian's package, in a temporary folder, on a socket in it, as a user without rights."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def programs() -> Path | None:
    """The folder of initdb and postgres, if PostgreSQL is installed."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    found = shutil.which("initdb")
    if found is not None:
        places.append(Path(found).resolve().parent)
    return next((place for place in places if (place / "initdb").exists()), None)


@dataclass
class Server:
    """A PostgreSQL that can be killed and started again on the same data."""

    folder: Path
    where: Path
    who: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its empty database."""
        return f"postgresql+psycopg://adyton@/postgres?host={self.folder}"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        command: list[str | Path] = [self.where / "postgres", "-D", self.folder / "data", "-k", self.folder]
        command += ["-c", "listen_addresses=", "-c", "max_connections=60"]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **self.who)
        self.process = process
        deadline = time.monotonic() + 30
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text()[-1000:])
            time.sleep(0.05)

    def _answers(self) -> bool:
        done = subprocess.run(
            [self.where / "pg_isready", "-q", "-h", self.folder, "-U", "adyton", "-d", "postgres"], check=False
        )
        return done.returncode == 0

    def crash(self) -> None:
        """Kill all its processes, without a checkpoint. Committed data is in its log, or lost."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGINT)

    def _end(self, number: int) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


@contextmanager
def postgres_server() -> Iterator[Server]:
    """A server with an empty database, running until the block ends."""
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
    options = ("-U", "adyton", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
    command: list[str | Path] = [where / "initdb", "-D", folder / "data", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **who)
    server = Server(folder, where, who)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server. Yields the URL of an empty database."""
    with postgres_server() as server:
        yield server.url


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
