"""Take what runs say after their grant: look the run up, verify its signature, and hand the payload to its action.

Each action has one handler. A handler gets a verified message, opens a transaction of its own where it writes, and
returns the members of the answer: a JSON object of its own form. It raises OutOfOrder for what the run may read, with
the four parts. Every other error is told as *could not be checked*, and its reason goes to the log
(`public_errors.public_error`). A handler must give the same answer to the same message, or refuse it: a message can
be sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from adyton.errors import OutOfOrder
from adyton.keystore.granted_run import GrantedRun

if TYPE_CHECKING:
    from adyton.keystore.store import Store
    from adyton.release.messages import ServerIdentity
    from adyton.release.run_messages import RunMessage


@dataclass(frozen=True, slots=True)
class VerifiedMessage:
    """A message that the run itself signed for this server."""

    run: GrantedRun
    payload: bytes


Handler: TypeAlias = Callable[[VerifiedMessage], Mapping[str, Any]]


class RunMessages:
    """The actions of one key server. Thread-safe where its handlers are."""

    def __init__(self, store: Store, identity: ServerIdentity, handlers: Mapping[str, Handler]) -> None:
        self._store = store
        self._identity = identity
        self._handlers = dict(handlers)

    def answer(self, message: RunMessage) -> Mapping[str, Any] | None:
        """The members of the answer. None where no grant of this store has the key that signed the message.

        An unknown grant and a false signature get the same answer. Raises OutOfOrder for an action without a handler,
        and what the handler raises.
        """
        with self._store.read() as view:
            run = GrantedRun.load(view, message.grant)
        if run is None or not message.is_of(run.run_key, self._identity):
            return None
        handler = self._handlers.get(message.action)
        if handler is None:
            raise OutOfOrder(
                "this key server does not take this message of a run",
                check="action of the message",
                expected=", ".join(sorted(self._handlers)) or "none",
                seen=message.action,
                remedy="install the same version of Adyton on both sides",
            )
        return handler(VerifiedMessage(run, message.payload))
