"""A headless Chromium that a test drives by its debugging protocol: open a page, wait for words, click what bears a text, look."""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

PROGRAM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
QUIET = [
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]


class Browser:
    def __init__(self, folder: Path, width: int = 1280, height: int = 900) -> None:
        assert PROGRAM is not None
        command = [PROGRAM, "--headless", "--no-sandbox", *QUIET, f"--window-size={width},{height}"]
        command += ["--remote-debugging-port=0", "--hide-scrollbars", f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = self._port(folder / "DevToolsActivePort")
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{port}/json/list") as answer:
                page = next(each for each in json.load(answer) if each["type"] == "page")
            self._socket = connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None)
        except BaseException:
            self._process.kill()
            raise
        self._ids = itertools.count()

    def _port(self, file: Path) -> int:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if file.exists() and (lines := file.read_text().split()):
                return int(lines[0])
            time.sleep(0.1)
        raise TimeoutError("Chromium did not open its debugging port")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(20)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        id = next(self._ids)
        self._socket.send(json.dumps({"id": id, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv(timeout=60))).get("id") != id:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def evaluate(self, expression: str) -> Any:
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def log_in(self, url: str, password: str) -> None:
        """As a person does, in the form that the UI shows first; the browser then remembers it for every page."""
        self.open(url)
        setter = "Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set"
        typed = f"{setter}.call(b, {json.dumps(password)}), b.dispatchEvent(new Event('input', {{bubbles: true}}))"
        self._act("[...document.querySelectorAll('input[type=password]')]", typed, "field for the password")
        self.click("Login")
        self.wait_for("Dashboard")

    def text(self) -> str:
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def wait_for(self, words: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while words not in self.text():
            assert time.monotonic() < deadline, f"{words!r} did not come up in: {self.text()[:2000]}"
            time.sleep(0.2)

    def click(self, text: str) -> None:
        """The last visible button or tab that bears exactly this text: what is in front stands last in the page."""
        wanted = json.dumps(text)
        self._act(f"[...document.querySelectorAll('button, [class*=tab]')].filter(b => b.innerText.trim() === {wanted})", "b.click()", text)

    def press(self, selector: str) -> None:
        """What bears no text, by CSS."""
        self._act(f"[...document.querySelectorAll({json.dumps(selector)})]", "b.click()", selector)

    def choose(self, option: str) -> None:
        """One of a list that unfolds, as tabs are on a narrow page."""
        wanted = json.dumps(option)
        found = f"[...document.querySelectorAll('select')].filter(s => [...s.options].some(o => o.text.trim() === {wanted}))"
        self._act(found, f"b.value = {wanted}, b.dispatchEvent(new Event('change', {{bubbles: true}}))", option)

    def _act(self, elements: str, what: str, name: str, seconds: float = 60) -> None:
        found = f"{elements}.filter(b => b.offsetParent && !b.disabled).at(-1)"
        deadline = time.monotonic() + seconds
        while not self.evaluate(f"(b => (b ? ({what}, true) : false))({found})"):
            assert time.monotonic() < deadline, f"there is no {name!r} in: {self.text()[:2000]}"
            time.sleep(0.2)

    def is_wider_than_the_page(self) -> bool:
        return bool(self.evaluate("document.documentElement.scrollWidth > innerWidth"))

    def resize(self, width: int, height: int) -> None:
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))
