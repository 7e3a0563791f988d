"""Known vulnerabilities of the pinned packages, where pip-audit's service can be reached.

    python tools/audit.py PIP_AUDIT [constraints.txt]

Ends with 1 if a package has one, else with 0; also where nothing could be looked up, which it says.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main(command: str, path: str = "constraints.txt") -> int:
    """Look every line of ``path`` up with the program ``command``, and tell."""
    options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    ran = subprocess.run([command, "--requirement", path, *options], capture_output=True, text=True, check=False)
    try:
        found = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError):
        said = (ran.stderr.strip().splitlines() or ["nothing said"])[-1]
        print(f"audit: nothing was looked up, the service can't be reached: {said}")
        return 0
    known = [one for one in found if "vulns" in one]
    unknown = [one["name"] for one in found if "vulns" not in one]
    if not known:
        print(f"audit: nothing was looked up, the service knows none of {len(found)} packages: it can't be reached.")
        return 0
    for one in known:
        for flaw in one["vulns"]:
            fixed = ", ".join(flaw.get("fix_versions", [])) or "no version yet"
            print(f"audit: {one['name']} {one['version']}: {flaw['id']}, fixed in {fixed}")
    flawed = sum(bool(one["vulns"]) for one in known)
    print(f"audit: {len(known)} packages looked up, {flawed} with a known vulnerability.")
    if unknown:
        print(f"audit: not looked up: {', '.join(sorted(unknown))}")
    return 1 if flawed else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
