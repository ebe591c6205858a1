"""Equations and inequalities: names, definitions, multiples of each other."""

from __future__ import annotations

import re
from collections.abc import Callable

from helpers.grading.numbers import parse_number
from helpers.grading.probe import equal_nodes, equal_relations
from helpers.grading.reader import (
    BINDERS,
    Node,
    ReadError,
    contains,
    is_readable,
    read,
    symbols,
)
from helpers.grading.sets import (
    Piece,
    has_one_variable,
    same_pieces,
    to_pieces,
)
from helpers.grading.shapes import Value
from helpers.grading.spelling import canonical

Result = tuple[bool | None, str]
_FLIP = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_CONSTANTS = {"e", "i", r"\pi", r"\infty"}
_NO_NAMES = {
    "not", "or", "let", "try", "suppose", "assume", "maybe", "perhaps", "if",
    "than", "least", "most", "never", "either", "neither",
}  # fmt: skip
_SYMBOL = re.compile(
    r"(?:[A-Za-z]|\\[a-zA-Z]+)\s*'*(?:_(?:\w|\{[^{}]*\}))?'*"
    r"(?:\([^()]*\))?|(?:\\angle|\\Delta|[A-Z])[A-Za-z\s']*"
    r"|\|[A-Z]{2}\||\\overline\{[A-Z]+\}|[A-Za-z]{3,}(?: [A-Za-z]+){0,3}"
)


_OTHER_NAMES = re.compile(
    r"[A-Z]{1,2}/[A-Z]{1,2}|d[a-z]/d[a-z]|\\frac\{d[a-z]?\}\{d[a-z]\}[a-z]?"
    r"|[a-zA-Z]\^\{-1\}\([a-z]\)|\\frac\{\\partial \w\}\{\\partial \w\}"
    r"|\\(?:hat|bar|tilde|overline)(?:\{\w\}| ?\w)"
)


def is_name(text: str) -> bool:
    """Say whether the left side of ``name = value`` only names something."""
    text = canonical(text).strip()
    if re.fullmatch(r"\{[^{}]*\}", text):
        text = text[1:-1]  # a vector, \vec{v}
    if set(text.lower().split()) & _NO_NAMES:
        return False
    if text in _CONSTANTS:
        return False
    if _SYMBOL.fullmatch(text):
        return True
    if found := re.fullmatch(r"\\frac\{([A-Z]{2})\}\{([A-Z]{2})\}", text):
        return bool(found)
    if _OTHER_NAMES.fullmatch(text):
        return True
    return all(_SYMBOL.fullmatch(p) for p in text.split(":"))


def definition_value(value: Value) -> Value | None:
    """Return what ``x = 5`` or ``f(x) = 2x`` states, else None."""
    if set(value.marks) != {"="}:
        return None
    first = value.items[0]
    if is_name(value.items[1].text) and not is_name(first.text):
        value = Value("relation", value.text, value.items[::-1], ["="])
        first = value.items[0]
    if first.kind == "tuple":
        plain = all(is_name(v.text) for v in first.items)
        return value.items[1] if plain else None
    if not is_name(first.text):
        return None
    rest = value.items[1:]
    if len(rest) > 1 and not _all_equal([v.text for v in rest]):
        return None
    last = rest[-1]
    name = canonical(first.text)
    return None if _uses(name, last.text) else _reshape(last)


def _reshape(value: Value) -> Value:
    from helpers.grading.shapes import parse_value

    return parse_value(value.text) if value.kind == "scalar" else value


def _uses(name: str, text: str) -> bool:
    """Say whether a name occurs on the right-hand side."""
    try:
        return name in symbols(read(text))
    except ReadError:
        return False


def chain_value(value: Value) -> Value | None:
    """Return the last part of a true chain such as ``\\sqrt{4} = 2``.

    ``5 = 5`` or ``7 = 5`` is no way to give an answer.
    """
    if set(value.marks) != {"="}:
        return None
    texts = [v.text for v in value.items]
    if re.fullmatch(r"[-+$]?[\d.,\s]+%?", texts[0]):
        return None
    if len({canonical(t) for t in texts}) == 1:
        return None
    if not _all_equal([t for t in texts if _has_value(t)]):
        return None
    if not is_readable(texts[-1]) or not all(
        is_readable(t) or "\\" in t for t in texts
    ):
        return None
    return _reshape(value.items[-1])


def _has_value(text: str) -> bool:
    """Say whether a side can be checked; a sum or det A may be unknown."""
    try:
        node = read(text)
    except ReadError:
        return False
    unknown = [("call", "det"), *((kind,) for kind in BINDERS)]
    return not any(contains(node, *head) for head in unknown)


def _all_equal(texts: list[str]) -> bool:
    try:
        nodes = [read(t) for t in texts]
    except ReadError:
        return False
    return all(equal_nodes(nodes[0], n) for n in nodes[1:])


def compare_relations(
    gold: Value,
    predicted: Value,
    compare: Callable[[Value, Value, int], Result],
) -> Result:
    """Compare two relations: as sets, part by part, or as multiples."""
    congruent = _compare_congruences(gold, predicted)
    if congruent is not None:
        return congruent
    one, two = definition_value(gold), definition_value(predicted)
    if one is not None and two is not None:
        same_name = canonical(gold.items[0].text) == canonical(
            predicted.items[0].text
        )
        names = {canonical(v.items[0].text) for v in (gold, predicted)}
        if same_name or names == {"y", "f(x)"}:
            return compare(one, two, 1)
    inequality = any(m != "=" for m in gold.marks + predicted.marks)
    if inequality:
        left, right = to_pieces(gold), to_pieces(predicted)
        if (
            left is not None
            and right is not None
            and has_one_variable([gold, predicted])
        ):
            same = same_pieces(left, right)
            if same or (same is False and _constant(left + right)):
                return same, "set" if same else "different set"
    if _part_by_part(gold, predicted, compare):
        return True, "same parts"
    if len(gold.items) == len(predicted.items) == 2:
        return _compare_multiples(gold, predicted)
    return False, "different relation"


_MODULUS = re.compile(r"^(.*?)\s*\\modulo ?\{?\s*(\w+)\s*\}?$")


def _compare_congruences(gold: Value, predicted: Value) -> Result | None:
    """Compare x = 2 (mod 5) with x = 7 (mod 5): the modulus must agree."""
    ends = [_MODULUS.match(v.items[1].text) for v in (gold, predicted)]
    one, two = ends
    if one is None or two is None:
        return (False, "a different modulus") if one or two else None
    if one[2] != two[2]:
        return False, "a different modulus"
    if canonical(gold.items[0].text) != canonical(predicted.items[0].text):
        return None
    rests = [parse_number(found[1]) for found in (one, two)]
    modulus = parse_number(one[2])
    if modulus and None not in rests:
        same = (rests[0] - rests[1]) % modulus == 0
        return same, "congruent" if same else "not congruent"
    return _all_equal([one[1], two[1]]), "same parts"


def _constant(pieces: list[Piece]) -> bool:
    """Say whether no end has a variable: a <= b is also b >= a."""
    ends = {end for piece in pieces for end in (piece.low, piece.high)}
    return not any(
        re.search(r"(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])", _no_commands(e))
        for e in ends
    )


def _part_by_part(
    gold: Value,
    predicted: Value,
    compare: Callable[[Value, Value, int], Result],
) -> bool:
    turned = [_FLIP.get(m, m) for m in predicted.marks[::-1]]
    for items, marks in (
        (predicted.items, predicted.marks),
        (predicted.items[::-1], turned),
    ):
        if marks == gold.marks and all(
            compare(a, b, 2)[0] for a, b in zip(gold.items, items, strict=True)
        ):
            return True
    return False


def _compare_multiples(gold: Value, predicted: Value) -> Result:
    marks = [gold.marks[0], predicted.marks[0]]
    try:
        sides = [
            [read(v.text) for v in value.items] for value in (gold, predicted)
        ]
    except ReadError:
        return None, "not readable"
    for i, mark in enumerate(marks):
        if mark in (">", ">="):
            sides[i].reverse()
            marks[i] = _FLIP[mark]
    if marks[0] != marks[1]:
        return False, "a different relation"
    if is_solved(gold) and not is_solved(predicted):
        return False, "still to be solved"
    left, right = _pair(sides[0]), _pair(sides[1])
    directed = marks[0] in ("<", "<=")
    same = equal_relations(left, right, directed)
    if same is None:
        return False, "different relation"
    return same, "same relation" if same else "different relation"


def is_solved(value: Value) -> bool:
    """Say whether a relation is a lone variable (or its negative) and a value.

    Without this, repeating "solve 3x+6=12" would be an answer to it.
    """
    sides = [canonical(v.text).lstrip("-") for v in value.items]
    if len(sides) != 2:
        return is_name(sides[1])
    for name, other in (sides, sides[::-1]):
        if is_name(name) and not re.search(r"[A-Za-z]", _no_commands(other)):
            return True
    return False


def _no_commands(text: str) -> str:
    return re.sub(r"\\(?:frac|infty)|\\?(?:pi|sqrt)|\be\b", "", text)


def _pair(sides: list[Node]) -> tuple[Node, Node]:
    return sides[0], sides[1]
