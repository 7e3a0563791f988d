"""The arguments of functions and the fields of settings records, as keywords in Python and options in a terminal."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
import types
import typing
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from drift.errors import ConfigError, unknown_name

Function = TypeVar("Function", bound=Callable[..., Any])


def by_fields(**records: type) -> Callable[[Function], Function]:
    """Let callers give the fields of a function's settings records as keywords.

    The decorated function gets a whole record for each of ``records``; its callers may give the record, its fields, or
    both, the fields then changing the record. Its signature and docstring show the fields. An unknown keyword is
    refused with the nearest known one.

    Args:
        records: class of the record by the parameter that takes it.
    """

    def decorate(function: Function) -> Function:
        signature = _spread(function, records)
        takes_any = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())

        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            known = [*signature.parameters, *records]
            for name in keywords:
                if name not in known and not takes_any:
                    raise unknown_name("argument", name, signature.parameters, where=f"drift.{function.__name__}")
            for parameter, record in records.items():
                names = [each.name for each in dataclasses.fields(record) if each.name not in records]
                given = {name: keywords.pop(name) for name in names if name in keywords}
                keywords[parameter] = make_record(record, given, keywords.get(parameter))
            return function(*arguments, **keywords)

        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__doc__ = _told_together(function, records)
        return typing.cast(Function, call)

    return decorate


def make_record(record: type, given: Mapping[str, Any], whole: Any = None) -> Any:
    """``whole``, or the defaults, with the fields ``given``; a record in it may be given as a mapping of its fields.

    Raises:
        ConfigError: a field that there isn't, with the nearest known one; or a value that can't be.
    """
    hints, values = typing.get_type_hints(record), {}
    for name, value in given.items():
        if name not in hints:
            raise unknown_name("setting", name, hints, where=record.__name__)
        if is_dataclass(hints[name]) and isinstance(value, Mapping):
            value = make_record(typing.cast(type, hints[name]), value, getattr(whole, name, None))
        # YAML and the command line have no tuples.
        values[name] = tuple(value) if name == "stop" and isinstance(value, list) else value
    try:
        return record(**values) if whole is None else dataclasses.replace(whole, **values)
    except TypeError as error:
        raise ConfigError(f"{', '.join(f'{k}={v!r}' for k, v in given.items())} can't be used: {error}.") from error


def fields_of(record: Any) -> dict[str, inspect.Parameter]:
    """The fields of a record as keyword-only parameters, with their types and defaults."""
    hints, found = typing.get_type_hints(record), {}
    for each in dataclasses.fields(record):
        factory = each.default_factory
        default = each.default if factory is dataclasses.MISSING else factory()
        kind = inspect.Parameter.KEYWORD_ONLY
        found[each.name] = inspect.Parameter(each.name, kind, default=default, annotation=hints[each.name])
    return found


def descriptions_of(thing: Any) -> dict[str, str]:
    """What the docstring of a function or record says of each argument."""
    import docstring_parser

    found: dict[str, str] = {}
    for part in reversed(thing.__mro__) if inspect.isclass(thing) else [thing]:
        told = docstring_parser.parse(inspect.cleandoc(part.__doc__ or ""), docstring_parser.DocstringStyle.GOOGLE)
        found |= {each.arg_name: " ".join((each.description or "").split()) for each in told.params}
    return found


def _spread(function: Callable[..., Any], records: Mapping[str, type]) -> inspect.Signature:
    hints, plain, fields = typing.get_type_hints(function), [], []
    last = []
    for each in inspect.signature(function).parameters.values():
        each = each.replace(annotation=hints.get(each.name, Any))
        if each.name in records:
            fields += [field for name, field in fields_of(records[each.name]).items() if name not in records]
        elif each.kind is each.VAR_KEYWORD:
            last.append(each)
        else:
            plain.append(each)
    return inspect.Signature([*plain, *fields, *last], return_annotation=hints.get("return", Any))


def _told_together(function: Callable[..., Any], records: Mapping[str, type]) -> str:
    """The docstring of a function, the arguments of its records among its own."""
    text = inspect.getdoc(function) or ""
    parts = [part for record in records.values() for part in record.__mro__ if dataclasses.is_dataclass(part)]
    told = "".join(_arguments(inspect.cleandoc(part.__doc__ or "")) for part in parts)
    return re.sub(
        r"(\nArgs:\n(?:    .*\n?)+)", lambda own: own.group(1).rstrip("\n") + "\n" + told, text + "\n", count=1
    )


def _arguments(text: str) -> str:
    found = re.search(r"\nArgs:\n((?:    .*(?:\n|$))+)", text)
    return found.group(1).rstrip("\n") + "\n" if found else ""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: its name, its type, and its help with the default."""

    name: str
    type: Any
    help: str


def options_of_record(record: Any, prefix: str = "") -> Iterator[Option]:
    """The fields of a record, and of the records in it by dotted names, as options."""
    words = descriptions_of(record)
    for name, parameter in fields_of(record).items():
        if is_dataclass(parameter.annotation):
            yield from options_of_record(parameter.annotation, f"{prefix}{name}.")
        else:
            yield option(f"{prefix}{name}", parameter.annotation, parameter.default, words.get(name, ""))


def option(name: str, hint: Any, default: Any, words: str) -> Option:
    """An argument as an option: its type, and its description with the default."""
    empty = default is False or default in (None, "", (), [], {}, "default", inspect.Parameter.empty)
    shown = "" if empty or isinstance(default, dict) else f" (default: {default})"
    return Option(name=name, type=_type(name, hint), help=words.replace("%", "%%") + shown)


def _type(name: str, hint: Any) -> Any:
    """What jsonargparse takes for a type: paths as text, mappings as dictionaries, anything as text or a mapping."""
    if name == "models":
        return dict[str, str]
    if name in ("methods", "seeds") or hint in (str, os.PathLike[str], Path):
        return str
    if hint is Any or name == "scheme":
        return str | dict[str, Any] if name in ("scheme", "environment", "data", "cluster", "model") else Any
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


def metavar(kind: Any) -> str:
    """What help shows for a value of a type."""
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    names = {int: "N", float: "X", str: "TEXT", dict[str, Any]: "{KEY: VALUE}", dict[str, str]: "{NAME: MODEL}"}
    parts = [part for part in typing.get_args(kind) if part is not type(None)] or [kind]
    return names.get(kind) or names.get(parts[0], "VALUE")


def in_words(kind: Any, key: str) -> str:
    """The type of an option ``--key`` in words."""
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(in_words(part, key) for part in typing.get_args(kind))
    if kind is type(None):
        return "null"
    if typing.get_origin(kind) is list:
        return "a list, such as [a, b]"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(kind, f"keys and values: --{key}.KEY VALUE")


def help_formatter() -> type:
    """The class that lays out help: descriptions as wide as the terminal, room for long options."""
    from argparse import RawDescriptionHelpFormatter

    class Formatter(RawDescriptionHelpFormatter):
        """Help in which a description is as wide as the terminal and options have room."""

        def __init__(self, prog: str, **more: Any) -> None:
            super().__init__(prog, max_help_position=32, **more)

        def _format_action_invocation(self, action: Any) -> str:
            # Lists have a second option that appends, of which the first one's line is enough.
            return re.sub(r", --\S+\+ \S+$", "", super()._format_action_invocation(action))

    return Formatter


def as_declared(parser: ArgumentParser, argument: str) -> str:
    """``argument`` with its option as it was declared; raises ``ConfigError`` where there is no such option."""
    declared = [option for option in parser._option_string_actions if option.startswith("--")]
    options = {option[2:].replace("-", "_"): option for option in declared}
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or name == "--":
        return argument
    # The option itself, or a key of one that takes a mapping; in full, or by a last part that no other option has.
    parts = name[2:].replace("-", "_").split(".")
    for cut in range(len(parts), 0, -1):
        stem, rest = ".".join(parts[:cut]), "".join(f".{part}" for part in name[2:].split(".")[cut:])
        named = [options[stem]] if stem in options else []
        named = named or [option for spelled, option in options.items() if spelled.endswith(f".{stem}")]
        if len(named) == 1:
            return named[0] + rest + equals + value
        if named:
            raise ConfigError(f"{name} may be {' or '.join(each + rest for each in named)}. Say which.")
    raise unknown_name("option", name, options.values(), where=parser.prog)
