"""Matrices: their size from the notation, their entries at a point.

Known are sums, products, multiples, whole powers, the transpose and, as a
number, the determinant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers.grading.reader import Node, ReadError

if TYPE_CHECKING:
    from helpers.grading.evaluate import Evaluator

MAX_POWER = 30
Rows = list[list[Any]]


def find_size(node: Node) -> tuple[int, int] | None:
    """Return the number of rows and columns, None for a single value.

    Raises:
        ReadError: the parts do not fit together.
    """
    if node[0] == "matrix":
        widths = {len(row[1]) for row in node[1]}
        if len(widths) != 1:
            raise ReadError("rows of different length")
        return len(node[1]), widths.pop()
    if node[0] == "neg":
        return find_size(node[1])
    if node[0] == "div" and find_size(node[2]) is None:
        return find_size(node[1])
    if node[0] == "add":
        sizes = {find_size(part) for part in node[1]}
        if len(sizes) != 1:
            raise ReadError("a sum of different sizes")
        return sizes.pop()
    if node[0] == "mul":
        size = None
        for part in node[1]:
            size = _fit(size, find_size(part))
        return size
    if node[0] == "pow":
        size = find_size(node[1])
        if size is None:
            return None
        if _is_transposed(node):
            return size[::-1]
        if size[0] == size[1] and _whole_power(node) is not None:
            return size
        raise ReadError("a power of a matrix")
    return None


def _fit(
    left: tuple[int, int] | None, right: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Return the size of a product."""
    if left is None or right is None:
        return left or right
    if left[1] != right[0]:
        raise ReadError("a product of sizes that do not fit")
    return left[0], right[1]


def _is_transposed(node: Node) -> bool:
    return bool(node[2] == ("sym", "T"))


def _whole_power(node: Node) -> int | None:
    kind, value = node[2][:2]
    whole = kind == "num" and value.denominator == 1
    return int(value) if whole and 1 <= value <= MAX_POWER else None


def find_entries(ev: Evaluator, node: Node) -> Any:
    """Return the entries of a matrix at a point; one value if it is none.

    The sizes fit, see :func:`find_size`.
    """
    if node[0] == "matrix":
        return [[ev.value(cell) for cell in row[1]] for row in node[1]]
    if find_size(node) is None:
        return ev.value(node)
    if node[0] == "neg":
        return [[-v for v in row] for row in find_entries(ev, node[1])]
    if node[0] == "div":
        low = ev.value(("div", ("num", ev.one), node[2]))
        return _multiply(ev, low, find_entries(ev, node[1]))
    if node[0] == "add":
        parts = [find_entries(ev, part) for part in node[1]]
        return [
            [ev.total(list(cells)) for cells in zip(*rows, strict=True)]
            for rows in zip(*parts, strict=True)
        ]
    if node[0] == "mul":
        result = find_entries(ev, node[1][0])
        for part in node[1][1:]:
            result = _multiply(ev, result, find_entries(ev, part))
        return result
    rows = find_entries(ev, node[1])
    if _is_transposed(node):
        return [list(column) for column in zip(*rows, strict=True)]
    result = rows
    for _ in range((_whole_power(node) or 1) - 1):
        result = _multiply(ev, result, rows)
    return result


def _multiply(ev: Evaluator, left: Any, right: Any) -> Any:
    """Multiply two matrices, or a matrix by a value on either side."""
    if not isinstance(left, list) and not isinstance(right, list):
        return ev.multiply(left, right)
    if not isinstance(left, list):
        return [[ev.multiply(left, v) for v in row] for row in right]
    if not isinstance(right, list):
        return [[ev.multiply(v, right) for v in row] for row in left]
    columns = list(zip(*right, strict=True))
    ev.spend(len(left) * len(columns) * len(right))
    return [
        [
            ev.total(
                [ev.multiply(a, b) for a, b in zip(row, column, strict=True)]
            )
            for column in columns
        ]
        for row in left
    ]


def find_determinant(ev: Evaluator, rows: Rows) -> Any:
    """Return the determinant of a small square matrix, by its first row."""
    if len(rows) == 1:
        return rows[0][0]
    ev.spend(len(rows))
    terms = []
    for place, value in enumerate(rows[0]):
        minor = [row[:place] + row[place + 1 :] for row in rows[1:]]
        term = ev.multiply(value, find_determinant(ev, minor))
        terms.append(-term if place % 2 else term)
    return ev.total(terms)
