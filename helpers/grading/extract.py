"""Find the answer that a response commits to.

Order: text after ``</think>`` only; last ``\\boxed``/``\\fbox``; last
``<answer>``; last ``####``; last "final answer" / "answer is" (also a few
other languages); a response that is nothing but an answer; and, labelled as
the last resort, the last formula or number of the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from helpers.grading.spelling import match_brace
from helpers.grading.trace import note

MAX_RESPONSE = 200_000
MAX_LINE = 2_000

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\b\s*")
_JOINED = re.compile(
    r"[\s$.]*(?:\\\]|\\\)|,|\\quad|\\qquad|\\text\s*\{\s*|and|or|\}|\\,|&|\\;"
    r"|\s|\$|\\\[|\\\()*"
)
_NAMED = re.compile(r"([A-Za-z])(?:_\{?\w+\}?)?\s*=\s*$")
_STOP_TOKEN = re.compile(
    r"<\|[^|<>]{1,40}\|>|<｜[^｜<>]{1,40}｜>|</s>|I hope it is correct"
)
_NEXT_QUESTION = re.compile(r"\n\n[ \t]*(?:Question|Problem|Q)\s*\d*\s*:")
_HAS_MARKER = re.compile(
    r"\\boxed\s*\{|####|<answer>|answer\s+is|answer\s*:", re.I
)
_HASHES = re.compile(r"####[ \t]*([^\n#]*)")
_PHRASES = re.compile(
    r"(?:(?:final\s+answer(?:\s+is)?|(?:correct\s+)?answer\s+(?:is|equals)"
    r"|answer|答案是|(?:option|choice|result)\s+is|答案|(?:^|\n)[ \t]*A(?=:))"
    r"\s*(?:\*\*|__)?\s*(?P<mark>[:：]|(?<=is)|(?<=equals)|"
    r"(?<=nal answer)\n|(?<=nal answer\*\*)\n)"
    r"|(?:\bans(?:wer)?\b\s*[.=:]|\bresult\s*:|[\"']\w*answer[\"']\s*:)"
    r"|\banswer\s+(?:would|should|must)\s+be\b|\banswer\s+comes\s+out\s+to\b"
    r"|\banswer\s+of\b(?=[\s$\\(]*[-−]?\d)"
    r"|(?:답|答案|答え|答)\s*(?:\*\*)?\s*[:：是为為は은는]"
    r"|(?P<comma>ответ|réponse|respuesta|antwort|risposta|resposta|antwoord|"
    r"odpowiedź|svaret|cevap)(?:\s+final\w*)?\s*(?:\*\*)?\s*"
    r"(?:(?:es|est|ist|lautet|is|è|é|är|er)(?:\s*[:：]|\s)|[:：]|—))"
    r"\s*(?:\*\*|__)?[ \t]*",
    re.I,
)
# Every phrase has one of these, in small letters.
_HINTS = (
    "ans", "option", "choice", "result", "a:", "答",
    "답", "ответ", "réponse", "respuesta", "resposta", "risposta",
    "antwo", "odpowiedź", "svaret", "cevap",
)  # fmt: skip
_SUPPOSED = re.compile(
    r"\b(?:suppose|assum\w+|if|whether|guess\w*|say|imagine)\b[^.\n]{0,20}$",
    re.I,
)
_CLAUSE = re.compile(r"^(?:[^\n.,;]|[.,](?=\d))*")
_SPOKEN = re.compile(
    r"^(?:(?:i think |i believe )?(?:it|that)(?:['’]s| is)|(?:i|we) get)\s+",
    re.I,
)
_BOLD_START = re.compile(r"\*\*([^*\n]*[^*\s])\*\*([^\n]{0,60})")
# What only explains or doubts the value, and names no other value.
_AFTERTHOUGHT = re.compile(
    r"\s*(?:\((?:since|because|as|from|i\.e|e\.g|which)\b[^()]*\)"
    r"|[,;]\s*(?:but|though|since|because|as|which|so)\b(?:(?!\bor\b)[^\d\\$])*"
    r"|,?\s+(?:and|but)\s+not\s.*|,\s*not\s.*)$"
)
# Three digits after a comma may be thousands; they stay as they are.
_DECIMAL_COMMA = re.compile(
    r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+|\d+),(\d{1,2}|\d{4,})(?![\d,])"
)
_FENCED = re.compile(
    r"```(?:\w*[ \t]*\n)?\s*([^`]*?)\s*```|`([^`]*)`|\*\*([^*]*)\*\*"
    r"|\"([^\"]*)\"|'([^']*)'"
)
_OPENED = re.compile(r"(?:[*_]{2})?(\\\[|\$\$|\\\(|\$(?=[^$\n]*\$))")
_LEAD = re.compile(
    r"^(?:(?:the|(?-i:an?)(?=\s+(?:[\d$]|\\\())|our|equals?|therefore|thus|so|"
    r"hence|option|choice|approximately|about|only|just|exactly)\b|[:=*_\s])+",
    re.I,
)


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
    short = len(later.answer) <= 60 and not has_words(later.answer)
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
        if name := _NAMED.search(between):  # x = [1] and x = [2]
            earlier = _NAMED.search(text[max(0, before[0] - 40) : before[0]])
            if earlier and earlier[1] == name[1]:
                between = between[: name.start()]
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


def _first_hint(text: str) -> int:
    """Return where the first answer phrase may begin (the end if nowhere).

    Looking for a few words first is many times faster than the pattern.
    """
    lowered = text.lower()
    if len(lowered) != len(text):
        return 0
    places = [lowered.find(word) for word in _HINTS]
    found = [place for place in places if place >= 0]
    return max(0, min(found) - 40) if found else len(text)


def _after_phrase(text: str) -> Extraction | None:
    found = None
    for phrase in _PHRASES.finditer(
        text, _first_hint(text)
    ):  # the last one counts
        found = found if _is_supposed(text, phrase) else phrase
    if found is None:
        return None
    rest = text[found.end() :].lstrip("} \n\t\r")
    if found[0].endswith("**") and _BOLD_START.match(f"**{rest}"):
        rest = f"**{rest}"  # "the answer is **42** apples"
    if not rest:
        return Extraction(None, "nothing follows the answer phrase")
    answer = _sentence_answer(rest)
    if found["comma"]:
        answer = _DECIMAL_COMMA.sub(_point, answer)
    return Extraction(answer, "answer phrase")


def _drop_supposed(text: str) -> str:
    """Leave out "if the answer is 41": what is supposed is no answer."""
    kept, position = [], 0
    for phrase in _PHRASES.finditer(text, _first_hint(text)):
        if _is_supposed(text, phrase):
            kept.append(text[position : phrase.start()])
            position = phrase.end()
            position += len(_CLAUSE.findall(text[position:])[0])
    return "".join([*kept, text[position:]])


def _is_supposed(text: str, phrase: re.Match[str]) -> bool:
    before = text[max(0, phrase.start() - 40) : phrase.start()]
    return bool(_SUPPOSED.search(before))


def _point(found: re.Match[str]) -> str:
    return found[1].replace(".", "") + "." + found[2]


def _sentence_answer(rest: str) -> str:
    """Return the answer from the words after "the answer is"."""
    if opened := _OPENED.match(rest):
        closer = {"\\[": "\\]", "\\(": "\\)"}.get(opened[1], opened[1])
        end = rest.find(closer, opened.end())
        if end > 0:
            after = rest[end + len(closer) :]
            tail = re.match(r"[^\n.;]{0,60}", after)
            inner = rest[opened.end() : end].strip()
            extra = tail[0] if tail else ""
            if "$" in extra or re.search(r"\d|\b(?:or|not|but)\b", extra):
                return _AFTERTHOUGHT.sub("", _first_line(rest))
            return inner
    bold = _BOLD_START.match(rest)
    if bold and not re.search(r"\d|\b(?:or|not)\b", bold[2]):
        return _last_clause(_first_line(bold[1]))
    return _last_clause(_first_line(rest))


def _first_line(rest: str) -> str:
    line = rest[:MAX_LINE].split("\n", 1)[0]
    sentences = re.split(r"。|[.!](?!\S)", line)
    line = next((s for s in sentences if s.strip(" .")), "")
    return line.strip().strip("*_").strip()


def _last_clause(line: str) -> str:
    line = _LEAD.sub("", line).strip().strip("*\"'").strip()
    if line.count("}") > line.count("{"):
        line = line.rstrip("} ").strip("\"'")
    if (shorter := _AFTERTHOUGHT.sub("", line)) != line:
        line = shorter if re.search(r"\d", shorter) else line
    if found := re.search(
        r"^.*\b(?:is|are|was|be|equals)\b:?\s+([^{}]*(?:\{.*)?)$", line
    ):
        line = found[1]
    words = [w for w in WORD.findall(line) if w not in MATH_WORDS]
    if len([w for w in words if len(w) > 2]) > 3:
        numbers = NUMBER.findall(line)
        line = numbers[0].strip() if len(numbers) == 1 else line
    if found := re.search(r"[是为]\s*(.+)$", line):
        line = found[1]
    return _LEAD.sub("", line).strip().strip("*").strip()


def _last_equation(text: str) -> str:
    """Return the last line of equations without words: x + 4 = 9, x = 5."""
    lines = [line.strip() for line in text.strip().split("\n") if line.strip()]
    if not 2 <= len(lines) <= 30 or "\\" in text:
        return text
    every = all("=" in line and not WORD.search(line) for line in lines)
    return lines[-1] if every else text


def _last_tag(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end] if start >= 0 else None


def find_answer(response: object) -> Extraction:
    """Find the answer of a response, and say how; never raises."""
    if not isinstance(response, str) or not response.strip():
        return Extraction(None, "no answer found")
    text = note("text after the reasoning", final_part(response))
    if text is None:
        return Extraction(None, "the reasoning never ended")
    if (boxed := note("box", last_box(text))) is not None:
        return boxed
    if (tagged := note("answer tag", _last_tag(text))) is not None:
        phrase = _after_phrase(tagged)
        inside = phrase.answer if phrase else tagged.strip()
        return Extraction(inside or None, "answer tag")
    if hashes := note("####", [h.strip() for h in _HASHES.findall(text)]):
        last = hashes[-1].strip("* ")
        if last and not is_prose(last):
            return Extraction(last, "####")
    if (phrase := note("answer phrase", _after_phrase(text))) is not None:
        return phrase
    if fenced := _FENCED.fullmatch(text.strip()):
        text = "".join(part or "" for part in fenced.groups())
        if note("answer phrase", phrase := _after_phrase(text)):
            return phrase
    text = _last_equation(_SPOKEN.sub("", text.strip()))
    if not note("prose", is_prose(text)):
        return Extraction(text.strip(), "whole response")
    return last_resort(_drop_supposed(text))


THINK = "<think>"


def read_answer(prompt: str, response: str) -> str:
    """The response as it is graded: with the mark that opens its reasoning.

    Chat formats of reasoning models write ``<think>`` into the prompt. A
    response that was cut before ``</think>`` looks like an answer without it.
    """
    opened = prompt.rstrip().endswith(THINK)
    return f"{THINK}\n{response}" if opened else response


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
