# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Self-distillation: the model writes its own training data
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/math-slm-lab/math-slm-lab/blob/main/notebooks/02_self_distillation.ipynb)
#
# **After this notebook you can**
#
# - say what temperature does, and what pass@k promises
# - sample, grade and harvest: training rows and preference pairs
# - read a harvest report and decide whether the harvest is worth training on
# - make the guard against copied samples fire, and say what it measures
# - follow each training row back to the sample that it came from
#
# **You need**
#
# - the grader of notebook 01; nothing from it on disk
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
# - This notebook makes the stages `distill` and `seeding`; with `RUN_MODE =
#   "replay"` recorded ones are shown instead

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

session = start(
    TIER, RUN_DIR, RUN_MODE, SEED, OVERRIDES,
    makes=("distill", "seeding"),
)
recipe, run = session.recipe, session.run

# %% [markdown]
# - How long it takes: read from this run folder, where the course runner
#   writes the seconds of each notebook

# %%
import time
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from helpers.base import read_json

started = time.perf_counter()
pd.set_option("display.max_colwidth", None)
timed = run.file("notebooks", "timings.json")
times = read_json(timed) if timed.is_file() else {}
last = times.get("02_self_distillation", "not timed yet")
print("seconds of the last run:", last)

# %% [markdown]
# ## 1. The idea in one table
#
# | step | who does it | what comes out |
# |---|---|---|
# | sample several responses to each problem | the base model | `samples/distill.jsonl` |
# | grade each one | the grader of notebook 01 | the same lines, with a verdict |
# | keep one right response of each problem | the harvest | `sft.jsonl` |
# | keep one right and one wrong of each mixed problem | the harvest | `pairs.jsonl` |
# | train on what was kept | notebooks 03 and 04 | a model |
#
# - Nothing here knows more than the base model, except the gold answers
# - The grader turns them into a choice among the model's own texts
# - A base model that solves too little first learns from worked solutions of
#   others (notebook 03, section 12); then that model is the one to sample
# - Which one is it here?

# %%
print(f"tier {recipe.name} samples:", {
    "base": "the base model",
    "sft": "the model trained on worked solutions",
}[recipe.sampled_model])

# %% [markdown]
# - The method is old: *rejection sampling*, *STaR*, *expert iteration*

# %% [markdown]
# ## 2. A corpus as mixed as the web
#
# - Why should a choice among its own texts help a model?
# - Because it learned from many authors, and they do not all write well
# - The pocket model's corpus copies this on purpose: one problem, several
#   **styles**
# - Here is one problem in all of them

# %%
from random import Random

from tools.pocket.stories import TRAINED
from tools.pocket.styles import RENDERERS

story = TRAINED["compare"](Random(SEED), 2)
print(story.text)
for style, write in RENDERERS.items():
    print(f"\n--- {style}")
    print(write(Random(SEED + 1), story, list(story.steps)))

# %% [markdown]
# - *textbook* authors work in steps and mark the answer
# - *key* authors give one expression; right, but with nothing to hold on to
# - *forum* authors check again and again, and often forget the mark

# %% [markdown]
# - Some authors slip in the arithmetic, some styles more than others
# - The next table is read from the generator of the corpus

# %%
from tools.pocket.styles import DEFAULT_SITES, SLIP_RATE, STYLES

rows = [
    (author, style, f"{DEFAULT_SITES[author] * share:.0%}",
     f"{SLIP_RATE[style]:.0%}")
    for author, styles in STYLES.items()
    for style, share in styles.items()
]
columns = ["author", "style", "share of the solutions", "with a slip"]
pd.DataFrame(rows, columns=columns).set_index(["author", "style"])

# %% [markdown]
# - The shares are those of most problem families; some differ a little
# - No author is labelled in the corpus: the model cannot know who is careful

# %% [markdown]
# - It can only imitate the mixture

# %% [markdown]
# ## 3. Temperature
#
# - A language model gives each next token a probability
# - **Temperature** T divides the logits before the softmax
# - T below one: the likely gets likelier; at zero only the first choice is
#   left (greedy)
# - T above one: the unlikely gets its chance
# - We look at one dev problem

# %%
from helpers.sampling import make_engine
from helpers.problems import load_problems
from helpers.models import render_prompt

SAMPLED = recipe.sampled_model
model, tokenizer = session.load(SAMPLED)  # a replay has no model
engine = model and make_engine(recipe, model, tokenizer)
dev = load_problems(recipe.data.dev)
template = recipe.data.prompt_template
prompt = render_prompt(tokenizer, dev[0].problem, template)
print(dev[0].problem)

# %% [markdown]
# - The very first token of a response already says a lot: it opens a style
# - Its probabilities at three temperatures

# %%
import torch

HEAT = (0.2, 1.0, 1.5)


def look_at_first_token():
    """Probabilities of the eight likeliest first tokens, by HEAT."""
    ids = tokenizer(
        prompt, add_special_tokens=False, return_tensors="pt"
    )["input_ids"].to(model.device)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1].float().cpu()
    hot = [(logits / t).softmax(-1) for t in HEAT]
    return {repr(tokenizer.decode([i])): [p[i].item() for p in hot]
            for i in logits.topk(8).indices.tolist()}

# %% [markdown]
# - `session.recall` keeps what a cell computed with the model; in a replay,
#   where there is no model, it shows what the recorded run kept

# %%
first = session.recall("02 first token", look_at_first_token)
rows = {token: [f"{p:.1%}" for p in row] for token, row in first.items()}
pd.DataFrame(rows, index=[f"T = {t}" for t in HEAT]).T.rename_axis(
    "first token")

# %% [markdown]
# - At a low temperature the first choice takes most
# - At a high one the tail gets its share, and with it nonsense

# %% [markdown]
# - **Between the two lies the temperature at which the model shows what it
#   knows**

# %% [markdown]
# ## 4. pass@k
#
# - **pass@k**: the chance that at least one of k samples is right
# - pass@1 is what a user gets; pass@k is what a search among k could get
# - From n samples with c right ones it is estimated without bias by
#
# $$\text{pass@}k = 1 - \binom{n-c}{k} \Big/ \binom{n}{k}$$
#
# - Source: Chen et al., *Evaluating Large Language Models Trained on Code*,
#   [arXiv:2107.03374](https://arxiv.org/abs/2107.03374)

# %%
from math import comb

def pass_at_k(n, c, k):
    return 1 - comb(n - c, k) / comb(n, k)

for c in (0, 1, 2, 4):
    print(c, "of 4:", [round(pass_at_k(4, c, k), 2) for k in (1, 2, 4)])

# %% [markdown]
# - One right sample of four: a bad pass@1, a perfect pass@4
# - The distance between the two is what training can hope to gain

# %% [markdown]
# ### Both in one picture
#
# - A few dev problems, four samples each, at four temperatures
# - Each sample has a seed of its own, made from run, problem and number

# %%
from tqdm.auto import tqdm

from helpers.base import Completion
from helpers.sampling import grade_texts, make_requests

FEW, N = recipe.course.sweep, 4
asked = dev[:FEW]
gold = {p.id: p.answer for p in asked}


def sample_and_grade(requests, name):
    """Graded responses by problem, under a progress bar."""
    def work():
        bar = tqdm(engine.sample(requests), total=len(requests), desc=name)
        return grade_texts(list(bar), gold)

    rows = {p.id: [] for p in asked}
    graded = session.recall(f"02 {name}", work, rows=Completion)
    for row in sorted(graded, key=lambda row: row.sample):
        rows[row.problem_id].append(row)
    return rows


# %% [markdown]
# - One helper asks, so that all arms below differ in one thing only

# %%
def request(temperature):
    """N samples of each asked problem; one seed for each."""
    return make_requests(
        asked, tokenizer, template, n=N, run_seed=recipe.seed,
        temperature=temperature, top_p=1.0,
        max_new_tokens=recipe.sampling.max_new_tokens,
    )


TEMPERATURES = (0.2, 0.7, 1.0, 1.5)
sweep = {t: sample_and_grade(request(t), f"T = {t}") for t in TEMPERATURES}

# %% [markdown]
# - The band is a 95 % interval from resampling *problems* (bootstrap): the
#   four samples of one problem are not independent

# %%
from helpers.results import bootstrap_mean


def summarise(samples, k):
    """Mean pass@k over the problems in percent, with its interval."""
    found = bootstrap_mean([
        pass_at_k(len(rows), sum(r.correct for r in rows), k)
        for rows in samples.values()
    ], seed=SEED)
    return 100 * found.value, 100 * found.low, 100 * found.high


points = {
    f"pass@{k}": [summarise(sweep[t], k) for t in TEMPERATURES]
    for k in (1, 4)
}

# %% [markdown]
# - Two lines: what one sample shows, and what four could show

# %%
from helpers.results import plots

figure = plots.plot_curves(
    {name: (TEMPERATURES, [p[0] for p in row])
     for name, row in points.items()},
    bands={name: ([p[1] for p in row], [p[2] for p in row])
           for name, row in points.items()},
    title="What it shows, and what it could show",
    subtitle=f"{SAMPLED}, {FEW} dev problems, {N} samples each, "
    f"max_new_tokens {recipe.sampling.max_new_tokens}",
    xlabel="temperature",
    ylabel="problems solved (%)",
    note=session.note,
)
plots.show(figure, (
    "Two lines over temperature, pass@4 above pass@1, with bands for the "
    "95 % intervals. The numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure:

# %%
cells = {
    name: [f"{p:.0f} % ({low:.0f}–{high:.0f})" for p, low, high in row]
    for name, row in points.items()
}
pd.DataFrame(cells, index=[f"T = {t}" for t in TEMPERATURES])

# %% [markdown]
# - The colder, the more alike the samples; at zero they are copies, and the
#   lines meet
# - Hot samples pick from the tail: what they gain in difference they lose in
#   arithmetic
# - Where the gap between the lines is wide, there is something to harvest

# %% [markdown]
# - Harvesting needs *different* samples, some of them right: the picture
#   says in which range, and the intervals say how surely

# %% [markdown]
# - The gap is a rule of thumb, not a bound: training moves pass@1 towards
#   pass@k of the base model; what no sample contains is in no row

# %% [markdown]
# ### Four samples of one problem
#
# - The first dev problem whose samples at T = 1 disagree; picked for that
#   reason

# %%
def is_mixed(rows):
    """Right and wrong samples of one problem."""
    return len({row.correct for row in rows}) == 2


warm = sweep[1.0]
name = next((p for p in warm if is_mixed(warm[p])), asked[0].id)
print(next(p.problem for p in asked if p.id == name))
print("gold:", gold[name])
for row in warm[name]:
    print(f"\n--- {'right' if row.correct else 'wrong'}: {row.reason}")
    print(row.response)

# %% [markdown]
# ## 5. The stage `distill`
#
# - Now the same for all training problems of the recipe
# - The stage writes every graded sample as it comes, so a kill loses one
#   batch at most
# - A finished stage with the same inputs is loaded, and says so
# - How much will it be? The recipe says

# %%
s = recipe.sampling
display(Markdown(
    f"- {recipe.data.n_problems} problems × {s.n} samples = "
    f"{recipe.data.n_problems * s.n} responses\n"
    f"- temperature {s.temperature}, top_p {s.top_p}, at most "
    f"{s.max_new_tokens} tokens each"
))

# %% [markdown]
# - The stage loads a model of its own: ours goes first
# - This is the long cell; it shows a bar with the time left

# %%
from helpers.stages import load_training, run_distill

del model, engine
session.release()
metrics = session.recall("distill", lambda: run_distill(recipe, run))
print(session.provenance("distill"))

# %% [markdown]
# ## 6. The harvest report
#
# - First the numbers, then the picture, then the rows themselves
# - **Solve rate**: share of samples that are right; with equally many
#   samples of each problem this *is* the mean pass@1 of section 4
# - **First sample right**: share of problems; one draw of the same thing
# - **Mixed**: problems with right *and* wrong samples; only these give pairs
# - **Distinct fraction**: share of different texts among the samples

# %%
names = [k for k in metrics if k.startswith("pass@")] + ["mixed"]
words = {"pass@1": "first sample right"}
lines = [f"- {words.get(name, name)}, problems: {metrics[name]['text']}"
         for name in names]
rate, cut = metrics["solve_rate"], metrics["truncated"]
lines += [
    f"- solve rate (mean pass@1), samples: {rate['k']}/{rate['n']} "
    f"({rate['p']:.1%})",
    f"- cut off, samples: {cut['k']}/{cut['n']} ({cut['p']:.1%})",
    f"- distinct fraction: {metrics['distinct_fraction']:.3f}",
    f"- tokens in all: {metrics['tokens']:,}",
]
display(Markdown("\n".join(lines)))

# %% [markdown]
# - The rates of *samples* carry no interval: samples of one problem are
#   alike, and counting them as independent would promise too much
# - The rates of *problems* do

# %% [markdown]
# ### Where do the rows come from?
#
# - One bar for each family of problems
# - Green gives training rows only; orange gives rows *and* pairs; the rest
#   gives nothing

# %%
from helpers.base import Completion, read_records

samples = read_records(run.file("samples", "distill.jsonl"), Completion)
by_problem = {}
for row in samples:
    by_problem.setdefault(row.problem_id, []).append(row)


def name_kind(rows):
    """All right, all wrong or mixed."""
    if is_mixed(rows):
        return "mixed"
    return "all right" if rows[0].correct else "all wrong"


# %% [markdown]
# - The family of a problem is its `source`

# %%
train = {p.id: p.source for p in load_training(recipe)}
families = {}
for name, rows in sorted(by_problem.items(), key=lambda x: train[x[0]]):
    tally = families.setdefault(
        train[name] or "problems",
        {"all right": 0, "all wrong": 0, "mixed": 0},
    )
    tally[name_kind(rows)] += 1

# %% [markdown]
# - Read each bar from the left: sure, hopeless, undecided

# %%
title = f"{s.n} samples of each training problem"
where = session.provenance("distill")
figure = plots.plot_outcomes(
    families,
    title=title,
    decoding=f"{SAMPLED}, temperature {s.temperature}, top_p {s.top_p}, "
    f"max_new_tokens {s.max_new_tokens}",
    note=None if where == "live" else where,
)
plots.show(figure, (
    "Stacked bars, one a problem family: problems whose samples are all "
    "right, all wrong, or mixed. The numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure:

# %%
pd.DataFrame(families).T.rename_axis("family")

# %% [markdown]
# - Families without green or orange are lost to us: no right sample, no row

# %% [markdown]
# - So the harvest leans to what is easy for the base model already

# %% [markdown]
# ### Lengths
#
# - A choice by rightness is also a choice by length
# - What hits the cap is cut off and never kept; answers without any work are
#   short and often wrong
# - So training on the harvest moves the usual length too: notebook 05 counts
#   cut-off responses apart from wrong ones

# %%
lengths = {
    "right": [r.tokens for r in samples if r.correct],
    "wrong": [r.tokens for r in samples if not r.correct],
}
figure = plots.plot_length_histogram(
    lengths, cap=s.max_new_tokens,
    title="Length of right and wrong samples",
    subtitle=f"{SAMPLED}, temperature {s.temperature}, top_p {s.top_p}",
    note=None if where == "live" else where,
)
plots.show(figure, (
    "Two outlined histograms of token counts, right and wrong samples, "
    "with a line at the cap. Quartiles are in the table below."
))

# %% [markdown]
# The numbers of the figure:

# %%
import numpy as np

table = pd.DataFrame({
    name: np.percentile(values or [0], [25, 50, 75, 100]).round()
    for name, values in lengths.items()
}, index=["lower quarter", "median", "upper quarter", "longest"])
table.astype(int)

# %% [markdown]
# ### Which style is right?
#
# - A style shows in its opening words
# - The next cell sorts the samples by them

# %%
OPENINGS = {
    "Step": "steps", "First,": "prose", "Okay,": "rambling",
    "Let us see": "unmarked", "\\boxed": "bare",
}


def name_style(text):
    """The style of a response, from its opening (tier pocket)."""
    for opening, style in OPENINGS.items():
        if text.startswith(opening):
            return style
    if text[:1].isdigit() or text[:1] in "(-":
        return "one_line"
    return "hashes" if "####" in text else "other"


# %% [markdown]
# - Every sample is counted once, as right or wrong

# %%
styles = {}
for row in samples:
    kind = "right" if row.correct else "wrong"
    tally = styles.setdefault(
        name_style(row.response), {"right": 0, "wrong": 0})
    tally[kind] += 1
styles = dict(sorted(styles.items()))

# %% [markdown]
# - One bar a style: how often it was used is its length, how often it was
#   right is the green part

# %%
figure = plots.plot_outcomes(
    styles, title="Right and wrong samples by style",
    decoding=f"{SAMPLED}, temperature {s.temperature}, top_p {s.top_p}",
    note=None if where == "live" else where,
)
figure.axes[0].set_xlabel("samples")
plots.show(figure, (
    "Stacked bars, one a style of writing: right and wrong samples. The "
    "numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure, as shares:

# %%
from helpers.results import proportion

rows = [(style, str(proportion(t["right"], t["right"] + t["wrong"])))
        for style, t in styles.items()]
columns = ["style", "right"]
pd.DataFrame(rows, columns=columns).set_index("style")

# %% [markdown]
# - The same model, the same problems: the style decides a good part of the
#   score
# - Keeping the right samples shifts the mixture towards the good styles

# %% [markdown]
# - That is the lever of notebook 03: which habit is used

# %% [markdown]
# ## 7. What was kept
#
# ### Training rows
#
# - One right response of each solved problem; the recipe says which one
#   (`harvest.pick`)
# - Only what the model ended itself is kept: a problem whose right samples
#   were all cut gives no row, one whose right or wrong ones were all cut
#   gives no pair
# - So rows and cut rows add up to the solved problems above; pairs and cut
#   pairs to the mixed ones, unless a prompt came twice

# %%
from helpers.base import PairRow, SftRow

sft_rows = read_records(run.file("sft.jsonl"), SftRow)
pairs = read_records(run.file("pairs.jsonl"), PairRow)
print("sft.jsonl:  ", len(sft_rows), "rows, pick:", recipe.harvest.pick)
print("pairs.jsonl:", len(pairs), "pairs, at least",
      recipe.harvest.min_pairs, "were asked for")

# %% [markdown]
# - What the cap took

# %%
print("lost to the cap:", metrics["sft_rows_cut"], "rows and",
      metrics["pairs_cut"], "pairs; prompts that came twice:",
      metrics["repeated_prompts"])

# %% [markdown]
# - The first row: this text, and nothing else, goes into training
# - A model that solves nothing gives no row: then the course stops here, and
#   says what to try

# %%
from helpers.stages import require_kept

require_kept(metrics)
row = sft_rows[0]
print("PROMPT\n" + row.prompt)
print("\nCOMPLETION\n" + row.completion)

# %% [markdown]
# ### Pairs
#
# - The same prompt, a right and a wrong response of the same model
# - What differs between the two is all that DPO can learn from

# %%
for pair in pairs[:1]:
    print("CHOSEN\n" + pair.chosen)
    print("\nREJECTED\n" + pair.rejected)

# %% [markdown]
# ### Provenance
#
# - Each row names its problem, its sample and its run
# - So each row can be followed back to the line it came from, with seed,
#   tokens and verdict

# %%
origin = next(r for r in by_problem[row.problem_id]
              if r.sample == row.sample)
print("same text:", origin.response == row.completion)
print(f"run {row.run}, problem {row.problem_id}, sample {row.sample}, "
      f"seed {origin.seed}")
print(f"{origin.tokens} tokens, {origin.finish_reason}, "
      f"graded: {origin.reason}")

# %% [markdown]
# - Three checks on the files, all of them cheap

# %%
prompts = [p.prompt for p in pairs]
verdict = {(r.problem_id, r.sample): r.correct for r in samples}
print("every row is a right sample: ", all(
    verdict[r.problem_id, r.sample] for r in sft_rows))
print("no pair of equal texts:      ", all(
    p.chosen != p.rejected for p in pairs))
print("one pair a prompt:           ", len(set(prompts)) == len(prompts))

# %% [markdown]
# ## 8. A failing case, on purpose: copied samples
#
# - Give all samples of a problem the *same* seed
# - They come out as copies: four samples cost four times as much and say as
#   much as one
# - Nothing crashes; the harvest is simply poor

# %% [markdown]
# - So the stage measures the **distinct fraction** and refuses below a floor

# %%
from dataclasses import replace

from helpers.stages import distinct_fraction

model, tokenizer = session.load(SAMPLED)  # once more
engine = model and make_engine(recipe, model, tokenizer)
requests = request(1.0)
first_seed = {r.problem_id: r.seed for r in requests if r.sample == 0}
copies = sample_and_grade(
    [replace(r, seed=first_seed[r.problem_id]) for r in requests],
    "one seed",
)
print(f"own seeds: {distinct_fraction(warm):.2f}")
print(f"one seed:  {distinct_fraction(copies):.2f}")

# %% [markdown]
# - The guard is called with what was measured, and refuses

# %%
from helpers.base import LabError
from helpers.stages import check_distinct_fraction

floor = recipe.harvest.min_distinct_fraction
try:
    check_distinct_fraction(distinct_fraction(copies), floor, 1.0)
except LabError as error:
    print(error)

# %% [markdown]
# - The guard looks at what came out, not at whether a seed was set

# %% [markdown]
# - This is all of it, as it stands in the package

# %%
import inspect

print(inspect.getsource(check_distinct_fraction))

# %% [markdown]
# - At temperature zero copies are what was asked for, so it stays silent
# - But a greedy harvest can give no pair at all: each problem is all right
#   or all wrong

# %%
def score_mixed(samples):
    """Share of the problems that are mixed, with its interval."""
    hits = [is_mixed(rows) for rows in samples.values()]
    return proportion(sum(hits), len(hits))


still = sample_and_grade(request(0.0), "T = 0")
arms = {"T = 0": still, "T = 1, one seed": copies, "T = 1, own seeds": warm}
for name, rows in arms.items():
    print(f"{name:<17} mixed: {score_mixed(rows)}")

# %% [markdown]
# ## 9. A published story, and what was really known
#
# - A published run harvested three times; its table follows
# - Mixed share is pairs over problems, with the interval that was not
#   published

# %%
from helpers.results import load_published

theirs = load_published("math-slm")
harvest = theirs.table("harvest").rows
shares = [proportion(r["pairs"], r["problems"]) for r in harvest]
table = pd.DataFrame(harvest, dtype=object).fillna("none")
display(table.assign(mixed=[str(p) for p in shares]).set_index("run"))
display(Markdown(f"*{theirs.credit}*"))

# %% [markdown]
# - The second run gave several times as many pairs as the first
# - The write-up concluded: *a seed collapses the samples of a problem; never
#   set one*

# %% [markdown]
# - Look at the table: between the two runs **two** things changed, the seed
#   and the temperature
# - So the table alone cannot say which one did it

# %%
from helpers.results import newcombe_difference

gain = newcombe_difference(shares[0], shares[1])
display(Markdown(f"Run 2 against run 1, mixed share: {gain} "
                 f"({gain.method}; {theirs.credit})"))

# %% [markdown]
# - The difference is real; its *cause* was guessed

# %% [markdown]
# - We can do what the table could not: change one thing at a time

# %% [markdown]
# ### The experiment that was missing
#
# | | T = 0.7 | T = 1 |
# |---|---|---|
# | **one seed** for every sample of every problem | both at once, as in run 1 | the seed alone |
# | **own seeds**, one for each problem and sample | the temperature alone | as in run 2 |
#
# - A third row lies between the two: **seed + number**, so that sample 0 of
#   every problem has one seed, sample 1 the next, and so on
# - That is what vLLM does today with a request of n samples and a seed
# - The same problems in each arm, so arms are compared in pairs
# - A stage like the others: resumable, and the same on every tier
#   (`mathslm seeding --tier ...`)

# %%
from helpers.experiments.seeding import list_arms, load_arms, run_seeding

del model, engine
session.release()
outcome = session.recall("seeding", lambda: run_seeding(recipe, run))
where_seeds = session.provenance("seeding")
print(where_seeds)

# %% [markdown]
# - Distinct: share of different texts among a problem's samples, with a
#   bootstrap interval over problems
# - Mixed, and pairs that the harvest would keep: problems, with Wilson's

# %%
from helpers.results import Interval

rows = [
    (name, str(Interval(*arm["distinct"])),
     str(proportion(arm["mixed"], arm["problems"])),
     str(proportion(arm["pairs"], arm["problems"])))
    for name, arm in outcome.items()
]
columns = ["arm", "distinct", "mixed", "pairs"]
pd.DataFrame(rows, columns=columns).set_index("arm")

# %% [markdown]
# - Read it by columns and by rows: which factor moves the numbers?
# - Each step from one arm to another, paired by problem

# %%
from helpers.experiments.seeding import compare_mixed
from helpers.results import format_p

arms = list_arms()
asked_train = load_training(recipe)
asked_train = asked_train[: outcome[arms[0].name]["problems"]]
drawn = load_arms(run, arms, asked_train)
steps = [("own seeds", 0.7, "own seeds", 1.0),
         ("one seed", 0.7, "one seed", 1.0),
         ("one seed", 0.7, "own seeds", 0.7),
         ("one seed", 1.0, "own seeds", 1.0)]
by_key = {(arm.scheme, arm.temperature): arm for arm in arms}

# %% [markdown]
# - Won: problems that became mixed; lost: problems that stopped being so

# %%
rows = []
for scheme, t, other, u in steps:
    c = compare_mixed(drawn[by_key[scheme, t]], drawn[by_key[other, u]])
    rows.append((f"{scheme}, T = {t} → {other}, T = {u}", c.only_after,
                 c.only_before, str(c.difference), format_p(c.p_value),
                 c.verdict))
columns = ["step", "won", "lost", "difference", "p", "verdict"]
pd.DataFrame(rows, columns=columns).set_index("step")

# %% [markdown]
# - So on this model the table above answers the question that the published
#   one could not: look at which rows are decided

# %% [markdown]
# ### A second effect, harder to see
#
# - Seed + number: within a problem all samples differ, and the guard is
#   content
# - But sample 0 of *every* problem reads the same random numbers
# - A model's first tokens decide its style; with the same random number
#   they fall the same way
# - The first words of sample 0, for some problems

# %%
from helpers.experiments.seeding import open_with

seen = {
    scheme: [open_with(rows[0].response)
             for rows in drawn[by_key[scheme, 1.0]].values()][:12]
    for scheme in ("seed + number", "own seeds")
}
pd.DataFrame(seen).rename_axis("problem")

# %% [markdown]
# - **Alike**: the chance that the same sample number of two problems opens
#   with the same words
# - **Unlike**: the same chance for different numbers; without a shared
#   stream the two agree

# %%
rows = [(name, f"{arm['alike']:.0%}", f"{arm['unlike']:.0%}")
        for name, arm in outcome.items()]
columns = ["arm", "alike", "unlike"]
pd.DataFrame(rows, columns=columns).set_index("arm")

# %% [markdown]
# - With a shared stream the number of *independent* draws is the number of
#   samples a problem, not the number of responses
# - No interval of this notebook would hold: each assumes that problems are
#   drawn on their own
# - So our sampler derives a seed for each problem and sample; here it is

# %%
from helpers.sampling import derive_seed

print(inspect.getsource(derive_seed))

# %% [markdown]
# - With one seed for all samples the collapse is total: no problem can be
#   mixed
# - The published first run *had* mixed problems, so its samples were not all
#   copies

# %% [markdown]
# - What an engine does with a seed is a matter of versions: for a time vLLM
#   gave all samples of a request one seed;
#   [a later change](https://github.com/vllm-project/vllm/pull/11898) mended
#   it; the write-up does not name its version
# - Today a seeded request gets a different seed for each sample
# - **The lesson is not "no seed" but "measure the distinct fraction"**

# %% [markdown]
# ### Which rows were used?
#
# - The same write-up gives the totals that went into training

# %%
used = {name: theirs.fact(f"harvest.{name}").value
        for name in ("sft_rows_used", "pairs_used")}
rows = [r["sft_rows"] for r in harvest]
display(Markdown(
    f"- training rows used: {used['sft_rows_used']}; runs 1 + 3 have "
    f"{rows[0] + rows[2]}, all three {sum(rows)}\n"
    f"- pairs used: {used['pairs_used']}; all three runs have "
    f"{sum(r['pairs'] for r in harvest)}\n\n*{theirs.credit}*"
))

# %% [markdown]
# - So one run's rows were left out without a word, while its pairs were used
# - And two runs share their problems, so prompts repeat among the pairs

# %% [markdown]
# - Provenance on each row would have shown both at a glance

# %% [markdown]
# ## 10. The honest caveat
#
# - What no sample solved is in no row; that training stays below the base
#   model's pass@k is a rule of thumb, not a bound
# - A right answer does not prove a right solution; some rows are right by
#   luck, and we train on them
# - The harvest leans to easy problems, and to lengths and habits that the
#   grader likes
# - The training problems' gold answers are used here; so none of these
#   shares may be quoted as a result

# %%
import psutil

from helpers.grading import shut_down

shut_down()
took = time.perf_counter() - started
held = psutil.Process().memory_info().rss / 2**30
phase = next((p for p in run.ledger() if p["phase"] == "distill"), None)
stage = f"{phase['seconds']:.0f} s" if phase else "see the record"
display(Markdown(
    f"- wall time: {took:.0f} s\n- the stage `distill`, when it was made: "
    f"{stage} ({where})\n- memory of this kernel: {held:.1f} GiB"
))

# %% [markdown]
# ## Exercises
#
# 1. **Basic.** Set `OVERRIDES` to `["harvest.pick=shortest"]` with a new
#    `RUN_DIR` and run the stage again. How do the lengths of the training
#    rows change? Which habit would you be teaching?
# 2. **Stretch.** Weigh the cost: for a fixed number of samples, are more
#    problems or more samples a problem the better buy? Measure rows and
#    pairs per thousand tokens for both.
# 3. **Open.** How many rows are right by luck? Find a check of the
#    *reasoning* for one problem family, give the share with its interval,
#    and say what it would cost to train without these rows.

# %% [markdown]
# ## Recap
#
# - **temperature**: what divides the logits before sampling
# - **pass@k**: chance that one of k samples is right
# - **harvest**: what is kept of the graded samples
# - **mixed problem**: right and wrong samples; the source of pairs
# - **distinct fraction**: share of different texts; the guard's measure
# - **provenance**: from a row back to its sample
#
# **Handed on:** `sft.jsonl` to notebook 03, `pairs.jsonl` to notebook 04.
#
# **Next:** [03 · SFT](03_sft.ipynb) – train on the rows, and count the
# steps before you start.

