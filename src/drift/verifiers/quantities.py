r"""The values and the unit of a quantity, a list, a set or an interval: what a formula is made of at its top."""

from __future__ import annotations

import re
from dataclasses import dataclass

from drift.verifiers.notation import latex
from drift.verifiers.number_words import SCALES
from drift.verifiers.units import read_unit


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


LABEL = re.compile(
    r"(?:\\?[A-Za-z]{1,10}(?:\s?_\s?\{?\w{1,6}\}?)?'?(?:\s?\(\s?\\?[\w, ]{1,10}\s?\))?|\([a-zA-Z](?:, ?[a-zA-Z]){1,4}\)"
    r"|\\angle\s*[A-Z]{1,3}|(?:[A-Za-z]+ ){0,4}[A-Za-z]+|P\([^()]{1,30}\)|\|?[A-Z]{2,3}\|?)"
    r"\s*(?:=|\\approx|:)\s*(?=[^=])"
)
_MONEY = {"$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹", "¢": "¢", "US$": "$", "USD": "$"}
POWER_OF_UNIT = re.compile(r"(?<=[a-z])\^\{?-?[1-4]\}?")


def scale_word(rest: str) -> str:
    """The word for a power of ten, a dozen or per cent that ``rest`` begins with; empty if there is none."""
    match = re.match(
        r"(hundred|thousand|million|billion|trillion|dozen|lakh|crore|per ?cent|percentage(?: point)?|pct)s?\b",
        rest,
        re.I,
    )
    return match[1].lower() if match else ""


_UNIT = r"[A-Za-zµΩ]{1,3}(?:\s?\^\s?\{?-?\d\}?)?"
_TRAILING_UNIT = re.compile(
    r"(?<=[\d)}])\s*(°\s?[CFK]?|%|[¢€£¥₹$]|元|円|個|个|人|米|km/h|m/s|cm|mm|km|kg|mg|mL|ml|Hz|ft|lb|oz|min|hr)"
    r"(?:\s?\^\s?\{?([1-4])\}?)?$"
    r"|(?<=[\d)}a-z])\s+(m|s|h|g|L|l|N|J|W|V|A|K|C|F|cm|mm|km|kg|mg|mL|ml|ft|in|mi|lb|oz|hr|sq ft)"
    r"(?:\s?\^\s?\{?([1-4])\}?)?$"
    rf"|(?<=[\d)}}a-z])\s+({_UNIT}(?:\s?(?:/|\*|\\cdot)\s?{_UNIT})+)$"
)
_LEADING_MONEY = re.compile(r"([-+]?)\s*(?:US)?([$€£¥₹])\s*(?=[-+\d.\\(])")


def quantity(formula: str, rest: str, decimal_comma: bool) -> Expression | None:
    """A formula and what follows it as values and a unit."""
    unit, percent, scale = "", False, 1
    name = scale_word(rest)
    rest = rest[len(name) :].removeprefix("s ").strip() if name else rest
    if name.startswith("p"):
        percent = True
    elif name:
        scale = SCALES[name]
    if rest:
        limit = re.search(r"\b(?:for|in(?=\s)|out of|on|at|when|after|with|from|by(?!\s+\d)|of)\b|\(|[.,;]", rest)
        unit = read_unit(" " + (rest[: limit.start()] if limit else rest)) or ""
    formula = formula.strip()
    while match := _TRAILING_UNIT.search(formula):
        mark = next(group for group in (match[1], match[3], match[5]) if group)
        if mark == "%":
            percent = True
        else:
            power = match[2] or match[4] or ""
            known = read_unit(" " + mark.replace(" ", "").replace("\\cdot", "*") + power)
            if match[5] and known is None:
                break
            unit = known or mark
        formula = formula[: match.start()].strip()
    if re.fullmatch(r"°?\s*[CF]", unit):
        unit = "°" + unit[-1]
    label = LABEL.match(formula)
    labelled = formula[label.end() :] if label and "," not in label.group() else formula
    if match := _LEADING_MONEY.match(labelled):
        unit = _MONEY[match[2]]
        formula = match[1] + labelled[match.end() :]
        if large := re.search(r"(?<=\d)\s?([kKmMB]|bn)$", formula):
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
    if formula.endswith(", "):
        return ()
    formula = formula.replace("$", "").strip().strip(",; ")
    whole = latex(_numerals(formula, decimal_comma))
    if not whole or _TWO_POINTS.search(formula):
        return ()
    if "," not in whole and ";" not in whole and len(sides := _at_top(whole, "=")) > 2:
        # What the steps begin from and end at; a letter that they begin from is what is found.
        whole = f"{sides[0].strip()} = {sides[-1].strip()}" if re.fullmatch(r"\s*[a-zA-Z]\s*", sides[0]) else sides[-1]
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
    if (
        len(pieces) > 1
        and LABEL.match(pieces[-1])
        and all("=" in each and not LABEL.match(each) for each in pieces[:-1])
    ):
        # Steps: 2x = 18, x = 9.
        pieces = pieces[-1:]
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


def _at_top(text: str, marks: str = ",;") -> list[str]:
    """``text`` divided at the ``marks`` that stand in no brackets; ``<=`` and the like are no marks."""
    pieces, depth, start = [], 0, 0
    for match in re.finditer(rf"\\begin|\\end|\\[{{}}]|[()\[\]{{}}]|(?<![<>!\\])[{marks}]", text):
        sign = (
            match.group().removeprefix("\\") if match.group()[1:] in "{}" and len(match.group()) == 2 else match.group()
        )
        depth += 1 if sign in ("(", "[", "{", "\\begin") else -1 if sign in (")", "]", "}", "\\end") else 0
        if sign in marks and depth == 0:
            pieces.append(text[start : match.start()].strip())
            start = match.end()
    pieces.append(text[start:].strip())
    return [piece for piece in pieces if piece] if len(pieces) > 1 and pieces[-1] == "" else pieces


# Two points in one number, or a list of numbered lines.
_TWO_POINTS = re.compile(r"\d\.\s?\.\d|\d\.\s+\d")
_SUM_AND_RESULT = re.compile(
    r"(?=\D*\d)(?=[^=]*?(?:[\d)}]\s*[-+*/]|\\))(?:[\d\s.,(){}+*/-]|\\(?:times|cdot|div|frac)(?![a-z]))*="
)
_GROUPED = r"[1-9]\d{0,2}(?:,\d{3})+(?!\d)"


def _numerals(text: str, decimal_comma: bool) -> str:
    """``text`` with decimal points and without separators of thousands, where a comma can mean only that."""
    text = re.sub(r"(?<=\d)['’_](?=\d{3}(?!\d))", "", text)
    # No second value of a pair begins so: (3,000).
    text = re.sub(r"^\(([1-9]\d{0,2}(?:,\d{3})*,0\d\d(?:,\d{3})*)\)$", r"\1", text)
    equal = re.match(r"[^=]*(?<![<>!])=(?!.*=)", text)
    label = re.match(r"[^,\d]*", text[equal.end() :] if equal else text)
    head = (equal.group() if equal else "") + (label.group() if label else "")
    body = text[len(head) :]
    opened = re.sub(r"(?<=[a-z])\{", "", head)
    bracketed = any(opened.count(left) > opened.count(right) for left, right in ("()", "[]", "{}"))
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
