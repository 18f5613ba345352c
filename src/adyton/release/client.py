"""The client of key release: prove the enclave to the key servers, and get the keys that the manifest needs.

Every protected program loads it, so it imports little: no database, no web framework.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from adyton.address import parse_address
from adyton.errors import (
    Denied,
    Error,
    FetchFailed,
    KeyReleaseError,
    MalformedManifest,
    OutOfOrder,
    Timeout,
    Unavailable,
    UsageError,
    VersionMismatch,
)
from adyton.release.tls import client_context, use_certificate
from adyton.roots.folder_id import key_of
from adyton.values import Digest, Key128

if TYPE_CHECKING:
    import http.client
    from collections.abc import Callable, Collection, Iterator, Mapping

    from adyton.attest.bundle import DevicePart
    from adyton.errors import Parts
    from adyton.manifest.model import Owner
    from adyton.manifest.signed import SignedManifest
    from adyton.release.grants import Terms
    from adyton.release.messages import Refusal, ReleaseRequest, ServerIdentity
    from adyton.release.run_key import RunKey
    from adyton.tee.source import QuoteSource
    from adyton.typed_document import TypedDocument

TIMEOUT_S: Final = 30.0
RETRY_REFUSED_S: Final = 3.0
"""How long a refused connection is tried again. A key server that starts at the same moment takes a second."""
PROTOCOLS: Final = ("adyton", "ra-tls")
_TOLD: Final = frozenset({"message", "check", "expected", "seen", "remedy"})
"""The members that are read from a key server's error. Its class follows from the HTTP status alone."""


@dataclass(frozen=True, slots=True)
class GrantInfo:
    """One key server's grant, as its owner's audit record names it."""

    owner: str
    grant: str
    names: tuple[str, ...]
    lease_s: int | None
    checkpoint: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    roots: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    request: ReleaseRequest | None = None
    """The request that was granted, with its evidence. None over ra-tls."""


@dataclass(frozen=True, slots=True, repr=False)
class Released:
    """All keys, secrets and grants of a run."""

    keys: Mapping[str, Key128]
    secrets: Mapping[str, bytes]
    grants: tuple[GrantInfo, ...]

    def __repr__(self) -> str:
        return f"Released(keys={sorted(self.keys)}, secrets={sorted(self.secrets)}, <secret>)"


def obtain_keys(
    signed: SignedManifest,
    source: QuoteSource,
    servers: Mapping[str, str],
    *,
    protocol: str = "adyton",
    runtime_parts: Callable[[], Mapping[str, str]] | None = None,
    devices: Callable[[bytes], tuple[DevicePart, ...]] | None = None,
    run_key: RunKey | None = None,
    folders: Collection[str] = (),
    timeout_s: float = TIMEOUT_S,
) -> Released:
    """Get every key and secret that the manifest needs, from the key server of each owner.

    `servers` maps an owner's name to `HOST:PORT`. With one owner the name may be "". With several owners all are asked
    even if one refuses, so that the error has every reason. `runtime_parts` is called only after a refusal. It lets the
    owner's record say what was changed. `devices` makes the evidence of each GPU over a nonce of 32 bytes. `run_key` is
    the key with which this run signs what it says later. Without one, a key is made that signs nothing. `folders` are
    the ids of the pinned folders: each owner is asked for the roots of those under her keys.

    Raises Denied with the server's text and denial id, or where the server's certificate or its grant is not under the
    pinned CA. Raises Timeout or FetchFailed where a server cannot be reached, and UsageError for ra-tls where the
    manifest does not allow it.
    """
    if protocol not in PROTOCOLS:
        raise UsageError("unknown protocol", check="--provisioning", expected=" or ".join(PROTOCOLS), seen=protocol)
    if protocol == "ra-tls" and not signed.manifest.adyton.ra_tls:
        raise UsageError(
            "this program takes no keys over ra-tls, where grants are not signed",
            check="--provisioning",
            expected="adyton; ra-tls only where the measured manifest allows it: whoever starts a program may work with"
            " a thief of the key server's TLS key",
            seen="ra-tls, and a manifest without adyton.insecure__ra_tls",
            remedy="start it without --provisioning; or write insecure__ra_tls = true under [adyton] in the template,"
            " build, and have the owner approve it",
        )
    keys: dict[str, Key128] = {}
    secret_values: dict[str, bytes] = {}
    grants: list[GrantInfo] = []
    asked = {owner: (names, _address_of(owner, servers)) for owner, names in needed(signed).items()}
    refusals: list[Error] = []
    for owner, (names, address) in asked.items():
        conversation = _Conversation(signed, owner, address, timeout_s)
        try:
            if protocol == "adyton":
                hers = tuple(sorted(folder for folder in folders if key_of(folder) in names))
                got_keys, got_secrets, grant = conversation.adyton(
                    names, source, run_key, runtime_parts, devices, folders=hers
                )
            else:
                got_keys, got_secrets, grant = conversation.ra_tls(names, source)
        except (KeyReleaseError, Unavailable) as refusal:
            refusals.append(refusal)  # the others are asked all the same: the user sees every reason at once
            continue
        keys |= {name: Key128(value) for name, value in got_keys.items()}
        secret_values |= got_secrets
        grants.append(grant)
    if refusals:
        raise _all_of(refusals)
    return Released(keys, secret_values, tuple(grants))


def tell_server(
    signed: SignedManifest,
    owner_name: str,
    servers: Mapping[str, str],
    run_key: RunKey,
    action: str,
    grant: str,
    payload: bytes,
    *,
    timeout_s: float = TIMEOUT_S,
) -> TypedDocument:
    """Say something to the key server of one owner of this manifest, signed with the run's key.

    `action` is one of `run_messages.ACTIONS`, `grant` that owner's grant to this run. Returns the members of the
    answer. Raises OutOfOrder where the server does not know the grant, else what `obtain_keys` raises.
    """
    owner = _owner_of(signed, owner_name)
    conversation = _Conversation(signed, owner, _address_of(owner, servers), timeout_s)
    return conversation.tell(run_key, action, grant, payload)


def identity_of(signed: SignedManifest, owner_name: str) -> ServerIdentity:
    """The key server of one owner of this manifest, as evidence and messages name it."""
    return _Conversation(signed, _owner_of(signed, owner_name), ("", 0), TIMEOUT_S).identity()


def _owner_of(signed: SignedManifest, name: str) -> Owner:
    for owner in signed.manifest.adyton.owners:
        if owner.name == name:
            return owner
    raise _no_owner(name)


def _late(what: str, timeout_s: float) -> Timeout:
    return Timeout(
        f"{what} within {timeout_s:.0f} s",
        check="answer of the key server",
        expected=f"an answer within {timeout_s:.0f} s",
        seen="none",
        remedy="is adyton serve running and reachable from here?",
    )


def _all_of(refusals: list[Error]) -> Error:
    """One error for the refusals of all owners: Denied if one of them is a verdict, else *could not check*."""
    first = next((error for error in refusals if isinstance(error, KeyReleaseError)), refusals[0])
    if len(refusals) == 1:
        return first

    def joined(texts: list[str | None]) -> str | None:
        return "; ".join(dict.fromkeys(text for text in texts if text)) or None

    message = "\nand ".join(error.message for error in refusals)
    parts: Parts = {
        "check": joined([error.check for error in refusals]),
        "expected": joined([error.expected for error in refusals]),
        "seen": joined([error.seen for error in refusals]),
        "remedy": joined([error.remedy for error in refusals]),
    }
    if isinstance(first, Denied):
        ids = [denial for error in refusals if isinstance(error, Denied) for denial in error.denials]
        return Denied(message, denials=ids, **parts)
    return type(first)(message, **parts)


def needed(signed: SignedManifest) -> dict[Owner, tuple[str, ...]]:
    """The names to request from each owner's key server, by the measured manifest."""
    manifest = signed.manifest
    found: dict[str, set[str]] = {}
    owners = {owner.name: owner for owner in manifest.adyton.owners}
    for name in manifest.key_names:
        owner = manifest.owner_of(name)
        if owner is None:
            raise _no_owner(name)
        found.setdefault(owner.name, set()).add(name)
    for secret in manifest.adyton.secrets:
        named = secret.owner or (next(iter(owners)) if len(owners) == 1 else None)
        if named is None:
            raise _no_owner(secret.name)
        found.setdefault(named, set()).add(secret.name)
    return {owners[name]: tuple(sorted(names)) for name, names in sorted(found.items())}


def _no_owner(name: str) -> MalformedManifest:
    return MalformedManifest(
        f"the manifest does not say whose key server holds {name!r}",
        check=f"owner of {name!r}",
        expected="a table adyton.owners.NAME, and with several owners an entry in adyton.keys",
        seen="none",
        remedy="add it to the manifest template and build again",
    )


def _address_of(owner: Owner, servers: Mapping[str, str]) -> tuple[str, int]:
    written = servers.get(owner.name) or (servers.get("") if len(servers) == 1 else None)
    if written is None:
        raise UsageError(
            f"no address for the key server of {owner.name!r}",
            check="--key-server",
            expected=f"{owner.name}=HOST:PORT",
            seen=", ".join(f"{name}={where}" if name else where for name, where in servers.items()) or "none",
        )
    return parse_address(written, "--key-server")


class _Conversation:
    """The exchange with one owner's key server, for one run."""

    def __init__(
        self,
        signed: SignedManifest,
        owner: Owner,
        address: tuple[str, int],
        timeout_s: float,
    ) -> None:
        if owner.ca is None:
            raise MalformedManifest(
                f"the manifest pins no CA for {owner.name!r}",
                check=f"adyton.owners.{owner.name}.ca",
                expected="the owner's CA certificate (PEM)",
                seen="none",
                remedy="a program that pins no owner could be fed anybody's keys: add ca_file and build again",
            )
        self._signed = signed
        self._owner = owner
        self._address = address
        self._timeout_s = timeout_s
        self._ca: str = owner.ca

    # --- Adyton's protocol -------------------------------------------------------------------------------------

    def adyton(
        self,
        names: tuple[str, ...],
        source: QuoteSource,
        run_key: RunKey | None,
        runtime_parts: Callable[[], Mapping[str, str]] | None,
        devices: Callable[[bytes], tuple[DevicePart, ...]] | None,
        *,
        folders: tuple[str, ...] = (),
    ) -> tuple[Mapping[str, bytes], Mapping[str, bytes], GrantInfo]:
        """Challenge, evidence, release, acknowledgement, over one connection."""
        from datetime import UTC, datetime

        from adyton.attest.bundle import EvidenceBundle
        from adyton.release.answer import parse_answer
        from adyton.release.grants import verify_grant
        from adyton.release.messages import (
            PATH_CHALLENGE,
            PATH_RELEASE,
            PATH_USED,
            EnclaveKey,
            Refusal,
            ReleaseRequest,
            challenge_request,
            parse_challenge,
            parse_payload,
            used_message,
        )
        from adyton.release.run_key import RunKey

        key = EnclaveKey()
        with self._open() as connection:
            nonce = parse_challenge(self._post(connection, PATH_CHALLENGE, challenge_request())).nonce
            request = ReleaseRequest(
                nonce=nonce,
                public_key=key.public_bytes,
                manifest_sha256=self._signed.manifest_sha256,
                names=names,
                evidence=EvidenceBundle(),
                run_key=(RunKey() if run_key is None else run_key).public_bytes,
                folders=folders,
            )
            if devices is not None:
                request = replace(request, evidence=EvidenceBundle(devices=devices(request.gpu_nonce)))
            binding = request.report_data(self.identity())
            cpu, event_log = source.quote(binding), source.event_log()
            request = replace(request, evidence=replace(request.evidence, cpu=cpu, event_log=event_log))
            answer = parse_answer(self._post(connection, PATH_RELEASE, request.to_bytes()))
            if isinstance(answer, Refusal):
                self._explain(connection, answer, runtime_parts)
                raise denied(answer, self._owner.name)
            verify_grant(self._ca_der, request, self.identity(), answer, datetime.now(UTC))
            terms = answer.terms
            payload = parse_payload(key.unwrap(terms.wrapped, binding))
            if tuple(sorted({*payload.keys, *payload.secrets})) != names:
                raise OutOfOrder(
                    "the key server answered with other keys than were asked for",
                    check="names in the grant",
                    expected=", ".join(names),
                    seen=", ".join(sorted({*payload.keys, *payload.secrets})),
                )
            with contextlib.suppress(Error):
                self._post(connection, PATH_USED, used_message(terms.grant, payload.token))
            return payload.keys, payload.secrets, self._info(terms, request)

    @contextlib.contextmanager
    def _open(self) -> Iterator[http.client.HTTPConnection]:
        import http.client

        connection = http.client.HTTPConnection(self._address[0], self._address[1], timeout=self._timeout_s)
        connection.sock = self._connect(client_context(self._ca), self._owner.server_name)
        try:
            yield connection
        finally:
            connection.close()

    def _info(self, terms: Terms, request: ReleaseRequest) -> GrantInfo:
        return GrantInfo(
            owner=self._owner.name,
            grant=terms.grant,
            names=request.names,
            lease_s=terms.lease_s,
            checkpoint=terms.checkpoint,
            versions=terms.versions,
            roots=terms.roots,
            request=request,
        )

    def tell(self, run_key: RunKey, action: str, grant: str, payload: bytes) -> TypedDocument:
        """Send one message of the run (`release.run_messages`), and return the members of the answer."""
        from adyton.release.messages import MAX_RESPONSE_BYTES
        from adyton.release.run_messages import PATH_RUN, RunMessage, parse_run_answer

        message = RunMessage.create(run_key, self.identity(), action, grant, payload)
        with self._open() as connection:
            raw = self._post(connection, f"{PATH_RUN}/{action}", message.to_bytes())
        found = parse_run_answer(raw, MAX_RESPONSE_BYTES)
        if found is None:
            raise OutOfOrder(
                f"the key server of {self._owner.name} does not know this run",
                check="grant of the run",
                expected="a grant of this store, made to this run's key",
                seen="unknown",
                remedy="was another home restored in its place? its owner compares the record with checkpoints"
                " (adyton audit verify)",
            )
        return found

    @property
    def _ca_der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self._ca.strip())

    def identity(self) -> ServerIdentity:
        """The owner's server, as evidence and messages name it."""
        from adyton.release.messages import ServerIdentity

        return ServerIdentity(Digest(hashlib.sha256(self._ca_der).digest()), self._owner.server_name)

    def _explain(
        self,
        connection: http.client.HTTPConnection,
        refusal: Refusal,
        runtime_parts: Callable[[], Mapping[str, str]] | None,
    ) -> None:
        """Send manifest and runtime parts, so that the owner's record can say what was changed. Best effort.

        The key server answers only that it took them. It never says what it found.
        """
        from adyton.release.messages import NOT_KEPT
        from adyton.release.shown_program import PATH_EXPLAIN, explain_message

        if runtime_parts is None or refusal.denial == NOT_KEPT:
            return
        with contextlib.suppress(Error):
            message = explain_message(refusal.denial, self._signed.manifest_bytes, runtime_parts())
            self._post(connection, f"{PATH_EXPLAIN}/{refusal.denial}", message)

    def _post(self, connection: http.client.HTTPConnection, path: str, body: bytes) -> bytes:
        import http.client

        from adyton.release.messages import MAX_RESPONSE_BYTES

        where = f"{self._address[0]}:{self._address[1]}"
        try:
            headers = {"Content-Type": "application/json", "Host": self._owner.server_name}
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            raw = response.read(MAX_RESPONSE_BYTES + 1)
        except TimeoutError:
            raise _late(f"the key server at {where} did not answer", self._timeout_s) from None
        except (http.client.HTTPException, OSError) as error:
            raise FetchFailed(
                f"the key server at {where} broke off: {type(error).__name__}",
                check="answer of the key server",
                expected="an HTTP answer",
                seen=str(error)[:160] or type(error).__name__,
                remedy="look at the key server's log",
            ) from error
        if len(raw) > MAX_RESPONSE_BYTES:
            raise OutOfOrder("the key server's answer is too long", expected=f"at most {MAX_RESPONSE_BYTES} bytes")
        if response.status not in (200, 202, 403, 409):
            raise _server_error(raw, response.status, where)
        return raw

    # --- TLS -----------------------------------------------------------------------------------------------------

    def _connect(self, context: ssl.SSLContext, server_name: str) -> ssl.SSLSocket:
        host, port = self._address
        where = f"{host}:{port}"
        retry_until = time.monotonic() + min(RETRY_REFUSED_S, self._timeout_s)
        try:
            while True:
                try:
                    plain = socket.create_connection((host, port), timeout=self._timeout_s)
                    break
                except ConnectionRefusedError:
                    if time.monotonic() > retry_until:
                        raise
                    time.sleep(0.1)
        except TimeoutError:
            raise _late(f"the key server at {where} cannot be reached", self._timeout_s) from None
        except OSError as error:
            raise FetchFailed(
                f"the key server at {where} cannot be reached: {error.strerror or error}",
                check="connection to the key server",
                expected=f"a key server at {where}",
                seen=str(error.strerror or error),
                remedy="start it with adyton serve, or name the right address with --key-server",
            ) from error
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return context.wrap_socket(plain, server_hostname=server_name)
        except ssl.SSLCertVerificationError as error:
            plain.close()
            raise _not_pinned(error, self._owner, where) from error
        except TimeoutError:
            plain.close()
            raise _late(f"the key server at {where} did not finish the TLS handshake", self._timeout_s) from None
        except (ssl.SSLError, OSError) as error:
            plain.close()
            raise FetchFailed(
                f"TLS with the key server at {where} failed: {getattr(error, 'reason', None) or error}",
                check="TLS handshake",
                expected="TLS 1.3",
                seen=str(getattr(error, "reason", None) or error)[:160],
                remedy="is this the port of adyton serve --listen?",
            ) from error

    # --- Gramine's protocol ------------------------------------------------------------------------------------

    def ra_tls(
        self, names: tuple[str, ...], source: QuoteSource
    ) -> tuple[Mapping[str, bytes], Mapping[str, bytes], GrantInfo]:
        """RA-TLS and Gramine's secret provisioning, a connection for each name."""
        from datetime import UTC, datetime, timedelta

        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        from adyton.attest.ratls import make_certificate
        from adyton.release import secret_provisioning

        key = ec.generate_private_key(ec.SECP384R1())
        now = datetime.now(UTC)
        der = make_certificate(
            key, source.quote, not_before=now - timedelta(hours=1), not_after=now + timedelta(days=1)
        )
        key_pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        found: dict[str, bytes] = {}
        for name in names:
            context = client_context(self._ca)
            use_certificate(context, ssl.DER_cert_to_PEM_cert(der).encode(), key_pem)
            server_name = self._owner.server_name if len(names) == 1 else f"{name}.keys.{self._owner.server_name}"
            with self._connect(context, server_name) as connection:
                try:
                    connection.sendall(secret_provisioning.REQUEST)
                    size = secret_provisioning.parse_header(_read_exactly(connection, secret_provisioning.HEADER_BYTES))
                    found[name] = _read_exactly(connection, size)
                except (EOFError, ssl.SSLError, ConnectionError):
                    raise _silent_refusal(name, self._owner.name) from None
                except TimeoutError:
                    raise _late("the key server did not answer over RA-TLS", self._timeout_s) from None
        secret_names = {secret.name for secret in self._signed.manifest.adyton.secrets}
        keys = {name: value for name, value in found.items() if name not in secret_names}
        for name, value in keys.items():
            if len(value) != 16:
                raise OutOfOrder(f"key {name!r} has {len(value)} bytes", check="length of the key", expected=16)
        others = {name: value for name, value in found.items() if name in secret_names}
        return keys, others, GrantInfo(self._owner.name, "", names, None)


def denied(refusal: Refusal, owner: str) -> Denied:
    """Turn a server's refusal into the error that ends the program's start."""
    from adyton.release.messages import NOT_KEPT

    return Denied(
        f"the key server of {owner} refused: {refusal.message} (denial {refusal.denial})",
        check=refusal.check,
        expected=refusal.expected,
        seen=refusal.seen,
        remedy=refusal.remedy,
        denials=() if refusal.denial == NOT_KEPT else (refusal.denial,),
    )


def _silent_refusal(name: str, owner: str) -> Denied:
    return Denied(
        f"the key server of {owner} closed the connection without giving key {name!r}",
        check="answer over RA-TLS",
        expected="the key",
        seen="the end of the connection: this protocol has no reasons",
        remedy="the reason is in the owner's log (adyton audit list --kind denial), or use --provisioning adyton",
    )


_SELF_SIGNED: Final = 18
_OTHER_NAME: Final = (62, 64)
"""What OpenSSL says of a certificate (X509_V_ERR_…): DEPTH_ZERO_SELF_SIGNED_CERT; HOSTNAME_MISMATCH, IP_…_MISMATCH."""


def _not_pinned(error: ssl.SSLCertVerificationError, owner: Owner, where: str) -> Denied:
    why = "its certificate does not stand under the pinned CA"
    remedy = "somebody answers in the key server's place, or the address is wrong; nothing was sent to it"
    if error.verify_code == _SELF_SIGNED:
        why = "its certificate names itself as its issuer, and is not the pinned CA"
        remedy += (
            "; or the certificate has the same subject as its CA, as in sample PKIs: then make a new one with a subject"
            " of its own"
        )
    elif error.verify_code in _OTHER_NAME:
        why = f"its certificate carries another name than {owner.server_name}"
        remedy += (
            f"; or it is the right one under another name: adyton init --renew-server --server-name"
            f" {owner.server_name}, or pin the name that it has (server_name under [adyton.owners.{owner.name}])"
        )
    return Denied(
        f"this is not the key server of {owner.name}: {why}",
        check="identity of the key server",
        expected=f"a certificate for {owner.server_name!r} under the CA that the measured manifest pins for"
        f" {owner.name!r}",
        seen=f"at {where}: {error.verify_message or error.reason}",
        remedy=remedy,
    )


def _server_error(raw: bytes, status: int, where: str) -> Error:
    from adyton.release.wire import PROTOCOL, parse_object, printable

    document: Mapping[str, Any] = {}
    with contextlib.suppress(Error):
        document = parse_object(raw, 64 * 1024)
    if status in (404, 426):
        return VersionMismatch(
            f"the key server at {where} speaks another version of the release protocol",
            check="protocol version",
            expected=PROTOCOL,
            seen=str(document.get("protocol", f"HTTP status {status}"))[:60],
            remedy="install the same version of Adyton on the key server and here, the newer of the two; then build the"
            " program and have it approved again, since Adyton is part of what is measured",
        )
    told = Error.from_dict(
        {"message": f"HTTP status {status}"}
        | {name: printable(shown[:300]) for name, shown in document.items() if name in _TOLD and isinstance(shown, str)}
    )
    kind = FetchFailed if status == 503 else OutOfOrder
    return kind(f"the key server at {where} answered with an error: {told.message}", checks=told.checks)


def _read_exactly(connection: ssl.SSLSocket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        more = connection.recv(size - len(found))
        if not more:
            raise EOFError
        found += more
    return bytes(found)
