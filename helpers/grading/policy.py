"""What reasonable graders disagree about, and how this one decides it.

In doubt an answer is refused: as a reward, a wrong "correct" is learned,
while a wrong "incorrect" is only noise.
"""

GRADER_VERSION = "2.0"
"""Raised whenever a verdict may change; records of graders name it."""

POLICY: dict[str, str] = {
    "tolerance": "none: 0.333 is not 1/3, 85.71 is not 600/7",
    "unreduced fractions": "accepted: 2/4 equals 1/2",
    "decimals": "exact: 0.5 equals 1/2, 1.0 equals 1",
    "units": "compared when both sides have one, ignored when one has none; "
    "never converted: 5 m is neither 5 cm nor 500 cm",
    "percent": "p% equals p/100; it equals a bare p only for |p| >= 1",
    "degrees": "30 degrees equals a bare 30 and pi/6",
    "angles": "30 degrees is neither 30 radians nor 30 cm",
    "order": "free in {sets} and bare lists, fixed in (tuples) and matrices",
    "connectors": "and, or and commas may list the values of one variable; "
    "x = 1 or y = 2 is not x = 1 and y = 2",
    "brackets": "[0,1) is not (0,1); a bare list equals a tuple in order",
    "several values": "x = 1, x = 2 is a list of values, never (1, 2)",
    "points": "P(1,2) is (1,2) beside a tuple, and a number else",
    "intervals": "an interval equals the inequality it solves",
    "assignments": "x = 5 equals 5; x = 1, y = 2 equals (1, 2)",
    "definitions": "y = 2x+1 and f(x) = 2x+1 equal a bare 2x+1",
    "equations": "equal when one is a non-zero multiple of the other",
    "unsolved": "an equation still to be solved is not its solution: "
    "3x = 6 is not x = 2; an expression equals its value: 3*4 is 12",
    "open references": "a reference left open, x^2 = 4, is met by a multiple "
    "of itself; its solution is not looked for: x = 2 is not x^2 = 4",
    "congruences": "modulo the same number; without the modulus not equal",
    "bounded work": "what is too long, too deep, too large or has too many "
    "terms is refused, with that reason; nothing is timed",
    "ratios": "compared in proportion: 1:2:3 is 2:4:6; 3:4 is 3/4",
    "times and dates": "2:30 PM is 14:30 and 2:30; March 5 is 5 March; "
    "a year may be missing on one side",
    "counted things": "may be described: 7 apples, 7 red apples; 7 boys "
    "are not 7 girls",
    "bare braces": "{1,2} is a set: no order, no repetition",
    "domains": "variables are real: sqrt(x^2) is |x|, not x; ln(x^2) is "
    "2 ln|x|, not 2 ln x; z and w are complex beside i",
    "constant of integration": "required: x^2 is not x^2 + C; c equals C",
    "log": "a bare log may mean the natural or the decimal one",
    "bases": "52_8 equals only 52_8, not 52, 52_7 or 42",
    "thousands": "1,234 and 1 234 are numbers; groups must have three digits",
    "several answers": "never equal to one of them: 5 or 7 is not 5",
    "hedges": "42 or 43 offers two answers and is none; 42 but not 43 "
    "commits itself to 42; if the answer is 42 commits itself to nothing",
    "approximation": "what follows an approximation sign is ignored",
    "prose": "sentences are compared as text, without case or final dot",
    "unfinished": "an empty or unclosed last box, or reasoning without "
    "</think>, is no answer; boxes inside the reasoning do not count",
    "last resort": "without a marked answer the last number or formula of "
    "the text counts, and the reason says so",
    "doubt": "without a marked answer, a number that its sentence denies, "
    "tries or offers beside another one is no answer",
    "decimal comma": "2,5 is 2.5 only after an answer phrase of a language "
    "that writes it so",
    "later final answer": "a final answer after the last box replaces it",
}
"""How the contested classes are decided (each is tested)."""
