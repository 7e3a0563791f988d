"""The pictures of the viewer in docs/, of a finished run: python -m tools.pictures RUN; needs Chromium.

Run ``drift quickstart --out RUN`` first, as ``make pictures`` does.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

from drift.viewer.library import Library

DOCS = Path(__file__).parents[1] / "docs"
# A conversation that recovered from mistakes, and weighs much.
RECOVERED = {"data": "rollouts", "success": "yes", "turns": "3..", "sort": "-weight"}


def views(run: Path) -> dict[str, tuple[str, int]]:
    """Name of each picture, and the address and the height of what it shows."""
    found = Library(run).find(RECOVERED, patience=float("inf"))
    at = int(found.order[0])
    name, prompt = found.columns.ids[at].as_py(), found.columns.groups[int(found.order[1])].as_py()
    return {
        "viewer-list": (f"list?{urlencode(RECOVERED)}", 560),
        "viewer-conversation": (f"conversation?{urlencode({**RECOVERED, 'id': name, 'colour': 'logprob'})}", 560),
        "viewer-tree": (f"tree?{urlencode({'data': 'rollouts', 'prompt': prompt})}", 640),
    }


def main(run: Path) -> None:
    """Serve ``run`` and have Chromium draw each view."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "no Chromium here: install one"
    command = [sys.executable, "-m", "drift", "view", str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = re.search(r"http://\S+/", server.stdout.readline())
        assert address, "the viewer said no address"
        try:
            for name, (path, height) in views(run).items():
                flags = [
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--hide-scrollbars",
                    "--virtual-time-budget=4000",
                ]
                flags += [f"--window-size=1100,{height}", f"--screenshot={DOCS / name}.png"]
                subprocess.run([chromium, *flags, address.group() + path], check=True, capture_output=True)
                print(DOCS / f"{name}.png")
        finally:
            server.terminate()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
