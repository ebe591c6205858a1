"""Are two expressions equal? Evaluate both at fixed points and see.

The points have both signs and different sizes; values agree to at least 40
digits relative to their own size, so that 1/2004! and 1/2006! differ, and
0 is not 10^{-30}. Probing accepts *and* vetoes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from helpers.grading.evaluate import (
    Evaluator,
    OutOfDomain,
    Settings,
    TooLarge,
    note_limit,
)
from helpers.grading.reader import Node, contains, symbols

DIGITS = 50
MAX_DIGITS = 1_500
_BASE = [
    Fraction(37, 23), Fraction(11, 29), Fraction(-13, 17), Fraction(173, 19),
    Fraction(-41, 11), Fraction(5, 31), Fraction(61, 53),
]  # fmt: skip
_WHOLE = range(3, 9)
NOTHING = None  # the value where an expression has none


def make_points(names: set[str]) -> list[dict[str, Fraction]]:
    """Return the real points: one value for each variable, all different."""
    ordered = sorted(names)
    if not ordered:
        return [{}]
    count = len(_BASE)
    points = []
    for t in range(count):
        # One point has all variables positive, the others mix the signs.
        first = {
            name: _BASE[(t + 3 * i) % count] * Fraction(97 + 7 * i, 101)
            for i, name in enumerate(ordered)
        }
        points.append(first)
    positive = [
        {
            name: abs(_BASE[(t + i) % count]) * Fraction(103 + 11 * i, 107)
            for i, name in enumerate(ordered)
        }
        for t in range(2, 6, 2)
    ]
    return points + positive


def far_points(names: set[str], *nodes: Node) -> list[dict[str, Fraction]]:
    """Return points far from zero for what may have a kink there.

    Near zero, |x - 100| is 100 - x.
    """
    kinks = [("call", name) for name in ("abs", "max", "min", "sqrt")]
    if not any(contains(n, *kink) for n in nodes for kink in kinks):
        return []
    return [
        {
            name: sign * Fraction(10_007 + 210 * i, 11)
            for i, name in enumerate(sorted(names))
        }
        for sign in (1, -1)
    ]


def whole_points(names: set[str]) -> list[dict[str, Fraction]]:
    """Return points of positive integers, for n, (-1)^n and the like."""
    ordered = sorted(names)
    return [
        {
            name: Fraction(_WHOLE[(t + i) % len(_WHOLE)] + i // len(_WHOLE))
            for i, name in enumerate(ordered)
        }
        for t in range(len(_WHOLE))
    ]


def _both(
    function: Callable[[Evaluator], list[Any]],
    settings: Settings,
    digits: int,
) -> list[Any]:
    settings.span, settings.steps = 0.0, 0
    return function(Evaluator(settings, digits))


def _value_or_nothing(ev: Evaluator, node: Node) -> Any:
    try:
        return ev.value(node)
    except OutOfDomain:
        return NOTHING


def close(low: list[Any], high: list[Any], digits: int, mp: Any) -> bool:
    """Compare a pair evaluated with ``digits`` and with twice as many.

    A difference that shrinks as the precision grows is rounding; one that
    stays is real, however small it is.
    """
    one, two = (_inexact(v, mp) for v in high)
    gap = abs(one - two)
    if gap <= max(abs(one), abs(two)) * mp.mpf(10) ** (-digits - 20):
        return True
    before = [_inexact(v, mp) for v in low]
    coarse = abs(before[0] - before[1])
    return bool(gap <= coarse * mp.mpf(10) ** (20 - digits))


def _inexact(value: Any, mp: Any) -> Any:
    if isinstance(value, Fraction):
        return mp.mpf(value.numerator) / value.denominator
    return value


def compare_at(
    pair: Callable[[Evaluator], list[Any]], settings: Settings
) -> str:
    """Return "equal", "different", "one-sided" or "nowhere" at a point.

    Raises:
        TooLarge: the values cannot be computed within the limits.
    """
    digits = DIGITS
    low = _both(pair, settings, digits)
    missing = [v is NOTHING for v in low]
    if any(missing):
        return "nowhere" if all(missing) else "one-sided"
    if settings.span > 15:
        digits = int(DIGITS + 2 * settings.span)
        if digits > MAX_DIGITS:
            raise TooLarge("terms of very different size")
        low = _both(pair, settings, digits)
    if all(isinstance(v, Fraction) for v in low):
        return "equal" if low[0] == low[1] else "different"
    high = _both(pair, settings, 2 * digits)
    if any(v is NOTHING for v in low + high):
        return "nowhere"
    mp = Evaluator(settings, 2 * digits).mp
    return "equal" if close(low, high, digits, mp) else "different"


def _scan(
    left: Node, right: Node, points: list[dict[str, Fraction]], base: Settings
) -> dict[str, int]:
    def pair(ev: Evaluator) -> list[Any]:
        return [_value_or_nothing(ev, n) for n in (left, right)]

    tally = {"equal": 0, "different": 0, "one-sided": 0, "nowhere": 0}
    for point in points:
        here = replace(base, point=point)
        result = compare_at(pair, here)
        if result == "one-sided" and not base.complex_ok:
            # e^{ln x} is x below zero too, but ln x is not ln |x| there.
            if compare_at(pair, replace(here, complex_ok=True)) == "equal":
                result = "equal"
        tally[result] += 1
        if tally["different"] or (tally["one-sided"] and tally["equal"]):
            break
    return tally


def equal_nodes(left: Node, right: Node, **readings: Any) -> bool | None:
    """Say whether two expressions are equal; None when probing cannot tell.

    Args:
        left, right: expressions from ``reader.read``.
        readings: fields of :class:`Settings` (radians, decimal_log).
    """
    names = symbols(left) | symbols(right)
    imaginary = any(contains(n, "const", "i") for n in (left, right))
    base = Settings({}, imaginary, complex_z=imaginary, **readings)
    try:
        tally = _scan(left, right, make_points(names), base)
        if tally["different"]:
            return False
        if not tally["equal"] and names:
            # Defined at no real point on one side: try whole numbers.
            tally = _scan(left, right, whole_points(names), base)
            if tally["different"]:
                return False
        if not tally["equal"]:
            base = replace(base, complex_ok=True)
            tally = _scan(left, right, make_points(names), base)
    except TooLarge as error:
        note_limit(error)
        return None
    if tally["different"] or tally["one-sided"]:
        return False
    if not names:
        return True if tally["equal"] else None
    if tally["equal"] < 2:
        return None
    return _agree_far(left, right, names, base)


def _agree_far(
    left: Node, right: Node, names: set[str], base: Settings
) -> bool:
    try:
        tally = _scan(left, right, far_points(names, left, right), base)
    except TooLarge:
        return True
    return not tally["different"]


def equal_relations(
    left: tuple[Node, Node], right: tuple[Node, Node], directed: bool
) -> bool | None:
    """Say whether ``a = b`` and ``c = d`` are multiples of each other.

    Args:
        left, right: the two sides of each relation.
        directed: for inequalities, the factor must be positive.
    """
    names = set().union(*(symbols(n) for n in (*left, *right)))
    if not names:
        return None
    gap_one = ("add", [left[0], ("neg", left[1])])
    gap_two = ("add", [right[0], ("neg", right[1])])
    imaginary = any(contains(n, "const", "i") for n in (gap_one, gap_two))
    first: list[dict[str, Fraction]] = []
    agreed = 0
    far = far_points(names, gap_one, gap_two)
    for point in make_points(names) + far:
        settings = Settings(point, imaginary, complex_z=imaginary)
        try:
            if not first:
                if _usable(gap_one, gap_two, settings):
                    first.append(point)
                continue
            result = _same_ratio(gap_one, gap_two, first[0], settings)
        except TooLarge as error:
            if point in far:
                continue
            note_limit(error)
            return None
        if result in ("different", "one-sided"):
            return False
        agreed += result == "equal"
    if not first:
        return None
    if directed and not _positive_ratio(
        gap_one, gap_two, replace(settings, point=first[0])
    ):
        return False
    return True if agreed >= 2 else None


def _usable(a: Node, b: Node, settings: Settings) -> bool:
    """Say whether both have a value at a point, and none is zero."""
    ev = Evaluator(settings, DIGITS)
    one, two = _value_or_nothing(ev, a), _value_or_nothing(ev, b)
    return bool(one) and bool(two)


def _positive_ratio(a: Node, b: Node, settings: Settings) -> bool:
    """Say whether a/b is positive at a point that is usable."""
    ev = Evaluator(settings, DIGITS)
    ratio = ev.inexact(ev.value(a)) / ev.inexact(ev.value(b))
    return not isinstance(ratio, ev.mp.mpc) and bool(ratio > 0)


def _same_ratio(
    a: Node, b: Node, origin: dict[str, Fraction], settings: Settings
) -> str:
    """Compare a(p)·b(o) with b(p)·a(o): is a/b the same at both points?"""

    def pair(ev: Evaluator) -> list[Any]:
        here = [_value_or_nothing(ev, n) for n in (a, b)]
        at_origin = Evaluator(
            replace(settings, point=origin, steps=0), ev.mp.dps
        )
        there = [_value_or_nothing(at_origin, n) for n in (a, b)]
        return [
            NOTHING if NOTHING in factors else ev.multiply(*factors)
            for factors in zip(here, there[::-1], strict=True)
        ]

    return compare_at(pair, settings)
