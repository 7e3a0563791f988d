r"""What the text of an answer is as mathematics, as a whole or not at all; parsing algebra is left to math-verify."""

from __future__ import annotations

import re
from dataclasses import dataclass

from drift.verifiers.markup import MAX_CHARACTERS, tidy, unwrapped, well_escaped, without_end, without_text_commands
from drift.verifiers.notation import FUNCTIONS, NAMES, latex
from drift.verifiers.number_words import SCALES, number_in_words
from drift.verifiers.reading import boxed_answer, stated
from drift.verifiers.units import UNIT_OF, read_unit
from drift.verifiers.values import value_of


@dataclass(frozen=True, kw_only=True)
class Expression:
    r"""What an answer is, as a whole.

    Attributes:
        parts: the LaTeX of each value; several are a set, as in ``3, 5`` or ``3 \pm 1``.
        unit: its unit, in one spelling per unit; empty if there is none or it is no known one.
        percent: whether it was written in per cent.
        words: the words that the answer is, in lower case, where it is no formula; ``parts`` is empty then.
    """

    parts: tuple[str, ...]
    unit: str = ""
    percent: bool = False
    words: str = ""


_LEAD = re.compile(
    r"(?:(?:the |my |your |our )?(?:final |correct |right |exact )?(?:answer|result|solution|value|ans)|a)"
    r"\s*(?::|=>|=|->|→)\s*"
    r"|(?:approximately|about|roughly|around|circa|approx\.?|nearly|almost|exactly|equals?|is|are|just|only|ca\.)\s+"
    r"|(?:~|\\sim(?![a-z])|\\approx(?![a-z])|≈|=)\s*",
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
    (re.compile(r"^(USD|EUR|GBP|JPY|INR|CHF|CAD|AUD|Rs\.?|kr)\s+(?=[-+]?\d)(.*)$"), r"\2 \1"),
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
    r"|(?:,|\sand|(?<=[\d)}$%]))\s+not\b|\s[-–—]{1,2}\s(?=[a-z]{3})"
)
_TURNING = re.compile(
    r"\b(?:not|no|neither|never|minus|negative|half|if|between|or|than|either|maybe|twice|at least|at most|up to|over"
    r"|under|below|above|step|squared?\sof|cubed?\sof|root|logarithm|inverse|reciprocal)\b|n['’]t\b|[不没非無]|ない|아니",
    re.I,
)
_LIMITING = re.compile(r"\b(?:for|in|per|out of|on|at|when|if|after|with|from|by|each|every|of)\b|\(", re.IGNORECASE)
_LABEL = re.compile(
    r"(?:\\?[A-Za-z]{1,10}(?:\s?_\s?\{?\w{1,6}\}?)?'?(?:\s?\(\s?\\?[\w, ]{1,10}\s?\))?|\([a-zA-Z](?:, ?[a-zA-Z]){1,4}\)"
    r"|\\angle\s*[A-Z]{1,3}|(?:[A-Za-z]+ ){0,4}[A-Za-z]+|P\([^()]{1,30}\)|\|?[A-Z]{2,3}\|?)"
    r"\s*(?:=|\\approx|:)\s*(?=[^=])"
)
_SHORT = "is it so of an to we in by if as at on no be do am he me my or the and for are not per was you"
_SHORT_WORDS = frozenset(_SHORT.split())
_PIECE = re.compile(
    r"\\begin\{[a-z]+\}|\\end\{[a-z]+\}|\\mathbb\s?\{[A-Z]\}|\\[A-Za-z]+|\\."
    r"|[A-Za-zÀ-ɏ]+(?:['’-][A-Za-zÀ-ɏ]+)*|\s+|[€£¥₹¢$%°]|."
)
_MONEY = {"$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹", "¢": "¢", "US$": "$", "USD": "$"}
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
    return _quantity(formula, rest, decimal_comma)


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
    for _ in range(4):
        match = _LEAD.match(text)
        if match is None or match.end() == len(text):
            break
        text = tidy(text[match.end() :])
    lines = [tidy(line) for line in text.split("\n") if line.strip()] if "\\begin" not in text else [text]
    if len(lines) > 1:
        plain = [line for line in (lines[-1], lines[0]) if not _split(line)[1]]
        text = plain[0] if plain else lines[-1]
    text = tidy(_BECAUSE.split(text)[0]) if text else ""
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
            attached = (
                bool(re.fullmatch(r"[\d})^_*/+({]", text[match.start() - 1 : match.start()])) and match.start() > 0
            )
            short = len(piece) == 2 and piece.lower() not in _SHORT_WORDS and piece not in UNIT_OF and piece != "sq"
            attached = attached and len(piece) <= 3 and piece not in UNIT_OF and piece.lower() not in _SHORT_WORDS
            if not known and not short and not attached:
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
        label = _LABEL.match(text)
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
    if " than" not in rest:
        rest = re.sub(r"^(?:more|extra|additional|other)\s+", "", rest)
    limit = _LIMITING.search(rest)
    number = re.search(r"\d|\\(?:frac|sqrt|pi)", re.sub(_POWER_OF_UNIT, "  ", rest))
    if number and (limit is None or limit.start() > number.start()):
        return None
    before = rest[: limit.start()] if limit else rest
    if re.search(r"[=^+*<>\\]", re.sub(_POWER_OF_UNIT, "", before)) or (re.search(r"[.!?;]\s", rest) and number):
        return None
    if read_unit(" " + " ".join(before.split()[:1]).strip(".,;:!")) is None and not _scale(before) and before.strip():
        return None
    return formula, rest


_POWER_OF_UNIT = re.compile(r"(?<=[a-z])\^\{?-?[1-4]\}?")


def _scale(rest: str) -> str:
    match = re.match(
        r"(hundred|thousand|million|billion|trillion|dozen|lakh|crore|per ?cent|percentage(?: point)?|pct)s?\b",
        rest,
        re.I,
    )
    return match[1].lower() if match else ""


_TRAILING_UNIT = re.compile(
    r"(?<=[\d)}])\s*(°\s?[CFK]?|%|[¢€£¥₹$]|元|円|個|个|人|米|km/h|m/s|cm|mm|km|kg|mg|mL|ml|Hz|ft|lb|oz|min|hr)"
    r"(?:\s?\^\s?\{?([1-4])\}?)?$"
    r"|(?<=[\d)}a-z])\s+(m|s|h|g|L|l|N|J|W|V|A|K|C|F|cm|mm|km|kg|mg|mL|ml|ft|in|mi|lb|oz|hr|sq ft)"
    r"(?:\s?\^\s?\{?([1-4])\}?)?$"
    r"|(?<=[\d)}a-z])\s+([A-Za-zµΩ]{1,3}\s?\^?\{?\d?\}?\s?/\s?[a-z]{1,3}(?:\s?\^?\{?\d?\}?))$"
)
_LEADING_MONEY = re.compile(r"([-+]?)\s*(?:US)?([$€£¥₹])\s*(?=[-+\d.\\(])")


def _quantity(formula: str, rest: str, decimal_comma: bool) -> Expression | None:
    """A formula and what follows it as values and a unit."""
    unit, percent, scale = "", False, 1
    name = _scale(rest)
    rest = rest[len(name) :].removeprefix("s ").strip() if name else rest
    if name.startswith("p"):
        percent = True
    elif name:
        scale = SCALES[name]
    if rest:
        limit = re.search(r"\b(?:for|in|out of|on|at|when|if|after|with|from|by|of)\b|\(|[.,;]", rest)
        unit = read_unit(" " + (rest[: limit.start()] if limit else rest)) or ""
    formula = formula.strip()
    while match := _TRAILING_UNIT.search(formula):
        mark = next(group for group in (match[1], match[3], match[5]) if group)
        if mark == "%":
            percent = True
        else:
            power = match[2] or match[4] or ""
            unit = read_unit(" " + mark.replace(" ", "") + power) or mark
        formula = formula[: match.start()].strip()
    if re.fullmatch(r"°?\s*[CF]", unit):
        unit = "°" + unit[-1]
    label = _LABEL.match(formula)
    labelled = formula[label.end() :] if label and "," not in label.group() else formula
    if match := _LEADING_MONEY.match(labelled):
        unit = _MONEY[match[2]]
        formula = match[1] + labelled[match.end() :]
        if large := re.search(r"(?<=\d)\s?([kKMB]|bn)$", formula):
            formula, scale = formula[: large.start()], {"k": 10**3, "m": 10**6}.get(large[1].lower(), 10**9)
    parts = _parts(formula, decimal_comma)
    if not parts:
        return None
    if scale != 1:
        parts = tuple(rf"{part} \times {scale}" for part in parts)
    return Expression(parts=parts, unit=unit, percent=percent)


def _parts(formula: str, decimal_comma: bool) -> tuple[str, ...]:
    """The LaTeX of each value of a formula: of a list or set its members, of a ± both values."""
    formula = re.sub(r"\s*,?\s*\b(?:and|or)\b\s*", ", ", formula) if re.search(r"\b(?:and|or)\b", formula) else formula
    formula = formula.replace("$", "").strip().strip(",; ")
    whole = latex(_numerals(formula, decimal_comma))
    if not whole:
        return ()
    if "," not in whole and ";" not in whole and len(re.findall(r"(?<![<>!\\])=", whole)) > 1:
        whole = whole.rsplit("=", 1)[1].strip()
    membership = re.fullmatch(r"[A-Za-z] ?(?:\\in|=(?= ?\\?\{)) ?(.*)", whole)
    if membership and not membership[1].startswith("\\mathbb"):
        whole = membership[1]
    if turned := re.fullmatch(r"([^=a-zA-Z\\]+)= ?([a-zA-Z])", whole):
        whole = f"{turned[2]} = {turned[1]}"
    if builder := re.fullmatch(r"\\?\{ ?[a-z] ?(?:\||\\mid|:) ?([^{}|]*)\\?\}", whole):
        whole = builder[1].removesuffix("\\").strip()
    if chain := re.fullmatch(r"([^<>=,]+?)(>|\\geq)([^<>=,]+?)(>|\\geq)([^<>=,]+)", whole):
        less = [{">": "<"}.get(chain[at], r"\leq") for at in (4, 2)]
        whole = f"{chain[5].strip()} {less[0]} {chain[3].strip()} {less[1]} {chain[1].strip()}"
    if interval := re.fullmatch(r"[(\[]([^;,()\[\]]+);([^;,()\[\]]+)[)\]]", whole):
        whole = f"{whole[0]}{interval[1]},{interval[2]}{whole[-1]}"
    pieces = _at_top(whole)
    if all(_SUM_AND_RESULT.match(piece) for piece in pieces):
        # Steps: 16 - 7 = 9, 9 \times 2 = 18.
        pieces = [pieces[-1].rsplit("=", 1)[1].strip()]
    if len(pieces) == 1 and (inner := re.fullmatch(r"\\\{(.*)\\\}|\{(.*)\}", whole)):
        content = inner[1] if inner[1] is not None else inner[2]
        if not re.search(r"[{}|]|\\mid|:", re.sub(r"\\?[a-zA-Z]*\{[^{}]*\}", "", content)):
            pieces = _at_top(content)
    found: list[str] = []
    for piece in pieces:
        for sign in ("+", "-") if re.search(r"\\[pm][pm](?![a-z])", piece) else ("",):
            other = {"+": "-", "-": "+", "": ""}[sign]
            value = piece.replace(r"\pm", sign).replace(r"\mp", other) if sign else piece
            value = re.sub(r"^\+\s*", "", value.strip())
            found.append(value)
    return tuple(found) if all(found) and len(found) <= 200 else ()


def _at_top(text: str) -> list[str]:
    """``text`` divided at the commas and semicolons that stand in no brackets."""
    pieces, depth, start = [], 0, 0
    for match in re.finditer(r"\\begin|\\end|\\[{}]|[()\[\]{},;]", text):
        sign = (
            match.group().removeprefix("\\") if match.group()[1:] in "{}" and len(match.group()) == 2 else match.group()
        )
        depth += 1 if sign in ("(", "[", "{", "\\begin") else -1 if sign in (")", "]", "}", "\\end") else 0
        if sign in (",", ";") and depth == 0:
            pieces.append(text[start : match.start()].strip())
            start = match.end()
    pieces.append(text[start:].strip())
    return [piece for piece in pieces if piece] if len(pieces) > 1 and pieces[-1] == "" else pieces


_SUM_AND_RESULT = re.compile(
    r"[\d\s.,()/-]*\d\s*(?:[-+*/]|\\times|\\cdot|\\div)(?:[\d\s.()+*/-]|\\times|\\cdot|\\div)*="
)
_GROUPED = r"[1-9]\d{0,2}(?:,\d{3})+(?!\d)"


def _numerals(text: str, decimal_comma: bool) -> str:
    """``text`` with decimal points and without separators of thousands, where a comma can mean only that."""
    text = re.sub(r"(?<=\d)['’_](?=\d{3}(?!\d))", "", text)
    equal = re.match(r"[^=]*(?<![<>!])=(?!.*=)", text)
    label = re.match(r"[^,\d]*", text[equal.end() :] if equal else text)
    head = (equal.group() if equal else "") + (label.group() if label else "")
    body = text[len(head) :]
    bracketed = any(head.count(left) > head.count(right) for left, right in ("()", "[]", "{}"))
    if re.fullmatch(r"[1-9]\d{0,2}(?:\.\d{3}){2,}", body) or re.fullmatch(r"[1-9]\d{0,2}(?: \d{3})+,\d+", body):
        return head + body.replace(".", "").replace(" ", "").replace(",", ".")
    if re.fullmatch(r"[1-9]\d{0,2}(?:\.\d{3})+,\d+", body):
        return head + body.replace(".", "").replace(",", ".")
    if (
        decimal_comma
        and not bracketed
        and re.fullmatch(r"0,\d+|\d+,(?:\d{1,2}|\d{4,})", body)
        and not re.search(r"\d$", head)
    ):
        return head + body.replace(",", ".")
    spaced = ", " in text or ";" in text
    if bracketed and not spaced:
        return text
    return re.sub(rf"(?<![\d.,]){_GROUPED}", lambda match: match.group().replace(",", ""), text)
