"""Compare two answers by shape, then single values by what they are worth.

Lists, sets, tuples, matrices, relations come first; a shape that cannot
match is refused, so that brackets, arity and units are never lost. Single
values (numbers, units, words, expressions) are in the second half. Every
function returns (verdict, reason); the verdict is None when the texts cannot
be read or their values not be computed.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import product
from typing import Any

from helpers.grading.evaluate import spend
from helpers.grading.matrices import find_size
from helpers.grading.numbers import parse_number
from helpers.grading.probe import equal_nodes
from helpers.grading.reader import (
    BINDERS,
    Node,
    ReadError,
    contains,
    is_readable,
    read,
    symbols,
)
from helpers.grading.relations import (
    chain_value,
    compare_relations,
    definition_value,
)
from helpers.grading.sets import (
    has_one_variable,
    infinite_sign,
    is_bounds,
    same_pieces,
    to_pieces,
)
from helpers.grading.shapes import Value, parse_value
from helpers.grading.spelling import CLOSE, OPEN, canonical
from helpers.grading.units import Quantity, split_unit, units_clash

Result = tuple[bool | None, str]
MAX_MATCH = 60
STEPS_A_PAIR = 20
_SET_KINDS = {"interval", "union", "overlap", "minus", "reals", "empty"}


def compare_values(gold: Value, predicted: Value, depth: int = 0) -> Result:
    """Compare two shaped answers."""
    if depth > 8:
        return False, "nested too deeply"
    spend(STEPS_A_PAIR + (len(gold.text) + len(predicted.text)) // 4)
    if canonical(gold.text) == canonical(predicted.text) and gold.text:
        return True, "exact string"
    kinds = {gold.kind, predicted.kind}
    if kinds == {"scalar"}:
        return compare_scalars(gold.text, predicted.text)
    if kinds == {"relation"}:
        return compare_relations(gold, predicted, compare_values)
    if "matrix" in kinds and "relation" not in kinds:
        return _compare_matrices(gold, predicted, depth)
    if (
        kinds & _SET_KINDS
        or ("relation" in kinds and kinds & {"tuple", "set"})
        or _is_range(gold) != _is_range(predicted)
    ):
        result = _compare_solutions(gold, predicted)
        if result is not None:
            return result
    if "relation" in kinds:
        return _compare_with_relation(gold, predicted, depth)
    if "ratio" in kinds:
        return _compare_ratios(gold, predicted, depth)
    return _compare_collections(gold, predicted, depth)


def _is_range(value: Value) -> bool:
    """Say whether a list is ``x > a and x < b``."""
    both = value.marks == ["and"] or is_bounds(value)
    return both and to_pieces(value) is not None


def _compare_solutions(gold: Value, predicted: Value) -> Result | None:
    one, two = to_pieces(gold), to_pieces(predicted)
    if one is None or two is None:
        if "relation" in (gold.kind, predicted.kind):
            return None
        single = {gold.kind, predicted.kind} & {"scalar", "list", "set"}
        if (
            gold.kind == predicted.kind
            and gold.kind in ("union", "overlap")
            and _name_alike([*gold.items, *predicted.items])
        ):
            if _any_order(gold.items, predicted.items, 1, False)[0]:
                return True, "set"
        if single and "minus" not in (gold.kind, predicted.kind):
            return False, "a different form"
        return None, "set"
    same = same_pieces(one, two)
    return same, "set" if same else "different set"


def _name_alike(items: list[Value]) -> bool:
    """Say whether x and y cannot be taken for each other."""
    named = all(v.kind == "relation" for v in items)
    return named or has_one_variable(items)


def _compare_with_relation(
    gold: Value, predicted: Value, depth: int
) -> Result:
    """One side is a relation, the other is not: take its value."""
    relation = gold if gold.kind == "relation" else predicted
    value = definition_value(relation) or chain_value(relation)
    if value is None:
        return False, "an equation and a value"
    if relation is gold:
        return compare_values(value, predicted, depth + 1)
    return compare_values(gold, value, depth + 1)


def _compare_ratios(gold: Value, predicted: Value, depth: int) -> Result:
    left, right = _as_quotient(gold), _as_quotient(predicted)
    if left is not None and right is not None:
        return compare_scalars(left, right)
    if gold.kind == predicted.kind and len(gold.items) == len(predicted.items):
        return _in_proportion(gold, predicted)
    return False, "a different form"


def _in_proportion(gold: Value, predicted: Value) -> Result:
    """Compare 1:2:3 with 2:4:6, each part against the first one."""
    for one, two in zip(gold.items[1:], predicted.items[1:], strict=True):
        same, _ = compare_scalars(
            f"({one.text})*({predicted.items[0].text})",
            f"({two.text})*({gold.items[0].text})",
        )
        if not same:
            return False, "different parts"
    return True, "ratio"


def _as_quotient(value: Value) -> str | None:
    if value.kind == "scalar":
        return value.text
    if value.kind == "ratio" and len(value.items) == 2:
        return "({})/({})".format(*(v.text for v in value.items))
    return None


def _compare_matrices(gold: Value, predicted: Value, depth: int) -> Result:
    if gold.kind != predicted.kind:
        computed = _compare_with_computed(gold, predicted)
        if computed is not None:
            return computed
        left, right = _as_rows(gold), _as_rows(predicted)
        if left is None or right is None:
            other = predicted if gold.kind == "matrix" else gold
            known = other.kind != "scalar" or is_readable(other.text)
            return (False, "a matrix and no matrix") if known else (None, "")
    else:
        left, right = gold.items, predicted.items
    if [len(r.items) for r in left] != [len(r.items) for r in right]:
        return False, "different size"
    return _in_order(
        [c for row in left for c in row.items],
        [c for row in right for c in row.items],
        depth,
    )


def _compare_with_computed(gold: Value, predicted: Value) -> Result | None:
    """Compare a matrix with what has one for its value: 2 times another."""
    if "scalar" not in (gold.kind, predicted.kind):
        return None
    try:
        nodes = [
            read(value.text)
            if value.kind == "scalar"
            else ("matrix", [("row", [read(c.text) for c in row.items])
                             for row in value.items])
            for value in (gold, predicted)
        ]  # fmt: skip
        if any(find_size(node) is None for node in nodes):
            return None
        return compare_nodes(*nodes)
    except ReadError:
        return None


def _as_rows(value: Value) -> list[Value] | None:
    """Read a tuple as a column and a list of lists as a matrix."""
    if value.kind == "matrix":
        if len(value.items) == 1:
            return [Value("tuple", "", [c]) for c in value.items[0].items]
        return value.items
    if value.kind not in ("tuple", "interval"):
        return None
    if all(v.kind in ("tuple", "interval") for v in value.items):
        return value.items
    return [Value("tuple", "", [v]) for v in value.items]


def _in_order(left: list[Value], right: list[Value], depth: int) -> Result:
    if len(left) != len(right):
        return False, "a different number of parts"
    unknown = False
    for one, two in zip(left, right, strict=True):
        same, _ = compare_values(one, two, depth + 1)
        if same is False:
            return False, "different parts"
        unknown |= same is None
    return (None, "") if unknown else (True, "tuple")


def _compare_collections(gold: Value, predicted: Value, depth: int) -> Result:
    left, right = _parts(gold), _parts(predicted)
    if _connectors_clash(gold, predicted):
        return False, "and is not or"
    assigned = _assignment(gold, predicted, depth)
    if assigned is not None:
        return assigned
    kinds = {gold.kind, predicted.kind}
    if "tuple" in kinds:
        if "set" in kinds or "scalar" in kinds:
            lone = gold if gold.kind == "tuple" else predicted
            other = predicted if lone is gold else gold
            if len(_parts(other)) == 1 and other.kind == "set":
                return compare_values(lone, other.items[0], depth + 1)
            # P(5,2) is a number, but beside (1,2), P(1,2) is a point.
            if found := re.fullmatch(r"[A-Z]\s*(\(.*\))", other.text):
                point = parse_value(found[1])
                return compare_values(lone, point, depth + 1)
            return False, "a different form"
        nested = [any(v.kind == "tuple" for v in p) for p in (left, right)]
        if kinds == {"tuple", "list"} and nested[0] != nested[1]:
            return False, "a different form"
        if _are_choices(gold) or _are_choices(predicted):
            return False, "several values are no tuple"
        return _in_order(left, right, depth)
    if len(right) < len(left) and "set" not in kinds:
        return False, "a different number of answers"
    if max(len(left), len(right)) > MAX_MATCH:
        return (False, "too many parts to compare")
    # Repeating an answer adds nothing: 5, 5, 5 is 5.
    repeated = len(right) > len(left)
    return _any_order(left, right, depth, "set" in kinds or repeated)


def _connectors_clash(gold: Value, predicted: Value) -> bool:
    """Say whether ``x=1 and y=2`` meets ``x=1 or y=2``.

    For several values of one variable "and" is as good as "or".
    """
    marks = {(gold.marks or [""])[0], (predicted.marks or [""])[0]}
    if "or" not in marks or len(marks) == 1:
        return False
    names = {
        canonical(v.items[0].text)
        for v in (*gold.items, *predicted.items)
        if v.kind == "relation"
    }
    return len(names) > 1


def _are_choices(value: Value) -> bool:
    """Say whether a list has several values of one thing: x = 1, x = 2."""
    names = [
        canonical(v.items[0].text) for v in value.items if v.kind == "relation"
    ]
    return value.marks == ["or"] or len(names) > len(set(names))


def _parts(value: Value) -> list[Value]:
    return [value] if value.kind == "scalar" else value.items


def _assignment(gold: Value, predicted: Value, depth: int) -> Result | None:
    """Compare ``x = 1, y = 2`` with ``(1, 2)``: values in named order."""
    lists = [_parts(gold), _parts(predicted)]
    named = [all(v.marks == ["="] for v in items) for items in lists]
    if named[0] == named[1]:
        return None
    items = lists[0] if named[0] else lists[1]
    names = [canonical(v.items[0].text) for v in items]
    if len(set(names)) != len(names):
        return None
    if all(re.fullmatch(r"[A-Za-z]", n) for n in names):
        by_name = sorted(zip(names, items, strict=True), key=lambda p: p[0])
        orders = [items, [v for _, v in by_name]]
    else:
        orders = [items]
    other = lists[1] if named[0] else lists[0]
    for order in orders:
        pair = (order, other) if named[0] else (other, order)
        same, _ = _in_order(*pair, depth)
        if same:
            return True, "values in order"
    return False, "different values"


def _any_order(
    left: list[Value], right: list[Value], depth: int, dedupe: bool
) -> Result:
    unknown = False
    table: list[list[bool]] = []
    for one in left:
        row = []
        for two in right:
            # {1} among the elements of a set is not the number 1.
            lone = (one.kind == "set") != (two.kind == "set")
            same = False if lone else compare_values(one, two, depth + 1)[0]
            unknown |= same is None
            row.append(bool(same))
        table.append(row)
    if dedupe:
        done = all(map(any, table)) and all(
            any(row[j] for row in table) for j in range(len(right))
        )
    else:
        done = _pair_up(table)
    if done and left:
        return True, "set"
    return (None, "") if unknown else (False, "different set")


def _pair_up(table: list[list[bool]]) -> bool:
    """Match equal items one to one (equality is transitive: greedy works)."""
    used: set[int] = set()
    for row in table:
        free = [j for j, same in enumerate(row) if same and j not in used]
        if not free:
            return False
        used.add(free[0])
    return True


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
    if any(contains(node, "matrix") for node in (gold, predicted)):
        result = _compare_computed_matrices(gold, predicted)
        if result is not None:
            return result
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
    if unknown and _same_terms(gold, predicted):
        return True, "same terms"
    return (None, "") if unknown else (False, "different value")


def _compare_computed_matrices(gold: Node, predicted: Node) -> Result | None:
    """Compare entry by entry; None when neither is a matrix."""
    try:
        sizes = [find_size(node) for node in (gold, predicted)]
    except ReadError as error:
        return False, str(error)
    if sizes == [None, None]:
        return None
    if None in sizes:
        return False, "a matrix and no matrix"
    if sizes[0] != sizes[1]:
        return False, "different size"
    rows, columns = sizes[0] or (0, 0)
    for place in product(range(rows), range(columns)):
        spend(STEPS_A_PAIR)
        same, _ = compare_nodes(
            ("cell", gold, *place), ("cell", predicted, *place)
        )
        if not same:
            return same, "different parts"
    return True, "same matrix"


def _same_terms(gold: Node, predicted: Node) -> bool:
    """Say whether two sums that have no value here are written alike.

    Such as infinite ones: the same range, and terms that are equal.
    """
    if gold[0] != predicted[0] or gold[0] not in BINDERS:
        return False
    own = ("sym", gold[1])
    if gold[1] != predicted[1] and gold[1] in symbols(predicted[2]):
        return False
    body = _replaced(predicted[2], ("sym", predicted[1]), own)
    pairs = [(gold[2], body), *zip(gold[3:], predicted[3:], strict=True)]
    return all(a == b or compare_nodes(a, b)[0] for a, b in pairs)


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
