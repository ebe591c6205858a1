# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · Evaluation: is the gain real?
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/math-slm-lab/math-slm-lab/blob/main/notebooks/05_evaluation.ipynb)
#
# **After this notebook you can**
#
# - score models on four test sets and print each score with its interval
# - compare two models on the same problems, paired, with an exact test
# - tell a wrong answer from a cut one and from a missing one
# - say from stored responses what another token cap would have given
# - tell what one sample shows from what several could show
# - say what a published table of percentages can carry and what it cannot
# - compute how many problems a claimed effect would need
#
# **You need**
#
# - the merged models of notebooks 03 and 04; what is missing is taken from a
#   recorded run or made, and the setup cell says which
# - a CPU on tier `pocket`; the recipes of the other tiers name their cards
# - the time and memory that this notebook took are printed below, measured

# %% tags=["parameters"]
TIER: str = "pocket"
RUN_DIR: str = "runs/pocket"
RUN_MODE: str = "auto"  # "auto", "run" or "replay"
SEED: int = 42
OVERRIDES: list = []

# %% [markdown]
# - Setup, the same in every notebook: find the package, open the session
# - This notebook evaluates four models: base, SFT, SFT + DPO, and SFT + DPO
#   with the published settings

# %%
import importlib.util
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("helpers") is None:
    if "google.colab" in sys.modules and not Path("lab").exists():
        url = "https://github.com/math-slm-lab/math-slm-lab"
        subprocess.run(["git", "clone", "-q", url, "lab"], check=True)
        pip = [sys.executable, "-m", "pip", "install", "-q", "-e", "lab"]
        subprocess.run(pip, check=True)
    sys.path.insert(0, "lab" if Path("lab").exists() else "..")

from helpers.session import start

TAGS = ("base", "sft", "dpo", "dpo-published")
session = start(
    TIER, RUN_DIR, RUN_MODE, SEED, OVERRIDES,
    needs=["distill", *(f"merge/{tag}" for tag in TAGS[1:])],
    makes=[*(f"evaluate/{tag}" for tag in TAGS),
           "evaluate-t1/base", "evaluate-t1/sft"],
)
recipe, run = session.recipe, session.run

# %% [markdown]
# - How long it takes: read from this run folder, where the course runner
#   writes the seconds of each notebook

# %%
import time
import pandas as pd
from IPython.display import Markdown, display
from helpers.base import read_json

started = time.perf_counter()
pd.set_option("display.max_colwidth", None)
timed = run.file("notebooks", "timings.json")
times = read_json(timed) if timed.is_file() else {}
last = times.get("05_evaluation", "not timed yet")
print("seconds of the last run:", last)

# %% [markdown]
# ## 1. Four benchmarks, four questions
#
# | set | the question it asks |
# |---|---|
# | easy | did training break what worked? |
# | main | did it help where it was meant to? |
# | hard | what can so few problems say at all? |
# | shifted | does it hold for wordings that were never trained? |
#
# - Each plays the part of a published benchmark

# %% [markdown]
# - No problem of them is in the training set; a test of this repository
#   compares the texts, not only the ids

# %%
from helpers.problems import load_problems

benchmarks = recipe.evaluate.benchmarks
problems = {b.name: load_problems(b.path, b.n) for b in benchmarks}
pd.DataFrame(
    [(b.name, b.role, len(problems[b.name]),
      problems[b.name][0].problem) for b in benchmarks],
    columns=["set", "plays the part of", "problems", "the first one"],
).set_index("set")

# %% [markdown]
# - **Before** looking we say what counts: base against SFT on the main set
# - All else is worth a look, but pays for being one of many looks
#   (section 6)

# %%
MAIN = recipe.evaluate.main
print("decided beforehand: base → sft on", MAIN)

# %% [markdown]
# ## 2. Evaluate
#
# - A score without its decoding settings is half a score
# - Greedy: no dice, so a difference between two models is theirs

# %% [markdown]
# - The cap is part of the benchmark: what is not finished by then is cut
# - A cut response is graded like any other: without a marked answer its last
#   number counts (the last resort of notebook 01), and that happens to be
#   right now and then

# %%
settings = recipe.evaluate
how = "greedy"
if settings.temperature > 0:
    how = f"temperature {settings.temperature}"
decoding = f"{how}, max_new_tokens {settings.max_new_tokens}"
print(decoding)

# %% [markdown]
# - The long cell: every model answers every problem, one graded line each
# - Killed on the way, it goes on with the problems that lack a line

# %%
from helpers.results import load_results
from helpers.stages import run_evaluate

metrics = {
    tag: session.recall(f"evaluate/{tag}", lambda tag=tag: run_evaluate(
        recipe, run, (tag,))[tag])
    for tag in TAGS
}
where = session.provenance(*(f"evaluate/{tag}" for tag in TAGS))
note = None if where == "live" else where
print(where)

# %% [markdown]
# - Read the lines back: `results[model][set]` is a list of responses, in
#   the order of the problems

# %%
results = {
    tag: {b.name: load_results(run, tag, b.name) for b in benchmarks}
    for tag in TAGS
}
row = results["base"][MAIN][0]
print(row.problem_id, "|", row.finish_reason, "|", row.tokens, "tokens |",
      "right" if row.correct else f"wrong: {row.reason}")

# %% [markdown]
# ## 3. The grid
#
# - Each cell is a share of problems, so it has an interval
# - **Wilson interval**: the range of true shares that fit the count

# %% [markdown]
# - Two models on the *same* set: do not look for overlapping bars, there is
#   a sharper tool (section 5)

# %%
from helpers.results import plots
from helpers.results import proportion

scores = {
    tag: {name: proportion(x["k"], x["n"]) for name, x in sets.items()}
    for tag, sets in metrics.items()
}
figure = plots.plot_accuracy_grid(scores, decoding=decoding, note=note)
plots.show(figure, (
    "Grouped bars with 95 % error bars: accuracy of the four models on "
    "the four sets. Each value is in the table below."
))

# %% [markdown]
# The numbers of the figure:

# %%
pd.DataFrame({
    tag: {name: str(score) for name, score in row.items()}
    for tag, row in scores.items()
}).rename_axis("set")

# %% [markdown]
# - Read the *width* before the height: it is what the set can resolve

# %% [markdown]
# ## 4. How the rest went wrong
#
# - **finished, wrong**: a complete answer, and a wrong one: arithmetic or
#   understanding
# - **cut at the cap**: no time to finish, and wrong: length
# - **no answer**: finished, but nothing that the grader could read: form

# %% [markdown]
# - The three call for different remedies; one percentage hides them

# %%
NAMES = {"k": "right", "finished_wrong": "finished, wrong",
         "truncated_wrong": "cut at the cap", "no_answer": "no answer"}


def count_kinds(found):
    """The four counts of one model on one set, in words."""
    return {word: found[key] for key, word in NAMES.items()}


# %% [markdown]
# - The main set, one bar a model

# %%
figure = plots.plot_outcomes(
    {tag: count_kinds(metrics[tag][MAIN]) for tag in TAGS},
    title=f"Right and wrong on {MAIN}", decoding=decoding, note=note,
)
plots.show(figure, (
    "Stacked bars, one a model: right, finished but wrong, cut at the cap, "
    "no answer. The numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure, and of the other sets:

# %%
pd.DataFrame({
    (name, tag): count_kinds(metrics[tag][name])
    for name in problems for tag in TAGS
}).T.rename_axis(["set", "model"])

# %% [markdown]
# - Which of the wrong kinds shrank from base to SFT?
# - What shrank from SFT to DPO?

# %% [markdown]
# - Cut is not always wrong: cut responses whose last number happened to be
#   right stand among the *right* above

# %%
cut = {
    (name, tag): [r.correct for r in results[tag][name]
                  if r.finish_reason == "length"]
    for name in problems for tag in TAGS
}
pd.DataFrame({
    key: {"cut, right": sum(hits), "cut, wrong": len(hits) - sum(hits)}
    for key, hits in cut.items()
}).T.rename_axis(["set", "model"])

# %% [markdown]
# ## 5. The same problems, two models
#
# - Both models met the same problems: so compare problem by problem
# - A problem that both solve, or neither, says nothing about which is better

# %% [markdown]
# - **won**: only the later model solves it; **lost**: only the earlier one

# %%
from helpers.results import compare


def compare_on(name, before, after):
    """Paired comparison of two models on one set."""
    old, new = (
        {r.problem_id: r.correct for r in results[tag][name]}
        for tag in (before, after)
    )
    return compare(old, new)


first = compare_on(MAIN, "base", "sft")

# %% [markdown]
# - The question that was decided beforehand

# %%
figure = plots.plot_paired(
    first.both, first.only_before, first.only_after, first.neither,
    before="base", after="sft", note=note,
    title=f"{MAIN}, {decoding}",
)
plots.show(figure, (
    "Four tiles: problems both models solve, problems lost, problems won, "
    "problems neither solves. The numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure:

# %%
pd.DataFrame(
    [[first.both, first.only_before], [first.only_after, first.neither]],
    index=["base right", "base wrong"],
    columns=["sft right", "sft wrong"],
)

# %% [markdown]
# - If the two models were equally good, a flip would be won or lost like the
#   toss of a coin
# - The exact McNemar test asks how likely a split at least this uneven is

# %%
display(Markdown(first.sentence("base", "sft", MAIN)))

# %% [markdown]
# ### A failing case, on purpose
#
# - Paired means: the *same* problems

# %% [markdown]
# - Two result files of different sets look alike; mixing them up gives a
#   number all the same, unless something looks at the ids

# %%
from helpers.base import LabError

other = next((name for name in problems if name != MAIN), MAIN)
skip = int(other == MAIN)  # one set only: leave a problem out
try:
    compare(
        {r.problem_id: r.correct for r in results["base"][MAIN]},
        {r.problem_id: r.correct for r in results["sft"][other][skip:]},
    )
except LabError as error:
    print(error)

# %% [markdown]
# - Each model has a folder of its own, so that no result can overwrite
#   another's

# %% [markdown]
# ### All comparisons
#
# - Three steps: base to SFT, SFT to DPO, SFT to DPO with the published
#   settings; on four sets

# %%
STEPS = (("base", "sft"), ("sft", "dpo"), ("sft", "dpo-published"))
pairs = {
    (f"{before} → {after}", name): compare_on(name, before, after)
    for before, after in STEPS for name in problems
}

# %% [markdown]
# - Won, lost, the change with its interval, and the exact p

# %%
from helpers.results import format_p

table = pd.DataFrame({
    key: {"won": c.only_after, "lost": c.only_before,
          "change": str(c.difference), "exact": format_p(c.p_value),
          "verdict": c.verdict}
    for key, c in pairs.items()
}).T.rename_axis(["step", "set"])
table

# %% [markdown]
# - *helps* or *hurts* only when interval and test agree; else *undecided*
# - *Undecided* is not *no effect*: the interval shows what is still possible

# %% [markdown]
# - An equal score alone does not say equal answers: look at won **and** lost
# - With the published settings of DPO:

# %%
for name in problems:
    c = pairs["sft → dpo-published", name]
    moved = c.only_after + c.only_before
    print(f"{name}: score {c.before.k} → {c.after.k},",
          f"{c.only_after} won, {c.only_before} lost:",
          "other problems are right" if moved
          else "exactly the same problems are right")

# %% [markdown]
# - Nothing won and nothing lost: there an equal score really is equal
#   answers, right and wrong on the same problems
# - Twelve won and twelve lost would look the same in a table of scores

# %% [markdown]
# ### One number over all sets?
#
# - A mean over sets weighs the few hard problems like the many main ones
# - It hides where a change happened; but it is often quoted, so here it is
# - The interval is a **paired bootstrap**: draw the problems of each set
#   again, with both models' results on each, and look how the mean moves
# - The p comes from exchanging the two models' results, problem by problem

# %%
from helpers.results import macro_compare

lines = []
for before, after in STEPS:
    step = f"{before} → {after}"
    mean = macro_compare([pairs[step, name] for name in problems])
    lines.append("- " + mean.sentence(before, after))
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## 6. Many looks
#
# - Twenty tests of nothing give about one *p below 0.05*

# %% [markdown]
# - **Holm's method** raises the p values so that the chance of *any* false
#   alarm stays at 5 %
# - The comparison named beforehand stands on its own; all others pay

# %%
from helpers.results import holm

named = ("base → sft", MAIN)
rest = {key: c for key, c in pairs.items() if key != named}
adjusted = holm([c.p_value for c in rest.values()])
table = pd.DataFrame({
    key: {"alone": format_p(c.p_value), "among all": format_p(p)}
    for (key, c), p in zip(rest.items(), adjusted, strict=True)
}).T.rename_axis(["step", "set"])
table

# %% [markdown]
# - What was below 0.05 alone and is not any more was a look too many

# %% [markdown]
# ### The best of many checkpoints
#
# - Scoring many checkpoints on the test set and reporting the best one is
#   also a look too many, only a hidden one
# - A published case: 21 checkpoints, two small contest sets, and the best
#   scores in the headline

# %%
from helpers.results import load_published
from helpers.results import say_selection

rs = load_published("open-rs")
tried = len(rs.table("checkpoints").rows)
for name, model in (("AIME24", "Open-RS3"), ("AMC23", "Open-RS2")):
    top, start_at = rs.grid()[model][name], rs.grid()["base"][name]
    told = say_selection(
        tried, proportion(top.k, top.n), start_at.percent / 100)
    display(Markdown(f"- {name}: {told}"))
display(Markdown(f"*{rs.credit}*"))

# %% [markdown]
# - The cure costs nothing: choose the checkpoint on a dev set, open the test
#   set once

# %% [markdown]
# ## 7. Look at flips
#
# - A test counts flips; only reading shows what flipped
# - Chosen by a rule: on the main set from base to SFT, the first two that
#   were won and the first that was lost

# %%
texts = {p.id: p for p in problems[MAIN]}
both = list(zip(
    results["base"][MAIN], results["sft"][MAIN], strict=True))
won = [x for x in both if x[1].correct and not x[0].correct]
lost = [x for x in both if x[0].correct and not x[1].correct]

# %% [markdown]
# - Problem, gold, and both answers with the grader's reason

# %%
for title, pair in [("won", x) for x in won[:2]] + [
        ("lost", x) for x in lost[:1]]:
    problem = texts[pair[0].problem_id]
    print(f"=== {title}: {problem.problem}\ngold: {problem.answer}")
    for tag, row in zip(("base", "sft"), pair, strict=True):
        print(f"--- {tag}: {row.reason}, {row.finish_reason}")
        print(row.response)
    print()

# %% [markdown]
# - Style or arithmetic? Three texts are no count; so count the styles

# %% [markdown]
# ### In which style do they answer?
#
# - A style shows in its opening words, as in notebook 02 (tier `pocket`)

# %%
OPENINGS = {
    "Step": "steps", "First,": "prose", "Okay,": "rambling",
    "Let us see": "unmarked", "\\boxed": "bare",
}


def name_style(text):
    """The style of a response, from its opening."""
    for opening, style in OPENINGS.items():
        if text.startswith(opening):
            return style
    if text[:1].isdigit() or text[:1] in "(-":
        return "one line"
    return "hashes" if "####" in text else "other"


# %% [markdown]
# - In each cell: the share of all answers, then right of total in this style

# %%
STYLES = ["one line", *OPENINGS.values(), "hashes", "other"]
styles = {
    tag: {style: [r.correct for r in results[tag][MAIN]
                  if name_style(r.response) == style] for style in STYLES}
    for tag in TAGS[:3]
}
pd.DataFrame({
    tag: {style: f"{len(x) / len(results[tag][MAIN]):.0%}, "
                 f"{sum(x)}/{len(x)} right" if x else "never"
          for style, x in found.items()}
    for tag, found in styles.items()
}).rename_axis(f"style on {MAIN}")

# %% [markdown]
# - The first row is the story; here it is alone, with its interval

# %%
for tag, found in styles.items():
    print(f"{tag}, answers in one line:",
          proportion(len(found["one line"]), len(results[tag][MAIN])))

# %% [markdown]
# - Read *down* a column: how a model answers; read *along* a row: how often
#   that style is right
# - Along a row the problems differ, since each model chooses its style anew:
#   a hint about the arithmetic inside a style, and no test of it

# %% [markdown]
# ## 8. Lengths before and after
#
# - Two forces pull on the length of what was kept
# - What was cut is never kept, right or not: that favours *short* answers
# - Who writes out the steps errs less: that favours *long* ones

# %% [markdown]
# - Which one won, and does it touch the cap?

# %%
lengths = {tag: [r.tokens for r in results[tag][MAIN]]
           for tag in TAGS[:3]}
figure = plots.plot_length_histogram(
    lengths, cap=settings.max_new_tokens,
    title=f"Length of the responses on {MAIN}", subtitle=decoding,
    note=note,
)
plots.show(figure, (
    "Outlined histograms of token counts for base, SFT and DPO, with a "
    "line at the cap. Quartiles are in the table below."
))

# %% [markdown]
# The numbers of the figure:

# %%
import numpy as np

cuts = ["lower quarter", "median", "upper quarter", "longest"]
pd.DataFrame({
    tag: np.percentile(values, [25, 50, 75, 100]).round().astype(int)
    for tag, values in lengths.items()
}, index=cuts)

# %% [markdown]
# - Is the change only a matter of the cap? Score the problems that **both**
#   models finished

# %%
finished = [x for x in both
            if all(r.finish_reason == "stop" for r in x)]
print(f"finished by both: {len(finished)} of {len(both)}")
if finished:
    c = compare([x[0].correct for x in finished],
                [x[1].correct for x in finished])
    display(Markdown(c.sentence("base", "sft", "these")))

# %% [markdown]
# - A selected part, so a hint and no result: which problems are in it
#   depends on the models

# %% [markdown]
# ### Any smaller cap, for nothing
#
# - A greedy response under a smaller cap is the *beginning* of the one under
#   a larger cap
# - So cut what is stored, grade it again, and have the score at every cap:
#   no model is asked

# %%
from helpers.results import measure_caps, split_change

curves = {
    tag: measure_caps(run, tag, MAIN, session.tokenizer)
    for tag in TAGS[:3]
}
figure = plots.plot_caps(
    curves, title=f"Accuracy on {MAIN} against the cap",
    subtitle=f"{how}, cut after sampling and graded again", note=note,
)
plots.show(figure, (
    "Stacked bars over the token cap, one panel a model: right, finished "
    "but wrong, cut, no answer. The numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure: right, and in brackets what was cut and wrong

# %%
pd.DataFrame({
    tag: {p.cap: f"{p.score} ({p.truncated_wrong} cut)" for p in points}
    for tag, points in curves.items()
}).rename_axis("cap")

# %% [markdown]
# - At which cap does a curve stop rising? Above it tokens buy nothing
# - Do the curves of two models *cross*? Then "which is better" depends on
#   the cap, and a table of scores must say it

# %% [markdown]
# - A cut response may be right by luck: its last number counts. So a curve
#   may even fall a little where the cap grows

# %% [markdown]
# ### Is a drop only truncation?
#
# - A published model lost points on an easy set; were its answers worse, or
#   only longer than the cap?
# - Stored results settle it: count the lost problems that were cut, and ask
#   what the change would be had **all** cut responses been right

# %%
lines = []
for name in problems:
    for before, after in STEPS[:2]:
        split = split_change(results[before][name], results[after][name])
        lines.append("- " + split.sentence(before, after, name))
display(Markdown("\n".join(lines)))

# %% [markdown]
# - That is a bound, so it can clear the cap of suspicion for good
# - It cannot convict it: for that, evaluate with a larger cap (exercise 2)

# %% [markdown]
# ## 9. Several samples
#
# - Greedy shows one answer; self-distillation drew several and kept the
#   right ones
# - So what the base model can reach with several samples is what it could
#   learn from: **pass@k**, the chance that one of k samples is right

# %% [markdown]
# - The samples that were harvested are still there, on the training
#   problems: nothing is drawn again

# %%
from helpers.stages import load_training
from helpers.base import group_samples
from helpers.base import Completion, read_records
from helpers.results import pass_curve

drawn = read_records(run.file("samples", "distill.jsonl"), Completion)
asked = {row.problem_id for row in drawn}
train = [p for p in load_training(recipe) if p.id in asked]
harvest = pass_curve(group_samples(drawn, train))
print("harvested from:", recipe.sampled_model)
for k, found in harvest.items():
    print(f"pass@{k}: {found}")

# %% [markdown]
# - Training problems cannot show what SFT learned: it has seen their answers
# - So base and SFT answer the main set several times, at temperature 1
# - Each sample has a seed of its own, and a line of its own in the folder;
#   the greedy results lie beside it, untouched

# %%
N = recipe.course.samples
reached = {
    tag: session.recall(f"evaluate-t1/{tag}", lambda tag=tag: run_evaluate(
        recipe, run, (tag,), benchmarks=[MAIN], n=N, temperature=1.0)[tag])
    for tag in ("base", "sft")
}

# %%
from helpers.results import load_samples

samples = {
    tag: load_samples(run, tag, MAIN, n=N, temperature=1.0)
    for tag in reached
}
reach = {tag: pass_curve(found) for tag, found in samples.items()}
figure = plots.plot_pass_at_k(
    reach, title=f"What k samples can reach on {MAIN}",
    subtitle=f"temperature 1, {N} samples each", note=note,
)
plots.show(figure, (
    "Two lines over k, pass@k of base and of SFT, with 95 % bands. The "
    "numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure:

# %%
pd.DataFrame({
    tag: {f"pass@{k}": str(found) for k, found in curve.items()}
    for tag, curve in reach.items()
}).rename_axis(f"on {MAIN}")

# %% [markdown]
# - The intervals are over *problems*: samples of one problem are alike, and
#   counting them as independent would make every interval too narrow

# %% [markdown]
# - Read it slantwise: from pass@1 of base up to pass@k of base is the room
#   that self-distillation had; pass@1 of SFT says how far it came

# %%
base, sft = reach["base"], reach["sft"]
print(f"pass@1 of base: {base[1]}\npass@{N} of base: {base[N]}\n"
      f"pass@1 of sft:  {sft[1]}\npass@{N} of sft:  {sft[N]}")
print("the lines", "draw together" if sft[N].value - sft[1].value
      < base[N].value - base[1].value else "stay apart")

# %% [markdown]
# - Where pass@1 rises more than pass@k, SFT made the model *surer* of what
#   it could already find, rather than able to find more
# - pass@k is a guide to the room and no wall: what k samples never held may
#   still be learned from problems that resemble it

# %% [markdown]
# ### Choosing among samples
#
# - pass@k needs somebody who knows the right answer; at the exam nobody does
# - **Majority vote**: take the answer that most samples give; equivalent
#   spellings count as one
# - **Best of n**: take the sample that the model itself found most probable,
#   by the mean log-probability of its tokens

# %%
from helpers.results import summarize_samples

rows = {}
for tag, found in samples.items():
    row = summarize_samples(found, N)
    greedy, n = metrics[tag][MAIN], row["problems"]
    best = row["best_of"]
    rows[tag] = {
        "greedy": str(proportion(greedy["k"], greedy["n"])),
        "majority vote": str(proportion(row["majority"], n)),
        "best of n": "–" if best is None else str(proportion(best, n)),
    }
pd.DataFrame(rows).rename_axis(f"on {MAIN}, {N} samples")

# %% [markdown]
# - A perfect chooser would get pass@k: compare the two with it
# - A vote wins where the right answer is the most common one, not where it
#   is merely among the samples; with few samples many votes are ties, and
#   the first answer wins them
# - The model's confidence does not know the gold answer; where it chooses
#   well, what this model is sure of is more often right. Look it up for each
#   model, never assume it

# %% [markdown]
# - More samples than are kept? That is refused: k of what was never drawn
#   would be made up

# %%
from helpers.results import pass_at_k

try:
    pass_at_k(samples["base"], 2 * N)
except LabError as error:
    print(error)

# %% [markdown]
# ## 10. What so few problems can say
#
# - The hard set is as small as the published contest set whose part it
#   plays
# - Look at the width of its interval

# %%
rows = [
    (name, s.n, f"{100 * (s.high - s.low):.1f}")
    for name, s in scores["sft"].items()
]
columns = ["set", "problems", "width of the interval in points"]
pd.DataFrame(rows, columns=columns).set_index("set")

# %% [markdown]
# - Half the width costs four times the problems

# %% [markdown]
# - The paired test has a floor of its own: with few flips no result is
#   significant, however one-sided

# %%
from helpers.results import mcnemar_p

flips = range(1, 9)
pd.DataFrame(
    [[f"{mcnemar_p(0, k):.3f}" for k in flips]], columns=flips,
    index=["smallest possible p"],
).rename_axis("flips, all of them won", axis=1)

# %% [markdown]
# - Below six net flips there is nothing to be found, whatever was done to
#   the model
# - Such a set can show a miracle or a disaster, and nothing in between

# %% [markdown]
# ## 11. The published grid beside ours
#
# - A 7B model on eight large cards, the same pipeline, the same roles
# - The write-up gives percentages only; the intervals are ours, from its
#   counts

# %%
theirs = load_published("math-slm")
grid = {
    tag: {name: proportion(s.k, s.n) for name, s in row.items()}
    for tag, row in theirs.grid().items()
}
figure = plots.plot_accuracy_grid(
    grid, decoding=theirs.decoding, note=theirs.credit,
    title=f"{theirs.model}, as published",
)
plots.show(figure, (
    "Grouped bars with 95 % error bars: the published accuracy of base, "
    "SFT and DPO on four benchmarks. Each value is in the table below."
))

# %% [markdown]
# The numbers of the figure:

# %%
display(pd.DataFrame({
    tag: {name: str(score) for name, score in row.items()}
    for tag, row in grid.items()
}).rename_axis("benchmark"))
display(Markdown(f"*{theirs.credit}*"))

# %% [markdown]
# ### What it can carry
#
# - Results per problem were not at hand, so only an *unpaired* test is
#   possible: it ignores that both models met the same problems
# - But the totals bound every paired test: *best paired p* is the smallest
#   p that any paired table with this difference in totals can have

# %%
from helpers.results import WORDS, judge_claim, newcombe_difference


def judge(before, after):
    """What two published scores can carry."""
    claim = judge_claim(before, after)
    return (str(claim.change), format_p(claim.z_p),
            format_p(claim.bound.smallest_p), WORDS[claim.verdict])


# %% [markdown]
# - Each step on each benchmark

# %%
claims = [
    (before, after, name)
    for before, after in STEPS[:2] for name in grid["base"]
]
display(pd.DataFrame(
    [(f"{a} → {b}", name, *judge(grid[a][name], grid[b][name]))
     for a, b, name in claims],
    columns=["step", "benchmark", "change, unpaired", "unpaired test",
             "best paired p", "verdict"],
).set_index(["step", "benchmark"]))
display(Markdown(f"*{theirs.credit}*"))

# %% [markdown]
# - SFT's gains on the two large benchmarks are real
# - Its loss on the easy one is undecided: the results per problem would
#   decide it
# - On the contest problems nothing can be shown
# - Of DPO nothing can be said, neither that it works nor that it does not

# %% [markdown]
# - The write-up says that DPO flipped **no** answer on two sets, since the
#   counts are equal
# - Equal counts allow any number of flips, as long as as many are won as
#   lost; only results per problem can tell

# %% [markdown]
# - Our own run with the published settings, problem by problem:

# %%
c = pairs["sft → dpo-published", MAIN]
two = [results[tag][MAIN] for tag in ("sft", "dpo-published")]
moved = sum(a.response != b.response for a, b in zip(*two, strict=True))
display(Markdown(
    f"- other text: {moved} of {c.n}\n- won: {c.only_after}\n"
    f"- lost: {c.only_before}"
))

# %% [markdown]
# ### Role by role
#
# - Different models, different problems: compare the *pattern*, not the
#   height

# %%
rows = []
for b in benchmarks:
    if b.role in grid["base"]:
        old, new = grid["base"][b.role], grid["sft"][b.role]
        ours = pairs["base → sft", b.name].difference
        rows.append((b.name, str(ours), b.role,
                     str(newcombe_difference(old, new))))
columns = ["ours", "base → sft, paired", "published",
           "base → sft, unpaired"]
pd.DataFrame(rows, columns=columns).set_index("ours")

# %% [markdown]
# ## 12. Other seeds
#
# - An interval over problems answers: would it hold for other problems?
# - It does not answer: would it hold for another training run?
# - So the whole course was run with other seeds, once; their scores ship
#   with the repository

# %%
from helpers.base import DATA_DIR

path = DATA_DIR / "measured" / recipe.name / "seeds.json"
record = read_json(path) if path.is_file() else {"seeds": {}}
seeds = record["seeds"]
measured = [t for t in TAGS if all(t in row for row in seeds.values())]
spread = {
    tag: {f"seed {seed}": proportion(row[tag][MAIN]["k"],
                                     row[tag][MAIN]["n"])
          for seed, row in seeds.items()}
    for tag in measured
}
if not seeds:
    print(f"no recorded seeds for tier {recipe.name} yet")

# %% [markdown]
# - Bars of one seed stand together

# %%
if seeds:
    figure = plots.plot_accuracy_grid(
        spread, decoding=decoding, title=f"{MAIN}, seed by seed",
        note=plots.recorded_on(record.get("manifest", {})),
    )
    plots.show(figure, (
        "Grouped bars, one group a seed: accuracy of each model on the "
        "main set. Each value is in the table below."
    ))

# %% [markdown]
# The numbers of the figure, and the change from base to SFT of each seed:

# %%
if seeds:
    table = pd.DataFrame(spread).astype(str)
    table["base → sft"] = [
        f"{100 * (spread['sft'][s].p - spread['base'][s].p):+.1f} points"
        for s in table.index
    ]
    display(table.rename_axis("run"))

# %% [markdown]
# - The same for DPO, on the main set and on the one with new wordings

# %%
ASKED = [b.name for b in benchmarks if b.name in (MAIN, "shifted")]
gains = {name: {} for name in ASKED}
for seed, row in seeds.items():
    for name in ASKED:
        if name in row.get("dpo", {}):
            gain = row["dpo"][name]["k"] - row["sft"][name]["k"]
            gains[name][f"seed {seed}"] = gain / row["sft"][name]["n"]

# %% [markdown]
# - One column a set

# %%
if seeds:
    display(pd.DataFrame({
        f"sft → dpo, {name}": {key: f"{100 * gain:+.1f} points"
                               for key, gain in found.items()}
        for name, found in gains.items()
    }).rename_axis("run"))
for name, found in gains.items() if seeds else ():
    fell = sum(gain < 0 for gain in found.values())
    print(f"{name}: DPO fell below SFT in {fell} of {len(found)} seeds")

# %% [markdown]
# - Look at the spread before the mean, and at the sign on *both* sets: a
#   gain where it was trained need not be one elsewhere

# %% [markdown]
# - The base is the same model under greedy decoding, so it must not move;
#   all other movement is training and the draw of its samples

# %% [markdown]
# - A gain that is smaller than the spread over seeds is luck of the draw

# %% [markdown]
# ## 13. How many problems would it take?
#
# - A claimed change and a wish: to find it four times in five (power 0.8)

# %% [markdown]
# - **Unpaired**, from two published shares

# %%
from helpers.results import n_needed, n_needed_paired

rows = [
    (f"{a} → {b}", name, grid[a][name].n,
     f"{n_needed(grid[a][name].p, grid[b][name].p):,}")
    for a, b, name in claims if grid[a][name].k != grid[b][name].k
]
columns = ["published step", "benchmark", "problems used", "needed"]
display(pd.DataFrame(rows, columns=columns).set_index(columns[:2]))
display(Markdown(f"*{theirs.credit}*"))

# %% [markdown]
# - **Paired** is cheaper: only the share of flips counts
# - For our own steps on the main set

# %%
rows = []
for before, after in STEPS:
    c = pairs[f"{before} → {after}", MAIN]
    share = (c.only_before + c.only_after) / c.n
    needed, enough = "no change seen", "–"
    if c.diff:
        count = n_needed_paired(c.diff, share)
        needed = f"{count:,}"
        enough = "large enough" if c.n >= count else "too small"
    step = f"{before} → {after}"
    rows.append((step, c.n, f"{share:.1%}", needed, enough))
columns = ["our step", "problems used", "flipped", "needed, paired",
           "so the set is"]
pd.DataFrame(rows, columns=columns).set_index("our step")

# %% [markdown]
# - The last column is computed, step by step: a set can be large enough for
#   one effect and too small for the next
# - It takes the change that was *seen* for the true one, so it is a guide
#   for the next set, no verdict on this one

# %% [markdown]
# - That is a fact about the *sets*; it would be cheap to know it before a
#   run is paid for

# %% [markdown]
# ## 14. The honest caveat
#
# - Test sets are opened once: if you now change a setting because of a
#   number on this page, this page has become a dev set
# - The published settings were run on a model far smaller than theirs; what
#   holds here need not hold there

# %% [markdown]
# - Greedy with one cap is one way of asking; sections 8 and 9 show others,
#   and an order of models can turn around between them
# - A grader gave all verdicts: its blind spots are in every row

# %% [markdown]
# ## 15. The report
#
# - One page with all of this, for those who were not here: it reads the run
#   folder and asks no model
# - `--markdown` writes it for a README, `--lm-eval` writes every result in
#   the format of lm-evaluation-harness

# %%
from helpers.results import write_report

page = write_report(run, session.tokenizer)
print(f"{RUN_DIR}/{page.name}: {page.stat().st_size / 2**20:.1f} MiB")

# %% [markdown]
# - What this notebook took

# %%
import psutil
from helpers.grading import shut_down

shut_down()
took = time.perf_counter() - started
held = psutil.Process().memory_info().rss / 2**30
phases = {p["phase"]: p["seconds"] for p in run.ledger()}
display(Markdown("\n".join(
    [f"- wall time: {took:.0f} s"]
    + [f"- the stage `{name}`, when it was made: {phases[name]:.0f} s"
       for name in phases if name.startswith("evaluate")]
    + [f"- memory of this kernel: {held:.1f} GiB"]
)))

# %% [markdown]
# ## Exercises
#
# 1. **Basic.** Two models score the same on the main set. Construct, on
#    paper, one paired table that shows two equal models and one that shows
#    two very different ones. Check both with `compare_counts`.
# 2. **Stretch.** Evaluate base and SFT with twice the cap, in a new
#    `RUN_DIR`. Which part of the gain was length? Say before you run it
#    what you expect.
# 3. **Open.** Take a published table of your choice that claims a gain.
#    Find its n, compute its intervals, and write three sentences: what it
#    shows, what it cannot show, and what its authors could publish to
#    settle it.

# %% [markdown]
# ## Recap
#
# - **Wilson interval**: the true shares that fit a count
# - **paired**: the same problems; only flips are evidence
# - **McNemar's exact test**: are flips won and lost like a coin's toss?
# - **Holm's method**: pays for many looks
# - **truncated-wrong**: cut at the cap; a matter of length
# - **pass@k**: the chance that one of k samples is right
# - **bootstrap**: draw the problems again, and see how far a mean moves
# - **power**: the chance to find an effect that is there
#
# **Handed on:** `report.html`, with the grid, the paired tables and the
# ledger.
#
# **Next:** [07 · Scaling up](07_scaling_up.ipynb): the same course on large
# cards. 06, GRPO, is not in this version. The map is in
# [00 · Start here](00_start_here.ipynb).
