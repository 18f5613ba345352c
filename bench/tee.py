"""What evidence and its collateral cost: quotes of a simulated platform, and the collateral store.

The limit of a quote is one bare ECDSA P-256 signature of the same library; the limit of a store that is warm is looking
at its files (stat), which is how it notices that another process has fetched anew. Best of several rounds on one core;
every ratio is between figures of the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import uvicorn
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from adyton.attest.sgx import parse_quote
from adyton.collateral.downloads import Downloads
from adyton.collateral.lookup import Lookup
from adyton.collateral.sources import Source
from adyton.collateral.store import CollateralStore
from adyton.sim import pcs_server
from adyton.sim.platform import SimPlatform
from adyton.values import Measurement

MEASUREMENT = Measurement(bytes(32))


class Row(NamedTuple):
    """One figure beside its limit."""

    name: str
    ms: float
    limit: str
    limit_ms: float

    @property
    def ratio(self) -> float:
        """How many times the limit it takes."""
        return self.ms / self.limit_ms if self.limit_ms else float("nan")


def best_ms(work: Callable[[], object], *, rounds: int = 7, repeat: int = 20) -> float:
    """The best mean of several rounds, in milliseconds."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(repeat):
            work()
        best = min(best, (time.perf_counter() - start) / repeat)
    return best * 1000


def best_process_ms(code: str, rounds: int = 5) -> float:
    """The best wall time of a fresh interpreter that runs this, less that of one that runs nothing."""

    def run(text: str) -> float:
        best = float("inf")
        for _ in range(rounds):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", text], check=True)
            best = min(best, time.perf_counter() - start)
        return best

    return (run(code) - run("pass")) * 1000


def measure(folder: Path) -> list[Row]:
    """Every figure."""
    key = ec.generate_private_key(ec.SECP256R1())
    message, algorithm = bytes(432), ec.ECDSA(hashes.SHA256())
    sign_ms = best_ms(lambda: key.sign(message, algorithm))
    platform = SimPlatform.create(folder / "platform")
    enclave = platform.enclave(measurement=MEASUREMENT)
    domain = platform.enclave(measurement=MEASUREMENT, shape="tdx")
    rows = [
        Row("SGX quote (v3)", best_ms(lambda: enclave.quote(bytes(64))), "one ECDSA signature", sign_ms),
        Row("TDX quote (v4)", best_ms(lambda: domain.quote(bytes(64))), "one ECDSA signature", sign_ms),
        Row(
            "load the platform and quote",
            best_ms(lambda: SimPlatform.load(folder / "platform").enclave(measurement=MEASUREMENT).quote(bytes(64))),
            "one ECDSA signature",
            sign_ms,
        ),
    ]
    imported = best_process_ms("from cryptography.hazmat.primitives.asymmetric import ec")
    load = f"""
from pathlib import Path
from adyton.tee.source_choice import open_source
from adyton.values import Measurement
open_source("sim", measurement=Measurement(bytes(32)), platform_dir=Path({str(folder / "platform")!r})).quote(bytes(64))
"""
    rows.append(Row("first quote of a new process", best_process_ms(load), "importing ECDSA", imported))
    return rows + store_rows(folder, platform)


def store_rows(folder: Path, platform: SimPlatform) -> list[Row]:
    """The collateral store: fetch, cold, warm."""
    listening = pcs_server.bind("127.0.0.1", 0)
    config = uvicorn.Config(pcs_server.application(platform), log_level="error", lifespan="off", ws="none", http="h11")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    now = datetime.now(UTC)
    quote = parse_quote(platform.enclave(measurement=MEASUREMENT).quote(bytes(64)))
    try:
        source = Source(pcs_server.url_of(listening))
        store = CollateralStore(folder / "store")
        fetch = partial(Downloads(store).fetch, fmspcs=[platform.fmspc], sources=[source], now=now)
        fetch()
        client = source.client("standard")
        fetch_ms = best_ms(fetch, rounds=3, repeat=2)
        get_ms = best_ms(lambda: client.qe_identity("sgx"), rounds=3, repeat=5)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
    marks = next((folder / "store").rglob("marks.json"))
    files = [marks] + [
        path for path in (folder / "store").rglob("*.json") if "-" in path.name and "tdx" not in path.name
    ]
    names = [str(path) for path in files]
    cold_ms = best_ms(lambda: Lookup(CollateralStore(folder / "store")).for_quote(quote, now), repeat=5)
    lookup = Lookup(store)
    warm_ms = best_ms(lambda: lookup.for_quote(quote, now), repeat=200)
    read_ms = best_ms(lambda: [json.loads(path.read_bytes()) for path in files], repeat=20)
    stat_ms = best_ms(lambda: [os.stat(name) for name in names], repeat=200)
    return [
        Row("fetch, verify and keep 7 documents", fetch_ms, "7 bare GETs", 7 * get_ms),
        Row("collateral for a quote, store cold", cold_ms, "reading the files", read_ms),
        Row("collateral for a quote, store warm", warm_ms, "looking at the files", stat_ms),
    ]


def main(args: list[str]) -> None:
    """Print the table, or with --json the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench tee", description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    if options.json:
        print(json.dumps([row._asdict() | {"ratio": row.ratio} for row in rows], indent=1))
        return
    print(f"{'':38}{'ms':>9}   {'limit':24}{'ms':>9}{'times':>8}")
    for row in rows:
        print(f"{row.name:38}{row.ms:9.3f}   {row.limit:24}{row.limit_ms:9.3f}{row.ratio:8.1f}")
