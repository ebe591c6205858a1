"""What runs inside the worker process: math-verify on two boxed answers.

``pool`` starts it and ``server`` talks to the parent. math-verify's own time
limits are off (they use signals, which only work in the main thread of a
POSIX process); the parent's deadline ends a hanging worker from outside.
sympy and math-verify are imported here only.
"""

from __future__ import annotations

from typing import Any

from helpers.grading.server import serve


def parse_boxed(answer: str) -> list[Any]:
    """Return what math-verify reads in an answer, written in a box."""
    from math_verify import LatexExtractionConfig, parse

    return parse(
        f"\\boxed{{{answer}}}",
        extraction_config=[LatexExtractionConfig()],
        parsing_timeout=None,
    )


def _values_differ(left: Any, right: Any) -> bool:
    """Say whether two scalar expressions are surely not equal.

    math-verify rounds to six decimals, which calls 1/2004! and 1/2006!
    equal; 60 digits, and a difference relative to the size, do not.
    """
    import sympy

    if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)):
        return False
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    point = {
        s: sympy.Rational(37 + 14 * i, 23 + 6 * i)
        for i, s in enumerate(symbols)
    }
    try:
        one = left.subs(point).evalf(60)
        two = right.subs(point).evalf(60)
        size = max(abs(one), abs(two))
        return bool(abs(one - two) > size * sympy.Float("1e-40", 60))
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return False


def compare(gold: str, predicted: str) -> str:
    """Return "equal", "different" or "unreadable" for two answers."""
    from math_verify import verify

    left, right = parse_boxed(gold), parse_boxed(predicted)
    if any(isinstance(next(iter(side), ""), str) for side in (left, right)):
        # Nothing or only text was read: no mathematics to compare.
        return "unreadable"
    same = verify(left, right, timeout_seconds=None)
    if same and _values_differ(left[0], right[0]):
        return "different"
    return "equal" if same else "different"


def main() -> None:
    """Compare the pairs that the parent sends, until it ends."""
    serve(lambda pair: compare(*pair), warm_up=lambda: compare("1+1", "2"))
