"""A real browser before a real explorer: Debian's Chromium, driven by Playwright."""

import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from command_line import SCRIPT, environment
from playwright.sync_api import expect, sync_playwright

LAPTOP, NARROW = (1366, 768), (390, 844)
MISSING = "no chromium on this machine: `make browser` installs Debian's"
_HERE = {"127.0.0.1", "localhost"}
# a machine that does much else is slow
expect.set_options(timeout=20_000)


class Explorer:
    """``melbo explore`` in a process of its own.

    Attributes:
        address: The address that it prints.
        base: The same without a token.
    """

    def __init__(self, *arguments, host="127.0.0.1"):
        with socket.socket() as free:
            free.bind((host, 0))
            port = free.getsockname()[1]
        options = ("--host", host, "--port", str(port))
        self._process = subprocess.Popen(
            # the toolkit behaves otherwise where it sees pytest's variables
            [SCRIPT, "explore", *map(str, arguments), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            env={k: v for k, v in environment().items() if not k.startswith("PYTEST")},
        )
        line, said = "", ""
        while not (found := re.match(r"open (\S+)", line)):
            line = self._process.stdout.readline()
            said += line
            assert line, said
        self.address = found[1].replace("0.0.0.0", "127.0.0.1")
        self.base = f"http://127.0.0.1:{port}"
        self._wait(port)

    def _wait(self, port):
        for _ in range(100):
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the explorer does not listen")

    def close(self):
        """Interrupt it; returns what it has said since."""
        self._process.send_signal(2)
        said, _ = self._process.communicate(timeout=30)
        return said


class Browser:
    """Pages that may ask this machine only, and may not fail.

    Args:
        chromium: Chromium of Playwright.
    """

    def __init__(self, chromium):
        self._chromium = chromium
        self.wrongs = []

    def page(self, size=LAPTOP, scheme="light"):
        """A page in a session of its own."""
        width, height = size
        context = self._chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("request", self._asked)
        page.on("websocket", self._asked)
        page.on("pageerror", lambda error: self.wrongs.append(str(error)))
        page.on("console", self._told)
        return page

    def _asked(self, request):
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob", "file") and parts.hostname not in _HERE:
            self.wrongs.append(f"asked for {request.url}")

    def _told(self, message):
        if message.type in ("error", "warning"):
            self.wrongs.append(message.text)


# Playwright keeps an event loop running, in which other tests could not start their own
@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium")
    if path is None:
        pytest.fail(MISSING)
    with sync_playwright() as playwright:
        # a container's root has no sandbox of its own
        chromium = playwright.chromium.launch(
            executable_path=Path(path), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def browser(chromium):
    """A browser; afterwards, no page has asked anybody else, or failed."""
    browser = Browser(chromium)
    yield browser
    for context in chromium.contexts:
        context.close()
    assert not browser.wrongs, browser.wrongs
