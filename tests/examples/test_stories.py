"""The use cases end to end: owner, cloud with a simulated TEE, key server, each verb as a person types it."""

from __future__ import annotations

import json
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


CUSTOMER = """
import asyncio, json, sys
import httpx, websockets

async def live(address):
    async with websockets.connect(f"ws://{address}/live") as socket:
        for question in ("battery", "How do I clean the housing?"):
            await socket.send(question)
            print(json.loads(await socket.recv())["passage"])

with httpx.Client(base_url=f"http://{sys.argv[1]}/v1", timeout=60) as client:
    vectors = client.post("/embeddings", json={"input": ["pump", "line"]}).json()["data"]
    print("vectors", json.dumps([vector["embedding"] for vector in vectors]))
    asked = {"messages": [{"role": "user", "content": "battery"}], "stream": True}
    with client.stream("POST", "/chat/completions", json=asked) as answer:
        print("events", sum(line.startswith("data: ") for line in answer.iter_lines()))
    print("refused", client.post("/embeddings", json={"input": 5}).status_code)
asyncio.run(live(sys.argv[1]))
"""


def test_server_answers_curl_openai_httpx_and_websockets(tmp_path: Path) -> None:
    """Unmodified clients of a vendor's server, each connection proved; the cloud sees neither weights nor handbook."""
    torch = pytest.importorskip("torch")
    (tmp_path / "customer.py").write_text(CUSTOMER)
    addresses = {name: free_address() for name in ("SERVER", "LISTEN")}
    port = free_address().rpartition(":")[2]
    customer = f"{sys.executable} {tmp_path / 'customer.py'} {{addr}}"
    story = tell("serve-private", tmp_path, **addresses, PORT=port, CUSTOMER=customer)
    told = story.out.splitlines()
    begun = told.index("384 numbers")
    alarm = "An occlusion alarm means that the line is bent"
    assert [line.startswith(alarm) for line in told[begun + 1 : begun + 4]] == [True] * 3, "OpenAI twice, WebSocket"
    (vectors,) = [json.loads(line.removeprefix("vectors ")) for line in told if line.startswith("vectors ")]
    native = subprocess.run(
        [sys.executable, "-c", NATIVE, *(str(story.folder / "plain" / name) for name in MODEL)],
        cwd=story.folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert torch.equal(torch.tensor(vectors), torch.tensor(json.loads(native.stdout)))
    words = len(next(line for line in told if line.startswith("The battery lasts")).split(" "))
    assert f"events {words + 2}" in told, "one for each word, the end, and [DONE]"
    assert "refused 400" in told
    assert told[-3].startswith("The battery lasts")
    assert told[-2].startswith("Clean the housing")
    secrets = [story.folder / "plain" / name for name in ("model.safetensors", "handbook.txt")]
    assert story.leaks(secrets, seen_by_the_cloud=("storage/**/*", "*.log", "*.manifest", "seen.*")) == set()


MODEL = ("model.safetensors", "vocabulary.txt")
NATIVE = """
import json, sys
from search import Encoder, Tokenizer, embed
print(json.dumps(embed(Encoder(sys.argv[1]), Tokenizer(sys.argv[2]), ["pump", "line"]).tolist()))
"""


@pytest.mark.slow
def test_page_answers_gradios_own_client(tmp_path: Path) -> None:
    """Gradio, protected by one command, asked by Gradio's client. It installs Gradio, so it needs a package index."""
    story = tell("serve-private", tmp_path, script="page.sh", SERVER=free_address())
    assert "An occlusion alarm means that the line is bent" in story.out
    assert "gradio" in (story.folder / "vendor" / "page.html").read_text()
    secrets = [story.folder / "vendor" / "handbook.txt"]
    assert story.leaks(secrets, seen_by_the_cloud=("vendor/encrypted/*", "vendor/*.manifest", "vendor/*.log")) == set()
