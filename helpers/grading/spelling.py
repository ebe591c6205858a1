"""Turn an answer as people write it into one plain spelling.

Only spelling is changed: unicode, LaTeX sizes and spacing, synonyms of
commands. Nothing that separates is deleted: braces and the space of a mixed
number stay, because ``2^n+1`` is not ``2^{n+1}``. Words from ``\\text{...}``
come out between the marks :data:`OPEN` and :data:`CLOSE`, so that later
steps can tell words from products of variables. At the end of the file:
where brackets open and close, and what they leave at the top.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

DOLLAR = "\x01"  # an escaped dollar: money, not a formula


_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon",
    "θ": "theta", "λ": "lambda", "μ": "mu", "π": "pi", "ρ": "rho",
    "σ": "sigma", "τ": "tau", "φ": "phi", "ω": "omega",
    "Δ": "Delta", "Ω": "Omega", "ψ": "psi", "η": "eta", "ξ": "xi",
}  # fmt: skip


_UNICODE = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "×": r"\times ",
    "✕": r"\times ", "÷": "/", "∕": "/", "⁄": "/", "·": r"\cdot ",
    "⋅": r"\cdot ", "∙": r"\cdot ", "∗": "*", "±": r"\pm ", "∓": r"\mp ",
    "≤": r"\le ", "⩽": r"\le ", "≦": r"\le ", "≥": r"\ge ", "⩾": r"\ge ",
    "≧": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∞": r"\infty ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ",
    "∖": r"\setminus ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "°": r"^\circ ", "º": r"^\circ ",
    "∠": r"\angle ", "′": "'", "’": "'", "⟨": "(", "⟩": ")",
    "∧": r"\wedge ", "∨": r"\vee ", "¬": r"\neg ", "→": r"\to ",
    "⊂": r"\subset ", "⊆": r"\subseteq ", "⊃": r"\supset ", "∥": r"\parallel ",
    "⊥": r"\perp ", "△": r"\Delta ", "∼": r"\sim ", "≡": r"\equiv ",
    "≅": r"\cong ", "∉": r"\notin ", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
    "⌈": r"\lceil ", "⌉": r"\rceil ", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]",
    "⇒": r"\Rightarrow ", "⇔": r"\iff ", "↔": r"\iff ", "⋯": "...",
}  # fmt: skip


_UNICODE.update({k: f"\\{v} " for k, v in _GREEK.items()})


_UNICODE_TABLE = str.maketrans(_UNICODE)


def fold_unicode(text: str) -> str:
    """Return the text with unicode maths written in ASCII or LaTeX."""
    if text.isascii():
        return text.replace("\x00", "").replace(DOLLAR, "")
    # The digits themselves become plain ones by NFKC below.
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+", r"^{\g<0>}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", r"_{\g<0>}", text)
    text = re.sub(r"[¼-¾⅐-⅞]", _vulgar_fraction, text)
    text = re.sub(r"√\s*(\d+|[a-zA-Z])", r"\\sqrt{\1}", text)
    text = text.replace("√", r"\sqrt")
    text = re.sub(r"([∛∜])\s*(\d+|[a-zA-Z])", r"\1{\2}", text)
    text = text.translate(_UNICODE_TABLE)
    text = re.sub("[\u200b-\u200f\u2060\ufeff\ufe0f\x00\x01⟦⟧]", "", text)
    text = unicodedata.normalize("NFKC", text).translate(_UNICODE_TABLE)
    return "".join(_ascii_digit(c) for c in text)


def _vulgar_fraction(found: re.Match[str]) -> str:
    top, low = unicodedata.normalize("NFKC", found[0]).split("⁄")
    return f"\\frac{{{top}}}{{{low}}} "


def _ascii_digit(char: str) -> str:
    if char.isascii() or not char.isdecimal():
        return char
    return str(unicodedata.decimal(char))


_BASES = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "twelve": 12, "sixteen": 16,
}  # fmt: skip


def _base(found: re.Match[str]) -> str:
    number = _BASES.get(found[1], found[1])
    return "" if str(number) == "10" else f"_{{{number}}}"


# What must occur for the pattern to be worth trying, the pattern, the new.
_PLAIN_SPELLINGS = [
    (trigger, re.compile(pattern), new)
    for trigger, pattern, new in (
        ("%", r"%(?=(?:pi|e|i)\b)", ""),  # Maxima's constants
        ("log", r"(?<![\\A-Za-z])log(10|2)\s*\(", r"\\log _{\1}("),
        ("**", r"\*\*", "^"),
        ("cdot", r"\\cdot", "*"),
        (
            "~",
            r"(?:(?<=[(&|])|^|(?<=\band )|(?<=\bor )) *~ *(?=[A-Za-z(])",
            r"\\neg ",
        ),
        ("...", r"\.\.\.+", r" \\ldots "),
        ("<", r"^\s*<([^<>=]*,[^<>=]*)>\s*$", r"(\1)"),  # a vector
        (">", r"<=>|<->", r"\\iff "),
        ("<", r"<=|=<", r"\\le "),
        (">=", r">=", r"\\ge "),
        ("=>", r"=>", r"\\Rightarrow "),
        ("->", r"->", r"\\to "),
        ("=", r"!=(?!=)|=/=", r"\\ne "),
        ("<>", r"<>", r"\\ne "),
        ("U", r"(?<=[\])])\s*U\s*(?=[\[(])", r"\\cup "),
        ("u", r"(?<=[\])])\s*(?:u|union)\s*(?=[\[(])", r"\\cup "),
        (")", r"\(([0-9A-F]+)\)\s*_", r"\1_"),
        (
            "mod",
            r"\\p?mod\s*\{\s*(\w+)\s*\}|\(\s*\\?mod\s+(\w+)\s*\)"
            r"|(?<=[ \d])\\pmod\s*(\w+)",
            r"\\modulo {\1\2\3}",
        ),
        (
            " in ",
            r"(?<![A-Za-z\\\d])([A-Za-z]) in (?=[\[({\\])",
            r"\1 \\in ",
        ),
        ("out of", r"(?<=\d) out of (?=\d)", "/"),
        (
            "ase",
            r"(?<=\d)[ ⟦(]*(?:in )?[Bb]ase[ -]?(\w+)[⟧)]*$",
            _base,
        ),
        (
            "_",
            r"(?<=[\dA-F])_\s*\{?[\s⟦]*(two|three|four|five|six|seven|eight"
            r"|nine|ten|twelve|sixteen)[\s⟧]*\}?(?![a-z])",
            _base,
        ),
        ("R", r"(?<=\d)[\s⟦]+R[\s⟧]*(?=\d)", " ⟦remainder⟧ "),
        (
            "r",
            r"(?<=\d)[\s⟦]+(?:r|remainder|rem\.?)[\s⟧]*(?=\d)",
            " ⟦remainder⟧ ",
        ),
        (
            "deg",
            r"(?<=[\d)}])[\s⟦]*deg(?:rees?)?\b⟧?"
            r"(?! *⟦?[CFcf]\b| *celsius| *fahr)",
            r"^\\circ ",
        ),
        ("\\", r"\\(?:hat|bar)\s*\{?\s*(?:\\?([ij])|(k))\s*\}?", r"{\1\2}"),
    )
]
_OVER = re.compile(
    r"\{((?:[^{}]|\{[^{}]*\})*)\\(over|choose)\b((?:[^{}]|\{[^{}]*\})*)\}"
)


def rewrite_plain(text: str) -> str:
    """Return the text with ASCII and computer-algebra signs as LaTeX."""
    for trigger, pattern, new in _PLAIN_SPELLINGS:
        if trigger in text:
            text = pattern.sub(new, text)
    if "\\equiv" in text:
        text = re.sub(r"\\mod\b\s*(\w+)", r"\\modulo {\1}", text)
    if "\\over" in text or "\\choose" in text:
        text = _OVER.sub(
            lambda m: "{{\\{} {{{}}}{{{}}}}}".format(
                "frac" if m[2] == "over" else "binom", m[1], m[3]
            ),
            text,
        )
    return text


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


_CLOSERS = {"(": ")]", "[": ")]", r"\lbr": (r"\rbr",)}


_STEP = re.compile(
    r"\\begin ?\{(\w+)\}|\\end ?\{(\w+)\}|\\[a-zA-Z]+|"
    r"(?<![A-Za-z\\])(?:and|or)(?![a-z])|⟦[^⟧]*⟧|.",
    re.S,
)


def scan(text: str) -> list[tuple[str, int]]:
    """Return the pieces of a text, each with its bracket depth."""
    pieces: list[tuple[str, int]] = []
    depth = 0
    for found in _STEP.finditer(text):
        piece = found[0]
        closes = piece in ")]}" or piece == r"\rbr" or found[2]
        if closes:
            depth -= 1
        pieces.append((piece, depth))
        if piece in "([{" or piece == r"\lbr" or found[1]:
            depth += 1
    return pieces


def split_top(text: str, marks: set[str]) -> tuple[list[str], list[str]]:
    """Split at marks outside of all brackets; return parts and marks."""
    if not any(mark in text for mark in marks):
        return [text.strip()], []
    parts, seen, current = [], [], []
    for piece, depth in scan(text):
        if depth == 0 and piece in marks:
            parts.append("".join(current).strip())
            seen.append(piece)
            current = []
        else:
            current.append(piece)
    parts.append("".join(current).strip())
    return parts, seen


def is_grouped_number(text: str) -> bool:
    """Say whether commas in the text only group digits by three."""
    return bool(
        re.fullmatch(r"[-+$ (]*\d{1,3}(,\d{3})+(\.\d+)?[ %)]*\D*", text)
    )


def split_list(text: str, grouped: bool = True) -> tuple[list[str], list[str]]:
    """Split a bare list at commas, semicolons, "and", "or"."""
    marks = {",", ";", "and", "or"}
    if re.search(r"[<=>]|\\[lg]e\b|\\ne\b", text):
        marks |= {r"\vee", r"\wedge"}  # p or q itself stays a formula
    if grouped:
        text = re.sub(r"(?<![\d,.])(\d{1,3}(?:,\d{3})+)(?![\d,])",
                      lambda m: m[0].replace(",", ""), text)  # fmt: skip
    parts, seen = split_top(text, marks)
    kept = [p for p in parts if p]
    return kept, seen


def outer_brackets(text: str) -> tuple[str, str, str] | None:
    """Return (opener, inside, closer) when one pair encloses everything."""
    match scan(text):
        case [(first, _), *inner, (last, _)]:
            inside = "".join(piece for piece, _ in inner).strip()
            closed = last in _CLOSERS.get(first, ())
            if closed and all(depth for _, depth in inner):
                return first, inside, last
    return None


def strip_doubled(text: str) -> str:
    """Drop outer braces, and round brackets that only enclose others.

    One pass over the text, however deep the nesting is.
    """
    if text[:1] != "{" and not text.startswith("(("):
        return text
    closes: dict[int, int] = {}
    stack: list[int] = []
    for i, char in enumerate(text):
        if char in "({":
            stack.append(i)
        elif char in ")}" and stack:
            closes[stack.pop()] = i
    i, j = 0, len(text) - 1
    while closes.get(i) == j:
        inner = i + 1
        while text[inner] == " ":
            inner += 1
        end = j - 1
        while text[end] == " ":
            end -= 1
        if text[i] != "{" and closes.get(inner) != end:
            break
        i, j = inner, end
    return text[i : j + 1]


def measure_nesting(text: str) -> int:
    """Return how many brackets are open at once, at most."""
    depth = deepest = 0
    for char in text:
        if char in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")]}":
            depth -= 1
    return deepest
