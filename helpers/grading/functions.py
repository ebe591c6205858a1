"""The functions the evaluator knows, each with its domain."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from helpers.grading.evaluate import Evaluator, OutOfDomain, TooLarge
from helpers.grading.tree import Node

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
