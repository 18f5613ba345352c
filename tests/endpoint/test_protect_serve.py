"""`adyton protect --serve`: from a server's script to an approved program with an ingress, and a policy for clients."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from demo.world import World
from tests.endpoint.test_served_program import SERVER, WEIGHTS, free_port

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]


def test_server_is_protected_in_one_command(tmp_path: Path) -> None:
    """It is watched, stopped and approved, and the next commands for its clients are said."""
    with World(tmp_path) as world:
        owner, port = world.owner, str(free_port())
        (owner.folder / "input").mkdir()
        (owner.folder / "input" / "model.txt").write_text(WEIGHTS)
        (owner.folder / "serve.py").write_text(SERVER)
        made = owner.adyton("protect", "--tee", "sim", "--serve", port, "--json", "serve.py", port).document
        assert any(f"--serve {port}" in step for step in made["steps"])
        assert not {item["kind"] for item in made["differences"]} & {"network", "unanswered", "ending"}
        manifest = tomllib.loads((owner.folder / made["manifest"]).read_text())
        (one,) = manifest["adyton"]["ingress"]
        assert (one["name"], one["listen"], one["target"]) == ("serve", "0.0.0.0:8443", f"127.0.0.1:{port}")
        (printing,) = [step for step in made["next"] if "--print-policy" in step]
        words = printing.removeprefix("adyton ").removesuffix(" > clients.toml").split()
        policy = tomllib.loads(owner.adyton(*words).out)
        assert policy["workloads"] == [made["measurement"]]
        assert any(step.startswith("adyton connect HOST:8443 --policy") for step in made["next"])


def test_server_that_never_listens_is_no_program(tmp_path: Path) -> None:
    """Nothing is approved, and the person reads what to do."""
    with World(tmp_path) as world:
        owner, port = world.owner, str(free_port())
        (owner.folder / "serve.py").write_text("import time\ntime.sleep(600)\n")
        ended = owner.adyton("protect", "--tee", "sim", "--serve", port, "--watch", "2", "serve.py", expect=None)
        assert ended.status == 1
        assert f"nothing listened on 127.0.0.1:{port} within 2 s" in ended.err
        assert "--watch SECONDS" in ended.err
        assert not (owner.folder / "serve.manifest").exists()
