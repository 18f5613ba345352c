"""How many attested releases a second, how long one takes, what idle connections cost, how fast the record verifies.

`python -m bench keyserver [--seconds N] [--quick]`: the server is a process of its own, as `adyton serve` starts it;
the clients run beside it on the same processors. Every release is whole: TCP, TLS 1.3 handshake, evidence verified
with collateral that is in the store, decision, audit record on disk before the answer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

RUNTIME = hashlib.sha256(b"bench runtime").digest()
MANIFEST = """libos.entrypoint = "/usr/bin/python3"
loader.argv = ["python3", "job.py"]
[adyton.owners.alice]
ca = '''{ca}'''
[[fs.mounts]]
type = "encrypted"
path = "/in"
uri = "file:in"
key_name = "weights"
[[sgx.trusted_files]]
uri = "file:job.py"
sha256 = "{digest}"

"""


def make_owner(folder: Path) -> None:
    """An owner with a key, a platform with its collateral in her home, and an approved program."""
    from adyton.collateral.store import CollateralStore
    from adyton.keystore.approval import Approval
    from adyton.keystore.new_home import init_home
    from adyton.keystore.tables.keys import KEY
    from adyton.sim.platform import SimPlatform
    from adyton.values import Measurement

    names = ("adyton-key-server", "localhost", "127.0.0.1")
    home = init_home(folder / "owner", name="alice", server_names=names, signer_pem=b"unused")
    platform = SimPlatform.create(folder / "platform")
    now = datetime.now(UTC)
    CollateralStore(home.collateral_path).import_bundle(platform.collateral(now).to_json().encode(), now)
    store = home.open_store()
    with store.write() as change:
        change.add_key("weights", os.urandom(16), KEY, actor="bench")
        change.add_approval(
            Approval(
                key="weights",
                app="job",
                version="v1",
                tees=(f"sim:{platform.root_fingerprint}",),
                measurement=Measurement(RUNTIME),
                protocols=("adyton", "ra-tls"),
            ),
            actor="bench",
        )
    store.close()


def start_server(folder: Path) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """`adyton serve` as its own process; returns it and its addresses."""
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "adyton", "serve", "--home", str(folder / "owner")]
    command += ["--listen", "127.0.0.1:0", "--gramine-listen", "127.0.0.1:0", "--ready-file", str(ready)]
    errors = (folder / "serve.err").open("ab")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
    deadline = time.monotonic() + 30
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("adyton serve did not start: " + (folder / "serve.err").read_text()[-2000:])
        time.sleep(0.05)
    return process, json.loads(ready.read_text())


class Client:
    """One client: connects, proves itself, gets the key; as `adyton run` does it, without starting a program."""

    def __init__(self, folder: Path, addresses: dict[str, Any], protocol: str) -> None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        from adyton.attest.ratls import make_certificate
        from adyton.release.tls import client_context, use_certificate
        from adyton.sim.platform import SimPlatform
        from adyton.values import Measurement

        self.protocol = protocol
        host, _, port = addresses[protocol].rpartition(":")
        self.address = (host, int(port))
        platform = SimPlatform.load(folder / "platform")
        self.source = platform.enclave(measurement=Measurement(RUNTIME), mrsigner=bytes(32))
        self.ca = (folder / "owner" / "ca.crt").read_text()
        self.context = client_context(self.ca)
        if protocol == "ra-tls":
            key = ec.generate_private_key(ec.SECP384R1())
            now = datetime.now(UTC)
            der = make_certificate(
                key, self.source.quote, not_before=now - timedelta(hours=1), not_after=now + timedelta(hours=6)
            )
            pem = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            use_certificate(self.context, ssl.DER_cert_to_PEM_cert(der).encode(), pem)

    def once(self) -> None:
        """One release over a connection of its own."""
        plain = socket.create_connection(self.address, timeout=30)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.context.wrap_socket(plain, server_hostname="adyton-key-server") as connection:
            if self.protocol == "ra-tls":
                self._ra_tls(connection)
            else:
                self._adyton(connection)

    def _ra_tls(self, connection: ssl.SSLSocket) -> None:
        from adyton.release import secret_provisioning

        connection.sendall(secret_provisioning.REQUEST)
        found = b""
        while len(found) < secret_provisioning.HEADER_BYTES + 16:
            more = connection.recv(4096)
            if not more:
                raise SystemExit("refused")
            found += more

    def _adyton(self, connection: ssl.SSLSocket) -> None:
        from dataclasses import replace
        from datetime import UTC, datetime

        from adyton.attest.bundle import EvidenceBundle
        from adyton.release import messages
        from adyton.release.answer import parse_answer
        from adyton.release.grants import Granted, verify_grant
        from adyton.release.run_key import RunKey
        from adyton.values import Digest

        key = messages.EnclaveKey()
        nonce = messages.parse_challenge(_post(connection, messages.PATH_CHALLENGE, messages.challenge_request())).nonce
        names = ("weights",)
        unsigned = messages.ReleaseRequest(
            nonce, key.public_bytes, Digest(RUNTIME), names, EvidenceBundle(), run_key=RunKey().public_bytes
        )
        ca_der = ssl.PEM_cert_to_DER_cert(self.ca.strip())
        server = messages.ServerIdentity(Digest(hashlib.sha256(ca_der).digest()), "adyton-key-server")
        binding = unsigned.report_data(server)
        request = replace(unsigned, evidence=EvidenceBundle(cpu=self.source.quote(binding)))
        answer = parse_answer(_post(connection, messages.PATH_RELEASE, request.to_bytes()))
        if not isinstance(answer, Granted):
            raise SystemExit(f"refused: {answer}")
        verify_grant(ca_der, request, server, answer, datetime.now(UTC))
        messages.parse_payload(key.unwrap(answer.terms.wrapped, binding))


def _post(connection: ssl.SSLSocket, path: str, body: bytes) -> bytes:
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += connection.recv(65536)
    head, _, found = raw.partition(b"\r\n\r\n")
    size = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    while len(found) < size:
        found += connection.recv(65536)
    return found


def _load(folder: Path, addresses: dict[str, Any], protocol: str, rate: float, seconds: float, out: Any) -> None:
    """One process of clients: as fast as it goes (rate 0), or at a fixed rate whatever the answers take."""
    threads = 4 if rate == 0 else 16
    clients = [Client(folder, addresses, protocol) for _ in range(threads)]
    for client in clients:
        client.once()
    took: list[float] = []
    lock = threading.Lock()
    begin = time.monotonic() + 0.5
    ticket = iter(range(1 << 40))

    def work(client: Client) -> None:
        mine: list[float] = []
        time.sleep(max(0, begin - time.monotonic()))
        while True:
            if rate:
                with lock:
                    due = begin + next(ticket) / rate
                if due > begin + seconds:
                    break
                time.sleep(max(0, due - time.monotonic()))
            else:
                due = time.monotonic()
                if due > begin + seconds:
                    break
            client.once()
            mine.append(time.monotonic() - due)
        with lock:
            took.extend(mine)

    cpu = time.process_time()

    workers = [threading.Thread(target=work, args=(client,)) for client in clients]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    out.put((took, time.monotonic() - begin, time.process_time() - cpu))


def load(
    folder: Path, addresses: dict[str, Any], protocol: str, rate: float, seconds: float
) -> tuple[float, list[float], float]:
    """Run two processes of clients; returns releases per second, how long each took (s), the clients' CPU ms each."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    processes = [
        context.Process(target=_load, args=(folder, addresses, protocol, rate / 2, seconds, out)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    found = [out.get(timeout=seconds * 4 + 60) for _ in processes]
    for process in processes:
        process.join()
    took = sorted(value for part, _, _ in found for value in part)
    cpu_ms = 1000 * sum(cpu for _, _, cpu in found) / max(1, len(took))
    return sum(len(part) / wall for part, wall, _ in found), took, cpu_ms


def at(took: list[float], share: float) -> float:
    """A percentile, in ms."""
    return 1000 * took[min(len(took) - 1, int(share * len(took)))] if took else float("nan")


def crypto_floor() -> float:
    """CPU ms of the bare cryptography of one release on both sides together: the least that any program could need."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, x25519

    p256, p384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
    message = bytes(64)
    sha256 = ec.ECDSA(hashes.SHA256())
    by256, by384 = p256.sign(message, sha256), p384.sign(message, sha256)
    other = x25519.X25519PrivateKey.generate()

    def timed(work: Any, times: int = 200) -> float:
        begin = time.process_time()
        for _ in range(times):
            work()
        return 1000 * (time.process_time() - begin) / times

    sign256, verify256 = (
        timed(lambda: p256.sign(message, sha256)),
        timed(lambda: p256.public_key().verify(by256, message, sha256)),
    )
    sign384, verify384 = (
        timed(lambda: p384.sign(message, sha256)),
        timed(lambda: p384.public_key().verify(by384, message, sha256)),
    )
    exchange = timed(lambda: x25519.X25519PrivateKey.generate().exchange(other.public_key()))
    handshake = 2 * exchange + sign256 + verify256 + verify384  # server's certificate chain has a P-384 link
    client_certificate = sign384 + 2 * verify384
    quote = 2 * verify256
    return handshake + client_certificate + quote


def server_memory_mib(pid: int) -> float:
    """Resident memory of the server."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def idle(folder: Path, addresses: dict[str, Any], pid: int, count: int) -> None:
    """Hold `count` connections that say nothing (half of them stalled in the TLS handshake) and serve beside them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 1000), hard))
    host, _, port = addresses["adyton"].rpartition(":")
    before = server_memory_mib(pid)
    held = []
    begin = time.monotonic()
    for number in range(count):
        plain = socket.socket()
        plain.bind((f"127.0.0.{2 + number % 8}", 0))
        plain.connect((host, int(port)))
        if number % 2:
            plain.sendall(b"\x16\x03\x01\x02\x00\x01")
        held.append(plain)
    opened = time.monotonic() - begin
    rate, took, _ = load(folder, addresses, "adyton", 40, 4)
    print(
        f"{count} idle connections (half stalled in the hello), opened in {opened:.1f} s: server "
        f"{before:.0f} -> {server_memory_mib(pid):.0f} MiB; beside them {rate:.0f}/s, "
        f"p50 {at(took, 0.5):.0f} ms, p99 {at(took, 0.99):.0f} ms"
    )
    for plain in held:
        plain.close()


def audit_record(folder: Path, count: int) -> None:
    """Verify a record of `count` entries."""
    import sqlalchemy as sa

    from adyton.keystore import schema
    from adyton.keystore.audit import Head, canonical, entry_hash
    from adyton.keystore.home import Home

    store = Home.open(folder / "owner").open_store()
    with store.read() as view:
        head = view.head()
    item = {"key": "weights", "app": "job", "approval": "a-0", "renewed": False, "lease_until_ms": 2}
    previous, rows, seq = head.hash, [], head.seq
    with store.engine.connect().execution_options(adyton_write=True) as connection, connection.begin():
        for _ in range(count):
            seq += 1
            keys = [{**item, "release": f"r-{seq:020}"}]
            body = canonical({"grant": f"g-{seq:020}", "keys": keys, "run": f"{seq:032x}", "platform": "x" * 600})
            previous = entry_hash(previous, seq, 1, "release", body)
            rows.append(
                {"seq": seq, "at": 1, "kind": "release", "subject": f"g-{seq:020}", "body": body, "hash": previous}
            )
            if len(rows) == 10_000:
                connection.execute(sa.insert(schema.audit), rows)
                rows = []
        if rows:
            connection.execute(sa.insert(schema.audit), rows)
        mac = store.keyring.head_mac(Head(seq, previous))
        connection.execute(sa.update(schema.chain).values(seq=seq, hash=previous, mac=mac))
    begin = time.monotonic()
    store.verify_audit()
    took = time.monotonic() - begin
    raw = [os.urandom(900) for _ in range(1000)]
    begin = time.monotonic()
    for _ in range(count // 1000):
        for piece in raw:
            hashlib.sha256(piece).digest()
    floor = time.monotonic() - begin
    print(f"audit record: {seq} entries verified in {took:.1f} s; hashing as many bytes alone {floor:.1f} s")
    with store.write() as change:  # writes down what the record says, for whoever opens the store next
        change.record("note", "", {}, 1)
    store.close()
    begin = time.monotonic()
    store = Home.open(folder / "owner").open_store()
    with store.read() as view:
        view.approvals()
    print(f"a verb that opens this store has its approvals after {time.monotonic() - begin:.2f} s")
    store.close()


def largest_comparison() -> None:
    """A refused program whose manifest has the greatest size, compared with as many approved ones as there may be."""
    from adyton.keyserver import program_comparison
    from adyton.release.shown_program import MAX_MANIFEST_BYTES, Explanation

    def manifest(seed: int) -> bytes:
        files = (
            f'[[sgx.trusted_files]]\nuri = "file:u{seed}{number}"\nsha256 = "{number:064x}"\n\n'
            for number in range(MAX_MANIFEST_BYTES // 120)
        )
        text = 'libos.entrypoint = "/x"\nloader.argv = ["x"]\nfs.mounts = [{ path = "/x", uri = "file:x" }]\n'
        return (text + "".join(files)).encode()

    approved: list[tuple[str, bytes, dict[str, str]]] = [
        (f"program-{seed}", manifest(seed), {}) for seed in range(1, program_comparison.MAX_APPROVED + 1)
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program_comparison.compared(Explanation("d-0", manifest(0), {}), approved)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    bound_s = program_comparison.BOUNDS.cpu_s
    print(f"largest comparison, of six manifests without a common file: {used_s:.1f} s of {bound_s} s of CPU")


def main(args: list[str]) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="bench keyserver")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args(args)
    seconds = 2 if chosen.quick else chosen.seconds
    print(f"{os.cpu_count()} processors, shared by server and clients; load average {os.getloadavg()[0]:.1f}")
    print(f"cryptography alone, both sides of one RA-TLS release: {crypto_floor():.2f} ms of CPU")
    largest_comparison()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_owner(folder)
        server, addresses = start_server(folder)
        try:
            print(
                "protocol   releases/s   p50 ms   p99 ms   at half load: p50 ms   p99 ms   CPU ms each: server  clients"
            )
            for protocol in ("ra-tls", "adyton"):
                cpu = _cpu_ms(server.pid)
                rate, took, own = load(folder, addresses, protocol, 0, seconds)
                cpu = (_cpu_ms(server.pid) - cpu) / max(1, len(took))
                _, half, _ = load(folder, addresses, protocol, rate / 2, seconds)
                print(
                    f"{protocol:<10} {rate:>10.0f} {at(took, 0.5):>8.1f} {at(took, 0.99):>8.1f}"
                    f" {at(half, 0.5):>22.1f} {at(half, 0.99):>8.1f} {cpu:>20.2f} {own:>8.2f}"
                )
            idle(folder, addresses, server.pid, 1000 if chosen.quick else 10_000)
        finally:
            server.send_signal(signal.SIGTERM)
            print(f"graceful stop: exit status {server.wait(30)}")
        audit_record(folder, 20_000 if chosen.quick else 1_000_000)


def _cpu_ms(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
