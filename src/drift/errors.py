"""The errors a user can meet. Each message says what failed, on which record, what was found, what was expected,
and what to do about it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

# More names than these are not listed where one is near: nobody reads them.
MOST_LISTED = 24


class DriftError(Exception):
    """Base of every error that this project raises on purpose; the command line prints it without a traceback."""

    exit_code = 1


class ConfigError(DriftError, ValueError):
    """A setting is wrong: unknown key or name, value out of range, settings that contradict one another."""

    exit_code = 2


class PolicyError(DriftError, ValueError):
    """A policy can't be used: no such model, no chat template, unreadable weights."""

    exit_code = 2


class DatasetError(DriftError, ValueError):
    """A run directory can't be used: empty, half-written, damaged, or made by another run, policy or version."""


class EnvironmentFault(DriftError, ValueError):
    """An environment broke its protocol."""


class StorageError(DriftError, OSError):
    """The disk refused a write; what was written before stays usable."""


class TrainingError(DriftError, RuntimeError):
    """Training can't start or go on."""


class ClusterError(DriftError, RuntimeError):
    """The machines of a cluster can't do the work: none there, or workers that fail over and over."""


def in_short(error: BaseException) -> str:
    """The kind of an exception and what it says, also where that fails."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


class Unforeseen(DriftError):
    """Something failed that no part of drift expects; the message says in which stage, and where the traceback is."""


class Interrupted(DriftError):
    """The user pressed Ctrl-C; what was finished is on disk."""

    exit_code = 130


def unknown_name(kind: str, got: str, known: Iterable[str], *, where: str = "") -> ConfigError:
    """A ``ConfigError`` for an unknown name that offers the nearest known ones.

    Args:
        kind: what the name should have named, for example ``environment``.
        got: the name that was given.
        known: the names that exist.
        where: where it was found, for example a file and key.
    """
    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    place = f" in {where}" if where else ""
    listed = "" if near and len(names) > MOST_LISTED else f" Known: {', '.join(names) or 'none'}."
    return ConfigError(f"unknown {kind} {got!r}{place}.{hint}{listed}")


def require(condition: bool, name: str, got: object, expected: str, remedy: str = "") -> None:
    """Raise a ``ConfigError`` that names the setting, what was got and what is expected, unless ``condition``.

    A number that is infinite or none is never what is expected: no manifest could hold it.
    """
    if not condition or (isinstance(got, float) and not math.isfinite(got)):
        raise ConfigError(f"{name}: got {got!r}, expected {expected}.{' ' + remedy if remedy else ''}")
