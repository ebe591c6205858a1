"""Does a set of numbers solve a relation that the reference leaves open?

The reference ``x^2 > 4`` is met by ``x < -2 or x > 2``: every end of the
answer must be a point where the sides meet (or one is undefined), and the
relation must hold inside and fail outside, at many points. An equation must
be a polynomial; its real roots are counted exactly (Sturm).
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import inf
from typing import Any

from helpers.grading.evaluate import (
    Evaluator,
    OutOfDomain,
    Settings,
    TooLarge,
    get_context,
)
from helpers.grading.lexer import ReadError
from helpers.grading.reader import read
from helpers.grading.solutions import Piece, tidy_pieces, to_pieces
from helpers.grading.structure import Value
from helpers.grading.tree import Node, children, symbols

DIGITS = 50
_ROUNDING = Fraction(1, 10**30)
MAX_DEGREE = 8
_ROOTS = frozenset({"abs", "sqrt"})
_SHIFT, _STRIDE = Fraction(1, 5), Fraction(3, 7)
_STEPS = [Fraction(4**n, 7) for n in range(8)]
_INSIDE = [Fraction(n, 17) for n in range(1, 17, 2)]


class _Relation:
    """The sides of a relation in one variable, as gaps to zero."""

    def __init__(self, value: Value):
        sides = [read(item.text) for item in value.items]
        names = set().union(*map(symbols, sides))
        if len(names) != 1:
            raise ReadError("not in one variable")
        self.name = names.pop()
        self.marks = value.marks
        self.gaps: list[Node] = [
            ("add", [one, ("neg", two)]) for one, two in pairwise(sides)
        ]
        self.tame = all(_is_algebraic(node, _ROOTS) for node in self.gaps)

    def gap(self, node: Node, point: Any) -> Any:
        """Return a gap at a point; 0 for rounding, None if undefined."""
        ev = Evaluator(Settings(point={self.name: point}), DIGITS)
        try:
            value = ev.value(node)
        except OutOfDomain:
            return None
        value = value if isinstance(value, Fraction) else _exact(value)
        return Fraction(0) if abs(value) < _ROUNDING else value

    def holds(self, point: Any) -> bool:
        """Say whether the relation holds at a point."""
        for node, mark in zip(self.gaps, self.marks, strict=True):
            gap = self.gap(node, point)
            if gap is None:
                return False
            sign = (gap > 0) - (gap < 0)
            if sign not in _SIGNS[mark]:
                return False
        return True

    def meets(self, point: Any) -> bool:
        """Say whether two sides are equal, or one undefined, at a point."""
        return any(not self.gap(node, point) for node in self.gaps)


_SIGNS = {"<": {-1}, "<=": {-1, 0}, ">": {1}, ">=": {1, 0}, "=": {0},
          "!=": {-1, 1}}  # fmt: skip


def solves(gold: Value, predicted: Value) -> bool:
    """Say whether an answer is the solution set of the reference."""
    if predicted.kind == "list":
        if all(v.kind == "scalar" for v in predicted.items):
            predicted = Value("set", predicted.text, predicted.items)
        elif not predicted.marks:
            predicted = Value("union", predicted.text, predicted.items)
    pieces = to_pieces(predicted)
    if not pieces:
        return False
    if any(item.kind != "scalar" for item in gold.items):
        return False
    try:
        relation = _Relation(gold)
        tidy = tidy_pieces(pieces)
        if tidy is None:
            return False
        if gold.marks == ["="]:
            return _is_root_set(relation, tidy)
        return _is_solution_set(relation, tidy)
    except (ReadError, TooLarge, OutOfDomain, ZeroDivisionError):
        return False


def _end(text: str) -> Any:
    if text in ("oo", "-oo") or "inf" in text:
        return -inf if "-" in text else inf
    value = Evaluator(Settings(point={}), DIGITS).value(read(text))
    return value if isinstance(value, Fraction) else _exact(value)


def _exact(value: Any) -> Fraction:
    """Write a number of the context as a fraction, digit by digit."""
    sign, mantissa, exponent, _ = value._mpf_
    if abs(exponent) > 10_000:
        raise TooLarge("a very large or small number")
    return (
        Fraction(-1 if sign else 1) * int(mantissa) * Fraction(2) ** exponent
    )


def _is_solution_set(relation: _Relation, pieces: list[Piece]) -> bool:
    ends: list[Any] = []
    for piece in pieces:
        low, high = _end(piece.low), _end(piece.high)
        if low == high and not relation.tame:
            return False  # more points may lie anywhere: sin^2 x <= 0
        for at, closed in ((low, piece.low_closed), (high, piece.high_closed)):
            # At infinity nothing is defined, so it belongs to no solution.
            if not relation.meets(at) or relation.holds(at) != closed:
                return False
        ends.extend((low, high))
    finite = sorted({e for e in ends if abs(e) != inf})
    if not finite:
        return False
    roots = [r for node in relation.gaps for r in _find_roots(relation, node)]
    finite = sorted({*finite, *(r for r in roots if _is_apart(r, finite))})
    points = [finite[0] - s for s in _STEPS] + [finite[-1] + s for s in _STEPS]
    for left, right in pairwise(finite):
        points.extend(left + (right - left) * part for part in _INSIDE)
    points += [r for r in roots if _is_apart(r, ends)]
    spans = list(zip(ends[::2], ends[1::2], strict=True))
    return all(
        relation.holds(p) == any(low < p < high for low, high in spans)
        for p in points
    )


def _is_apart(root: Fraction, ends: list[Any]) -> bool:
    return all(abs(root - end) > _ROUNDING for end in ends)


def _find_roots(relation: _Relation, node: Node) -> list[Fraction]:
    """Real roots of a gap, to many digits; none where it is no polynomial."""
    polynomial = _find_polynomial(relation, node)
    if not polynomial:
        return []
    mp = get_context()
    with mp.workdps(DIGITS + 20):
        highest_first = [
            mp.mpf(c.numerator) / c.denominator for c in reversed(polynomial)
        ]
        try:
            found = mp.polyroots(highest_first, maxsteps=100, extraprec=200)
        except mp.NoConvergence:
            return []
        return [
            _STRIDE * _exact(mp.re(root)) + _SHIFT
            for root in found
            if abs(mp.im(root)) < mp.mpf(10) ** -20
        ]


def _is_root_set(relation: _Relation, pieces: list[Piece]) -> bool:
    if any(piece.low != piece.high for piece in pieces):
        return False
    if not all(relation.holds(_end(piece.low)) for piece in pieces):
        return False
    if not _is_algebraic(relation.gaps[0]):
        return False
    polynomial = _find_polynomial(relation, relation.gaps[0])
    return polynomial is not None and _count_roots(polynomial) == len(pieces)


def _is_algebraic(node: Node, allowed: frozenset[str] = frozenset()) -> bool:
    """Say whether a variable is in no exponent or function not allowed.

    At the points of :func:`_find_polynomial` |x| is x.
    """
    if not symbols(node):
        return True
    if node[0] == "pow":
        kind, exponent = node[2][:2]
        whole = kind == "num" and exponent.denominator == 1
        return whole and _is_algebraic(node[1], allowed)
    if node[0] == "call" and node[1] not in allowed:
        return False
    return all(_is_algebraic(child, allowed) for child in children(node))


def _find_polynomial(relation: _Relation, gap: Node) -> list[Fraction] | None:
    """Return the coefficients of the gap, lowest first, or None.

    Its variable n stands for x = _STRIDE n + _SHIFT.
    """
    count = MAX_DEGREE + 5
    # Between the whole numbers, where sin(pi x) would look like zero; the
    # number of roots is the same in n as in x.
    values = [relation.gap(gap, _STRIDE * n + _SHIFT) for n in range(count)]
    if any(v is None for v in values):
        return None
    # Newton's differences: those past the degree must vanish.
    newton, row = [], [Fraction(v) for v in values]
    while row:
        newton.append(row[0])
        row = [b - a for a, b in pairwise(row)]
    if any(newton[MAX_DEGREE + 1 :]):
        return None
    result: list[Fraction] = [Fraction(0)]
    basis = [Fraction(1)]
    for n, coefficient in enumerate(newton[: MAX_DEGREE + 1]):
        result = _add(result, [coefficient * b for b in basis])
        shifted = [Fraction(0), *basis]
        basis = [
            (a - n * b) / (n + 1)
            for a, b in zip(shifted, [*basis, Fraction(0)], strict=True)
        ]
    return _trim(result)


def _add(one: list[Fraction], two: list[Fraction]) -> list[Fraction]:
    size = max(len(one), len(two))
    pad = [p + [Fraction(0)] * (size - len(p)) for p in (one, two)]
    return [a + b for a, b in zip(*pad, strict=True)]


def _trim(poly: list[Fraction]) -> list[Fraction]:
    while poly and not poly[-1]:
        poly = poly[:-1]
    return poly


def _remainder(one: list[Fraction], two: list[Fraction]) -> list[Fraction]:
    while len(one) >= len(two):
        factor, shift = one[-1] / two[-1], len(one) - len(two)
        minus = [Fraction(0)] * shift + [-factor * c for c in two]
        one = _trim(_add(one, minus)[:-1])
    return one


def _count_roots(poly: list[Fraction]) -> int:
    """Count the distinct real roots with a Sturm chain."""
    chain = [poly, _trim([n * c for n, c in enumerate(poly)][1:])]
    while chain[-1]:
        chain.append([-c for c in _remainder(chain[-2], chain[-1])])
    chain.pop()
    changes = []
    for side in (-1, 1):
        signs = [
            (p[-1] > 0) != (side < 0 and len(p) % 2 == 0) for p in chain if p
        ]
        changes.append(sum(a != b for a, b in pairwise(signs)))
    return changes[0] - changes[1]
