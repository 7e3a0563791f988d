r"""An answer without what surrounds it: Markdown, HTML, punctuation, words, units, separators, Unicode signs.

``tidy`` takes off what no answer of any kind means; ``expression`` reads what is left as mathematics, as a whole or not
at all. Parsing algebra is left to math-verify.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass

from drift.verifiers.reading import boxed_answer, stated
from drift.verifiers.units import UNIT_OF, read_unit

_HTML = re.compile(
    r"</?(?:b|i|em|strong|p|br|span|div|code|pre|u|mark|small|font|center|h[1-6]|li|ul|ol|td|tr|table|math)\b[^<>]{0,80}>"
    r"|</?(?:final_)?answer>",
    re.I,
)
_RAISED_HTML = re.compile(r"<(sup|sub)>([^<>]{1,40})</\1>", re.IGNORECASE)
# A longer text is no answer.
MAX_CHARACTERS = 4_000
_WRAPPERS = (
    ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("```", "```"), ("`", "`"), ("***", "***"), ("**", "**"),
    ("__", "__"), ("*", "*"), ("_", "_"), ("~~", "~~"),
    *((mark, other) for mark, other in ('""', "''", "“”", "‘’", "«»", "„“")),
)  # fmt: skip
_STYLE = re.compile(
    r"\\(?:mathbf|textbf|mathit|textit|mathsf|mathtt|texttt|mathrm|rm|bm|boldsymbol|underline|emph|displaystyle|textstyle"
    r"|large|Large|bf|it|mathnormal|fbox|boxed|textsf|textrm|operatorname|mbox|hbox|ensuremath|color\{[a-z]+\})(?![A-Za-z])\s*"
)
_HEADING = re.compile(r"(?:#{1,6}|>|•|=>|->|→|⇒|✅|⟹|∴)\s+|\\(?:therefore|implies|Rightarrow)\s+")
_HALF_OF_DAY = re.compile(r"\b[ap]\.\s?m\.$")
_FACTORIAL = re.compile(r"[\d)}\]a-zA-Z]!$")
_END = ".,;:?…。，；、"


def tidy(text: str) -> str:
    """``text`` without HTML, Markdown marks, formula signs, quotes and final punctuation around it."""
    if "&" in text or "<" in text:
        text = _HTML.sub(" ", html.unescape(text))
        text = _RAISED_HTML.sub(lambda m: ("^" if m[1].lower() == "sup" else "_") + "{" + m[2] + "}", text)
    text = text.strip()
    for _ in range(12):
        before = text
        if match := _HEADING.match(text):
            text = text[match.end() :]
        text = _without_end(text)
        for left, right in _WRAPPERS:
            inner = text[len(left) : len(text) - len(right)]
            if len(text) > len(left + right) and text.startswith(left) and text.endswith(right) and inner.strip():
                again = re.search(r"(?<!\\)\$", inner) if left == "$" else left in inner
                if again or (left == "$" and inner.endswith("\\")) or (left == "_" and "_" in inner):
                    continue
                text = re.sub(r"^[a-z]{1,12}\n", "", inner) if left == "```" else inner
                break
        text = text.strip().strip("*`").strip()
        if text == before:
            return text
    return text


def _without_end(text: str) -> str:
    """``text`` without the punctuation of the sentence that it ends."""
    for _ in range(6):
        before = text
        text = text.rstrip()
        if text.endswith(("\\,", "\\;", "\\!", "\\:", "\\ ")) or text.endswith("\\\\"):
            text = text[:-2]
        mark = len(text) > 1 and text[-1] in _END and not _HALF_OF_DAY.search(text)
        if mark or (text.endswith("!") and not _FACTORIAL.search(text)):
            text = text[:-1]
        if text == before:
            break
    return text


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


_SIGNS = {
    "−": "-", "–": "-", "—": "-", "﹣": "-", "‐": "-", "‑": "-", "×": r" \times ", "✕": r" \times ", "·": r" \cdot ",
    "⋅": r" \cdot ", "∙": r" \cdot ", "÷": " / ", "⁄": "/", "∕": "/", "∗": "*", "≤": r" \leq ", "≥": r" \geq ",
    "⩽": r" \leq ", "⩾": r" \geq ", "≠": r" \ne ", "∈": r" \in ", "∪": r" \cup ", "∩": r" \cap ", "∅": r" \emptyset ",
    "ø": r" \emptyset ", "∖": r" \setminus ", "ℝ": r" \mathbb{R} ", "ℤ": r" \mathbb{Z} ", "ℕ": r" \mathbb{N} ",
    "ℚ": r" \mathbb{Q} ", "ℂ": r" \mathbb{C} ", "±": r" \pm ", "∓": r" \mp ", "∞": r" \infty ", "≈": r" \approx ",
    "≅": r" \approx ", "∼": "~", "π": r" \pi ", "∠": r" \angle ", "′": "'", "º": "°", "˚": "°", "，": ", ", "∶": ":",
    "√": r"\sqrt", "∛": r"\sqrt[3]", "↔": " ", "。": ".", "\u2061": "", "\u200b": "", "\ufeff": "", "\u2062": "",
    "ⅈ": "i", "ⅇ": "e", "ⅰ": "i",
}  # fmt: skip
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Delta Gamma Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
_GREEK = dict(zip("αβγδεζηθικλμνξρστυφχψωΔΓΘΛΞΠΣΦΨΩ", _GREEK_NAMES.split(), strict=True))
_TRANSLATED = str.maketrans(_SIGNS | {letter: f" \\{name} " for letter, name in _GREEK.items()})
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿⁱ⁽⁾ˣ"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉₋₊ₙ"
_POSITIONED = str.maketrans(_RAISED + _LOWERED, "0123456789-+ni()x" + "0123456789-+n")
_VULGAR = re.compile("(?:(?P<whole>[0-9]+) ?)?(?P<part>[¼½¾⅐-⅞↉])")


def plain_signs(text: str) -> str:
    """``text`` with typographic signs, raised and lowered digits and full-width characters in LaTeX's spelling."""
    if text.isascii():
        return text

    def fraction(match: re.Match[str]) -> str:
        above, below = unicodedata.normalize("NFKC", match["part"]).split("\u2044")
        spelled = rf"\frac{{{above}}}{{{below}}}"
        return f"({match['whole']}+{spelled})" if match["whole"] else spelled

    text = _VULGAR.sub(fraction, text)
    text = re.sub(f"[{_RAISED}]+", lambda run: "^{" + run.group().translate(_POSITIONED) + "}", text)
    text = re.sub(f"[{_LOWERED}]+", lambda run: "_{" + run.group().translate(_POSITIONED) + "}", text)
    wide = ("<wide>", "<narrow>", "<font>", "<noBreak>")
    text = text.translate(_TRANSLATED)
    return "".join(
        unicodedata.normalize("NFKC", one) if unicodedata.decomposition(one).startswith(wide) else one for one in text
    ).translate(_TRANSLATED)


_FUNCTION_NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp sqrt det max min gcd lcm mod"
)
_FUNCTIONS = _FUNCTION_NAMES.split()
_NAMES = {"pi": r"\pi", "infinity": r"\infty", "inf": r"\infty", "oo": r"\infty", "Infinity": r"\infty"} | {
    name: f"\\{name}" for name in ("theta", "alpha", "beta", "gamma", "lambda", "mu", "phi", "omega", "sigma", "rho")
}
_PLAIN_NAME = re.compile(rf"(?<![A-Za-z\\])(?:{'|'.join(_NAMES)})(?![A-Za-z])")
_PLAIN_FUNCTION = re.compile(rf"(?<![A-Za-z\\])(?:{'|'.join(_FUNCTIONS)})(?![A-Za-z])")
_TEXT_COMMAND = re.compile(r"\\(?:text|mbox|hbox|textrm|textnormal)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_SPACING = re.compile(r"\\[,;:> ]|\\(?:quad|qquad|enspace|thinspace)(?![A-Za-z])|~(?=\S)|[\u00a0\u2009\u202f]")
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|limits|nolimits|displaystyle|textstyle|!)(?![a-zA-Z])\.?|\\!")
_REWRITTEN = (
    (re.compile(r"\\(?:dfrac|tfrac|cfrac)(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac\s*\{[^{}]*\})\s*(\d)(?!\d)"), r"\1{\2}"),
    (re.compile(r"\\sqrt\s*(\d+|[a-z](?![a-zA-Z]))"), r"\\sqrt{\1}"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?:s)?(?![a-z])|\\circ(?![a-z])"), "°"),
    (re.compile(r"\\varnothing(?![a-z])|\\O(?![a-z])|\\\{\s*\\\}|\{\s*\}(?=$)"), r"\\emptyset"),
    (re.compile(r"\\(?:le|leqslant)(?![a-zA-Z])|<="), r"\\leq "),
    (re.compile(r"\\(?:ge|geqslant)(?![a-zA-Z])|>="), r"\\geq "),
    (re.compile(r"\\lt(?![a-z])"), "<"),
    (re.compile(r"\\gt(?![a-z])"), ">"),
    (re.compile(r"\\neq(?![a-z])|!="), r"\\ne "),
    (re.compile(r"\+\s?/\s?-"), r"\\pm "),
    (
        re.compile(r"\\(?:cup|bigcup)(?![a-z])|(?<=[\])])\s*U\s*(?=[\[(])|(?<=[\])}])\s+(?:union)\s+(?=[\[({])"),
        r"\\cup ",
    ),
    (re.compile(r"(?<![A-Za-z\\])([A-Za-z])\s+in\s+(?=[\[({\\])"), r"\1 \\in "),
    (re.compile(r"\\([%$#&])"), r"\1"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<![A-Za-z\\])([nN])?C\((\w+), ?(\w+)\)"), r"\\binom{\2}{\3}"),
    (re.compile(r"\\operatorname\s*\{([a-z]+)\}"), r"\\\1 "),
    (re.compile(r"\\(?:simeq|approxeq|cong|doteq)(?![a-z])|(?<=[\w)])\s*~=\s*"), r"\\approx "),
)


_INLINE_MARKS = re.compile(r"(?<![\w)*])\*\*([^*\n]+)\*\*(?![\w(*])|(?<![\w)`])`([^`\n]+)`(?!\w)")


def _unwrapped(text: str) -> str:
    """``text`` without marks of style, spacing and size; texts within a formula stand as words."""
    text = plain_signs(text)
    text = _TEXT_COMMAND.sub(lambda match: f" {match[1]} ", text)
    text = _SIZES.sub("", text)
    text = _SPACING.sub(" ", text)
    text = re.sub(r"\\operatorname\s*\{([a-z]+)\}", r"\\\1 ", text)
    text = _INLINE_MARKS.sub(lambda match: match[1] or match[2], text)
    text = re.sub(r"\s+\^", "^", text.replace("\\%", "%").replace("{,}", ","))
    return _without_style(text)


def _without_style(text: str) -> str:
    """Marks of style go; what they held stays, in brackets where it is more than one sign."""
    for _ in range(20):
        match = re.search(_STYLE.pattern + r"\{", text)
        if match is None:
            return _STYLE.sub(" ", text) if re.search(_STYLE, text) else text
        depth, at = 1, match.end()
        while at < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if depth:
            return text
        inner = text[match.end() : at - 1]
        rest = text[: match.start()].strip() + text[at:].strip()
        simple = not rest or "\\begin" in inner or re.fullmatch(r"\s*[\w.,\s]*|\\?\w+|[A-Za-z' -]+", inner)
        text = text[: match.start()] + (inner if simple else f"({inner})") + text[at:]
    return text


def latex(text: str) -> str:
    r"""One formula, in plain or LaTeX spelling, in the LaTeX that math-verify's grammar reads."""
    text = " ".join(text.split())
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\*\*", "^", text)
    text = _bracketed_arguments(text)
    text = _PLAIN_NAME.sub(lambda match: _NAMES[match.group()] + " ", text)
    text = _PLAIN_FUNCTION.sub(lambda match: f"\\{match.group()} ", text)
    text = re.sub(r"\^\s*(-?\d[\d.]*)", r"^{\1}", text)
    text = re.sub(r"\^\s*\(([^()]*)\)", r"^{(\1)}", text)
    text = re.sub(r"_\s*(\d{2,})", r"_{\1}", text)
    text = re.sub(r"(?<![\w.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,4})(?!\w)", r"\1 \\times 10^{\2}", text)
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=10\s*\^|\d)", r" \\times ", text)
    text = re.sub(r"(?<![\w.}^/])(\d{1,18})\s*(?:\\ )?\\frac\{(\d{1,18})\}\{(\d{1,18})\}", r"(\1+\\frac{\2}{\3})", text)
    text = re.sub(r"(?<![\w.}^/])(\d{1,18}) +(?:and +)?(\d{1,18}) ?/ ?(\d{1,18})(?!\d)", r"(\1+\\frac{\2}{\3})", text)
    text = re.sub(r"(?<![\w.}^/\\)])(\d{1,40})\s?/\s?(\d{1,40})(?!\s?[\d./!^{]|[A-Za-z(])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<![\d.])[1-9]\d{0,2}(?: \d{3})+(?![\d/])(?! \d)", lambda m: m.group().replace(" ", ""), text)
    text = re.sub(r"(?<=[0-9A-Za-z)}])\s*\*\s*(?=\S)", r" \\cdot ", text)
    text = re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)
    text = re.sub(r"(\d)\.(?!\d)", r"\1", text)
    text = re.sub(r"(?<=[(\[,])\s*\+\s*(?=\\infty)", " ", text)
    text = re.sub(r"^\+\s*", "", text.strip())
    matrix = re.fullmatch(r"\[\s*(\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])*)\s*\]", text)
    if matrix:
        rows = re.findall(r"\[([^\[\]]*)\]", matrix[1])
        text = r"\begin{pmatrix}" + r"\\".join(row.replace(",", "&") for row in rows) + r"\end{pmatrix}"
    return " ".join(text.split())


def _bracketed_arguments(text: str) -> str:
    r"""``sqrt(x)`` and ``\sqrt(x)`` as ``\sqrt{x}``, also within one another."""
    for _ in range(20):
        match = re.search(r"(?:\\|(?<![A-Za-z\\]))sqrt(\[\d\])?\s*\(", text)
        if match is None:
            break
        depth, at = 1, match.end()
        while at < len(text) and depth:
            depth += {"(": 1, ")": -1}.get(text[at], 0)
            at += 1
        if depth:
            break
        text = rf"{text[: match.start()]}\sqrt{match[1] or ''}{{{text[match.end() : at - 1]}}}{text[at:]}"
    return re.sub(r"(?<![A-Za-z\\])sqrt\s?(\d+|[a-z](?![a-z]))", r"\\sqrt{\1}", text)


_ONE_NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_ONES = _ONE_NAMES.split()
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL = {word: at for at, word in enumerate(_ONES)} | {word: 20 + 10 * at for at, word in enumerate(_TENS)}
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}


def number_in_words(text: str) -> int | None:
    """The whole number that English words spell, as in "two hundred and five"; ``None`` if they spell none."""
    words = [word for word in re.split(r"[\s-]+", text.lower().strip()) if word and word != "and"]
    negative = bool(words) and words[0] in ("minus", "negative")
    words = words[1:] if negative else words
    if not words or len(words) > 20 or any(word not in _SMALL and word not in _SCALES for word in words):
        return None
    total = group = 0
    last = 10**3
    for word in words:
        if word in _SMALL:
            value = _SMALL[word]
            if value >= last:
                return None
            group, last = group + value, (10 if value >= 20 else 0)
        elif word in ("hundred", "dozen"):
            group, last = max(group, 1) * _SCALES[word], 100
        else:
            total, group, last = total + max(group, 1) * _SCALES[word], 0, 10**3
    return -(total + group) if negative else total + group


_LEAD = re.compile(
    r"(?:(?:the |my |your |our )?(?:final |correct |right |exact )?(?:answer|result|solution|value|ans)|a)"
    r"\s*(?::|=>|=|->|→)\s*"
    r"|(?:approximately|about|roughly|around|circa|approx\.?|nearly|almost|exactly|equals?|is|are|just|only|ca\.)\s+"
    r"|(?:~|\\sim(?![a-z])|\\approx(?![a-z])|≈|=)\s*",
    re.IGNORECASE,
)
_VERB = re.compile(
    r"(?:^|.*?\s)(?:is|are|equals|equal to|be|was|were|measures|costs|gives|get|have|has)\s+", re.IGNORECASE
)
_WORDS_BEFORE = re.compile(r"(?:(?:[A-Za-z][a-z'’-]+|[AaI])[,:]?\s+)+")
_BECAUSE = re.compile(
    r",?\s+(?:because|since|as|which|where|when|for a total|in total|so that|not)\b|\s[-–—]{1,2}\s(?=[a-z]{3})"
)
_TURNING = re.compile(
    r"\b(?:not|no|neither|never|minus|negative|half|if|between|or|than|either|maybe|twice)\b|n['’]t\b", re.I
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
    r"\\begin\{[a-z]+\}|\\end\{[a-z]+\}|\\mathbb\s?\{[A-Z]\}|\\[A-Za-z]+|\\.|[A-Za-z]+(?:['’-][A-Za-z]+)*|\s+|[€£¥₹¢$%°]|."
)
_MONEY = {"$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹", "¢": "¢", "US$": "$", "USD": "$"}
_WORD_ANSWER = re.compile(r"[A-Za-zÀ-ɏ][A-Za-zÀ-ɏ'’.-]*(?: [A-Za-zÀ-ɏ][A-Za-zÀ-ɏ'’.-]*){0,2}")
_CLOCK = re.compile(r"(\d{1,2}):([0-5]\d)(?::[0-5]\d)?\s*(?:([ap])\.?\s?m\.?|o'clock)?", re.IGNORECASE)
_RATIO = re.compile(r"(\d+(?:\.\d+)?)((?:\s*(?::|\bto\b)\s*\d+(?:\.\d+)?)+)")
_BASE = re.compile(
    r"([0-9A-F]{1,80})\s*(?:_\s*\{?\s*(?:\\text\{\s*)?(\d{1,2}|two|three|five|eight|ten|sixteen)\s*\}?\}?"
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
    words = number_in_words(text)
    if words is not None:
        return Expression(parts=(str(words),))
    if _WORD_ANSWER.fullmatch(text) and _is_words(text):
        return Expression(parts=(), words=plain_words(text))
    formula, rest = _split(text)
    if rest:
        found = _formula_in_prose(text)
        if found is None:
            return None
        formula, rest = found
    return _quantity(formula, rest, decimal_comma)


def core(text: str) -> str:
    """The inner text of the answer: out of its box and its statement, marks removed."""
    if len(text) > MAX_CHARACTERS:
        return ""
    for _ in range(4):
        before = text
        text = tidy(text)
        if "\\text" in text and "box" not in text:
            text = tidy(_TEXT_COMMAND.sub(lambda match: f" {match[1]} ", text))
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
    return tidy(_BECAUSE.split(text)[0]) if text else ""


def bare(text: str) -> str:
    """``text`` without Markdown, HTML, marks of style, formula signs and final punctuation."""
    return tidy(_dollars(_unwrapped(tidy(text))).replace("\\$", "$"))


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
    return re.sub(r"^(?:an?|the|it is|it's|is)\s+", "", bare)


def _is_words(text: str) -> bool:
    """Whether a text of letters is words and no product of variables or function."""
    words = re.findall(r"[A-Za-zÀ-ɏ]+", text)
    if any(word in _FUNCTIONS or word in _NAMES for word in words) or "" in words:
        return False
    return any(len(word) >= 3 or word.lower() in _SHORT_WORDS for word in words)


def _special(text: str) -> Expression | None:
    """A time of day, a ratio or a numeral of a base: what a grammar of formulas would read as something else."""
    if match := _CLOCK.fullmatch(text):
        half = (match[3] or "").lower()
        return Expression(parts=(f"clock {int(match[1])}:{match[2]}",), unit=f"{half}m" if half else "")
    if match := _RATIO.fullmatch(text):
        numbers = [match[1], *re.findall(r"\d+(?:\.\d+)?", match[2])]
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
            known = name in _FUNCTIONS or name in _NAMES or (name in ("and", "or") and match.start() > 0)
            known = known or (name in ("in", "union") and bool(re.fullmatch(r"[A-Za-z]|[\])}]", last[-1:])))
            attached = (
                bool(re.fullmatch(r"[\d})^_*/+({]", text[match.start() - 1 : match.start()])) and match.start() > 0
            )
            short = len(piece) == 2 and piece.lower() not in _SHORT_WORDS and piece not in UNIT_OF and piece != "sq"
            if not known and not short and not (attached and len(piece) <= 3 and piece not in UNIT_OF):
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
    if not formula or not re.search(r"[\dA-Za-z\\∞]", formula.rstrip(" (")):
        label = _LABEL.match(text)
        if label:
            text = text[label.end() :]
        else:
            verbs = list(_VERB.finditer(text))
            lead = text[: verbs[-1].end()] if verbs else ""
            if lead and re.search(r"\d|\\", lead):
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
    formula = _without_end(formula.rstrip(" (,;:"))
    if not rest:
        return formula, ""
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
    match = re.match(r"(hundred|thousand|million|billion|trillion|dozen|percent|per cent)\b", rest, re.IGNORECASE)
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
    if name.startswith("per"):
        percent, rest = True, rest[len(name) :].strip()
    elif name:
        scale, rest = _SCALES[name], rest[len(name) :].strip()
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
    membership = re.fullmatch(r"[a-z] \\in (.*)", whole)
    if membership and not membership[1].startswith("\\mathbb"):
        whole = membership[1]
    pieces = _at_top(whole)
    if len(pieces) == 1 and (inner := re.fullmatch(r"\\\{(.*)\\\}|\{(.*)\}", whole)):
        content = inner[1] if inner[1] is not None else inner[2]
        if not re.search(r"[{}|]|\\mid|:", re.sub(r"\\?[a-zA-Z]*\{[^{}]*\}", "", content)):
            pieces = _at_top(content)
    found: list[str] = []
    for piece in pieces:
        for sign in ("+", "-") if r"\pm" in piece or r"\mp" in piece else ("",):
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


_GROUPED = r"[1-9]\d{0,2}(?:,\d{3})+(?!\d)"


def _numerals(text: str, decimal_comma: bool) -> str:
    """``text`` with decimal points and without separators of thousands, where a comma can mean only that."""
    label = re.match(r"[^,\d]*(?:_\{?\d+\}?)?[^,\d]*", text)
    head = label.group() if label else ""
    body = text[len(head) :]
    bracketed = "(" in head or "[" in head or "{" in head
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
