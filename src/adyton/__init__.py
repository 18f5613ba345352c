"""Adyton runs an unmodified PyTorch program on a machine that its owner does not trust.

Each function here does the same as one verb of the command line. The page docs/python.md shows all of them. A function
is imported when it is first used, so `import adyton` alone loads nothing else.

::

    made = adyton.protect("train.py", "data/train.csv", "model.pt", tee="sim")
    with adyton.serving(listen="127.0.0.1:0") as server:
        adyton.run(made.manifest, tee="sim", key_servers=server.address).require()
    adyton.decrypt("encrypted/model.pt", "model.pt", key="default")
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for that of `typing`, which is not imported for it

if TYPE_CHECKING:
    from adyton.workflow.approve import Approved as Approved
    from adyton.workflow.approve import approve as approve
    from adyton.workflow.build import Built as Built
    from adyton.workflow.build import build as build
    from adyton.workflow.collateral import Taken as Taken
    from adyton.workflow.collateral import fetch_collateral as fetch_collateral
    from adyton.workflow.collateral import import_collateral as import_collateral
    from adyton.workflow.connect import Connected as Connected
    from adyton.workflow.connect import connect as connect
    from adyton.workflow.connect import connecting as connecting
    from adyton.workflow.decrypt import Decrypted as Decrypted
    from adyton.workflow.decrypt import decrypt as decrypt
    from adyton.workflow.encrypt import Encrypted as Encrypted
    from adyton.workflow.encrypt import encrypt as encrypt
    from adyton.workflow.init import Initialized as Initialized
    from adyton.workflow.init import init as init
    from adyton.workflow.keys import NewKey as NewKey
    from adyton.workflow.keys import new_key as new_key
    from adyton.workflow.new import Proposed as Proposed
    from adyton.workflow.new import new as new
    from adyton.workflow.pack import Packed as Packed
    from adyton.workflow.pack import pack as pack
    from adyton.workflow.pin import Pinned as Pinned
    from adyton.workflow.pin import pin as pin
    from adyton.workflow.protect import Protected as Protected
    from adyton.workflow.protect import protect as protect
    from adyton.workflow.receipt import ReceiptGraph as ReceiptGraph
    from adyton.workflow.receipt import VerifiedReceipt as VerifiedReceipt
    from adyton.workflow.receipt import receipt_graph as receipt_graph
    from adyton.workflow.receipt import verify_receipt as verify_receipt
    from adyton.workflow.rekey import Rekeyed as Rekeyed
    from adyton.workflow.rekey import rekey as rekey
    from adyton.workflow.revoke import RevokedApprovals as RevokedApprovals
    from adyton.workflow.revoke import revoke as revoke
    from adyton.workflow.run import Ran as Ran
    from adyton.workflow.run import run as run
    from adyton.workflow.serve import Serving as Serving
    from adyton.workflow.serve import serve as serve
    from adyton.workflow.serve import serving as serving
    from adyton.workflow.verify import Verdict as Verdict
    from adyton.workflow.verify import verify as verify

__version__ = "0.1.0"

_MODULES = {
    "adyton.workflow.approve": ("Approved", "approve"),
    "adyton.workflow.build": ("Built", "build"),
    "adyton.workflow.collateral": ("Taken", "fetch_collateral", "import_collateral"),
    "adyton.workflow.connect": ("Connected", "connect", "connecting"),
    "adyton.workflow.decrypt": ("Decrypted", "decrypt"),
    "adyton.workflow.encrypt": ("Encrypted", "encrypt"),
    "adyton.workflow.init": ("Initialized", "init"),
    "adyton.workflow.keys": ("NewKey", "new_key"),
    "adyton.workflow.new": ("Proposed", "new"),
    "adyton.workflow.pack": ("Packed", "pack"),
    "adyton.workflow.protect": ("Protected", "protect"),
    "adyton.workflow.pin": ("Pinned", "pin"),
    "adyton.workflow.receipt": ("ReceiptGraph", "VerifiedReceipt", "receipt_graph", "verify_receipt"),
    "adyton.workflow.rekey": ("Rekeyed", "rekey"),
    "adyton.workflow.revoke": ("RevokedApprovals", "revoke"),
    "adyton.workflow.run": ("Ran", "run"),
    "adyton.workflow.serve": ("Serving", "serve", "serving"),
    "adyton.workflow.verify": ("Verdict", "verify"),
}
_EXPORTS = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
