r"""What the text of an answer is as mathematics, as a whole or not at all; parsing algebra is left to math-verify."""

from __future__ import annotations

import re

from drift.verifiers.markup import MAX_CHARACTERS, tidy, unwrapped, well_escaped, without_end, without_text_commands
from drift.verifiers.notation import FUNCTIONS, NAMES, latex
from drift.verifiers.number_words import number_in_words
from drift.verifiers.quantities import LABEL, POWER_OF_UNIT, Expression, quantity, scale_word
from drift.verifiers.reading import RETRACTED, boxed_answer, stated
from drift.verifiers.units import UNIT_OF, read_unit
from drift.verifiers.values import value_of

_LEAD = re.compile(
    r"(?:(?:the |my |your |our )?(?:final |correct |right |exact )?(?:answer|result|solution|value|ans)|a(?!:[a-z]))"
    r"\s*(?::|=>|=|->|→)\s*|ans\.\s+(?=[-$\\\d(])"
    r"|(?:approximately|about|roughly|around|circa|approx\.?|nearly|almost|exactly|equals?|is|are|just|only|ca\.)\s+"
    r"|an?\s+(?=\d)|(?:~|\\sim(?![a-z])|\\approx(?![a-z])|≈|=)\s*",
    re.IGNORECASE,
)
_VERB = re.compile(
    r"(?:^|(?<=\s))(?:is|are|equals|equal to|be|was|were|measures|costs|gives|get|have|has)\s+", re.IGNORECASE
)
_WORDS_BEFORE = re.compile(r"(?:(?:[A-Za-zÀ-ɏ][a-zÀ-ɏ'’-]+|[AaI])[,:]?\s+)+")
# Words in place of signs.
_SAID = (
    (re.compile(r"(?<=[\d)}])\s*(?:\s(?:und|oder|ou|et|y|o|e|&)\s|和|或|と)\s*(?=[-\d(\\$])(?![\s\S]*\\end)"), " and "),
    (re.compile(r"\\lor(?![a-z])"), " or "),
    (re.compile(r"\bplus or minus\s|^\+-(?=\d)"), r"\\pm "),
    (re.compile(r"^(?:minus|negative)\s+(?=[\d\\(]|inf)"), "-"),
    (re.compile(r"^(USD|EUR|GBP|JPY|INR|CHF|CAD|AUD|Rs|kr)(?:\s|\.\s?)(?=[-+]?\d)(.*)$"), r"\2 \1"),
    (re.compile(r"^(?:\{\})?[_^]?\{?(\d{1,3})\}?\s?C_?\s?\{?(\d{1,3})\}?$"), r"\\binom{\1}{\2}"),
    (re.compile(r"^(?:np\.)?(?:[Mm]atrix|array)\((\[.*\])\)$"), r"\1"),
    (re.compile(r"(?:the )?square root of (\d+|[a-z])(?=$|\W)"), r"\\sqrt{\1}"),
    (re.compile(r"(?:the )?cube root of (\d+|[a-z])(?=$|\W)"), r"\\sqrt[3]{\1}"),
    (re.compile(r"^(\w)\s+(?:equals|is equal to|is)\s+(?=[-\d\\($])"), r"\1 = "),
    (re.compile(r"^(\d{1,9}) (?:out of|in) (\d{1,9})$"), r"\1/\2"),
    (re.compile(r"\s*\((?:approx\.?|approximately|rounded|exactly|about)\)$"), ""),
)
# Words and particles of languages without spaces, before and after a formula.
_EAST = "\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af"
_EAST_AROUND = re.compile(rf"^[，、：:,\s]*[{_EAST}][{_EAST}，、：:\s]*|\s*[{_EAST}]+$")
_SETS_IN_WORDS = {"empty set": r"\emptyset", "null set": r"\emptyset", "all real numbers": r"(-\infty,\infty)"}
_SAME_WORDS = {"dne": "does not exist", "doesn't exist": "does not exist"}
_BECAUSE = re.compile(
    r",?\s+(?:because|since|as|which|where|when|for a total|in total|so that)\b"
    r"|,\s+I\s+(?:think|believe|guess|suppose)\b"
    r"|(?:,|\s(?:and|et|und)|(?<=[\d)}$%]))\s+(?:not|non|pas|nicht)\b|，?而?不是|\s[-–—]{1,2}\s(?=[a-z]{3})"
)
_BARE_NUMBER = re.compile(r"[-+]?[$€£]?\d[\d.,/]*%?")
_HENCE = re.compile(r",?\s+(?:so|hence|thus|therefore)\s+(?=[A-Za-z]\s?=)")
_TURNING = re.compile(
    r"\b(?:not|no|neither|never|minus|negative|half|if|between|or|than|either|maybe|twice|at least|at most|up to|over"
    r"|under|below|above|hardly|anything|step|squared?\sof|cubed?\sof|root|logarithm|inverse|reciprocal"
    r"|weniger|mehr|höchstens|mindestens|doppelte|hälfte|menor|mayor|menos|más|doble|mitad|moins|inférieure?|supérieure?"
    r"|double|moitié)\b|n['’]t\b|[不没非無倍]|[小大少多]于|超过|一半|ない|ません|아니",
    re.I,
)
_LIMITING = re.compile(
    r"\b(?:for|in|per|out of|on|at|when|after|with|from|by(?!\s+\d)|each|every|of)\b|\(", re.IGNORECASE
)
_SHORT = "is it so of an to we in by if as at on no be do am he me my or the and for are not per was you"
_SHORT_WORDS = frozenset(_SHORT.split())
_PIECE = re.compile(
    r"\\begin\{[a-z]+\}|\\end\{[a-z]+\}|\\mathbb\s?\{[A-Z]\}|\\[A-Za-z]+|\\."
    r"|[A-Za-zÀ-ɏ]+(?:['’-][A-Za-zÀ-ɏ]+)*|\s+|[€£¥₹¢$%°]|."
)
_WORD_ANSWER = re.compile(r"[A-Za-zÀ-ɏ][A-Za-zÀ-ɏ'’.-]*(?: [A-Za-zÀ-ɏ][A-Za-zÀ-ɏ'’.-]*){0,2}")
_CLOCK = re.compile(
    r"(\d{1,2})(?::([0-5]\d)(?::[0-5]\d)?\s*(?:([ap])\.?\s?m\.?|o['’]clock)?|\s*(?:([ap])\.?\s?m\.?|o['’]clock))", re.I
)
_RATIO_NAMES = re.compile(r"[A-Za-z]\w{0,5}(?:_\{?\w+\}?)?(?:\s?:\s?[A-Za-z]\w{0,5}(?:_\{?\w+\}?)?)+\s?=\s?")
_RATIO_TERM = r"\d{1,30}(?:\.\d{1,30})?(?:/[1-9]\d{0,29})?"
_RATIO = re.compile(rf"({_RATIO_TERM})((?:\s*(?::|\bto\b)\s*{_RATIO_TERM})+)")
_BASE = re.compile(
    r"\(?([0-9A-F]{1,80})\)?\s*(?:_\s*\{?\s*(?:\\text\{\s*)?\(?(\d{1,2}|two|three|five|eight|ten|sixteen)\)?\s*\}?\}?"
    r"|\(?\s*(?:in )?base[- ]?(\d{1,2}|two|three|five|eight|ten|sixteen)\s*\)?)",
    re.IGNORECASE,
)


def expression(text: str, *, decimal_comma: bool = False) -> Expression | None:
    """What ``text``, the text of an answer, is as a whole; ``None`` if it is neither one formula nor a few words.

    ``decimal_comma`` reads ``3,14`` as one number and not as two.
    """
    text = core(text)
    if not text:
        return None
    if special := _special(text):
        return special
    if said := _in_words(text):
        return said
    if _WORD_ANSWER.fullmatch(text) and _is_words(text):
        words = plain_words(text)
        return Expression(parts=(), words=_SAME_WORDS.get(words, words))
    formula, rest = _split(text)
    if rest:
        found = _formula_in_prose(text)
        if found is None:
            return None
        formula, rest = found
        if special := _special(f"{formula} {rest}".strip()):
            return special
        if ":" in formula:
            return None
    return quantity(formula, rest, decimal_comma)


def _in_words(text: str) -> Expression | None:
    """A number in words, maybe with a unit, or a set that has a name."""
    number = number_in_words(text)
    if number is not None:
        return Expression(parts=(str(number),))
    if named := _SETS_IN_WORDS.get(plain_words(text)):
        return Expression(parts=(named,))
    head, _, unit = text.strip().rpartition(" ")
    number = number_in_words(head) if head and number_in_words(unit) is None else None
    if number is None:
        return None
    if unit.lower() in ("percent", "%"):
        return Expression(parts=(str(number),), percent=True)
    return Expression(parts=(str(number),), unit=read_unit(" " + unit) or "") if read_unit(" " + unit) else None


def core(text: str) -> str:
    """The inner text of the answer: out of its box and its statement, marks removed."""
    if len(text) > MAX_CHARACTERS:
        return ""
    text = well_escaped(text)
    for _ in range(4):
        before = text
        text = tidy(text)
        if "\\text" in text and "box" not in text:
            text = tidy(without_text_commands(text))
        inner = boxed_answer(text)
        if inner is not None:
            text = inner
        elif (said := stated(text)) is not None:
            text = said
        if text == before:
            break
    text = bare(text)
    if RETRACTED.search(text):
        return ""
    for _ in range(4):
        match = _LEAD.match(text)
        if match is None or match.end() == len(text):
            break
        text = tidy(text[match.end() :])
    lines = [tidy(line) for line in text.split("\n") if line.strip()] if "\\begin" not in text else [text]
    if len(lines) > 1 and all(map(_BARE_NUMBER.fullmatch, lines)):
        # One under the other, none of them is the answer.
        text = ", ".join(dict.fromkeys(lines))
    elif len(lines) > 1:
        plain = [line for line in (lines[-1], lines[0]) if not _split(line)[1]]
        text = plain[0] if plain else lines[-1]
    text = tidy(_HENCE.split(_BECAUSE.split(text)[0])[-1]) if text else ""
    for pattern, sign in _SAID:
        text = pattern.sub(sign, text)
    if re.search(f"[{_EAST}]", text) and not _TURNING.search(text):
        text = tidy(_EAST_AROUND.sub("", tidy(_EAST_AROUND.sub("", text))))
    return _without_check(text)


def _without_check(text: str) -> str:
    """``18`` of ``18 (9 × 2)``: what is in brackets after a number, if it has that value."""
    match = re.fullmatch(r"([-\d.,/]+)\s+[(\[]([^()\[\]]{1,80})[)\]]", text)
    if match is None:
        return text
    one, other = (value_of(latex(side)) for side in match.groups())
    return match[1] if one is not None and one == other else text


def bare(text: str) -> str:
    """``text`` without Markdown, HTML, marks of style, formula signs and final punctuation."""
    return tidy(_dollars(unwrapped(tidy(text))).replace("\\$", "$"))


def _dollars(text: str) -> str:
    r"""``text`` without the signs of formulas within it; those of amounts of money stay."""
    text = re.sub(r"\\\[|\\\]|\\\(|\\\)", " ", text)

    def content(match: re.Match[str]) -> str:
        inner = match[1].strip()
        keep = not inner or inner[-1] in "-+/*=(," or inner.endswith("\\") or _split(inner)[1]
        return match.group() if keep else inner

    return re.sub(r"(?<!\\)\${1,2}([^$]+?)(?<!\\)\${1,2}", content, text)


def plain_words(text: str) -> str:
    """Words in the form in which they are compared: small letters, no article, no final mark."""
    bare = " ".join(text.casefold().replace("’", "'").split()).strip(".,;:! ")
    bare = re.sub(r"\bsolutions\b", "solution", bare)
    return re.sub(r"^(?:an?|the|on|in|at|it is|it's|is)\s+", "", bare)


def _is_words(text: str) -> bool:
    """Whether a text of letters is words and no product of variables or function."""
    words = re.findall(r"[A-Za-zÀ-ɏ]+", text)
    if any(word in FUNCTIONS or word in NAMES for word in words) or "" in words:
        return False
    return any(len(word) >= 3 or word.lower() in _SHORT_WORDS for word in words)


def _special(text: str) -> Expression | None:
    """A time of day, a ratio or a numeral of a base: what a grammar of formulas would read as something else."""
    if match := _CLOCK.fullmatch(text):
        half = (match[3] or match[4] or "").lower()
        return Expression(parts=(f"clock {int(match[1])}:{match[2] or '00'}",), unit=f"{half}m" if half else "")
    names = _RATIO_NAMES.match(text)
    if match := _RATIO.fullmatch(text[names.end() :] if names else text):
        numbers = [match[1], *re.findall(_RATIO_TERM, match[2])]
        return Expression(parts=("ratio " + ":".join(numbers),))
    if match := _BASE.fullmatch(text):
        base = (match[2] or match[3]).lower()
        named = {"two": "2", "three": "3", "five": "5", "eight": "8", "ten": "10", "sixteen": "16"}
        return Expression(parts=(f"base {named.get(base, base)}: {match[1].upper().lstrip('0') or '0'}",))
    return None


def _split(text: str) -> tuple[str, str]:
    """The formula at the start of ``text``, and what follows it from the first word on."""
    depth, balanced, at = 0, 0, 0
    last = ""
    for match in _PIECE.finditer(text):
        piece = match.group()
        if (piece[0].isalpha() and len(piece) > 1) or (piece in ("a", "A", "I") and _is_article(text, match)):
            name = piece.split("-")[0]
            known = name in FUNCTIONS or name in NAMES or (name in ("and", "or") and match.start() > 0)
            known = known or (name in ("in", "union") and bool(re.fullmatch(r"[A-Za-z]|[\])}]", last[-1:])))
            # The second unit of g/cm^3; the first is a letter.
            known = known or (last == "/" and name in UNIT_OF)
            attached = (
                bool(re.fullmatch(r"[\d})^_*/+({]", text[match.start() - 1 : match.start()])) and match.start() > 0
            )
            short = len(piece) == 2 and piece.lower() not in _SHORT_WORDS and piece not in UNIT_OF and piece != "sq"
            attached = attached and len(piece) <= 3 and piece not in UNIT_OF and piece.lower() not in _SHORT_WORDS
            # In the braces of a fraction or a root two capitals are a line between two points, NO as well.
            line = depth > 0 and len(piece) == 2 and piece.isupper() and piece not in UNIT_OF
            if not (known or short or attached or line):
                return text[:balanced].strip(), text[balanced:].strip()
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(piece, 0)
        depth += (
            {"\\begin": 1, "\\end": -1}.get(piece.split("{")[0], 0) if piece.startswith(("\\begin", "\\end")) else 0
        )
        at = match.end()
        if depth <= 0:
            balanced = at
        if piece.strip():
            last = piece
    return text.strip(), ""


def _is_article(text: str, match: re.Match[str]) -> bool:
    return re.match(r"[aAI] [A-Za-z]{2,}", text[match.start() :]) is not None and (
        match.start() == 0 or text[match.start() - 1] == " "
    )


def _formula_in_prose(text: str) -> tuple[str, str] | None:
    """The one formula of a sentence or of a quantity, and the words after it; ``None`` if there isn't just one."""
    formula, rest = _split(text)
    if formula in ("", "\\angle") or not re.search(r"[\dA-Za-z\\∞]", formula.rstrip(" (")):
        label = LABEL.match(text)
        if label:
            text = text[label.end() :]
        else:
            verbs = list(_VERB.finditer(text))
            lead = text[: verbs[-1].end()] if verbs else ""
            if re.search(r"\d|\\", lead) and not re.match(r"(?i)the .*\s(?:is|are|equals)\s+$", lead):
                return None
            words = _WORDS_BEFORE.match(text, len(lead))
            end = words.end() if words else len(lead)
            if _TURNING.search(text[:end]):
                return None
            text = tidy(text[end:])
            while match := _LEAD.match(text):
                text = tidy(text[match.end() :])
        if not text:
            return None
        formula, rest = _split(text)
        if not formula:
            return None
    joined = re.search(r"[-+*/^=<>\\]$|\b(?:and|or)$", formula)
    if joined:
        return None
    formula = without_end(formula.rstrip(" (,;:"))
    if not rest:
        return formula, ""
    rest = re.sub(r"(?<=[A-Za-z])\s?(?:\\cdot|\*)\s?(?=[A-Za-z])", " ", rest)
    if " than" not in rest:
        rest = re.sub(r"^(?:more|extra|additional|other)\s+", "", rest)
    limit = _LIMITING.search(rest)
    number = re.search(r"\d|\\(?:frac|sqrt|pi)", re.sub(POWER_OF_UNIT, "  ", rest))
    if number and (limit is None or limit.start() > number.start()):
        return None
    before = rest[: limit.start()] if limit else rest
    if re.search(r"[=^+*<>\\]", re.sub(POWER_OF_UNIT, "", before)) or (re.search(r"[.!?;]\s", rest) and number):
        return None
    if (
        read_unit(" " + " ".join(before.split()[:1]).strip(".,;:!")) is None
        and not scale_word(before)
        and before.strip()
    ):
        return None
    return formula, rest
