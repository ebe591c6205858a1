"""See the shape of an answer: number, list, tuple, interval, relation …"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import islice, product

from helpers.grading.spelling import (
    CLOSE,
    OPEN,
    is_grouped_number,
    outer_brackets,
    split_list,
    split_top,
    strip_doubled,
)

MAX_ITEMS = 200
_MARKS = str.maketrans("", "", OPEN + CLOSE)
RELATIONS = {
    "=": "=", "<": "<", ">": ">", r"\le": "<=", r"\ge": ">=", r"\ne": "!=",
    r"\approx": "~", r"\equiv": "=",
}  # fmt: skip
_EMPTY = re.compile(
    r"\\emptyset|\\lbr\s*\\rbr|\{\s*\}|(?:there (?:is|are) )?no (?:real )?"
    r"(?:solutions?|roots?)(?: exists?)?|(?:the )?empty set",
    re.I,
)
_INFINITE = re.compile(r"[-+]?\s*(?:\\infty|oo|infinity|inf)\s*", re.I)
_REALS = re.compile(
    r"\\mathbb ?\{?R\}?|\\Re|\\R\b|(?:all|any) real(?: number)?s?|reals?", re.I
)


@dataclass
class Value:
    """One answer with its shape.

    ``kind``: "scalar", "list" (bare commas), "set", "tuple", "interval",
    "union", "relation", "ratio", "matrix", "empty", "reals" or "minus"
    (a set without points). ``text`` is the cleaned source; ``items`` the
    parts; ``marks`` the brackets of an interval or the relation signs.
    """

    kind: str
    text: str
    items: list[Value] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)


def parse_value(text: str, grouped: bool = True) -> Value:
    """Return the shape of a cleaned answer."""
    text = _unwrap(_as_set(text.strip()))
    bare = text.replace(OPEN, "").replace(CLOSE, "").strip()
    if _EMPTY.fullmatch(bare):
        return Value("empty", text)
    if found := re.fullmatch(r"[A-Z]\s*(\([^()]*,[^()]*\))", text):
        if not re.match(r"[CP]\s*\(\s*\d+\s*,\s*\d+\s*\)", text):
            text = found[1]  # a point with its name
    if _REALS.fullmatch(bare):
        return Value("reals", text)
    if found := re.fullmatch(r"[Mm]atrix\s*\((\[.*\])\)", text):
        rows = found[1]
        text = rows if rows.startswith("[[") else f"[{rows}]"
    if (matrix := _read_rows(text)) is not None:
        return matrix
    if found := re.fullmatch(r"Eq\s*\((.*)\)", text):
        sides, _ = split_top(found[1], {","})
        if len(sides) == 2:
            text = " = ".join(sides)
    if found := re.match(r"^(?:⟦[^⟧]*⟧|only|for)?\s*[A-Za-z](?:_\w)?\s*"
                         r"\\in\s*(.+)$", text):  # fmt: skip
        return parse_value(found[1], grouped)
    if found := re.fullmatch(
        r"\\begin ?\{cases\}([^&]*?)(?:\\\\)?\s*\\end ?\{cases\}", text
    ):
        return parse_value(" and ".join(re.split(r"\\\\", found[1])), grouped)
    for reader in (
        _read_list, _read_named_set, _read_sets, _read_brackets, _read_matrix,
    ):  # fmt: skip
        value = reader(text, grouped)
        if value is not None:
            return value
    return _read_relation(text) or _read_ratio(text) or _variants(text)


def is_empty(text: str) -> bool:
    """Say whether an answer names the empty set."""
    return bool(_EMPTY.fullmatch(text.translate(_MARKS).strip()))


def _as_set(text: str) -> str:
    """Write the bare braces of computer algebra, {1,2}, as a set."""
    if text[:1] != "{" or text[-1:] != "}":
        return text
    inside = text[1:-1]
    if is_grouped_number(inside):
        return text
    if inside.strip() and len(split_top(inside, {","})[0]) < 2:
        return text
    return rf"\lbr {inside} \rbr" if "}" not in inside.split("{")[0] else text


def _read_rows(text: str) -> Value | None:
    """Read [[1,2],[3,4]], a list of lists, as a matrix."""
    if not re.fullmatch(r"\[\s*\[.*\]", text):
        return None
    rows = [outer_brackets(r) for r in split_top(text[1:-1], {","})[0]]
    if any(row is None or row[0] + row[2] != "[]" for row in rows):
        return None
    cells = [split_top(row[1], {","})[0] for row in rows if row]
    return Value(
        "matrix",
        text,
        [Value("tuple", "", [Value("scalar", c) for c in r]) for r in cells],
    )


def _unwrap(text: str) -> str:
    text = text.strip()
    text = strip_doubled(text)
    text = re.sub(r"^⟦[^⟧]*[:=]\s*⟧\s*|\s*\\\\\s*$", "", text)
    return re.sub(r"^(?:only|=|:|\\approx\b)\s*", "", text).strip()


def _variants(text: str) -> Value:
    """Write a scalar with ± as the list of its two values."""
    if r"\pm" not in text and r"\mp" not in text:
        return Value("scalar", text)
    return Value("list", text, [Value("scalar", t) for t in _both_signs(text)])


def _both_signs(text: str) -> tuple[str, str]:
    return (
        text.replace(r"\pm", "+").replace(r"\mp", "-"),
        text.replace(r"\pm", "-").replace(r"\mp", "+"),
    )


def _read_list(text: str, grouped: bool) -> Value | None:
    parts, seen = split_list(text, grouped)
    if len(parts) < 2 or len(parts) > MAX_ITEMS:
        if len(parts) > MAX_ITEMS:
            return Value("list", text, [Value("scalar", p) for p in parts])
        return None
    items: list[Value] = []
    for part in parts:
        value = parse_value(part)
        flat = value.kind == "list" and re.search(r"\\pm|\\mp", part)
        items.extend(value.items if flat else [value])
    head = items[0]
    named = head.marks == ["="]
    if named_out := _left_out(items):
        items = named_out
        seen = ["and"]
    if named and all(
        v.kind not in ("relation", "interval", "union") for v in items[1:]
    ):
        items[1:] = [_named_alike(head, v) for v in items[1:]]
    if not all(mark in ("or", r"\vee") for mark in seen):
        both = bool({"and", r"\wedge"} & set(seen))
        return Value("list", text, items, ["and"] if both else [])
    # "x < 1 or x > 3" is one set; "(1,2) or (2,1)" and "x = 1 or x = 2"
    # are lists.
    sets = all(
        v.kind in ("interval", "tuple", "union", "relation") for v in items
    ) and any(
        v.kind in ("interval", "union")
        or (v.kind == "relation" and set(v.marks) != {"="})
        for v in items
    )
    return Value("union" if sets else "list", text, items, ["or"])


def _left_out(items: list[Value]) -> list[Value] | None:
    """Read "x != 0, 1" as two inequalities that both hold."""
    first = items[0]
    if first.marks != ["!="]:
        return None
    if all(v.marks == ["!="] for v in items):
        return items
    if any(v.kind != "scalar" for v in items[1:]):
        return None
    return [first, *(_named_alike(first, v) for v in items[1:])]


def _named_alike(first: Value, value: Value) -> Value:
    """Give a value the name of the first: "n = 1, 2" is n = 1, n = 2."""
    name = first.items[0]
    text = f"{name.text} {first.marks[0]} {value.text}"
    return Value("relation", text, [name, value], first.marks)


def _read_named_set(text: str, grouped: bool) -> Value | None:
    """Read "A = (0,1) \\cup (2,3)" as a name and the whole union."""
    found = re.fullmatch(r"([A-Z])\s*=([^=<>]+)", text)
    if found is None:
        return None
    value = parse_value(found[2])
    if value.kind not in ("union", "overlap", "minus", "reals", "empty"):
        return None
    return Value("relation", text, [Value("scalar", found[1]), value], ["="])


def _read_sets(text: str, grouped: bool) -> Value | None:
    parts, seen = split_top(text, {r"\cup"})
    if seen and all(parts):
        return Value("union", text, [parse_value(p) for p in parts])
    parts, seen = split_top(text, {r"\cap"})
    if seen and all(parts):
        return Value("overlap", text, [parse_value(p) for p in parts])
    parts, seen = split_top(text, {r"\setminus"})
    if len(parts) == 2:
        return Value("minus", text, [parse_value(p) for p in parts])
    parts, seen = split_top(text, {"-"})
    if len(parts) == 2 and parts[1].startswith(r"\lbr"):
        return Value("minus", text, [parse_value(p) for p in parts])
    return None


def _read_brackets(text: str, grouped: bool) -> Value | None:
    found = outer_brackets(text)
    if found is None:
        return None
    opener, inside, closer = found
    if opener == r"\lbr":
        return _read_set(text, inside)
    parts, _ = split_top(inside, {","})
    if not all(parts):
        return None
    if len(parts) == 1:
        same = (opener, closer) in (("(", ")"), ("[", "]"))
        return parse_value(inside) if same else None
    if opener + closer == "()" and re.fullmatch(r"\d{1,3}(,000)+", inside):
        return parse_value(inside)
    if any(r"\pm" in p or r"\mp" in p for p in parts):
        return _read_pm_tuple(text, parts)
    items = [parse_value(p) for p in parts]
    if all(v.marks == ["="] for v in items):
        return Value("list", text, items)  # [x=1, y=2]
    infinite = any(_INFINITE.fullmatch(p) for p in parts)
    if len(parts) == 2 and (opener + closer != "()" or infinite):
        nested = any(v.kind in ("tuple", "interval") for v in items)
        if not nested:
            return Value("interval", text, items, [opener, closer])
    return Value("tuple", text, items, [opener, closer])


def _read_pm_tuple(text: str, parts: list[str]) -> Value:
    choices = []
    for part in parts:
        value = parse_value(part)
        choices.append(value.items if value.kind == "list" else [value])
    # 2^n rows: only as many as are ever compared are made.
    rows = islice(product(*choices), MAX_ITEMS)
    marks = [text[0], text[-1]]
    return Value(
        "list", text, [Value("tuple", text, list(row), marks) for row in rows]
    )


def _read_set(text: str, inside: str) -> Value:
    for mark in ("|", r"\vert", ":"):
        parts, _ = split_top(inside, {mark})
        if len(parts) == 2 and re.search(r"[<>=]|\\[lg]e\b|\\ne|\\in",
                                                  parts[1]):  # fmt: skip
            return parse_value(parts[1])
    parts, _ = split_list(inside, grouped=False)
    if len(parts) > MAX_ITEMS:
        return Value("set", text, [Value("scalar", p) for p in parts])
    items: list[Value] = []
    for part in parts:
        value = parse_value(part)
        items.extend(value.items if value.kind == "list" else [value])
    return Value("set", text, items)


def _read_matrix(text: str, grouped: bool) -> Value | None:
    found = re.fullmatch(
        r"\\begin ?\{([pb]?matrix|smallmatrix|array)\}\s*(?:\{[lcr| ]*\})?"
        r"(.*)\\end ?\{\1\}", text, re.S)  # fmt: skip
    if found is None or r"\begin" in found[2]:
        return None
    body = re.sub(r"\\\\\s*\[[^\]]*\]", r"\\\\", found[2]).strip()
    rows = [r.strip() for r in re.split(r"\\\\", body)]
    cells = [[c.strip() for c in r.split("&")] for r in rows if r]
    if found[1] == "array" and [len(r) for r in cells] == [1]:
        return parse_value(cells[0][0])
    items = [
        Value("tuple", "", [Value("scalar", c) for c in row]) for row in cells
    ]
    return Value("matrix", text, items)


def _read_relation(text: str) -> Value | None:
    parts, seen = split_top(text, set(RELATIONS))
    if not seen:
        return None
    marks = [RELATIONS[m] for m in seen]
    if not all(parts):
        return Value("scalar", text)
    while "~" in marks:
        at = marks.index("~")
        if at == 0 and re.fullmatch(r"[A-Za-z]\w?", parts[0]):
            marks[0] = "="
            continue
        marks, parts = marks[:at], parts[: at + 1]
    if not marks:
        return parse_value(parts[0])
    if any(r"\pm" in p or r"\mp" in p for p in parts):
        return _read_signed(text, parts, marks)
    return Value("relation", text, [_side(p) for p in parts], marks)


def _read_signed(text: str, parts: list[str], marks: list[str]) -> Value:
    """Read x = ±2 as x = 2, x = -2; x != ±2 excludes both."""
    items = []
    for sides in zip(*map(_both_signs, parts), strict=True):
        rest = zip(marks, sides[1:], strict=True)
        whole = sides[0] + "".join(f" {mark} {side}" for mark, side in rest)
        items.append(Value("relation", whole, list(map(_side, sides)), marks))
    return Value("list", text, items, ["and"] if "!=" in marks else [])


def _side(text: str) -> Value:
    """Read one side of a relation; sides may be tuples or lists."""
    whole = outer_brackets(text) or text.startswith(r"\begin")
    return parse_value(text) if whole else Value("scalar", text)


def _read_ratio(text: str) -> Value | None:
    if found := re.fullmatch(r"(\d+) ⟦?to⟧? (\d+)", text):
        text = f"{found[1]}:{found[2]}"
    parts, seen = split_top(text, {":"})
    if not seen or not all(parts) or len(parts) > 8:
        return None
    return Value("ratio", text, [Value("scalar", p) for p in parts])
