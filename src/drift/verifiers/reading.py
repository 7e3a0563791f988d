r"""What a reply gives as its answer, where that stands, and how sure it is; and an answer without what surrounds it.

The first of these that a reply has is read, and of several such places the last one that holds something:

1. ``tag``: ``<answer>…</answer>`` (also escaped, in square brackets, as ``final_answer``, or left open at the end);
2. ``box``: ``\boxed{…}`` or ``\fbox{…}``; boxes that only "and", "or" or commas part are one answer;
3. ``hash``: the rest of a line after ``####``;
4. ``stated``: "answer: …", "the answer is …", and the same in Chinese, Japanese, German, French and Spanish; a JSON
   object or a table at the end that has one under that name;
5. ``alone``: a reply that is nothing but an answer;
6. ``concluded``: a last sentence that begins with "so", "therefore" or the like, or with "in total";
7. ``last_number``: only where ``fallback`` asks for it.

Only what is after the thinking counts. All of it takes linear time.
"""

from __future__ import annotations

import html
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, get_args

from drift.problems.boxed import BOX, boxes

Place = Literal["tag", "box", "hash", "stated", "alone", "concluded", "last_number"]
Fallback = Literal["", "last_number"]
FALLBACKS: tuple[str, ...] = get_args(Fallback)
# Only the end of a longer reply is searched for a statement in words.
MAX_CHARACTERS = 20_000
MAX_ANSWER = 2_000
MAX_CONCLUSION = 2_000
_SURE: dict[str, float] = {
    "tag": 1.0,
    "box": 1.0,
    "hash": 0.9,
    "stated": 0.8,
    "alone": 0.8,
    "concluded": 0.5,
    "last_number": 0.2,
}

_TAG_NAME = r"(?:final[_ ]?)?answer"
_LESS, _MORE = r"\\?(?:[<＜]|&lt;)\s{0,3}", r"\s{0,3}\\?(?:[>＞]|&gt;)"
_TAGS = re.compile(
    rf"(?P<open>{_LESS}{_TAG_NAME}(?:\s[^<>&]{{0,40}})?{_MORE}|\[{_TAG_NAME}\])"
    rf"|(?P<close>{_LESS}(?:\\?/|\\)\s{{0,3}}{_TAG_NAME}{_MORE}|{_LESS}{_TAG_NAME}\s?/{_MORE}|\[/{_TAG_NAME}\])",
    re.IGNORECASE,
)
_THINKING = re.compile(r"<(?P<close>/)?(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
# The tokens that end a turn, and the role of the next one, where they were not taken off.
_AFTER_THE_END = re.compile(r"(?:\s{0,3}(?:<\|[a-z_]{1,30}\|>|</s>)\s{0,3}(?:user|assistant)?)+\s*$")
_CUT_TAG = re.compile(r"</?[a-z_]{0,14}$", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"[.…_?\s*`|-]*|[\[({<]?\s?(?:your|the|final|my)?\s?(?:final )?(?:answer|letter|number|value|result|option)"
    r"(?: here| letter)?\s?[\])}>]?\.{0,3}|n/?a|tbd|todo",
    re.IGNORECASE,
)
_BOX = re.compile(BOX + r"(?=\{)")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;]|\\q?quad|\\[()\[\],;])*(?:and|or|\\text\{ ?(?:and|or) ?\})?(?:[\s$,;]|\\q?quad|\\[()\[\],;])*"
    r"(?:\$?[A-Za-z](?:_\{?\w\}?)? ?=)?[\s$]*"
)
_BETWEEN_TAGS = re.compile(r"[\s$*]{0,4}(?:[,;]|(?:[,;]\s?)?\b(?:or|and)\b)[\s$*]{0,4}", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"\$?\s?(?:can't|cannot|can not|isn't|is not|is wrong|was wrong|is incorrect)\b", re.IGNORECASE
)
# What follows an answer and takes it back.
RETRACTED = re.compile(
    r"[*_`)\]\s.,;!…-]{0,8}(?:(?:oh|wait|hmm|no|actually|but|sorry)\b[\s,.!…]{0,4}){0,3}"
    r"(?:(?:(?:that|this|it|which)(?:['’]s|\s(?:is|was))|is|was)\s(?:wrong|incorrect|a mistake|not (?:right|correct))\b"
    r"(?!\s(?:to|that)\b)|(?<=no[.!])$|では(?:ない|ありません))",
    re.IGNORECASE,
)
_DENIED_BEFORE = re.compile(r"\b(?:not|instead of|rather than)\s{0,2}\$?$", re.IGNORECASE)
_HASH = re.compile(r"(?:^|(?<=\s))####(?!#)[ \t]*(.*)$", re.MULTILINE)
_STEP = re.compile(r"\W*(?:step|part|case|phase|stage|question|problem|section|method)\b|\d{1,2}[.)]\s+[A-Za-z]", re.I)

_MARKS = r"[*_`$\s|]{0,6}"
_IS = (
    r"(?:,\s(?:then|therefore|thus|hence|finally|of\scourse),)?(?:\s{1,3}(?:choice|option|number))?(?:\s{1,3}(?:to|for|of)\s[^.:=\n]{1,80})?"
    r"(?:\s{1,3}(?P<not>is\s{1,3}not|isn['’]t|can['’]t\sbe|cannot\sbe)\b"
    r"|\s{1,3}(?:is|are|equals|was|would\sbe|must\sbe|should\sbe|has\sto\sbe|comes\s(?:out\s)?to"
    r"|to|of(?=\s[-$\d\\])|will\sbe)\b"
    r"(?:\s(?:therefore|thus|then|simply|now|clearly|just)\b)?\s{0,3}[:=]?"
    rf"|{_MARKS}(?:[:=：→]|->|=>)|{_MARKS}[|]|\s{{0,2}}[*_]{{0,3}}\n|\s[-–—]\s)"
)
_STATED = re.compile(
    rf"(?<![A-Za-z])(?:(?:answer|ans|result|solution){_IS}|ans\.(?=\s{{1,3}}[-$\\\d(]))"
    r"|(?P<east>答案|答え|正解|結果|结果|정답|[答답](?=[：:은]))(?:(?P<east_not>不是)|[是为為はが은는이]?[：:]?)"
    r"|\b(?:Antwort|Lösung|Ergebnis|réponse|respuesta|resultado|solución|résultat|risposta|resposta|ответ)"
    r"(?:\s(?:correcta|correct|correcte|finale?))?"
    r"(?:\s{1,3}(?P<west_not>ist\snicht|n['’]est\spas|no\ses)\b|\s{1,3}(?:ist|lautet|est|es|è|é)\b\s?:?|\s{0,2}[*_]{0,3}:)"
    # What follows a statement and puts another one in its place.
    r"|(?P<corrected>\bcorrection\b|\bI\sme(?:an|ant)\b|\b(?:it|that)\s(?:should|must)\s(?:actually\s)?be\b"
    r"|\b(?:wait|no|sorry|actually|hmm)\b[,.]{0,3}\s(?:no\b[,.]?\s)?(?:it['’]s\s|it\sis\s)?(?=[-$]{0,2}\d))\s?[:,]?",
    re.IGNORECASE,
)
_IS_THE_ANSWER = re.compile(
    r"\s(?:is|are|was)\s(?:the|my|our)\s(?:(?:final|correct|right)\s)?(?:answer|solution|result)\b", re.IGNORECASE
)
_MOST_BRACES = 20
_JSON_KEY = re.compile(r"(\"(?:final[_ ]?)?answer\")\s{0,3}:", re.IGNORECASE)
_OPENING_WORDS = re.compile(r"(?:(?:so|thus|hence|then|therefore|and|finally|that means|which means)\b[, ]*)+", re.I)
_MARKS_AHEAD = re.compile(r"[ \t\n*_|`:]*+")
_THE = r"(?:that\s)?(?:(?:the|my|our|his|her|their|correct|right|final)\s){0,3}$"
_SUPPOSED = re.compile(
    r"\b(?:if|suppose|assume|assuming|whether|(?<!can\s)say|unless|doubt|wenn|falls|were)\b[^.!?\n]{0,30}$|如果$"
    r"|\b(?:wrong|incorrect|first|initial|naive)\s$",
    re.I,
)
# What stands before "the answer is" where that is denied, or somebody else says so.
NOT_SO = re.compile(
    r"(?:\b(?:false|untrue|incorrect|wrong|impossible)|(?:\bnot|n['’]t)\s(?:true|the\scase|correct|right))"
    rf"\s(?:(?:to\s)?(?:say|think|claim|conclude|assume|believe)\s)?{_THE}"
    r"|\b(?:he|she|they|who|people|someone|somebody|others|(?:friend|student|classmate|teacher|brother|sister)s?"
    r"|(?-i:(?!We\b|Then\b)[A-Z][a-z]+))\s(?:(?:might|may|could|would|will|first|once|also)\s)?"
    rf"(?:said|says?|claim(?:s|ed)?|thinks?|thought|believe[sd]?|guess(?:es|ed)?|insist(?:s|ed)?)\s{_THE}"
    rf"|\b(?:one|you)\s(?:might|may|could)\s(?:say|think|claim|conclude|assume|believe|guess)\s{_THE}"
    rf"|\b(?:tempt(?:ed|ing)\sto|(?:mistaken|wrong|incorrect|false)ly)\s\w{{1,12}}\s{_THE}|\bthought\s{_THE}",
    re.I,
)
_ONLY_IF = re.compile(r"\b(?:if|had|were|unless)\b", re.IGNORECASE)
INSTEAD = re.compile(
    r"[.;,]?\s{0,3}(?:(?:it (?:is|must be|has to be)|it['’]s|(?<!thing )but|rather|sondern|es ist|mais|c['’]est)\s{1,3}"
    r"|(?:sino|\bes)\s{1,3}|(?:而|[，,])是\s{0,3})",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=[*_`\"'”)$]{0,4}(?:\s|$))|[。！？]|\n")
_NOT_THE_END = re.compile(r"(?:\b[ap]|\b[ap]\.m|\b(?:approx|sq|ca|vs|no|St))$", re.IGNORECASE)
_CONCLUDING = re.compile(
    r"\b(?:so|therefore|thus|hence|consequently|in total|altogether|in all|overall|finally|in conclusion)\b"
    r"|因此|所以|したがって"
    r"|\b(?:also|insgesamt|donc|au total|por lo tanto|en total)\b",
    re.IGNORECASE,
)
_FAREWELL = re.compile(
    r"(?:(?<=[.!?\n])\s*(?:I\s|we\s)?(?:hope|let me know|feel free|good luck|happy to)\b[^.!?\n]{0,100}[.!]?)+\s*$",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[-−]?[$€£]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")


@dataclass(frozen=True, kw_only=True)
class Read:
    """An answer as a reply gives it.

    Attributes:
        answer: its text, as it stands there.
        where: the place it was read from.
    """

    answer: str
    where: Place

    @property
    def sure(self) -> float:
        """From 0 to 1, how certain it is that the answer is meant as one."""
        return _SURE[self.where]


def read(reply: str, *, strict: bool = False, fallback: str = "") -> Read | None:
    """The answer that ``reply`` gives; ``None`` if it gives none.

    Args:
        reply: the whole reply, thinking included.
        strict: read tag and box alone.
        fallback: ``last_number`` takes the last number of a reply that says nothing else.
    """
    text = spoken(reply)
    if found := tagged(text):
        return Read(answer=found, where="tag")
    if found := boxed_answer(text):
        return Read(answer=found, where="box")
    if strict:
        return None
    text = text[-MAX_CHARACTERS:]
    lines = [line.strip() for line in _HASH.findall(text) if line.strip()]
    last = lines[-1] if lines and not _STEP.match(lines[-1]) else ""
    if last and (re.search(r"\d|^\W*\w\W*$|[\\=]", last) or text.rstrip().endswith(last)):
        return Read(answer=last, where="hash")
    if found := in_json(text) or in_table(text) or stated(text):
        return Read(answer=found, where="stated")
    if _is_alone(text):
        return Read(answer=text.strip(), where="alone")
    if found := _concluded(text):
        return Read(answer=found, where="concluded")
    numbers = _NUMBER.findall(text) if fallback == "last_number" else []
    return Read(answer=numbers[-1], where="last_number") if numbers else None


def spoken(reply: str) -> str:
    """``reply`` without its thinking: neither whole thoughts, nor one that was begun before it or cut off."""
    # Only so far back: a long run that ends before would be looked through from each of its tokens.
    at = max(0, len(reply) - MAX_ANSWER)
    reply = reply[:at] + _AFTER_THE_END.sub("", reply[at:])
    parts: list[str] = []
    at, thinking = 0, False
    for mark in _THINKING.finditer(reply):
        if mark["close"] and not thinking:
            parts = []
        elif not thinking:
            parts.append(reply[at : mark.start()])
        thinking = not mark["close"]
        at = mark.end()
    return "".join(parts if thinking else [*parts, reply[at:]])


def tagged(text: str) -> str | None:
    """What the last filled answer tag of ``text`` holds, also one left open at the end; ``None`` if there is none."""
    start: int | None = None
    found: str | None = None
    opened = last = 0
    for match in _TAGS.finditer(text):
        if start is not None:
            inner = text[start : match.start()].strip()
            if not is_placeholder(inner) and (match["close"] or len(inner) < 200):
                # Tags that only "or", "and" or a comma part are one answer.
                listed = found is not None and found != inner and _BETWEEN_TAGS.fullmatch(text, last, opened)
                inner = f"{found}, {inner}" if listed else inner
                found = None if match["close"] and RETRACTED.match(text, match.end()) else inner
                last = match.end()
        start, opened = match.end() if match["open"] else None, match.start()
    if start is not None:
        rest = _CUT_TAG.sub("", text[start:].strip()[:MAX_ANSWER]).strip()
        if len(rest) > 200 or "\n\n" in rest:
            first, _, after = rest.partition("\n")
            # Whoever goes on and says what the answer is has not ended with the tag.
            rest = first.strip() if boxed_answer(after) is None and stated(after) is None else ""
        if not is_placeholder(rest):
            found = rest
    return html.unescape(found) if found is not None and "&" in found else found


def is_placeholder(text: str) -> bool:
    """Whether ``text`` holds nothing, or repeats where the prompt says that an answer belongs."""
    return len(text) < 60 and _PLACEHOLDER.fullmatch(text) is not None


def boxed_answer(text: str) -> str | None:
    """What the last filled box of ``text`` holds, together with the boxes that are listed before it."""
    if "box" not in text:
        return None
    spans = [span for span in boxes(text) if not is_placeholder(span[2])]
    while spans and (
        _TAKEN_BACK.match(text, spans[-1][1]) or _DENIED_BEFORE.search(text, max(0, spans[-1][0] - 20), spans[-1][0])
    ):
        spans.pop()
    if not spans:
        return None
    start, _, answer = spans[-1]
    listed = [answer]
    for earlier, end, inner in reversed(spans[:-1]):
        between = text[end:start]
        if len(between) > 60 or not re.search(r"[,;]|and|or", between) or not _BETWEEN_BOXES.fullmatch(between):
            break
        listed.insert(0, inner)
        start = earlier
    return _BOX.sub("", ", ".join(listed))


def sentence(text: str, start: int = 0) -> str:
    r"""``text`` from ``start`` to the end of the sentence or line; ``$$`` and ``\[`` formulas may go over lines."""
    return text[start : _end_of_sentence(text, start)].strip()


def _end_of_sentence(text: str, start: int) -> int:
    formula = re.compile(r"\s*(?:\$\$(.{1,500}?)\$\$|\\\[(.{1,500}?)\\\])", re.DOTALL).match(text, start)
    if formula:
        return formula.end()
    last = min(len(text), start + MAX_ANSWER)
    for match in _SENTENCE_END.finditer(text, start, last):
        if match.group() == "!" and text[match.start() - 1 : match.start()].isdigit():
            continue
        if match.group() != "." or not _NOT_THE_END.search(text, max(start, match.start() - 8), match.start()):
            return match.start()
    return last


def stated(text: str) -> str | None:
    """What the last statement of ``text`` about its answer says; ``None`` if it is denied, supposed or cut off."""
    found: str | None = None
    where = -1
    for match in _STATED.finditer(text):
        if match["corrected"] and found is None:
            continue
        near, far = max(0, match.start() - 40), max(0, match.start() - 60)
        if _SUPPOSED.search(text, near, match.start()) or NOT_SO.search(text, far, match.start()):
            continue
        at = _MARKS_AHEAD.match(text, match.end()).end()  # type: ignore[union-attr]
        if at >= len(text):
            continue
        end = _end_of_sentence(text, at)
        said = text[at:end].strip()
        if any(match[name] for name in ("not", "east_not", "west_not")) or said.startswith("not "):
            instead = INSTEAD.search(text, at, at + 80)
            if instead is None:
                found = None
                continue
            end = _end_of_sentence(text, instead.end())
            said = text[instead.end() : end].strip()
        if RETRACTED.match(text, end) or RETRACTED.search(said[:80]):
            found = None
            continue
        if text[end : end + 1] in ("?", "？") or ("would" in match.group() and _ONLY_IF.search(said)):
            continue
        if match["east"]:
            said = re.sub(r"\s?(?:です|だ|である|입니다)$", "", said)
        said = re.sub(r"^that\s", "", said.strip().strip("|").strip())
        if said and not is_placeholder(said):
            found, where = said, match.start()
    for match in _IS_THE_ANSWER.finditer(text, where + 1):
        before = max(0, match.start() - 100)
        start = max((one.end() for one in _SENTENCE_END.finditer(text, before, match.start())), default=before)
        said = text[start : match.start()].strip()
        said = said[opening.end() :] if (opening := _OPENING_WORDS.match(said)) else said
        if len(said) < 60 and re.search(r"\d|\\", said) and text[_end_of_sentence(text, match.end()) :][:1] != "?":
            found = said
    return found


def in_json(text: str) -> str | None:
    """What a JSON object at the end of ``text`` holds under ``answer``."""
    keys = list(_JSON_KEY.finditer(text, max(0, len(text) - MAX_ANSWER)))
    if not keys:
        return None
    key, start = keys[-1], keys[-1].start()
    # The object may hold others before it.
    for _ in range(_MOST_BRACES):
        start = text.rfind("{", 0, start)
        if start < 0:
            return None
        with suppress(ValueError, RecursionError):
            value, end = json.JSONDecoder().raw_decode(text, start)
            said = value.get(json.loads(key[1]))
            if end > key.end() and not text[end:].strip(" \n`}"):
                return str(said).strip() or None if isinstance(said, str | int | float) else None
    return None


def in_table(text: str) -> str | None:
    """What the last row of a table at the end of ``text`` has in the column of the answer."""
    lines = text.rstrip().splitlines()
    at = len(lines)
    while at and lines[at - 1].lstrip().startswith("|"):
        at -= 1
    rows = [[cell.strip(" *_`") for cell in line.strip().strip("|").split("|")] for line in lines[at:]]
    if len(rows) < 3 or len(rows[-1]) != len(rows[0]) or not all(set(cell) <= set("-: ") for cell in rows[1]):
        return None
    named = [cell for name, cell in zip(rows[0], rows[-1], strict=True) if name.lower() in ("answer", "final answer")]
    return named[0] or None if named else None


def _is_alone(text: str) -> bool:
    """Whether a reply is nothing but an answer: one short line with a number or a formula, or a truth value."""
    whole = text.strip()
    if len(whole) > 60 or "\n" in whole or whole.endswith(("?", "...", "…", ":")):
        return False
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", whole)
    return (len(words) <= 2 and re.search(r"\d|\\[a-z]", whole) is not None) or (
        len(words) == 1 and words[0].lower() in ("true", "false", "yes", "no")
    )


def _concluded(text: str) -> str | None:
    """The last sentence but wishes, if it draws a conclusion, from its last "so", "is" or the like on."""
    whole = _FAREWELL.sub("", text[-MAX_CONCLUSION:]).rstrip()
    if not whole or whole[-1].isalpha() or whole[-1] == ",":
        return None
    start = 0
    for match in _SENTENCE_END.finditer(whole, 0, len(whole) - 1):
        start = match.end()
    last = whole[start:].strip()
    conclusions = list(_CONCLUDING.finditer(last))
    at = conclusions[-1].end() if conclusions else 0
    if not conclusions or len(last) - at > 400 or last.endswith("?"):
        return None
    if not re.search(r"\d|\\", last[at:]):
        at = conclusions[0].end()
    return last[at:].strip(" ,:") or None
