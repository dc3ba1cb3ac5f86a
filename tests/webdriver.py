"""A browser for tests: chromedriver, spoken to in plain WebDriver over HTTP."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1100,900",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One headless Chromium with its driver."""

    def __init__(self, chromium: str) -> None:
        driver = shutil.which("chromedriver")
        if driver is None:
            raise FileNotFoundError("no chromedriver on the PATH: run scripts/install-browser")
        self._process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        port = ""
        while not port:
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError("chromedriver ended before it listened")
            found = re.search(r"successfully on port (\d+)", line)
            port = found[1] if found else ""
        self._root = f"http://127.0.0.1:{port}"
        options = {"binary": chromium, "args": list(ARGUMENTS)}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        try:
            made = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._end()
            raise
        self._session = f"/session/{made['sessionId']}"

    def close(self) -> None:
        """End browser and driver."""
        try:
            self._send("DELETE", self._session)
        finally:
            self._end()

    def _end(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def post(self, path: str, **body: Any) -> Any:
        """One WebDriver command of the session."""
        return self._send("POST", self._session + path, body)

    def cdp(self, command: str, **params: Any) -> Any:
        """One command of Chromium's own protocol."""
        return self.post("/goog/cdp/execute", cmd=command, params=params)

    def open(self, address: str) -> None:
        """Load a page, with the logs emptied before."""
        self.logs("browser"), self.logs("performance")
        self.post("/url", url=address)

    def logs(self, kind: str) -> list[dict[str, Any]]:
        """What was logged since the last call."""
        found: list[dict[str, Any]] = self.post("/se/log", type=kind)
        return found

    def requests(self) -> list[str]:
        """The addresses that were asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.logs("performance")]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page; what it returns."""
        return self.post("/execute/sync", script=script, args=list(arguments))

    def run_async(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript that ends by calling its last argument."""
        return self.post("/execute/async", script=script, args=list(arguments))

    def keys(self, selector: str, keys: str) -> None:
        """Press keys in an element."""
        found = self.post("/element", using="css selector", value=selector)[ELEMENT]
        self.post(f"/element/{found}/value", text=keys)

    def point(self, x: float, y: float) -> None:
        """Move the pointer to a place in the window."""
        self.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def prefer(self, scheme: str) -> None:
        """Dark or light."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.cdp("Emulation.setEmulatedMedia", features=features)

    def width(self, pixels: int) -> None:
        """The window's width, or 0 for its own."""
        if pixels:
            self.cdp(
                "Emulation.setDeviceMetricsOverride",
                width=pixels,
                height=800,
                deviceScaleFactor=1,
                mobile=True,
            )
        else:
            self.cdp("Emulation.clearDeviceMetricsOverride")

    def scripts(self, on: bool) -> None:
        """Let pages run scripts, or not."""
        self.cdp("Emulation.setScriptExecutionDisabled", value=not on)

    def print(self) -> bytes:
        """The page as PDF."""
        return base64.b64decode(self.post("/print"))

    def screenshot(self, file: Path) -> None:
        """What is seen."""
        shot = self._send("GET", f"{self._session}/screenshot")
        file.write_bytes(base64.b64decode(shot))
