"""Token ids as the pieces of text that they are, by the tokenizer of the model that sampled them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift.policies import model_path
from drift.viewer.stages import Stage
from drift.yaml_files import read_mapping

_FILE = "tokenizer.json"
# A character takes at most so many tokens; what is longer is shown as it is.
_MOST = 8


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some text and the tokens that it is, mostly one.

    Attributes:
        text: as the tokenizer decodes it.
        token_ids: its ids.
        logprob: the sum of their log-probabilities in nats; ``None`` where they are not known.
    """

    text: str
    token_ids: tuple[int, ...]
    logprob: float | None


def find_tokenizer(root: Path, data: Stage, stages: Sequence[Stage], model: str = "") -> Any | None:
    """The tokenizer of the model that sampled ``data``, as far as its place is known; ``None`` where there is none.

    Args:
        root: the directory of the run, whose recipe may name a model.
        data: the data set.
        stages: what else lies there: models, which have the tokenizer of what they were made of.
        model: where to look instead: default, a folder or a hub id whose files are here.
    """
    named = [model] if model else []
    if not model:
        measured = [stage.manifest.get("policies", {}) for stage in stages]
        named += [str(policies.get(data.path.name, "")) for policies in measured]
        named += [str(data.manifest["spec"].get("tokenizer") or "")]
        named += [str(stage.path) for stage in stages if stage.kind == "model"]
        named += [str(stage.manifest.get("model", "")) for stage in stages if stage.kind == "model"]
        named += [str(each) for policies in measured for each in policies.values()]
        recipe = root / "recipe.yaml"
        named += [str(read_mapping(recipe).get("model", ""))] if recipe.is_file() else []
    return next((found for name in named if name and (found := _load(name)) is not None), None)


def _load(name: str) -> Any | None:
    path = Path(model_path(name)) / _FILE
    if not path.is_file() and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        from huggingface_hub import try_to_load_from_cache

        path = Path(str(try_to_load_from_cache(name, _FILE)))
    return _read(path) if path.is_file() else None


@functools.lru_cache(maxsize=8)
def _read(path: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def pieces(tokenizer: Any, token_ids: Sequence[int], logprobs: Sequence[float] | None) -> Iterator[Piece]:
    """The text of ``token_ids``, piece by piece: tokens that only together are a character are one piece."""

    def decoded(start: int, end: int) -> str:
        return str(tokenizer.decode(list(token_ids[start:end]), skip_special_tokens=False))

    # What came last is decoded again before what is new: some tokenizers drop the space that begins a text.
    before, start = 0, 0
    for end in range(1, len(token_ids) + 1):
        known, text = decoded(before, start), decoded(before, end)
        if text.endswith("\ufffd") and end < len(token_ids) and end - start < _MOST:
            continue
        sums = None if logprobs is None else float(sum(logprobs[start:end]))
        yield Piece(text=text[len(known) :], token_ids=tuple(token_ids[start:end]), logprob=sums)
        before, start = start, end
