"""The tokenizer that most tests have: a new object each time, of pieces that are learned once."""

from functools import cache
from typing import Any

from tools.default_policy.config import Flaws
from tools.default_policy.pretrain import learn_pieces, tokenizer_of


def small_tokenizer() -> Any:
    return tokenizer_of(_pieces())


@cache
def _pieces() -> dict[str, Any]:
    return learn_pieces(0, Flaws(), 300)
