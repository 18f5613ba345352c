"""A program is carried to another machine in one file: `protect --pack`, `adyton pack`, `adyton run NAME.adyton`."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from adyton.keystore.home import load_key
from demo.canary import Canary, draw, search
from tests.cli.chain import Ended, Place, until

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(180),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (apt-get install strace)"),
]

SCRIPT = (
    "import getpass, helper\nrows = open('data/rows.csv').read()\n"
    "open('out/result.txt', 'w').write(helper.shout(rows) + getpass.getuser())\n"
)
ROWS = "".join(f"row {number}: {number * 7919 % 100_003}\n" for number in range(200))
RESULT = ROWS.upper() + "somebody"


@dataclass
class Machines:
    """The owner's folder, in which a program was packed, and the cloud, which has nothing but a platform."""

    owner: Place
    cloud: Place
    tee: str

    def carried(self, folder: Path, name: str = "main.adyton") -> Place:
        """A folder of the other machine to which the pack was brought, and nothing else."""
        folder.mkdir(exist_ok=True)
        shutil.copy(self.owner.folder / "main.adyton", folder / name)
        return Place(folder, self.cloud.environment, self.cloud.address)

    def run(self, place: Place, name: str = "main.adyton", *words: str) -> Ended:
        """Run the pack there."""
        return place.adyton("run", name, "--tee", "sim", "--key-server", place.address, *words)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """The platform is made on the cloud's side and named by its fingerprint; the owner's files are then moved away."""
    folder = tmp_path_factory.mktemp("machines")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ADYTON_", "VIRTUAL_ENV"))}
    environment |= {"OMP_NUM_THREADS": "1", "USER": "somebody", "LOGNAME": "somebody"}
    for name in ("owner", "cloud"):
        (folder / name / "home").mkdir(parents=True)
    cloud = Place(
        folder / "cloud",
        {**environment, "HOME": str(folder / "cloud/home"), "ADYTON_SIM_PLATFORM": str(folder / "cloud/platform")},
    )
    project = folder / "owner" / "project"
    for name, text in {
        "main.py": SCRIPT,
        "helper.py": "def shout(text): return text.upper()\n",
        "data/rows.csv": ROWS,
    }.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    (project / "out").mkdir()
    (project / "out" / ".keep").write_text("")
    owner = Place(
        project,
        {
            **environment,
            "HOME": str(folder / "owner/home"),
            "ADYTON_HOME": str(folder / "owner/keys"),
            "ADYTON_SIM_PLATFORM": str(folder / "owner/platform"),
        },
    )
    made = cloud.adyton("platform", "new", folder / "cloud/platform", "--json")
    assert made.status == 0, made.err
    root = json.loads(made.out)["root_fingerprint"]
    assert cloud.adyton("platform", "export", folder / "cloud/platform", "-o", "collateral.json").status == 0
    for words in (("init",), ("collateral", "import", "--root", root, folder / "cloud/collateral.json")):
        ended = owner.adyton(*words)
        assert ended.status == 0, ended.err
    ended = owner.adyton("protect", "--tee", f"sim:{root}", "--pack", "main.adyton", "--json", "main.py")
    assert ended.status == 0, ended.err
    document = json.loads(ended.out)
    assert document["pack"] == "main.adyton"
    assert "adyton run main.adyton --tee sim --key-server 127.0.0.1:4433" in document["next"]
    assert "adyton pack main.manifest -o main.adyton" in document["steps"]
    ready = folder / "ready"
    server = owner.start("serve", "--listen", "127.0.0.1:0", "--ready-file", ready)
    try:
        until(lambda: (ready.exists() and bool(ready.read_text())) or server.poll() is not None)
        owner.address = cloud.address = json.loads(ready.read_text())["adyton"]
        yield Machines(owner, cloud, f"sim:{root}")
    finally:
        server.terminate()
        server.communicate(timeout=20)


def test_pack_is_all_that_the_other_machine_needs(machines: Machines, tmp_path: Path) -> None:
    """Nothing of the owner's folder is there. The program runs, goes on where it ended, and the owner opens it."""
    place = machines.carried(tmp_path / "there")
    away = machines.owner.folder.with_name("away")
    machines.owner.folder.rename(away)
    try:
        ended = machines.run(place, "main.adyton", "--json")
        again = machines.run(place)
    finally:
        away.rename(machines.owner.folder)
    assert ended.status == 0, ended.err
    assert json.loads(ended.out)["exit_code"] == 0
    assert "main/work" in ended.err
    assert again.status == 0, again.err
    assert sorted(path.name for path in place.folder.iterdir()) == ["main", "main.adyton"]
    back = tmp_path / "back"
    shutil.copytree(place.folder / "main/work/encrypted", back / "encrypted")
    owner = Place(back, machines.owner.environment)
    assert owner.adyton("decrypt", "encrypted/out/result.txt", "-o", "-", "--key", "default").out == RESULT


def test_trusted_files_come_from_the_pack_and_are_believed_for_their_hash_alone(
    machines: Machines, tmp_path: Path
) -> None:
    """One that the host changes in the unpacked folder stops the start, and names the file."""
    place = machines.carried(tmp_path / "there")
    assert machines.run(place).status == 0
    changed = next((place.folder / "main/host").rglob("os.py"))
    changed.write_bytes(changed.read_bytes() + b"#")
    machines.run(place).refused(72, "os.py")
    assert str(changed.relative_to(place.folder)) in machines.run(place).err
    shutil.rmtree(place.folder / "main")
    assert machines.run(place).status == 0
    script = place.folder / "main/work/helper.py"
    script.write_text("def shout(text): return 'other'\n")
    machines.run(place).refused(72, "helper.py")


def test_manifest_of_a_pack_is_believed_for_its_signature_alone(machines: Machines, tmp_path: Path) -> None:
    """A changed manifest is another program, which nobody approved."""
    place = machines.carried(tmp_path / "there")
    assert machines.run(place).status == 0
    manifest = place.folder / "main/work/main.manifest"
    manifest.write_text(manifest.read_text().replace('network = "none"', 'network = "host"'))
    machines.run(place).refused(73, "signature")


def test_other_pack_does_not_go_into_the_folder_of_an_older_one(machines: Machines, tmp_path: Path) -> None:
    """Its outputs would be lost, or its inputs be taken for the new ones."""
    place = machines.carried(tmp_path / "there")
    assert machines.run(place).status == 0
    assert machines.owner.adyton("pack", "main.manifest", "-o", "smaller.adyton", "--no-system").status == 0
    shutil.copy(machines.owner.folder / "smaller.adyton", place.folder / "main.adyton")
    machines.run(place).refused(86, "move", "outputs")


def test_pack_without_the_system_is_smaller_and_runs_where_the_system_is(machines: Machines, tmp_path: Path) -> None:
    """What it leaves out is said."""
    ended = machines.owner.adyton("pack", "main.manifest", "-o", "lean.adyton", "--no-system", "--json")
    assert ended.status == 0, ended.err
    document = json.loads(ended.out)
    assert document["left_out"] > 10
    sizes = [(machines.owner.folder / name).stat().st_size for name in ("lean.adyton", "main.adyton")]
    assert sizes[0] < sizes[1]
    shutil.copy(machines.owner.folder / "lean.adyton", tmp_path)
    ended = machines.run(Place(tmp_path, machines.cloud.environment, machines.cloud.address), "lean.adyton")
    assert ended.status == 0, ended.err


def test_no_secret_goes_into_a_pack(machines: Machines) -> None:
    """Neither plaintext nor a key nor any private file of the owner, in any form; the search finds a leak."""
    home = Path(machines.owner.environment["ADYTON_HOME"])
    canaries = [*draw("rows", ROWS.encode(), count=40), *draw("result", RESULT.encode(), count=40)]
    canaries.append(Canary("key", load_key(home, "default").reveal()))
    private = [*home.rglob("*.key"), *home.glob("*.pem")]
    assert len(private) > 4
    for path in private:
        lines = path.read_bytes().splitlines(keepends=True)
        canaries += draw(path.name, b"".join(line for line in lines if not line.startswith(b"-----")), count=40)
    raw = (machines.owner.folder / "main.adyton").read_bytes()
    assert not search(raw, canaries)
    assert search(raw + ROWS.encode(), canaries)
    with tarfile.open(machines.owner.folder / "main.adyton") as archive:
        names = archive.getnames()
    assert not [name for name in names if name.startswith(("work/keys", "work/platform", "work/data"))]


def test_readme_says_in_three_lines_how_it_is_run(machines: Machines) -> None:
    """With the command as it is typed there."""
    with tarfile.open(machines.owner.folder / "main.adyton") as archive:
        readme = archive.extractfile("README.txt")
        assert readme is not None
        lines = readme.read().decode().splitlines()
    assert len(lines) == 3
    assert "adyton run main.adyton --tee TEE --key-server HOST:PORT" in lines[0]


def test_same_program_makes_the_same_pack(machines: Machines) -> None:
    """Byte for byte, and an older one is replaced only where that is said."""
    owner = machines.owner
    assert owner.adyton("pack", "main.manifest", "-o", "again.adyton").status == 0
    first = (owner.folder / "again.adyton").read_bytes()
    owner.adyton("pack", "main.manifest", "-o", "again.adyton").refused(86)
    assert owner.adyton("pack", "main.manifest", "-o", "again.adyton", "--force").status == 0
    assert (owner.folder / "again.adyton").read_bytes() == first


@pytest.mark.parametrize("what", ["plaintext", "link", "recovery log"])
def test_what_is_not_encrypted_is_not_packed(machines: Machines, tmp_path: Path, what: str) -> None:
    """A file that somebody put among the ciphertext, a link to one, and what an interrupted write left."""
    owner = machines.owner
    name = "x.gramine.recovery" if what == "recovery log" else "x"
    odd = owner.folder / "encrypted/data" / name
    if what == "link":
        odd.symlink_to(owner.folder / "encrypted/data/rows.csv")
    else:
        odd.write_text("plain " * 2000)
    try:
        owner.adyton("pack", "main.manifest", "-o", "odd.adyton").refused(81, f"encrypted/data/{name}")
    finally:
        odd.unlink()
    assert not (owner.folder / "odd.adyton").exists()


def test_owners_own_folders_are_never_packed(machines: Machines) -> None:
    """Not even where the manifest trusts a file of them, or names them by a link."""
    owner = machines.owner
    keys = owner.environment["ADYTON_HOME"]
    (owner.folder / "alias").symlink_to(keys)
    template = owner.folder / "main.manifest.template"
    text = template.read_text()
    for path in (f"{keys}/ca.key", "alias/ca.key"):
        (owner.folder / "leak.manifest.template").write_text(
            text.replace('trusted_from = ["file:main.trusted"]', 'trusted_from = ["file:leak.trusted"]')
        )
        (owner.folder / "leak.trusted").write_text((owner.folder / "main.trusted").read_text() + f"{path}\n")
        ended = owner.adyton("build", "leak.manifest.template")
        assert ended.status == 0, ended.err
        owner.adyton("pack", "leak.manifest").refused(2, "ca.key", "which hold keys")
        assert not (owner.folder / "leak.adyton").exists()


def test_what_cannot_be_packed_is_refused_at_once(machines: Machines) -> None:
    """A name that no pack has, before the program is watched; a script that changed since it was built."""
    owner = machines.owner
    owner.adyton("pack", "main.manifest", "-o", "main.tar").refused(2, ".adyton")
    owner.adyton("protect", "--tee", machines.tee, "--name", "late", "--pack", "late.tar", "main.py").refused(
        2, ".adyton"
    )
    owner.adyton("protect", "--tee", machines.tee, "--name", "late", "--pack", "main.adyton", "main.py").refused(86)
    assert not (owner.folder / "late.manifest.template").exists()
    script = owner.folder / "helper.py"
    text = script.read_text()
    script.write_text(text + "#")
    try:
        owner.adyton("pack", "main.manifest", "-o", "changed.adyton").refused(72, "helper.py", "adyton build")
    finally:
        script.write_text(text)
    assert not (owner.folder / "changed.adyton").exists()
