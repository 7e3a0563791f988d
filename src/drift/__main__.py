"""``python -m drift``"""

from drift.cli import entry

if __name__ == "__main__":
    entry()
