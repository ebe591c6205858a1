"""Tell sentences from answers, and find the last number of a text."""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_BARE = 6_000


LAST_RESORT = "last number in the text, no marked answer"


_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|gets?|gives?|equals|needs?|costs?)\b"
)


_DENIED = re.compile(r"\b(?:not|cannot|never|neither|nor)\b|n['’]t\b|^\s*\?")


_EITHER = re.compile(
    r"\d[^.;,\d]{0,20}\bor\b[^.;,\d]{0,20}\d|\b(?:either|maybe|perhaps|"
    r"possibly|might be|could be|no idea)\b",
    re.I,
)


_MATH = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|"
    r"(?<![\\$])\$((?:[^$\\\n]|\\.)+?)\$(?!\d)",
    re.S,
)


_GIVEN_UP = re.compile(
    r"\b(?:fails?|contradiction|wrong|incorrect|impossible)\b", re.I
)
_TRIED = re.compile(r"\W*(?:suppose|assume|try|let me|let us|let's)\b", re.I)
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")


_POINT = re.compile(
    r"[(\[]\s*[-−+]?[\w./√π∞]+(?:\s*,\s*[-−+]?[\w./√π∞]+){1,4}\s*[)\]]"
)
_ROUGH = re.compile(
    r"(?<=\d)[,\s(]*(?:or )?(?:about|approximately|roughly|nearly)\s*$"
)


NUMBER = re.compile(
    r"(?<![\w.{^\\])(?:[-−]\s?)?[$€£]?(?:[-−])?"
    r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
    r"(?:\s?/\s?\d+)?\s?%?(?![A-Za-z\d^{}\\]|\s?[\^_])"
    r"|\\[dt]?frac\{[^{}]{1,40}\}\{[^{}]{1,40}\}"
    r"|\d*\s?\\sqrt\s?\{[^{}]{1,40}\}"
)


WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


MATH_WORDS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "exp", "sqrt",
    "pi", "arctan", "arcsin", "arccos", "or", "and",
}  # fmt: skip


class Extraction(NamedTuple):
    """An answer, and how it was found ("box", "answer is" …)."""

    answer: str | None
    how: str


def _plain_words(text: str) -> tuple[str, list[str]]:
    """Return a text without its \\text{…}, and the words of that."""
    plain = re.sub(r"\\(?:text\w*|begin|end)\s*\{[^{}]*\}", " ", text)
    return plain, [w for w in WORD.findall(plain) if w not in MATH_WORDS]


def is_prose(text: str) -> bool:
    """Say whether a text has sentences rather than being an answer."""
    if len(text) > MAX_BARE:
        return True
    plain, words = _plain_words(text)
    if re.search(r"[^\x00-\u04ff\u2000-\u2bff\uff00-\uffef]{4}", text):
        return True
    if "\n" in text.strip() and words and "\\begin" not in text:
        return True
    long_words = [w for w in words if len(w) > 2]
    if re.search(r"[a-z]{2,}\.\s+[A-Z]|<<.*>>", text):
        return True
    if re.search(r"\d", text) and _VERB.search(plain):
        return True
    if not re.search(r"\d|\$|\\\(|\\\[", text):
        return len(words) > 12
    opened = re.match(r"\s*(?:So|Thus|Then|Since|We|The|There|It|I|He|She|"
                      r"Therefore|Hence|They|Total|Now)\b", text)  # fmt: skip
    if len(words) > 3 and re.match(r"\s*[A-Z][a-z]+ [a-z]", text):
        return True
    return len(long_words) > (1 if opened else 5) or (
        bool(_MATH.search(text))
        and not _MATH.fullmatch(text.strip(" .\n"))
        and not re.search(r"^\s*\$[^$]*\$(?:\s*,\s*\$[^$]*\$)+\s*$", text)
    )


def has_words(formula: str) -> bool:
    """Say whether two long words stand outside of \\text{…}."""
    return len([w for w in _plain_words(formula)[1] if len(w) > 2]) >= 2


def last_resort(text: str) -> Extraction:
    tail = text[-4_000:]
    if not re.search(r"[^\W\d_]{2}", tail):
        return Extraction(None, "no answer found")
    formulas = [
        next(g for g in m.groups() if g is not None)
        for m in _MATH.finditer(tail)
        if not has_words(m[0])
    ]
    bold = [b.rstrip(" .:") for b in _BOLD.findall(tail)]
    bold = [b for b in bold if NUMBER.fullmatch(b)]
    numbers = NUMBER.findall(tail)
    last_math = tail.rfind(formulas[-1]) if formulas else -1
    if formulas and not NUMBER.search(tail[last_math + len(formulas[-1]) :]):
        return Extraction(formulas[-1].strip(), LAST_RESORT)
    if bold:
        return Extraction(bold[-1], LAST_RESORT)
    if numbers:
        return _last_number(tail)
    return Extraction(None, "no answer found")


def _point_around(tail: str, at: int) -> str | None:
    """Return the pair or interval, such as (2, 5), that holds a number."""
    spans = [m for m in _POINT.finditer(tail) if m.start() < at < m.end()]
    return spans[-1][0] if spans else None


def _last_number(tail: str) -> Extraction:
    """Return the last number, unless its sentence denies or doubts it."""
    found = list(NUMBER.finditer(tail))[-1]
    if rough := _ROUGH.search(tail[: found.start()]):
        # "5/6 or about 0.83"
        if exact := list(NUMBER.finditer(tail[: rough.start()])):
            tail, found = tail[: rough.start()], exact[-1]
    start = max(
        tail.rfind(". ", 0, found.start()), tail.rfind("\n", 0, found.start())
    )
    sentence = tail[start + 1 : found.end() + 40].split("\n")[0]
    # What stands in brackets after the value only explains it.
    opened = tail.rfind("(", start + 1, found.start())
    closed = tail.find(")", opened, found.start()) if opened >= 0 else -1
    before = list(NUMBER.finditer(tail, start + 1, max(opened, start + 1)))
    if opened >= 0 > closed and before and "is" in sentence:
        found = before[-1]
    if _GIVEN_UP.search(tail, found.end()) or _TRIED.match(sentence):
        return Extraction(None, "the last number is only tried")
    if point := _point_around(tail, found.start()):
        return Extraction(point, LAST_RESORT)
    clause = re.split(r"[,;:]", tail[start + 1 : found.start()])[-1]
    after = re.split(r"[.,;:\n]", tail[found.end() : found.end() + 60])[0]
    if (
        _DENIED.search(clause)
        or _DENIED.search(after)
        or _EITHER.search(sentence)
    ):
        return Extraction(None, "the last number is denied or doubted")
    return Extraction(found[0].strip(), LAST_RESORT)
