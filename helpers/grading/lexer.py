"""The words the reader knows, and how text becomes tokens."""

from __future__ import annotations

import re

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
_TWO_NUMBERS = re.compile(r"\s*\(\s*\d+\s*,\s*\d+\s*\)")
_TOKEN = re.compile(
    r"\s*(?:(?P<num>\d+(?:,\d{3}(?!\d))+(?:\.\d+)?"
    r"|(?:\d+(?:\.\d+)?E[-+]?|(?:1|\d+\.\d+)e-?)\d{1,3}"
    r"|\d+(?:\.\d+)?|\.\d+)"
    r"|\\(?P<cmd>[a-zA-Z]+)|(?P<word>[A-Za-z]+)"
    r"|(?P<op>[-+*/^_(){}\[\]|!,%'=<>]))"
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
