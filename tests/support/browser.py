"""A headless Chromium driven over a pipe (Chrome DevTools Protocol): no driver program and no package needed.

A tab costs four times what a page in it does (a window and a process are started), so that a tab that was closed is emptied
and taken for the next page.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--disable-features=IsolateSandboxedIframes,BackForwardCache",  # nothing of a page that was left goes on
    "--remote-debugging-pipe",
)


def find_chromium() -> str | None:
    """The program to drive, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, names) if path), None)


class Browser:
    """One browser process; a context manager. Pages are independent of each other: those open at once have a profile each."""

    def __enter__(self) -> Browser:
        self.folder = tempfile.TemporaryDirectory(prefix="chromium-")
        to_browser, self.out = os.pipe()
        self.inn, from_browser = os.pipe()
        command = [str(find_chromium()), *FLAGS, f"--user-data-dir={self.folder.name}", "about:blank"]
        # The protocol wants file descriptors 3 (read) and 4 (write).
        shell = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self.process = subprocess.Popen(
            ["/bin/bash", "-c", shell, "chromium", *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.numbers = itertools.count(1)
        self.buffer = b""
        self.events: list[dict[str, Any]] = []
        self.free: list[str] = []  # tabs to take again
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.out)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.inn)
        shutil.rmtree(self.folder.name, ignore_errors=True)

    def call(self, method: str, session: str | None = None, timeout: float = 60, **params: Any) -> dict[str, Any]:
        """One command and its result; events that arrive meanwhile are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.out, data) :]
        end = time.monotonic() + timeout
        while True:
            reply = self.receive(end - time.monotonic())
            if reply is None:
                raise TimeoutError(f"{method}: no answer within {timeout} s")
            if reply.get("id") == number:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']['message']}")
                return reply["result"]
            self.events.append(reply)

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """The next message, or None when there is none in time."""
        end = time.monotonic() + timeout
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.inn], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            data = os.read(self.inn, 1 << 20)
            if not data:
                raise RuntimeError("Chromium has ended")
            self.buffer += data
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def page(
        self,
        url: str,
        width: int = 1440,
        height: int = 900,
        *,
        dark: bool = False,
        phone: bool = False,
        fine: bool = False,
    ) -> Page:
        """A tab with nothing in it, where ``url`` is opened. fine: two pixels a CSS pixel, as phones have."""
        target = self.free.pop() if self.free else self._tab()
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone or fine else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.open(url)
        return page

    def _tab(self) -> str:
        """A new tab in a profile of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target: str = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        return target

    def take_back(self, page: Page) -> None:
        """Empty the tab of a page that nobody needs any more; what was set and heard in its session ends with the session."""
        page.js(
            "(() => { try { localStorage.clear(); sessionStorage.clear() } catch { /* a page without an origin */ } })()"
        )
        page.open("about:blank")
        page.call("Page.resetNavigationHistory")
        page.call("Network.clearBrowserCookies")
        page.call("Network.clearBrowserCache")
        self.call("Target.detachFromTarget", sessionId=page.session)
        self.events = [event for event in self.events if event.get("sessionId") != page.session]
        self.free.append(page.target)


class Page:
    """A tab: open, look, click, type."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self.browser, self.session, self.target = browser, session, target

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def close(self) -> None:
        self.browser.take_back(self)

    def js(self, expression: str) -> Any:
        """The value of an expression (awaited); an exception in it is raised here."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", "exception"))
        return result["result"].get("value")

    def wait(self, expression: str, timeout: float = 10) -> None:
        """Wait until an expression is truthy, across a change of page."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                if self.js(f"Boolean({expression})"):
                    return
            except RuntimeError as error:
                if not re.search("navigated|context", str(error)):
                    raise
            time.sleep(0.02)
        raise TimeoutError(f"not true within {timeout} s: {expression}")

    def frames(self, count: int = 3) -> None:
        """Let the page draw; a page that goes away meanwhile needs no drawing."""
        try:
            self.js(f"(async () => {{ for (let i = 0; i < {count}; i++) await new Promise(requestAnimationFrame) }})()")
        except RuntimeError as error:
            if not re.search("navigated|context", str(error)):
                raise

    def center(self, selector: str) -> tuple[float, float]:
        """Middle of the first element that a selector finds; scrolls it into view."""
        box = self.js(
            f"""(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;
            e.scrollIntoView({{block: 'nearest'}}); const b = e.getBoundingClientRect();
            return [b.left + b.width / 2, b.top + b.height / 2]; }})()"""
        )
        assert box, f"nothing matches {selector}"
        return box[0], box[1]

    def mouse(self, kind: str, x: float, y: float, modifiers: int = 0, **more: Any) -> None:
        """kind: Moved, Pressed, Released or Wheel; modifiers: 1 Alt, 2 Ctrl, 4 Meta, 8 Shift."""
        pressed = {"button": "left", "clickCount": 1} if kind in ("Pressed", "Released") else {}
        event = {"type": f"mouse{kind}", "x": x, "y": y, "modifiers": modifiers, **pressed, **more}
        self.call("Input.dispatchMouseEvent", **event)

    def click(self, where: str | tuple[float, float], modifiers: int = 0, count: int = 1) -> None:
        x, y = self.center(where) if isinstance(where, str) else where
        self.mouse("Moved", x, y, modifiers)
        for number in range(1, count + 1):
            self.mouse("Pressed", x, y, modifiers, clickCount=number)
            self.mouse("Released", x, y, modifiers, clickCount=number)
        self.frames()

    def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 5) -> None:
        self.mouse("Moved", *start)
        self.mouse("Pressed", *start)
        for step in range(1, steps + 1):
            part = step / steps
            place = [a + (b - a) * part for a, b in zip(start, end, strict=True)]
            self.mouse("Moved", place[0], place[1], button="left", buttons=1)
        self.mouse("Released", *end)
        self.frames()

    def key(self, key: str, modifiers: int = 0, *, down: bool = True, up: bool = True) -> None:
        """Press and release a key by its name ("a", "Enter", "ArrowLeft")."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "Delete": 46, " ": 32, "F2": 113, "Shift": 16}
        codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        code = codes.get(key, ord(key.upper()[0]))
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 and not modifiers & 7 else "")
        if down:
            kind = "keyDown" if text else "rawKeyDown"
            event = {"type": kind, "key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
            self.call("Input.dispatchKeyEvent", **event, **({"text": text} if text else {}))
        if up:
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code, modifiers=modifiers)
        self.frames()

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)
        self.frames()

    def screenshot(self, path: str | Path) -> None:
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _events(self, *methods: str) -> list[dict[str, Any]]:
        self.js("1")
        mine = [event for event in self.browser.events if event.get("sessionId") == self.session]
        return [event for event in mine if event["method"] in methods]

    def errors(self) -> list[str]:
        """Exceptions, console errors and warnings, and refused loads since the page was opened."""
        found = []
        for event in self._events("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif event["method"] == "Log.entryAdded":
                if params["entry"]["level"] in ("error", "warning"):
                    found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            elif params["type"] in ("error", "warning", "assert"):
                found.append(" ".join(str(arg.get("value", arg.get("description"))) for arg in params["args"]))
        return found

    def requests(self) -> list[str]:
        """Addresses that the page asked for, itself included."""
        return [event["params"]["request"]["url"] for event in self._events("Network.requestWillBeSent")]
