"""``drift VERB``: find the verb, parse its arguments, run it, say what went wrong in one line."""

from __future__ import annotations

import os
import re
import signal
import sys
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from importlib import import_module
from keyword import iskeyword
from typing import Protocol, cast

from jsonargparse import ArgumentParser, Namespace

import drift
from drift.errors import ConfigError, DriftError, unknown_name
from drift.progress import leave
from drift.secrets import scrubbed

VERBS = {
    "quickstart": "sample, weigh, fine-tune, measure and report on the built-in policy, in minutes",
    "run": "run a whole recipe; finished stages are not run again",
    "compare": "run many methods and seeds on one recipe, and say which is better",
    "rollout": "hold K conversations for each task of an environment",
    "import": "turn logged conversations with rewards into trajectories",
    "weigh": "weigh conversations by their return",
    "train": "fine-tune a model on weighted conversations",
    "train-preference": "train with DPO or KTO on the same conversations, through TRL",
    "train-online": "train with GRPO on conversations held meanwhile, through TRL",
    "export": "write conversations as pairs or labelled rows for preference trainers",
    "evaluate": "measure policies on held-out tasks",
    "report": "write the report page of a run",
    "check": "put an environment through its protocol, or look for damage in a run directory",
}


class Verb(Protocol):
    """What a module of a verb provides."""

    def arguments(self, parser: ArgumentParser) -> None:
        """Declare the verb's arguments."""
        ...

    def run(self, parser: ArgumentParser, arguments: Sequence[str]) -> int:
        """Parse ``arguments`` and do the work; returns the exit code."""
        ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if not given or given[0].startswith("-"):
            return _top_level(given)
        name, *rest = given
        if name not in VERBS:
            raise unknown_name("command", name, VERBS)
        module = name.replace("-", "_") + "_" * iskeyword(name)
        verb = cast(Verb, import_module(f"drift.cli.{module}"))
        parser = ArgumentParser(prog=f"drift {name}", description=VERBS[name].capitalize() + ".", exit_on_error=False)
        verb.arguments(parser)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return verb.run(parser, rest)
    except DriftError as error:
        print(f"drift: {scrubbed(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("drift: stopped. Run the same command again to go on.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe left; Python would complain again while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _top_level(given: list[str]) -> int:
    parser = ArgumentParser(prog="drift", description=drift.__doc__, version=drift.__version__, exit_on_error=False)
    commands = parser.add_subcommands(metavar="VERB")
    for name, summary in VERBS.items():
        commands.add_subcommand(name, ArgumentParser(description=summary), help=summary)
    try:
        parser.parse_args(given or ["--help"])
    except SystemExit as stop:
        return int(stop.code or 0)
    except ArgumentError as error:
        raise ConfigError(f"{error}. See drift --help.") from error
    return 0


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse a verb's arguments; ``-`` and ``_`` mean the same in options, unknown ones get the nearest known one.

    Raises:
        ConfigError: unknown or missing arguments, or values of the wrong type.
        SystemExit: after ``--help``.
    """
    options = {option.replace("-", "_"): option for option in parser._option_string_actions if option.startswith("--")}
    given = [_as_declared(argument, options) for argument in arguments]
    try:
        return parser.parse_args(given)
    except ArgumentError as error:
        message = str(error)
        unknown = re.search(r"[Uu]nrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            raise unknown_name("option", unknown.group(1), options.values()) from error
        raise ConfigError(f"{message.strip()} See {parser.prog} --help.") from error


def _as_declared(argument: str, options: Mapping[str, str]) -> str:
    """``argument`` with its option as it was declared; ``options`` has each by its spelling with ``_`` alone."""
    name, equals, value = argument.partition("=")
    whole = options.get(name.replace("-", "_"))
    if whole:
        return whole + equals + value
    stem, dot, key = name.partition(".")
    if not stem.startswith("--") or not dot:
        return argument
    # A key of an option that takes a mapping. jsonargparse would also take --WHAT.KEY for the positional WHAT.
    mapping = options.get(stem.replace("-", "_"))
    if not mapping:
        raise unknown_name("option", name, options.values())
    return mapping + dot + key + equals + value


def entry() -> None:
    """The console script."""
    if "LOCAL_RANK" not in os.environ:
        sys.exit(main())
    try:
        code = main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    leave(code)
