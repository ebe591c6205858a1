"""Give an expression a value at a point: exactly if possible, else mpmath.

Rational arithmetic stays in :class:`fractions.Fraction`. Everything else is
a multi-precision float of the context's precision. Sizes are checked before
a power or factorial is computed, and steps are counted, so no input can make
this slow. The functions stand at the end, each with its domain.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import zip_longest
from typing import Any

from helpers.grading.matrices import (
    find_determinant,
    find_entries,
    find_size,
)
from helpers.grading.reader import Node, ReadError, contains, symbols

MAX_EXACT_BITS = 20_000
MAX_EXACT_SUM = 200_000
MAX_LOG2 = 1_000_000
MAX_STEPS = 20_000
DIGITS_A_STEP = 50
MAX_WORK = 100_000
MAX_TERMS = 2_000
MAX_DEGREE = 50
MAX_DETERMINANT = 5
MAX_ROOT_BITS = 2_000
MAX_ROOT = 9  # larger denominators come from probe points, not roots
_LOCAL = threading.local()


class OutOfDomain(ArithmeticError):
    """The expression has no (real) value at this point."""


class TooLarge(ArithmeticError):
    """A value is too large to compute with."""


class OutOfSteps(Exception):
    """The comparison of two answers takes too many steps."""


def get_context() -> Any:
    """Return this thread's mpmath context (mpmath loads on first use)."""
    if not hasattr(_LOCAL, "context"):
        import mpmath

        _LOCAL.context = mpmath.mp.clone()
    return _LOCAL.context


@dataclass
class Work:
    """What the comparison of two answers has cost so far.

    A step is about the evaluation of one node with 50 digits. ``limit`` says
    which bound of a single value was met, if one was.
    """

    steps: int = 0
    limit: str = ""


@contextmanager
def count_steps() -> Iterator[Work]:
    """Count the steps of one comparison in this thread."""
    work = _LOCAL.work = Work()
    try:
        yield work
    finally:
        del _LOCAL.work


def spend(steps: int) -> None:
    """Count steps; the same texts always cost the same.

    Raises:
        OutOfSteps: this comparison has used :data:`MAX_WORK`.
    """
    work = getattr(_LOCAL, "work", None)
    if work is not None:
        work.steps += steps
        if work.steps > MAX_WORK:
            raise OutOfSteps(f"more than {MAX_WORK:,} steps")


def note_limit(error: TooLarge) -> None:
    """Keep which bound was met, for the reason of the verdict."""
    work = getattr(_LOCAL, "work", None)
    if work is not None:
        work.limit = str(error)


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

    one = Fraction(1)

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
        self.spend(1)
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
            raise TooLarge("a value of too many digits")
        return result

    def spend(self, steps: int) -> None:
        """Count steps of this evaluation and of the whole comparison."""
        self.settings.steps += steps * self.cost
        spend(steps * self.cost)
        if self.settings.steps > MAX_STEPS:
            raise TooLarge(f"a value that takes more than {MAX_STEPS:,} steps")

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
        return call(self, node[1], node[2])

    # ---- matrices, sums, integrals, limits ---------------------------------

    def _matrix(self, node: Node) -> Any:
        raise OutOfDomain("a matrix is no number")

    def _cell(self, node: Node) -> Any:
        """One entry of a matrix: ``("cell", matrix, row, column)``."""
        _, matrix, row, column = node
        if matrix[0] == "matrix":
            return self.value(matrix[1][row][1][column])
        return find_entries(self, matrix)[row][column]

    def at(self, name: str, value: Any, node: Node) -> Any:
        """Return the value of a node where one variable has this value."""
        before = self.settings.point
        self.settings.point = {**before, name: value}
        try:
            return self.value(node)
        finally:
            self.settings.point = before

    def _range(self, node: Node) -> range:
        ends = [self.value(end) for end in node[3:]]
        if not all(is_whole(end) for end in ends):
            raise OutOfDomain("a range of whole numbers")
        low, high = map(int, ends)
        if high - low < -1:
            raise OutOfDomain("a range that runs backwards")
        if high - low >= MAX_TERMS:
            raise TooLarge(f"more than {MAX_TERMS:,} terms")
        return range(low, high + 1)

    def _sum(self, node: Node) -> Any:
        terms = (self.at(node[1], Fraction(k), node[2])
                 for k in self._range(node))  # fmt: skip
        return self.total(list(terms))

    def _prod(self, node: Node) -> Any:
        result: Any = Fraction(1)
        for k in self._range(node):
            factor = self.at(node[1], Fraction(k), node[2])
            result = self.multiply(result, factor)
        return result

    def _int(self, node: Node) -> Any:
        """Integrate a polynomial between two numbers."""
        _, name, body, low, high = node
        ends = self.value(low), self.value(high)
        terms = []
        for degree, factor in enumerate(self.polynomial(body, name), 1):
            for end, sign in zip(ends, (-1, 1), strict=True):
                power = self.integer_power(end, degree) if end else end
                share = Fraction(sign, degree)
                terms.append(
                    self.multiply(self.multiply(factor, power), share)
                )
        return self.total(terms)

    def polynomial(self, node: Node, name: str) -> list[Any]:
        """Return the coefficients of a polynomial, the constant one first.

        Raises:
            OutOfDomain: it is none in this variable.
            TooLarge: its degree is above :data:`MAX_DEGREE`.
        """
        if name not in symbols(node):
            return [self.value(node)]
        if node[0] == "sym":
            return [Fraction(0), Fraction(1)]
        if node[0] == "neg":
            return [-c for c in self.polynomial(node[1], name)]
        if node[0] == "add":
            parts = [self.polynomial(part, name) for part in node[1]]
            rows = zip_longest(*parts, fillvalue=Fraction(0))
            return [self.total(list(row)) for row in rows]
        if node[0] == "mul":
            factors = [self.polynomial(part, name) for part in node[1]]
        elif node[0] == "div" and name not in symbols(node[2]):
            below = self.value(("div", ("num", self.one), node[2]))
            factors = [self.polynomial(node[1], name), [below]]
        elif node[0] == "pow" and node[2][0] == "num" and is_whole(node[2][1]):
            if not 0 <= node[2][1] <= MAX_DEGREE:
                raise TooLarge(f"a degree above {MAX_DEGREE}")
            factors = [self.polynomial(node[1], name)] * int(node[2][1])
        else:
            raise OutOfDomain("the integral of more than a polynomial")
        result: list[Any] = [Fraction(1)]
        for factor in factors:
            if len(result) + len(factor) > MAX_DEGREE + 2:
                raise TooLarge(f"a degree above {MAX_DEGREE}")
            self.spend(len(result) * len(factor))
            rows = [[Fraction(0)] * i + [self.multiply(a, b) for b in factor]
                    for i, a in enumerate(result)]  # fmt: skip
            columns = zip_longest(*rows, fillvalue=Fraction(0))
            result = [self.total(list(column)) for column in columns]
        return result

    def _lim(self, node: Node) -> Any:
        """Go so near to the target that what is left is rounding.

        From both sides, which must agree; at infinity from below.
        """
        _, name, body, target = node
        if contains(body, "apply"):
            raise OutOfDomain("the limit of an unknown function")
        digits = self.mp.dps
        self.spend(10 * self.cost)
        with self.mp.workdps(7 * digits):  # 1 - cos x loses digits near 0
            if target == ("const", "oo"):
                points = [Fraction(10) ** (digits + 25)]
            else:
                aim = self.value(target)
                step = Fraction(1, 10 ** (digits + 25))
                points = [self.total([aim, s]) for s in (step, -step)]
            values = [self.inexact(self.at(name, p, body)) for p in points]
            gap, size = abs(values[0] - values[-1]), abs(values[0])
            if size > self.mp.mpf(10) ** digits:
                raise OutOfDomain("no limit")
            if gap > max(1, size) * self.mp.mpf(10) ** (-digits - 20):
                raise OutOfDomain("no limit")
            return sum(values) / len(values)


def is_whole(value: Any) -> bool:
    """Say whether a value is known to be a whole number."""
    return isinstance(value, Fraction) and value.denominator == 1


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


MAX_EXACT_FACTORIAL = 1_000
MAX_FACTORIAL = 10**6
_TRIGONOMETRIC = {"sin", "cos", "tan", "cot", "sec", "csc"}
_DIRECT = {
    "sinh", "cosh", "tanh", "coth", "sech", "csch", "exp",
}  # fmt: skip
_INVERSE = {
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot",
    "arcsec": "asec", "arccsc": "acsc", "arcsinh": "asinh",
    "arccosh": "acosh", "arctanh": "atanh",
}  # fmt: skip


def call(ev: Evaluator, name: str, nodes: list[Node]) -> Any:
    """Evaluate one function call.

    Raises:
        OutOfDomain: no value for these arguments, or a wrong number of them.
        TooLarge: the value would be too large.
    """
    if name == "det":
        return _determinant(ev, nodes)
    if name in ("max", "min", "gcd", "lcm", "binom", "mod"):
        return _integers(ev, name, [ev.value(n) for n in nodes])
    if name in ("log", "root"):
        return _two(ev, name, nodes)
    if len(nodes) != 1:
        raise OutOfDomain("a function of one argument")
    if name in _TRIGONOMETRIC:
        return _trigonometric(ev, name, nodes[0])
    value = ev.value(nodes[0])
    if name in ("Re", "Im", "conj", "arg"):
        return _complex_part(ev, name, value)
    if name in ("floor", "ceil", "abs", "sgn", "factorial"):
        return _stepwise(ev, name, value)
    if name == "sqrt":
        return ev.power(value, Fraction(1, 2))
    if name == "cbrt":
        return ev.power(value, Fraction(1, 3))
    if name in ("ln", "lg"):
        return _logarithm(ev, value, 10 if name == "lg" else None)
    inexact = ev.inexact(value)
    if name in _DIRECT:
        if ev.mp.mag(inexact) > 19:
            raise TooLarge("huge exponential")
        return _guarded(ev, name, inexact)
    if name in _INVERSE:
        return _guarded(ev, _INVERSE[name], inexact)
    raise OutOfDomain(name)


def _determinant(ev: Evaluator, nodes: list[Node]) -> Any:
    try:
        size = find_size(nodes[0]) if len(nodes) == 1 else None
    except ReadError as error:
        raise OutOfDomain(str(error)) from error
    if size is None or size[0] != size[1]:
        raise OutOfDomain("the determinant of no square matrix")
    if size[0] > MAX_DETERMINANT:
        raise TooLarge(f"a determinant of more than {MAX_DETERMINANT} rows")
    return find_determinant(ev, find_entries(ev, nodes[0]))


def _guarded(ev: Evaluator, name: str, value: Any) -> Any:
    try:
        return getattr(ev.mp, name)(value)
    except (ZeroDivisionError, ValueError) as error:
        raise OutOfDomain(name) from error


def _trigonometric(ev: Evaluator, name: str, node: Node) -> Any:
    before = ev.settings.radians
    ev.settings.radians = True  # a degree inside a sine is always pi/180
    try:
        value = ev.inexact(ev.value(node))
    finally:
        ev.settings.radians = before
    ev.check_argument(value)
    result = _guarded(ev, name, value)
    if ev.mp.mag(result) > ev.mp.prec // 2:
        raise OutOfDomain("a pole")  # tan(pi/2) comes out huge, not infinite
    return result


def _logarithm(ev: Evaluator, value: Any, base: Any) -> Any:
    result = ev.mp.log(ev.inexact(value))  # of zero: not finite
    if base is None:
        return result
    below = ev.mp.log(ev.inexact(base)) if base else 0
    if not below:
        raise OutOfDomain("base of a logarithm")
    return result / below


def _two(ev: Evaluator, name: str, nodes: list[Node]) -> Any:
    values = [ev.value(n) for n in nodes]
    if len(values) != 2 and (name != "log" or len(values) > 2):
        raise OutOfDomain("a function of two arguments")
    if name == "root":
        index = values[1]
        if not index:
            raise OutOfDomain("index of a root")
        return ev.power(values[0], 1 / index)
    base = values[1] if len(values) == 2 else None
    if base is None and ev.settings.decimal_log:
        base = Fraction(10)
    return _logarithm(ev, values[0], base)


def _complex_part(ev: Evaluator, name: str, value: Any) -> Any:
    if name == "arg":
        if not value:
            raise OutOfDomain("the argument of zero")
        return ev.mp.arg(ev.inexact(value))
    if isinstance(value, ev.mp.mpc):
        return getattr(ev.mp, name.lower())(value)
    return Fraction(0) if name == "Im" else value


def _stepwise(ev: Evaluator, name: str, value: Any) -> Any:
    if name == "abs":
        return abs(value)
    if isinstance(value, ev.mp.mpc):
        raise OutOfDomain(name)
    if name == "sgn":
        return Fraction((value > 0) - (value < 0))
    if name == "factorial":
        return _factorial(ev, value)
    if not isinstance(value, Fraction):
        nearest = ev.mp.nint(value)
        if abs(value - nearest) < ev.mp.mpf(10) ** (-ev.mp.dps // 2):
            raise OutOfDomain("too close to a step")
        if ev.mp.mag(value) > ev.mp.prec // 2:
            raise OutOfDomain("too large for a step")
        return Fraction(int(ev.mp.floor(value)) + (name == "ceil"))
    return Fraction(math.floor(value) if name == "floor" else math.ceil(value))


def _factorial(ev: Evaluator, value: Any) -> Any:
    if isinstance(value, Fraction) and value.denominator == 1:
        if value < 0:
            raise OutOfDomain("factorial of a negative number")
        if value <= MAX_EXACT_FACTORIAL:
            return Fraction(math.factorial(int(value)))
    if abs(value) > MAX_FACTORIAL:
        raise TooLarge("factorial")
    return _guarded(ev, "factorial", ev.inexact(value))


def _integers(ev: Evaluator, name: str, values: list[Any]) -> Any:
    if any(isinstance(v, ev.mp.mpc) for v in values):
        raise OutOfDomain(name)
    if name in ("max", "min"):
        pick = max if name == "max" else min
        return pick(values, key=ev.inexact)
    if name == "binom":
        return _binomial(ev, values)
    if not all(isinstance(v, Fraction) and v.denominator == 1 for v in values):
        raise OutOfDomain("whole numbers only")
    whole = [int(v) for v in values]
    if name == "mod":
        if len(whole) != 2 or whole[1] <= 0:
            raise OutOfDomain("the rest of a division")
        return Fraction(whole[0] % whole[1])
    return Fraction(math.gcd(*whole) if name == "gcd" else math.lcm(*whole))


def _binomial(ev: Evaluator, values: list[Any]) -> Any:
    if len(values) != 2:
        raise OutOfDomain("a binomial of two numbers")
    n, k = values
    if any(abs(v) > MAX_FACTORIAL for v in values):
        raise TooLarge("binomial")
    whole = all(isinstance(v, Fraction) and v.denominator == 1 for v in values)
    if whole and 0 <= n <= MAX_EXACT_FACTORIAL and k >= 0:
        return Fraction(math.comb(int(n), int(k)))
    return ev.mp.binomial(ev.inexact(n), ev.inexact(k))
