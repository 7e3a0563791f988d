"""``python -m drift``"""

from drift.cli.main import entry

entry()
