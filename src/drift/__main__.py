"""``python -m drift``"""

from drift.cli import entry

entry()
