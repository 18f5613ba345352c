"""A real browser for tests: headless Chromium, driven over its debugging pipe (no port, no driver)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Browser:
    """One page of a headless Chromium."""

    def __init__(self, process: subprocess.Popen[bytes], reading: int, writing: int) -> None:
        self._process = process
        self._reading = reading
        self._writing = writing
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = os.read(self._reading, 1 << 20)
            if not more:
                raise RuntimeError("the browser is gone")
            self._buffer += more
        raw, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(raw)
        return found

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page (run by the debugger, not by the page)."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def settle(self, before: float) -> None:
        """Wait until a page that was loaded after `before` is complete."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.ask("document.readyState === 'complete' && performance.timeOrigin") and (
                float(self.ask("performance.timeOrigin")) > before
            ):
                return
            time.sleep(0.05)
        raise RuntimeError("the page does not load")

    def open(self, url: str) -> None:
        """Go to a page."""
        before = time.time() * 1000
        self.call("Page.navigate", url=url)
        self.settle(before)

    def click(self, selector: str) -> None:
        """Click the matching element, as a mouse does, and wait for the next page."""
        box = self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView();"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        before = time.time() * 1000
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)
        self.settle(before)

    def type(self, selector: str, text: str) -> None:
        """Type into a field."""
        self.ask(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def text(self) -> str:
        """The visible text of the page."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = self.ask("document.readyState === 'complete' && document.body ? document.body.innerText : null")
            if isinstance(found, str) and found:
                return found
            time.sleep(0.05)
        raise RuntimeError("the page shows nothing")

    def resize(self, width: int, height: int) -> None:
        """Another window, as of a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def screenshot(self, path: Path) -> None:
        """Keep what the page looks like, once it is laid out."""
        deadline = time.monotonic() + 20
        while not self.call("Page.getLayoutMetrics")["cssContentSize"]["width"] and time.monotonic() < deadline:
            time.sleep(0.05)
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(shot))


def find() -> str | None:
    """Where Chromium is installed, if it is."""
    return shutil.which("chromium")


@contextmanager
def browser(profile: Path, *, scripts: bool = False) -> Iterator[Browser]:
    """Start Chromium with a profile of its own. `scripts` lets pages run JavaScript."""
    to_browser, writing = os.pipe()
    reading, from_browser = os.pipe()

    def descriptors() -> None:
        os.dup2(to_browser, 13)
        os.dup2(from_browser, 14)
        os.dup2(13, 3)
        os.dup2(14, 4)

    command = [find() or "chromium", "--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    command += ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--ignore-certificate-errors"]
    command += ["--no-first-run", "--disable-extensions", "--window-size=1200,900", "--hide-scrollbars"]
    process = subprocess.Popen(
        command, preexec_fn=descriptors, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        page = Browser(process, reading, writing)
        if not scripts:
            page.call("Emulation.setScriptExecutionDisabled", value=True)
        yield page
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(writing)
        os.close(reading)
