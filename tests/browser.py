"""A headless browser for tests that look at pages; there need not be one."""

import os
import re
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def screenshot(page, folder, *, dark=False, width=1000, height=1400):
    """Returns the pixels of a page as rows of bytes, and what its console said.

    Skips the test where no browser is installed.
    """
    file = folder / f"{page.stem}{'_dark' if dark else ''}.png"
    done = _run(
        page,
        folder,
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        f"--window-size={width},{height}",
        f"--screenshot={file}",
    )
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return _pixels(file.read_bytes()), said


def rendered(page, folder, script=""):
    """Returns a page as it is once its script has run, and then another.

    Skips the test where no browser is installed.
    """
    copy = folder / "rendered.html"
    more = f"<script>{script}</script></body>"
    copy.write_text(page.read_text().replace("</body>", more))
    return _run(copy, folder, "--window-size=1000,800", "--dump-dom").stdout


def _run(page, folder, *flags):
    """Opens a page in a headless browser."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip(f"no browser is installed: none of {', '.join(_NAMES)} is on PATH")
    return subprocess.run(
        [
            program,
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", "--virtual-time-budget=4000"),
            f"--user-data-dir={folder / 'profile'}",
            *flags,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(folder)},
    )


def _pixels(png):
    """Reads what Chromium writes: eight bits, RGB or RGBA, not interlaced."""
    chunks, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        chunks.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += length + 12
    width, _, depth, kind = struct.unpack(">IIBB", dict(chunks)[b"IHDR"][:10])
    assert depth == 8
    size = {2: 3, 6: 4}[kind]
    raw = zlib.decompress(b"".join(data for name, data in chunks if name == b"IDAT"))
    stride = width * size + 1
    # Filtered lines tell as well as plain ones whether anything was drawn.
    return [raw[i + 1 : i + stride] for i in range(0, len(raw), stride)]


class _Addresses(HTMLParser):
    """Notes whatever a browser would fetch, and which elements there are."""

    def __init__(self, page):
        super().__init__()
        self.found, self.elements = [], set()
        self.feed(page)

    def handle_starttag(self, name, attributes):
        self.elements.add(name)
        for key, value in attributes:
            own = (value or "").startswith(("#", "data:"))
            if key in ("src", "href", "srcset", "action", "data", "poster") and not own:
                self.found.append(value)
            if key.startswith("on"):
                self.found.append(f"{key}={value}")

    def handle_data(self, data):
        if self.cdata_elem in ("style", "script"):
            calls = r"url\(|@import|fetch\(|XMLHttpRequest|import\(|WebSocket"
            self.found += re.findall(calls, data)


def fetched_by(page):
    """Returns what a page would ask a network for, or run on its own."""
    addresses = _Addresses(page)
    strange = {"iframe", "object", "embed", "base", "form", "audio", "video"}
    return addresses.found + sorted(addresses.elements & strange)


def is_blank(pixels):
    """Returns whether nearly all lines are of one colour."""
    return sum(len(set(line)) > 6 for line in pixels) < len(pixels) // 20
