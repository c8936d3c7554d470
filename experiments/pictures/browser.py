"""A headless Chromium through its driver's WebDriver protocol: plain HTTP and JSON, no further package."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastercache.policies.errors import MissingDependency

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = "no Chromium with its driver: apt-get install chromium chromium-driver"
PATIENCE = 900.0
"""Seconds that one command may take: a busy machine is slow, and a browser that hangs must not hang us for ever."""
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015", "Enter": "\ue007"}
KEYS |= {"Control": "\ue009", "Shift": "\ue008", "Tab": "\ue004", "Home": "\ue011", "End": "\ue010", "Space": " "}


class Browser:
    """One window. `downloads`: the folder that its downloads go to."""

    def __init__(self, port: int, downloads: Path) -> None:
        self.root, self.downloads = f"http://127.0.0.1:{port}", downloads
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options = {
            "binary": CHROMIUM,
            "args": arguments,
            "prefs": {"download.default_directory": str(downloads), "download.prompt_for_download": False},
        }
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.root += f"/session/{session['sessionId']}"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.root + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def close(self) -> None:
        self._ask("DELETE", "")

    def open(self, page: Path) -> None:
        self._ask("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a function body returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def errors(self) -> list[str]:
        """What the console said since the last call that is an error or a warning."""
        entries = self._ask("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def look(self, width: int, height: int = 1000, scheme: str = "light") -> None:
        """The size of the page in pixels, and the colour scheme that the reader prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        time.sleep(0.3)

    def picture(self, part: str = "html", scale: float = 1.0) -> bytes:
        """The part of the page, over all its width, where the first element that a selector names stands, as PNG.

        Args:
            scale: pixels for each CSS pixel.
        """
        box = self.run(
            "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [0, r.top + scrollY, document.documentElement.clientWidth, r.height]",
            part,
        )
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True), scale=scale)
        shot = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def _found(self, selector: str) -> str:
        found = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        return str(found[ELEMENT])

    def centre(self, selector: str) -> tuple[int, int]:
        """Where an element's middle is in the window, scrolled into it."""
        x, y = self.run(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
            "const r = e.getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2]",
            selector,
        )
        return round(x), round(y)

    def pointer(self, *moves: tuple[int, int], down: bool = False) -> None:
        """Move the mouse through points of the window; with `down` its button is held from the first to the last."""
        actions: list[dict[str, Any]] = []
        for number, (x, y) in enumerate(moves):
            actions.append({"type": "pointerMove", "duration": 0, "x": x, "y": y, "origin": "viewport"})
            if down and number == 0:
                actions.append({"type": "pointerDown", "button": 0})
        if down:
            actions.append({"type": "pointerUp", "button": 0})
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions}
        self._ask("POST", "/actions", {"actions": [mouse]})

    def click(self, selector: str) -> None:
        self.pointer(self.centre(selector), down=True)

    def press(self, *names: str) -> None:
        """Press keys together, in order, and let them go: `press("Control", "z")`."""
        down = [{"type": "keyDown", "value": KEYS.get(name, name)} for name in names]
        up = [{"type": "keyUp", "value": KEYS.get(name, name)} for name in reversed(names)]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": [*down, *up]}]})

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def downloaded(self, known: Sequence[Path] = ()) -> Path:
        """The file whose download has ended since `known` were there."""
        for _ in range(600):
            new = [p for p in self.downloads.iterdir() if p not in known and p.suffix == ".json"]
            if new:
                return new[0]
            time.sleep(0.1)
        raise TimeoutError("nothing was downloaded")


@contextmanager
def browser(downloads: Path) -> Iterator[Browser]:
    """A browser, for as long as the block runs.

    Raises:
        MissingDependency: without Chromium or its driver.
    """
    if CHROMIUM is None or DRIVER is None:
        raise MissingDependency(MISSING)
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert driver.stdout is not None
        port = next(int(line.rstrip(".\n").split()[-1]) for line in driver.stdout if "was started successfully" in line)
        one = Browser(port, downloads)
        try:
            yield one
        finally:
            one.close()
    finally:
        driver.terminate()
        driver.wait()
