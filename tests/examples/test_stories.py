"""The three use cases end to end: owner, cloud with a simulated TEE, key server, each verb as a person types it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.stories import EXAMPLES, LIMIT_S, environment, free_address, tell

pytestmark = [pytest.mark.mount, pytest.mark.timeout(LIMIT_S + 60)]


def test_training_survives_a_kill_and_ends_with_the_plain_runs_model(tmp_path: Path) -> None:
    """Records in, model out, both encrypted; killed after a checkpoint, the run goes on, bit for bit as a plain run."""
    torch = pytest.importorskip("torch")
    story = tell("train-private", tmp_path, SERVER=free_address())
    assert re.search(r"^going on after epoch \d+$", story.out, re.MULTILINE)
    right = re.search(r"^(\d+) of 114 right$", story.out, re.MULTILINE)
    assert right is not None
    assert int(right[1]) >= 105
    subprocess.run(
        [sys.executable, EXAMPLES / "train-private" / "train.py", story.folder / "plain" / "records.csv", tmp_path],
        env=environment(),
        stdout=subprocess.DEVNULL,
        timeout=LIMIT_S,
        check=True,
    )
    plain, confidential = (
        torch.load(path, weights_only=True) for path in (tmp_path / "model.pt", story.folder / "model.pt")
    )
    assert all(torch.equal(plain[name], confidential[name]) for name in plain)
    assert sorted(path.name for path in (story.folder / "storage" / "out").iterdir()) == ["history.csv", "model.pt"]
    secrets = [story.folder / "plain" / "records.csv", story.folder / "model.pt"]
    assert story.leaks(secrets, seen_by_the_cloud=("storage/**/*", "*.log", "*.manifest", "seen.*")) == set()
    assert story.leaks(secrets, seen_by_the_cloud=("plain/*", "*.pt")) == {"records.csv", "model.pt"}


def test_inference_needs_both_owners_and_answers_the_third(tmp_path: Path) -> None:
    """Two key servers: one refusal is enough; the result opens with the doctor's key and not with the maker's."""
    story = tell("infer-proprietary", tmp_path, MAKER=free_address(), CLINIC=free_address())
    refusals = re.findall(r"^(?:adyton: |and )the key server of (\w+) refused", story.err, re.MULTILINE)
    assert refusals == ["clinic", "maker", "clinic"], "both said why, then the clinic alone"
    assert story.out.count("espresso") == 1
    stolen = story.adyton("decrypt", "storage/out/result.txt", "-o", "stolen.txt", "--key", "model", "--home", "maker")
    assert stolen.returncode == 83
    assert not (story.folder / "stolen.txt").exists()
    secrets = [
        story.folder / "maker-plain" / "model.safetensors",
        story.folder / "clinic-plain" / "photo.jpg",
        story.folder / "result.txt",
    ]
    assert story.leaks(secrets, seen_by_the_cloud=("storage/**/*", "*.log", "*.manifest", "seen.*")) == set()


def test_search_answers_as_the_plain_run_and_refuses_a_swapped_transformer(tmp_path: Path) -> None:
    """Notes and questions encrypted: the answers are a plain run's; weights that somebody changed do not start."""
    server = free_address()
    story = tell("search-private", tmp_path, SERVER=server)
    assert (story.folder / "answers.txt").read_text() == (story.folder / "plain" / "answers.txt").read_text()
    assert "Bed 2, A. Lindqvist" in story.out
    secrets = [story.folder / "plain" / name for name in ("notes.txt", "questions.txt", "answers.txt")]
    assert story.leaks(secrets, seen_by_the_cloud=("storage/**/*", "*.log", "*.manifest", "seen.*")) == set()

    weights = story.folder / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    serving = subprocess.Popen(
        [story.runtime / "bin" / "adyton", "serve", "--listen", server, "--home", "hospital"],
        cwd=story.folder,
        env=environment(story.runtime),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert serving.stdout is not None
        serving.stdout.readline()
        ended = story.adyton(
            "run", "--tee", "sim", "--sim-platform", "platform", "--key-server", server, "search.manifest"
        )
    finally:
        serving.terminate()
        serving.communicate(timeout=10)
    assert ended.returncode == 72, ended.stderr
    assert "model/model.safetensors" in ended.stderr
