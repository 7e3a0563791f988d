"""Multiple choice: which option a reply claims, as distinct from the letters it merely mentions."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drift.errors import require
from drift.verifiers.base import Verification, judged, unparseable
from drift.verifiers.exact import Exact
from drift.verifiers.expressions import bare, expression
from drift.verifiers.reading import (
    INSTEAD,
    NOT_SO,
    RETRACTED,
    boxed_answer,
    in_json,
    in_table,
    sentence,
    spoken,
    tagged,
)
from drift.verifiers.values import Value, value_of

# Only the end of a longer reply is read; a claim stands at the start or the end of a short one.
MAX_CHARACTERS = 20_000
# Of a line's claims; each takes a fraction of a millisecond.
_MOST_CLAIMS = 100
_TEXT = Exact()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Possessive: marks next to marks must not be divided between them in every way there is.
_MARKS = r"[*_`\"'$\s]{0,12}+"
_OPEN = rf"{_MARKS}(?:\\(?:text|textbf|mathrm|mathbf)\s?\{{)?[(\[{{【（]?{_MARKS}"
_CLOSE = rf"{_MARKS}[)\]}}】）]?{_MARKS}"
# What may stand around a letter that is a label; a sign, a question mark or a cross says something else.
_AROUND = " \t\n#>*•\"'`()[]{}.,:;!$_“”‘’。、【】（）✓✔✅☑→➡-"
_LABEL = re.compile(r"(?:the\s)?(?:(?:option|choice|answer|letter|opción)\b[\s:(\[*]{0,4})?([A-Za-z])", re.I)
# "B. Because", "(B) because", "**B** because": a letter set apart by a mark. "A reaction" begins with an article.
_LEADING = re.compile(
    r"\s{0,12}[*_`]{0,3}(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])[*_`]{0,3}[).:]|([A-Z])(?=\s[-–—]\s)|\*\*([A-Za-z])\*\*)(?=\W|$)"
)
_IS = (
    r"(?:\s{1,3}(?:is|to|would\sbe|must\sbe|should\sbe|has\sto\sbe|ist|lautet|est|es|è|é)\b"
    r"|[*_\s]{0,4}(?::|：|=|→|->|=>)|\s{1,2}[-–—](?=\s)|\s{1,2}(?=[*(]{0,3}[A-Z][)*]{0,3}\s{0,2}(?:[.,;!]|$)))"
)
_CLAIM = re.compile(
    r"\b(?:(?:correct|right|best|final|my|the)\s{1,3})?(?:answer|ans|choice|option|guess|result|solution|Antwort|Lösung|réponse|respuesta|opción|correcta|risposta|resposta|ответ|(?<=correct\s)(?:one|letter)|(?<=right\s)(?:one|letter))\.?(?:,\s(?:then|therefore|thus),)?"
    r"(?:\s{1,3}(?:choice|option|letter|correcta|correcte|finale?|richtig))?"
    rf"{_IS}\s{{0,3}}(?:(?:most\slikely|likely|probably|definitely|certainly|therefore|thus|clearly|option|choice|letter|Antwort|la|le|die|der|opción)\b)?:?"
    r"|\b(?:choose|pick|select|go\swith|wähle|nehme|choisis|elijo|escojo)\b(?:\s(?:option|choice|answer|Antwort|opción))?"
    r"|\bI(?:\swould|['’]d)?\s(?:say|guess)\b|\b(?:final|correct)\s?:"
    r"|(?:答案|答え|正解|選択肢|选项|选择|(?<!不)正确的)[应應]?[该該]?[是为為はが]?[：:]?|(?<![不非])(?:[应應][该該]?|故|所以)?[选選]择?[：:]?(?=\s?[(（【]?[A-Z])"
    r"|\bRichtig\s(?:ist|wäre)(?:\s(?:Antwort|Option))?",
    re.IGNORECASE,
)
# Weaker ones, which need a capital letter that ends a clause.
_THUS = re.compile(
    r"(?:\b(?i:so|hence|thus|therefore|then|also|donc|entonces|likely|probably|leaves)[,:]?|[⇒→∴]|=>|->)\s{1,2}(?:it(?:['’]s|\sis|\smust\sbe)\s)?(?:option\s|choice\s)?"
    r"[*(]{0,3}([A-Z])[)*]{0,3}(?=\s{0,2}(?:[.,;!。]|$))"
    r"|\b(?i:wait|no|actually|hmm|sorry|correction|meant|change\sto)[,:.]{0,3}\s{1,2}(?:no,?\s)?[*(]{0,3}([A-Z])[)*]{0,3}"
    r"(?=\s{0,2}(?:[.,;!。]|$))"
    r"|(?<![A-Za-z])([A-Z])[).:]?\s{0,2}[✓✔✅☑]"
    r"|(?<=[,;]\s)([A-Z])\sis(?=\s{0,2}[.!]?\s{0,2}$)|(?<![A-Za-z])([A-Z])\sit\sis\b"
    r"|\b(?:(?i:es\sla)|(?i:it|that|es|c)(?:['’]s|['’]est|\s(?:is|ist|must\sbe|has\sto\sbe|should\sbe|would\sbe)))\s{1,2}(?:option\s|letter\s)?"
    r"[*(]{0,3}([A-Z])[)*]{0,3}(?=\s{0,2}(?:[.,;:!。]|$|because\b|since\b))"
    r"|(?:(?<!thing\s)\bbut|\bsondern|\bsino|\bmais|而是)\s{0,2}(?:option\s|rather\s)?[*(]{0,3}([A-Z])[)*]{0,3}(?=\s{0,2}(?:[.,;!。，]|$))"
    r"|(?<![A-Za-z])([A-Z])\s?(?:是?正确|是对的|が正しい|が正解|ist\s(?:richtig|korrekt)|est\scorrecte?|es\s(?:la\s)?correcta)"
    r"|\b(?:ist|est|es)\s([A-Z])\s(?:richtig|korrekt|correcte?|correcta)\b",
)
_SUPPOSED = re.compile(
    r"\b(?:if|suppose|assume|whether|unless|doubt|wenn|si)\b[^.!?]{0,30}$|\b(?:wrong|incorrect)\s$", re.I
)
_REVISED = re.compile(
    r"\b(?:no|wait|actually|hmm|correction|change|rather|instead|on reflection|on balance|second thought|reconsider"
    r"|meant|sorry)\b",
    re.IGNORECASE,
)
_HEADED = re.compile(
    r"\b(answer|ans|答案|Antwort|respuesta|réponse)"
    r"((?:\sis)?\s{0,2}[:：]?[*_]{0,3}[:：]?[*_]{0,3})[ \t]{0,9}\n\s{0,9}(?:[-•]\s)?(?=\S)",
    re.IGNORECASE,
)
_LETTER_AND_TEXT = re.compile(
    r"(?:(?:option|choice|answer)\s)?[(\[]?([A-Za-z])[)\]]?\s{0,2}(?:[-–—.:),=]|\s|->|\\to\s)\s{0,3}(.{1,300})",
    re.S | re.I,
)
_TEXT_AND_LETTER = re.compile(
    r"(.{1,300}?)\s{0,3}(?:[(\[](?:option\s)?([A-Za-z])[)\]]|(?:,|\s[-–—])\s(?:option\s)?([A-Za-z]))", re.DOTALL
)
_REMARK = re.compile(
    r",?\s(?:because|since|as|which|who|not|rather\sthan|instead\sof|over|although|even\sthough)\b|,\s(?:an?|the)\b|\s?\((?:not|because|since)\b"
)
# Statements in words: "it is a gas", "a gas is the answer".
_IT_IS = re.compile(r"\b(?:it(?:['’]s|\sis|\smust\sbe)|(?:so|hence|thus|therefore),?)\s", re.IGNORECASE)
_IS_ANSWER = re.compile(
    r"(?:^|(?<=[.!?]\s)|\bso\s|\bthus\s|\btherefore,?\s)(?:(?:so|thus|hence|therefore),?\s)?([^.!?]{1,200}?)\s(?:is|are|must\sbe)\s(?:the|my)\s"
    r"(?:(?:correct|right|best|final)\s)?(?:answer|choice|option)\b",
    re.IGNORECASE,
)
_CLAIMED = re.compile(rf"({_OPEN})([A-Za-z])(?![A-Za-z0-9'’])({_CLOSE})")
_IS_RIGHT = re.compile(
    r"(?<![A-Za-z0-9'’])\(?([A-Z])\)?\W{0,3}\s?(?:is|would\sbe|must\sbe)\s(?:(?:therefore|thus|clearly|indeed)\s)?(?:the\s|my\s)?(?:most\s)?"
    r"(?:(?:final|correct|right|best)\s)?(?:correct|right|best|answer|choice)\b(?!\sif\b)"
)
_AND = re.compile(
    r"\s{0,3}(?:,\s{0,2}(?:or|and)\b|,|/|&|\b(?:or|and|oder|und|ou|et|o|y)\b|或|和)\s{0,3}(?:maybe\s|perhaps\s|possibly\s)?(?:option\s|choice\s)?[*(\[]{0,3}([A-Za-z])(?![A-Za-z0-9'’])"
)
_NOT = re.compile(
    r"(?:\bnot|n['’]t|\bneither|\bnor|\brather than|\binstead of)\s{1,3}(?:the\s)?$"
    r"|(?:\bnot|n['’]t)\s(?:really\s)?(?:think|believe|say|agree|sure)\b[^.!?]{0,30}$",
    re.IGNORECASE,
)
_BUT = re.compile(r"\s{0,2}(?:anything|everything|all|any)\s(?:but|except)\b", re.IGNORECASE)
# What may follow a bare capital A or I for it to be a label and not a word.
_GOES_ON = re.compile(
    r"\s+(?:because|since|as|for|due|and|or|which|with|is|not|but)\b|\s*(?:[^\w\s]|[\u3040-\u9fff]|$|\n)", re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Right if the reply claims the gold option.

    A claim is a reply that is a label alone, a label at its start ("B. Because of a reaction" claims B), an option
    named as the answer ("The answer is B"), a last line that is a label, or the text of an option. The last line
    with a claim decides; two different letters claimed in it are unparseable.

    Args:
        letters: the labels of the options, in order.
        options: the options' texts in the same order, where they are the same for every question; else give them
            to ``verify``.
    """

    letters: str = "ABCD"
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        proper = 2 <= len(self.letters) <= 26 and self.letters == LETTERS[: len(self.letters)]
        require(proper, "verifier.settings.letters", self.letters, "the first 2 to 26 letters of the alphabet")
        count = len(self.options)
        require(count in (0, len(self.letters)), "verifier.settings.options", count, f"{len(self.letters)} texts")

    def verify(self, reply: str, gold: str, *, options: Sequence[str] = ()) -> Verification:
        """Check ``reply`` against ``gold``, a letter as in ``C`` or ``(c)``; ``options`` are this question's texts."""
        texts = tuple(options) or self.options
        letters = LETTERS[: len(texts)] if texts else self.letters
        require(len(texts) <= 26, "options", len(texts), "at most 26 texts")
        expected = _label(gold, letters)
        require(expected is not None, "gold", gold[:80], f"one of the letters {letters}")
        claimed = self.read(reply, letters, texts)
        if not claimed:
            return unparseable("no option named")
        if len(claimed) > 1:
            return unparseable(f"several options named: {', '.join(sorted(claimed))}")
        (answer,) = claimed
        return judged(answer == expected, answer)

    async def verify_async(self, reply: str, gold: str, *, options: Sequence[str] = ()) -> Verification:
        """The same; it takes microseconds."""
        return self.verify(reply, gold, options=options)

    def read(self, reply: str, letters: str, options: Sequence[str] = ()) -> set[str]:
        """The letters that ``reply`` claims at its end: one if it is clear, none, or those in conflict."""
        whole = spoken(reply).strip()
        named = [(_comparable(text), letter) for text, letter in zip(options, letters, strict=False)]
        if (tag := tagged(whole)) is not None:
            return _option(tag, letters, named) or _in_lines(tag, letters, named)
        box = boxed_answer(whole)
        if box is not None and (found := _option(box, letters, named)):
            return found
        text = whole[-MAX_CHARACTERS:].strip()
        if (named_there := in_json(text) or in_table(text)) and (found := _option(named_there, letters, named)):
            return found
        if len(text) <= 400 and "\n" not in text and (found := _option(text, letters, named, alone=True)):
            return found
        return _in_lines(text, letters, named, cut=len(whole) > MAX_CHARACTERS)


def _in_lines(text: str, letters: str, named: Sequence[tuple[str, str]], *, cut: bool = False) -> set[str]:
    """The letters that the last line with a claim claims."""
    text = _HEADED.sub(r"\1: ", text)
    lines = [_row(line) for line in text.splitlines() if line.strip()]
    leading = [_leading(line, letters) for line in lines]
    # Several labels at the start of lines list the options and claim none.
    listing = len({label for label, _ in filter(None, leading)}) > 1
    for at in range(len(lines) - 1, -1, -1):
        claims = _decided(lines[at], _claims(lines[at], letters, named))
        last = at == len(lines) - 1
        if last and not claims and not (listing and leading[at]):
            claims |= _option(lines[at], letters, named, alone=True)
        first = leading[at]
        if first and not listing and at == 0 and not cut and not claims:
            label, rest = first
            claims = {label, *_by_text(rest, named)}
        if claims:
            return claims
    return set()


def _row(line: str) -> str:
    """A row of a table that says what the answer is, in words; nothing of another row."""
    if not line.lstrip().startswith("|"):
        return line
    cells = [cell.strip(" *_`") for cell in line.strip().strip("|").split("|")]
    return f"answer: {cells[-1]}" if len(cells) > 1 and re.search(r"\banswer\b", cells[0], re.IGNORECASE) else "|"


def _comparable(text: str) -> str:
    """The form in which a text is compared with an option's."""
    return re.sub(r"(?<=[\W_]) | (?=[\W_])", "", re.sub(r"^(?:an?|the) ", "", _TEXT.normalise(bare(text[:2000]))))


def _by_text(text: str, named: Sequence[tuple[str, str]]) -> set[str]:
    """The options whose text ``text`` is, or has the value of; ``named`` holds (comparable text, letter)."""
    if not named or len(text) > 2000:
        return set()
    for said in dict.fromkeys((text, _REMARK.split(text)[0])):
        comparable = _comparable(said)
        if found := {letter for option, letter in named if option and option == comparable}:
            return found
        value = _value(said) if len(said) <= 200 else None
        if value is not None and (found := {letter for option, letter in named if _value(option) == value}):
            return found
    return set()


@functools.lru_cache(maxsize=4096)
def _value(text: str) -> tuple[object, ...] | None:
    """What a formula is, in a form in which equal ones are mostly equal; ``None`` for what is none."""
    found = None if re.search(r"(?<![\\A-Za-z])[A-Za-z]{4,}", text) else expression(text)
    if found is None or found.words:
        return None
    values = [(part, value_of(part)) for part in found.parts]
    shown = [part.replace(" ", "") if value is None else _rounded(value) for part, value in values]
    return found.unit, found.percent, *shown


def _rounded(value: Value) -> object:
    """To twelve digits; as it is where it is beyond what a double can be."""
    try:
        double = float(value)
    except OverflowError:
        return value
    return f"{double:.12g}" if double or not value else value


def _option(text: str, letters: str, named: Sequence[tuple[str, str]], *, alone: bool = False) -> set[str]:
    """The option that a short text is: its text, its letter, or both; the two of them where they disagree.

    A letter with another text than its option's counts unless ``alone``: "A reaction" begins with an article.
    """
    if len(text) > 2000:
        return set()
    if found := _by_text(text, named):
        return found
    if text.rstrip(" \n*_`").endswith("?"):
        return set()
    plain = bare(text)
    first_words = _REMARK.split(plain)[0]
    if label := _label(text, letters) or _label(plain, letters) or _label(first_words, letters):
        return {label}
    for pattern in (_LETTER_AND_TEXT, _TEXT_AND_LETTER):
        match = pattern.fullmatch(plain)
        if match is None:
            continue
        one, *others = match.groups()
        last = next(group for group in others if group)
        letter, rest = (one, last) if pattern is _LETTER_AND_TEXT else (last, one)
        other = _by_text(rest, named)
        if letter.upper() in letters and other:
            return {letter.upper(), *other}
    first = None if alone else _leading(plain, letters)
    return {first[0]} if first else set()


def _label(text: str, letters: str) -> str | None:
    """The letter that ``text`` as a whole names, or None."""
    if len(text) > 60 or text.strip()[-1:] == "?":
        return None
    match = _LABEL.fullmatch(text.strip(_AROUND))
    return match.group(1).upper() if match and match.group(1).upper() in letters else None


def _decided(line: str, claims: Iterator[tuple[int, str]]) -> set[str]:
    """The letters of a line's claims; only the last one where it takes back those before it."""
    found = sorted(claims)
    for (at, letter), (after, other) in itertools.pairwise(found):
        if letter != other and _REVISED.search(line, at, after):
            found = [(where, each) for where, each in found if where >= after]
    return {letter for _, letter in found}


def _leading(line: str, letters: str) -> tuple[str, str] | None:
    """The label at the start of a line and what follows it, or None."""
    match = _LEADING.match(line)
    if match is None:
        return None
    label = next(group for group in match.groups() if group).upper()
    return (label, line[match.end() :]) if label in letters else None


def _claims(line: str, letters: str, named: Sequence[tuple[str, str]]) -> Iterator[tuple[int, str]]:
    """Every letter that ``line`` says is the answer, and where."""
    read_to = 0
    for match in list(_CLAIM.finditer(line))[-_MOST_CLAIMS:]:
        # What a list of letters has read is not read again from each of its members.
        if match.start() < read_to:
            continue
        if _ruled_out(line, match.start()) or _BUT.match(line, match.end()):
            continue
        claimed = _CLAIMED.match(line, match.end())
        if claimed is None or not _is_label(claimed, line, letters):
            said = sentence(line[: match.end() + 300], match.end())
            if said.startswith("not ") and (instead := INSTEAD.search(said)):
                said = said[instead.end() :]
            yield from ((match.start(), letter) for letter in _option(said, letters, named, alone=True))
            continue
        at = claimed.end()
        if RETRACTED.match(line, at) or line[at : at + 1] == "?":
            continue
        yield match.start(), claimed.group(2).upper()
        while other := _AND.match(line, at):
            letter, at = other.group(1), other.end()
            if letter not in letters or not _not_article(letter, line, at):
                break
            yield match.start(), letter
        read_to = at
    yield from _said_in_words(line, named)
    for pattern in (_IS_RIGHT, _THUS):
        for match in pattern.finditer(line):
            letter = next(group for group in match.groups() if group)
            if letter in letters and not _ruled_out(line, match.start()):
                yield match.end(), letter


def _ruled_out(line: str, at: int) -> bool:
    """Whether what stands before ``at`` denies, supposes or leaves to others what follows."""
    near, far = max(0, at - 20), max(0, at - 40)
    return any(found.search(line, start, at) for found, start in ((_NOT, near), (_SUPPOSED, far), (NOT_SO, far)))


def _said_in_words(line: str, named: Sequence[tuple[str, str]]) -> Iterator[tuple[int, str]]:
    """Every option that ``line`` names by its text in a sentence of its own, and where."""
    for pattern in (_IT_IS, _IS_ANSWER) if named else ():
        for match in list(pattern.finditer(line))[-_MOST_CLAIMS:]:
            if _ruled_out(line, match.start()):
                continue
            said = match[1] if pattern is _IS_ANSWER else sentence(line[: match.end() + 300], match.end())
            yield from ((match.start(), letter) for letter in _by_text(said, named))


def _is_label(claimed: re.Match[str], line: str, letters: str) -> bool:
    """Whether the letter after a claim is a label, and not the article of "the answer is a reaction"."""
    before, letter, after = claimed.groups()
    if letter.upper() not in letters:
        return False
    if set(before) & set("([{*") or set(after) & set(")]}*"):
        return True
    if letter.islower():
        return re.match(r"\s*(?:[.,;!]|$)", line[claimed.end() :]) is not None
    return _not_article(letter, line, claimed.end() - len(after))


def _not_article(letter: str, line: str, at: int) -> bool:
    return letter not in "AI" or _GOES_ON.match(line, at) is not None
