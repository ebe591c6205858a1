"""Where brackets open and close, and what they leave at the top."""

from __future__ import annotations

import re

_CLOSERS = {"(": ")]", "[": ")]", r"\lbr": (r"\rbr",)}


_STEP = re.compile(
    r"\\begin ?\{(\w+)\}|\\end ?\{(\w+)\}|\\[a-zA-Z]+|"
    r"(?<![A-Za-z\\])(?:and|or)(?![a-z])|⟦[^⟧]*⟧|.",
    re.S,
)


def scan(text: str) -> list[tuple[str, int]]:
    """Return the pieces of a text, each with its bracket depth."""
    pieces: list[tuple[str, int]] = []
    depth = 0
    for found in _STEP.finditer(text):
        piece = found[0]
        closes = piece in ")]}" or piece == r"\rbr" or found[2]
        if closes:
            depth -= 1
        pieces.append((piece, depth))
        if piece in "([{" or piece == r"\lbr" or found[1]:
            depth += 1
    return pieces


def split_top(text: str, marks: set[str]) -> tuple[list[str], list[str]]:
    """Split at marks outside of all brackets; return parts and marks."""
    if not any(mark in text for mark in marks):
        return [text.strip()], []
    parts, seen, current = [], [], []
    for piece, depth in scan(text):
        if depth == 0 and piece in marks:
            parts.append("".join(current).strip())
            seen.append(piece)
            current = []
        else:
            current.append(piece)
    parts.append("".join(current).strip())
    return parts, seen


def is_grouped_number(text: str) -> bool:
    """Say whether commas in the text only group digits by three."""
    return bool(
        re.fullmatch(r"[-+$ (]*\d{1,3}(,\d{3})+(\.\d+)?[ %)]*\D*", text)
    )


def split_list(text: str, grouped: bool = True) -> tuple[list[str], list[str]]:
    """Split a bare list at commas, semicolons, "and", "or"."""
    marks = {",", ";", "and", "or"}
    if re.search(r"[<=>]|\\[lg]e\b|\\ne\b", text):
        marks |= {r"\vee", r"\wedge"}  # p or q itself stays a formula
    if grouped:
        text = re.sub(r"(?<![\d,.])(\d{1,3}(?:,\d{3})+)(?![\d,])",
                      lambda m: m[0].replace(",", ""), text)  # fmt: skip
    parts, seen = split_top(text, marks)
    kept = [p for p in parts if p]
    return kept, seen


def outer_brackets(text: str) -> tuple[str, str, str] | None:
    """Return (opener, inside, closer) when one pair encloses everything."""
    match scan(text):
        case [(first, _), *inner, (last, _)]:
            inside = "".join(piece for piece, _ in inner).strip()
            closed = last in _CLOSERS.get(first, ())
            if closed and all(depth for _, depth in inner):
                return first, inside, last
    return None


def strip_doubled(text: str) -> str:
    """Drop outer braces, and round brackets that only enclose others.

    One pass over the text, however deep the nesting is.
    """
    if text[:1] != "{" and not text.startswith("(("):
        return text
    closes: dict[int, int] = {}
    stack: list[int] = []
    for i, char in enumerate(text):
        if char in "({":
            stack.append(i)
        elif char in ")}" and stack:
            closes[stack.pop()] = i
    i, j = 0, len(text) - 1
    while closes.get(i) == j:
        inner = i + 1
        while text[inner] == " ":
            inner += 1
        end = j - 1
        while text[end] == " ":
            end -= 1
        if text[i] != "{" and closes.get(inner) != end:
            break
        i, j = inner, end
    return text[i : j + 1]
