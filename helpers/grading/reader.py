"""Our own reader of expressions: LaTeX and ASCII, a whitelist, no eval.

What is not on the list raises :class:`ReadError`; then other steps decide.
"""

from __future__ import annotations

import re
from fractions import Fraction

from helpers.grading.exact import MAX_DIGITS, to_fraction
from helpers.grading.lexer import (
    ALIASES,
    CONSTANTS,
    FUNCTIONS,
    GREEK,
    INVERSE,
    OPAQUE,
    ReadError,
    TokenStream,
)
from helpers.grading.tree import Node, times

MAX_DEPTH = 60
_MIXED_FRAC = re.compile(
    r"(?<![\d.^_,])(\d+)\s*(\\frac\s*(?:\{\d+\}|\d)\s*(?:\{\d+\}|\d))"
)
_MIXED_SLASH = re.compile(r"(?<![\d.^_/,])(\d+) (\d+)\s*/\s*(\d+)(?![\d.])")


class Reader(TokenStream):
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
        return node

    def sum(self) -> Node:
        """Read terms joined by plus and minus signs."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ReadError("nested too deeply")
        node = None
        terms: list[Node] = []
        while True:
            kind, text = self.peek()
            if (kind, text) in (("op", "+"), ("op", "-")):
                self.at += 1
                term = self.product()
                terms.append(("neg", term) if text == "-" else term)
            elif kind == "cmd" and text in ("pm", "mp"):
                self.at += 1
                node = ("add", terms) if terms else ("num", Fraction(0))
                other = self.product()
                if text == "mp":
                    other = ("neg", other)
                terms = [("pm", node, other)]
            elif not terms:
                terms.append(self.product())
            else:
                break
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("add", terms)

    def product(self) -> Node:
        """Read factors: ``*``, ``/`` and mere juxtaposition, left to right."""
        node = self.signed()
        while True:
            kind, text = self.peek()
            if kind == "op" and text == "*":
                self.at += 1
                node = times(node, self.signed())
            elif (kind, text) == ("op", "/") or (kind, text) == ("cmd", "div"):
                self.at += 1
                node = ("div", node, self.signed())
            elif self.starts_factor():
                if self.tokens[self.at - 1][0] == kind == "num":
                    raise ReadError("two numbers side by side")
                node = times(node, self.power())
            else:
                return node

    def starts_factor(self) -> bool:
        """Say whether the next token can begin a factor."""
        kind, text = self.peek()
        if kind in ("num", "name"):
            return True
        if kind == "op":
            return text in "({[" or (text == "|" and not self.bars)
        return kind == "cmd" and (
            text in FUNCTIONS | GREEK | set(CONSTANTS)
            or text in ("frac", "sqrt", "binom", "lfloor", "lceil", "overline")
        )

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
            kind, text = self.peek()
            if kind != "op":
                return node
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
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ReadError("nested too deeply")
        minus = self.take("-")
        node = self.atom()
        if self.take("^"):
            node = ("pow", node, self.exponent())
        self.depth -= 1
        return ("neg", node) if minus else node

    def atom(self) -> Node:
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
        if kind == "op" and closer:
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

    def number(self, text: str) -> Node:
        """Turn a numeral into a node; ``52_8`` stays a name of its own."""
        if self.peek() == ("op", "_"):
            self.at += 1
            return ("sym", f"{text}_{self.subscript()}")
        value = to_fraction(text)
        if value is None or len(text) > MAX_DIGITS:
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
        if text in ("e", "i") and self.peek() != ("op", "_"):
            return ("const", text)
        name = text
        while self.peek() in (("op", "_"), ("op", "'")):
            mark = self.peek()[1]
            self.at += 1
            name += f"_{self.subscript()}" if mark == "_" else "'"
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
        if text == "overline":
            return ("sym", "overline " + self.label())
        if text in ("angle", "Delta") and self.peek()[0] == "name":
            return ("sym", f"{text} {self.word()}")
        if text in FUNCTIONS or text in GREEK or text in CONSTANTS:
            return self.name(text)
        raise ReadError(f"unknown command \\{text}")

    def group(self) -> Node:
        """Read a LaTeX argument: a group, one digit or one command."""
        if self.take("{"):
            node = self.sum()
            self.expect("}")
            return node
        kind, text = self.peek()
        if kind == "num" and len(text) > 1 and text.isdigit():
            # \frac12 has two one-digit arguments.
            self.tokens[self.at : self.at + 1] = [("num", c) for c in text]
        if self.peek()[0] == "end":
            raise ReadError("something is missing")
        kind, text = self.peek()
        if kind == "num":
            self.at += 1
            return ("num", Fraction(text))
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
        return ("pow", node, power) if power else node

    def argument(self) -> list[Node]:
        """Read ``(a, b)``, ``{a}`` or a product without brackets."""
        if self.take("("):
            return self.arguments(")")
        if self.take("{"):
            return self.arguments("}")
        if self.peek()[0] == "end":
            raise ReadError("something is missing")
        if self.peek() == ("op", "["):
            self.at += 1
            return self.arguments("]")
        node = self.signed()
        while self.starts_factor() and not self.starts_function():
            node = times(node, self.power())
        return [node]

    def starts_function(self) -> bool:
        """Say whether the next token is the name of a function."""
        kind, text = self.peek()
        return kind in ("cmd", "name") and text in FUNCTIONS - {"sqrt"}

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
    text = _MIXED_FRAC.sub(r"(\1+\2)", text)
    text = _MIXED_SLASH.sub(r"(\1+\2/\3)", text)
    return Reader(text).read()
