"""Run the owner's key server, until it is stopped or for the duration of a block."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from adyton.errors import UsageError
from adyton.manifest.measure import combine
from adyton.server.process import Addresses, run, set_up_logging
from adyton.workflow.owner import chosen_home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Serving:
    """A running key server: the address of each protocol, HOST:PORT."""

    addresses: Mapping[str, str]

    @property
    def address(self) -> str:
        """The address of Adyton's own protocol. Raises UsageError where it is off."""
        if "adyton" not in self.addresses:
            raise UsageError("this key server does not speak Adyton's own protocol", check="serving", expected="listen")
        return self.addresses["adyton"]

    def to_dict(self) -> dict[str, Any]:
        """The addresses, as in the file of `adyton serve --ready-file`."""
        return dict(self.addresses)


def _ignore(_addresses: Mapping[str, str]) -> None:
    """Ignore the addresses."""


def serve(
    *,
    listen: str | None = None,
    gramine_listen: str | None = None,
    dashboard: str | None = None,
    metrics: str | None = None,
    collateral: Path | None = None,
    online: bool = False,
    ready_file: Path | None = None,
    log_format: Literal["text", "json"] | None = None,
    home: Path | None = None,
    listening: Callable[[Mapping[str, str]], object] = _ignore,
) -> None:
    """Serve keys to approved programs until SIGTERM or Ctrl-C, as `adyton serve` does.

    Addresses are HOST:PORT. Port 0 takes any free port. `listening` is called with the address of each protocol. With
    `log_format` the log goes to standard error. Without it the program configures its own logging. The process makes no
    core files from then on. Raises UsageError, StoreError, AuditError.
    """
    addresses = _addresses(listen, gramine_listen, dashboard, metrics)
    if log_format is not None:
        set_up_logging(json_logs=log_format == "json")
    run(
        chosen_home(home),
        addresses,
        combine=combine,
        collateral=collateral,
        online=online,
        ready_file=ready_file,
        listening=lambda found, _stop: listening(found),
    )


@contextmanager
def serving(
    *,
    listen: str | None = None,
    gramine_listen: str | None = None,
    dashboard: str | None = None,
    metrics: str | None = None,
    collateral: Path | None = None,
    online: bool = False,
    home: Path | None = None,
) -> Iterator[Serving]:
    """Serve keys in a thread until the block ends. Otherwise as `serve`.

    Raises the errors of `serve`: at the beginning, or at the end of the block if the server failed meanwhile.
    """
    addresses, found = _addresses(listen, gramine_listen, dashboard, metrics), chosen_home(home)
    told: SimpleQueue[tuple[Mapping[str, str], Callable[[], object]] | BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            run(
                found,
                addresses,
                combine=combine,
                collateral=collateral,
                online=online,
                listening=lambda where, stop: told.put((where, stop)),
            )
            told.put(None)
        except BaseException as error:
            told.put(error)

    thread = threading.Thread(target=work, name="adyton-serve", daemon=True)
    thread.start()
    first = told.get()
    if not isinstance(first, tuple):
        thread.join()
        raise first or UsageError("the key server ended before it listened")
    where, stop = first
    try:
        yield Serving(dict(where))
    finally:
        with suppress(RuntimeError):  # its event loop has ended: the server failed meanwhile
            stop()
        thread.join()
    last = told.get()
    if isinstance(last, BaseException):
        raise last


def _addresses(listen: str | None, gramine: str | None, dashboard: str | None, metrics: str | None) -> Addresses:
    if listen is None and gramine is None and dashboard is None:
        raise UsageError(
            "nothing to serve",
            check="adyton serve",
            expected="--listen, --gramine-listen or --dashboard",
            seen="none of them",
            remedy="adyton serve --listen 0.0.0.0:4433",
        )
    return Addresses(listen, gramine, dashboard, metrics)
