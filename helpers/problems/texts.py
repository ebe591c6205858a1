"""One spelling of a problem's text, for finding it again elsewhere."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_NOT_KEY = re.compile(r"[^\w+\-*/^=<>]|_")
_EDGES = ".,;:!?\"'()[]{}$“”‘’«»…*`"
MASK = "#"


def normalize_text(text: str) -> str:
    """Compatibility forms (NFKC) and case folded away."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", text).casefold()


def text_key(text: str) -> str:
    """Letters, digits and operators only: layout cannot tell two apart."""
    return _NOT_KEY.sub("", normalize_text(text))


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
