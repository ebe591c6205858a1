"""Times of day and dates: 10:30 a.m. is 10:30 AM, March 5 is 5 March."""

from __future__ import annotations

import re
from typing import NamedTuple

_MONTHS = (
    "january february march april may june july august september october "
    "november december"
).split()
_TIME = re.compile(
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
    found = _TIME.fullmatch(_plain(text))
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
