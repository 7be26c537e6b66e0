import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch

import evenlens.datasets
import evenlens.engine
from evenlens import cli
from tests import fake

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Every test has a cache of its own, and no data set of the machine."""
    monkeypatch.setenv("EVENLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EVENLENS_DATA", raising=False)
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The data set `tiny` exists in tests only."""
    original = evenlens.datasets.get
    monkeypatch.setattr(
        evenlens.datasets, "get", lambda name, root=None: fake.Tiny if name == "tiny" else original(name, root)
    )


@pytest.fixture
def real_data(request):
    """The folder with real images, where there is one."""
    root = os.environ.get("EVENLENS_TEST_DATA")
    if not root:
        pytest.skip("real images: set EVENLENS_TEST_DATA to a folder that holds utkface/ and fairface/")
    return root


class Threads(ThreadPoolExecutor):
    def __init__(self, max_workers, timeout):
        super().__init__(max_workers)

    def shutdown(self, wait=True, kill_workers=False):
        super().shutdown(wait)


@pytest.fixture
def in_threads(monkeypatch):
    """Images are made by threads, where starting processes would only take time."""
    monkeypatch.setattr("loky.ProcessPoolExecutor", Threads)


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capsys, tmp_path, in_threads):
    """Type a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["evenlens", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        written = capsys.readouterr()
        return Ended(ended.value.code or 0, written.out, written.err)

    return call


@pytest.fixture
def refused(command, tmp_path):
    """Type a command that must be refused: give its one sentence."""

    def call(*words):
        ended = command(*words)
        assert ended.code == 2, ended
        lines = [line for line in ended.err.splitlines() if line.strip()]
        assert len(lines) == 1, ended.err
        assert lines[0].startswith("Error: ")
        assert "Traceback" not in ended.err
        assert not list(tmp_path.glob("runs/*/*/[!.]*")), "what was refused left a run"
        return lines[0]

    return call


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium: none of chromium, chromium-browser, google-chrome is on the path")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=flags)
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    """Open a page, wait for its figures, and give it with all that it asked for and complained of."""
    tabs = []

    def open_(path, width=1280):
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tabs.append(tab)
        tab.asked, tab.complaints = [], []
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.on("console", lambda message: tab.complaints.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.goto(path.resolve().as_uri())
        tab.locator(".chart:not([data-drawn])").first.wait_for(state="detached")
        return tab

    yield open_
    for tab in tabs:
        tab.close()
