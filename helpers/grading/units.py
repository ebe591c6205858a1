"""Units, quantities, times of day and dates.

5 m has a unit and is not 5 cm; 1 h 30 min has two; 10:30 a.m. is 10:30 AM;
March 5 is 5 March. Units are compared by name and never converted.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from helpers.grading.spelling import CLOSE, OPEN

_NAMES = {
    "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m",
    "millimeter": "mm", "millimetre": "mm", "kilometer": "km",
    "kilometre": "km", "kilogram": "kg", "gram": "g", "gm": "g",
    "milligram": "mg", "liter": "l", "litre": "l", "milliliter": "ml",
    "millilitre": "ml", "second": "s", "sec": "s", "minute": "min",
    "hour": "h", "hr": "h", "feet": "ft", "foot": "ft", "inch": "in",
    "inche": "in", "yard": "yd", "mile": "mi", "pound": "lb",
    "ounce": "oz", "dollar": "$", "usd": "$", "buck": "$", "euro": "€",
    "eur": "€", "gbp": "£", "unit": "",
    "volt": "v", "amp": "a", "ampere": "a", "watt": "w", "newton": "n",
    "joule": "j", "kelvin": "k", "hertz": "hz", "pascal": "pa", "ohm": "ω",
    "wk": "week", "yr": "year", "mo": "month", "gallon": "gal",
    "mph": "mi/h", "people": "person", "radian": "rad",
    "children": "child", "men": "man", "women": "woman",
}  # fmt: skip
_PLAIN = (
    "cm|mm|km|kg|mg|ml|mL|ft|yd|lbs?|oz|mph|kmh|km/h|m/s|inch(?:es)?|feet|"
    "foot|met(?:er|re)s?|centimet(?:er|re)s?|kilomet(?:er|re)s?|dollars?|"
    "cents?|euros?|pounds?|hours?|hrs?|minutes?|seconds?|days?|weeks?|"
    "months?|years?|miles?|grams?|kilograms?|lit(?:er|re)s?|units?|"
    "square units?|radians?"
)
_SCALES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9,
    "trillion": 10**12, "dozen": 12,
}  # fmt: skip
_COUNTED = {"person", "child", "man", "woman"}
PHYSICAL = (set(_NAMES.values()) - _COUNTED) | {
    "cent", "deg", "day", "c", "mol", "kpa", "kj", "kw", "mw", "ev", "tesla",
    "acre", "ha", "hectare", "quart", "pint", "cup", "ton", "tonne", "knot",
    "ms", "um", "nm",
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
_UNIT_FRACTION = re.compile(
    rf"\\frac\s*\{{\s*{OPEN}?([a-zA-Z]+){CLOSE}?\s*\}}\s*\{{\s*{OPEN}?([a-z]+)"
    rf"{CLOSE}?\s*({_POWER})?\s*\}}$"
)
_TIME = re.compile(r"\\(min|sec)\s*$")  # no function there
_LETTERS_TAIL = re.compile(
    r"^(?P<core>.*[\d)}])\s*(?P<unit>[a-zA-Zμω]{1,3}(?:\s*\^\s*\{?-?\d\}?)?"
    r"(?:\s*[/* ]\s*[a-zA-Z]{1,3}(?:\s*\^\s*\{?-?\d\}?)?)?)$"
)
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s{0,3}([a-zA-Z]{1,10})")
_ORDINAL = re.compile(
    rf"^(\d[\d,/]*)\s*\^?\s*\{{?\s*{OPEN}?(?:st|nd|rd|th){CLOSE}?\s*\}}?"
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
    rf"\s*(?:\^\s*\{{?\s*\\circ\s*\}}?|{OPEN}?\s*deg(?:ree)?s?)\s*"
    rf"{OPEN}?\s*([CFK])(?:elsius|ahrenheit)?{CLOSE}?$",
    re.I,
)


_FACTOR = re.compile(r"(/)|([^\W\d_]+|[$€£°%μ])(?: ?\^ ?(-?\d))?")
_SPLIT = {
    "mi/h": (("mi", 1), ("h", -1)), "kmh": (("km", 1), ("h", -1)),
    "kph": (("km", 1), ("h", -1)), "mpg": (("mi", 1), ("gal", -1)),
}  # fmt: skip


def name_unit(words: str) -> str:
    """Return the short name of a unit: "meters per second" is m s^-1."""
    text = re.sub(r"[{}⟦⟧\s]+", " ", words).lower()
    text = re.sub(r"\bper\b", "/", text)
    text = re.sub(r"\b(?:square|sq)\b\.? ?([a-z]+)", r"\1^2", text)
    text = re.sub(r"\bcubic ([a-z]+)", r"\1^3", text)
    text = re.sub(r"([a-z]+) (squared|cubed)\b", _raised, text)
    powers: dict[str, int] = {}
    sign = 1
    for found in _FACTOR.finditer(text):
        if found[1]:
            sign = -1
            continue
        for name, power in _SPLIT.get(_one(found[2]), ((_one(found[2]), 1),)):
            power *= sign * int(found[3] or 1)
            powers[name] = powers.get(name, 0) + power
        sign = 1
    return " ".join(
        name if power == 1 else f"{name}^{power}"
        for name, power in sorted(powers.items())
        if name
    )


def _raised(found: re.Match[str]) -> str:
    return f"{found[1]}^{2 if found[2] == 'squared' else 3}"


def _one(word: str) -> str:
    single = word[:-1] if word.endswith("s") and len(word) > 2 else word
    return _NAMES.get(single, single)


def split_unit(cleaned: str, hint: str = "") -> Quantity:
    """Take the unit off a cleaned answer (unit "" when it has none).

    Args:
        cleaned: the answer.
        hint: the unit of the other side. Letters such as h or m are a unit
            only beside the same one: 3 h is 3 hours, but else a product.
    """
    text = _ORDINAL.sub(r"\1", cleaned).strip()
    text = _UNIT_FRACTION.sub(rf"{OPEN}\1{CLOSE}/{OPEN}\2{CLOSE}\3", text)
    text = _TIME.sub(rf"{OPEN}\1{CLOSE}", text)
    if hint == "ω":
        text = re.sub(r"\\Omega\s*$", "ω", text)
    found = _LETTERS_TAIL.match(text)
    if found and name_unit(found["unit"]) == hint:
        return Quantity(found["core"], hint, 1)
    text = _PERCENT.sub("%", text)
    if found := _TEMPERATURE.search(text):
        return Quantity(text[: found.start()], f"deg {found[1].upper()}", 1)
    unit, scale = "", 1
    if found := re.match(r"^([-+]?)\s*([$€£¥])\s*(?=[\d.\\(-])(.*)$", text):
        unit, text = _SIGNS[found[2]], found[1] + found[3]
    elif text and text[-1] in _SIGNS:
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
    if len(plain) > 6 or set(plain) & _NOT_UNITS:
        return False
    return not core.rstrip().endswith(("^", "_", "=", "+", "-", "*", "/"))


def split_quantities(cleaned: str) -> list[tuple[str, str]] | None:
    """Return the parts of "1 h 30 min" or "6 ft 2 in", else None.

    Each is (number, unit); there are at least two, all with a unit.
    """
    text = cleaned.replace(OPEN, " ").replace(CLOSE, " ")
    text = re.sub(r"\\(min|sec)\b", r"\1", text)
    text = text.replace("'", " ft ").replace('"', " in ")
    parts = _QUANTITY.findall(text)
    rest = re.sub(r"\s|,|\band\b", "", _QUANTITY.sub("", text))
    if len(parts) < 2 or rest:
        return None
    return [(number, name_unit(unit)) for number, unit in parts]


def units_clash(one: str, two: str) -> bool:
    """Say whether both sides name a unit and the names differ.

    Things that are only counted may be described: 7 apples, 7 red apples.
    """
    if not one or not two or one == two:
        return False
    words = set(one.split()), set(two.split())
    if any(w.partition("^")[0] in PHYSICAL for w in words[0] | words[1]):
        return True
    return not (words[0] <= words[1] or words[1] <= words[0])


_MONTHS = (
    "january february march april may june july august september october "
    "november december"
).split()
_CLOCK = re.compile(
    r"(\d{1,2})(?::(\d{2}))?(?::(\d{2}))?\s*(?:([ap])\.?\s?m\.?)?", re.I
)
_YEAR_FIRST = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})")


class Date(NamedTuple):
    """A day of a month, with or without its year."""

    year: int | None
    month: int
    day: int


def _plain(text: str) -> str:
    return re.sub(r"[⟦⟧{}~\\]+", " ", text).strip(" .")


def read_time(text: str) -> tuple[int, int, int, str] | None:
    """Return (hour, minute, second, "a" | "p" | "") of a time of day."""
    found = _CLOCK.fullmatch(_plain(text))
    if found is None or not (found[2] or found[4]):
        return None
    hour, minute, second = (int(g or 0) for g in found.groups()[:3])
    half = (found[4] or "").lower()
    if hour > (12 if half else 24) or minute > 59 or second > 59:
        return None
    return hour, minute, second, half


def same_time(gold: str, predicted: str) -> bool | None:
    """Compare two times; None when one is no time or none says a.m., p.m."""
    one, two = read_time(gold), read_time(predicted)
    if one is None or two is None or not (one[3] or two[3]):
        return None
    if one[3] and two[3]:
        return one == two
    half = one[3] or two[3]
    clock, day = (one, two) if one[3] else (two, one)
    hours = {clock[0], clock[0] % 12 + (12 if half == "p" else 0)}
    return day[0] in hours and day[1:3] == clock[1:3]


def read_date(text: str) -> Date | None:
    """Return a date with the name of its month, or in the order of ISO."""
    text = _plain(text).lower()
    if found := _YEAR_FIRST.fullmatch(text):
        year, month, day = map(int, found.groups())
        return Date(year, month, day) if 0 < month < 13 else None
    words = re.findall(
        r"[a-z]+|\d+", re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", text)
    )
    names = [w for w in words if w.isalpha() and w not in ("of", "the")]
    digits = [w for w in words if w.isdigit()]
    if len(names) != 1 or any(len(w) > 4 for w in digits):
        return None
    numbers = [int(w) for w in digits]
    months = [m for m in _MONTHS if m == names[0] or m[:3] == names[0]]
    days = [n for n in numbers if n <= 31]
    years = [n for n in numbers if n > 31]
    if len(months) != 1 or len(days) != 1 or len(years) > 1:
        return None
    year = years[0] if years else None
    return Date(year, _MONTHS.index(months[0]) + 1, days[0])


def same_date(gold: str, predicted: str) -> bool | None:
    """Compare two dates; None when one side is no date."""
    one, two = read_date(gold), read_date(predicted)
    if one is None or two is None:
        return None
    years = {d.year for d in (one, two)} - {None}
    return one[1:] == two[1:] and len(years) <= 1
