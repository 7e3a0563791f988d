"""The viewer in a real browser: every view at two widths, keys, filters, a rollout under way, and hostile words."""

import random
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.reporting.test_browser import hostile
from tests.viewer.conftest import saying, write

import drift
from drift.dataset.store import TrajectoryWriter
from drift.evaluation.config import EvaluationConfig
from drift.evaluation.run import evaluate_policies
from drift.policies.base import Sampling
from drift.rollouts.setup import Setup
from drift.types import Trajectory
from drift.viewer.library import Library

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]
WIDTHS = (1280, 390)


@contextmanager
def serving(run: Path) -> Iterator[str]:
    """The address of a viewer of ``run``."""
    import uvicorn

    from drift.viewer.server import make_app

    token, listener = secrets.token_urlsafe(16), socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = uvicorn.Server(uvicorn.Config(make_app(Library(run), token), access_log=False, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "no Chromium here; install one to run make test-browser"
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


class Watched:
    """A page of which it is known what it asked for and what it complained of."""

    def __init__(self, browser: Any, width: int = 1280) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("console", lambda line: line.type == "error" and self.complaints.append(line.text))

    def fits(self) -> bool:
        """Nothing has to be scrolled sideways, but within a part that scrolls by itself."""
        self.page.wait_for_load_state()
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))

    def done(self) -> None:
        """Wait until nothing is being read any more."""
        self.page.wait_for_selector("body:not([data-unfinished])")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rollouts, weights and an evaluation by scripted policies."""
    run = tmp_path_factory.mktemp("run")
    numbers = "|".join(f"let me see: <answer>{n}</answer>" for n in range(1, 100))
    settings = {"samples": 4, "max_new_tokens": 64}
    drift.rollout("guess", model=f"scripted:{numbers}", tasks=30, out=run / "rollouts", **settings)
    drift.weigh(run / "rollouts", out=run / "weights")
    policies = {"base": "scripted:no answer here", "tuned": f"scripted:{numbers}"}
    config, sampling = EvaluationConfig(tasks=30, samples=2), Sampling(max_new_tokens=64)
    evaluate_policies(Setup(environment="guess"), policies, config, sampling, run / "evaluation", seed=1)
    return run


@pytest.mark.parametrize("width", WIDTHS)
def test_every_view_fits_and_nothing_is_complained_of(
    browser: Any, whole_run: Path, tmp_path: Path, width: int
) -> None:
    with serving(whole_run) as address:
        seen = Watched(browser, width)
        page = seen.page
        page.goto(address)
        assert page.locator(".card").count() == 7
        views = {"run": page.url}
        page.goto(f"{address}list?data=rollouts&sort=-weight")
        seen.done()
        views["list"] = page.url
        page.locator("a.row").first.click()
        views["conversation"] = page.url
        page.get_by_role("link", name="all of this prompt").click()
        views["tree"] = page.url
        assert page.locator(".tree thead th").count() == 4
        page.goto(f"{address}compare?mode=sampled&change=gained")
        views["tasks"] = page.url
        page.locator("a.row").first.click()
        assert page.locator(".beside section").count() == 2
        views["compare"] = page.url
        views["report"] = f"{address}report"
        for name, view in views.items():
            page.goto(view)
            assert seen.fits(), (name, width)
            page.screenshot(path=tmp_path / f"{name}-{width}.png")
        assert seen.complaints == [] and all(url.startswith(address) for url in seen.asked)
    print(tmp_path)


def test_keys_lead_through_a_list_and_its_conversations(browser: Any, whole_run: Path) -> None:
    with serving(whole_run) as address:
        seen = Watched(browser)
        page = seen.page
        page.goto(f"{address}list?sort=-turns")
        seen.done()
        names = page.locator("a.row").all_inner_texts()

        def arrived(selector: str) -> None:
            page.wait_for_selector(selector)
            # A key that is pressed before the page's script has run is nobody's.
            page.wait_for_load_state()

        for key in ("j", "j", "j", "k", "Enter"):
            page.keyboard.press(key)
        arrived(f"h1:text-is('{names[1]}')")
        page.keyboard.press("j")
        arrived(f"h1:text-is('{names[2]}')")
        page.keyboard.press("k")
        arrived(f"h1:text-is('{names[1]}')")
        page.keyboard.press("u")
        arrived("table.list")
        assert "sort=-turns" in page.url
        page.keyboard.press("/")
        page.keyboard.type("jk/u")
        assert page.input_value("input[type=search]") == "jk/u"
        page.keyboard.press("Escape")
        for _ in range(26):
            page.keyboard.press("j")
        page.wait_for_url("**page=2**")


def test_a_filter_is_an_address_that_can_be_sent(browser: Any, whole_run: Path) -> None:
    with serving(whole_run) as address:
        seen, other = Watched(browser), Watched(browser)
        seen.page.goto(f"{address}list")
        seen.page.select_option("select[name=success]", "no")
        seen.page.fill("input[name=turns]", "5..")
        seen.page.fill("input[type=search]", "LET ME SEE")
        seen.page.get_by_role("button", name="Show").click()
        seen.done()
        assert seen.page.url.endswith("list?data=rollouts&q=LET+ME+SEE&success=no&turns=5..")
        other.page.goto(seen.page.url)
        other.done()
        rows = [each.page.locator("a.row").all_inner_texts() for each in (seen, other)]
        assert rows[0] == rows[1] and len(rows[0]) == 25
        assert set(seen.page.locator("td[data-name=success]").all_inner_texts()) == {"no"}


def test_a_page_goes_on_while_conversations_are_held(
    browser: Any, tmp_path: Path, make_trajectory: Callable[..., Trajectory]
) -> None:
    with TrajectoryWriter(tmp_path / "rollouts", {"trajectories": 20}, [], shard_size=100) as writer:
        with serving(tmp_path) as address:
            seen = Watched(browser)
            seen.page.goto(f"{address}list?sort=-sample")
            for count in (4, 12):
                for sample in range(writer.count, count):
                    writer.append(make_trajectory("t", sample))
                writer.flush()
                seen.page.wait_for_selector(f"b:text-is('{count}')", timeout=10_000)
                assert seen.page.locator("a.row").first.inner_text() == f"t#{count - 1}"
            seen.page.locator("a.row").nth(3).focus()
            writer.append(make_trajectory("t", 12))
            writer.flush()
            seen.page.wait_for_selector("b:text-is('13')", timeout=10_000)
            assert seen.page.evaluate("document.activeElement.id") == "row-4"
        seen.page.wait_for_selector("body.stopped", timeout=10_000)
        assert seen.page.locator(".gone").is_visible()


def test_two_thousand_hostile_conversations(
    browser: Any, tmp_path: Path, make_trajectory: Callable[..., Trajectory]
) -> None:
    rng = random.Random(1)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    names = [f"{at} {text(hostile(rng, port))}" for at in range(399)]

    def one(at: int) -> Trajectory:
        made = make_trajectory(names[at % 399], at, answers=(text(hostile(rng, port)), "1"), solved=at % 2 > 0)
        return saying(made, text(hostile(rng, port)))

    write(tmp_path / "rollouts", [one(at) for at in range(2000)])
    drift.weigh(tmp_path / "rollouts", "swift", outcome="reward", out=tmp_path / "weights")
    exported = drift.view(tmp_path, export=tmp_path / "page.html", rows=2000)
    with serving(tmp_path) as address:
        seen, start = Watched(browser), time.monotonic()
        for number in range(1, 81):
            seen.page.goto(f"{address}list?page={number}")
            assert seen.page.locator("a.row").count() == 25 and seen.fits()
            seen.page.locator("a.row").nth(rng.randrange(25)).click()
            assert seen.page.locator(".said").count() == 4 and seen.fits()
            seen.page.locator("text=all of this prompt").click()
            assert seen.page.locator(".tree").count() == 1 and seen.fits()
        seen.page.goto(f"file://{exported}")
        assert seen.page.locator(".one").count() == 2000 and seen.fits()
        assert not seen.page.evaluate("window.pwned || document.querySelectorAll('script, img, iframe, form').length")
        strangers = [url for url in seen.asked if not url.startswith((address, f"file://{exported}"))]
        assert strangers == [] and seen.complaints == []
        print(f"{len(seen.asked)} requests in {time.monotonic() - start:.0f} s")


def text(words: str) -> str:
    """``words`` as Parquet can hold them: without halves of surrogate pairs."""
    return words.encode("utf-8", errors="replace").decode()
