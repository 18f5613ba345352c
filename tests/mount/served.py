"""A mount for tests: a process that serves an encrypted folder as `adyton run` would, and how to look at it.

`python -m tests.mount.served SOURCE TARGET SEALED_AS` serves in the foreground; events go to standard output.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from adyton.pfile.backing import OSFile
from adyton.pfile.file import ProtectedFile
from adyton.values import Key128

KEY = Key128(bytes(range(16)))
REPOSITORY = Path(__file__).parent.parent.parent


@dataclass
class Served:
    """An encrypted folder (`store`, what the host sees), mounted (`top`, what the program sees)."""

    store: Path
    top: Path
    process: subprocess.Popen[bytes]
    events_file: Path
    sealed_as: str = "enc"
    ended: bool = field(default=False)

    def events(self) -> str:
        """What the file server has said so far."""
        return self.events_file.read_text(errors="replace")

    def unmount(self) -> int:
        """Unmount, wait for the flush; the server's exit status."""
        if not self.ended:
            self.ended = True
            for _ in range(200):
                done = subprocess.run(["fusermount3", "-u", str(self.top)], capture_output=True, check=False)
                if done.returncode == 0 or self.process.poll() is not None:
                    break
                time.sleep(0.05)
        return self.process.wait(60)

    def decrypted(self, path: str) -> bytes:
        """What the owner gets of a file, its sealed path checked."""
        with ProtectedFile.open(OSFile(self.store / path), KEY, path=f"{self.sealed_as}/{path}") as file:
            return file.read_at(0, file.size)

    def destroy(self) -> None:
        """End it whatever state it is in, and leave no mount."""
        if self.process.poll() is None and not self.ended:
            subprocess.run(["fusermount3", "-u", "-z", str(self.top)], capture_output=True, check=False)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        subprocess.run(["fusermount3", "-u", "-z", str(self.top)], capture_output=True, check=False)


def serve(
    folder: Path,
    *,
    believe_host: bool = False,
    store: Path | None = None,
    power_safe: bool = False,
    sync_s: float | None = None,
    module: str = "tests.mount.served",
) -> Served:
    """Mount `folder/store` at `folder/top` by a process of its own, which runs `module`.

    `sync_s` is how long the host may take for a sync, if not as long as in a run.
    """
    store = folder / "store" if store is None else store
    top = folder / "top"
    store.mkdir(exist_ok=True)
    top.mkdir(exist_ok=True)
    events = folder / "events"
    words = [sys.executable, "-m", module, str(store), str(top), "enc"]
    words += ["believe"] if believe_host else []
    words += ["power-safe"] if power_safe else []
    words += [f"sync_s={sync_s}"] if sync_s is not None else []
    with events.open("wb") as out:
        process = subprocess.Popen(words, cwd=REPOSITORY, stdout=out, stderr=subprocess.STDOUT)
    served = Served(store, top, process, events)
    for _ in range(200):
        if os.path.ismount(top):
            return served
        if process.poll() is not None:
            break
        time.sleep(0.05)
    served.destroy()
    raise RuntimeError(f"no mount: {events.read_text()}")


def main() -> None:
    """Serve until unmounted."""
    from adyton.vfs import fuse
    from adyton.vfs.linked import LinkedTree
    from adyton.vfs.storage_watchdog import SYNC_S, StorageWatchdog

    source, target, sealed_as, *more = sys.argv[1:]

    def event(text: str) -> None:
        os.write(1, f"{text}\n".encode())

    sync_s = next((float(word.removeprefix("sync_s=")) for word in more if word.startswith("sync_s=")), SYNC_S)
    watchdog = StorageWatchdog(sync_s=sync_s)
    tree = LinkedTree(
        source,
        KEY,
        sealed_as=sealed_as,
        believe_host="believe" in more,
        power_safe="power-safe" in more,
        event=event,
        watchdog=watchdog,
    )
    fuse.serve({"": tree}, target, event=event, watchdog=watchdog, options=["default_permissions"])


if __name__ == "__main__":
    main()
