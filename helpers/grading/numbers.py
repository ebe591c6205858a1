"""Plain numbers, exactly: what a string says as a fraction, or None.

No floats: ``9007199254740993`` is not ``9007199254740992`` and ``0.333`` is
not one third.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DIGITS = 4_000  # Python itself reads no more than 4,300
MAX_EXPONENT = 1_000

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(_DECIMAL)
_SCIENTIFIC = re.compile(
    rf"({_DECIMAL})\s*\*\s*10\s*\^\s*\{{?\s*([+-]?\s*\d{{1,4}})\s*\}}?"
)
_E_NOTATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,4})")
_SLASH = re.compile(rf"({_DECIMAL})\s*/\s*({_DECIMAL})")
_ARG = r"(?:\{\s*([+-]?[\d.,]+)\s*\}|\s*(\d))"
_FRAC = re.compile(rf"\\frac\s*{_ARG}\s*{_ARG}")
_MIXED = re.compile(r"(\d+)\s+(\d+)\s*/\s*(\d+)")
_MIXED_FRAC = re.compile(rf"(\d+)\s*\\frac\s*{_ARG}\s*{_ARG}")
_GROUPED = re.compile(r"\d{1,3}(?:_\d{3})+")
_CYCLE = re.compile(r"(\d*)\.(\d*)\((\d+)\)")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?")


def to_fraction(decimal: str) -> Fraction:
    """Return a decimal numeral with thousands separators as a Fraction."""
    digits = decimal.replace(",", "").replace(" ", "")
    return Fraction(digits)


def _quotient(top: Fraction | None, low: Fraction | None) -> Fraction | None:
    return None if top is None or not low else top / low


def _parts(found: re.Match[str]) -> list[str]:
    return [group for group in found.groups() if group is not None]


def _unsigned(text: str) -> Fraction | None:
    if _PLAIN.fullmatch(text):
        return to_fraction(text)
    if found := _SCIENTIFIC.fullmatch(text) or _E_NOTATION.fullmatch(text):
        mantissa = to_fraction(found[1])
        power = int("".join(found[2].split()))
        if abs(power) > MAX_EXPONENT:
            return None
        return mantissa * Fraction(10) ** power
    if found := _MIXED.fullmatch(text):
        part = _quotient(to_fraction(found[2]), to_fraction(found[3]))
        return None if part is None else Fraction(found[1]) + part
    if found := _SLASH.fullmatch(text):
        return _quotient(to_fraction(found[1]), to_fraction(found[2]))
    if found := _FRAC.fullmatch(text):
        return _quotient(*map(_signed, _parts(found)))
    if found := _MIXED_FRAC.fullmatch(text):
        whole, top, low = _parts(found)
        part = _quotient(_signed(top), _signed(low))
        if part is None or part < 0:
            return None
        return Fraction(whole) + part
    if _GROUPED.fullmatch(text):
        return to_fraction(text)
    if found := _REPEATING.fullmatch(text) or _CYCLE.fullmatch(text):
        return _repeating(found[1] or "0", found[2], found[3])
    return None


def _repeating(whole: str, fixed: str, cycle: str) -> Fraction:
    tail = Fraction(int(cycle), 10 ** len(cycle) - 1)
    head = Fraction(int(whole + fixed))
    return (head + tail) / 10 ** len(fixed)


def _signed(text: str) -> Fraction | None:
    text = text.strip()
    if text[:1] in "+-":
        value = _unsigned(text[1:].strip())
        return -value if value is not None and text[0] == "-" else value
    return _unsigned(text)


_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve "
    "thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_PARTS = "half third quarter fifth sixth seventh eighth ninth tenth".split()
_POWERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


def _worded(text: str) -> Fraction | None:
    """Return a number in words: twenty-one, two thirds, a half."""
    words = text.lower().replace("-", " ").split()
    if not words:
        return None
    part = words[-1].replace("halves", "half").removesuffix("s")
    if part in (*_PARTS, "fourth"):
        top = 1 if words[:-1] in ([], ["a"], ["an"]) else _count(words[:-1])
        low = 4 if part == "fourth" else 2 + _PARTS.index(part)
        plain = words[:-1] or part == "half"  # "third" is an ordinal
        return Fraction(top, low) if top and plain else None
    total = _count([w for w in words if w != "and"])
    return None if total is None else Fraction(total)


def _count(words: list[str]) -> int | None:
    """Add up the words of a whole number, each only where it may stand."""
    total = group = 0
    room = 1000  # what comes next must be smaller
    for word in words:
        if word in _TENS and room > 90:
            group, room = group + 10 * (2 + _TENS.index(word)), 10
        elif word in _WORDS and _WORDS.index(word) < room:
            group, room = group + _WORDS.index(word), 0
        elif word == "hundred" and 0 < group < 20:
            group, room = 100 * group, 100
        elif word in _POWERS and group:
            total, group, room = total + group * _POWERS[word], 0, 1000
        else:
            return None
    return total + group if words else None


def parse_number(text: str) -> Fraction | None:
    """Return the exact value of a plain number, or None.

    Args:
        text: a cleaned answer (see ``normalize.clean``). Understood are
            signs, decimals, thousands separators in groups of three,
            ``a/b``, ``\\frac{a}{b}``, mixed numbers, ``a*10^{b}``, ``1.2e6``
            and repeating decimals.
    """
    if len(text) > MAX_DIGITS:
        return None
    if not any(c.isdigit() for c in text):
        return _worded(text.strip("⟦⟧ ")) if len(text) < 100 else None
    if braced := re.fullmatch(r"\{([^{}]*)\}", text):
        text = braced[1]
    return _signed(text)
