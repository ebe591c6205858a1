"""Unicode and plain-text signs, written in ASCII or LaTeX."""

from __future__ import annotations

import re
import unicodedata

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
