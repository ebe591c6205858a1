"""Inputs made to break a grader: each has a name, a response and a gold.

Used by the tests and by the benchmark; no one of them is a right answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Hostile = tuple[str, Any, Any]

_TOWER = "9^{9^{9^{9}}}"
_BOXED: dict[str, str] = {
    "tower of powers": _TOWER,
    "tower, other base": "10^{10^{10}}",
    "tower of letters": "x^{x^{x^{x^{x}}}}",
    "negative tower": "2^{-10^{10^{10}}}",
    "huge factorial": "99999999!",
    "nested factorials": "((9!)!)!",
    "many factorial signs": "3" + "!" * 3_000,
    "factorial in a sum": r"\sum_{k=1}^{500} (k!)^{99}",
    "power of a sum": "(x+y+z+w)^{300}",
    "many powers of sums": "(x+y)^{20}" * 60,
    "large exponent of a symbol": "y=(x-a)^{5999}",
    "long digits": "7" * 15_000,
    "long decimals": "0." + "3" * 15_000,
    "long digits in an expression": "7" * 1_900 + "+x",
    "huge scientific number": "1e999999999",
    "long repeating decimal": r"0.\overline{" + "142857" * 300 + "}",
    "deep fractions": r"\frac{1}{1+" * 3_000 + "x" + "}" * 3_000,
    "many bare fractions": r"\frac" * 3_000,
    "deep roots": r"\sqrt{" * 2_000 + "2" + "}" * 2_000,
    "deep sines": r"\sin(" * 2_000 + "x" + ")" * 2_000,
    "sines in a row": r"\sin " * 2_000 + "x",
    "deep braces": "{" * 10_000 + "1" + "}" * 10_000,
    "unclosed brackets": "(" * 9_000,
    "deep brackets with commas": "(1," * 2_000 + "2" + ")" * 2_000,
    "deep sets": r"\{1," * 1_000 + "2" + r"\}" * 1_000,
    "brackets of all kinds": "([{" * 2_500,
    "long division chain": "1/" * 3_900 + "1",
    "long power chain": "2^" * 3_900 + "2",
    "long sum": "x+" * 3_900 + "1",
    "long product": "x*" * 3_900 + "1",
    "long alternating signs": "+-" * 3_900 + "1",
    "many plus-minus": ",".join([r"1\pm 2"] * 60),
    "plus-minus tuple": "(" + ",".join([r"1\pm 2"] * 60) + ")",
    "plus-minus in one number": r"1\pm " * 500 + "1",
    "long list": ",".join(map(str, range(1_500))),
    "long set of roots": r"\{"
    + ",".join(rf"\sqrt{{{n}}}" for n in range(500))
    + r"\}",
    "sixty sums against sixty": ",".join(
        rf"\sin({n})+\sqrt{{{n + 2}}}" for n in range(60)
    ),
    "union of many intervals": r" \cup ".join(
        f"({2 * n},{2 * n + 1})" for n in range(500)
    ),
    "chain of relations": "<".join("abcdefgh" * 300),
    "large matrix": r"\begin{pmatrix}"
    + r"\\".join(["&".join("1" * 60)] * 60)
    + r"\end{pmatrix}",
    "large determinant": r"\det\begin{pmatrix}"
    + r"\\".join(["&".join("abcdefgh")] * 8)
    + r"\end{pmatrix}",
    "long sum of terms": r"\sum_{k=1}^{10^{9}} \frac{1}{k^k}",
    "long product of terms": r"\prod_{k=1}^{1999} (k^2+1)",
    "hard integral": r"\int_0^1 x^x \sin(x^x) e^{x^x} dx",
    "hard limit": r"\lim_{n \to \infty} \frac{n!^{1/n}}{n^{n^{1/n}}}",
    "cosine of a huge number": r"\cos(10^{100000})",
    "near-zero difference": "10^{-100000}+1",
    "code": "__import__('os').system('sleep 60')",
    "code, another way": "().__class__.__base__.__subclasses__()",
    "format string": "{0.__class__}" * 500,
    "not a number": "NaN",
    "infinity": "inf",
    "spaces": " " * 15_000,
    "many primes": "f" + "'" * 5_000,
    "many subscripts": "x_" * 3_000 + "1",
    "many units": r"5\text{ m}" * 1_000,
    "many percents": "5" + "%" * 5_000,
    "many degrees": "5" + r"^\circ" * 1_500,
    "combining marks": "x" + "\u0301" * 7_000,
    "unicode digits": "１²½" * 3_000,
}
_TEXTS: dict[str, str] = {
    "megabytes of letters": "x" * 5_000_000,
    "megabytes of digits": "7" * 5_000_000,
    "megabytes of spaces": " " * 5_000_000,
    "megabytes of lines": "\n" * 5_000_000,
    "megabytes of opening braces": "{" * 5_000_000,
    "megabytes of words": "so it is not the case that " * 200_000,
    "megabytes of numbers": "12 and 13, " * 400_000,
    "very many boxes": r"\boxed{7}, " * 30_000,
    "very many boxes and dollars": r"$\boxed{7}$ and " * 20_000,
    "boxes in boxes": r"\boxed{" * 20_000,
    "boxes without braces": r"\boxed " * 20_000,
    "empty boxes": r"\boxed{}" * 20_000,
    "very many dollars": "$" * 190_000,
    "dollars and digits": "$1" * 90_000,
    "unclosed formulas": r"\( " * 60_000,
    "very many hashes": "#" * 190_000,
    "hash answers": "#### 1\n" * 25_000,
    "answer phrases": "the answer is " * 13_000,
    "final answers": "final answer" * 15_000,
    "answer tags": "<answer>" * 20_000,
    "think tags": "<think>" * 20_000 + "</think>" * 5_000,
    "stars": "*" * 190_000,
    "bold numbers": "**7" * 60_000,
    "stop tokens": "<|" * 90_000,
    "questions": "\n\nQuestion" * 15_000,
    "equals signs": "=" * 190_000,
    "backslashes": "\\" * 190_000,
    "quotes": '"' * 190_000,
    "commas": "1," * 90_000,
    "binary": "".join(map(chr, range(256))) * 700,
    "null bytes": "\x00" * 190_000,
    "lone surrogates": "\ud800" * 190_000,
    "lone surrogate in a box": r"\boxed{" + "\udfff" * 500 + "}",
    "empty": "",
}
_OBJECTS: dict[str, object] = {
    "None": None,
    "a number": 5,
    "not-a-number object": float("nan"),
    "bytes": b"\\boxed{5}",
    "a list": ["5"],
    "a class": int,
}
_GOLDS = ("5", r"x^2+\sqrt{2}", r"\{1,2,3\}")


def list_hostile() -> Iterator[Hostile]:
    """Yield (name, response, gold); the hostile part is on either side."""
    for name, inside in _BOXED.items():
        for gold in _GOLDS:
            yield name, rf"\boxed{{{inside}}}", gold
        yield f"{name}, as the gold", r"\boxed{x^2+y}", inside
        # Almost the same on both sides: nothing is settled by a glance.
        yield f"{name}, on both sides", rf"\boxed{{{inside}}}", f"1+{inside}"
    for name, text in _TEXTS.items():
        for gold in _GOLDS[:2]:
            yield name, text, gold
        yield f"{name}, as the gold", r"\boxed{x^2+y}", text
    for name, thing in _OBJECTS.items():
        yield name, thing, "-1"
        yield f"{name}, as the gold", r"\boxed{-1}", thing
