"""The JSON schema of a recipe, by which editors complete and check one."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal

from drift.keywords import descriptions_of, fields_of
from drift.recipe import NAMED, Recipe

_KINDS = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


def schema() -> str:
    """The JSON schema of a recipe (draft 2020-12), which editors complete and check recipes by.

    Returns:
        It, as text. With ``drift schema > recipe.schema.json`` and the line ``# yaml-language-server:
        $schema=recipe.schema.json`` at the head of a recipe, editors that speak YAML know its keys.
    """
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "drift recipe", **_record(Recipe)}
    return json.dumps(made, indent=2, ensure_ascii=False)


def _record(record: Any) -> dict[str, Any]:
    words, keys = descriptions_of(record), {}
    for name, parameter in fields_of(record).items():
        if dataclasses.is_dataclass(parameter.annotation):
            keys[name] = {**_record(parameter.annotation), "description": words.get(name, "")}
            continue
        # What a name stands for may have settings of its own, which no recipe knows.
        kind = (
            {"type": ["string", "object", "null"]}
            if name in (*NAMED, "loss", "scheme")
            else _type(parameter.annotation)
        )
        keys[name] = {**kind, "description": words.get(name, ""), **_default(parameter.default)}
    return {"type": "object", "additionalProperties": False, "properties": keys}


def _default(value: Any) -> dict[str, Any]:
    return {"default": value} if value is None or isinstance(value, int | float | str) else {}


def _type(hint: Any) -> dict[str, Any]:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {"enum": list(parts)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type(part) for part in parts]}
    if hint in _KINDS:
        return {"type": _KINDS[hint]}
    if origin in (list, tuple):
        return {"type": "array"}
    return {"type": "object"} if origin is dict else {}
