"""``drift check ENVIRONMENT`` and ``drift check DIRECTORY``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from drift.cli.main import parse


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("what", type=str, help="name of a registered environment, or a directory that drift wrote")
    parser.add_argument("--settings", type=dict[str, Any], default={}, help="the environment's own settings")
    parser.add_argument("--tasks", type=int, default=20, help="tasks per split of an environment to try")
    parser.add_argument("--repair", type=bool, default=False, help="remove what is provably incomplete in a directory")


def run(parser: ArgumentParser, arguments: Sequence[str]) -> int:
    """Run the checks; the exit code is 1 if any failed."""
    found = parse(parser, arguments)
    if Path(found.what).is_dir() or "/" in found.what:
        return _directory(Path(found.what), repairing=found.repair)
    from drift.environments import make_environment
    from drift.environments.conformance import check_environment

    findings = check_environment(make_environment(found.what, found.settings), tasks=found.tasks)
    for finding in findings:
        print(f"{'ok  ' if finding.passed else 'FAIL'} {finding.check}{': ' if finding.detail else ''}{finding.detail}")
    failed = sum(not finding.passed for finding in findings)
    print(f"{found.what}: {len(findings) - failed} checks passed, {failed} failed")
    return 1 if failed else 0


def _directory(root: Path, *, repairing: bool) -> int:
    from drift.audit import audit, repair

    findings = audit(root)
    if repairing and any(finding.removable for finding in findings):
        for path in repair(findings):
            print(f"removed    {path}")
        findings = audit(root)
    for finding in findings:
        print(f"{finding.state:10s} {finding.path}: {finding.detail}")
    if any(finding.removable for finding in findings):
        print("Run the same with --repair true to remove what is provably incomplete.")
    wrong = sum(finding.state != "ok" for finding in findings)
    print(f"{root}: {len(findings) - wrong} of {len(findings)} in order")
    return 1 if wrong else 0
