"""Expressions as trees, and questions about them.

A node is a tuple whose first item names it:
``("num", Fraction)``, ``("sym", name)``, ``("add", [nodes])``,
``("mul", [nodes])``, ``("neg", a)``, ``("div", a, b)``, ``("pow", a, b)``,
``("call", name, [nodes])``, ``("apply", name, [nodes])`` for an unknown
function such as f, ``("deg", a)``, ``("const", name)``.
"""

from __future__ import annotations

from typing import Any

Node = tuple[Any, ...]


def times(left: Node, right: Node) -> Node:
    """Return the product, flat, so that long chains stay shallow."""
    if left[0] == "mul":
        left[1].append(right)  # nodes are never shared while reading
        return left
    return ("mul", [left, right])


def symbols(node: Node) -> set[str]:
    """Return the names of the variables in an expression."""
    if node[0] == "sym":
        return {node[1]}
    found: set[str] = set()
    for child in children(node):
        found |= symbols(child)
    return found


def children(node: Node) -> list[Node]:
    """Return the nodes directly below a node."""
    below: list[Node] = []
    for part in node[1:]:
        if isinstance(part, list):
            below.extend(part)
        elif isinstance(part, tuple):
            below.append(part)
    return below


def measure_height(node: Node) -> int:
    """Return how many nodes lie between the root and the deepest leaf."""
    height, level = 0, [node]
    while level:
        height += 1
        level = [child for above in level for child in children(above)]
    return height


def contains(node: Node, *head: str) -> bool:
    """Say whether a node that starts so (kind, name) occurs in the tree."""
    if node[: len(head)] == head:
        return True
    return any(contains(child, *head) for child in children(node))
