"""``drift VERB``: each verb is a function of ``drift``, its options are that function's arguments."""

from __future__ import annotations

import inspect
import os
import re
import sys
import typing
from argparse import SUPPRESS, ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

import drift
from drift.endings import AllSaid, ended
from drift.errors import ConfigError, unknown_name
from drift.keywords import (
    Option,
    as_declared,
    descriptions_of,
    help_formatter,
    in_words,
    metavar,
    option,
    options_of_record,
)
from drift.progress import leave
from drift.terminal import prepare, tell
from drift.verbs import RECIPE, VERBS, Verb


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if given[:1] == ["help"]:
        given = [*given[1:2], "--help"]
    if not given or given[0].startswith("-"):
        return ended(lambda: _top_level(given), "drift")
    name, *rest = given
    try:
        os.getcwd()
    except OSError:
        # Libraries end the process there, each in its way.
        return ended(_without_folder, f"drift {name}")
    out = _peek(rest, "--out")
    return ended(lambda: _run(name, rest), f"drift {name}", Path(out) if out else None)


def _without_folder() -> int:
    raise ConfigError("the directory that this is run in is gone. Change to another (cd), and run it again.")


def _run(name: str, arguments: Sequence[str]) -> int:
    if name not in VERBS:
        raise unknown_name("command", name, VERBS)
    verb = VERBS[name]
    function = _load(verb.function)
    parser = parser_of(name, arguments)
    found = _as_dict(parse(parser, arguments))
    positional = [found.pop(each.upper()) for each in verb.positional]
    if "environment" in verb.positional:
        at = verb.positional.index("environment")
        settings = found.pop("environment", {})
        positional[at] = {"name": positional[at], **settings} if settings else positional[at]
    # Dotted keys of a recipe are the function's keywords; of other verbs they are the parts of one argument.
    keywords = _load("drift.recipe:flatten")(found) if verb.record == RECIPE else _nested_policy(found)
    for key, each in inspect.signature(function).parameters.items():
        if each.kind is each.KEYWORD_ONLY and each.default is each.empty and key not in keywords:
            raise ConfigError(f"drift {name} needs --{key}. For example: {verb.example}")
    result = function(*positional, **keywords)
    # Of the processes that torch's launcher starts, the first one tells.
    if result is None or ("LOCAL_RANK" in os.environ and os.environ.get("RANK", "0") != "0"):
        return 0
    if verb.shows:
        return int(_load(f"drift.reporting.console:{verb.shows}")(result) or 0)
    for line in [str(result)] if not hasattr(result, "summary") else [f"{result}:", *result.summary()]:
        tell(line)
    return 0


class _Parser(ArgumentParser):
    """A parser whose help goes the one way to the terminal: argparse itself is silent where it can't be written."""

    def _print_message(self, message: str, file: Any = None) -> None:
        tell(message, end="", error=file is sys.stderr)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise AllSaid(status)


def parser_of(name: str, arguments: Sequence[str] = ()) -> ArgumentParser:
    """The parser of a verb; ``arguments`` may name a scheme, whose settings are options too."""
    verb = VERBS[name]
    function = _load(verb.function)
    words = descriptions_of(function)
    summary = (inspect.getdoc(function) or "").split("\n\n")[0]
    parser = _Parser(
        prog=f"drift {name}",
        usage=" ".join([f"drift {name}", *(each.upper() for each in verb.positional), "[options]"]),
        description=f"{summary}\n\nExample: {verb.example}",
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=help_formatter(),
    )
    for argument in verb.positional:
        parser.add_argument(argument.upper(), type=str, help=_positional_help(name, argument, words))
    options = {found.name: found for found in _options(verb, function, arguments)}
    for key in verb.first:
        for each in [each for each in options if each == key or each.startswith(f"{key}.")]:
            _add(parser, options.pop(each), brief=verb.record == RECIPE)
    groups: dict[str, Any] = {"": parser}
    for rest in options.values():
        title = "further options" if verb.first else ""
        if verb.record == RECIPE and "." in rest.name:
            title = f"further keys of {rest.name.partition('.')[0]}"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], rest)
    return parser


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
            yield from options_of_record(inner, f"{parameter.name}.")
        elif parameter.name == "environment":
            text = "settings of the environment: --environment.KEY VALUE"
            yield Option(name="environment", type=dict[str, Any], help=text)
        else:
            yield option(parameter.name, hint, parameter.default, words.get(parameter.name, ""))
    if verb.record:
        yield from options_of_record(_load(verb.record))
    scheme = _peek(arguments, "--scheme") if verb.record.endswith(":WeightConfig") else ""
    if scheme and "{" not in scheme:
        from drift.registry import settings_of
        from drift.weights.schemes import find_scheme

        own = find_scheme(scheme).function
        for key, default in settings_of(own).items():
            if key != "beta":
                yield option(key, Any, default, descriptions_of(own).get(key) or f"setting of the scheme {scheme}")


def _add(group: Any, option: Option, *, brief: bool = False) -> None:
    """Add an option; its stage's own verb tells in full what ``brief`` leaves out: all but the first sentence."""
    flag = option.type is bool
    more: dict[str, Any] = {"nargs": "?", "const": True} if flag else {"metavar": metavar(option.type)}
    words = re.sub(r"\.(?: .*?)??(?=$| \(default: )", ".", option.help, count=1) if brief else option.help
    group.add_argument(f"--{option.name}", type=option.type, default=SUPPRESS, help=words, **more)


def _positional_help(verb: str, name: str, words: Mapping[str, str]) -> str:
    from drift.recipe import built_in_comparisons, built_in_recipes

    text = words.get(name, "").replace("%", "%%").rstrip(".")
    if name != "recipe":
        return text
    known = [*built_in_recipes(), *(built_in_comparisons() if verb == "compare" else [])]
    return f"{text}; built in: {', '.join(sorted(known))}."


def _top_level(given: Sequence[str]) -> int:
    if given and given[0] == "--version":
        tell(f"drift {drift.__version__}")
        return 0
    if given and given[0] not in ("-h", "--help"):
        raise unknown_name("option", given[0], ["--help", "--version"], where="drift")
    width = max(map(len, VERBS)) + 2
    tell(f"usage: drift VERB [options]\n\n{inspect.getdoc(drift)}\n\nverbs:")
    tell("\n".join(f"  {name:{width}}{verb.summary}" for name, verb in VERBS.items()))
    tell("\ndrift VERB --help tells a verb's options, drift --version the version.")
    return 0


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse a verb's arguments; ``-`` and ``_`` mean the same in options, unknown ones get the nearest known one."""
    given = list(_switched_on(parser, [as_declared(parser, argument) for argument in _named(arguments)]))
    try:
        return parser.parse_args(given)
    except ArgumentError as error:
        message = " ".join(str(error).split()).rstrip(".")
        message = message.replace("unrecognized arguments:", "too many arguments, or options without --:")
        wrong = re.match(r'Parser key "(\S+)"', message)
        if wrong:
            key, got = wrong.group(1), re.search(r".*(?:Given value|Got value): (.*)$", message)
            kind = _types_of(parser).get(key)
            value = re.sub(r"NestedArg\(key='(.*?)', val='?(.*?)'?\)", r"{\1: \2}", got.group(1)) if got else "a value"
            message = f"--{key}: got {value}, expected {in_words(kind, key)}"
        raise ConfigError(f"{message}. See {parser.prog} --help.") from error


def _types_of(parser: ArgumentParser) -> dict[str, Any]:
    return {action.dest: getattr(action, "_typehint", action.type) for action in parser._actions}


def _named(arguments: Sequence[str]) -> Iterator[str]:
    """``arguments`` with ``--environment NAME`` as ``--environment.name NAME``: settings may stand beside it.

    So does ``--data FILE`` for ``--data.file FILE``.
    """
    short = {"--environment": "--environment.name", "--data": "--data.file"}
    for argument, value in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, own = argument.partition("=")
        plain = not (own if equals else value).lstrip().startswith("{")
        yield f"{short[name]}{equals}{own}" if name in short and plain else argument


def _switched_on(parser: ArgumentParser, given: Sequence[str]) -> Iterator[str]:
    """``given`` with ``--flag`` as ``--flag=true``, so that it doesn't take what follows for its value."""
    flags = {name for action in parser._actions if action.nargs == "?" for name in action.option_strings}
    for word, value in zip(given, [*given[1:], ""], strict=False):
        yield f"{word}=true" if word in flags and value.lower() not in ("true", "false") else word


def _nested_policy(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with settings of one model alone, as {tuned.engine: hf}, under its name."""
    from drift.recipe import nested

    return {**values, "policy": nested(values["policy"])} if values.get("policy") else values


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
    prepare()
    if "LOCAL_RANK" not in os.environ:
        sys.exit(main())
    try:
        code = main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    leave(code)
