"""Turn an answer as people write it into one plain spelling.

Only spelling is changed: unicode, LaTeX sizes and spacing, synonyms of
commands. Nothing that separates is deleted: braces and the space of a mixed
number stay, because ``2^n+1`` is not ``2^{n+1}``. Words from ``\\text{...}``
come out between the marks :data:`OPEN` and :data:`CLOSE`, so that later
steps can tell words from products of variables.
"""

from __future__ import annotations

import re
from functools import lru_cache

from helpers.grading.spellings import DOLLAR, fold_unicode, rewrite_plain

OPEN, CLOSE = "⟦", "⟧"
MAX_LENGTH = 20_000
MAX_DEPTH = 20


_SYNONYMS = {
    "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge",
    "neq": "ne", "dfrac": "frac", "tfrac": "frac", "cfrac": "frac",
    "dbinom": "binom", "tbinom": "binom", "times": "cdot", "ast": "cdot",
    "varnothing": "emptyset", "simeq": "approx", "thickapprox": "approx",
    "backslash": "setminus", "smallsetminus": "setminus", "cupdot": "cup",
    "bigcup": "cup", "lvert": "vert", "rvert": "vert", "mid": "vert",
    "arctg": "arctan", "tg": "tan", "ctg": "cot",
    "lbrace": "{", "rbrace": "}",
    "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta",
    "infin": "infty", "land": "wedge", "lor": "vee", "triangle": "Delta",
    "lnot": "neg", "implies": "Rightarrow", "rightarrow": "to",
    "longrightarrow": "to", "Longrightarrow": "Rightarrow",
    "Leftrightarrow": "iff", "leftrightarrow": "iff", "dots": "ldots",
    "cdots": "ldots", "dotsc": "ldots", "dotsb": "ldots", "hdots": "ldots",
    "widehat": "hat", "imath": "i", "jmath": "j", "bmod": "mod",
}  # fmt: skip
_LITERALS = {
    "langle": "(", "rangle": ")", "lbrack": "[", "rbrack": "]",
    "lparen": "(", "rparen": ")", "colon": ":",
}  # fmt: skip
_DROPPED = {
    "displaystyle", "textstyle", "scriptstyle", "limits", "nolimits", "left",
    "right", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr",
    "biggl", "biggr", "middle", "therefore", "boldsymbol", "bm", "hfill",
    "mathstrut", "strut", "hline", "noindent", "centering", "displaylimits",
    "checkmark", "blacksquare", "qed", "tiny", "small", "normalsize",
    "large", "Large", "LARGE", "huge", "Huge", "relax", "nonumber",
}  # fmt: skip
_SPACES = {"quad", "qquad", "enspace", "space", "thinspace", "medspace"}
_PLAIN_WRAPPERS = {
    "mathbf", "mathit", "mathsf", "mathtt", "mathnormal", "vec", "bf",
    "ensuremath", "mathop", "mathrel", "overrightarrow", "underline", "fbox",
    "boxed", "framebox",
}  # fmt: skip
_TEXT_WRAPPERS = {
    "text", "textbf", "textit", "textrm", "textnormal", "textsf", "texttt",
    "mbox", "hbox", "mathrm", "operatorname", "emph", "textsc", "rm",
}  # fmt: skip
_KNOWN_WORDS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth",
    "asin", "acos", "atan", "arcsin", "arccos", "arctan", "arccot", "ln",
    "log", "exp", "gcd", "lcm", "max", "min", "mod", "sqrt", "pi", "sgn",
    "arcsec", "arccsc", "arsinh", "arcosh", "artanh", "lg", "cis",
    "sech", "csch", "arcsinh", "arccosh", "arctanh", "floor", "ceil", "Re",
    "Im", "arg", "sign",
}  # fmt: skip
_UNIT_PRODUCT = re.compile(
    r"\s*[A-Za-z]+(?:\^\{?-?\d\}?)?(?:\s*(?:/|\\cdot|\s)\s*"
    r"[A-Za-z]+(?:\^\{?-?\d\}?)?)+\s*"
)
_CONNECTORS = {"if", "for", "where", "when"}
_PLAIN_NUMBER = re.compile(r"\s*[-+]?(?:\d[\d,]*)?\.?\d+\.?\s*", re.A)
# After a number, in every spelling that a degree has.
_DEGREE = re.compile(
    r"\^\s*\{\s*\\degree\s*\}|\^?\s*\\degree\b"
    r"|(?<=\d)\s*\\(?:circ|deg)\b(?!\s*[a-zA-Z(\\])"
)
_GROUP = re.compile(r" *\{")
_COMMAND = re.compile(r"\\([a-zA-Z]+)\*?")
_TRAILING = " \t\n.,;:。"  # no "!": it is a factorial


def match_brace(text: str, start: int) -> int:
    """Return the index just past the brace group that opens at ``start``.

    Escaped braces (``\\{``) do not count. Returns -1 when it never closes.
    """
    depth, i, end = 0, start, len(text)
    while i < end:
        char = text[i]
        if char == "\\":
            i += 2
            continue
        if char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return i + 1
        i += 1
    return -1


@lru_cache(maxsize=64)
def _brace_ends(text: str) -> dict[int, int]:
    """Return where each brace group ends, found in one pass."""
    ends: dict[int, int] = {}
    stack: list[int] = []
    for found in re.finditer(r"\\.|[{}]", text, re.S):
        if found[0] == "{":
            stack.append(found.start())
        elif found[0] == "}" and stack:
            ends[stack.pop()] = found.end()
    return ends


def _wrapped(text: str, start: int) -> tuple[str, int] | None:
    """Return the ``{...}`` group at or after ``start`` and its end."""
    if (found := _GROUP.match(text, start)) is None:
        return None
    start = found.end() - 1
    end = _brace_ends(text).get(start, -1)
    return (text[start + 1 : end - 1], end) if end > 0 else None


def _text_words(content: str) -> str:
    words = content.replace("$", "").replace("{", "").replace("}", "").strip()
    if words in _KNOWN_WORDS:
        return f"\\{words} "
    if words == "infinity":
        return "\\infty "
    if not re.search(r"[^\W\d_]", words):
        return f" {words} "
    lowered = words.lower()
    if lowered == "only":
        return " "
    if lowered in _CONNECTORS:
        return f" {lowered} "
    # A connector inside a text keeps its role: \text{5 or 7}.
    if re.search(r"\d", words) or re.match(r"(?:and|or)\b", words, re.I):
        return f" {words} "
    return f"{OPEN}{words}{CLOSE}"


def rewrite_commands(text: str, depth: int = 0) -> str:
    """Return the text with LaTeX commands in one spelling each."""
    out: list[str] = []
    position = 0
    for found in _COMMAND.finditer(text):
        if found.start() < position:
            continue
        # An escaped backslash (a row break of a matrix) is no command.
        before = text[position : found.start()]
        out.append(before)
        if (len(before) - len(before.rstrip("\\"))) % 2:
            out.append(found[0])
            position = found.end()
            continue
        piece, position = _rewrite_one(text, found, depth)
        out.append(piece)
    out.append(text[position:])
    return "".join(out)


def _rewrite_one(
    text: str, found: re.Match[str], depth: int
) -> tuple[str, int]:
    name, end = found[1], found.end()
    if name in _DROPPED:
        if name in {"left", "right"} and text[end : end + 1] == ".":
            end += 1
        return " ", end
    if name in _SPACES:
        return " ", end
    if name == "color" or name == "textcolor":
        group = _wrapped(text, end)
        return (" ", group[1]) if group else (" ", end)
    if name in {"phantom", "label", "tag", "hspace", "vspace"}:
        group = _wrapped(text, end)
        return (" ", group[1]) if group else (" ", end)
    if name in _TEXT_WRAPPERS or name in _PLAIN_WRAPPERS:
        group = _wrapped(text, end)
        if group is None or depth >= MAX_DEPTH:
            return " ", end
        return _rewrite_group(name, group[0], depth + 1), group[1]
    if name in _LITERALS:
        return _LITERALS[name], end
    return f"\\{_SYNONYMS.get(name, name)} ", end


def _rewrite_group(name: str, content: str, depth: int) -> str:
    if name in _PLAIN_WRAPPERS:
        return f"{{{rewrite_commands(content, depth)}}}"
    if name == "mathrm" and _UNIT_PRODUCT.fullmatch(content):
        return f"{OPEN}{content.strip()}{CLOSE}"
    if "\\" in content:
        return rewrite_commands(content, depth)
    if name in {"mathrm", "operatorname"} and len(content.strip()) == 1:
        return f" {content.strip()}"
    return _text_words(content)


def clean(text: str) -> str:
    """Return the answer in the spelling the other modules read.

    Args:
        text: one answer, LaTeX or plain, at most :data:`MAX_LENGTH` long
            (what is longer is cut, and never equal to anything by value).
    """
    if _PLAIN_NUMBER.fullmatch(text):
        return text.strip()  # most answers: nothing to rewrite
    text = fold_unicode(text[:MAX_LENGTH])
    if "\\" in text or "{" in text:
        text = _rewrite_latex(text)
    text = rewrite_plain(text).replace("~", " ")
    text = text.replace("\\{", "\\lbr ").replace("\\}", "\\rbr ")
    return tidy(text)


def _rewrite_latex(text: str) -> str:
    if "\\begin" not in text:
        text = re.sub(r"\\\\+(?=[a-zA-Z(\[,!;{}$%])", r"\\", text)
        text = re.sub(r"\\\\(?=\s*\S)", " , ", text)  # a new line
    text = text.replace("\\$", f" {DOLLAR}").replace("\\%", "%")
    text = re.sub(r"\\[()\[\]](?!\s*\d+(?:pt|em|ex)\])", " ", text)
    text = re.sub(r"\\!\s*", "", text)
    text = re.sub(r"(?<!\\)\\[,;:> ]", " ", text)
    text = re.sub(r"\{\s*([,:.])\s*\}", r"\1", text)
    text = _DEGREE.sub(r"^\\circ ", text)
    text = text.replace("&=", "=")
    if re.search(r"\\(?:vec|mathbf|overrightarrow)\b", text):
        text = text.replace(r"\times", r"\cross")  # it does not commute
    text = rewrite_commands(text)
    text = re.sub(r"\\lt\b", "<", text)
    return re.sub(r"\\gt\b", ">", text)


def tidy(text: str) -> str:
    """Return the text without outer dollars, dots and doubled spaces."""
    text = re.sub(r"\$\$?([^$]*)\$\$?", r" \1 ", text)  # pairs are maths
    text = re.sub(r"\s+", " ", text.replace(DOLLAR, "$")).strip()
    return text.rstrip(_TRAILING).strip()


def canonical(cleaned: str) -> str:
    """Return the form in which two answers are compared as strings."""
    text = cleaned.replace(OPEN, " ").replace(CLOSE, " ")
    # What leads stays: .5 is not 5.
    text = re.sub(r"\s+", " ", text).rstrip(_TRAILING)
    # A space stays only where it separates two letters or digits.
    text = re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])", "", text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    return text
