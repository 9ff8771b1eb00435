"""The report in a real browser: headless Chromium over plain WebDriver (W3C WebDriver; no client package needed)."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgewise.records.run import Run
from edgewise.report.html import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-prefers-reduced-motion",
)
LIGHT, DARK = "light", "dark"

pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None, reason="chromium and chromedriver (chromium-driver) are missing"
    ),
]


class Browser:
    """One session of a chromedriver that this process started."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._root = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        options = {"args": [*FLAGS, f"--user-data-dir={folder}"], "binary": CHROMIUM}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        try:
            self._wait()
            started = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._stop()
            raise
        self._session = f"/session/{started['sessionId']}"

    def _wait(self) -> None:
        until = time.monotonic() + 20
        while True:
            try:
                self._call("GET", "/status")
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
            else:
                return

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - always http to this machine
            self._root + path, data, {"Content-Type": "application/json"}, method=method
        )
        # Without proxies: the driver listens on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def _stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)

    def close(self) -> None:
        try:
            self._call("DELETE", self._session)
        finally:
            self._stop()

    def cdp(self, command: str, **parameters: object) -> Any:
        return self._call("POST", f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, page: Path, *, width: int, scheme: str = LIGHT) -> None:
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=740, deviceScaleFactor=1, mobile=width < 600)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.cdp("Emulation.setEmulatedMedia", media="", features=features)
        self._call("POST", f"{self._session}/url", {"url": page.as_uri()})

    def script(self, code: str) -> Any:
        return self._call("POST", f"{self._session}/execute/sync", {"script": code, "args": []})

    def bring(self, element: str) -> None:
        """Scroll to `element` and let the events of that pass: they come with a later frame, and hide the tooltip."""
        code = (
            f"const done = arguments[0]; {element}.scrollIntoView({{block: 'center'}});"
            "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 0)));"
        )
        self._call("POST", f"{self._session}/execute/async", {"script": code, "args": []})

    def log(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return found

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.cdp("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def move(self, x: float, y: float) -> None:
        self.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="session")
def page_of(pages: Path) -> Callable[[Run], Path]:
    def write(run: Run) -> Path:
        text = render(run)
        path = pages / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.html"
        path.write_text(text, encoding="utf-8")
        return path

    return write


PageOf = Callable[[Run], Path]


@pytest.mark.parametrize(("width", "scheme"), [(360, LIGHT), (768, DARK), (1280, LIGHT)])
def test_no_console_message_and_no_sideways_scrolling(
    browser: Browser, page_of: PageOf, any_run: Run, width: int, scheme: str
) -> None:
    browser.open(page_of(any_run), width=width, scheme=scheme)
    # Everything that folds is opened: what is folded away must fit, too.
    browser.script("document.querySelectorAll('details').forEach((it) => { it.open = true; });")
    assert browser.script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.log() == []


def test_the_log_would_show_an_error(browser: Browser, pages: Path) -> None:
    page = pages / "broken.html"
    page.write_text("<!doctype html><script>throw new Error('seen')</script>", encoding="utf-8")
    browser.open(page, width=800)
    assert any("seen" in entry["message"] for entry in browser.log())


def test_names_run_no_script(browser: Browser, page_of: PageOf, hostile: Run) -> None:
    browser.open(page_of(hostile), width=1280)
    assert browser.script("return [document.scripts.length, document.images.length]") == [1, 0]


def test_nothing_is_fetched(browser: Browser, page_of: PageOf, typical: Run) -> None:
    browser.open(page_of(typical), width=1280)
    assert browser.script("return performance.getEntriesByType('resource').map((it) => it.name)") == []


TIP = "const tip = document.querySelector('.tip'); return tip.hidden ? null : tip.innerText"
CHOSEN = "document.querySelector('#candidates-plot .chart.{} .mark.chosen')"


def test_the_tooltip_comes_on_hover_and_goes(browser: Browser, page_of: PageOf, typical: Run) -> None:
    browser.open(page_of(typical), width=1280)
    assert browser.script(TIP) is None
    mark = CHOSEN.format("wide")
    browser.bring(mark)
    box = browser.script(f"const box = {mark}.querySelector('.hit').getBoundingClientRect(); return [box.x, box.y]")
    browser.move(box[0] + 13, box[1] + 13)
    text = browser.script(TIP)
    assert text.startswith("openvino int8-mse\nChosen\nmedian 1.52 ms")
    assert "the fastest that was certified" in text
    browser.move(2, 2)
    assert browser.script(TIP) is None


def test_the_tooltip_stays_on_a_phone(browser: Browser, page_of: PageOf, hostile: Run) -> None:
    browser.open(page_of(hostile), width=360)
    browser.bring(CHOSEN.format("narrow"))
    browser.script(f"{CHOSEN.format('narrow')}.dispatchEvent(new MouseEvent('click'))")
    left, right = browser.script(
        "const box = document.querySelector('.tip').getBoundingClientRect(); return [box.left, box.right]"
    )
    assert 0 <= left < right <= 360


def test_marks_are_walked_with_the_keyboard(browser: Browser, page_of: PageOf, typical: Run) -> None:
    browser.open(page_of(typical), width=1280)
    chart = "document.querySelector('#ladder .chart.wide')"
    assert browser.script(f"return {chart}.querySelectorAll('.mark[tabindex=\"0\"]').length") == 1
    browser.bring(chart)
    browser.script(f"{chart}.querySelector('.mark').focus({{preventScroll: true}})")
    assert browser.script(TIP).startswith("ort untouched")
    browser.press("ArrowRight")
    assert browser.script(TIP).startswith("ort int8-mse")
    assert browser.script("return document.activeElement.getAttribute('aria-label')").startswith("ort int8-mse")
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    assert browser.script(TIP).startswith("openvino int8-mse bf16")
    browser.press("Escape")
    assert browser.script(TIP) is None


def test_the_schemes_differ_and_both_can_be_read(browser: Browser, page_of: PageOf, typical: Run) -> None:
    colours = "const it = getComputedStyle(document.body); return [it.color, it.backgroundColor]"
    found = {}
    for scheme in (LIGHT, DARK):
        browser.open(page_of(typical), width=1280, scheme=scheme)
        ink, paper = (_luminance(colour) for colour in browser.script(colours))
        found[scheme] = paper
        # 7 to 1: what the W3C's accessibility guidelines (WCAG 2.2, 1.4.6) ask of text at their highest level.
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 7
    assert found[LIGHT] > 0.9
    assert found[DARK] < 0.05


def test_the_schemes_keep_secondary_text_readable(browser: Browser, page_of: PageOf, typical: Run) -> None:
    code = (
        "const box = document.body.appendChild(document.createElement('i'));"
        "const see = (name) => { box.style.color = `var(--${name})`; return getComputedStyle(box).color; };"
        "return ['paper', 'tint', 'soft', 'accent', 'warn', 'bad', 'rung'].map(see)"
    )
    for scheme in (LIGHT, DARK):
        browser.open(page_of(typical), width=1280, scheme=scheme)
        paper, tint, *texts = (_luminance(colour) for colour in browser.script(code))
        for text in texts:
            for back in (paper, tint):
                # WCAG 2.2, 1.4.3: 4.5 to 1.
                assert (max(text, back) + 0.05) / (min(text, back) + 0.05) >= 4.5


def _luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` (WCAG 2.2, definition of relative luminance)."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_command_can_be_copied(browser: Browser, page_of: PageOf, typical: Run) -> None:
    browser.open(page_of(typical), width=1280)
    assert browser.script("return document.getElementById('copy').hidden") is False
    browser.script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    browser.script("document.getElementById('copy').click()")
    assert browser.script("return window.getSelection().toString()") == typical.command


def test_without_script_titles_and_numbers_are_there(browser: Browser, page_of: PageOf, typical: Run) -> None:
    browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page_of(typical), width=1280)
        root = browser.cdp("DOM.getDocument", depth=0)["root"]["nodeId"]
        dom = browser.cdp("DOM.getOuterHTML", nodeId=root)["outerHTML"]
    finally:
        browser.cdp("Emulation.setScriptExecutionDisabled", value=False)
    assert '<div class="tip"' not in dom
    assert "<title>openvino int8-mse\nChosen" in dom
    assert 'id="copy" hidden' in dom
