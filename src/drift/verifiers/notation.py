r"""Formulas in plain, Unicode or LaTeX spelling, put into the one LaTeX spelling that math-verify's grammar reads."""

from __future__ import annotations

import re
import unicodedata

_SIGNS = {
    "−": "-", "–": "-", "—": "-", "﹣": "-", "‐": "-", "‑": "-", "×": r" \times ", "✕": r" \times ", "·": r" \cdot ",
    "⋅": r" \cdot ", "∙": r" \cdot ", "÷": " / ", "⁄": "/", "∕": "/", "∗": "*", "≤": r" \leq ", "≥": r" \geq ",
    "⩽": r" \leq ", "⩾": r" \geq ", "≠": r" \ne ", "∈": r" \in ", "∪": r" \cup ", "∩": r" \cap ", "∅": r" \emptyset ",
    "ø": r" \emptyset ", "Ø": r" \emptyset ", "∖": r" \setminus ",
    "ℝ": r" \mathbb{R} ", "ℤ": r" \mathbb{Z} ", "ℕ": r" \mathbb{N} ",
    "ℚ": r" \mathbb{Q} ", "ℂ": r" \mathbb{C} ", "±": r" \pm ", "∓": r" \mp ", "∞": r" \infty ", "≈": r" \approx ",
    "≅": r" \approx ", "∼": "~", "π": r" \pi ", "∠": r" \angle ", "′": "'", "º": "°", "˚": "°", "，": ", ", 
    "→": r" \to ", "⌊": r" \lfloor ", "⌋": r" \rfloor ", "⌈": r" \lceil ", "⌉": r" \rceil ", "≡": r" \equiv ",
    "∶": ":",
    "√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]",
    "↔": " ", "。": ".", "\u2061": "", "\u200b": "", "\ufeff": "", "\u2062": "",
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
_VULGAR = re.compile("(?:(?<![0-9])(?P<whole>[0-9]{1,18}) ?)?(?P<part>[¼½¾⅐-⅞↉])")


def plain_signs(text: str) -> str:
    """``text`` with typographic signs, raised and lowered digits and full-width characters in LaTeX's spelling."""
    if text.isascii():
        return text

    def fraction(match: re.Match[str]) -> str:
        above, below = unicodedata.normalize("NFKC", match["part"]).split("\u2044")
        spelled = rf"\frac{{{above}}}{{{below}}}"
        return f"({match['whole']}+{spelled})" if match["whole"] else spelled

    text = re.sub("(?<=[０-９])，(?=[０-９]{3})", ",", text)
    text = re.sub("([³⁴])√", lambda match: rf"\sqrt[{match[1].translate(_POSITIONED)}]", text)
    text = _VULGAR.sub(fraction, text)
    text = re.sub(f"[{_RAISED}]+", lambda run: "^{" + run.group().translate(_POSITIONED) + "}", text)
    text = re.sub(f"[{_LOWERED}]+", lambda run: "_{" + run.group().translate(_POSITIONED) + "}", text)
    wide = ("<wide>", "<narrow>", "<font>", "<noBreak>")
    text = text.translate(_TRANSLATED)
    return "".join(
        unicodedata.normalize("NFKC", one) if unicodedata.decomposition(one).startswith(wide) else one for one in text
    ).translate(_TRANSLATED)


_FUNCTION_NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp sqrt det max min gcd lcm mod "
    "abs floor ceil cbrt choose"
)
FUNCTIONS = _FUNCTION_NAMES.split()
NAMES = {
    "pi": r"\pi",
    "Pi": r"\pi",
    "infinity": r"\infty",
    "inf": r"\infty",
    "oo": r"\infty",
    "Infinity": r"\infty",
} | {name: f"\\{name}" for name in ("theta", "alpha", "beta", "gamma", "lambda", "mu", "phi", "omega", "sigma", "rho")}
_PLAIN_NAME = re.compile(rf"(?<![A-Za-z\\])(?:{'|'.join(NAMES)})(?![A-Za-z])")
_PLAIN_FUNCTION = re.compile(rf"(?<![A-Za-z\\])(?:{'|'.join(FUNCTIONS)})(?![A-Za-z])")
_REWRITTEN = (
    (re.compile(r"\\(?:dfrac|tfrac|cfrac)(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\frac\s*([\da-z])\s*(\d|[a-z](?![a-zA-Z]))"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac\s*\{[^{}]*\})\s*(\d)(?!\d)"), r"\1{\2}"),
    (re.compile(r"\\sqrt\s*(\[\w\])?\s*(\d+|[a-z](?![a-zA-Z]))"), r"\\sqrt\1{\2}"),
    (re.compile(r"\\sqrt\s*(\\sqrt\{\w+\})"), r"\\sqrt{\1}"),
    (re.compile(r"\\binom\s*(\d)\s*(\d)"), r"\\binom{\1}{\2}"),
    (re.compile(r"(?<!\d)(\d{1,9}) choose (\d{1,9})"), r"\\binom{\1}{\2}"),
    (re.compile(r"(?<![A-Za-z\\])abs\s?\(([^()]*)\)"), r"|\1|"),
    (re.compile(r"(?<![A-Za-z\\])(floor|ceil)\s?\(([^()]*)\)"), r"\\l\1 \2 \\r\1 "),
    (re.compile(r"(?<![A-Za-z\\])log(2|10)\s?\("), r"\\log_{\1}("),
    (re.compile(r"(?<![A-Za-z\\])cbrt\s?\(([^()]*)\)"), r"\\sqrt[3]{\1}"),
    (re.compile(r"(\\?(?<![A-Za-z])(?:sin|cos|tan)\s*[{(]{0,2}\s*)(\d+(?:\.\d+)?)\s*°"), r"\1\\frac{\2\\pi}{180}"),
    (re.compile(r"\\begin\{smallmatrix\}(.*)\\end\{smallmatrix\}"), r"\\begin{pmatrix}\1\\end{pmatrix}"),
    (re.compile(r"\\\\\s*(?:\[\d+[a-z]{2}\]|(?=\\end))"), lambda match: r"\\" if match.group()[-1] == "]" else " "),
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
    (re.compile(r"\\(?:simeq|approxeq|cong|doteq)(?![a-z])|(?<=[\w)])\s*~=\s*"), r"\\approx "),
)


_PERIODIC = re.compile(r"(?P<whole>\d{0,20})\.(?P<fixed>\d{0,20})\\(?:overline|bar|dot)\s?\{?(?P<period>\d{1,20})\}?")


def latex(text: str) -> str:
    r"""One formula, in plain or LaTeX spelling, in the LaTeX that math-verify's grammar reads."""
    text = _PERIODIC.sub(_periodic, " ".join(text.split()))
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\*\*", "^", text)
    text = _bracketed_arguments(text)
    text = _PLAIN_NAME.sub(lambda match: NAMES[match.group()] + " ", text)
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


def _periodic(match: re.Match[str]) -> str:
    """A decimal with a period as a fraction."""
    whole, fixed, period = match["whole"] or "0", match["fixed"], match["period"]
    below = (10 ** len(period) - 1) * 10 ** len(fixed)
    return rf"\frac{{{int(whole + fixed + period) - int(whole + fixed)}}}{{{below}}}"


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
