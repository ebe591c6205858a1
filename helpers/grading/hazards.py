"""Refuse what would keep a computer algebra system busy for ever.

``9^{9^{9^9}}`` is 11 characters and more digits than atoms in the universe.
Such answers are still compared as strings; they are only not evaluated.
"""

from __future__ import annotations

import re

MAX_SYMBOLIC = 700
MAX_NESTING = 40
MAX_NUMERAL = 60
MAX_POWER = 200
MAX_SUM_POWER = 24
MAX_FACTORIAL = 500
MAX_RANGE = 2_000

_NUMERAL = re.compile(r"\d+")
_EXPONENT = re.compile(r"\^\s*\{?\s*-?\s*\(?\s*-?(\d+)")
_FACTORIAL = re.compile(r"(\d+)\s*[})]*\s*!")
_SUM_POWER = re.compile(r"\)\s*\}?\s*\^\s*\{?\s*(\d+)")
_UPPER = re.compile(r"\\(?:sum|prod)\b[^=]{0,40}=[^^]{0,40}\^\s*(\{[^}]*\})")
_FORBIDDEN = re.compile(r"__|\bimport\b|\blambda\s|\bexec\b|\beval\b|;")


def find_hazard(text: str) -> str | None:
    """Return why an answer must not be given to sympy, or None.

    The limits are far above what a person writes as an answer and far below
    what makes sympy hang; the worker's deadline covers what is in between.
    """
    if len(text) > MAX_SYMBOLIC:
        return f"longer than {MAX_SYMBOLIC} characters"
    if measure_nesting(text) > MAX_NESTING:
        return f"nested deeper than {MAX_NESTING}"
    if _FORBIDDEN.search(text):
        return "looks like code"
    if any(len(n) > MAX_NUMERAL for n in _NUMERAL.findall(text)):
        return f"a number of more than {MAX_NUMERAL} digits"
    if any(int(n) > MAX_POWER for n in _EXPONENT.findall(text)):
        return f"an exponent above {MAX_POWER}"
    if any(int(n) > MAX_SUM_POWER for n in _SUM_POWER.findall(text)):
        return f"a bracket to a power above {MAX_SUM_POWER}"
    if any(int(n) > MAX_FACTORIAL for n in _FACTORIAL.findall(text)):
        return f"a factorial above {MAX_FACTORIAL}!"
    if "!!" in text or re.search(r"\)\s*!", text):
        return "a nested factorial"
    if has_tower(text):
        return "a tower of powers"
    return _range_hazard(text)


def measure_nesting(text: str) -> int:
    """Return how many brackets are open at once, at most."""
    depth = deepest = 0
    for char in text:
        if char in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")]}":
            depth -= 1
    return deepest


def has_tower(text: str) -> bool:
    """Say whether a power has a power of numbers in its exponent."""
    for found in re.finditer(r"\^\s*", text):
        rest = text[found.end() :]
        if rest[:1] in "{(":
            closer = _group_end(rest)
            inner = rest[1:closer]
            if re.search(r"[\d)}e]\s*\^\s*[\{(]?\s*[\d(\\]", inner):
                return True
        elif re.match(r"[\w.]+\s*\^", rest):
            return True
    return False


def _group_end(text: str) -> int:
    depth = 0
    for i, char in enumerate(text):
        if char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
            if depth == 0:
                return i
    return len(text)


def _range_hazard(text: str) -> str | None:
    for upper in _UPPER.findall(text):
        if "^" in upper or any(
            int(n) > MAX_RANGE for n in _NUMERAL.findall(upper)
        ):
            return f"a sum or product of more than {MAX_RANGE} terms"
    if re.search(r"\\(?:sum|prod)\b", text) and "10^" in text:
        return "a very long sum or product"
    if text.count("=") > 12 or text.count("^") > 60 or text.count(",") > 80:
        return "too many parts"
    return None
