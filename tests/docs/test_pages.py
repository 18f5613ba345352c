"""Every command that the docs tell people to type is run, here or by a story's test."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, REPOSITORY, Block, pages, shell_blocks
from tests.examples.stories import EXAMPLES, LIMIT_S, copy_runtime, environment, free_address

pytestmark = pytest.mark.timeout(LIMIT_S + 60)
STORIES = {
    DOCS / "use-cases" / f"{example}.md": EXAMPLES / example / "run.sh"
    for example in ("train-private", "infer-proprietary", "search-private", "serve-private")
}
SESSIONS: dict[str, list[Path]] = {
    "tutorial": [DOCS / name for name in ("tutorial/native.md", "tutorial/simulated.md", "how-to/hardware.md")],
    "from-gramine": [DOCS / "how-to" / "from-gramine.md"],
    "own-script": [
        DOCS / "how-to" / f"{name}.md" for name in ("protect-a-script", "read-a-refusal", "rotate-keys", "back-up")
    ],
    "collateral": [DOCS / "collateral.md"],
    "tee": [DOCS / "tee.md"],
    "agreements": [DOCS / "agreements.md"],
}
"""Pages whose blocks are typed one after the other, in one folder."""

ELSEWHERE = {"make demo", "make test", *(f"sh examples/{page.stem}/run.sh" for page in STORIES)}
"""Commands of other pages that the gate itself, or a story's test, runs."""

WAIT = """
wait_for() { python - "$1" <<'END'
import socket, sys, time
host, port = sys.argv[1].rsplit(":", 1)
for attempt in range(300):
    try:
        socket.create_connection((host, int(port)), 1).close()
        break
    except OSError:
        time.sleep(0.1)
else:
    sys.exit("the server did not start")
END
}
"""


OWN_SCRIPT = """
import sys
import torch
rows = torch.tensor([[float(value) for value in line.split(",")] for line in open(sys.argv[1])])
torch.manual_seed(0)
model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
for epoch in range(20):
    loss = ((model(rows[:, :1]) - rows[:, 1:]) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
torch.save(model.state_dict(), sys.argv[2])
"""


def readme_own() -> list[Block]:
    """The README's block for a script of one's own."""
    return [block for block in shell_blocks(REPOSITORY / "README.md") if "adyton protect" in block.text]


def plain(command: str) -> str:
    """A command as pages write it: addresses spelt out, without what only a script needs."""
    command = re.sub(r" --ready-file \S+", "", command)
    for name, port in (("server", 4433), ("maker", 4433), ("clinic", 4434), ("listen", 8443)):
        command = command.replace(f'"${name}"', f"127.0.0.1:{port}").replace(f"=${name}", f"=127.0.0.1:{port}")
    return command.replace('"$port"', "8000").replace('"$example/prepare.py"', "examples/serve-private/prepare.py")


def text_of(blocks: list[Block]) -> str:
    """The blocks that are run, as one script, without comments at the ends of lines."""
    text = "\n".join(block.text for block in blocks if block.reason is None).replace("\\\n", " ")
    return re.sub(r"(?m)^(adyton .*?)\s+# .*$", r"\1", text)


def typed(blocks: list[Block]) -> list[str]:
    """The commands of the blocks that are run."""
    return [command for block in blocks if block.reason is None for command in block.commands]


def session(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Type the lines into one shell, in a folder with the repository beside as `adyton`."""
    for port in sorted(set(re.findall(r"127\.0\.0\.1:(\d+)", script))):
        script = script.replace(f"127.0.0.1:{port}", free_address())
    keep = r'\1 serving="${serving:-} $!"; wait_for \2'
    script = re.sub(r"^(adyton serve --listen (\S+).*&)$", keep, script, flags=re.MULTILINE)
    (folder / "adyton").symlink_to(REPOSITORY)
    shell = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", f"{WAIT}\ntrap 'kill ${{serving:-}} 2>/dev/null || :' EXIT\n{script}"],
        cwd=folder,
        env={**environment(copy_runtime(folder / "runtime")), "HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = shell.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        shell.send_signal(signal.SIGTERM)
        shell.communicate(timeout=10)
        raise
    return subprocess.CompletedProcess(["bash"], shell.returncode, out, err)


@pytest.mark.parametrize("page", STORIES, ids=lambda page: page.stem)
def test_use_case_page_types_what_its_story_runs(page: Path) -> None:
    """Each command of the page stands in run.sh, in the same order; the story's own test runs that."""
    lines = [plain(line.strip()) for line in STORIES[page].read_text(encoding="utf-8").splitlines()]
    rest = iter(lines)
    commands = [command for command in typed(shell_blocks(page)) if command not in ELSEWHERE]
    assert len(commands) > 8
    for command in commands:
        assert plain(command) in rest, f"{page.name}: {command!r} is not in run.sh, or not in this place"


@pytest.mark.mount
def test_tutorial_works_as_written(tmp_path: Path) -> None:
    """Native, simulated, real: each line typed; the result is the native run's, and three changes are refused."""
    blocks = [block for page in SESSIONS["tutorial"] for block in shell_blocks(page)]
    ended = session(text_of(blocks), tmp_path)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    assert [int(code) for code in re.findall(r"^refused, exit code (\d+)$", ended.stdout, re.MULTILINE)] == [
        83,
        72,
        101,
    ]
    native = (DOCS / "tutorial" / "native.md").read_text(encoding="utf-8")
    shown = re.search(r"```text\n(.*?)```", native, re.DOTALL)
    assert shown is not None
    assert [line.split(maxsplit=1)[1] for line in shown[1].splitlines()][:3] == [
        "tiger cat",
        "Egyptian cat",
        "tabby, tabby cat",
    ]
    assert shown[1] in ended.stdout


def test_tutorial_says_six_lines_and_they_are_the_ones_that_are_run() -> None:
    """From nothing to a decrypted confidential result: at most six lines, four of which the tutorial's session runs."""
    blocks = shell_blocks(DOCS / "tutorial" / "simulated.md")
    six = blocks[0].commands
    assert len(six) == 6
    assert six[1] == "make -C adyton setup"
    ran = typed(blocks)
    for line in six[2:]:
        assert line.removeprefix("adyton/.venv/bin/") in ran


@pytest.mark.mount
def test_from_gramine_works_as_written(tmp_path: Path) -> None:
    """A file, a key and a manifest of Gramine's, taken over line by line; the program's log holds the secret."""
    ended = session(text_of(shell_blocks(DOCS / "how-to" / "from-gramine.md")), tmp_path)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"


@pytest.mark.mount
def test_own_script_pages_work_as_written(tmp_path: Path) -> None:
    """Four pages on one script: protect it, read a refusal, rotate the key, back up and restore."""
    ended = session(text_of([block for page in SESSIONS["own-script"] for block in shell_blocks(page)]), tmp_path)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    assert re.findall(r"^refused, exit code (\d+)$", ended.stdout, re.MULTILINE) == ["72", "101"]
    assert re.search(r"- file train\.py: approved SHA-256 .*, seen SHA-256 ", ended.stdout)


BUDGET = """
cat >> study.toml <<'END'
[privacy]
key = "patients"
epsilon = 4.0
delta = 1e-5
noise_multiplier = 5.0
sampling_probability = 1.0
steps = 7
END
"""


def test_agreements_page_works_with_a_privacy_budget(tmp_path: Path) -> None:
    """The program says what it used, its keeper tells the owner of the data, and she settles what was reserved."""
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed: pip install 'adyton[dp]'")
    script = text_of(shell_blocks(DOCS / "agreements.md"))
    says = "open('/dev/shm/adyton-privacy.json', 'w').write('{\"steps\": 3}')"
    script = script.replace("import sys\n", f"import sys\n{says}\n", 1)
    before, draft, after = script.partition("adyton agreement draft")
    line, _, rest = after.partition("\n")
    rest = rest.replace("adyton decrypt", "adyton audit list --kind privacy-settled --home hospital\nadyton decrypt", 1)
    ended = session(before + draft + line + BUDGET + rest, tmp_path)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    assert "A run said what it used of a privacy budget" in ended.stdout
    assert "reserved 7, used 3" in ended.stdout


@pytest.mark.parametrize("name", ["collateral", "tee", "agreements"])
def test_page_of_commands_works_as_written(tmp_path: Path, name: str) -> None:
    """A page whose commands stand alone: each of them typed, in one folder."""
    ended = session(text_of([block for page in SESSIONS[name] for block in shell_blocks(page)]), tmp_path)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"


@pytest.mark.mount
def test_readme_lines_for_your_own_script_work_as_written(tmp_path: Path) -> None:
    """The README's lines, with an own small training script, and one machine in both parts."""
    (block,) = readme_own()
    (tmp_path / "data").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "data" / "train.csv").write_text("".join(f"{x},{3 * x + 1}\n" for x in range(50)))
    (tmp_path / "train.py").write_text(OWN_SCRIPT)
    script = block.text.replace("0.0.0.0:4433", "127.0.0.1:4433").replace("OWNER:4433", "127.0.0.1:4433")
    block = Block(block.page, script + "cmp model.pt out/model.pt\n", None)
    ended = session(text_of([block]), tmp_path)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"


def test_every_command_of_every_page_is_run_or_says_why_not() -> None:
    """A block of commands is typed by a session, stands in a story, is run by the gate, or carries its reason."""
    run = {command for paths in SESSIONS.values() for page in paths for command in typed(shell_blocks(page))}
    run |= {plain(command) for page in STORIES for command in typed(shell_blocks(page))}
    run |= ELSEWHERE | set(typed(readme_own()))
    missing = [
        f"{page.relative_to(REPOSITORY)}: {command}"
        for page in pages()
        for command in typed(shell_blocks(page))
        if plain(command) not in run
    ]
    assert not missing, "\n".join(missing)
