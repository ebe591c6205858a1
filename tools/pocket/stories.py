"""Seeded word problems whose solution is known step by step.

A :class:`Story` holds the text, the chain of arithmetic steps and the whole
calculation as one expression; ``styles.py`` turns it into a worked solution.
``TRAINED`` families are what the pocket model reads in pretraining;
``HELD_OUT`` families have wordings that it never sees.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tools.pocket.scenes import NEW_SCENES, SCENES, make_events
from tools.pocket.story import NAMES, THINGS, Step, Story


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
        text += " What is the bill?" if new else " How many dollars is that?"
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
    **{name: make_events(name, SCENES) for name in SCENES},
    "compare": _compare,
    "shop": _shop,
    "boxes": _boxes,
    "wages": _wages,
    "ages": _ages,
}
HELD_OUT: dict[str, Callable[[Random, int], Story]] = {
    **{name: make_events(name, NEW_SCENES) for name in NEW_SCENES},
    "compare": lambda rng, n: _compare(rng, n, new=True),
    "shop": lambda rng, n: _shop(rng, n, new=True),
    "boxes": lambda rng, n: _boxes(rng, n, new=True),
}
