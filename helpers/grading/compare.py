"""Compare two answers by shape: scalars, lists, sets, tuples, relations.

Every function returns (verdict, reason); the verdict is None when only
math-verify might tell. A shape that cannot match is refused here, so that
brackets, arity and units are never lost on the way to a symbolic comparison.
"""

from __future__ import annotations

import re

from helpers.grading.evaluate import out_of_time
from helpers.grading.normalize import canonical
from helpers.grading.reader import is_readable
from helpers.grading.relations import (
    chain_value,
    compare_relations,
    definition_value,
    is_solved,
)
from helpers.grading.satisfy import solves
from helpers.grading.scalars import compare_scalars
from helpers.grading.solutions import (
    has_one_variable,
    is_bounds,
    same_pieces,
    to_pieces,
)
from helpers.grading.structure import Value, parse_value

Result = tuple[bool | None, str]
MAX_MATCH = 60
_SET_KINDS = {"interval", "union", "overlap", "minus", "reals", "empty"}


def compare_values(gold: Value, predicted: Value, depth: int = 0) -> Result:
    """Compare two shaped answers."""
    if depth > 8:
        return False, "nested too deeply"
    if out_of_time():
        return False, "took too long"
    if canonical(gold.text) == canonical(predicted.text) and gold.text:
        return True, "exact string"
    kinds = {gold.kind, predicted.kind}
    if kinds == {"scalar"}:
        return compare_scalars(gold.text, predicted.text)
    if kinds == {"relation"}:
        result = compare_relations(gold, predicted, compare_values)
        return _or_solved(gold, predicted, result)
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
        result = _compare_with_relation(gold, predicted, depth)
        return _or_solved(gold, predicted, result)
    if "ratio" in kinds:
        return _compare_ratios(gold, predicted, depth)
    return _compare_collections(gold, predicted, depth)


def _or_solved(gold: Value, predicted: Value, result: Result) -> Result:
    """Accept an answer that solves a reference that is not solved."""
    if result[0] or gold.kind != "relation" or is_solved(gold):
        return result
    if _one_name(gold, predicted) and solves(gold, predicted):
        return True, "solves it"
    return result


def _one_name(gold: Value, predicted: Value) -> bool:
    """Say whether the answer is about the variable of the reference."""
    parts = [predicted, *predicted.items]
    named = {
        canonical(side.text)
        for part in parts
        if part.kind == "relation"
        for side in part.items
        if re.fullmatch(r"[A-Za-z]", canonical(side.text))
    }
    letters = set(
        re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", gold.text)
    )
    return named <= letters


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
            if out_of_time():
                return False, "deadline: comparing took too long"
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
