"""Formulas of propositional logic, compared by their truth tables.

``not (A and B)`` is ``(not A) or (not B)``. Only single letters, truth
values and the connectives are read; anything else is no formula.
"""

from __future__ import annotations

import re
from itertools import product

Formula = tuple[object, ...]
MAX_LETTERS = 8
MAX_TOKENS = 120
_CONNECTIVES = {
    r"\wedge": "and", r"\vee": "or", r"\neg": "not", r"\to": "to",
    r"\Rightarrow": "to", r"\iff": "iff", r"\oplus": "xor",
    "implies": "to", "!": "not", "&": "and", "&&": "and", "||": "or",
    "AND": "and", "OR": "or", "NOT": "not", "XOR": "xor",
}  # fmt: skip
_TOKEN = re.compile(r"\s*(\\[a-zA-Z]+|[A-Za-z]+|&&|\|\||[()\[\]!&])\s*", re.S)
# From the loosest to the tightest; "to" groups to the right.
_LEVELS = ("iff", "to", "xor", "or", "and")


class _Parser:
    def __init__(self, tokens: list[str]):
        self.tokens = tokens
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def level(self, rank: int) -> Formula:
        """Read one level of connectives."""
        if rank == len(_LEVELS):
            return self.unit()
        left = self.level(rank + 1)
        while self.peek() == _LEVELS[rank]:
            self.at += 1
            right = self.level(rank if _LEVELS[rank] == "to" else rank + 1)
            left = (_LEVELS[rank], left, right)
        return left

    def unit(self) -> Formula:
        """Read a letter, a negation or a bracket."""
        token = self.peek()
        self.at += 1
        if token == "not":
            return ("not", self.unit())
        if token in ("(", "["):
            inside = self.level(0)
            if self.peek() != {"(": ")", "[": "]"}[token]:
                raise ValueError("unclosed bracket")
            self.at += 1
            return inside
        if re.fullmatch(r"[A-Za-z]", token):
            return ("letter", token)
        raise ValueError("no formula")


def read_formula(text: str) -> Formula | None:
    """Return a formula with at least one connective, or None."""
    tokens: list[str] = []
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None or len(tokens) > MAX_TOKENS:
            return None
        tokens.append(_CONNECTIVES.get(found[1], found[1]))
        position = found.end()
    if not set(tokens) & {"not", *_LEVELS}:
        return None
    parser = _Parser(tokens)
    try:
        formula = parser.level(0)
    except ValueError:
        return None
    return formula if parser.at == len(tokens) else None


def _letters(formula: Formula) -> set[str]:
    if formula[0] == "letter":
        return {str(formula[1])}
    parts = [part for part in formula[1:] if isinstance(part, tuple)]
    return set().union(*map(_letters, parts))


def _truth(formula: Formula, values: dict[str, bool]) -> bool:
    name, parts = formula[0], formula[1:]
    if name == "letter":
        return values[str(parts[0])]
    truths = [_truth(p, values) for p in parts if isinstance(p, tuple)]
    if name == "not":
        return not truths[0]
    left, right = truths
    if name == "to":
        return not left or right
    if name in ("iff", "xor"):
        return (left == right) == (name == "iff")
    return (left and right) if name == "and" else (left or right)


def same_formula(gold: str, predicted: str) -> bool:
    """Say whether two cleaned texts are formulas with one truth table.

    The letters must be the same ones, so that a tautology about other
    things is no answer.
    """
    one, two = read_formula(gold), read_formula(predicted)
    if one is None or two is None:
        return False
    letters = sorted(_letters(one))
    if letters != sorted(_letters(two)) or len(letters) > MAX_LETTERS:
        return False
    for row in product((False, True), repeat=len(letters)):
        values = dict(zip(letters, row, strict=True))
        if _truth(one, values) != _truth(two, values):
            return False
    return True
