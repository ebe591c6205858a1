"""Split an answer into its number and its unit; compare units by name."""

from __future__ import annotations

import re
from typing import NamedTuple

from helpers.grading.normalize import CLOSE, OPEN

_NAMES = {
    "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m",
    "millimeter": "mm", "millimetre": "mm", "kilometer": "km",
    "kilometre": "km", "kilogram": "kg", "gram": "g", "gm": "g",
    "milligram": "mg", "liter": "l", "litre": "l", "milliliter": "ml",
    "millilitre": "ml", "second": "s", "sec": "s", "minute": "min",
    "hour": "h", "hr": "h", "feet": "ft", "foot": "ft", "inch": "in",
    "inche": "in", "yard": "yd", "mile": "mi", "pound": "lb", "lbs": "lb",
    "ounce": "oz", "dollar": "$", "usd": "$", "buck": "$", "euro": "€",
    "eur": "€", "gbp": "£", "degree": "deg", "deg": "deg", "unit": "",
    "mph": "mi/h", "people": "person", "percent": "%", "radian": "rad",
    "children": "child", "men": "man", "women": "woman",
}  # fmt: skip
_PLAIN = (
    "cm|mm|km|kg|mg|ml|mL|ft|yd|lbs?|oz|mph|kmh|km/h|m/s|inch(?:es)?|feet|"
    "foot|met(?:er|re)s?|centimet(?:er|re)s?|kilomet(?:er|re)s?|dollars?|"
    "cents?|euros?|pounds?|hours?|hrs?|minutes?|seconds?|days?|weeks?|"
    "months?|years?|degrees?|miles?|grams?|kilograms?|lit(?:er|re)s?|units?|"
    "square units?|radians?"
)
_SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9,
    "trillion": 10**12, "dozen": 12,
}  # fmt: skip
_NOT_UNITS = {
    "or", "and", "not", "to", "if", "but", "than", "more", "less", "minus",
    "plus", "times", "half", "wrong", "between", "through", "is", "are",
    "over", "mod", "divided", "approximately", "when", "where", "for", "with",
    "least", "most", "except", "instead", "either", "no", "none",
}  # fmt: skip
_MARK = rf"{OPEN}[^{CLOSE}]*{CLOSE}"
_POWER = r"\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d)"
_MARKED_TAIL = re.compile(
    rf"^(?P<core>[^{OPEN}]*?[^\s{OPEN}])\s*"
    rf"(?P<unit>{_MARK}(?:{_POWER}|\s*[/*]?\s*{_MARK})*)$"
)
_PLAIN_TAIL = re.compile(
    rf"^(?P<core>.*[\d)}}])\s*(?P<unit>(?:{_PLAIN})(?:{_POWER})?)$"
)
_WORD_TAIL = re.compile(
    r"^(?P<core>[-+]?[$€£]?[\d.,/ ]*\d)\s+(?P<unit>[A-Za-z]{2,}"
    r"(?:[ -][A-Za-z]+){0,3})$"
)
_ORDINAL = re.compile(
    rf"(?<=\d)\s*\^?\s*\{{?\s*{OPEN}?(?:st|nd|rd|th){CLOSE}?\s*\}}?"
    r"(?![a-zA-Z])"
)
_PERCENT = re.compile(
    rf"\s*{OPEN}?\s*(?:per\s?cent|pct)\.?\s*{CLOSE}?\s*$", re.I
)
_FOREIGN_TAIL = re.compile(
    r"^(?P<core>.*[\d)}])\s*(?P<unit>[^\W\d_a-zA-Z⟦⟧]+)$"
)
_SIGNS = {"$": "$", "€": "€", "£": "£", "¥": "¥", "¢": "cent"}


class Quantity(NamedTuple):
    """The part with the value, the unit's short name, and a scale."""

    core: str
    unit: str
    scale: int


_TEMPERATURE = re.compile(
    rf"\s*\^\s*\{{?\s*\\circ\s*\}}?\s*{OPEN}?([CFK]){CLOSE}?$"
)


def name_unit(words: str) -> str:
    """Return the short name of a unit: "square centimeters" is cm^2."""
    text = words.replace(OPEN, " ").replace(CLOSE, " ").strip(" .,")
    text = re.sub(r"[{}\s]+", " ", text).strip()
    power = ""
    if found := re.search(r"\^ ?(-?\d)$", text):
        power, text = f"^{found[1]}", text[: found.start()].strip()
    lowered = text.lower()
    for word, value in (("square", "^2"), ("sq", "^2"), ("cubic", "^3")):
        if lowered.startswith(word + " ") or lowered.startswith(word + "."):
            power, lowered = value, lowered[len(word) + 1 :].strip()
    lowered = re.sub(r"\bper\b", "/", lowered)
    parts = [_one(p.strip()) for p in re.split(r"(/)", lowered)]
    name = "".join(parts)
    return name + power if name else ""


def _one(word: str) -> str:
    if word in _NAMES:
        return _NAMES[word]
    single = word[:-1] if word.endswith("s") and len(word) > 2 else word
    return _NAMES.get(single, single)


def split_unit(cleaned: str) -> Quantity:
    """Take the unit off a cleaned answer (unit "" when it has none)."""
    text = _ORDINAL.sub("", cleaned).strip()
    text = _PERCENT.sub("%", text)
    if found := _TEMPERATURE.search(text):
        return Quantity(text[: found.start()], f"deg {found[1]}", 1)
    unit, scale = "", 1
    if found := re.match(r"^([-+]?)\s*([$€£¥])\s*(?=[\d.\\(-])(.*)$", text):
        unit, text = _SIGNS[found[2]], found[1] + found[3]
    elif text and text[-1] in _SIGNS and len(text) > 1:
        unit, text = _SIGNS[text[-1]], text[:-1].strip()
    for pattern in (_MARKED_TAIL, _PLAIN_TAIL, _WORD_TAIL, _FOREIGN_TAIL):
        found = pattern.match(text)
        if not found or not _may_be_unit(found["unit"], found["core"]):
            continue
        words = found["unit"].strip(OPEN + CLOSE + " ").lower()
        first, _, rest = words.partition(" ")
        if first in _SCALES:
            scale, words = _SCALES[first], rest
            named = name_unit(rest)
        else:
            named = name_unit(found["unit"])
        return Quantity(found["core"].strip(), unit or named, scale)
    return Quantity(text, unit, scale)


def _may_be_unit(words: str, core: str) -> bool:
    plain = re.findall(r"[^\W\d_]+", words.lower())
    if not plain or len(plain) > 6 or set(plain) & _NOT_UNITS:
        return False
    return not core.rstrip().endswith(("^", "_", "=", "+", "-", "*", "/"))


def units_clash(one: str, two: str) -> bool:
    """Say whether both sides name a unit and the names differ."""
    return bool(one and two and one != two)
