"""The documentation as it is built, in a real browser: its search finds what one looks for."""

import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
SHOWN = "document.querySelectorAll('.md-search-result__link').length"
SITE = Path(__file__).parents[1] / "build" / "site"
TERMS = {
    "rollout": "rollouts.html",
    "qa": "tutorial/2-own-task.html",
    "vllm": "rollouts.html",
    "lora": "reference/recipe.html",
    "weight": "howto/weighting.html",
    "interval": "method.html",
    "resume": "tutorial/1-first-minute.html",
    "judge": "rollouts.html",
    "tensorboard": "howto/trackers.html",
    "notebook": "howto/trackers.html",
    "import": "artifacts.html",
    "hold_out": "tutorial/3-own-logs.html",
    "push": "howto/publish.html",
    "GSM8K": "rollouts.html",
    "topr": "method.html",
    "swift": "method.html",
    "seed": "results.html",
    "gpu": "rollouts.html",
    "feedback": "rollouts.html",
    "max_new_tokens": "reference/python.html",
    "drift check": "artifacts.html",
    "learning rate": "results.html",
}


class Quiet(SimpleHTTPRequestHandler):
    """Files, without a line for each."""

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def test_twenty_terms_are_found_by_the_search_of_the_site() -> None:
    from playwright.sync_api import sync_playwright

    assert (SITE / "index.html").is_file(), "build it first: make docs"
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    missing = {}
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
            field = page.query_selector("input.md-search__input")
            for term, wanted in TERMS.items():
                field.click()
                field.fill("")
                page.wait_for_function(f"{SHOWN} == 0")
                page.keyboard.type(term)
                page.wait_for_function(f"{SHOWN} > 0")
                # The results of the whole term, and not of how it begins.
                page.wait_for_timeout(500)
                links = page.eval_on_selector_all(".md-search-result__link", "links => links.map(a => a.href)")
                if not any(f"/{wanted}" in link for link in links):
                    missing[term] = links[:5]
            browser.close()
    finally:
        server.shutdown()
    assert not missing, "\n".join(f"{term}: {links}" for term, links in missing.items())
