"""Scenes: a running total that a chain of events changes step by step."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tools.pocket.story import NAMES, THINGS, Step, Story


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
_SCHOOL = {
    "+": ("The school gets {k} more people.", "{k} people get in."),
    "-": ("{k} people run away.", "The school loses {k} people."),
    "*": ("After a year there are {k} times as many people.",),
}
_STALL = {
    "+": ("The farmer gets {k} cakes from {n}.",
          "{n} gives the farmer {k} more cakes."),
    "-": ("{n} buys {k} of the cakes.", "{k} cakes are thrown away."),
    "*": ("A gift makes it {k} times as many cakes.",),
}  # fmt: skip
_BAGS = {
    "+": ("{n} earns {k} more bags.", "{n} gets {k} bags from {f}."),
    "-": ("{k} bags are lent out.", "{n} pays {k} bags to {f}."),
    "*": ("The number of bags grows to {k} times as many.",),
}
# The first three put known words together anew; the last three bring words
# and ideas of their own.
NEW_SCENES = {
    "school": ("A school has {v} people.",
               "How many people are in the school now?", "people", _SCHOOL),
    "stall": ("A farmer has {v} cakes.",
              "How many cakes does the farmer have now?", "cakes", _STALL),
    "bags": ("{n} starts with {v} bags.",
             "How many bags does {n} have now?", "bags", _BAGS),
    "tank": ("A water tank holds {v} liters.",
             "How many liters are in the tank at the end?", "liters", _TANK),
    "lift": ("A lift starts at floor {v}.",
             "At which floor is the lift at the end?", "floors", _LIFT),
    "team": ("A team begins the game with {v} points.",
             "What is their score at the end?", "points", _TEAM),
}  # fmt: skip


def _events(rng: Random, scene: str, n_steps: int, scenes: dict) -> Story:
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


def make_events(scene: str, scenes: dict) -> Callable[[Random, int], Story]:
    return lambda rng, n_steps: _events(rng, scene, n_steps, scenes)
