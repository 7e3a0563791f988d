"""``drift VERB``: each verb is a function of ``drift``, its options are that function's arguments."""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
import types
import typing
from argparse import SUPPRESS, ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

import drift
from drift.errors import ConfigError, DriftError, unknown_name
from drift.keywords import descriptions_of, fields_of
from drift.progress import leave
from drift.secrets import scrubbed


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb of the command line.

    Args:
        summary: what it does, in a line.
        function: ``module:function`` that does it.
        example: a command that works.
        positional: arguments that are given without a name.
        first: options that help tells first, in this order.
        record: ``module:class`` whose fields are options too, of a function that takes any keyword.
        shows: ``module:function`` that prints what came out, instead of the result's own sentences.
    """

    summary: str
    function: str
    example: str
    positional: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    record: str = ""
    shows: str = ""


_RECIPE_FIRST = (
    "out", "dry_run", "model", "environment", "seed", "sampling.max_new_tokens", "rollouts.tasks", "rollouts.samples",
    "weights.scheme", "weights.beta", "weights.steps", "training.max_steps", "training.learning_rate",
    "training.batch_size", "evaluation.tasks", "evaluation.samples",
)  # fmt: skip
_SAMPLE_FIRST = ("out", "model", "tasks", "samples", "max_new_tokens", "environment", "temperature", "policy", "seed")

VERBS = {
    "quickstart": Verb(
        summary="sample, weigh, fine-tune, measure and report on the built-in policy, in minutes",
        function="drift.pipeline:quickstart",
        example="drift quickstart",
        first=_RECIPE_FIRST,
        record="drift.recipe:Recipe",
        shows="drift.reporting.console:print_summary",
    ),
    "run": Verb(
        summary="run a whole recipe; finished stages are not run again",
        function="drift.pipeline:run",
        example="drift run quickstart --model ./my-model --sampling.max_new_tokens 64 --out runs/mine --dry_run",
        positional=("recipe",),
        first=_RECIPE_FIRST,
        record="drift.recipe:Recipe",
        shows="drift.reporting.console:print_summary",
    ),
    "compare": Verb(
        summary="run many methods and seeds on one recipe, and say which is better",
        function="drift.comparison.run:compare",
        example="drift compare quickstart --methods drift,sft,rft --seeds 1,2,3 --against sft",
        positional=("recipe",),
        first=("methods", "seeds", "against", "jobs", *_RECIPE_FIRST),
        record="drift.recipe:Recipe",
        shows="drift.reporting.console:print_comparison",
    ),
    "rollout": Verb(
        summary="hold K conversations for each task of an environment",
        function="drift.api:rollout",
        example="drift rollout guess --environment.width 20 --tasks 400 --max_new_tokens 16 --out run/rollouts",
        positional=("environment",),
        first=_SAMPLE_FIRST,
    ),
    "import": Verb(
        summary="turn logged conversations with rewards into trajectories",
        function="drift.api:read_logs",
        example="drift import log.jsonl --columns.reward rating --model ./my-model --out run/logged",
        positional=("file",),
        shows="drift.reporting.console:print_import",
    ),
    "weigh": Verb(
        summary="weigh conversations by their return",
        function="drift.api:weigh",
        example="drift weigh run/rollouts --scheme drift --beta 0.1 --steps '[drop_unsolved]' --out run/weights",
        positional=("data",),
        first=("scheme", "beta", "steps", "outcome", "turns", "out"),
        record="drift.weights.config:WeightConfig",
    ),
    "train": Verb(
        summary="fine-tune a model on weighted conversations",
        function="drift.api:train",
        example="drift train run/rollouts run/weights --max_steps 60 --learning_rate 1e-4 --out run/model",
        positional=("data", "weights"),
        first=(
            "out",
            "model",
            "max_steps",
            "epochs",
            "batch_size",
            "learning_rate",
            "plan",
            "tokens_per_batch",
            "dtype",
            "lora",
            "num_processes",
            "seed",
        ),
    ),
    "train-preference": Verb(
        summary="train with DPO or KTO on the same conversations, through TRL",
        function="drift.api:train_preference",
        example="drift train-preference run/rollouts --learning_rate 1e-5 --out run/dpo",
        positional=("data",),
        first=("out", "model"),
    ),
    "train-online": Verb(
        summary="train with GRPO on conversations held meanwhile, through TRL",
        function="drift.api:train_online",
        example="drift train-online arithmetic --rounds 60 --prompts 16 --max_new_tokens 16 --out run/grpo",
        positional=("environment",),
        first=("out", "model", "rounds", "prompts", "samples"),
    ),
    "export": Verb(
        summary="write conversations as pairs or labelled rows for preference trainers",
        function="drift.api:export",
        example="drift export run/rollouts --format kto --out run/kto.jsonl",
        positional=("data",),
        shows="drift.reporting.console:print_export",
    ),
    "evaluate": Verb(
        summary="measure models on held-out tasks",
        function="drift.api:evaluate",
        example="drift evaluate arithmetic --models.base default --models.tuned run/model --seen run/rollouts",
        positional=("environment",),
        first=("models", "out", "seen", "tasks", "samples", "max_new_tokens", "environment", "seed"),
        shows="drift.reporting.console:print_summary",
    ),
    "report": Verb(
        summary="write the report page of a run",
        function="drift.api:report",
        example="drift report run",
        positional=("run",),
    ),
    "check": Verb(
        summary="put an environment through its protocol, or look for damage in a run directory",
        function="drift.audit:check",
        example="drift check arithmetic",
        positional=("what",),
        shows="drift.reporting.console:print_findings",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if given[:1] == ["help"]:
            given = [*given[1:2], "--help"]
        if not given or given[0].startswith("-"):
            return _top_level(given)
        name, *rest = given
        if name not in VERBS:
            raise unknown_name("command", name, VERBS)
        return _run(name, VERBS[name], rest)
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


def _run(name: str, verb: Verb, arguments: Sequence[str]) -> int:
    function = _load(verb.function)
    parser = parser_of(name, arguments)
    found = _as_dict(_parse(parser, arguments))
    positional = [found.pop(each.upper()) for each in verb.positional]
    if "environment" in verb.positional:
        at = verb.positional.index("environment")
        settings = found.pop("environment", {})
        positional[at] = {"name": positional[at], **settings} if settings else positional[at]
    # Dotted keys of a recipe are the function's keywords; of other verbs they are the parts of one argument.
    keywords = _dotted(found) if verb.record.endswith(":Recipe") else found
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result = function(*positional, **keywords)
    if result is None or os.environ.get("RANK", "0") != "0":
        return 0
    if verb.shows:
        return int(_load(verb.shows)(result) or 0)
    for line in [str(result)] if not hasattr(result, "summary") else [f"{result}:", *result.summary()]:
        print(line)
    return 0


def parser_of(name: str, arguments: Sequence[str] = ()) -> ArgumentParser:
    """The parser of a verb; ``arguments`` may name a scheme, whose settings are options too."""
    verb = VERBS[name]
    function = _load(verb.function)
    words = descriptions_of(function)
    summary = (inspect.getdoc(function) or "").split("\n\n")[0]
    parser = ArgumentParser(
        prog=f"drift {name}",
        usage=" ".join([f"drift {name}", *(each.upper() for each in verb.positional), "[options]"]),
        description=f"{summary}\n\nExample: {verb.example}",
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=_formatter(),
    )
    for each in verb.positional:
        parser.add_argument(each.upper(), type=str, help=_positional_help(each, words))
    options = {option.name: option for option in _options(verb, function, arguments)}
    first = parser.add_argument_group("options")
    for key in verb.first:
        _add(first, options.pop(key))
    groups: dict[str, Any] = {}
    for option in list(options.values()):
        title = "further options" if verb.first else "options"
        if verb.record.endswith(":Recipe") and "." in option.name:
            title = f"further keys of {option.name.partition('.')[0]}"
        group = first if title == "options" else groups.get(title) or parser.add_argument_group(title)
        groups[title] = group
        _add(group, option)
    return parser


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: its name, its type, and its help with the default."""

    name: str
    type: Any
    help: str


def _options(verb: Verb, function: Callable[..., Any], arguments: Sequence[str]) -> Iterator[Option]:
    words = descriptions_of(function)
    hints = typing.get_type_hints(inspect.unwrap(function))
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in verb.positional and parameter.name != "environment":
            continue
        if parameter.kind is parameter.VAR_KEYWORD or parameter.name == "config":
            continue
        hint = parameter.annotation if not isinstance(parameter.annotation, str) else hints[parameter.name]
        inner = next((each for each in (hint, *typing.get_args(hint)) if is_dataclass(each)), None)
        if inner is not None:
            yield from _fields(inner, f"{parameter.name}.")
        elif parameter.name == "environment":
            text = "settings of the environment: --environment.KEY VALUE"
            yield Option(name="environment", type=dict[str, Any], help=text)
        else:
            yield _option(parameter.name, hint, parameter.default, words.get(parameter.name, ""))
    if verb.record:
        yield from _fields(_load(verb.record))
    scheme = _peek(arguments, "--scheme") if verb.record.endswith(":WeightConfig") else ""
    if scheme and "{" not in scheme:
        from drift.registry import settings_of
        from drift.weights.schemes import find_scheme

        own = find_scheme(scheme).function
        for key, default in settings_of(own).items():
            if key != "beta":
                yield _option(key, Any, default, descriptions_of(own).get(key) or f"setting of the scheme {scheme}")


def _fields(record: Any, prefix: str = "") -> Iterator[Option]:
    words = descriptions_of(record)
    for name, parameter in fields_of(record).items():
        if is_dataclass(parameter.annotation):
            yield from _fields(parameter.annotation, f"{prefix}{name}.")
        else:
            yield _option(f"{prefix}{name}", parameter.annotation, parameter.default, words.get(name, ""))


def _option(name: str, hint: Any, default: Any, words: str) -> Option:
    shown = "" if default in (None, "", (), [], {}, inspect.Parameter.empty) or isinstance(default, dict) else default
    text = words.replace("%", "%%") + (f" (default: {shown})" if shown != "" else "")
    return Option(name=name, type=_type(name, hint), help=text)


def _type(name: str, hint: Any) -> Any:
    """What jsonargparse takes for a type: paths as text, mappings as dictionaries, anything as text or a mapping."""
    if name == "models":
        return dict[str, str]
    if name in ("methods", "seeds") or hint in (str, os.PathLike[str], Path):
        return str
    if hint is Any or name == "scheme":
        return str | dict[str, Any] if name in ("scheme", "environment", "model") else Any
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [_type(name, part) for part in parts if part is not type(None)]
        kinds = list(dict.fromkeys(kinds))
        return (
            typing.Union[(*kinds, *([type(None)] if type(None) in parts else []))]
            if len(kinds) > 1
            else _optional(kinds[0], parts)
        )
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return dict[str, Any]
    if origin is tuple:
        return list[str]
    return hint


def _optional(kind: Any, parts: tuple[Any, ...]) -> Any:
    return kind | None if type(None) in parts and kind not in (str, dict[str, Any]) else kind


def _add(group: Any, option: Option) -> None:
    flag = option.type is bool
    more: dict[str, Any] = {"nargs": "?", "const": True} if flag else {"metavar": _metavar(option.type)}
    group.add_argument(f"--{option.name}", type=option.type, default=SUPPRESS, help=option.help, **more)


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    names = {int: "N", float: "X", str: "TEXT", dict[str, Any]: "{KEY: VALUE}", dict[str, str]: "{NAME: MODEL}"}
    parts = [part for part in typing.get_args(kind) if part is not type(None)] or [kind]
    return names.get(kind) or names.get(parts[0], "VALUE")


def _formatter() -> type:
    from argparse import RawDescriptionHelpFormatter

    class Formatter(RawDescriptionHelpFormatter):
        """Help in which a description is as wide as the terminal and options have room."""

        def __init__(self, prog: str, **more: Any) -> None:
            super().__init__(prog, max_help_position=34, **more)

    return Formatter


def _positional_help(name: str, words: Mapping[str, str]) -> str:
    from drift.recipe import built_in_comparisons, built_in_recipes

    text = words.get(name, "").replace("%", "%%")
    return f"{text} ({', '.join(sorted([*built_in_recipes(), *built_in_comparisons()]))})" if name == "recipe" else text


def _top_level(given: Sequence[str]) -> int:
    if given and given[0] == "--version":
        print(f"drift {drift.__version__}")
        return 0
    if given and given[0] not in ("-h", "--help"):
        raise unknown_name("option", given[0], ["--help", "--version"], where="drift")
    width = max(map(len, VERBS)) + 2
    print(f"usage: drift VERB [options]\n\n{inspect.getdoc(drift)}\n\nverbs:")
    print("\n".join(f"  {name:{width}}{verb.summary}" for name, verb in VERBS.items()))
    print("\ndrift VERB --help tells a verb's options, drift --version the version.")
    return 0


def _parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse a verb's arguments; ``-`` and ``_`` mean the same in options, unknown ones get the nearest known one."""
    options = {option.replace("-", "_"): option for option in parser._option_string_actions if option.startswith("--")}
    given = [_as_declared(argument, options, parser.prog) for argument in _named(arguments)]
    try:
        return parser.parse_args(given)
    except ArgumentError as error:
        message = " ".join(str(error).split()).rstrip(".")
        wrong = re.match(r'Parser key "(\S+)"', message)
        if wrong:
            key, got = wrong.group(1), re.search(r"(?:Given value|Got value): (.*)$", message)
            kind = _types_of(parser).get(key)
            message = f"--{key}: got {got.group(1) if got else 'a value'}, expected {_expected(kind)}"
        raise ConfigError(f"{message}. See {parser.prog} --help.") from error


def _types_of(parser: ArgumentParser) -> dict[str, Any]:
    return {action.dest: getattr(action, "_typehint", action.type) for action in parser._actions}


def _expected(kind: Any) -> str:
    """A type in words."""
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_expected(part) for part in typing.get_args(kind))
    if kind is type(None):
        return "null"
    if typing.get_origin(kind) is list:
        return "a list, such as [a, b]"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(kind, "keys and values, such as {key: value}")


def _named(arguments: Sequence[str]) -> Iterator[str]:
    """``arguments`` with ``--environment NAME`` as ``--environment.name NAME``, so that settings may stand beside it."""
    for argument, value in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, own = argument.partition("=")
        plain = not (own if equals else value).lstrip().startswith("{")
        yield f"{name}.name{equals}{own}" if name == "--environment" and plain else argument


def _as_declared(argument: str, options: Mapping[str, str], prog: str) -> str:
    """``argument`` with its option as it was declared; ``options`` has each by its spelling with ``_`` alone."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or name == "--":
        return argument
    stem, dot, key = name.partition(".")
    declared = options.get(name.replace("-", "_"))
    if declared:
        return declared + equals + value
    # A key of an option that takes a mapping, or the last part of the one key of that name.
    mapping = options.get(stem.replace("-", "_"))
    if mapping and dot:
        return mapping + dot + key + equals + value
    last = [option for spelled, option in options.items() if spelled.endswith(f".{name[2:].replace('-', '_')}")]
    if len(last) == 1:
        return last[0] + equals + value
    if last:
        raise ConfigError(f"{name} may be {' or '.join(last)}. Say which.")
    raise unknown_name("option", name, options.values(), where=prog)


def _dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options as dotted keys, as recipes have them."""
    from drift.recipe import flatten

    return flatten(values)


def _as_dict(found: Namespace) -> dict[str, Any]:
    return {key: _as_dict(value) if isinstance(value, Namespace) else value for key, value in vars(found).items()}


def _peek(arguments: Sequence[str], option: str) -> str:
    """The value of an option, before all of them are parsed."""
    for at, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else next(iter(arguments[at + 1 :]), "")
    return ""


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def entry() -> None:
    """The console script."""
    if "LOCAL_RANK" not in os.environ:
        sys.exit(main())
    try:
        code = main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    leave(code)
