"""Sets of real numbers: intervals, inequalities, unions, single points."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from helpers.grading.evaluate import Evaluator, OutOfDomain, Settings, TooLarge
from helpers.grading.probe import equal_nodes
from helpers.grading.reader import ReadError, read, symbols
from helpers.grading.shapes import Value
from helpers.grading.spelling import canonical

_INFINITE = re.compile(r"([-+]?)\s*(?:\\infty|oo|infinity|inf)", re.I)


class Piece(NamedTuple):
    """One interval; a point has twice the same end, both closed."""

    low: str
    low_closed: bool
    high: str
    high_closed: bool


REALS = [Piece("-oo", False, "oo", False)]


def infinite_sign(text: str) -> int:
    """Return +1 or -1 for plus or minus infinity, else 0."""
    found = _INFINITE.fullmatch(text.strip())
    if found is None:
        return 0
    return -1 if found[1] == "-" else 1


def same_text_value(one: str, two: str) -> bool | None:
    """Compare two ends; None when they cannot be read."""
    signs = infinite_sign(one), infinite_sign(two)
    if any(signs):
        return signs[0] == signs[1]
    try:
        return equal_nodes(read(one), read(two))
    except ReadError:
        return True if canonical(one) == canonical(two) else None


def to_pieces(value: Value) -> list[Piece] | None:
    """Return a value as intervals, or None when it is not such a set."""
    if value.kind == "reals":
        return list(REALS)
    if value.kind == "empty":
        return []
    if value.kind in ("interval", "tuple") and len(value.items) == 2:
        if any(v.kind != "scalar" for v in value.items):
            return None
        low, high = (v.text for v in value.items)
        return [Piece(low, value.marks[0] == "[", high, value.marks[1] == "]")]
    if value.kind == "set":
        if any(v.kind != "scalar" for v in value.items):
            return None
        return [Piece(v.text, True, v.text, True) for v in value.items]
    if value.kind == "relation":
        return _from_relation(value)
    if value.kind == "union" or value.marks == ["or"]:
        parts = [to_pieces(v) for v in value.items]
        if any(p is None for p in parts) or not has_one_variable(value.items):
            return None
        return [piece for part in parts if part for piece in part]
    if not value.marks and is_bounds(value):
        both = Value("list", value.text, value.items, ["and"])
        return to_pieces(both)
    if value.marks == ["and"]:
        if any(v.kind != "relation" or "=" in v.marks for v in value.items):
            return None
        if not has_one_variable(value.items):
            return None
        return _overlap(value.items) or _intersect(
            [to_pieces(v) for v in value.items]
        )
    if value.kind == "overlap":
        return _intersect([to_pieces(v) for v in value.items])
    if value.kind == "minus":
        return _without_points(*map(to_pieces, value.items))
    return None


def is_bounds(value: Value) -> bool:
    """Say whether a list may be a lower and an upper bound: x > 1, x < 4."""
    if any(v.kind != "relation" for v in value.items):
        return False  # such as the rows of a matrix
    return bool(_overlap(value.items))


def _overlap(items: list[Value]) -> list[Piece] | None:
    """Return the interval of ``x > a and x < b``; the ends may be letters."""
    match [to_pieces(v) for v in items]:
        case [[low], [high]]:
            if low.low == "-oo":
                low, high = high, low
            if low.high == "oo" and high.low == "-oo":
                ends = low.low, low.low_closed, high.high, high.high_closed
                return [Piece(*ends)]
    return None


def _intersect(parts: list[list[Piece] | None]) -> list[Piece] | None:
    """Return what several sets have in common; ends must be numbers."""
    common: list[Piece] = list(REALS)
    for part in parts:
        if part is None:
            return None
        pairs = [_meet(one, two) for one in common for two in part]
        if any(pair is None for pair in pairs) or len(pairs) > 200:
            return None
        common = [piece for pair in pairs if pair for piece in pair]
    return common


def _meet(one: Piece, two: Piece) -> list[Piece] | None:
    ends: dict[str, Any] = {e: _number(e) for e in (*one[::2], *two[::2])}
    if None in ends.values():
        return None
    # An open end lies further in than a closed one at the same number.
    low = max(one, two, key=lambda p: (ends[p.low], not p.low_closed))
    high = min(one, two, key=lambda p: (ends[p.high], p.high_closed))
    if ends[low.low] > ends[high.high]:
        return []
    return [Piece(low.low, low.low_closed, high.high, high.high_closed)]


def has_one_variable(values: list[Value]) -> bool:
    """Say whether all relations of a list are about the same variable."""
    names = set()
    for value in values:
        if value.kind == "relation":
            middle = 1 if len(value.items) == 3 else 0
            sides = [v.text for v in value.items]
            name = sides[middle]
            if not _is_variable(name):
                name = sides[1]
            names.add(canonical(name))
    return len(names) <= 1


def _is_variable(text: str) -> bool:
    return bool(
        re.fullmatch(
            r"(?:[A-Za-z]|\\[a-z]+)\s*(?:_\s*(?:\w|\{\w+\}))?"
            r"\s*(?:\(\s*[a-z]\s*\))?",
            text.strip(),
        )
    ) and text.strip() not in ("e", "i", r"\pi", r"\infty")


def _from_relation(value: Value) -> list[Piece] | None:
    sides = [v.text for v in value.items]
    marks = value.marks
    if any(v.kind != "scalar" for v in value.items):
        return None
    if len(sides) == 3:
        if not _is_variable(sides[1]):
            return None
        if all(m in ("<", "<=") for m in marks):
            low, high = sides[0], sides[2]
        elif all(m in (">", ">=") for m in marks):
            low, high, marks = sides[2], sides[0], marks[::-1]
        else:
            return None
        return [Piece(low, "=" in marks[0], high, "=" in marks[1])]
    if len(sides) != 2:
        return None
    left, right, mark = sides[0], sides[1], marks[0]
    if not _is_variable(left):
        if not _is_variable(right):
            return None
        left, right = right, left
        mark = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(mark, mark)
    if canonical(left) in canonical(right):
        return None
    if mark == "=":
        return [Piece(right, True, right, True)]
    if mark == "!=":
        return [
            Piece("-oo", False, right, False),
            Piece(right, False, "oo", False),
        ]
    if "<" in mark:
        return [Piece("-oo", False, right, "=" in mark)]
    return [Piece(right, "=" in mark, "oo", False)]


def _without_points(
    whole: list[Piece] | None, points: list[Piece] | None
) -> list[Piece] | None:
    if whole is None or points is None:
        return None
    for point in points:
        cuts = [_cut(piece, point) for piece in whole]
        if any(cut is None for cut in cuts):
            return None
        whole = [piece for cut in cuts if cut for piece in cut]
    return whole


def _cut(piece: Piece, point: Piece) -> list[Piece] | None:
    """Take a point out of an interval; None unless all are numbers."""
    at = point.low
    ends = _number(piece.low), _number(piece.high), _number(at)
    if at != point.high or None in ends:
        return None
    low, high, middle = (e[0] for e in ends if e is not None)
    if not low <= middle <= high:
        return [piece]
    return [
        Piece(piece.low, piece.low_closed, at, False),
        Piece(at, False, piece.high, piece.high_closed),
    ]


def _number(text: str) -> tuple[Any] | None:
    """Return a one-tuple with the value of a constant end."""
    if sign := infinite_sign(text):
        return (sign * float("inf"),)
    try:
        node = read(text)
        if symbols(node):
            return None
        ev = Evaluator(Settings(point={}), 30)
        return (float(ev.inexact(ev.value(node))),)
    except (ReadError, OutOfDomain, TooLarge, OverflowError):
        return None


def tidy_pieces(pieces: list[Piece]) -> list[Piece] | None:
    """Sort intervals and join those that touch; None if ends are unknown."""
    keyed = []
    for piece in pieces:
        low, high = _number(piece.low), _number(piece.high)
        if low is None or high is None:
            return None
        if low[0] > high[0]:
            return None
        if low[0] == high[0] and not (piece.low_closed and piece.high_closed):
            continue
        # An end that belongs to its interval lies past one that does not.
        first = low[0], not piece.low_closed
        keyed.append((first, (high[0], piece.high_closed), piece))
    keyed.sort(key=lambda k: k[:2])
    joined: list[tuple[Any, Piece]] = []
    for (start, opened), end, piece in keyed:
        if not joined or (start, opened) > joined[-1][0]:
            joined.append((end, piece))
        elif end > joined[-1][0]:
            last = joined[-1][1]._replace(
                high=piece.high, high_closed=piece.high_closed
            )
            joined[-1] = end, last
    return [piece for _, piece in joined]


def same_pieces(one: list[Piece], two: list[Piece]) -> bool | None:
    """Compare two unions of intervals end by end; None when unreadable."""
    left, right = tidy_pieces(one), tidy_pieces(two)
    if left is None or right is None:
        left, right = one, two
    if len(left) != len(right):
        return False
    unknown = False
    for a, b in zip(left, right, strict=True):
        closed = (a.low_closed, a.high_closed) == (b.low_closed, b.high_closed)
        if not closed:
            return False
        for x, y in ((a.low, b.low), (a.high, b.high)):
            same = same_text_value(x, y)
            if same is False:
                return False
            unknown |= same is None
    return None if unknown else True
