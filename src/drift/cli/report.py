"""``drift report RUN``"""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from drift.cli.main import parse


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", type=str, help="directory of a run, or of an evaluation")
    parser.add_argument("--out", type=str, default="", help="the page (default: report.html in the directory)")


def run(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """Write the page."""
    found = parse(parser, arguments)
    from drift.api import report

    print(report(found.run, out=found.out or None))
    return 0
