"""A headless Chromium, driven over the pipes of its DevTools protocol: no package is needed."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = "gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage"


class Browser:
    """One tab. `problems`: what its console showed as an error, and exceptions; `addresses`: what it asked for."""

    def __init__(self, send: int, receive: int):
        self.send, self.receive = send, os.fdopen(receive, "rb")
        self.number, self.session, self.buffer, self.problems = 0, None, b"", []
        self.addresses: list[str] = []

    def call(self, method: str, **parameters) -> dict[str, Any]:
        """The result of a command of the protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next_message()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def next_message(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            more = self.receive.read1(2**16)
            assert more, "the browser has ended"
            self.buffer += more
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(message["params"]["exceptionDetails"])
        if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.problems.append(message["params"]["entry"]["text"])
        if message.get("method") == "Network.requestWillBeSent":
            self.addresses.append(message["params"]["request"]["url"])
        return message

    def start(self):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, address: str, width: int = 1200, height: int = 900, dark: bool = False):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        media = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[{"name": key, "value": media[key]} for key in media])
        self.call("Page.navigate", url="about:blank")  # an address that differs in its # only would not load again
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page, of a promise its result."""
        settings = {"returnByValue": True, "awaitPromise": True, "replMode": True}
        answer = self.call("Runtime.evaluate", expression=expression, **settings)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 60) -> Any:
        """The value of the expression once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < end, f"not within {seconds} s: {expression}"
            time.sleep(0.02)
        return value

    def press(self, key: str, text: str = ""):
        code = {"Enter": 13, "Escape": 27, "ArrowRight": 39, "ArrowLeft": 37, "Tab": 9}.get(key, 0)
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code} | ({"text": text} if text else {})
        self.call("Input.dispatchKeyEvent", type="keyDown", **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector: str):
        """A click of the mouse on the middle of the first element, once that has its place."""
        self.until(f"!!document.querySelector({selector!r})")
        middle = (
            f"(() => {{ const found = document.querySelector({selector!r}); found.scrollIntoView({{block: 'center'}}); "
            "const box = found.getClientRects()[0]; return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        x, y = self.evaluate(middle)
        for _ in range(20):
            time.sleep(0.05)
            before, (x, y) = (x, y), self.evaluate(middle)
            if before == (x, y):
                break
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str):
        """Puts a text in the place of that of a field."""
        self.click(selector)
        self.evaluate(f"document.querySelector({selector!r}).select()")
        self.call("Input.insertText", text=text)

    def picture(self, path: Path, whole: bool = True):
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser, ended at the end. Skips the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    (low, send), (receive, high) = os.pipe(), os.pipe()
    theirs, answers = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (low, high))
    arguments = [*(f"--disable-{name}" for name in QUIET), "--no-sandbox", "--no-first-run", "--hide-scrollbars"]
    arguments += ["--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    command = f'exec "$0" "$@" 3<&{theirs} 4>&{answers}'  # the protocol's pipes are 3 and 4
    process = subprocess.Popen(
        ["bash", "-c", command, CHROMIUM, *arguments], pass_fds=(theirs, answers), stderr=subprocess.DEVNULL
    )
    for end in (low, high, theirs, answers):
        os.close(end)
    driver = Browser(send, receive)
    try:
        driver.start()
        yield driver
        with contextlib.suppress(AssertionError):
            driver.session = None
            driver.call("Browser.close")
    finally:
        process.terminate()
        process.wait(timeout=20)
        driver.receive.close()
        os.close(send)
