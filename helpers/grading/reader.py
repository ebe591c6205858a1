"""Our own reader of expressions: LaTeX and ASCII, a whitelist, no eval.

Text becomes tokens, tokens become a tree, by recursive descent. What is not
on the list raises :class:`ReadError`; then other steps decide.

A node of the tree is a tuple whose first item names it:
``("num", Fraction)``, ``("sym", name)``, ``("add", [nodes])``,
``("mul", [nodes])``, ``("neg", a)``, ``("div", a, b)``, ``("pow", a, b)``,
``("call", name, [nodes])``, ``("apply", name, [nodes])`` for an unknown
function such as f, ``("deg", a)``, ``("const", name)``,
``("matrix", [("row", [nodes])])``, and with a variable of their own
``("sum" | "prod" | "int", name, body, low, high)`` and
``("lim", name, body, target)``.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from helpers.grading.numbers import parse_number

Node = tuple[Any, ...]
BINDERS = {"sum", "prod", "int", "lim"}


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
    if node[0] in BINDERS:
        inside = symbols(node[2]) - {node[1]}
        return inside.union(*map(symbols, node[3:]))
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


MAX_TOKENS = 8_000


class ReadError(ValueError):
    """The text is not an expression this reader knows."""


ALIASES = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "acot": "arccot",
    "asec": "arcsec", "acsc": "arccsc", "abs": "abs", "Abs": "abs",
    "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh",
    "arsinh": "arcsinh", "arcosh": "arccosh", "artanh": "arctanh",
    "ceil": "ceil", "ceiling": "ceil", "floor": "floor", "cbrt": "cbrt",
    "factorial": "factorial", "binomial": "binom", "cosec": "csc",
    "sign": "sgn", "signum": "sgn", "nthroot": "root", "root": "root",
    "conjugate": "conj", "conj": "conj", "realpart": "Re", "re": "Re",
    "imagpart": "Im", "im": "Im", "Re": "Re", "Im": "Im", "cis": "cis",
    "comb": "binom", "binom": "binom", "nCr": "binom", "mod": "mod",
    "arg": "arg", "carg": "arg", "Arg": "arg",
}  # fmt: skip
FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan",
    "arccot", "arcsec", "arccsc", "sinh", "cosh", "tanh", "coth", "sech",
    "csch", "arcsinh", "arccosh", "arctanh", "ln", "log", "lg", "exp", "sqrt",
    "sgn", "gcd", "lcm", "max", "min",
} | set(ALIASES)  # fmt: skip
INVERSE = {"sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh"}
CONSTANTS = {"pi": "pi", "infty": "oo", "oo": "oo"}
GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta",
    "iota", "kappa", "lambda", "mu", "nu", "xi", "rho", "sigma", "tau",
    "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta",
    "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "ell", "hbar",
}  # fmt: skip
# Functions only where a bracket follows: re^{it} is a product.
WEAK = {
    "re", "im", "Re", "Im", "arg", "mod", "conj", "comb", "carg",
    "Arg", "nCr",
}  # fmt: skip
ACCENTS = {"overline", "hat", "bar", "tilde", "dot", "widetilde"}
_WORDS = sorted(
    (FUNCTIONS | set(CONSTANTS) | GREEK) - {"nu", "xi", "mu", "eta"} - WEAK,
    key=len,
    reverse=True,
)
_RADIX = re.compile(r"[xX][0-9A-Fa-f]|[bB][01]|[oO][0-7]")
OPAQUE = {"f", "g", "h"}
_MATRICES = {"matrix", "pmatrix", "bmatrix", "smallmatrix", "vmatrix"}
_OPENERS = {("op", c) for c in "([{"}
_CLOSERS = {("op", c) for c in ")]}"}
_TWO_NUMBERS = re.compile(r"\s*\(\s*\d+\s*,\s*\d+\s*\)")
_TOKEN = re.compile(
    r"\s*(?:(?P<num>\d+(?:,\d{3}(?!\d))+(?:\.\d+)?"
    r"|(?:\d+(?:\.\d+)?E[-+]?|(?:1|\d+\.\d+)e-?)\d{1,3}"
    r"|\d+(?:\.\d+)?|\.\d+)"
    r"|\\begin ?\{(?P<begin>\w+)\}|\\end ?\{(?P<close>\w+)\}"
    r"|\\(?P<cmd>[a-zA-Z]+)|(?P<word>[A-Za-z]+)"
    r"|(?P<op>\\\\|[-+*/^_(){}\[\]|!,%'=<>&]))"
)


def tokenize(text: str) -> list[tuple[str, str]]:
    """Split cleaned text into ("num" | "cmd" | "name" | "op", text)."""
    tokens: list[tuple[str, str]] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        found = _TOKEN.match(text, position)
        if found is None or len(tokens) > MAX_TOKENS:
            raise ReadError(f"cannot read {text[position : position + 10]!r}")
        if found[0].strip() == "0" and _RADIX.match(text, found.end()):
            raise ReadError("a number of another base")
        position = found.end()
        kind = found.lastgroup or ""
        if kind == "word":
            tokens.extend(read_word(found[kind], text[position:]))
        elif (kind, found[kind]) == ("cmd", "vert"):
            tokens.append(("op", "|"))
        else:
            tokens.append((kind, found[kind]))
    return tokens


def read_word(word: str, rest: str) -> list[tuple[str, str]]:
    """Return the tokens of a run of letters, given what follows it."""
    if word == "C" and _TWO_NUMBERS.match(rest):
        return [("name", "binom")]
    if word in WEAK and rest.lstrip()[:1] == "(":
        return [("name", word)]
    if word == "mod":
        return [("cmd", word)]
    return [("name", part) for part in split_word(word)]


def split_word(word: str) -> list[str]:
    """Split a run of letters into known words and single letters."""
    parts: list[str] = []
    while word:
        known = next((w for w in _WORDS if word.startswith(w)), None)
        parts.append(known or word[0])
        word = word[len(parts[-1]) :]
    if len(parts) > 5 and all(len(p) == 1 for p in parts):
        raise ReadError("looks like a word")
    return parts


class TokenStream:
    """The tokens of one expression and a place in them."""

    def __init__(self, text: str):
        self.tokens = tokenize(text)
        self.at = 0

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        """Return the token ``ahead`` places on, ("end", "") past the end."""
        i = self.at + ahead
        return self.tokens[i] if i < len(self.tokens) else ("end", "")

    def take(self, text: str) -> bool:
        """Step over an operator when it is the next token."""
        if self.peek() == ("op", text):
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        """Step over an operator that must come now."""
        if not self.take(text):
            raise ReadError(f"{text!r} expected, {self.peek()[1]!r} found")

    def subscript(self) -> str:
        """Read a subscript as plain text."""
        pair = ("(", ")") if self.peek() == ("op", "(") else ("{", "}")
        if not self.take(pair[0]):
            self.at += 1
            return (
                self.tokens[self.at - 1][1]
                if self.at <= len(self.tokens)
                else ""
            )
        parts: list[str] = []
        level = 1
        while level:
            kind, text = self.peek()
            if kind == "end":
                raise ReadError("unclosed subscript")
            self.at += 1
            level += (text == pair[0]) - (text == pair[1])
            parts.append(text)
        return "".join(parts[:-1])

    def word(self) -> str:
        """Read a run of names as one label (the points of an angle)."""
        parts = []
        while self.peek()[0] == "name":
            parts.append(self.peek()[1])
            self.at += 1
        return "".join(parts)

    def label(self) -> str:
        """Read ``{AB}`` or ``A`` as a label."""
        if self.take("{"):
            label = self.word()
            self.expect("}")
            return label
        return self.word()


class Atoms(TokenStream):
    """Reads atoms; ``Reader`` adds sums, products and powers to it."""

    def number(self, text: str) -> Node:
        """Turn a numeral into a node; ``52_8`` stays a name of its own."""
        if self.peek() == ("op", "_"):
            self.at += 1
            return ("sym", f"{text}_{self.subscript()}")
        value = parse_number(text)
        if value is None:
            raise ReadError("not a number")
        if self.peek() == ("cmd", "overline"):
            raise ReadError("repeating decimal inside an expression")
        return ("num", value)

    def name(self, text: str) -> Node:
        """Turn a word into a constant, a function call or a symbol."""
        if text in FUNCTIONS:
            return self.function(text)
        if text in CONSTANTS:
            return ("const", CONSTANTS[text])
        unbound = text not in self.bound
        if text in ("e", "i") and unbound and self.peek() != ("op", "_"):
            return ("const", text)
        name = text
        while self.peek() in (("op", "_"), ("op", "'")):
            mark = self.peek()[1]
            self.at += 1
            below = self.subscript() if mark == "_" else ""
            if any(letter in below for letter in self.bound):
                # The a_k of a sum over k changes with k.
                inside = Reader(below)
                inside.bound, inside.depth = self.bound, self.depth
                return ("apply", f"{name}_", [inside.read()])
            name += f"_{below}" if mark == "_" else "'"
        if text in OPAQUE and self.take("("):
            return ("apply", name, self.arguments(")"))
        return ("sym", name)

    def arguments(self, closer: str) -> list[Node]:
        """Read comma-separated arguments up to the closing bracket."""
        nodes = [self.sum()]
        while self.take(","):
            nodes.append(self.sum())
        self.expect(closer)
        return nodes

    def command(self, text: str) -> Node:
        """Read a LaTeX command that the reader knows."""
        if text == "frac":
            return ("div", self.group(), self.group())
        if text == "binom":
            return ("call", "binom", [self.group(), self.group()])
        if text in ("lfloor", "lceil"):
            node = self.sum()
            if self.peek() != ("cmd", "r" + text[1:]):
                raise ReadError("unclosed floor or ceiling")
            self.at += 1
            return ("call", text[1:], [node])
        if text in ACCENTS:
            start = self.at
            try:
                label = self.label()
            except ReadError:
                if text not in ("overline", "bar"):
                    raise
                self.at = start
                return ("call", "conj", [self.group()])
            if text == "overline" and re.fullmatch("[A-Z]{2}", label):
                return ("mul", [("sym", point) for point in label])
            return ("sym", f"{text} {label}")
        if text in BINDERS:
            return self.binder(text)
        if text == "top":  # A^\\top is the transpose
            return ("sym", "T")
        if text == "det":
            return ("call", "det", self.argument())
        if text in ("angle", "Delta") and self.peek()[0] == "name":
            return ("sym", f"{text} {self.word()}")
        if text in FUNCTIONS | GREEK | set(CONSTANTS):
            return self.name(text)
        raise ReadError(f"unknown command \\{text}")

    def binder(self, kind: str) -> Node:
        """Read a sum, product, integral or limit with its variable.

        What follows is a product: the sum of k + 1 is that of k, plus 1.
        """
        self.expect("_")
        if kind == "int":
            low = self.bound_value()
            self.expect("^")
            return self.integral(low, self.bound_value())
        self.expect("{")
        name = self.own_variable()
        if kind == "lim":
            if self.peek() != ("cmd", "to"):
                raise ReadError("a limit without its target")
            self.at += 1
        else:
            self.expect("=")
        ends = [self.sum()]
        self.expect("}")
        if kind != "lim":
            self.expect("^")
            ends.append(self.bound_value())
        before, self.bound = self.bound, self.bound | {name}
        body = self.product()
        self.bound = before
        return (kind, name, body, *ends)

    def bound_value(self) -> Node:
        """Read one end of a range: a group, or a single atom."""
        if not self.take("{"):
            return self.atom()
        node = self.sum()
        self.expect("}")
        return node

    def own_variable(self) -> str:
        """Read the single letter that a sum or limit runs over."""
        kind, name = self.peek()
        if kind != "name" or len(name) != 1:
            raise ReadError("no variable to run over")
        self.at += 1
        return name

    def integral(self, low: Node, high: Node) -> Node:
        """Read what stands before the dx, and the x."""
        end, level = self.at, 0
        while level or self.tokens[end : end + 1] != [("name", "d")]:
            if end >= len(self.tokens):
                raise ReadError("an integral without its dx")
            token = self.tokens[end]
            level += (token in _OPENERS) - (token in _CLOSERS)
            end += 1
        whole, body = self.tokens, ("num", Fraction(1))
        self.tokens = whole[:end]
        if self.at < end:
            body = self.sum()
        self.tokens = whole
        if self.at != end:
            raise ReadError("an integral that cannot be read")
        self.at += 1
        return ("int", self.own_variable(), body, low, high)

    def matrix(self, name: str) -> Node:
        """Read the rows of a matrix up to its ``\\end``."""
        if name not in _MATRICES:
            raise ReadError(f"unknown environment {name}")
        rows: list[Node] = []
        while self.peek()[0] != "close":
            cells = [self.sum()]
            while self.take("&"):
                cells.append(self.sum())
            rows.append(("row", cells))
            if not self.take("\\\\"):
                break
        if self.peek() != ("close", name) or not rows:
            raise ReadError("a matrix without its end")
        self.at += 1
        node = ("matrix", rows)
        return ("call", "det", [node]) if name == "vmatrix" else node

    def group(self) -> Node:
        """Read a LaTeX argument: a group, one digit or one command."""
        if self.take("{"):
            node = self.sum()
            self.expect("}")
            return node
        _, text = self.peek()
        if text.isdigit():
            # \frac12 has two one-digit arguments; \log_2128 is \log_2(128).
            digits = [("num", part) for part in (text[0], text[1:]) if part]
            self.tokens[self.at : self.at + 1] = digits
        return self.atom()

    def function(self, text: str) -> Node:
        """Read a function with its power, base and argument."""
        name = ALIASES.get(text, text)
        if name == "sqrt":
            return self.root()
        extra: list[Node] = []
        power = None
        while self.peek() in (("op", "^"), ("op", "_")):
            mark = self.peek()[1]
            self.at += 1
            if mark == "_" and name != "log":
                raise ReadError("subscript of a function")
            value = self.group() if mark == "_" else self.exponent()
            if mark == "_":
                extra = [value]
            else:
                power = value
        arguments = self.argument()
        if power == ("neg", ("num", Fraction(1))) and name in INVERSE:
            return ("call", f"arc{name}", arguments)
        node = ("call", name, arguments + extra)
        if name == "cis":
            turned = ("mul", [("const", "i"), ("call", "sin", arguments)])
            node = ("add", [("call", "cos", arguments), turned])
        return ("pow", node, power) if power else node

    def argument(self) -> list[Node]:
        """Read ``(a, b)``, ``{a}`` or a product without brackets."""
        if self.take("("):
            return self.arguments(")")
        if self.take("{"):
            return self.arguments("}")
        if self.peek() == ("op", "["):
            self.at += 1
            return self.arguments("]")
        node = self.signed()
        while self.starts_factor() and not self.starts_function():
            node = times(node, self.factor())
        return [node]

    def starts_function(self) -> bool:
        """Say whether the next token is the name of a function."""
        return self.peek()[1] in FUNCTIONS - {"sqrt"}

    def root(self) -> Node:
        """Read a square root, or an n-th root with its ``[n]``."""
        index = None
        if self.take("["):
            index = self.sum()
            self.expect("]")
        bracket = self.take("(")
        inside = self.arguments(")") if bracket else [self.group()]
        if len(inside) != 1:
            raise ReadError("a root of two things")
        if index is None:
            return ("call", "sqrt", inside)
        return ("call", "root", [inside[0], index])


_STARTERS = {"frac", "lfloor", "lceil", "det"} | ACCENTS | BINDERS
MAX_DEPTH = 40
MAX_HEIGHT = 60
_SPACED = re.compile(r"(?<![\d.,^_])\d{1,3}(?: \d{3})+(?! *[/\d])")
_MIXED_FRAC = re.compile(
    r"(?<![\d.^_,])(\d+)\s*(\\frac\s*(?:\{\d+\}|\d)\s*(?:\{\d+\}|\d))"
)
_MIXED_SLASH = re.compile(r"(?<![\d.^_/,])(\d+) (\d+)\s*/\s*(\d+)(?![\d.])")


class Reader(Atoms):
    """Recursive descent over the tokens of one expression."""

    def __init__(self, text: str):
        super().__init__(text)
        self.depth = 0
        self.bars = 0
        self.bound: frozenset[str] = frozenset()

    def read(self) -> Node:
        """Read the whole text as one expression."""
        node = self.sum()
        if self.at != len(self.tokens):
            raise ReadError(f"{self.peek()[1]!r} is left over")
        if measure_height(node) > MAX_HEIGHT:
            raise ReadError("nested too deeply")
        return node

    def sum(self) -> Node:
        """Read terms joined by plus and minus signs."""
        terms: list[Node] = []
        while True:
            kind, text = self.peek()
            if (kind, text) in (("op", "+"), ("op", "-")):
                self.at += 1
                term = self.product()
                terms.append(("neg", term) if text == "-" else term)
            elif not terms:
                terms.append(self.product())
            else:
                break
        return terms[0] if len(terms) == 1 else ("add", terms)

    def product(self) -> Node:
        """Read factors: ``*``, ``/`` and mere juxtaposition, left to right."""
        node = self.signed()
        while True:
            kind, text = self.peek()
            if text == "*":
                self.at += 1
                node = times(node, self.signed())
            elif (kind, text) == ("op", "/") or (kind, text) == ("cmd", "div"):
                self.at += 1
                node = ("div", node, self.signed())
            elif text == "mod":
                self.at += 1
                node = ("call", "mod", [node, self.signed()])
            elif self.starts_factor():
                node = times(node, self.factor())
            else:
                return node

    def factor(self) -> Node:
        """Read a factor that follows another one without a sign."""
        if self.tokens[self.at - 1][0] == self.peek()[0] == "num":
            raise ReadError("two numbers side by side")
        return self.power()

    def starts_factor(self) -> bool:
        """Say whether the next token can begin a factor."""
        kind, text = self.peek()
        if kind in ("num", "name", "begin"):
            return True
        if kind == "op":
            return text in "({[" or (text == "|" and not self.bars)
        return text in FUNCTIONS | GREEK | set(CONSTANTS) | _STARTERS

    def signed(self) -> Node:
        """Read a factor that may have its own signs."""
        minus = False
        while self.peek() in (("op", "-"), ("op", "+")):
            minus ^= self.peek()[1] == "-"
            self.at += 1
        node = self.power()
        return ("neg", node) if minus else node

    def power(self) -> Node:
        """Read a base with its postfixes (powers, !, %, degrees, primes)."""
        node = self.atom()
        while True:
            _, text = self.peek()
            if text == "^":
                self.at += 1
                node = self.raised(node)
            elif text == "!":
                self.at += 1
                node = ("call", "factorial", [node])
            elif text == "%":
                self.at += 1
                node = ("div", node, ("num", Fraction(100)))
            else:
                return node

    def raised(self, node: Node) -> Node:
        """Read what follows ``^``."""
        braced = self.peek() == ("op", "{")
        ahead = 1 if braced else 0
        if self.peek(ahead) == ("cmd", "circ"):
            self.at += 1 + 2 * ahead
            return ("deg", node)
        return ("pow", node, self.exponent())

    def exponent(self) -> Node:
        """Read an exponent; ``2^3^2`` is right-associative."""
        if self.take("{"):
            node = self.sum()
            self.expect("}")
            return node
        self.deepen()
        minus = self.take("-")
        node = self.atom()
        if self.take("^"):
            node = ("pow", node, self.exponent())
        self.depth -= 1
        return ("neg", node) if minus else node

    def deepen(self) -> None:
        """Count a level, so that no input reaches Python's own limit."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ReadError("nested too deeply")

    def atom(self) -> Node:
        """Read what has no sign or power; all nesting passes here."""
        self.deepen()
        node = self.simple()
        self.depth -= 1
        return node

    def simple(self) -> Node:
        """Read a number, a name, a bracket or a command."""
        kind, text = self.peek()
        self.at += 1
        if kind == "num":
            return self.number(text)
        if kind == "name":
            return self.name(text)
        if kind == "cmd":
            return self.command(text)
        if kind == "begin":
            return self.matrix(text)
        closer = {"(": ")", "{": "}", "[": "]"}.get(text)
        if closer:
            bars, self.bars = self.bars, 0
            node = self.sum()
            self.expect(closer)
            self.bars = bars
            return node
        if (kind, text) == ("op", "|"):
            self.bars += 1
            node = self.sum()
            self.expect("|")
            self.bars -= 1
            return ("call", "abs", [node])
        raise ReadError("something is missing")


def is_readable(text: str) -> bool:
    """Say whether :func:`read` knows everything in the text."""
    try:
        read(text)
    except ReadError:
        return False
    return True


def read(text: str) -> Node:
    """Read one cleaned expression.

    Raises:
        ReadError: something in it is not on the whitelist.
    """
    text = _SPACED.sub(lambda m: m[0].replace(" ", ""), text)
    text = _MIXED_FRAC.sub(r"(\1+\2)", text)
    text = _MIXED_SLASH.sub(r"(\1+\2/\3)", text)
    return Reader(text).read()
