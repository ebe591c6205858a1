"""One spelling of a problem's text, for finding it again elsewhere."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_LETTER = r"[^\W\d_]"
_NOT_KEY = re.compile(
    # what is never kept
    r"(?:[^\w+\-*/^=<>%|!.±¬√∂∆∇\u2200-\u22ff\u2a00-\u2aff]|_"
    # a dot that ends a sentence, or is one of several
    rf"|\.(?!\d)|(?<={_LETTER})\.|(?<=\.)\."
    # an exclamation mark; that of 5!, n!, (n - 1)! and != stays
    r"|(?<![\d)}!])(?<!(?<![^\W\d_]|['’])[^\W\d_])!+(?!=)|(?<=\\[)}])!+)+"
)
_GAP = re.compile(r"(?<!\d) | (?![\d.])")  # says nothing: not after a digit
_LOOSE = re.compile(r"(?<!\s)\s+(?=!)")
_THOUSANDS = re.compile(r"(?<=\d)(?:,\\!|\{,\}|\\,|,)(?=\d{3}(?!\d))")
_SHORT_FRAC = re.compile(r"frac\s*(\d)\s*(\d)")  # \frac12 is \frac{1}{2}
_RAISED = re.compile(r"[⁰¹²³⁴-⁹⁺⁻]+")
_LOWERED = re.compile(r"[₀-₉]+|[¼-¾⅐-⅞]")
_SIGNS = str.maketrans(
    {
        "≤": "<=",
        "≦": "<=",
        "⩽": "<=",
        "≥": ">=",
        "≧": ">=",
        "⩾": ">=",
        "−": "-",
        "–": "-",
        "×": "*",
        "·": "*",
        "⋅": "*",
        "∙": "*",
        "÷": "/",
        "⁄": "/",
        "∕": "/",
        "∣": "|",
    }
)
_EDGES = ".,;:!?\"'()[]{}$“”‘’«»…*`"
MASK = "#"


def normalize_text(text: str) -> str:
    """Compatibility forms (NFKC) and case folded away."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", text).casefold()


def text_key(text: str) -> str:
    """What tells one problem from another; layout does not.

    Letters, digits and signs of arithmetic, and a gap where two numbers
    meet: "48, 4" is not "4, 84". Case, other spacing, LaTeX's dollars and
    braces and the marks of sentences are dropped: sets write them
    differently.
    """
    if not text.isascii():
        # 10² is not 102, and 3½ is not 31/2
        text = _RAISED.sub(r"^\g<0> ", text)
        text = _LOWERED.sub(r" \g<0>", text)
    text = normalize_text(text)
    if not text.isascii():
        text = text.translate(_SIGNS)
    if "!" in text:
        text = _LOOSE.sub("", text)
    if "frac" in text:
        text = _SHORT_FRAC.sub(r"frac\1 \2 ", text)
    text = _THOUSANDS.sub("", text)
    return _GAP.sub("", _NOT_KEY.sub(" ", text)).strip()


def text_digest(text: str) -> bytes:
    """16 bytes that stand for the text's key in a set of millions."""
    key = text_key(text).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(key, digest_size=16).digest()


def split_words(text: str) -> list[str]:
    """Words between white space, without the marks at their edges."""
    words = (word.strip(_EDGES) for word in normalize_text(text).split())
    return [word for word in words if word]


def mask_numbers(words: list[str]) -> list[str]:
    """The words with every number replaced by one sign.

    7 and 4,513,269.5 become the same; a word without a digit stays.
    """
    return [_NUMBER.sub(MASK, word) for word in words]
