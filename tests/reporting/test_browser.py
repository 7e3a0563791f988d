"""The page in a real browser, full of what no model should say: nothing runs, is asked for, or bursts the page."""

import dataclasses
import json
import random
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.fuzz.run import text_of

from drift.evaluation.config import EvaluationConfig
from drift.evaluation.run import evaluate_policies
from drift.policies.base import Sampling
from drift.reporting.facts import read_facts
from drift.reporting.page import render
from drift.rollouts.setup import Setup
from drift.types import Message, Trajectory

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]
# A page of the same origin, so that it may measure the report in its frame.
FRAME = """<!doctype html><body><iframe id=f src=/report.html style="width:1280px;height:900px"></iframe><script>
document.getElementById("f").onload = () => {
  const w = document.getElementById("f").contentWindow, d = w.document, e = d.documentElement;
  const count = (what) => d.querySelectorAll(what).length;
  document.title = JSON.stringify({
    title: d.title, wide: e.scrollWidth, view: w.innerWidth, pwned: !!w.pwned || !!window.pwned,
    turns: count(".turn"), scripts: count("script,img,iframe,object,form,link"),
    handlers: [...d.querySelectorAll("*")].filter(n => [...n.attributes].some(a => a.name.startsWith("on"))).length});
};</script>"""


@contextmanager
def serving(pages: dict[str, bytes]) -> Iterator[tuple[int, list[str]]]:
    """A server on loopback, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = pages.get(self.path)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()


def hostile(rng: random.Random, port: int) -> str:
    """Something that would run, ask for something, or break the page."""
    there = f"http://127.0.0.1:{port}/stolen"
    return rng.choice(
        [
            "<script>window.pwned = parent.pwned = 1</script>",
            f"<img src={there} onerror='parent.pwned=1'>",
            f"</div></details></main><iframe src='{there}'></iframe>",
            f"<svg onload='fetch(\"{there}\")'><style>@import '{there}'; body {{ display: none }}</style>",
            f"<link rel=stylesheet href={there}><meta http-equiv=refresh content='0;url={there}'>",
            f"<form action={there}><button autofocus onfocus='parent.pwned=1'>",
            f"<a href='javascript:parent.pwned=1'>x</a><base href='{there}'>",
            "{{ 7 * 7 }}{% raw %}${7*7}<!--",
            "\u202e" + "W" * 5000,
            "\u0301" * 400 + "\x00\x1b[2J\u2028",
            text_of(rng),
        ]
    ) + text_of(rng)


def test_two_thousand_hostile_conversations(tmp_path: Path, make_trajectory: Callable[..., Trajectory]) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "no Chromium here; install one to run make test-browser"
    config, sampling = EvaluationConfig(tasks=8, samples=1), Sampling(max_new_tokens=64)
    policies = {"base": "scripted:<answer>5</answer>", "tuned": "scripted:<answer>7</answer>"}
    evaluate_policies(Setup(environment="guess"), policies, config, sampling, tmp_path / "evaluation", seed=1)
    rng = random.Random(1)
    pages = {"/": FRAME.encode()}
    with serving(pages) as (port, asked):

        def one(at: int) -> Trajectory:
            first: Message = {"role": "user", "content": hostile(rng, port)}
            second: Message = {"role": "assistant", "content": hostile(rng, port)}
            made = make_trajectory(f"t{at}", solved=at % 2 == 0)
            return dataclasses.replace(made, task_id=f"{at} {hostile(rng, port)}", messages=(first, second))

        facts = dataclasses.replace(read_facts(tmp_path), pairs=[(one(at), one(at)) for at in range(1000)])
        pages["/report.html"] = render(facts).encode("utf-8", errors="replace")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
        dom = subprocess.run(
            [*command, "--dump-dom", f"http://127.0.0.1:{port}/"], capture_output=True, timeout=300, check=True
        ).stdout.decode(errors="replace")
        picture = tmp_path / "page.png"
        subprocess.run(
            [*command, f"--screenshot={picture}", "--window-size=1280,2400", f"http://127.0.0.1:{port}/report.html"],
            capture_output=True,
            timeout=300,
            check=True,
        )
    found = json.loads(re.search(r"<title>(\{.*?\})</title>", dom).group(1))  # type: ignore[union-attr]
    assert found["turns"] == 4000 and found["title"] == "drift: guess"
    assert not found["pwned"] and found["scripts"] == found["handlers"] == 0
    assert found["wide"] <= found["view"], found
    assert set(asked) <= {"/", "/report.html", "/favicon.ico"}, asked
    assert picture.stat().st_size > 10_000
    print(picture)
