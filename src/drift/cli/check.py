"""``drift check ENVIRONMENT``"""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from drift.cli.main import parse


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("environment", type=str, help="name of a registered environment")
    parser.add_argument("--settings", type=dict, default={}, help="the environment's own settings")
    parser.add_argument("--tasks", type=int, default=20, help="tasks per split to try")


def run(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """Run the checks; the exit code is 1 if any failed."""
    found = parse(parser, arguments)
    from drift.environments import make_environment
    from drift.environments.conformance import check_environment

    findings = check_environment(make_environment(found.environment, found.settings), tasks=found.tasks)
    for finding in findings:
        print(f"{'ok  ' if finding.passed else 'FAIL'} {finding.check}{': ' if finding.detail else ''}{finding.detail}")
    failed = sum(not finding.passed for finding in findings)
    print(f"{found.environment}: {len(findings) - failed} checks passed, {failed} failed")
    return 1 if failed else 0
