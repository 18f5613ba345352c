"""What the fresh process of a run says at its end, as the function that started it has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import adyton
from adyton.check import Check
from adyton.errors import AppraisalFailed, Denied, Error, FetchFailed, RunError, ScriptFailed
from adyton.workflow.run import _outcome


def through_the_pipe(error: Error) -> Error:
    """The error as `run` raises it."""
    with pytest.raises(Error) as caught:
        _outcome(json.loads(json.dumps({"failure": error.to_dict()})), 1)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        Denied("refused", denials=["d-1", "d-2"], check="approval", expected="one", seen="none", remedy="ask"),
        AppraisalFailed("no", checks=[Check("a", "1", "2", ok=False), Check("b", "1", "1", ok=True)]),
        FetchFailed("busy", status=503, retry_after_s=7.5),
        ScriptFailed("stopped", status=130),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_of_a_run_keeps_all_that_it_knows(error: Error) -> None:
    """The ids of a refusal, every check, and how long to wait: not only the text."""
    told = through_the_pipe(error)
    assert type(told) is type(error)
    assert told.to_dict() == error.to_dict()


@pytest.mark.parametrize("failure", [{}, [], None, {"error": "Check"}, {"error": "json"}, {"error": "Any"}])
def test_error_of_no_known_class_fails_the_run(failure: object) -> None:
    """A name in the module of errors that is none of its classes is not called."""
    with pytest.raises(RunError):
        _outcome({"failure": failure}, 1)


def test_run_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    """Arguments go to its process as one word of at most 128 KiB; nothing stays open."""
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(RunError, match="too long") as caught:
        adyton.run(tmp_path / "x.manifest", "a" * 200_000, tee="sim")
    assert "128 KiB" in str(caught.value.remedy)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def test_report_of_a_run_is_no_standard_file(tmp_path: Path) -> None:
    """Where the caller has closed its own, what the program prints must not be taken for the report."""
    code = """
import os, subprocess, sys, adyton
def start(words, *, pass_fds, **_):
    os.write(2, repr(pass_fds).encode())
    os._exit(0)
run = adyton.run
subprocess.Popen = start
os.close(0), os.close(1)
run("x.manifest", tee="sim")
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    (report,) = json.loads(done.stderr)
    assert report > 2
