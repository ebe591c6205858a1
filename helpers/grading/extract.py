"""Find the answer that a response commits to.

Order: text after ``</think>`` only; last ``\\boxed``/``\\fbox``; last
``<answer>``; last ``####``; last "final answer" / "answer is" (also a few
other languages); a response that is nothing but an answer; and, labelled as
the last resort, the last formula or number of the text.
"""

from __future__ import annotations

import re

from helpers.grading.normalize import match_brace
from helpers.grading.prose import (
    MATH_WORDS,
    NUMBER,
    WORD,
    Extraction,
    has_words,
    is_prose,
    last_resort,
)
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
