"""A headless Chromium over its DevTools pipe: null-terminated JSON on two file descriptors, so no library is needed."""

import base64
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from queue import Empty, Queue

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60.0  # seconds to wait for an answer


def find_chromium() -> str | None:
    """Return the path of an installed Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in a headless Chromium; ``requests`` and ``errors`` collect what it loads and complains of."""

    def __init__(self, profile: Path) -> None:
        to_browser, our_end = os.pipe()
        from_browser, browser_end = os.pipe()
        # the browser reads file descriptor 3 and writes 4; bash puts ours there whatever their numbers are
        command = [
            find_chromium(),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ]
        command += [f"--user-data-dir={profile}", "--remote-debugging-pipe", "--mute-audio", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{browser_end}', "bash", *command],
            pass_fds=(to_browser, browser_end),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(browser_end)
        self.writer = os.fdopen(our_end, "wb", buffering=0)
        self.reader = os.fdopen(from_browser, "rb")
        self.answers: Queue = Queue()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.loaded = threading.Event()
        self.number = 0
        self.session = None
        threading.Thread(target=self.listen, daemon=True).start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def listen(self) -> None:
        kept = b""
        while block := os.read(self.reader.fileno(), 2**16):
            *whole, kept = (kept + block).split(b"\0")
            for part in whole:
                self.hear(json.loads(part))

    def hear(self, message: dict) -> None:
        method, facts = message.get("method"), message.get("params", {})
        if "id" in message:
            self.answers.put(message)
        elif method == "Network.requestWillBeSent":
            self.requests.append(facts["request"]["url"])
        elif method == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.errors.append(facts["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(facts["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning"):
            self.errors.append(str(facts["args"]))
        elif method == "Page.loadEventFired":
            self.loaded.set()

    def call(self, method: str, **facts):
        """Send a command and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": facts}
        if self.session:
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        while True:
            try:
                answer = self.answers.get(timeout=PATIENCE)
            except Empty:
                raise TimeoutError(f"Chromium does not answer {method}") from None
            if answer["id"] == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, page: Path | str, width: int, dark: bool = False) -> None:
        """Load a file or an address at a width in CSS pixels, 800 high."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 700,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self.loaded.clear()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        assert self.loaded.wait(PATIENCE), f"{page} does not load"

    def run(self, script: str):
        """Return the value of a JavaScript expression on the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Save the whole page as PNG."""
        height = min(self.run("document.documentElement.scrollHeight"), 16000)
        width = self.run("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        result = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(result["data"]))

    def close(self) -> None:
        """End the browser."""
        self.writer.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
