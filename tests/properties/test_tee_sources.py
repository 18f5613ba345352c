"""Whatever the kernel, the host or another process does: evidence over our own report data, or a refusal."""

from __future__ import annotations

import errno
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adyton.errors import Unavailable
from adyton.sim.pcs_server import answer
from adyton.sim.platform import SimPlatform
from adyton.tee.configfs_tsm import ConfigfsTSM
from tests.support.kernel_double import TSM, Instance

FAST = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
OURS = b"\xaa" * 64
BUSY = [errno.EBUSY, errno.EAGAIN, errno.EINTR]
FATAL = [errno.EIO, errno.ETIMEDOUT, errno.EINVAL, errno.ENXIO]


def intrusion(data: bytes, writes: int) -> object:
    """Somebody else who writes this, so many times."""

    def intrude(instance: Instance) -> None:
        instance.inblob = data
        instance.write_generation = (instance.write_generation + writes) % (1 << 64)

    return intrude


intrusions = st.lists(
    st.builds(intrusion, st.binary(min_size=64, max_size=64), st.integers(1, 3)) | st.just(lambda _instance: None),
    max_size=6,
)


@FAST
@given(
    before=intrusions,
    after=intrusions,
    errors=st.lists(st.sampled_from(BUSY + FATAL), max_size=5),
    dropped=st.integers(0, 10),
    first=st.integers(0, (1 << 64) - 1),
    read_bytes=st.integers(1, 4096),
    write_bytes=st.integers(1, 80),
)
def test_tsm_report_is_over_our_data_or_refused(
    before: list[object],
    after: list[object],
    errors: list[int],
    dropped: int,
    first: int,
    read_bytes: int,
    write_bytes: int,
) -> None:
    """Foreign writes, lost writes, busy devices, short reads and writes in any order never pass a foreign report."""
    system = TSM("tdx_guest", read_bytes=read_bytes, write_bytes=write_bytes)
    system.other_writers = list(before)  # type: ignore[arg-type]
    system.after_report = list(after)  # type: ignore[arg-type]
    system.report_errors = list(errors)
    system.drop_writes = dropped
    system.first_generation = first
    try:
        report = ConfigfsTSM(system).report(OURS, provider="tdx_guest")
    except Unavailable:
        pass
    else:
        assert report.outblob == OURS
    assert system.instances == {}
    assert system.opened == {}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimPlatform:
    """A platform for the service."""
    return SimPlatform.create(tmp_path_factory.mktemp("served") / "platform")


PATHS = [
    f"/{tee}/certification/v4/{name}"
    for tee in ("sgx", "tdx")
    for name in ("tcb", "qe/identity", "pckcrl", "pckcert", "pckcerts", "pckcerts/config", "fmspcs", "rootcacrl", "crl")
]
NAMES = ["fmspc", "ca", "encoding", "update", "tcbEvaluationDataNumber", "encrypted_ppid", "cpusvn", "pcesvn", "pceid"]


@FAST
@given(
    path=st.sampled_from(PATHS) | st.text(max_size=40),
    query=st.dictionaries(
        st.sampled_from([*NAMES, "qeid", "uri", "platform"]) | st.text(max_size=8),
        st.sampled_from(["platform", "processor", "der", "pem", "early", "standard", "all", "1", "0" * 768, "f" * 32])
        | st.text(max_size=20),
        max_size=5,
    ),
    method=st.sampled_from(["GET", "POST", "HEAD"]),
    form=st.sampled_from(["pcs", "pccs"]),
)
def test_service_answers_anything_with_a_status_of_the_api(
    platform: SimPlatform, path: str, query: dict[str, str], method: str, form: str
) -> None:
    """No request makes the service fail: each gets one of the API's statuses."""
    found = answer(platform, path, query, datetime.now(UTC), method=method, form=form)  # type: ignore[arg-type]
    assert found.status in (200, 400, 404, 405, 410)
    assert found.headers["Request-ID"]
