"""Give an expression a value at a point: exactly if possible, else mpmath.

Rational arithmetic stays in :class:`fractions.Fraction`. Everything else is
a multi-precision float of the context's precision. Sizes are checked before
a power or factorial is computed, so no input can make this slow.
"""

from __future__ import annotations

import math
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from helpers.grading.tree import Node

MAX_EXACT_BITS = 20_000
MAX_EXACT_SUM = 200_000
MAX_LOG2 = 1_000_000
MAX_STEPS = 20_000
DIGITS_A_STEP = 50
BUDGET_S = 0.4  # ten times what the slowest labelled case needs
MAX_ROOT_BITS = 2_000
MAX_ROOT = 9  # larger denominators come from probe points, not roots
_LOCAL = threading.local()


class OutOfDomain(ArithmeticError):
    """The expression has no (real) value at this point."""


class TooLarge(ArithmeticError):
    """A value is too large to compute with."""


def get_context() -> Any:
    """Return this thread's mpmath context (mpmath loads on first use)."""
    if not hasattr(_LOCAL, "context"):
        import mpmath

        _LOCAL.context = mpmath.mp.clone()
    return _LOCAL.context


@contextmanager
def limited_time() -> Iterator[None]:
    """Give this thread :data:`BUDGET_S` of CPU time for one comparison."""
    _LOCAL.stop_at = time.thread_time() + BUDGET_S
    try:
        yield
    finally:
        del _LOCAL.stop_at


def out_of_time() -> bool:
    """Say whether the budget of this comparison is used up."""
    return time.thread_time() > getattr(_LOCAL, "stop_at", math.inf)


@dataclass
class Settings:
    """How to read what has two readings, and the value of each variable.

    Attributes:
        point: the value of each variable.
        complex_ok: whether values may leave the real line.
        degree_unit: what one degree is outside of sin, cos, tan …
        log_base: the base of a bare ``log``.
        span: largest ratio (in digits) between terms that were added.
    """

    point: Mapping[str, Fraction]
    complex_ok: bool = False
    radians: bool = False
    decimal_log: bool = False
    complex_z: bool = False
    span: float = 0.0
    steps: int = field(default=0, repr=False)


class Evaluator:
    """Evaluates nodes with one set of settings and one precision."""

    def __init__(self, settings: Settings, digits: int):
        self.settings = settings
        self.mp = get_context()
        self.mp.dps = digits
        self.cost = max(1, digits // DIGITS_A_STEP)

    def value(self, node: Node) -> Any:
        """Return a Fraction, or an mpf/mpc of the context.

        Raises:
            OutOfDomain: no value here, for example log(0).
            TooLarge: the value has too many digits.
        """
        self.settings.steps += self.cost
        if self.settings.steps > MAX_STEPS or out_of_time():
            raise TooLarge("too many steps")
        result = getattr(self, f"_{node[0]}")(node)
        if isinstance(result, Fraction):
            return result
        if isinstance(result, self.mp.mpc):
            if result.imag == 0:
                result = result.real
            elif not self.settings.complex_ok:
                raise OutOfDomain("not real")
        if not self.mp.isfinite(result):
            raise OutOfDomain("not finite")
        if self.mp.mag(result) > MAX_LOG2:
            raise TooLarge("too large")
        return result

    def inexact(self, value: Any) -> Any:
        """Return the value as a number of the context."""
        if isinstance(value, Fraction):
            return self.mp.mpf(value.numerator) / value.denominator
        return value

    def _num(self, node: Node) -> Any:
        return node[1]

    def _sym(self, node: Node) -> Any:
        value = self.settings.point[node[1]]
        if self.settings.complex_z and node[1][0] in "zw":
            return self.mp.mpc(self.inexact(value), self.inexact(value**3 / 5))
        return value

    def _const(self, node: Node) -> Any:
        if node[1] == "pi":
            return +self.mp.pi
        if node[1] == "e":
            return +self.mp.e
        if node[1] == "i":
            return self.mp.mpc(0, 1)
        raise OutOfDomain(node[1])

    def _add(self, node: Node) -> Any:
        return self.total([self.value(part) for part in node[1]])

    def total(self, values: list[Any]) -> Any:
        """Add, and note how far apart the sizes of the terms are."""
        exact = all(isinstance(v, Fraction) for v in values)
        if exact and sum(map(_bits, values)) < MAX_EXACT_SUM:
            return sum(values, Fraction(0))
        values = [self.inexact(v) for v in values]
        sizes = [self.mp.mag(v) for v in values if v]
        if sizes:
            span = float(max(sizes) - min(sizes)) * math.log10(2)
            self.settings.span = max(self.settings.span, span)
        return self.mp.fsum(values)

    def _mul(self, node: Node) -> Any:
        result: Any = Fraction(1)
        for part in node[1]:
            result = self.multiply(result, self.value(part))
        return result

    def multiply(self, a: Any, b: Any) -> Any:
        """Multiply; exact while the numbers stay small enough."""
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            if _bits(a) + _bits(b) < MAX_EXACT_BITS:
                return a * b
            return self.inexact(a) * self.inexact(b)
        return self.inexact(a) * self.inexact(b)

    def _neg(self, node: Node) -> Any:
        return -self.value(node[1])

    def _div(self, node: Node) -> Any:
        top, low = self.value(node[1]), self.value(node[2])
        if not low:
            raise OutOfDomain("division by zero")
        if isinstance(low, Fraction):
            return self.multiply(top, 1 / low)
        return self.inexact(top) / self.inexact(low)

    def _deg(self, node: Node) -> Any:
        value = self.value(node[1])
        if self.settings.radians:
            return self.inexact(value) * self.mp.pi / 180
        return value

    def _pow(self, node: Node) -> Any:
        return self.power(self.value(node[1]), self.value(node[2]))

    def power(self, base: Any, exponent: Any) -> Any:
        """Raise to a power; odd roots of negative numbers are real."""
        if not base:
            if isinstance(exponent, self.mp.mpc) or exponent < 0:
                raise OutOfDomain("0 to a negative power")
            return Fraction(int(exponent == 0))
        if isinstance(exponent, Fraction):
            if exponent.denominator == 1:
                return self.integer_power(base, int(exponent))
            if self.has_odd_root(base, exponent):
                size = self.power(-base, exponent)
                return -size if exponent.numerator % 2 else size
            root = exact_root(base, exponent.denominator)
            if root is not None:
                return self.integer_power(root, exponent.numerator)
        return self.general_power(base, exponent)

    def has_odd_root(self, base: Any, exponent: Fraction) -> bool:
        """Say whether a negative base has a real root of this index."""
        if self.settings.complex_ok:
            return False
        index = exponent.denominator
        return bool(base < 0 and index % 2 and index <= MAX_ROOT)

    def integer_power(self, base: Any, exponent: int) -> Any:
        """Raise to an integer power, exactly when that is affordable."""
        if isinstance(base, Fraction):
            if abs(base) == 1:
                return base if exponent % 2 else Fraction(1)
            if _bits(base) * abs(exponent) < MAX_EXACT_BITS:
                return base**exponent
        value = self.inexact(base)
        self.check_growth(value, exponent)
        return value**exponent

    def general_power(self, base: Any, exponent: Any) -> Any:
        """Raise to any power, after a look at the size of the result."""
        base, exponent = self.inexact(base), self.inexact(exponent)
        self.check_growth(base, exponent)
        return self.mp.power(base, exponent)

    def check_growth(self, base: Any, exponent: Any) -> None:
        """Refuse powers whose result has more than MAX_LOG2 bits."""
        if isinstance(exponent, int):
            if exponent.bit_length() > 40:
                raise TooLarge("huge exponent")
            exponent = self.mp.mpf(exponent)
        if self.mp.mag(exponent) > 40:
            raise TooLarge("huge exponent")
        if abs(self.mp.log(base)) * abs(exponent) > MAX_LOG2:
            raise TooLarge("huge power")

    def _apply(self, node: Node) -> Any:
        """Give an unknown function f some fixed smooth value."""
        key = zlib.crc32(f"{node[1]}/{len(node[2])}".encode())
        result = self.mp.mpf(key % 97) / 89
        for place, part in enumerate(node[2], start=2):
            value = self.inexact(self.value(part))
            self.check_argument(value)
            shift = self.mp.mpf(key // place % 101) / 103
            result += self.mp.sin(value * (1 + shift) / 3 + shift) * place
        return result

    def check_argument(self, value: Any) -> None:
        """Refuse arguments whose sine would need thousands of digits."""
        if self.mp.mag(value) > 4_000:
            raise TooLarge("huge argument")

    def _call(self, node: Node) -> Any:
        from helpers.grading.functions import call

        return call(self, node[1], node[2])


def exact_root(value: Any, index: int) -> Fraction | None:
    """Return the root of a positive fraction when it is one, else None."""
    if not isinstance(value, Fraction) or value < 0 or index > MAX_ROOT:
        return None
    if _bits(value) > MAX_ROOT_BITS:
        return None
    parts = [_whole_root(n, index) for n in value.as_integer_ratio()]
    root = Fraction(*parts)
    return root if root**index == value else None


def _whole_root(value: int, index: int) -> int:
    """Return the whole part of a root (Newton's method, from above)."""
    if index == 2:
        return math.isqrt(value)
    root = 1 << -(-value.bit_length() // index)
    while (
        lower := ((index - 1) * root + value // root ** (index - 1)) // index
    ) < root:
        root = lower
    return root


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()
