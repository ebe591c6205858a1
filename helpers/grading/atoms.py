"""The smallest parts of an expression: numbers, names, commands, calls."""

from __future__ import annotations

import re
from fractions import Fraction

from helpers.grading.exact import parse_number
from helpers.grading.lexer import (
    ACCENTS,
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
        if text in ("angle", "Delta") and self.peek()[0] == "name":
            return ("sym", f"{text} {self.word()}")
        if text in FUNCTIONS | GREEK | set(CONSTANTS):
            return self.name(text)
        raise ReadError(f"unknown command \\{text}")

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
