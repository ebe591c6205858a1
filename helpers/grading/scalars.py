"""Compare two single values: numbers, units, words, expressions."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from helpers.grading.brackets import split_top
from helpers.grading.exact import parse_number
from helpers.grading.lexer import ReadError
from helpers.grading.normalize import CLOSE, OPEN, canonical
from helpers.grading.probe import equal_nodes
from helpers.grading.reader import read
from helpers.grading.solutions import infinite_sign
from helpers.grading.tree import Node, contains, symbols
from helpers.grading.units import Quantity, split_unit, units_clash

Result = tuple[bool | None, str]


def compare_scalars(gold: str, predicted: str) -> Result:
    """Compare two scalars with their units."""
    left = split_unit(gold, split_unit(predicted).unit)
    right = split_unit(predicted, left.unit)
    result = _compare_quantities(left, right)
    if result[0] is not True:
        # "3 sin x" and "3 xy" look like a number and a unit.
        whole = left.core != gold or right.core != predicted
        if whole and _same_whole(gold, predicted):
            return True, "same value"
    return result


def _same_whole(gold: str, predicted: str) -> bool:
    try:
        return compare_nodes(read(gold), read(predicted))[0] is True
    except ReadError:
        return False


def _compare_quantities(left: Quantity, right: Quantity) -> Result:
    units = _unit_of(left), _unit_of(right)
    angle = set(units) == {"deg", "rad"}
    if units_clash(*units) and not angle:
        return False, "a different unit"
    if infinite_sign(left.core) or infinite_sign(right.core):
        same = infinite_sign(left.core) == infinite_sign(right.core)
        return same, "infinity" if same else "different value"
    one, two = _plain(left.core), _plain(right.core)
    if one is not None and two is not None:
        return _compare_numbers(one, two, left.scale, right.scale)
    if OPEN in left.core or OPEN in right.core:
        return _compare_words(left.core, right.core)
    try:
        nodes = read(left.core), read(right.core)
    except ReadError:
        if _same_sums(left.core, right.core):
            return True, "same terms"
        return _compare_unreadable(left.core, right.core)
    nodes = _scaled(nodes[0], left.scale), _scaled(nodes[1], right.scale)
    return compare_nodes(*nodes, radians=angle)


def _unit_of(quantity: Quantity) -> str:
    """A share or an angle is no length: 5% and 5 degrees are not 5 km."""
    if quantity.unit:
        return quantity.unit
    if _DEGREES.search(quantity.core):
        return "deg"
    return "%" if quantity.core.endswith("%") else ""


def _scaled(node: Node, scale: int) -> Node:
    # What is not scaled keeps its form: a sum shows its constant C.
    return ("mul", [node, ("num", Fraction(scale))]) if scale != 1 else node


def _plain(text: str) -> tuple[Fraction, bool] | None:
    percent = text.endswith("%")
    value = parse_number(text[:-1].strip() if percent else text)
    return None if value is None else (value, percent)


def _compare_numbers(
    gold: tuple[Fraction, bool],
    predicted: tuple[Fraction, bool],
    gold_scale: int,
    predicted_scale: int,
) -> Result:
    """Compare exact numbers; p% is p/100, or p beside a bare number."""
    one, two = gold[0] * gold_scale, predicted[0] * predicted_scale
    if gold[1] == predicted[1]:
        return one == two, "number" if one == two else "different number"
    percent = one if gold[1] else two
    bare = two if gold[1] else one
    if percent / 100 == bare or (percent == bare and abs(bare) >= 1):
        return True, "number (percent)"
    return False, "different number"


def _compare_words(gold: str, predicted: str) -> Result:
    same = plain_words(gold) == plain_words(predicted)
    return same, "same words" if same else "different words"


_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?$")
_SUM = re.compile(
    r"\\(?:sum|prod) ?_ ?\{[^{}]*\} ?\^ ?(?:\{[^{}]*\}|\w|\\infty)"
)
_ARTICLES = re.compile(r"^(?:(?:on|in|at) )?(?:(?:the|an?) )?(?:limit )?")
_SHORT = {
    "dne": "does not exist", "t": "true", "f": "false",
    "infinitely many solutions": "infinitely many",
}  # fmt: skip


def plain_words(text: str) -> str:
    """Return a text answer without case, marks and outer punctuation."""
    formula = "\\" in text
    text = text.replace(OPEN, " ").replace(CLOSE, " ").lower()
    text = re.sub(r"[\s{}$\\]+", " ", text).strip(" .,;:!\"'`*")
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text)
    if not formula:  # A \subset B keeps its A
        text = _ARTICLES.sub("", text)
    text = text.removesuffix(" triangle")
    return _SHORT.get(text, text)


def _same_sums(gold: str, predicted: str) -> bool:
    """Say whether two sums (or products) have the same range and terms."""
    one, two = _SUM.match(gold), _SUM.match(predicted)
    if one is None or two is None:
        return False
    ranges = [canonical(text[: m.end()]) for text, m in
              ((gold, one), (predicted, two))]  # fmt: skip
    if ranges[0] != ranges[1]:
        return False
    terms = gold[one.end() :], predicted[two.end() :]
    # Where a bare "k + 1" under a sum ends is not clear: no verdict then.
    if any(len(split_top(t, {"+", "-"})[0]) > 1 for t in terms):
        return False
    return _same_whole(*terms)


def _compare_unreadable(gold: str, predicted: str) -> Result:
    if plain_words(gold) == plain_words(predicted) and re.search(
        r"[a-z]{2}", plain_words(gold)
    ):
        return True, "same words"
    wordy = [
        re.search(r"[A-Za-z]{4}", re.sub(r"\\[A-Za-z]+", " ", t))
        for t in (gold, predicted)
    ]
    return (False, "different words") if all(wordy) else (None, "")


def compare_nodes(
    gold: Node, predicted: Node, radians: bool = False
) -> Result:
    """Compare by evaluation, under each reading that the notation allows.

    A bare number beside 30 degrees may count degrees or radians;
    ``radians`` says that it has said which.
    """
    predicted = _match_unit(gold, _match_constant(gold, predicted))
    gold = _match_unit(predicted, gold)
    readings: list[dict[str, bool]] = [{"radians": radians}]
    both = (gold, predicted)
    if any(contains(n, "deg") for n in both):
        readings.append({"radians": True})
    if any(contains(n, "call", "log") for n in both):
        readings.append({"decimal_log": True})
    unknown = False
    for reading in readings:
        same = equal_nodes(gold, predicted, **reading)
        if same:
            return True, "same value"
        unknown |= same is None
    return (None, "") if unknown else (False, "different value")


def _match_unit(gold: Node, predicted: Node) -> Node:
    """Read I (sympy) and j (engineers) as the i of the reference."""
    for name in ("I", "j"):
        lone = symbols(predicted) == {name} and not symbols(gold)
        if lone and contains(gold, "const", "i"):
            return _replaced(predicted, ("sym", name), ("const", "i"))
    return predicted


def _replaced(node: Any, old: Node, new: Node) -> Any:
    if node == old:
        return new
    if isinstance(node, list | tuple):
        return type(node)(_replaced(part, old, new) for part in node)
    return node


def _match_constant(gold: Node, predicted: Node) -> Node:
    """Rename the constant of integration c to the C of the reference."""
    ours, theirs = symbols(predicted), symbols(gold)
    for small, large in (("c", "C"), ("C", "c"), ("k", "C"), ("K", "C")):
        lone = small in ours - theirs and large in theirs - ours
        if not lone or predicted[0] != "add":
            continue
        old, new = ("sym", small), ("sym", large)
        if old in predicted[1]:
            return ("add", [new if p == old else p for p in predicted[1]])
    return predicted
