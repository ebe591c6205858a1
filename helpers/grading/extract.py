"""Find the answer that a response commits to.

Order: text after ``</think>`` only; last ``\\boxed``/``\\fbox``; last
``<answer>``; last ``####``; last "final answer" / "answer is" (also a few
other languages); a response that is nothing but an answer; and, labelled as
the last resort, the last formula or number of the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from helpers.grading.normalize import match_brace

MAX_RESPONSE = 200_000
MAX_BARE = 6_000
MAX_LINE = 2_000
LAST_RESORT = "last number in the text, no marked answer"

_BOX = re.compile(r"\\(?:boxed|fbox)\b\s*")
_JOINED = re.compile(
    r"[\s$.]*(?:\\\]|\\\)|,|\\quad|\\qquad|\\text\s*\{\s*|and|or|\}|\\,|&|\\;"
    r"|\s|\$|\\\[|\\\()*"
)
_STOP_TOKEN = re.compile(
    r"<\|[^|<>]{1,40}\|>|<｜[^｜<>]{1,40}｜>|</s>|I hope it is correct"
)
_NEXT_QUESTION = re.compile(r"\n\n[ \t]*(?:Question|Problem|Q)\s*\d*\s*:")
_HAS_MARKER = re.compile(
    r"\\boxed\s*\{|####|<answer>|answer\s+is|answer\s*:", re.I
)
_HASHES = re.compile(r"####[ \t]*([^\n#]*)")
_PHRASES = re.compile(
    r"(?:final\s+answer(?:\s+is)?|(?:correct\s+)?answer\s+is|answer|答案是|"
    r"(?:option|choice|result)\s+is|"
    r"答案|ответ|réponse|respuesta|antwort|risposta|resposta|"
    r"(?:^|\n)[ \t]*A(?=:))\s*(?:\*\*|__)?\s*(?P<mark>[:：]|(?<=is)|(?<=是)|"
    r"(?<=nal answer)\n|(?<=nal Answer)\n|(?<=nal Answer\*\*)\n)"
    r"\s*(?:\*\*|__)?[ \t]*",
    re.I,
)
_MATH = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|"
    r"(?<![\\$])\$((?:[^$\\\n]|\\.)+?)\$(?!\d)",
    re.S,
)
_OPENED = re.compile(r"(?:[*_]{2})?(\\\[|\$\$|\\\(|\$(?=[^$\n]*\$))")
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")
_NUMBER = re.compile(
    r"(?<![\w.{^\\])(?:[-−]\s?)?[$€£]?(?:[-−])?"
    r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
    r"(?:\s?/\s?\d+)?\s?%?(?![A-Za-z\d^{}\\]|\s?[\^_])"
    r"|\\[dt]?frac\{[^{}]{1,40}\}\{[^{}]{1,40}\}"
    r"|\d*\s?\\sqrt\s?\{[^{}]{1,40}\}"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_MATH_WORDS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "exp", "sqrt",
    "pi", "arctan", "arcsin", "arccos", "or", "and", "Eq", "infinity", "oo",
}  # fmt: skip
_LEAD = re.compile(
    r"^(?:(?:the|a|an|our|is|are|be|equals?|therefore|thus|so|hence|option|"
    r"choice|approximately|about|only|just|exactly)\b|[:=*_\s])+",
    re.I,
)


class Extraction(NamedTuple):
    """An answer, and how it was found ("box", "answer is" …)."""

    answer: str | None
    how: str


def final_part(response: str) -> str | None:
    """Return the text after the reasoning, or None when that never ended."""
    text = response[-MAX_RESPONSE:]
    end = text.rfind("</think>")
    if end >= 0:
        text = text[end + len("</think>") :]
    elif "<think>" in response:
        return None
    if (asks := _NEXT_QUESTION.search(text)) and _HAS_MARKER.search(
        text[: asks.start()]
    ):
        text = text[: asks.start()]  # a base model went on to a new problem
    if stop := _STOP_TOKEN.search(text):
        before = text[: stop.start()]
        if before.strip():
            text = before
    return text


def last_box(text: str) -> Extraction | None:
    """Return the last top-level box; None when there is none at all.

    Boxes joined only by commas or "and" are one list. An empty or
    unterminated last box is an answer that was never given.
    """
    boxes: list[tuple[int, int, str | None]] = []
    position = 0
    for found in _BOX.finditer(text):
        if found.start() < position:
            continue
        content, position = _box_content(text, found.end())
        boxes.append((found.start(), position, content))
    if not boxes:
        return None
    content = boxes[-1][2]
    if content is None or not content.strip():
        return Extraction(None, "the last box is empty or never closed")
    if (later := _later_final(text[boxes[-1][1] :])) is not None:
        return later
    return Extraction(_join_boxes(text, boxes), "box")


def _later_final(text: str) -> Extraction | None:
    """Return a "final answer" written after the last box, if it is one."""
    if re.search(r"final\s+answer", text, re.I) is None:
        return None
    later = _after_phrase(text)
    if later is None or later.answer is None:
        return None
    short = len(later.answer) <= 60 and not _has_words(later.answer)
    return later if short and re.search(r"\d", later.answer) else None


def _box_content(text: str, start: int) -> tuple[str | None, int]:
    if text[start : start + 1] == "{":
        end = match_brace(text, start)
        if end < 0:
            return None, len(text)
        return text[start + 1 : end - 1], end
    if bare := re.compile(r"[-\d.,/]*\d|[A-Za-z](?![A-Za-z])").match(
        text, start
    ):
        return bare[0], bare.end()
    return None, start


def _join_boxes(text: str, boxes: list[tuple[int, int, str | None]]) -> str:
    parts = [boxes[-1][2] or ""]
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=False):
        between = text[before[1] : after[0]]
        linked = re.search(r",|\band\b|\bor\b", between)
        if not linked or not before[2] or not before[2].strip():
            break
        if len(between) > 60 or not _JOINED.fullmatch(between):
            break
        parts.append(before[2])
    parts.reverse()
    if len({p.strip() for p in parts}) == 1:
        return parts[0]
    return ", ".join(parts)


def _is_hedge_tail(text: str) -> bool:
    return re.search(r"\b(?:but|wrong|not|incorrect|unless)\b", text) is None


def _after_phrase(text: str) -> Extraction | None:
    found = None
    for found in _PHRASES.finditer(text):  # noqa: B007 (the last one counts)
        continue
    if found is None:
        return None
    rest = text[found.end() :].lstrip()
    if not rest:
        return Extraction(None, "nothing follows the answer phrase")
    return Extraction(_sentence_answer(rest), "answer phrase")


def _sentence_answer(rest: str) -> str:
    """Return the answer from the words after "the answer is"."""
    if opened := re.match(
        r"(?:[*_]{2})?(\\\[|\$\$|\\\(|\$(?=[^$\n]*\$))", rest
    ):
        closer = {"\\[": "\\]", "\\(": "\\)"}.get(opened[1], opened[1])
        end = rest.find(closer, opened.end())
        if end > 0:
            after = rest[end + len(closer) :]
            tail = re.match(r"[^\n.;]{0,60}", after)
            inner = rest[opened.end() : end].strip()
            extra = tail[0] if tail else ""
            if "$" in extra or re.search(r"\d|\b(?:or|not|but)\b", extra):
                return _first_line(rest)
            return inner
    return _last_clause(_first_line(rest))


def _first_line(rest: str) -> str:
    line = rest[:MAX_LINE].split("\n", 1)[0]
    sentence = re.match(r"(?:[^.。!]|\.(?=\d)|\.(?=\S)|!(?=\S))*", line)
    line = sentence[0] if sentence and sentence[0].strip() else line
    return line.strip().strip("*_").strip()


def _last_clause(line: str) -> str:
    line = _LEAD.sub("", line).strip().strip("*").strip()
    if found := re.search(
        r"^.*\b(?:is|are|was|be|equals)\b\s+([^{}]+(?:\{.*)?)$", line
    ):
        line = found[1]
    words = [w for w in _WORD.findall(line) if w not in _MATH_WORDS]
    if len([w for w in words if len(w) > 2]) > 3:
        numbers = _NUMBER.findall(line)
        line = numbers[0].strip() if len(numbers) == 1 else line
    if not line.isascii() and (found := re.search(r"[是为]\s*(.+)$", line)):
        line = found[1]
    return _LEAD.sub("", line).strip().strip("*").strip()


def is_prose(text: str) -> bool:
    """Say whether a text has sentences rather than being an answer."""
    if len(text) > MAX_BARE:
        return True
    plain = re.sub(
        r"\\(?:text\w*|begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+", " ", text
    )
    words = [w for w in _WORD.findall(plain) if w not in _MATH_WORDS]
    if re.search(r"[^\x00-\u04ff\u2000-\u2bff\uff00-\uffef]{4}", text):
        return True
    if "\n" in text.strip() and words and "\\begin" not in text:
        return True
    long_words = [w for w in words if len(w) > 2]
    if re.search(r"[a-z]{2,}\.\s+[A-Z]|<<.*>>", text):
        return True
    if not re.search(r"\d|\$|\\\(|\\\[", text):
        return len(words) > 12
    opened = re.match(r"\s*(?:So|Thus|Then|Since|We|The|There|It|I|He|She)\b",
                      text)  # fmt: skip
    return len(long_words) > (1 if opened else 5) or (
        bool(_MATH.search(text))
        and not _MATH.fullmatch(text.strip(" .\n"))
        and not re.search(r"^\s*\$[^$]*\$(?:\s*,\s*\$[^$]*\$)+\s*$", text)
    )


def _has_words(formula: str) -> bool:
    plain = re.sub(
        r"\\(?:text\w*|begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+", " ", formula
    )
    words = [w for w in _WORD.findall(plain) if w not in _MATH_WORDS]
    return len([w for w in words if len(w) > 2]) >= 2


def _last_resort(text: str) -> Extraction:
    tail = text[-4_000:]
    formulas = [
        next(g for g in m.groups() if g is not None)
        for m in _MATH.finditer(tail)
        if not _has_words(m[0])
    ]
    bold = [b.strip(" .:") for b in _BOLD.findall(tail)]
    bold = [b for b in bold if _NUMBER.fullmatch(b)]
    numbers = _NUMBER.findall(tail)
    last_math = tail.rfind(formulas[-1]) if formulas else -1
    if formulas and not _NUMBER.search(tail[last_math + len(formulas[-1]) :]):
        return Extraction(formulas[-1].strip(), LAST_RESORT)
    if bold:
        return Extraction(bold[-1], LAST_RESORT)
    if numbers:
        return Extraction(numbers[-1].strip(), LAST_RESORT)
    return Extraction(None, "no answer found")


def _last_tag(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end] if start >= 0 else None


def find_answer(response: object) -> Extraction:
    """Find the answer of a response, and say how; never raises."""
    if not isinstance(response, str) or not response.strip():
        return Extraction(None, "no answer found")
    text = final_part(response)
    if text is None:
        return Extraction(None, "the reasoning never ended")
    if (boxed := last_box(text)) is not None:
        return boxed
    if (tagged := _last_tag(text)) is not None:
        return Extraction(tagged.strip() or None, "answer tag")
    if hashes := [h.strip() for h in _HASHES.findall(text)]:
        last = hashes[-1].strip("* ")
        if last and not is_prose(last):
            return Extraction(last, "####")
    if (phrase := _after_phrase(text)) is not None:
        return phrase
    if not is_prose(text):
        return Extraction(text.strip(), "whole response")
    return _last_resort(text)
