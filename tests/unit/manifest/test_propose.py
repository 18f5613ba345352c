"""From an observed run to a template: what is trusted, what is data, what is left out, and in which words."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from adyton.errors import UsageError
from adyton.manifest.finalize import finish
from adyton.manifest.identity_files import User, group, passwd
from adyton.manifest.model import parse_manifest
from adyton.manifest.observe import Observation, ServerSeen
from adyton.manifest.propose import Proposal, propose
from adyton.manifest.sizing import power_of_two, size_for
from adyton.manifest.template import render


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A project with a script, a module, data and outputs, and an interpreter with its library."""
    files = {
        "work/main.py": "",
        "work/helper.py": "",
        "work/__pycache__/helper.cpython-311.pyc": "x",
        "work/photo.jpg": "jpg",
        "work/data/a.csv": "a",
        "work/data/b.csv": "b",
        "work/result.txt": "r",
        "work/out/model.pt": "m",
        "work/out/log.txt": "l",
        "work/state/db.bin": "s",
        "env/lib/python3.11/site-packages/pkg/__init__.py": "",
        "env/lib/python3.11/site-packages/pkg/__pycache__/__init__.cpython-311.pyc": "x",
        "env/lib/python3.11/site-packages/pkg/weights.bin": "w",
        "env/lib/python3.11/site-packages/pkg/plain.py": "",
        "env/lib/python3.11/site-packages/pkg/__pycache__/plain.cpython-311.pyc": "x",
        "env/pyvenv.cfg": "",
        "elsewhere/corpus.txt": "c",
        "editable/own.egg-info/entry_points.txt": "e",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def observation(place: Path) -> Observation:
    """What a run of that project was seen to do."""
    work, packages = place / "work", place / "env/lib/python3.11/site-packages/pkg"
    return Observation(
        command=("/bin/sh", "main.py", "photo.jpg", str(work / "data"), "-v"),
        cwd=str(work),
        read=tuple(
            map(
                str,
                [
                    "/bin/sh",
                    "/etc/ld.so.cache",
                    "/etc/passwd",
                    "/proc/self/maps",
                    place / "env/pyvenv.cfg",
                    work / "main.py",
                    work / "__pycache__/helper.cpython-311.pyc",
                    packages / "__pycache__/__init__.cpython-311.pyc",
                    packages / "weights.bin",
                    packages / "plain.py",
                    work / "photo.jpg",
                    work / "data/a.csv",
                    work / "data/b.csv",
                    work / "state/db.bin",
                    place / "elsewhere/corpus.txt",
                    place / "editable/own.egg-info/entry_points.txt",
                ],
            )
        ),
        written=tuple(
            map(
                str,
                [
                    work / "result.txt",
                    work / "out",
                    work / "out/model.pt",
                    work / "out/log.txt",
                    work / "out/gone.tmp",
                    work / "state/db.bin",
                    work / "__pycache__/helper.cpython-311.pyc",
                    "/dev/shm/x",
                ],
            )
        ),
        looked_at=(str(work / "helper.py"), str(packages / "__init__.py")),
        executed=("/bin/sh",),
        touched=tuple(
            str(work / name) for name in ("result.txt", "out", "out/model.pt", "out/gone.tmp", "state/db.bin")
        ),
        made_folders=(str(work / "out"),),
        peak_bytes=100 << 20,
        peak_threads=3,
        wall_s=1.25,
    )


@pytest.fixture
def proposal(place: Path) -> Proposal:
    """The proposal for it."""
    return propose(observation(place), name="main", script="main.py", cpus=2, key_name="k", environment={})


def test_proposal_trusts_program_text_and_packages(place: Path, proposal: Proposal) -> None:
    """Sources and bytecode go together; a package's own data is trusted; the project's bytecode and data are not."""
    packages = f"{place}/env/lib/python3.11/site-packages/pkg"
    assert "main.py" in proposal.trusted
    assert "helper.py" in proposal.trusted
    for name in (
        "weights.bin",
        "__init__.py",
        "__pycache__/__init__.cpython-311.pyc",
        "plain.py",
        "__pycache__/plain.cpython-311.pyc",
    ):
        assert f"{packages}/{name}" in proposal.trusted
    assert f"{place}/env/pyvenv.cfg" in proposal.trusted
    assert f"{place}/editable/own.egg-info/entry_points.txt" in proposal.trusted
    assert "/bin/sh" in proposal.trusted
    assert any("ld-linux" in path for path in proposal.trusted)
    assert not any("helper.cpython" in path or "photo" in path or "/proc" in path for path in proposal.trusted)


def test_proposal_keeps_the_folder_of_compiled_modules(place: Path) -> None:
    """Python complains at its start where `lib-dynload` is not there; its smallest file keeps it where none is used."""
    folder = place / "env/lib/python3.11/lib-dynload"
    folder.mkdir()
    (folder / "large.so").write_text("large")
    (folder / "small.so").write_text("s")
    seen = observation(place)

    def found(seen: Observation) -> set[str]:
        trusted = propose(seen, name="main", script="main.py", cpus=2).trusted
        return {Path(path).name for path in trusted if "lib-dynload" in path}

    assert found(seen) == {"small.so"}
    assert found(replace(seen, read=(*seen.read, str(folder / "large.so")))) == {"large.so"}


def test_proposal_leaves_out_the_hosts_state(proposal: Proposal) -> None:
    """What describes the host is named, but not trusted."""
    assert proposal.left_out == ("/etc/ld.so.cache",)
    assert "# /etc/ld.so.cache" in proposal.trusted_list.splitlines()


def test_proposal_has_files_of_its_own_that_name_the_user(place: Path, proposal: Proposal) -> None:
    """Not the owner's machine's, which name others and are another file elsewhere; the ids are those of the run."""
    assert [(file.path, file.name) for file in proposal.files] == [("/etc/passwd", "main.passwd")]
    assert "main.passwd" in proposal.trusted
    assert '{ path = "/etc/passwd", uri = "file:main.passwd" }' in proposal.template
    assert proposal.files[0].text.startswith("root:x:0:0::/root:/bin/sh\nnobody:x:65534:")
    assert "loader.uid" not in proposal.template
    mine = User("ann", "users", 1000, 100, f"{place}/work/home")
    found = propose(observation(place), name="main", script="main.py", cpus=2, environment={}, user=mine)
    assert found.files[0].text.startswith("ann:x:1000:100::/work/home:/bin/sh\nroot:x:0:0::/root:/bin/sh\n")
    assert parse_manifest(render(found.template)).uid == 1000
    assert "loader.gid = 100" in found.template


@pytest.mark.parametrize("name", ["a:b", "a\nb", "", "x" * 40])
def test_names_of_users_cannot_add_fields_or_lines(name: str) -> None:
    """What passwd(5) could not hold becomes a plain name."""
    assert passwd(User(name, "g", 7, 7, "/a:b")).splitlines()[0] == "user:x:7:7::/:/bin/sh"
    assert group(User("n", name, 7, 7)).splitlines()[0] == "user:x:7:"


def test_temporary_folders_that_were_used_are_memory(place: Path) -> None:
    """/var/tmp beside /tmp, trusted files in it one folder further down, and no mount where nobody used it."""
    plain = propose(observation(place), name="main", script="main.py", cpus=2, environment={})
    assert '"/var/tmp"' not in plain.template
    seen = replace(observation(place), touched=("/var/tmp/made-and-removed",))
    found = propose(seen, name="main", script="main.py", cpus=2, environment={})
    assert '{ type = "tmpfs", path = "/var/tmp" }' in found.template


def test_cache_of_an_earlier_run_is_told(place: Path) -> None:
    """What the watched run found there it did not make, and the program has to make it inside."""
    with tempfile.NamedTemporaryFile(dir="/tmp") as cache:
        seen = observation(place)
        seen = replace(seen, read=(*seen.read, cache.name))
        for touched, told in (((), True), ((cache.name,), False)):
            again = replace(seen, touched=(*seen.touched, *touched))
            found = propose(again, name="main", script="main.py", cpus=2, environment={})
            kinds = {difference.kind: difference for difference in found.differences}
            assert any(cache.name in item.what for item in kinds.values() if item.kind == "earlier-files") == told


def test_locale_of_the_watched_run_is_kept(place: Path) -> None:
    """LANG and the categories, as the time zone is."""
    environment = {"LANG": "de_DE.UTF-8", "LC_NUMERIC": "C", "LC_lower": "x"}
    found = propose(observation(place), name="main", script="main.py", cpus=2, environment=environment).template
    assert 'loader.env.LANG = "de_DE.UTF-8"' in found
    assert 'loader.env.LC_NUMERIC = "C"' in found
    assert "LC_lower =" not in found


def test_proposal_sorts_data_into_inputs_and_outputs(place: Path, proposal: Proposal) -> None:
    """Files one by one where they lie among program text, folders where they hold nothing else."""
    found = {mount.path: (mount.encrypted, mount.is_folder, mount.is_input, mount.is_output) for mount in proposal.data}
    elsewhere = f"{place}/elsewhere"
    assert found == {
        "/work/photo.jpg": ("encrypted/photo.jpg", False, True, False),
        "/work/data": ("encrypted/data", True, True, False),
        "/work/result.txt": ("encrypted/result.txt", False, False, True),
        "/work/out": ("encrypted/out", True, False, True),
        "/work/state": ("encrypted/state", True, True, True),
        elsewhere: (f"encrypted-outside{elsewhere}", True, True, False),
    }


def test_proposal_opens_the_folder_in_which_the_run_wrote(place: Path, proposal: Proposal) -> None:
    """It is an encrypted folder, in which program text and inputs show; what is written has no mount of its own."""
    mounts = {mount.path: (mount.type, mount.uri) for mount in parse_manifest(proposal.template).mounts}
    assert {path: found for path, found in mounts.items() if path.startswith("/work")} == {
        "/work": ("encrypted", "file:encrypted/"),
        "/work/main.py": ("chroot", "file:main.py"),
        "/work/helper.py": ("chroot", "file:helper.py"),
        "/work/photo.jpg": ("encrypted", "file:encrypted/photo.jpg"),
        "/work/data": ("encrypted", "file:encrypted/data/"),
    }
    assert proposal.storage == ("encrypted",)


def test_folder_that_was_empty_before_the_run_is_made_in_the_storage(place: Path) -> None:
    """The program expects it, and the folder around it is the storage's."""
    (place / "work/empty").mkdir()
    before = observation(place)
    touched = (*before.touched, str(place / "work/empty/new.txt"))
    found = propose(
        replace(before, touched=touched), name="main", script="main.py", cpus=2, key_name="k", environment={}
    )
    assert found.storage == ("encrypted", "encrypted/empty")


def test_proposal_refuses_what_writes_among_the_systems_files(place: Path) -> None:
    """No mount of a system folder would be what the program expects."""
    seen = observation(place)
    with pytest.raises(UsageError, match="a folder of the system"):
        propose(replace(seen, touched=("/usr/lib/made",)), name="main", script="main.py", cpus=1)


def test_server_has_an_ingress(place: Path, proposal: Proposal) -> None:
    """Its clients reach the port that was watched. Other programs have none."""
    assert not parse_manifest(proposal.template).adyton.ingress
    seen = replace(observation(place), server=ServerSeen(8000, answered=True, status=0, killed=False))
    found = propose(seen, name="My_Server.1", script="main.py", cpus=1, environment={})
    (one,) = parse_manifest(render(found.template)).adyton.ingress
    assert (one.name, one.listen, one.target) == ("my-server-1", ("0.0.0.0", 8443), ("127.0.0.1", 8000))


def test_proposal_reads_back_as_the_manifest_it_means(place: Path, proposal: Proposal) -> None:
    """The template renders, parses, and says what was found."""
    assert render(proposal.template) == proposal.template
    manifest = parse_manifest(proposal.template)
    assert manifest.entrypoint == "/bin/sh"
    assert manifest.argv == ("/bin/sh", "main.py", "photo.jpg", "/work/data", "-v")
    assert manifest.start_dir == "/work"
    assert set(manifest.adyton.read_only) == {"/work/photo.jpg", "/work/data", f"{place}/elsewhere"}
    assert manifest.adyton.network == "none"
    assert not manifest.adyton.insecure_stdio
    assert manifest.key_names == ("k",)
    assert manifest.env["OMP_NUM_THREADS"] == "2"
    assert manifest.sgx.enclave_size_bytes == 256 << 20
    assert manifest.sgx.max_threads == 8
    assert {mount.path for mount in manifest.mounts} >= {"/work", "/tmp", "/bin"}


def test_proposal_is_built_into_a_final_manifest(
    place: Path, proposal: Proposal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Template and list together are what `adyton build` takes."""
    work = place / "work"
    (work / "main.trusted").write_text(proposal.trusted_list)
    for file in proposal.files:
        (work / file.name).write_text(file.text)
    built = finish(proposal.template, work)
    assert built.manifest.is_final
    assert len(built.manifest.trusted_files) == len(proposal.trusted)


def test_proposal_is_short_and_says_the_next_steps(proposal: Proposal) -> None:
    """A person reads it: comments, the commands to type, no long lists."""
    lines = proposal.template.splitlines()
    assert len(lines) < 80
    assert max(map(len, lines)) < 260
    for step in (
        "#   adyton encrypt photo.jpg -o encrypted/photo.jpg --key k",
        "#   adyton build main.manifest.template",
        "#   mkdir -p encrypted",
        "#   adyton decrypt encrypted/result.txt -o result.txt --key k",
    ):
        assert step in lines


def test_proposal_without_data_prints_in_clear(place: Path) -> None:
    """No key, no encrypted log: that is said, not hidden."""
    seen = replace(observation(place), read=("/bin/sh",), written=(), touched=())
    found = propose(seen, name="main", script="main.py", cpus=1)
    manifest = parse_manifest(found.template)
    assert manifest.adyton.insecure_stdio
    assert "goes to the host in clear" in found.template


@pytest.mark.parametrize("taken", [(), ("/work",), ("/work", "/project")])
def test_proposal_puts_the_project_where_nothing_else_lies(
    place: Path, monkeypatch: pytest.MonkeyPatch, taken: tuple[str, ...]
) -> None:
    """An environment below /work keeps its place: no second mount hides it."""
    seen = observation(place)
    others = tuple(f"{name}/env/bin/python" for name in taken)
    monkeypatch.setattr("adyton.manifest.propose._is_file", lambda path: path in others or Path(path).is_file())
    monkeypatch.setattr("adyton.manifest.propose.interpreter_of", lambda _path: None)
    found = propose(
        replace(seen, executed=(*seen.executed, *others), read=(*seen.read, *others)),
        name="main",
        script="main.py",
        cpus=1,
    )
    manifest = parse_manifest(found.template)
    paths = [mount.path for mount in manifest.mounts]
    assert len(paths) == len(set(paths))
    assert manifest.start_dir == ("/work", "/project", "/program")[len(taken)]
    assert manifest.env["HOME"] == manifest.start_dir


def test_proposal_that_finds_no_free_name_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than hide some of the program's files."""
    monkeypatch.setattr("adyton.manifest.propose.WORK_NAMES", ("/bin", "/" + str(place).split("/")[1]))
    with pytest.raises(UsageError, match="is taken by other files"):
        propose(observation(place), name="main", script="main.py", cpus=1)


def test_proposal_with_odd_names_still_parses(place: Path) -> None:
    """Quotes, blanks and Jinja's marks in names do no harm."""
    odd = place / "work" / 'it\'s {{ odd }} "name".csv'
    odd.write_text("x")
    seen = observation(place)
    found = propose(replace(seen, read=(*seen.read, str(odd))), name="main", script="main.py", cpus=1)
    manifest = parse_manifest(render(found.template))
    assert '/work/it\'s {{ odd }} "name".csv' in [mount.path for mount in manifest.mounts]


def test_proposal_keeps_library_paths(place: Path) -> None:
    """LD_LIBRARY_PATH and PYTHONPATH of the run are kept, with the project's own folder at its new place."""
    environment = {"LD_LIBRARY_PATH": "/opt/lib", "PYTHONPATH": f"{place}/work/src:/opt/py", "SECRET": "x"}
    found = propose(observation(place), name="main", script="main.py", cpus=1, environment=environment)
    manifest = parse_manifest(found.template)
    assert manifest.env["LD_LIBRARY_PATH"] == "/opt/lib"
    assert manifest.env["PYTHONPATH"] == "/work/src:/opt/py"
    assert "SECRET" not in manifest.env


def test_proposal_names_the_variables_that_it_leaves_out(place: Path) -> None:
    """A program may need one; their values are not shown, and a person's session is no news."""
    environment = {"HF_HOME": "/models", "API_TOKEN": "hunter2", "PATH": "/bin", "SSH_AUTH_SOCK": "/x", "LC_ALL": "C"}
    found = propose(observation(place), name="main", script="main.py", cpus=1, environment=environment)
    told = next(line for line in found.template.splitlines() if "not taken over" in line)
    assert told.endswith("API_TOKEN, HF_HOME.")
    assert "hunter2" not in found.template
    assert "not taken over" not in propose(observation(place), name="main", script="main.py", cpus=1).template


def test_sizes_grow_with_what_was_seen_and_say_why() -> None:
    """Powers of two, never below the least, with threads for Gramine itself."""
    small, large = (size_for(peak, threads, 4, source="peak") for peak, threads in ((1 << 20, 1), (3 << 30, 20)))
    assert small.enclave_bytes == 256 << 20
    assert large.enclave_bytes == 4 << 30
    assert (small.max_threads, large.max_threads) == (8, 32)
    assert "3072 MiB" in large.enclave_reason
    assert "spin" in large.omp_reason
    assert [power_of_two(size) for size in (1, 2, 3, 4097)] == [1, 2, 4, 8192]
    assert sys.maxsize > large.enclave_bytes
