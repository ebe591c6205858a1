# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Grading: is this answer right?
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/math-slm-lab/math-slm-lab/blob/main/notebooks/01_grading.ipynb)
#
# **After this notebook you can**
#
# - build a grader in steps and name the case that breaks each step
# - find the answer in a response, and say when there is none
# - check any grader with two invariants in one minute
# - keep a hostile answer from hanging or taking over your run
# - measure graders against each other, false accepts and rejects apart
# - tell "wrong" from "no answer" from "cut off" in real responses
#
# **You need**
#
# - notebook 00 read once; nothing from it on disk
# - a CPU; the base model is used in the last part only
# - the time and memory that this notebook took are printed at its end

# %% tags=["parameters"]
TIER: str = "pocket"
RUN_DIR: str = "runs/pocket"
RUN_MODE: str = "auto"  # "auto", "run" or "replay"
SEED: int = 42
OVERRIDES: list = []

# %% [markdown]
# Setup, the same in every notebook: find the package (Colab fetches the
# repository first), open the **session**: the recipe and the run folder.

# %%
import os
import subprocess
import sys

if "google.colab" in sys.modules and not os.path.exists("lab"):
    url = "https://github.com/math-slm-lab/math-slm-lab"
    fetch = f"git clone -q {url} lab && pip install -q -e lab"
    subprocess.run(fetch, shell=True, check=True)
sys.path += ["lab", ".."]  # the clone: fetched in Colab, or this one
from helpers.session import start

session = start(
    TIER, RUN_DIR, RUN_MODE, SEED, OVERRIDES, notebook="01_grading")
recipe, run = session.recipe, session.run_dir

# %% [markdown]
# ## 1. One function, used four times
#
# | used by | a wrong verdict does |
# |---|---|
# | the harvest (02) | puts a wrong text into the training data |
# | the pairs (02, 04) | calls the better answer the worse one |
# | the evaluation (05) | moves the score that you publish |
# | the reward (06) | pays the model for a mistake, again and again |
#
# - If these four use different graders, the scores mean different things
# - So the course has one: `helpers.grading`
# - Before we use it, we build our own, and watch it fail
#
# ### The cases
#
# - Each case is a response, the **gold** answer, and what a careful person
#   would say
# - They are chosen by hand, to be hard: a share of them is *not* an accuracy
# - A good half should be accepted, the others refused

# %%
CASES = [  # response, gold, should it be accepted?
    ("57", "57", True),
    (r"The answer is \boxed{57}.", "57", True),
    (r"First \boxed{3}, then \boxed{57}.", "57", True),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", True),
    ("It costs $1,234.\n#### 1,234", "1234", True),
    (r"\boxed{57.0}", "57", True),
    (r"\boxed{0.5}", r"\frac{1}{2}", True),
    (r"\boxed{1+x}", "x+1", True),
    (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", True),
    ("<think>Is it \\boxed{5}?</think> No: \\boxed{57}", "57", True),
    (r"\boxed{-57}", "57", False),
    (r"\boxed{0.333}", r"\frac{1}{3}", False),
    (r"\boxed{(1,2)}", "12", False),
    (r"\boxed{5 or 7}", "5", False),
    (r"I tried \boxed{57}. No, it is \boxed{58}.", "57", False),
    (r"<think>It could be \boxed{57}", "57", False),
    (r"The answer is \boxed{57", "57", False),
    (r"\boxed{}", "57", False),
]

# %% [markdown]
# One function runs any grader over all cases and shows the rows that it got
# wrong.

# %%
import pandas as pd


def try_grader(grader):
    """Run a grader on all cases; show what it got wrong."""
    table = pd.DataFrame(CASES, columns=["response", "gold", "should"])
    table["says"] = [grader(r, g) for r, g, _ in CASES]
    wrong = table[table["says"] != table["should"]]
    print(f"{len(table) - len(wrong)} of {len(table)} cases as they should")
    return wrong.set_index("response")

# %% [markdown]
# ## 2. A grader in steps
#
# ### Step 1: compare strings
#
# The simplest grader there is. It is never fooled, and it accepts almost
# nothing.

# %%
def grade_string(response, gold):
    return response.strip() == gold


try_grader(grade_string)

# %% [markdown]
# - Every row above is a **false reject**: right, but refused
# - A response is a text that *contains* an answer
# - So the answer must be found first
#
# ### Step 2: find the box
#
# Models are asked to write `\boxed{…}` around the answer. A regular
# expression finds it in one line.

# %%
import re


def find_box(response):
    boxes = re.findall(r"\\boxed\{(.*?)\}", response)
    return boxes[-1] if boxes else response.strip()


def grade_box(response, gold):
    return find_box(response) == gold


try_grader(grade_box)

# %% [markdown]
# Better, but look at the fraction: the expression stops at the first `}`.

# %%
print(find_box(r"\boxed{\frac{1}{2}}"))

# %% [markdown]
# Braces nest, and regular expressions cannot count. And one row is now a
# **false accept**: a box inside thinking that never ended was taken as the
# answer.
#
# ### Step 3: one spelling
#
# - `1,234` and `1234`, `57.0` and `57`: same number, other spelling
# - The usual recipe: count braces, then delete what looks like decoration

# %%
from helpers.grading import match_brace


def find_nested_box(response):
    start = response.rfind(r"\boxed{")
    if start < 0:
        return response.rpartition("####")[2].strip()
    start += len(r"\boxed")
    return response[start + 1 : match_brace(response, start) - 1]


def strip_decoration(answer):
    return re.sub(r"[\s$,()]|\.0+$", "", answer)


def grade_spelling(response, gold):
    found = strip_decoration(find_nested_box(response))
    return found == strip_decoration(gold)


try_grader(grade_spelling)

# %% [markdown]
# - The fraction and the thousands are right now
# - But deleting commas and brackets turned the point `(1,2)` into the number
#   twelve
# - **A rule that deletes what separates makes false accepts**
#
# ### Step 4: compare numbers
#
# - `0.5` and `\frac{1}{2}` are one number
# - Read both as numbers; allow a small tolerance, as many graders do

# %%
from fractions import Fraction


def read_number(answer):
    answer = re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"\1/\2", answer)
    answer = answer.replace(",", "")
    if not re.fullmatch(r"-?\d{1,30}([./]\d{1,30})?", answer):
        return None
    try:
        return Fraction(answer)
    except ZeroDivisionError:
        return None


def grade_number(response, gold):
    answer = find_nested_box(response)
    one, two = read_number(answer), read_number(gold)
    if one is None or two is None:
        return answer == gold
    return abs(one - two) <= Fraction(1, 1000)


try_grader(grade_number)

# %% [markdown]
# - Fractions and decimals agree now
# - The tolerance accepts `0.333` for a third: the next false accept
# - Roots and sums are still out of reach: they need algebra
#
# ### Step 5: the package
#
# The steps are the same; each is used only when the one before could not
# decide.
#
# | step | decides |
# |---|---|
# | extract | where the answer is, or that there is none |
# | clean, compare strings | most answers |
# | exact numbers, no tolerance | fractions, decimals, percent |
# | words, then formulas read by the package itself | names, roots, intervals |
# | bounds on digits, terms, levels and steps | what would never end |

# %%
from helpers.grading import grade_response


def grade_package(response, gold):
    return grade_response(response, gold).correct


try_grader(grade_package)

# %% [markdown]
# - An empty table: every case as it should
# - That proves little, since we chose the cases; sections 5, 8 and 9 test
#   more
# - This is the function that decides, as it stands in the package

# %%
import inspect

from helpers.grading import compare_answers

print(inspect.getsource(compare_answers))

# %% [markdown]
# ### The five graders in one picture
#
# Green: as it should; the other two are different kinds of wrong.

# %%
from helpers.results import plots

graders = {
    "1 strings": grade_string, "2 box": grade_box,
    "3 spelling": grade_spelling, "4 numbers": grade_number,
    "5 package": grade_package,
}
counts = {}
for name, grader in graders.items():
    pairs = [(grader(r, g), should) for r, g, should in CASES]
    counts[name] = {
        "as it should": sum(says == should for says, should in pairs),
        "false accept": sum(says > should for says, should in pairs),
        "false reject": sum(says < should for says, should in pairs),
    }

# %% [markdown]
# Look at the two kinds of wrong: they do not shrink together.

# %%
figure = plots.plot_outcomes(
    counts,
    title="Five graders on the same cases",
    decoding="cases chosen by hand: no accuracy",
)
figure.axes[0].set_xlabel("cases")
plots.show(figure, (
    "Stacked bars, one a grader, from plain strings to the package: cases "
    "judged as they should, falsely accepted, falsely rejected. The "
    "numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure:

# %%
pd.DataFrame(counts).T

# %% [markdown]
# ## 3. Where is the answer?
#
# - Most arguments about grading are about **extraction**
# - The order in the package: what follows `</think>`; the last box; then
#   `####`; then "the answer is"
# - Boxes inside the thinking do not count
# - An empty or unclosed last box is *no answer*: nobody gets the benefit of
#   the doubt
# - Without any mark the last number counts, **labelled as a last resort**

# %%
TEXTS = [
    r"So \boxed{\frac{a+b}{2}} it is.",
    "8 + 49 = 57\n#### 57",
    "Hence the final answer is 57.",
    "I get 57 apples.",
    "I get 57 apples after 3 steps.",
    r"<think>\boxed{5}? No.</think> It is \boxed{57}.",
    r"<think>Let me check again, and again",
    r"It must be \boxed{5",
    "I do not know.",
]

# %% [markdown]
# `find_answer` gives the answer and how it was found.

# %%
from helpers.grading import find_answer

rows = [(text, *find_answer(text)) for text in TEXTS]
table = pd.DataFrame(rows, columns=["response", "answer", "how"])
table.fillna("none").set_index("response")

# %% [markdown]
# - Look at "after 3 steps": the last resort took the wrong number
# - A response that does not mark its answer is a gamble, whoever grades it
# - So a model that learns to mark its answer scores higher, without one
#   calculation more being right: remember this in notebook 05
#
# ## 4. Every verdict has a reason
#
# - `Grade` has three parts: `correct`, `extracted`, `reason`
# - A bare true or false cannot be argued with; a reason can

# %%
rows = []
for response, gold, _ in CASES:
    grade = grade_response(response, gold)
    rows.append((response, gold, grade.correct, grade.reason))
columns = ["response", "gold", "correct", "reason"]
pd.DataFrame(rows, columns=columns).set_index("response")

# %% [markdown]
# ### Every step of one verdict
#
# - When a verdict surprises you, ask how it came about
# - `explain_grade` lists what was tried, in order; the same run that
#   decides writes it down

# %%
from helpers.grading import explain_grade

steps = explain_grade(r"So it is \boxed{2\sqrt{3}}.", r"\sqrt{12}")
pd.DataFrame(steps).set_index("part")

# %% [markdown]
# - *none* and *no*: this step did not decide, so the next one was asked
# - The last line is the grade that everybody else sees
#
# ### The rules are written down
#
# - Reasonable people disagree about some classes: units, percent, order
# - The package decides them once and writes the decision down
# - Here are a few of its rules

# %%
from helpers.grading import GRADER_VERSION, POLICY

print("grader version", GRADER_VERSION)
for name in ("tolerance", "percent", "units", "order", "last resort"):
    print(f"- {name}: {POLICY[name]}")

# %% [markdown]
# ## 5. Two invariants
#
# - You cannot check a grader by reading it
# - Two tests need no judgement at all:
#   1. every gold answer, graded against itself, is right
#   2. one constant answer to all problems is wrong
# - The first finds false rejects, the second false accepts
# - A constant nobody would answer keeps the second one clean

# %%
from helpers.grading import grade_many
from helpers.problems import load_problems
from helpers.results import proportion

CONSTANT = r"The answer is \boxed{-123.456}."
rows = []
for bench in recipe.evaluate.benchmarks:
    golds = [p.answer for p in load_problems(bench.path, bench.n)]
    boxed = [rf"The answer is \boxed{{{gold}}}." for gold in golds]
    itself = sum(g.correct for g in grade_many(boxed, golds))
    fixed = grade_many([CONSTANT] * len(golds), golds)
    constant = sum(g.correct for g in fixed)
    rows.append((bench.name, bench.role, itself, constant, len(golds)))

# %% [markdown]
# Both counts, each with its interval.

# %%
table = pd.DataFrame([
    (name, role, proportion(itself, n), proportion(constant, n))
    for name, role, itself, constant, n in rows
], columns=["benchmark", "role", "gold against itself", "constant answer"])
table.set_index("benchmark")

# %% [markdown]
# A grader that breaks one of them is not used, whatever else it can.

# %%
perfect = all(i == n and c == 0 for _, _, i, c, n in rows)
print("both invariants hold on every benchmark:", perfect)

# %% [markdown]
# - Read the intervals: even a perfect count leaves a doubt, and the doubt
#   is larger on the small benchmark
# - An interval of this kind (Wilson) stands beside every score of the course
# - The role column says which published benchmark each one plays
#
# ### The same test on our own graders
#
# Which of the five pass on the main benchmark?

# %%
main = next(b for b in recipe.evaluate.benchmarks
            if b.name == recipe.evaluate.main)
golds = [p.answer for p in load_problems(main.path, main.n)]
for name, grader in graders.items():
    hits = sum(grader(rf"So \boxed{{{g}}}.", g) for g in golds)
    misses = sum(grader(CONSTANT, g) for g in golds)
    print(f"{name:<11} itself {proportion(hits, len(golds))}"
          f"   constant {proportion(misses, len(golds))}")

# %% [markdown]
# - Most of them pass, since these answers are plain whole numbers
# - **Invariants are necessary, not sufficient**: on fractions and roots the
#   same graders fail, as section 2 showed
#
# ## 6. The answer that never ends
#
# A model may write anything, also `\boxed{9^{9^{9}}}`. Algebra tries to
# compute it, and your run stands still. A clock is one way out: the library
# math-verify in a process of its own, which is killed after two seconds.

# %%
from tools import peers

tower = r"\boxed{9^{9^{9}}}"
(verdict,) = peers.run_peer("math-verify (boxed)", [(tower, "1")], 2.0)
print(verdict.outcome, f"after {verdict.seconds:.1f} s")

# %% [markdown]
# But a clock makes a verdict depend on the machine: what ends in time on an
# idle one does not on a busy one, and the reward of the same text changes.
# Our grader has no clock and no process; it **counts** digits, terms, levels
# and steps before it does the work.

# %%
import time

HEAVY = [tower, r"\boxed{\sum_{k=1}^{10^9} k}", r"\boxed{(10^9)!}"]
clock = time.perf_counter()
for response in HEAVY:
    print(grade_response(response, "1").reason)
print(f"after {time.perf_counter() - clock:.3f} s")

# %% [markdown]
# Each bound is far above what people write as an answer, and the reason says
# which one it was. What is below the bounds is computed exactly: sums,
# matrices, integrals of polynomials.

# %%
MATRIX = r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"
for answer, gold in [
    (r"\sum_{k=1}^{2000} k", "2001000"),
    (r"\int_0^3 78x\,dx", "351"),
    (MATRIX + "^2", r"\begin{pmatrix}7&10\\15&22\end{pmatrix}"),
]:
    print(grade_response(rf"\boxed{{{answer}}}", gold).correct, "|", answer)

# %% [markdown]
# ### Why not the library's own time limit?
#
# A clock gives the same answer another verdict when the machine is busy; a
# count does not. And the clock of the library math-verify is a signal, which
# works only in the main thread of a Unix process. Called from a thread, it
# raises an error:

# %%
from concurrent.futures import ThreadPoolExecutor

import math_verify

with ThreadPoolExecutor(1) as thread:
    parsed = thread.submit(math_verify.parse, r"\boxed{x+1}")
print(repr(parsed.exception())[:150], "…")

# %% [markdown]
# A careless `except` around it turns that error into "wrong", for every
# answer. The advice in the message, no limit at all, brings the hang back.
# Our grader from the same kind of thread:

# %%
with ThreadPoolExecutor(1) as thread:
    asked = thread.submit(grade_response, r"\boxed{1+x}", "x+1")
print(asked.result())

# %% [markdown]
# ## 7. Text from a model is untrusted
#
# - Many a parser of formulas runs `eval` somewhere inside
# - Then an answer is a program, and it runs with your rights
# - Here nothing is ever eval'ed; code is not mathematics, and is refused

# %%
HOSTILE = [
    r"\boxed{__import__('os').system('touch hacked')}",
    r"\boxed{().__class__.__bases__[0]}",
    r"\boxed{" + "(" * 5000 + "1" + ")" * 5000 + "}",
]
for response in HOSTILE:
    grade = grade_response(response, "1")
    print(grade.correct, "|", grade.reason)
print("file made:", os.path.exists("hacked"))

# %% [markdown]
# Whatever breaks the grader gets no reward, and no exception either. One bad
# response must not end a harvest of thousands.
#
# ## 8. Measured against other graders
#
# Many projects have a grader; they disagree with each other.
#
# | grader | what it does |
# |---|---|
# | last number | compares the last number of both texts |
# | math-verify (bare) | algebra on both texts as they are |
# | math-verify (boxed) | the same, with the gold written in a box |
# | TRL accuracy_reward | the reward function of the library TRL |
# | the same, gold between dollars | so that it can read a bare gold |
# | lm-eval minerva_math | from an evaluation harness; optional here |
#
# ### The suite
#
# The cases in `tests/grading_cases.jsonl`: a response, a gold answer, a
# label, and the rule that decides the label. Written for this grader, by
# kind, and hard on purpose; many pin down one rule of ours each.

# %%
from tools import peer_record
from helpers.grading import read_cases

suite = read_cases(peer_record.SUITE)
kinds = pd.Series([case.kind for case in suite], name="cases")
print(len(suite), "cases,", sum(c.label for c in suite), "to be accepted")
kinds.value_counts().head(10).to_frame()

# %% [markdown]
# Three of them, drawn by chance.

# %%
import random

draw = random.Random(SEED)
rows = [c.data for c in draw.sample(suite, 3)]
pd.DataFrame(rows)[["response", "gold", "label", "rule"]]

# %% [markdown]
# ### A small sample, live
#
# A few of the cases, without the kinds made to hang or to break in. Each
# grader runs in a process of its own, with a deadline.

# %%
RISKY = {"bomb", "injection", "malformed"}
calm = [case for case in suite if case.kind not in RISKY]
sample = draw.sample(calm, 60)
pairs = [(case.response, case.gold) for case in sample]
print("can run here:", ", ".join(peer_record.list_graders()))

# %% [markdown]
# The verdicts become letters: 1 accepted, 0 refused, t past the deadline.

# %%
live = {}
for name in peer_record.list_graders():
    found = peers.run_peer(name, pairs, deadline_s=5.0)
    letters = map(peer_record.name_letter, found)
    live[name] = {c.id: x for c, x in zip(sample, letters, strict=True)}

# %% [markdown]
# Two of the small graders from section 2 take part.

# %%
for name in ("3 spelling", "4 numbers"):
    says = graders[name]
    live[name] = {c.id: "01"[says(*p)] for c, p in zip(sample, pairs)}

# %% [markdown]
# False accepts are counted among the answers that are wrong, false rejects
# among those that are right. A case past the deadline, or one that a grader
# declines, counts as refused.

# %%
COLUMNS = ["grader", "agrees with the label", "false accepts",
           "false rejects", "too slow", "crashed"]


def tabulate_scores(verdicts):
    """One line a grader: shares with intervals, then counts."""
    rows = []
    for name, letters in verdicts.items():
        s = peer_record.score_grader(suite, letters)
        rows.append((name, s.right, s.false_accepts, s.false_rejects,
                     s.hangs, s.errors))
    return pd.DataFrame(rows, columns=COLUMNS).set_index("grader")


tabulate_scores(live)

# %% [markdown]
# Read the intervals first: with so few cases they are wide. Where two of them
# overlap much, this sample cannot rank the graders.
#
# ### The whole suite, recorded
#
# - All cases take a long time, since several graders wait for each bomb
# - So this was run once and kept: `python -m tools.peer_record` makes it
#   again
# - A test fails when the record is not of this suite and this grader

# %%
record = peer_record.load_record()
note = plots.recorded_on(record.manifest)
print(note, "· grader", record.manifest["grader"])
print(record.manifest.get("carried_over", ""))
print("deadline:", record.manifest["deadline_s"], "s an answer")
versions = pd.DataFrame(record.manifest["graders"]).T
versions.dropna(how="all").fillna("")

# %% [markdown]
# The two kinds of wrong, for each grader.

# %%
scores = {
    name: peer_record.score_grader(suite, letters)
    for name, letters in record.verdicts.items()
}
outcomes = {  # a dollar would start a formula in the figure
    name.replace("$", r"\$"): {
        "as the label says": s.right.k,
        "false accept": s.false_accepts.k,
        "false reject": s.false_rejects.k,
    }
    for name, s in scores.items()
}

# %% [markdown]
# Who errs by refusing, and who by accepting?

# %%
judged = len(record.verdicts[peers.OURS])
figure = plots.plot_outcomes(
    outcomes, note=note,
    title="Graders on our labelled suite",
    decoding=f"{judged} cases, hard on purpose; not real responses",
)
figure.axes[0].set_xlabel("cases")
plots.show(figure, (
    "Stacked bars, one a grader: cases judged as their label says, falsely "
    "accepted, falsely rejected. The numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure, as shares with intervals:

# %%
tabulate_scores(record.verdicts)

# %% [markdown]
# Some libraries stand in two lines: **how** a grader is called can matter as
# much as which one it is.
#
# ### Ours against the best of the others
#
# Both judged the same cases, so the test is **paired**: what counts are the
# cases that only one of them judged as the label says.

# %%
right = {
    name: peer_record.list_right(suite, letters)
    for name, letters in record.verdicts.items()
}
others = [name for name in right if name != peers.OURS]
best = max(others, key=lambda name: sum(right[name].values()))
print("the best of the others:", best)

# %% [markdown]
# The four counts as tiles.

# %%
from helpers.results import compare, format_p

paired = compare(right[best], right[peers.OURS])
figure = plots.plot_paired(
    paired.both, paired.only_before, paired.only_after, paired.neither,
    before="peer", after="ours", note=f"peer: {best} · {note}",
    title=f"The same {paired.n} cases, two graders",
)
plots.show(figure, (
    "Four tiles: cases that both judge as the label says, that only the "
    "peer does, that only ours does, that neither does. The numbers are in "
    "the table below."
))

# %% [markdown]
# The numbers of the figure, and the exact McNemar test:

# %%
print("difference:", paired.difference)
print("exact McNemar", format_p(paired.p_value))
pd.DataFrame(
    [[paired.both, paired.only_before],
     [paired.only_after, paired.neither]],
    index=["peer right", "peer wrong"],
    columns=["ours right", "ours wrong"],
)

# %% [markdown]
# ### Where the best of the others differs
#
# By kind, those with the most differences first.

# %%
missed = [c for c in suite if right[best].get(c.id) is False]
wrongs = ["false reject" if c.label else "false accept" for c in missed]
table = pd.DataFrame({"kind": [c.kind for c in missed], "wrong": wrongs})
by_kind = table.value_counts().unstack(fill_value=0)
by_kind["cases"] = kinds.value_counts()
order = by_kind.drop(columns="cases").sum(axis=1).sort_values()
by_kind.loc[order.index[:-9:-1]]

# %% [markdown]
# Some of each kind of error, drawn by chance.

# %%
rows = []
for label, wrong in ((False, "false accept"), (True, "false reject")):
    some = [case for case in missed if case.label == label]
    for case in draw.sample(some, min(4, len(some))):
        rows.append((wrong, case.response[:90], case.gold[:60],
                     case.data["rule"]))
columns = ["the peer's error", "response", "gold", "our rule"]
pd.DataFrame(rows, columns=columns).set_index("the peer's error")

# %% [markdown]
# ### Read this table with care
#
# - **We wrote the suite, and mended our grader until it passed.** Its own
#   line is a promise kept, not an estimate
# - Some labels are decisions (units, percent, order): there, a peer may
#   differ on purpose
# - Cases are chosen, not sampled: the intervals and p say how much the
#   *number* of cases can carry, not how the graders do on your responses
# - Plain responses are another matter: section 9 lets a peer grade some
#
# ### The same from a shell, for any file
#
# One JSON object a line, with `response` and `gold`; with `label` and `kind`
# the grader itself is measured.
#
# ```bash
# mathslm grade FILE.jsonl
# mathslm grade FILE.jsonl --explain ID
# ```

# %%
import json

from helpers.base import REPO_ROOT, write_text

path = run.file("notebooks", "grading_sample.jsonl").resolve()
write_text(path, "".join(json.dumps(c.data) + "\n" for c in sample))

# %% [markdown]
# The live sample again, now from its file.

# %%
command = [sys.executable, "-m", "helpers", "grade", str(path)]
done = subprocess.run(
    command, cwd=REPO_ROOT, capture_output=True, encoding="utf-8"
)
print(done.stdout or done.stderr)

# %% [markdown]
# ## 9. Real responses of the base model
#
# - Until here we made up the responses; now the base model writes them
# - A slice of the dev problems, each greedily and once by sampling
# - First look at the number, then at what the failures are

# %%
model, tokenizer = session.load("base")
engine = session.make_engine(model, tokenizer)
asked = load_problems(recipe.data.dev)[:120]
gold = {p.id: p.answer for p in asked}
print(len(asked), "dev problems")

# %% [markdown]
# One response to each problem, in two ways of decoding.

# %%
from tqdm.auto import tqdm

from helpers.base import Completion
from helpers.sampling import grade_texts, make_requests


@session.recorded("01 {name}", rows=Completion)
def ask_and_grade(name, temperature):
    """One graded response to each problem, under a progress bar."""
    requests = make_requests(
        asked, tokenizer, recipe.data.prompt_template, n=1,
        run_seed=recipe.seed, temperature=temperature, top_p=1.0,
        max_new_tokens=recipe.sampling.max_new_tokens,
    )
    texts = list(tqdm(engine.sample(requests), total=len(asked), desc=name))
    return grade_texts(texts, gold)


WAYS = {"greedy": 0.0, "temperature 1": 1.0}
results = {way: ask_and_grade(way, t) for way, t in WAYS.items()}

# %% [markdown]
# The scores, before any look at the reasons.

# %%
from IPython.display import Markdown, display

lines = []
for way, rows in results.items():
    score = proportion(sum(r.correct for r in rows), len(rows))
    lines.append(f"- base, {way}: {score}")
display(Markdown("\n".join(lines)))

# %% [markdown]
# ### What kind of wrong?
#
# - *No answer*: nothing to grade
# - *Cut off*: the response hit the cap before it came to an end
# - *Other answer*: it finished, and it was wrong
# - The three ask for different cures: format, length, arithmetic

# %%
def name_outcome(row):
    """Sort one graded response into four drawers."""
    if row.correct:
        return "right"
    if row.finish_reason == "length":
        return "cut off"
    return "other answer" if row.extracted else "no answer"


kinds = ("right", "other answer", "cut off", "no answer")
outcomes = {
    way: {k: sum(name_outcome(r) == k for r in rows) for k in kinds}
    for way, rows in results.items()
}

# %% [markdown]
# The same responses, sorted by what went wrong.

# %%
figure = plots.plot_outcomes(
    outcomes,
    title="Base model: right, and how the rest went wrong",
    note=session.note(),
    decoding=f"{len(asked)} dev problems, max_new_tokens "
    f"{recipe.sampling.max_new_tokens}",
)
plots.show(figure, (
    "Two stacked bars, greedy and temperature 1: responses that are right, "
    "finished with another answer, cut off, or without an answer. The "
    "numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure:

# %%
pd.DataFrame(outcomes).T

# %% [markdown]
# ### Marked or guessed?
#
# How was each answer found, and how often is it then right? The last resort
# is where a right calculation can get lost.

# %%
found = pd.DataFrame([
    (way, find_answer(row.response).how, row.correct)
    for way, rows in results.items()
    for row in rows
], columns=["sampling", "answer found by", "right"])
groups = found.groupby(["sampling", "answer found by"])["right"]
score = groups.agg(lambda hit: str(proportion(int(sum(hit)), len(hit))))
score.to_frame()

# %% [markdown]
# ### Would another grader have said the same?
#
# math-verify, called as it works best, on the same responses.

# %%
answered = [row for rows in results.values() for row in rows]
said = peers.run_peer(
    "math-verify (boxed)", [(r.response, r.gold) for r in answered]
)
same = [v.correct == r.correct for v, r in zip(said, answered)]
print("the same verdict:", proportion(sum(same), len(same)))

# %% [markdown]
# Where they differ, if anywhere, read the response: who is right?

# %%
differing = [r for r, agree in zip(answered, same) if not agree]
rows = [(r.response[-120:], r.gold, r.correct, r.reason)
        for r in differing[:5]]
columns = ["end of the response", "gold", "ours says", "because"]
pd.DataFrame(rows, columns=columns).set_index("gold")

# %% [markdown]
# ### Failures, in full
#
# A score hides what happened; always read some responses. One of each kind
# that occurred.

# %%
shown = set()
for row in results["temperature 1"]:
    kind = name_outcome(row)
    if kind == "right" or kind in shown:
        continue
    shown.add(kind)
    print(f"--- {kind}: {row.reason}; gold {row.gold}")
    print(row.response, end="\n\n")

# %% [markdown]
# ## 10. Why a false accept costs more
#
# - A **false reject** throws a good sample away; the next one is as good
# - A **false accept** puts a wrong text into the training data, with our
#   stamp on it
# - As a reward it is worse: the model finds the hole and digs
# - Suppose a grader errs equally often in both directions; what does the
#   harvest look like?

# %%
warm = results["temperature 1"]
solve = sum(row.correct for row in warm) / len(warm)
rows = []
for error in (0.01, 0.05, 0.10):
    kept = solve * (1 - error) + (1 - solve) * error
    rows.append((f"{error:.0%}", f"{error:.0%} of the right samples",
                 f"{(1 - solve) * error / kept:.1%} of the training rows"))
columns = ["errs in", "false rejects lose", "false accepts spoil"]
pd.DataFrame(rows, columns=columns).set_index("errs in")

# %% [markdown]
# - What is lost can be sampled again; what is spoilt stays
# - The weaker the model, the larger the spoilt share: wrong samples are
#   many, so a small error on them is a large number
# - So: **in doubt, refuse**
#
# ## 11. The honest caveat
#
# - A right final number does not prove a right solution: two errors can
#   cancel
# - A refused answer is not always wrong: look at the last resort
# - The grader is part of the measurement; when it changes, old scores do not
#   compare, so its version goes into the record

# %%
session.show_cost()

# %% [markdown]
# ## Exercises
#
# 1. **Basic.** Add three cases to `CASES` that you think are hard. Which of
#    the five graders fail on them? Does the package agree with you, and if
#    not, which line of `POLICY` decided?
# 2. **Stretch.** Write a sixth grader that passes all cases without calling
#    the package. Then run the invariants of section 5 and the live sample
#    of section 8 on it: where does it stand, and how wide is its interval?
# 3. **Open.** How large is the false-reject rate on *real* responses? Design
#    a check that needs you to read as few responses as possible, do it, and
#    give the rate with its interval.
#
# ## Recap
#
# - **gold**: the reference answer
# - **extraction**: finding the answer in the response
# - **false accept / false reject**: wrong called right / right called wrong
# - **last resort**: the last number, when nothing is marked
# - **invariant**: what must hold for every input, whatever the grader does
# - **bounded work**: what is too large is counted and refused, not timed
# - **labelled suite**: cases whose verdict is known, with the rule behind it
# - **paired test**: two graders on the same cases; only the cases on which
#   they differ count
#
# **Handed on:** no file, but the one function that all later notebooks use:
# `helpers.grading.grade_many`.
#
# **Next:** [02 · Self-distillation](02_self_distillation.ipynb) – the model
# writes its own training data, and the grader chooses.
