"""The examples' scripts as ordinary programs: what they compute, and that training survives a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
LIMIT_S = 60


def environment() -> dict[str, str]:
    """This process's environment with one OpenMP thread: two that spin on two busy cores cost a factor of ten."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def python(*words: str | Path) -> str:
    """Run a script of the examples to its end; returns what it printed."""
    command = [sys.executable, *map(str, words)]
    ended = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=EXAMPLES
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file is there; fails if the process ends first or takes too long."""
    deadline = time.monotonic() + LIMIT_S
    while not path.exists():
        assert process.poll() is None, "the process ended before it wrote the file"
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training example's data, and the outcome of an undisturbed run in `whole/`."""
    folder = tmp_path_factory.mktemp("hospital")
    python("train-private/prepare.py", folder)
    python("train-private/train.py", folder / "records.csv", folder / "whole", "15")
    return folder


def test_training_predicts_new_patients(hospital: Path) -> None:
    """The trained classifier is right for most patients that it has not seen."""
    verdicts = python("train-private/diagnose.py", hospital / "whole" / "model.pt", hospital / "new.csv").splitlines()
    right, _, of, *_ = verdicts[-1].split()
    assert len(verdicts) == 115
    assert (int(right) >= 105, of) == (True, "114")


def test_training_killed_and_started_again_ends_with_the_same_bits(hospital: Path) -> None:
    """Kill -9 after a checkpoint, workers and all; the second run goes on and ends with the very same model."""
    torch = pytest.importorskip("torch")
    folder = hospital / "killed"
    folder.mkdir()
    script = EXAMPLES / "train-private" / "train.py"
    command: list[str | Path] = [sys.executable, script, hospital / "records.csv", folder, "15"]
    first = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(folder / "checkpoint.pt", first)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait(timeout=LIMIT_S)
    assert not (folder / "model.pt").exists()

    said = python("train-private/train.py", hospital / "records.csv", folder, "15")
    assert said.startswith("going on after epoch ")
    whole, resumed = (torch.load(hospital / name / "model.pt", weights_only=True) for name in ("whole", "killed"))
    assert list(whole) == list(resumed)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (folder / "history.csv").read_bytes() == (hospital / "whole" / "history.csv").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["history.csv", "model.pt"]


def test_inference_names_the_photo(tmp_path: Path) -> None:
    """The folded network says the same as the one that it was made of: coffee in a cup."""
    python("infer-proprietary/prepare.py", "model", tmp_path / "model.safetensors")
    python("infer-proprietary/prepare.py", "photo", tmp_path / "photo.jpg")
    python(
        "infer-proprietary/infer.py", tmp_path / "model.safetensors", tmp_path / "photo.jpg", tmp_path / "result.txt"
    )
    python("classify/prepare.py", tmp_path)
    origin = tmp_path / "model"
    python(
        "classify/classify.py",
        *(origin / "efficientnet-lite0.pth", origin / "labels.txt", tmp_path / "photo.jpg", tmp_path / "origin.txt"),
    )
    said, told = (
        [line.split(maxsplit=1) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("result.txt", "origin.txt")
    )
    assert [name for _, name in said] == [name for _, name in told]
    assert said[0][1] == "espresso"
    for (share, _), (other, _) in zip(said, told, strict=True):
        assert abs(float(share.rstrip("%")) - float(other.rstrip("%"))) < 0.02


def test_search_finds_notes_by_meaning(tmp_path: Path) -> None:
    """The first note for each question is the right patient's, though it shares no telling word with the question."""
    python("search-private/prepare.py", tmp_path)
    names = ("model.safetensors", "vocabulary.txt", "notes.txt", "questions.txt", "answers.txt")
    python("search-private/search.py", *(tmp_path / name for name in names))
    rows = (tmp_path / "answers.txt").read_text().splitlines()
    first = {question: best.split()[1:3] for question, best in zip(rows[::4], rows[1::4], strict=True)}
    assert first["Who may have had a heart attack?"] == ["Bed", "2,"]
    assert first["Which patients might have had a stroke?"] == ["Bed", "5,"]
    assert first["Is anybody depressed?"] == ["Bed", "9,"]
    assert first["Who has a life-threatening allergy?"] == ["Bed", "12,"]
    assert len(rows) == 24
