"""Our own reader of expressions: LaTeX and ASCII, a whitelist, no eval.

What is not on the list raises :class:`ReadError`; then other steps decide.
"""

from __future__ import annotations

import re
from fractions import Fraction

from helpers.grading.atoms import Atoms
from helpers.grading.lexer import (
    ACCENTS,
    CONSTANTS,
    FUNCTIONS,
    GREEK,
    ReadError,
)
from helpers.grading.tree import Node, measure_height, times

_STARTERS = {"frac", "lfloor", "lceil"} | ACCENTS
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
        if kind in ("num", "name"):
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
