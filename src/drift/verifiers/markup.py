"""A text without what surrounds it: HTML, Markdown, formula signs, quotes, marks of style, final punctuation."""

from __future__ import annotations

import html
import re

from drift.verifiers.notation import plain_signs

_HTML = re.compile(
    r"</?(?:b|i|em|strong|p|br|span|div|code|pre|u|mark|small|font|center|h[1-6]|li|ul|ol|td|tr|table|math)\b[^<>]{0,80}>"
    r"|</?(?:final_)?answer>|</?m(?:ath|row|n|i|o)>|<!--[^<>]{0,80}-->|</s>|<\|[a-z_]{1,30}\|>|<(?:end|eos|pad)>",
    re.I,
)
_HTML_FRACTION = re.compile(r"<sup>(\d{1,9})</sup>\s?[/⁄]\s?<sub>(\d{1,9})</sub>", re.IGNORECASE)
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
    r"|large|Large|bf|it|mathnormal|fbox|boxed|textsf|textrm|operatorname|mbox|hbox|ensuremath|(?:text)?color\{[a-z]+\})(?![A-Za-z])\s*"
)
_HEADING = re.compile(r"(?:#{1,6}|>{1,3}|•|=>|->|→|⇒|⟹|∴)\s+|\\(?:therefore|implies|Rightarrow)\s+")
_HALF_OF_DAY = re.compile(r"\b[ap]\.\s?m\.$")
# Ticks, squares and faces after an answer, or before one.
_TICKS = r"(?:[✓✔✅☑■□∎★☆•▶►👉🎉🎯😀-🙏\ufe0f]|:-?\)|\\(?:checkmark|square|blacksquare|Box|qed)(?![A-Za-z])|\bQED$)"
_TICKED = re.compile(rf"\s*{_TICKS}\s*$")
_TICK_FIRST = re.compile(rf"{_TICKS}\s*")
_FACTORIAL = re.compile(r"[\d)}\]a-zA-Z]!$")
_END = ".,;:?…。，；、"
_TEXT_COMMAND = re.compile(r"\\(?:text|mbox|hbox|textrm|textnormal)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_SPACING = re.compile(
    r"(?<!\\)\\[,;:> ]|\\q?quad|\\(?:enspace|thinspace)(?![A-Za-z])|(?<=[\w}$)])~(?!=)|[\u00a0\u2009\u202f]"
)
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|limits|nolimits|displaystyle|textstyle|!)(?![a-zA-Z])\.?|\\!")
_CONTROL = re.compile(r"\t(?=imes|ext\{|heta)|\f(?=rac)|\r(?=ight)")
_TWICE = re.compile(r"\\\\(?=[A-Za-z]{2,}|[(){}])")
_INLINE_MARKS = re.compile(
    r"(?<![\w)*])\*\*([^*\n]+)\*\*(?![\w(*])|(?<![\w)`])`([^`\n]+)`(?!\w)"
    r"|(?<![\w)*])(?<!\d\s)\*([A-Za-z]\w{0,9})\*(?![\w(*])|(?<![\w\\)}\]])_([A-Za-z]{1,10})_(?![\w({])"
)
_STRUCK = re.compile(r"~~[^~\n]{1,80}~~(?=\s*\S)")
_TEXT_FRACTION = re.compile(r"\\[dt]?frac\s?\{\\(?:text|mathrm)\{([^{}]*)\}\}\s?\{\\(?:text|mathrm)\{([^{}]*)\}\}")
_NO_CONTENT = re.compile(
    r"\\[hv]space\*?\{[^{}]*\}|\\h?phantom\{[^{}]*\}"
    r"|\\(?:begin|end)\{(?:equation|align|aligned|gather|gathered|math|displaymath|center)\*?\}"
)


def tidy(text: str) -> str:
    """``text`` without HTML, Markdown marks, formula signs, quotes and final punctuation around it."""
    if "&" in text or "<" in text:
        text = _HTML_FRACTION.sub(r"\1/\2", _HTML.sub(" ", html.unescape(text)))
        text = _RAISED_HTML.sub(lambda m: ("^" if m[1].lower() == "sup" else "_") + "{" + m[2] + "}", text)
    text = text.strip()
    for _ in range(12):
        before = text
        if match := _HEADING.match(text) or _TICK_FIRST.match(text):
            text = text[match.end() :]
        text = _TICKED.sub("", text) if not text.isascii() or text.endswith((")", "D")) or "\\" in text else text
        text = without_end(text)
        for left, right in _WRAPPERS:
            inner = text[len(left) : len(text) - len(right)]
            if len(text) > len(left + right) and text.startswith(left) and text.endswith(right) and inner.strip():
                again = re.search(r"(?<!\\)\$", inner) if left == "$" else left in inner
                if again or (left == "$" and inner.endswith("\\")) or (left == "_" and "_" in inner):
                    continue
                text = re.sub(r"^[a-z]{1,12}\n", "", inner) if left == "```" else inner
                break
        text = _STRUCK.sub("", _INLINE_MARKS.sub(_marked, text)).strip().strip("*`").strip()
        if text == before:
            return text
    return text


def without_end(text: str) -> str:
    """``text`` without the punctuation of the sentence that it ends."""
    for _ in range(6):
        before = text
        text = text.rstrip()
        if text.endswith(("\\,", "\\;", "\\!", "\\:", "\\ ")) or text.endswith("\\\\"):
            text = text[:-2]
        mark = len(text) > 1 and text[-1] in _END and not _HALF_OF_DAY.search(text)
        stray = (text.endswith(")") and not re.search(r"[(\[]", text)) or (text.endswith('"') and text.count('"') == 1)
        if stray or mark or (text.endswith("!") and not _FACTORIAL.search(text)):
            text = text[:-1]
        if text == before:
            break
    return text


def well_escaped(text: str) -> str:
    r"""LaTeX whose backslashes were written twice, or taken for control characters, with one backslash each."""
    text = _CONTROL.sub(lambda match: {"\t": r"\t", "\f": r"\f", "\r": r"\r"}[match.group()], text)
    return text if r"\begin" in text else _TWICE.sub(r"\\", text)


def unwrapped(text: str) -> str:
    """``text`` without marks of style, spacing and size; texts within a formula stand as words."""
    text = plain_signs(text)
    text = without_text_commands(text).replace("\\textdollar", "\\$")
    text, cut = _NO_CONTENT.subn(" ", text)
    text = text.replace("&", "") if cut and "\\begin" not in text else text
    text = _SIZES.sub("", re.sub(r",\s?\\!\s?(?=\d)", ",", text))
    text = _SPACING.sub(" ", text)
    text = re.sub(r"\\operatorname\s*\{([a-z]+)\}", r"\\\1 ", text)
    text = _INLINE_MARKS.sub(_marked, text)
    text = re.sub(r"\s+\^", "^", text.replace("\\%", "%").replace("{,}", ","))
    return _without_style(text)


def without_text_commands(text: str) -> str:
    r"""``text`` with what ``\text{…}`` holds as words; a fraction of two such is a unit."""
    return _TEXT_COMMAND.sub(lambda match: f" {match[1]} ", _TEXT_FRACTION.sub(r" \1/\2", text))


def _marked(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group)


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
        simple = not rest or "\\begin" in inner or re.fullmatch(r"\s*[\w.,\s]*|\(\w\)\s*|\\?\w+|[A-Za-z' -]+", inner)
        text = text[: match.start()] + (inner if simple else f"({inner})") + text[at:]
    return text
