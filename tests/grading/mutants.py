"""Every rule of the grader behind a switch: the source is instrumented.

Each module of ``helpers.grading`` is parsed once and every decision point
is wrapped in a call of :class:`Switchboard`, which lets it through or
forces it. So a mutant costs no compilation and no process of its own, and
the same calls record which labelled case passes through which point.

What counts as a rule:

* a condition (``if``, ``while``, ``x if c else y``, a comparison, ``any``,
  ``all``, ``not``), forced to False, and to True;
* each operand of ``and`` / ``or``, left out;
* each entry of a table of constants (dict, set, tuple, list, the string
  after ``in``), left out;
* each alternative and each look-around of a regular expression, left out;
* each rewriting call (``re.sub``, ``replace``, ``strip`` …), left out.
"""

from __future__ import annotations

import ast
import builtins
import importlib.abc
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PACKAGE = "helpers.grading"
NAME = "__switchboard__"
_REWRITES = {
    "replace", "strip", "lstrip", "rstrip", "lower", "upper", "translate",
}  # fmt: skip
_PATTERN_USERS = {
    "compile", "sub", "search", "match", "fullmatch", "findall", "finditer",
    "split",
}  # fmt: skip
_TRUTHS = {"any", "all", "bool", "isinstance", "hasattr"}
_WRAPPERS = {"bool", "note"}  # note(words, outcome) hands the outcome on
_SKIPPED_TABLES = {"__all__", "POLICY"}  # test_policy has every entry
# These run and report what the other modules decide; a labelled case cannot
# see them. Their own tests are in test_grading.py and test_cli.py.
NO_RULES = {"completions", "explain", "files", "policy", "trace"}


@dataclass(frozen=True)
class Site:
    """One decision point: where it is and what may be done to it."""

    number: int
    module: str
    function: str
    line: int
    source: str
    kind: str  # "test", "table", "pattern" or "rewrite"
    variants: tuple[Any, ...]
    literal: str = ""  # of a pattern: the text that stands in the source


@dataclass(frozen=True)
class Mutant:
    """A site with what is done to it.

    ``rule`` is true where something is switched off, false where a
    condition is forced on.
    """

    site: Site
    variant: Any
    words: str
    rule: bool

    @property
    def key(self) -> str:
        """A name that survives edits elsewhere in the file."""
        site = self.site
        return f"{site.function}: {site.source} -> {self.words}"

    @property
    def place(self) -> str:
        """``file:line``, for a report."""
        return f"{self.site.module.rsplit('.', 1)[-1]}.py:{self.site.line}"


class Tagged(str):
    """A regular expression that knows the site it stands at."""

    number: int


class Heard:
    """A compiled pattern that writes down what it is asked.

    A mutant of the pattern can only change the cases in which its answers
    differ, and those are found without running them.
    """

    def __init__(self, board: Switchboard, text: Any, flags: int = 0):
        self._board, self._compiled = board, re.compile(text, flags)
        self._number = getattr(text, "number", None)

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._compiled, name)
        if self._number is None or name not in _PATTERN_USERS:
            return inner

        def ask(*args: Any, **named: Any) -> Any:
            if self._board.recording:
                text, *span = args[1:2] if name == "sub" else args
                way = name if name in ("match", "fullmatch") else "finditer"
                key = way, text, *(span if name != "split" else ())
                asked = self._board.asked.setdefault(self._number, {})
                asked.setdefault(key, set()).add(self._board.case)
                self._board.flags[self._number] = self._compiled.flags
            return inner(*args, **named)

        return ask


class HeardRe:
    """Stands for the module ``re`` while the cases are recorded."""

    def __init__(self, board: Switchboard):
        self._board = board

    def __getattr__(self, name: str) -> Any:
        if name == "compile":
            return lambda text, flags=0: Heard(self._board, text, flags)
        if name not in _PATTERN_USERS:
            return getattr(re, name)

        def ask(text: Any, *args: Any, flags: int = 0) -> Any:
            # re.search(pattern, text, flags), re.sub(pattern, new, text)
            rest = args if name in ("sub", "split") else args[:1]
            if name not in ("sub", "split") and len(args) > 1:
                flags = args[1]
            return getattr(Heard(self._board, text, flags), name)(*rest)

        return ask


def answers(compiled: re.Pattern[str], key: tuple[Any, ...]) -> Any:
    """Return all that a pattern finds when asked what ``key`` says."""
    way, *args = key
    found = getattr(compiled, way)(*args)
    if way == "finditer":
        return [(m.span(), m.groups()) for m in found]
    return found and (found.span(), found.groups())


class Switchboard:
    """What the instrumented modules call; one mutant at most is active."""

    def __init__(self) -> None:
        self.active: int | None = None
        self.variant: Any = None
        self.recording = False
        self.seen: set[tuple[int, Any]] = set()
        self.strings: dict[int, str] = {}
        self.listening, self.case = False, -1
        self.asked: dict[int, dict[tuple[Any, ...], set[int]]] = {}
        self.flags: dict[int, int] = {}

    def test(self, number: int, value: Any) -> Any:
        """Let a condition through, or force it."""
        if number == self.active:
            return self.variant
        if self.recording:
            self.seen.add((number, bool(value)))
        return value

    def table(self, number: int, kind: str, entries: tuple[Any, ...]) -> Any:
        """Build a table, without one entry when the site is active."""
        if number == self.active:
            at = self.variant
            entries = entries[:at] + entries[at + 1 :]
        elif self.recording:
            self.seen.add((number, None))
        if kind == "str":
            return "".join(entries)
        if kind == "maketrans":
            return str.maketrans(dict(entries))
        return getattr(builtins, kind)(entries)

    def pattern(self, number: int, text: str) -> str:
        """Return a regular expression, or its active variant."""
        if number == self.active:
            return str(self.variant)
        self.strings[number] = text
        if self.recording:
            self.seen.add((number, None))
        if self.listening:
            text = Tagged(text)
            text.number = number
        return text

    def method(self, number: int, subject: Any, name: str, *args: Any) -> Any:
        """Call ``subject.name(*args)`` or return the subject as it is."""
        if number == self.active:
            return subject
        result = getattr(subject, name)(*args)
        if self.recording and result != subject:
            self.seen.add((number, None))
        return result

    def sub(
        self, number: int, at: int, call: Callable[..., Any], *args: Any
    ) -> Any:
        """Call a substitution or return its subject, argument ``at``."""
        if number == self.active:
            return args[at]
        result = call(*args)
        if self.recording and result != args[at]:
            self.seen.add((number, None))
        return result


def _is_typing(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "TYPE_CHECKING"


def _calls(node: ast.expr, names: set[str]) -> bool:
    """Say whether a node calls one of these functions with arguments."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in names
        and bool(node.args)
    )


def _is_truth(node: ast.expr) -> bool:
    """Say whether an expression is a bool by its form."""
    if _calls(node, _TRUTHS):
        return True
    return isinstance(node, (ast.Compare, ast.BoolOp)) or (
        isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    )


def _constants(node: ast.AST) -> list[ast.expr] | None:
    """Return the entries of a display of constants, else None."""
    if isinstance(node, (ast.Tuple, ast.Set, ast.List)):
        parts = node.elts
    elif isinstance(node, ast.Dict):
        parts = [k for k in node.keys if k is not None]
    else:
        return None
    plain = all(_is_constant(p) for p in parts)
    return parts if parts and plain else None


def _is_constant(node: ast.AST) -> bool:
    if isinstance(node, ast.Tuple):
        return all(map(_is_constant, node.elts))
    return isinstance(node, ast.Constant)


class Instrument(ast.NodeTransformer):
    """Wrap the decision points of one module; collects :attr:`sites`."""

    def __init__(self, module: str, source: str, sites: list[Site]):
        self.module, self.source, self.sites = module, source, sites
        self.where: list[str] = [module.removeprefix("helpers.grading.")]
        self.target = ""  # the module-level name that is being assigned

    # ---- helpers ---------------------------------------------------------

    def _site(self, node: Any, kind: str, variants: tuple[Any, ...]) -> int:
        text = ast.get_source_segment(self.source, node) or ast.unparse(node)
        if kind in ("table", "pattern") and self.target:
            text = self.target
        number = len(self.sites)
        self.sites.append(
            Site(
                number, self.module, ".".join(self.where), node.lineno,
                " ".join(text.split()), kind, variants,
                _literal(node) if kind == "pattern" else "",
            )
        )  # fmt: skip
        return number

    def _call(self, method: str, *args: ast.expr | int | str) -> ast.Call:
        return ast.Call(
            ast.Attribute(ast.Name(NAME, ast.Load()), method, ast.Load()),
            [a if isinstance(a, ast.expr) else ast.Constant(a) for a in args],
            [],
        )

    def _test(self, node: ast.expr, *variants: Any) -> ast.expr:
        """Wrap a condition that may be forced to the given values."""
        if isinstance(node, ast.Constant) or _is_typing(node):
            return node
        number = self._site(node, "test", variants)
        return self._call("test", number, self._inside(node))

    def _inside(self, node: ast.expr) -> ast.expr:
        """Instrument below a condition that is wrapped already."""
        if isinstance(node, ast.BoolOp):
            return self._operands(node, boolean=True)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            node.operand = self._inside(node.operand)
            return node
        if isinstance(node, ast.Compare):
            return self._compare(node)
        if isinstance(node, ast.NamedExpr):
            node.value = self._inside(node.value)
            return node
        if _calls(node, _WRAPPERS):
            node.args[-1] = self._inside(node.args[-1])
            return node
        if _calls(node, {"any", "all"}) and isinstance(
            node.args[0], ast.GeneratorExp
        ):
            inner = node.args[0]
            inner.generators = [self.visit(g) for g in inner.generators]
            inner.elt = self._inside(inner.elt)
            return node
        return self.generic_visit(node)  # type: ignore[return-value]

    def _operands(self, node: ast.BoolOp, boolean: bool) -> ast.expr:
        """Wrap operands: left out means True for ``and``, False for ``or``."""
        neutral = isinstance(node.op, ast.And)
        values = []
        for i, value in enumerate(node.values):
            last = i == len(node.values) - 1
            if boolean or _is_truth(value) or not last:
                values.append(self._test(value, neutral))
            elif not neutral and not isinstance(value, ast.Constant):
                values.append(self._test(value, None))
            else:
                values.append(self.visit(value))
        node.values = values
        return node

    def _compare(self, node: ast.Compare) -> ast.expr:
        node.left = self.visit(node.left)
        inside = isinstance(node.ops[-1], (ast.In, ast.NotIn))
        node.comparators = [
            self._table(c) if inside else self.visit(c)
            for c in node.comparators
        ]
        return node

    def _table(self, node: ast.expr, force: bool = True) -> ast.expr:
        """Wrap a display of constants as a table of entries."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if len(node.value) < 2 or not force:
                return node
            number = self._site(node, "table", tuple(node.value))
            parts: list[ast.expr] = [ast.Constant(c) for c in node.value]
            return self._entries(number, "str", parts)
        entries = _constants(node)
        if entries is None:
            return self.visit(node)
        names = tuple(ast.unparse(e) for e in entries)
        number = self._site(node, "table", names)
        if isinstance(node, ast.Dict):
            entries = [
                ast.Tuple([k, self.visit(v)], ast.Load())
                for k, v in zip(node.keys, node.values, strict=True)
                if k is not None
            ]
        kind = type(node).__name__.lower()
        return self._entries(number, kind, entries)

    def _entries(
        self, number: int, kind: str, parts: list[ast.expr]
    ) -> ast.expr:
        return self._call(
            "table", number, kind, ast.Tuple(list(parts), ast.Load())
        )

    def _pattern(self, node: ast.expr) -> ast.expr:
        """Wrap a regular expression; its variants are known at run time."""
        number = self._site(node, "pattern", ())
        return self._call("pattern", number, node)

    # ---- statements ------------------------------------------------------

    def _scope(self, node: Any) -> Any:
        self.where.append(node.name)
        node.body = [self.visit(s) for s in node.body]
        self.where.pop()
        return node

    visit_FunctionDef = _scope
    visit_ClassDef = _scope

    def _condition(self, node: Any) -> Any:
        """``if``, ``while`` and ``x if c else y``."""
        node.test = self._test(node.test, False, True)
        for name in ("body", "orelse"):
            part = getattr(node, name)
            if isinstance(part, list):
                setattr(node, name, [self.visit(s) for s in part])
            else:
                setattr(node, name, self.visit(part))
        return node

    visit_If = visit_While = visit_IfExp = _condition

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        node.iter = self._iterated(node.iter)
        node.ifs = [self._test(c, False, True) for c in node.ifs]
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        node.iter = self._iterated(node.iter)
        node.body = [self.visit(s) for s in node.body]
        return node

    def _iterated(self, node: ast.expr) -> ast.expr:
        return self._table(node, force=False)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self._value(node.value, ast.unparse(node.target))
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        node.value = self._value(node.value, ast.unparse(node.targets[0]))
        return node

    def _value(self, value: ast.expr, target: str) -> ast.expr:
        if len(self.where) > 1:
            return self.visit(value)
        if target in _SKIPPED_TABLES:
            return value
        self.target = target
        try:
            return self._module_value(value)
        finally:
            self.target = ""

    def _module_value(self, value: ast.expr) -> ast.expr:
        if isinstance(value, (ast.Constant, ast.JoinedStr)):
            text = ast.unparse(value)
            whole = isinstance(value, ast.JoinedStr) or isinstance(
                value.value, str
            )
            return self._pattern(value) if whole and "|" in text else value
        return self._table(value, force=False)

    # ---- expressions -----------------------------------------------------

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        return self._operands(node, boolean=False)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        return self._test(node, False, True)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Not):
            return self._test(node, False, True)
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        for side in ("left", "right"):
            setattr(node, side, self._table(getattr(node, side), False))
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        node.value = self._table(node.value, False)
        node.slice = self.visit(node.slice)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function = node.func
        if isinstance(function, ast.Name) and function.id in _TRUTHS:
            return self._test(node, False, True)
        if not isinstance(function, ast.Attribute):
            return self.generic_visit(node)
        owner, name = ast.unparse(function.value), function.attr
        if owner == "re" and name in _PATTERN_USERS:
            return self._regular(node, name)
        if name == "maketrans" and len(node.args) == 2:
            return self._maketrans(node)
        if name == "split" and isinstance(function.value, ast.Constant):
            words = [ast.Constant(w) for w in function.value.value.split()]
            return self._table(ast.copy_location(ast.List(words), node))
        if name in _REWRITES and not node.keywords:
            return self._method(node, function)
        if name == "sub" and len(node.args) == 2:  # PATTERN.sub(new, text)
            return self._substitution(node, 1)
        if owner == "unicodedata" and name == "normalize":
            return self._substitution(node, 1)
        function.value = self._table(function.value, force=False)
        node.args = [self.visit(a) for a in node.args]
        return node

    def _regular(self, node: ast.Call, name: str) -> ast.AST:
        first = node.args[0]
        if isinstance(first, (ast.Constant, ast.JoinedStr)):
            local = len(self.where) > 1 and isinstance(first, ast.JoinedStr)
            node.args[0] = first if local else self._pattern(first)
        node.args[1:] = [self.visit(a) for a in node.args[1:]]
        if name == "sub" and len(node.args) == 3 and not node.keywords:
            return self._substitution(node, 2, visited=True)
        return node

    def _substitution(
        self, node: ast.Call, at: int, visited: bool = False
    ) -> ast.expr:
        number = self._site(node, "rewrite", (None,))
        args = node.args if visited else [self.visit(a) for a in node.args]
        return self._call("sub", number, at, node.func, *args)

    def _method(self, node: ast.Call, function: ast.Attribute) -> ast.expr:
        number = self._site(node, "rewrite", (None,))
        # A chain a.replace(…).replace(…): name the last step only.
        last = ast.unparse(node)[len(ast.unparse(function.value)) :]
        self.sites[number] = _renamed(self.sites[number], last)
        subject = self.visit(function.value)
        args = [self.visit(a) for a in node.args]
        return self._call("method", number, subject, function.attr, *args)

    def _maketrans(self, node: ast.Call) -> ast.expr:
        one, two = (a.value for a in node.args)  # type: ignore[attr-defined]
        number = self._site(node, "table", tuple(one))
        pairs = [
            ast.Tuple([ast.Constant(a), ast.Constant(b)], ast.Load())
            for a, b in zip(one, two, strict=True)
        ]
        return self._entries(number, "maketrans", list(pairs))


def _renamed(site: Site, last: str) -> Site:
    from dataclasses import replace

    short = site.source if len(site.source) < 60 else f"…{last}"
    return replace(site, source=short)


def alternatives(pattern: str) -> Iterator[tuple[str, str]]:
    """Yield (what is left out, the pattern without it).

    An alternative is kept but made impossible, so that groups keep their
    numbers; a look-around is replaced by nothing.
    """
    opened: list[list[int]] = [[0]]  # starts of the alternatives, by depth
    i, end = 0, len(pattern)
    spans: list[tuple[int, int, bool]] = []
    while i < end:
        char = pattern[i]
        if char == "\\":
            i += 2
            continue
        if char == "[":
            i = _class_end(pattern, i)
            continue
        if char == "(":
            head = re.match(
                r"\((?:\?(?:P<\w+>|[:>]|<?[=!]|[aiLmsux]+[:)]))?", pattern[i:]
            )
            i += len(head[0]) if head else 1
            opened.append([i])
            continue
        if char in "|)" or i == end - 1:
            pass_end = i if char in "|)" else end
            starts = opened[-1]
            several = len(starts) > 1 or char == "|"
            spans.append((starts[-1], pass_end, several))
            if char == "|":
                starts.append(i + 1)
            elif char == ")":
                opened.pop()
                if not opened:
                    return
        i += 1
    for start, stop, one_of_many in spans:
        if one_of_many and stop > start:
            yield (
                pattern[start:stop],
                f"{pattern[:start]}(?!){pattern[start:]}",
            )
    yield from _lookarounds(pattern)


def _lookarounds(pattern: str) -> Iterator[tuple[str, str]]:
    for found in re.finditer(r"(?<!\\)\(\?<?[=!]", pattern):
        depth, i = 0, found.start()
        while i < len(pattern):
            if pattern[i] == "\\":
                i += 2
                continue
            if pattern[i] == "[":
                i = _class_end(pattern, i)
                continue
            depth += (pattern[i] == "(") - (pattern[i] == ")")
            i += 1
            if depth == 0:
                break
        else:
            continue
        gone = pattern[found.start() : i]
        yield gone, pattern[: found.start()] + "(?:)" + pattern[i:]


def _class_end(pattern: str, start: int) -> int:
    """Return the index just past a character class."""
    i = start + 1
    if pattern[i : i + 1] == "^":
        i += 1
    if pattern[i : i + 1] == "]":
        i += 1
    while i < len(pattern) and pattern[i] != "]":
        i += 2 if pattern[i] == "\\" else 1
    return i + 1


def find_readers(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Return, for each name of a module, the functions that read it.

    What is built from a name at import hands its own readers on. Names are
    taken as unique in the package, which can only make the sets larger.
    """
    readers: dict[str, set[str]] = {}
    built: list[tuple[str, str]] = []  # (name, name that is built from it)

    def visit(node: ast.AST, where: list[str], target: str) -> None:
        named = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        here = [*where, node.name] if named else where  # type: ignore[attr-defined]
        if len(where) == 1 and isinstance(node, (ast.Assign, ast.AnnAssign)):
            first = node.targets[0] if isinstance(node, ast.Assign) else node
            target = ast.unparse(getattr(first, "target", first))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            if len(where) > 1:
                readers.setdefault(node.id, set()).add(".".join(where))
            elif target:
                built.append((node.id, target))
        for child in ast.iter_child_nodes(node):
            visit(child, here, target)

    for module, tree in trees.items():
        visit(tree, [module.removeprefix("helpers.grading.")], "")
    for _ in built:
        before = sum(map(len, readers.values()))
        for name, product in built:
            more = readers.get(product, set())
            readers.setdefault(name, set()).update(more)
        if sum(map(len, readers.values())) == before:
            break
    return readers


class Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports ``helpers.grading`` with its rules behind switches."""

    def __init__(self, folder: Path, board: Switchboard):
        self.board = board
        self.sites: list[Site] = []
        self.codes: dict[str, tuple[CodeType, Path]] = {}
        trees: dict[str, ast.Module] = {}
        for path in sorted(folder.glob("*.py")):
            if path.stem in NO_RULES:
                continue
            stem = "" if path.stem == "__init__" else f".{path.stem}"
            name = PACKAGE + stem
            source = path.read_text(encoding="utf-8")
            trees[name] = ast.parse(source)
            tree = Instrument(name, source, self.sites).visit(
                ast.parse(source)
            )
            ast.fix_missing_locations(tree)
            self.codes[name] = compile(tree, str(path), "exec"), path
        self.readers = find_readers(trees)

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> Any:
        """Claim the modules of the package."""
        if name not in self.codes:
            return None
        return importlib.util.spec_from_file_location(
            name, self.codes[name][1], loader=self,
            submodule_search_locations=(
                [str(self.codes[name][1].parent)] if name == PACKAGE else None
            ),
        )  # fmt: skip

    def exec_module(self, module: ModuleType) -> None:
        """Run the instrumented code in the new module."""
        setattr(module, NAME, self.board)
        if self.board.listening:
            heard = HeardRe(self.board)

            def find(name: str, *args: Any) -> Any:
                return heard if name == "re" else __import__(name, *args)

            module.__dict__["__builtins__"] = {
                **vars(builtins), "__import__": find,
            }  # fmt: skip
        exec(self.codes[module.__name__][0], module.__dict__)

    def load(self) -> ModuleType:
        """Import the package afresh."""
        for name in [n for n in sys.modules if n.startswith(PACKAGE)]:
            del sys.modules[name]
        for name in self.codes:  # also those that are imported late
            importlib.import_module(name)
        return sys.modules[PACKAGE]

    def mutants(self) -> list[Mutant]:
        """List all mutants; the package must have been loaded once."""
        return [m for site in self.sites for m in self._of(site)]

    def _of(self, site: Site) -> Iterator[Mutant]:
        if site.kind == "pattern":
            text = self.board.strings.get(site.number, site.literal)
            for gone, variant in alternatives(text):
                if gone in site.literal:
                    yield Mutant(site, variant, f"no {gone!r}", True)
        elif site.kind == "table":
            for i, name in enumerate(site.variants):
                yield Mutant(site, i, f"no entry {name}", True)
        elif site.kind == "rewrite":
            # A bare strip() only tidies; what it leaves is tidied again.
            tidy = site.source.endswith("strip()")
            yield Mutant(site, None, "left out", not tidy)
        else:
            # With one variant (an operand) that one switches it off.
            operand = len(site.variants) == 1
            for value in site.variants:
                off = operand or value is False
                yield Mutant(site, value, f"{value}", off)


def _literal(node: ast.AST) -> str:
    """Return the text of the string constants below a node."""
    return "".join(
        n.value
        for n in ast.walk(node)
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    )
