"""A simulated platform's collateral served as Intel's PCS API v4 serves it, or as a PCCS does.

`answer` decides and touches no socket; `application` is the Starlette adapter around it. Paths, parameters,
statuses and headers follow Intel's "Provisioning Certification Service, API version 4" and the PCCS design guide.
"""

from __future__ import annotations

import hmac
import json
import logging
import math
import re
import socket
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import quote as url_quote

from adyton.address import address_text
from adyton.errors import Unavailable, UsageError
from adyton.sim.chip import Shape

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from adyton.sim.platform import SimPlatform
    from adyton.sim.vendor import CAKind

log = logging.getLogger("adyton.pcs")

Form = Literal["pcs", "pccs"]

CLOSED_S: Final = 30
"""The time that a client is asked to wait while the platform's folder cannot be read."""
API_KEY_HEADER: Final = "ocp-apim-subscription-key"
_PEM_CRL: Final = "application/x-pem-file"
_DER_CRL: Final = "application/pkix-crl"
_JSON: Final = "application/json"
_TEXT: Final = "text/plain"
_API: Final = re.compile(r"/(sgx|tdx)/certification/v4/([a-z/]+)")
_FMSPC: Final = re.compile(r"[0-9A-Fa-f]{12}")


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: status, headers, body."""

    status: int
    body: bytes = b""
    content_type: str = _TEXT
    headers: Mapping[str, str] = field(default_factory=dict)


class _Refusal(Exception):
    """A status on its way to the client. It is no error of this program."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def _chain_header(name: str, pem: str) -> dict[str, str]:
    """A chain header: PEM, URL-encoded."""
    return {name: url_quote(pem)}


def _check_api_key(given: str, wanted: str) -> None:
    if not hmac.compare_digest(given.encode(), wanted.encode()):
        raise _Refusal(401, "subscription key missing or wrong")


def _only(query: Mapping[str, str], allowed: tuple[str, ...]) -> None:
    for name in query:
        if name not in allowed:
            raise _Refusal(400, f"unknown parameter {name[:40]}")


def _choose_data(platform: SimPlatform, query: Mapping[str, str]) -> None:
    """Judge `update` and `tcbEvaluationDataNumber`, of which only one may be given."""
    update, number = query.get("update"), query.get("tcbEvaluationDataNumber")
    if update is not None and number is not None:
        raise _Refusal(400, "update and tcbEvaluationDataNumber exclude each other")
    if update not in (None, "early", "standard"):
        raise _Refusal(400, "update is early or standard")
    if number is not None:
        if not re.fullmatch("[0-9]{1,9}", number):
            raise _Refusal(400, "tcbEvaluationDataNumber is no number")
        present = platform.publication().evaluation_number
        if int(number) > present:
            raise _Refusal(404, "no such evaluation data")
        if int(number) < present:
            raise _Refusal(410, "evaluation data no longer kept")


def _tcb(platform: SimPlatform, shape: Shape, query: Mapping[str, str], now: datetime) -> Answer:
    _only(query, ("fmspc", "update", "tcbEvaluationDataNumber"))
    fmspc = query.get("fmspc", "")
    if not _FMSPC.fullmatch(fmspc):
        raise _Refusal(400, "fmspc has 12 hex digits")
    _choose_data(platform, query)
    if bytes.fromhex(fmspc) != platform.publication().fmspc:
        raise _Refusal(404, "no TCB info for that FMSPC")
    chain = _chain_header("TCB-Info-Issuer-Chain", platform.signing_chain())
    return Answer(200, platform.tcb_info(shape, now), _JSON, chain)


def _identity(platform: SimPlatform, shape: Shape, query: Mapping[str, str], now: datetime) -> Answer:
    _only(query, ("update", "tcbEvaluationDataNumber"))
    _choose_data(platform, query)
    chain = _chain_header("SGX-Enclave-Identity-Issuer-Chain", platform.signing_chain())
    return Answer(200, platform.qe_identity(shape, now), _JSON, chain)


def _pck_crl(platform: SimPlatform, form: Form, query: Mapping[str, str], now: datetime) -> Answer:
    _only(query, ("ca", "encoding"))
    kind = query.get("ca")
    encoding = query.get("encoding", "pem")
    if kind not in ("platform", "processor") or encoding not in ("pem", "der"):
        raise _Refusal(400, "ca is platform or processor, encoding pem or der")
    ca: CAKind = "processor" if kind == "processor" else "platform"
    crl = platform.pck_crl(ca, now)
    chain = _chain_header("SGX-PCK-CRL-Issuer-Chain", platform.crl_chain(ca))
    if encoding == "der":
        return Answer(200, crl, _DER_CRL, chain)
    if form == "pccs":
        return Answer(200, crl.hex().encode(), _TEXT, chain)
    return Answer(200, _pem_crl(crl), _PEM_CRL, chain)


def _pem_crl(crl: bytes) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509 import load_der_x509_crl

    return load_der_x509_crl(crl).public_bytes(Encoding.PEM)


def _pck_certificate(platform: SimPlatform, form: Form, query: Mapping[str, str]) -> Answer:
    """The PCK certificate for (encrypted PPID, CPUSVN, PCESVN, PCEID). This vendor knows one platform."""
    sizes = {"encrypted_ppid": 768, "cpusvn": 32, "pcesvn": 4, "pceid": 4}
    _only(query, (*sizes, "qeid"))
    if form == "pccs" and not re.fullmatch(r"[0-9A-Fa-f]{32}", query.get("qeid", "")):
        raise _Refusal(400, "qeid has 32 hex digits")
    for name, digits in sizes.items():
        if not re.fullmatch(rf"[0-9A-Fa-f]{{{digits}}}", query.get(name, "")):
            raise _Refusal(400, f"{name} has {digits} hex digits")
    if not platform.has_machine:
        raise _Refusal(404, "no such platform")
    machine = platform.machine
    same_platform = platform.decrypt_ppid(bytes.fromhex(query["encrypted_ppid"])) == machine.ppid
    if not same_platform or query["pceid"] != machine.pceid[::-1].hex():
        raise _Refusal(404, "no such platform")
    cpusvn, pcesvn = bytes(machine.components), machine.pcesvn
    asked_cpusvn = bytes.fromhex(query["cpusvn"])
    asked_pcesvn = int.from_bytes(bytes.fromhex(query["pcesvn"]), "little")
    if any(asked < had for asked, had in zip(asked_cpusvn, cpusvn, strict=True)) or asked_pcesvn < pcesvn:
        raise _Refusal(404, "no certificate for so old a TCB")
    end = "-----END CERTIFICATE-----\n"
    leaf, _, issuers = platform.pck_chain.partition(end)
    headers = {
        **_chain_header("SGX-PCK-Certificate-Issuer-Chain", issuers),
        "SGX-TCBm": (cpusvn + pcesvn.to_bytes(2, "little")).hex(),
        "SGX-FMSPC": machine.fmspc.hex(),
        "SGX-PCK-Certificate-CA-Type": machine.ca,
    }
    return Answer(200, (leaf + end).encode(), _PEM_CRL, headers)


def _pck_certificates(platform: SimPlatform, form: Form, query: Mapping[str, str], *, config: bool) -> Answer:
    """Every PCK certificate of one platform, as a list: this vendor keeps the one for the present TCB."""
    names = ("encrypted_ppid", "pceid", *(("cpusvn",) if config else ()))
    _only(query, (*names, "qeid"))
    whole = dict(query) | {"cpusvn": query.get("cpusvn", "ff" * 16) if config else "ff" * 16, "pcesvn": "ffff"}
    found = _pck_certificate(platform, form, whole)
    tcbm = found.headers["SGX-TCBm"]
    tcb = {f"sgxtcbcomp{index:02d}svn": svn for index, svn in enumerate(bytes.fromhex(tcbm[:32]), start=1)}
    tcb["pcesvn"] = int.from_bytes(bytes.fromhex(tcbm[32:]), "little")
    row = {"tcb": tcb, "tcbm": tcbm.upper(), "cert": url_quote(found.body.decode())}
    headers = {name: value for name, value in found.headers.items() if name != "SGX-TCBm"}
    return Answer(200, json.dumps([row]).encode(), _JSON, headers)


def _fmspcs(platform: SimPlatform, query: Mapping[str, str]) -> Answer:
    _only(query, ("platform",))
    wanted = query.get("platform", "all")
    if wanted not in ("all", "client", "E3", "E5"):
        raise _Refusal(400, "platform is all, client, E3 or E5")
    rows = [{"fmspc": platform.publication().fmspc.hex().upper(), "platform": "E5"}]
    return Answer(200, json.dumps([row for row in rows if wanted in ("all", row["platform"])]).encode(), _JSON)


def _evaluation_numbers(platform: SimPlatform, shape: Shape, query: Mapping[str, str], now: datetime) -> Answer:
    _only(query, ())
    chain = _chain_header("TCB-Evaluation-Data-Numbers-Issuer-Chain", platform.signing_chain())
    return Answer(200, platform.evaluation_numbers(shape, now), _JSON, chain)


def _root_crl(platform: SimPlatform, form: Form, path: str, query: Mapping[str, str], now: datetime) -> Answer | None:
    """The root CRL, where each form has it."""
    if path == "/IntelSGXRootCA.der" and form == "pcs":
        return Answer(200, platform.root_crl(now), _DER_CRL)
    if form == "pccs" and path == "/sgx/certification/v4/rootcacrl":
        return Answer(200, platform.root_crl(now).hex().encode())
    if form == "pccs" and path == "/sgx/certification/v4/crl":
        if not query.get("uri", "").endswith("/IntelSGXRootCA.der"):
            raise _Refusal(404, "no such distribution point")
        return Answer(200, platform.root_crl(now), _DER_CRL)
    return None


def _route(platform: SimPlatform, form: Form, path: str, query: Mapping[str, str], now: datetime) -> Answer:
    found = _root_crl(platform, form, path, query, now)
    if found is not None:
        return found
    matched = _API.fullmatch(path)
    if matched is None:
        raise _Refusal(404, "no such path")
    shape: Shape = "sgx" if matched[1] == "sgx" else "tdx"
    routes: dict[str, Callable[[], Answer]] = {
        "tcb": lambda: _tcb(platform, shape, query, now),
        "qe/identity": lambda: _identity(platform, shape, query, now),
        "tcbevaluationdatanumbers": lambda: _evaluation_numbers(platform, shape, query, now),
    }
    if shape == "sgx":
        routes |= {
            "pckcrl": lambda: _pck_crl(platform, form, query, now),
            "pckcert": lambda: _pck_certificate(platform, form, query),
            "pckcerts": lambda: _pck_certificates(platform, form, query, config=False),
            "pckcerts/config": lambda: _pck_certificates(platform, form, query, config=True),
            "fmspcs": lambda: _fmspcs(platform, query),
        }
    if matched[2] not in routes:
        raise _Refusal(404, "no such path")
    return routes[matched[2]]()


def answer(
    platform: SimPlatform,
    path: str,
    query: Mapping[str, str],
    now: datetime,
    *,
    method: str = "GET",
    form: Form = "pcs",
    headers: Mapping[str, str] | None = None,
    api_key: str | None = None,
) -> Answer:
    """The answer to one request.

    With `api_key`, the paths for PCK certificates want it in `Ocp-Apim-Subscription-Key`, as Intel's do (401).
    """
    request_id = {"Request-ID": uuid.uuid4().hex, "X-Adyton": "simulated"}
    if method != "GET":
        return Answer(405, headers=request_id | {"Allow": "GET"})
    try:
        if api_key is not None and "/pckcert" in path:
            _check_api_key((headers or {}).get(API_KEY_HEADER, ""), api_key)
        found = _route(platform, form, path, query, now)
    except _Refusal as refusal:
        return Answer(refusal.status, str(refusal).encode(), headers=request_id)
    except (Unavailable, UsageError) as error:
        log.warning("the platform cannot be read: %s", error)
        return Answer(503, b"the vendor is not available", headers=request_id | {"Retry-After": f"{CLOSED_S}"})
    return Answer(found.status, found.body, found.content_type, request_id | dict(found.headers))


class Pace:
    """The most requests that are answered in any minute. Others get 429, and how long to wait."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._answered: deque[datetime] = deque()

    def wait_s(self, now: datetime) -> int | None:
        """Seconds to wait, or None where this request is answered (and counted)."""
        while self._answered and now - self._answered[0] >= timedelta(minutes=1):
            self._answered.popleft()
        if len(self._answered) < self.per_minute:
            self._answered.append(now)
            return None
        return math.ceil((self._answered[0] + timedelta(minutes=1) - now).total_seconds())


def application(
    platform: SimPlatform,
    *,
    form: Form = "pcs",
    api_key: str | None = None,
    per_minute: int | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Starlette:
    """The same as an ASGI application. The platform is read from disk at every request, so changes show at once.

    With `per_minute`, requests beyond that many in a minute are answered with 429 and `Retry-After`, as Intel's are.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    pace = None if per_minute is None else Pace(per_minute)

    async def serve(request: Request) -> Response:
        now = clock()
        wait_s = None if pace is None else pace.wait_s(now)
        if wait_s is not None:
            return Response(b"", 429, {"Retry-After": f"{wait_s}", "Request-ID": uuid.uuid4().hex})
        found = await run_in_threadpool(
            answer,
            platform,
            request.url.path,
            dict(request.query_params),
            now,
            method=request.method,
            form=form,
            headers=request.headers,
            api_key=api_key,
        )
        return Response(found.body, found.status, dict(found.headers), found.content_type)

    methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"]
    return Starlette(routes=[Route("/{path:path}", serve, methods=methods)])


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket (port 0: any free one). Raises Unavailable where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise Unavailable(
            f"cannot listen at {host}:{port}: {error.strerror}",
            check="address to listen at",
            expected="a free port of this machine",
            seen=error.strerror,
            remedy="choose another port (0 means any free one), or end what listens there",
        ) from error
    return listening


def url_of(listening: socket.socket) -> str:
    """The http:// address of a listening socket."""
    return f"http://{address_text(listening.getsockname()[:2])}"


def serve(application: Starlette, listening: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM."""
    import uvicorn

    config = uvicorn.Config(
        application,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        http="h11",
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[listening])
