"""Report a failure without its traceback where that cannot be shown, so that later tests still run.

pytest reads the source of each failed line with `ast`. CPython before 3.11.5 can raise SystemError there ("AST
constructor recursion depth mismatch", gh-106905): when garbage collection or another thread parses at the same time.
pytest takes an error in its own report for a fault of its own, and ends the whole session.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest


def _plainly(error: BaseException) -> str:
    """The error and where it came from, without a look at any source."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        lines.append(f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}: in {trace.tb_frame.f_code.co_name}")
        trace = trace.tb_next
    return "\n".join([*lines, f"{type(error).__name__}: {error}"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make the report as pytest does. Where that raises SystemError, make a failed one with a plain traceback."""
    try:
        return (yield)
    except SystemError as fault:
        if call.excinfo is None:
            raise
        text = f"{_plainly(call.excinfo.value)}\n(shown plainly, since the interpreter could not parse: {fault})"
        return pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome="failed",
            longrepr=text,
            when=call.when,  # type: ignore[arg-type]  # never "collect" here
            duration=call.duration,
            start=call.start,
            stop=call.stop,
        )
