"""Seeded word problems whose solution is known step by step.

A :class:`Story` holds the text, the chain of arithmetic steps and the whole
calculation as one expression; ``styles.py`` turns it into a worked solution.
``TRAINED`` families are what the pocket model reads in pretraining;
``HELD_OUT`` families have wordings that it never sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

NAMES = (
    "Maya Omar Lena Ivan Rosa Amir Nina Paul Zara Hugo Anna Tom Priya Ben "
    "Clara David Ella Frank Grace Hana"
).split()
THINGS = (
    "apples marbles stickers coins shells cards pencils buttons beads "
    "stamps cookies oranges books flowers balloons"
).split()


@dataclass(frozen=True)
class Step:
    """One calculation: ``left`` = ``value``, and what the value is."""

    left: str
    value: int
    what: str


@dataclass(frozen=True)
class Story:
    """A problem with its solution as data."""

    text: str
    steps: tuple[Step, ...]
    expression: str
    answer: int
    unit: str
    family: str

    @property
    def signature(self) -> str:
        """What must differ between train, dev and test: the calculation."""
        return f"{self.family}:{self.expression.replace(' ', '')}"


class _Chain:
    """A running total that collects its steps and its expression."""

    def __init__(self, start: int):
        self.value, self.expression = start, str(start)
        self.steps: list[Step] = []

    def apply(self, sign: str, amount: int, what: str) -> None:
        before = self.value
        self.value = {
            "+": before + amount,
            "-": before - amount,
            "*": before * amount,
            "/": before // amount,
        }[sign]
        self.steps.append(Step(f"{before} {sign} {amount}", self.value, what))
        low = sign in "*/" and any(s in self.expression for s in "+-")
        left = f"({self.expression})" if low else self.expression
        self.expression = f"{left} {sign} {amount}"


# A scene is: opening, question, unit, what the total is called, and events
# by sign. {n} name, {f} another name, {k} the amount, {t} the things.
_POCKET = {
    "+": ("{n} finds {k} more {t}.", "{n} buys {k} more {t}.",
          "{f} gives {n} {k} {t}."),
    "-": ("{n} gives {k} {t} to {f}.", "{n} loses {k} of the {t}.",
          "{n} sells {k} {t}."),
    "*": ("Then the number of {t} grows to {k} times as many.",),
    "/": ("{n} shares the {t} equally among {k} bags and keeps one bag.",),
}  # fmt: skip
_BUS = {
    "+": ("At the next stop {k} people get on.", "{k} people get on."),
    "-": ("At the next stop {k} people get off.", "{k} people get off."),
}
_SHELF = {
    "+": ("The library buys {k} new books.", "People bring back {k} books."),
    "-": ("{k} books are lent out.", "{k} old books are thrown away."),
    "*": ("A gift makes it {k} times as many books.",),
    "/": ("The books are split equally over {k} rooms; look at one room.",),
}
_SAVING = {
    "+": ("{n} earns {k} dollars.", "{n} gets {k} dollars from {f}."),
    "-": ("{n} spends {k} dollars on food.", "{n} pays {k} dollars to {f}."),
    "*": ("A good week makes it {k} times as much.",),
    "/": ("{n} splits the money equally with others, {k} parts in all, "
          "and keeps one part.",),
}  # fmt: skip
_FARM = {
    "+": ("{k} more are born.", "The farmer buys {k} more."),
    "-": ("{k} run away.", "The farmer sells {k} of them."),
    "*": ("After a year there are {k} times as many.",),
}
SCENES = {
    "pocket": ("{n} has {v} {t}.", "How many {t} does {n} have now?",
               "{t}", _POCKET),
    "bus": ("A bus starts with {v} people.",
            "How many people are on the bus now?", "people", _BUS),
    "library": ("A library has {v} books.",
                "How many books are there now?", "books", _SHELF),
    "saving": ("{n} has saved {v} dollars.",
               "How many dollars does {n} have now?", "dollars", _SAVING),
    "farm": ("A farm has {v} sheep.", "How many sheep are there now?",
             "sheep", _FARM),
}  # fmt: skip
_TANK = {
    "+": ("Rain adds {k} liters.", "{n} pours in {k} liters."),
    "-": ("{k} liters leak out.", "{n} uses {k} liters for the plants."),
    "*": ("A storm fills it to {k} times that.",),
}
_LIFT = {
    "+": ("It goes up {k} floors.", "It climbs {k} more floors."),
    "-": ("It goes down {k} floors.", "It drops by {k} floors."),
}
_TEAM = {
    "+": ("The team scores {k} points.", "They win {k} more points."),
    "-": ("A mistake costs them {k} points.", "They lose {k} points."),
    "*": ("A bonus round makes it {k} times the points.",),
}
NEW_SCENES = {
    "tank": ("A water tank holds {v} liters.",
             "How many liters are in the tank at the end?", "liters", _TANK),
    "lift": ("A lift starts at floor {v}.",
             "At which floor is the lift at the end?", "floors", _LIFT),
    "team": ("A team begins the game with {v} points.",
             "What is their score at the end?", "points", _TEAM),
}  # fmt: skip


def _events(
    rng: Random, scene: str, n_steps: int, scenes: dict
) -> Story:
    opening, question, unit, events = scenes[scene]
    name, friend = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    start = rng.randint(3, 30)
    chain, sentences = _Chain(start), []
    for _ in range(n_steps):
        sign, amount = _next_event(rng, chain.value, events)
        text = rng.choice(events[sign])
        chain.apply(sign, amount, "the number of " + unit)
        sentences.append((text, amount))
    words = {"n": name, "f": friend, "t": thing}
    text = " ".join(
        [opening.format(v=start, **words)]
        + [s.format(k=k, **words) for s, k in sentences]
        + [question.format(**words)]
    )
    unit = unit.format(**words)
    steps = tuple(
        Step(s.left, s.value, f"the number of {unit}") for s in chain.steps
    )
    return Story(text, steps, chain.expression, chain.value, unit, scene)


def _next_event(rng: Random, value: int, events: dict) -> tuple[str, int]:
    """A sign the scene knows, with an amount that keeps the total sane."""
    while True:
        sign = rng.choice([s for s in "++--*/" if s in events])
        if sign == "+":
            return sign, rng.randint(2, 20)
        if sign == "-" and value > 3:
            return sign, rng.randint(2, min(20, value - 1))
        if sign == "*" and value <= 30:
            return sign, rng.randint(2, 3)
        divisors = [k for k in range(2, 6) if value % k == 0]
        if sign == "/" and divisors and value > 5:
            return sign, rng.choice(divisors)


def _make_events(scene: str, scenes: dict) -> Callable[[Random, int], Story]:
    return lambda rng, n_steps: _events(rng, scene, n_steps, scenes)


def _compare(rng: Random, n_steps: int, new: bool = False) -> Story:
    one, two, three = rng.sample(NAMES, 3)
    thing = rng.choice(THINGS)
    a, k, m = rng.randint(4, 30), rng.randint(2, 20), rng.randint(2, 3)
    more = rng.random() < 0.5 or k >= a
    b = a + k if more else a - k
    sign = "+" if more else "-"
    word = "more" if more else "fewer"
    if new:
        text = (
            f"{one} collects {a} {thing}. That is {k} "
            f"{'fewer' if more else 'more'} than {two} collects."
        )
    else:
        text = f"{one} has {a} {thing}. {two} has {k} {word} than {one}."
    what = f"{thing} of {two}"
    steps = [Step(f"{a} {sign} {k}", b, what)]
    inner, value = f"{a} {sign} {k}", b
    if n_steps >= 3:
        c = b * m
        text += f" {three} has {m} times as many as {two}."
        steps.append(Step(f"{b} * {m}", c, f"{thing} of {three}"))
        inner, value = f"({inner}) * {m}", c
    if n_steps == 1:
        text += f" How many {thing} does {two} have?"
        return Story(text, tuple(steps), inner, value, thing, "compare")
    who = three if n_steps >= 3 else two
    text += f" How many {thing} do {one} and {who} have together?"
    total = a + value
    steps.append(Step(f"{a} + {value}", total, f"{thing} together"))
    expression = f"{a} + {inner}"
    if n_steps >= 4:
        lost = rng.randint(2, total - 1) if total > 3 else 1
        text = text.replace(
            f" How many {thing} do {one} and {who} have together?",
            f" {one} and {who} put theirs together and lose {lost}."
            f" How many {thing} are left?",
        )
        steps.append(Step(f"{total} - {lost}", total - lost, f"{thing} left"))
        expression, total = f"{expression} - {lost}", total - lost
    return Story(text, tuple(steps), expression, total, thing, "compare")


def _shop(rng: Random, n_steps: int, new: bool = False) -> Story:
    name = rng.choice(NAMES)
    x, y = rng.sample(("pens", "cups", "toys", "hats", "maps", "cakes"), 2)
    m, n = rng.randint(2, 9), rng.randint(2, 9)
    p, q = rng.randint(2, 9), rng.randint(2, 9)
    first, second = m * p, n * q
    if new:
        text = f"{name} orders {m} {x} at {p} dollars a piece"
    else:
        text = f"{name} buys {m} {x} for {p} dollars each"
    steps = [Step(f"{m} * {p}", first, f"the price of the {x}")]
    expression, total = f"{m} * {p}", first
    if n_steps >= 3:
        joint = " and also" if new else " and"
        text += f"{joint} {n} {y} for {q} dollars each"
        steps.append(Step(f"{n} * {q}", second, f"the price of the {y}"))
        total = first + second
        steps.append(Step(f"{first} + {second}", total, "the whole price"))
        expression += f" + {n} * {q}"
    text += "."
    if n_steps in (2, 4):
        paid = total + rng.randint(1, 20)
        steps.append(Step(f"{paid} - {total}", paid - total, "the change"))
        text += (
            f" {name} hands over {paid} dollars. What is the change?"
            if new
            else f" {name} pays with {paid} dollars. How many dollars does "
            f"{name} get back?"
        )
        low = f"({expression})" if "+" in expression else expression
        expression, total = f"{paid} - {low}", paid - total
    else:
        text += (
            " What is the bill?" if new else " How many dollars is that?"
        )
    return Story(text, tuple(steps), expression, total, "dollars", "shop")


def _boxes(rng: Random, n_steps: int, new: bool = False) -> Story:
    thing = rng.choice(THINGS)
    b, k = rng.randint(2, 9), rng.randint(3, 12)
    total = b * k
    text = (
        f"A crate holds {b} rows of {k} {thing}."
        if new
        else f"There are {b} boxes with {k} {thing} in each box."
    )
    steps = [Step(f"{b} * {k}", total, f"{thing} in all")]
    expression = f"{b} * {k}"
    if n_steps >= 2:
        sign = rng.choice("+-")
        r = rng.randint(2, min(20, total - 2))
        if sign == "-":
            text += (
                f" {r} of them must be left out."
                if new
                else f" {r} of them are broken."
            )
        else:
            text += (
                f" Beside the crate lie {r} more."
                if new
                else f" There are also {r} loose {thing}."
            )
        after = total + r if sign == "+" else total - r
        steps.append(Step(f"{total} {sign} {r}", after, f"good {thing}"))
        expression, total = f"{expression} {sign} {r}", after
    if n_steps >= 3:
        divisors = [g for g in range(2, 7) if total % g == 0]
        if divisors:
            g = rng.choice(divisors)
            text += f" The rest is packed in bags of {g}."
            steps.append(Step(f"{total} / {g}", total // g, "bags"))
            expression, total = f"({expression}) / {g}", total // g
            text += " How many bags are there?"
            return Story(
                text, tuple(steps), expression, total, "bags", "boxes"
            )
    text += (
        f" How many {thing} can be used?"
        if new
        else f" How many good {thing} are there?"
    )
    return Story(text, tuple(steps), expression, total, thing, "boxes")


def _wages(rng: Random, n_steps: int) -> Story:
    name = rng.choice(NAMES)
    h, d, w = rng.randint(2, 6), rng.randint(2, 5), rng.randint(2, 9)
    hours = h * d
    text = f"{name} works {h} hours a day for {d} days"
    steps = [Step(f"{h} * {d}", hours, "the hours")]
    expression, total, unit = f"{h} * {d}", hours, "hours"
    if n_steps == 1:
        text += f". How many hours does {name} work?"
        return Story(text, tuple(steps), expression, total, unit, "wages")
    total, unit = hours * w, "dollars"
    text += f" and earns {w} dollars an hour."
    steps.append(Step(f"{hours} * {w}", total, "the pay"))
    expression += f" * {w}"
    if n_steps >= 3:
        s = rng.randint(2, min(30, total - 1))
        text += f" {name} spends {s} dollars."
        steps.append(Step(f"{total} - {s}", total - s, "the dollars left"))
        expression, total = f"{expression} - {s}", total - s
    if n_steps >= 4:
        g = rng.randint(2, 20)
        text += f" Then {name} finds {g} dollars."
        steps.append(Step(f"{total} + {g}", total + g, "the dollars now"))
        expression, total = f"{expression} + {g}", total + g
    text += f" How many dollars does {name} have?"
    return Story(text, tuple(steps), expression, total, unit, "wages")


def _ages(rng: Random, n_steps: int) -> Story:
    one, two = rng.sample(NAMES, 2)
    a, k, y = rng.randint(4, 30), rng.randint(2, 20), rng.randint(2, 12)
    b = a + k
    text = f"{one} is {a} years old. {two} is {k} years older than {one}."
    steps = [Step(f"{a} + {k}", b, f"the age of {two}")]
    expression, value = f"{a} + {k}", b
    if n_steps == 1:
        text += f" How old is {two}?"
        return Story(text, tuple(steps), expression, value, "years", "ages")
    later = b + y
    steps.append(Step(f"{b} + {y}", later, f"{two} in {y} years"))
    expression, value = f"{expression} + {y}", later
    if n_steps == 2:
        text += f" How old will {two} be in {y} years?"
        return Story(text, tuple(steps), expression, value, "years", "ages")
    steps.append(Step(f"{a} + {y}", a + y, f"{one} in {y} years"))
    value = later + a + y
    steps.append(Step(f"{later} + {a + y}", value, "both ages"))
    expression = f"{expression} + {a} + {y}"
    text += f" How old will both be together in {y} years?"
    return Story(text, tuple(steps), expression, value, "years", "ages")


def make_fact(rng: Random, n_steps: int) -> Story:
    """One bare calculation, as in the exercise pages of a school book."""
    sign = rng.choice("++--*/")
    if sign in "+-":
        a, b = rng.randint(2, 99), rng.randint(2, 20)
        a, b = (b, a) if sign == "+" and rng.random() < 0.3 else (a, b)
        a = a + b if sign == "-" and a < b else a
        value = a + b if sign == "+" else a - b
    else:
        a, b = rng.randint(2, 30), rng.randint(2, 9)
        value = a * b
        if sign == "/":
            a, value = value, a
    step = Step(f"{a} {sign} {b}", value, "the result")
    text = f"What is {step.left}?"
    return Story(text, (step,), step.left, value, "", "fact")


TRAINED: dict[str, Callable[[Random, int], Story]] = {
    **{name: _make_events(name, SCENES) for name in SCENES},
    "compare": _compare,
    "shop": _shop,
    "boxes": _boxes,
    "wages": _wages,
    "ages": _ages,
}
HELD_OUT: dict[str, Callable[[Random, int], Story]] = {
    **{name: _make_events(name, NEW_SCENES) for name in NEW_SCENES},
    "compare": lambda rng, n: _compare(rng, n, new=True),
    "shop": lambda rng, n: _shop(rng, n, new=True),
    "boxes": lambda rng, n: _boxes(rng, n, new=True),
}
