# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · DPO: learn from a right and a wrong answer, and watch the margin
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/math-slm-lab/math-slm-lab/blob/main/notebooks/04_dpo.ipynb)
#
# **After this notebook you can**
#
# - name every symbol of the DPO loss, and its value before the first step
# - read margin, accuracy and tie fraction, and say why an accuracy below one
#   half need not be worse than a coin
# - tell during training that an evaluation will show nothing
# - compute whether a learning rate can survive a merge in bf16
# - say what β does, and where published texts contradict each other
#
# **You need**
#
# - `pairs.jsonl` of notebook 02 and the merged SFT model of notebook 03;
#   what is missing is taken from a recorded run or made, and it says which
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
# - This notebook trains twice: with our settings (`dpo`) and with those of
#   a published run (`dpo-published`), and merges both

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

VARIANTS = {"dpo": None, "dpo-published": "published"}
session = start(
    TIER, RUN_DIR, RUN_MODE, SEED, OVERRIDES,
    needs=("distill", "merge/sft"),
    makes=(*VARIANTS, *(f"merge/{tag}" for tag in VARIANTS)),
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
last = times.get("04_dpo", "not timed yet")
print("seconds of the last run:", last)

# %% [markdown]
# ## 1. What DPO optimises
#
# $$\mathcal{L} = -\log \sigma\Big(\beta \log
# \frac{\pi_\theta(y_w \mid x)}{\pi_\text{ref}(y_w \mid x)} - \beta \log
# \frac{\pi_\theta(y_l \mid x)}{\pi_\text{ref}(y_l \mid x)}\Big)$$
#
# - $x$: the prompt, a problem
# - $y_w$: the **chosen** answer, a right one; $y_l$: the **rejected** one

# %% [markdown]
# - $\pi_\theta$: the **policy**, the model that is trained
# - $\pi_\text{ref}$: the **reference**, the same model before training
# - $\log \pi(y \mid x)$: the sum of $\log p$ over the tokens of $y$
# - $\beta$: what one nat of change against the reference counts
# - $\sigma$: the logistic function
# - Source: Rafailov et al., *Direct Preference Optimization*,
#   [arXiv:2305.18290](https://arxiv.org/abs/2305.18290)

# %% [markdown]
# - $\beta \log(\pi_\theta / \pi_\text{ref})$ is called the **reward** of an
#   answer
# - The difference of the two rewards is the **margin**; the loss knows
#   nothing else
# - Its unit is β·nats: nats of log probability, times β

# %%
import numpy as np
from helpers.results import plots

margins = np.linspace(-3, 6, 91)
loss = np.log1p(np.exp(-margins))
figure = plots.plot_curves(
    {"loss": (margins, loss)},
    title="The loss of one pair", subtitle="computed, no model",
    xlabel="margin (β·nats)", ylabel="−log σ(margin)",
)
figure.axes[0].plot([0], [np.log(2)], "o", color="black")
plots.show(figure, (
    "A falling curve: loss against margin. A dot marks margin zero, where "
    "the loss is the natural logarithm of two. Values in the table."
))

# %% [markdown]
# The numbers of the figure:

# %%
few = [-2, 0, 2, 5]
pd.DataFrame(
    [[f"{np.log1p(np.exp(-m)):.4f}" for m in few]],
    columns=[f"margin {m}" for m in few], index=["loss"],
)

# %% [markdown]
# - At margin zero the loss is $\ln 2$: **every DPO run starts there**, since
#   policy and reference are the same model

# %% [markdown]
# - Far to the right it is flat: a pair that is told apart pulls no more

# %% [markdown]
# ## 2. The pairs
#
# - One pair for each problem that had right *and* wrong samples
# - Look at some before training on them

# %%
from helpers.base import Completion, PairRow, read_records

pairs = read_records(run.file("pairs.jsonl"), PairRow)
pair = pairs[0]
print(f"{len(pairs)} pairs; the first, problem {pair.problem_id}:\n")
print("PROMPT\n" + pair.prompt)
print("\nCHOSEN\n" + pair.chosen)
print("\nREJECTED\n" + pair.rejected)

# %% [markdown]
# - What differs between the two sides is what DPO will learn, be it meant or
#   not: an arithmetic slip, a missing mark, or just the length

# %% [markdown]
# - So count what differs, over all pairs

# %%
model, tokenizer = session.load("sft")  # a replay has no model


def count_tokens(texts):
    """Tokens of each text."""
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [len(x) for x in ids]


lengths = {
    "chosen": count_tokens([p.chosen for p in pairs]),
    "rejected": count_tokens([p.rejected for p in pairs]),
}

# %% [markdown]
# - First the lengths

# %%
s = recipe.sampling
figure = plots.plot_length_histogram(
    lengths, cap=s.max_new_tokens, title="Length of the two sides",
    subtitle=f"{recipe.sampled_model}, temperature {s.temperature}, "
    f"top_p {s.top_p}",
)
figure.axes[0].set_ylabel("answers")
plots.show(figure, (
    "Two outlined histograms of token counts, chosen and rejected, with a "
    "line at the cap. Quartiles are in the table below."
))

# %% [markdown]
# The numbers of the figure:

# %%
cuts = ["lower quarter", "median", "upper quarter", "longest"]
pd.DataFrame({
    name: np.percentile(values, [25, 50, 75, 100]).round().astype(int)
    for name, values in lengths.items()
}, index=cuts)

# %% [markdown]
# - Then what the grader saw in them

# %%
from helpers.grading import extract_answer

rows = [
    (name, sum(extract_answer(t) is None for t in texts), len(texts))
    for name, texts in (
        ("chosen", [p.chosen for p in pairs]),
        ("rejected", [p.rejected for p in pairs]),
    )
]
columns = ["side", "no answer to be found", "of"]
pd.DataFrame(rows, columns=columns).set_index("side")

# %% [markdown]
# - The stage sorts out pairs that teach nothing or the wrong thing: equal
#   sides, empty sides, sides that the trainer would cut

# %%
from helpers.stages import dpo as dpo_stage

config = recipe.dpo
check = dpo_stage.select_pairs(recipe, config, tokenizer, pairs)
count = dpo_stage.count_dpo_steps(config, len(check.kept))
print(check)
print(count)

# %% [markdown]
# ## 3. Before training: the loss must be ln 2
#
# - A **fresh** adapter lies on the merged SFT model
# - Switch it off, and the model is the reference: no second copy is needed

# %% [markdown]
# - A fresh adapter adds zero, so both are the same model at step 0

# %%
from tempfile import mkdtemp
from helpers.stages import measure_start_loss
from helpers.stages import LN2, check_dpo_start

kept = [pairs[i] for i in check.kept][:32]


def build_trainer():
    """TRL's trainer with a fresh adapter on the SFT model."""
    return dpo_stage.build_trainer(
        recipe, config, model, tokenizer, kept, Path(mkdtemp()))


# %% [markdown]
# - In a replay there is nothing to train: the losses below were recorded

# %%
trainer = None if session.mode == "replay" else build_trainer()

# %% [markdown]
# - The loss of the first pairs, before any step

# %%
start_loss = session.recall(
    "04 start loss", lambda: measure_start_loss(trainer))
check_dpo_start(start_loss)
print(f"loss {start_loss:.4f}, ln 2 = {LN2:.4f}")

# %% [markdown]
# ### A failing case, on purpose
#
# - The classic slip: the policy starts from an adapter that the reference
#   does not have
# - We fake it: put noise into the fresh adapter, and measure again

# %%
import torch
from helpers.base import LabError



def measure_wrong_start():
    """The loss with noise in the adapter, before any step."""
    torch.manual_seed(SEED)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    return measure_start_loss(trainer)


# %% [markdown]
# - The guard, asked with that loss

# %%
try:
    check_dpo_start(session.recall("04 wrong start", measure_wrong_start))
    print("accepted")
except LabError as error:
    print(error)

# %% [markdown]
# - With a wrong reference training runs all the same, and optimises the
#   distance to a model that you never wanted

# %% [markdown]
# - One number before the first step tells

# %% [markdown]
# ## 4. A few steps before many
#
# - `--smoke-steps 3`: the real code, on the pairs that three steps need
# - It writes under `smoke/`, not into the results, and ends no stage
# - On a rented machine this is the cheapest insurance there is

# %%
del trainer, model  # the stage loads its own
session.release()


def smoke():
    """Steps and seconds of a smoke run."""
    clock = time.perf_counter()
    steps = dpo_stage.run_dpo(recipe, run, smoke_steps=3)["steps"]
    return steps, time.perf_counter() - clock


# %% [markdown]
# - Three steps, with everything around them

# %%
steps, took = session.recall("04 smoke run", smoke)
print(f"{steps} steps in {took:.1f} s, preparation included")

# %% [markdown]
# - What it proves: template, reference, memory and disk are in order
# - What it cannot prove: that the learning rate is right

# %% [markdown]
# ## 5. Train
#
# - Our settings were chosen on the dev set; these were the tries, each with
#   its interval
# - Where intervals overlap, the choice between neighbours is partly luck

# %%
from helpers.base import DATA_DIR
from helpers.results import proportion

path = DATA_DIR / "measured" / recipe.name / "tuning.json"
tried = read_json(path)["rows"] if path.is_file() else []
rows = [(", ".join(t["set"]), str(proportion(t["k"], t["n"])))
        for t in tried if t["stage"] == "dpo"]
if rows:
    columns = ["tried", "right on dev"]
    display(pd.DataFrame(rows, columns=columns).set_index("tried"))
else:
    print(f"tier {recipe.name}: no tries on dev are recorded")

# %% [markdown]
# - What this recipe says now, beside the published settings

# %%
settings = {tag: recipe.dpo_variant(v) for tag, v in VARIANTS.items()}
counts = {tag: dpo_stage.count_dpo_steps(c, len(check.kept))
          for tag, c in settings.items()}
pd.DataFrame({
    tag: {"learning rate": f"{c.learning_rate:g}", "beta": c.beta,
          "pairs a step": c.effective_batch, "steps": counts[tag].total}
    for tag, c in settings.items()
})

# %% [markdown]
# - First ours

# %%
metrics = {"dpo": session.recall(
    "dpo", lambda: dpo_stage.run_dpo(recipe, run))}
print(session.provenance("dpo"))

# %% [markdown]
# - Then the published settings, on the same pairs and the same model
# - Listen to what the monitor says on the way

# %%
metrics["dpo-published"] = session.recall(
    "dpo-published",
    lambda: dpo_stage.run_dpo(recipe, run, variant="published"))
where = session.provenance(*VARIANTS)
note = None if where == "live" else where
print(where)

# %% [markdown]
# ## 6. Margin, accuracy, ties
#
# - **rewards/margins**: mean margin of the pairs of a step
# - **rewards/accuracies**: share of pairs with a margin above zero
# - **tie fraction**: share of pairs whose margin is zero to the last digit

# %%
import json


def read_log(tag):
    """Logged steps of a run: those that carry a margin."""
    text = run.file(tag, "log.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [row for row in rows if "rewards/margins" in row]


logs = {tag: read_log(tag) for tag in VARIANTS}

# %% [markdown]
# - Left: how far the answers are apart; right: what share of them

# %%
figure = plots.plot_dpo_curves(logs, note=note)
figure.axes[0].set_ylabel("margin (β·nats)")
plots.show(figure, (
    "Three panels by optimizer step. Left, the reward margin of both runs. "
    "Right, accuracy and tie fraction. Values are in the table below."
))

# %% [markdown]
# The numbers of the figure, at both ends. The last step holds the pairs that
# are left over, so few; the end is the mean of the last ten steps:

# %%
def ends(log, key, last=10):
    """First value, and the mean of the last ten."""
    tail = [row[key] for row in log[-last:]]
    both = log[0][key], sum(tail) / len(tail)
    return [f"{round(x, 4) + 0:.4f}" for x in both]  # no minus zero


keys = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins",
        "rewards/accuracies", "tie_fraction")
table = pd.DataFrame(
    [(tag, key, *ends(log, key))
     for tag, log in logs.items() for key in keys],
    columns=["run", "logged", "first step", "last ten steps"],
)
table.set_index(["run", "logged"])

# %% [markdown]
# ### Why an accuracy below one half need not be worse than a coin
#
# - At step one every pair is a tie: margin zero, loss ln 2
# - TRL counts a pair as right when chosen is **greater** than rejected; a
#   tie is not greater, so it counts as wrong
# - So at step one the accuracy is near **zero**, not near one half; only
#   rounding in the last digit lifts some pairs above it
# - This holds for the *first* steps only: after some updates hardly a margin
#   is exactly zero (`tie_fraction` above)

# %%
first = logs["dpo"][0]
for key in ("loss", "rewards/margins", "rewards/accuracies",
            "tie_fraction"):
    print(f"{key:<20}{abs(first[key]):.4f}")

# %% [markdown]
# - And a run that has learned next to nothing may show a high one: a margin
#   in the tenth digit is greater than zero

# %% [markdown]
# - **Accuracy does not say how far. The margin does, in β·nats. Watch the
#   margin**

# %%
from helpers.results import load_published

theirs = load_published("math-slm")
accuracy = theirs.fact("dpo.final_accuracy").value
margin = theirs.fact("dpo.final_margin").value
band = recipe.dpo.noop_margin
place = "inside" if abs(margin) < band else "outside"
display(Markdown(
    f"- published final accuracy: {accuracy}\n"
    f"- published final margin: {margin} β·nats, {place} our no-op band "
    f"of ±{band:g}\n\n*{theirs.credit}*"
))

# %% [markdown]
# - The write-up read this accuracy as *worse than a coin*
# - Ties explain such an accuracy at the first step, not at the last one
# - A margin outside the band is not a no-op either, by our own alarm
# - A last step is one batch, and neither the curve nor the share of ties was
#   published: what it was, nobody can say

# %% [markdown]
# ## 7. The monitor
#
# - It reads the same log while training runs
# - **No-op alarm**: after a while the margin is still next to zero, so the
#   evaluation, hours later, will show nothing
# - **Overfit alarm**: a large margin with accuracy stuck at one

# %% [markdown]
# - Here it reads both logs once more

# %%
for tag, log in logs.items():
    monitor = dpo_stage.build_monitor(settings[tag], counts[tag])
    alarms = []
    for row in log:
        alarms += monitor.observe(
            row["step"], row["rewards/margins"], row["rewards/accuracies"])
    alarms += monitor.finish()
    print(f"{tag}: {' '.join(alarms) or 'no alarm'}\n")

# %% [markdown]
# - A made-up run that learns its pairs by heart, to hear the other alarm

# %%
from helpers.stages import DpoMonitor

monitor = DpoMonitor(
    config.noop_margin, config.noop_after_steps, config.overfit_margin)
for step in range(1, 9):
    for alarm in monitor.observe(step, margin=step + 3.0, accuracy=1.0):
        print(alarm)

# %% [markdown]
# ## 8. How far can a weight travel?
#
# - Adam moves a weight by about the learning rate per step, whatever the
#   size of the gradient
# - So the **sum of all learning rates** of a run roughly limits how far an
#   entry of the adapter can go

# %% [markdown]
# - bf16 has few digits: between two neighbours there is a gap, and a change
#   below half of it is rounded away
# - Compare the two numbers *before* you pay

# %%
def measure_typical():
    """The median over the projections of their median weight."""
    model, _ = session.load("sft")
    medians = [
        p.detach().abs().median().item()
        for name, p in model.named_parameters()
        if "proj" in name and "lora" not in name and p.is_floating_point()
    ]
    return float(np.median(medians or [0.02]))


# %% [markdown]
# - Its value for this model

# %%
typical = session.recall("04 typical weight", measure_typical)
print(f"a typical weight of this model: {typical:.3f}")

# %% [markdown]
# - The travel of both runs, summed over the steps that they took

# %%
from helpers.planner import half_ulp

travels = {tag: m["sum_learning_rates"] for tag, m in metrics.items()}
gap = half_ulp(typical, "bfloat16")
table = pd.DataFrame([
    (tag, f"{x:.2g}", f"{gap:.2g}", f"{x / gap:.2g}")
    for tag, x in travels.items()
], columns=["run", "sum of learning rates", "half a bf16 gap", "ratio"])
table.set_index("run")

# %% [markdown]
# - The limit is for an entry of $A$ or $B$; what reaches a weight is the
#   *product* $BA$, where both factors are small
# - A ratio far below one: most weights of a bf16 model will not notice
# - A ratio above one is a permission, not a promise

# %% [markdown]
# ## 9. Merge both
#
# - The merge adds the adapter in fp32 and casts to the recipe's format

# %%
from helpers.stages import merge

reports = {}
for tag in VARIANTS:
    fidelity = session.recall(
        f"merge/{tag}", lambda tag=tag: merge.run_merge(recipe, run, tag))
    reports[f"{tag}, {fidelity['dtype']}"] = fidelity

# %% [markdown]
# - Large models are stored in bf16, before the merge and after it
# - `measure_fidelity` tries that: it rounds the SFT model, merges, rounds
#   again, and writes nothing

# %%
for tag in VARIANTS:
    reports[f"{tag}, bf16"] = session.recall(
        f"04 {tag} merged in bf16",
        lambda tag=tag: merge.measure_fidelity(
            recipe, run, tag, "bfloat16"))

# %% [markdown]
# - Blue: does the stored change still point the same way?
# - Orange: how much of its length is left?

# %%
figure = plots.plot_merge_fidelity(reports, note=note)
longest = max(r["norm_kept"] for r in reports.values())
figure.axes[0].set_xlim(0, 1.2 * max(1, longest))
plots.show(figure, (
    "Bars of cosine and norm kept for both DPO runs, merged in the "
    "recipe's format and in bf16. The numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure, and what the model makes of them:

# %%
table = pd.DataFrame({
    name: {
        "cosine": f"{r['cosine']:.4f}",
        "norm kept": f"{r['norm_kept']:.4f}",
        "entries changed": f"{r['entries_changed']:.2%}",
        "largest logit difference": f"{r['max_abs_logit_diff']:.2g}",
        "same greedy token": f"{r['greedy_agree']} of {r['greedy_total']}",
    } for name, r in reports.items()
}).T.rename_axis("merge")
table

# %% [markdown]
# - Few entries changed, a cosine far from one: the merged model is not what
#   was trained

# %% [markdown]
# - Where only few steps at a tiny rate were made, the merge can erase them;
#   then an evaluation of the *merged* model says nothing about DPO

# %% [markdown]
# - The published run merged into bf16 and evaluated the merged model; its
#   *no effect* may be two effects: a small update, and rounding

# %% [markdown]
# - The cure: merge in fp32, or evaluate the adapter unmerged, and always
#   print the fidelity

# %% [markdown]
# ## 10. Did it help? Dev, paired
#
# - The same slice of the dev set for all three models
# - Greedy, so a difference is the models', not the dice's

# %%
from helpers.problems import load_problems

FEW = recipe.course.dev
asked = load_problems(recipe.data.dev)[:FEW]
gold = {p.id: p.answer for p in asked}
cap = recipe.evaluate.max_new_tokens
TAGS = ("sft", *VARIANTS)

# %% [markdown]
# - One function asks all three

# %%
from tqdm.auto import tqdm
from helpers.sampling import make_engine
from helpers.sampling import grade_texts, make_requests


def answer_dev(tag):
    """Graded greedy responses of a model."""
    model, tokenizer = session.load(tag)
    requests = make_requests(
        asked, tokenizer, recipe.data.prompt_template, n=1,
        run_seed=recipe.seed, temperature=0.0, top_p=1.0,
        max_new_tokens=cap,
    )
    stream = make_engine(recipe, model, tokenizer).sample(requests)
    texts = list(tqdm(stream, total=len(requests), desc=f"{tag} on dev"))
    return grade_texts(texts, gold)


# %% [markdown]
# - Three times the same questions

# %%
answers = {}
for tag in TAGS:
    graded = session.recall(
        f"04 {tag} on dev", lambda tag=tag: answer_dev(tag),
        rows=Completion)
    found = {row.problem_id: row for row in graded}
    answers[tag] = {p.id: found[p.id] for p in asked}

# %% [markdown]
# ### Three samples
#
# - Chosen by a rule: the first dev problems that SFT and DPO answer with
#   different texts

# %%
moved = [p for p in asked if answers["sft"][p.id].response
         != answers["dpo"][p.id].response]
for problem in moved[:3]:
    print(f"=== {problem.problem}\ngold: {problem.answer}")
    for tag in ("sft", "dpo"):
        row = answers[tag][problem.id]
        print(f"--- {tag}: {'right' if row.correct else 'wrong'}")
        print(row.response)
    print()

# %% [markdown]
# - How many texts changed at all, and how many of those changed verdict?

# %%
rows = []
for tag in VARIANTS:
    old, new = answers["sft"].values(), answers[tag].values()
    both = list(zip(old, new, strict=True))
    texts = sum(a.response != b.response for a, b in both)
    verdicts = sum(a.correct != b.correct for a, b in both)
    rows.append((tag, len(both), texts, verdicts))
columns = ["against sft", "problems", "other text", "other verdict"]
pd.DataFrame(rows, columns=columns).set_index("against sft")

# %% [markdown]
# - No other verdict: then an equal *score* really is equal verdicts
# - As many won as lost would give the same score, and be no such thing

# %% [markdown]
# ### The comparison
#
# - The paired table of our settings: only *won* and *lost* are evidence

# %%
from helpers.results import compare

results = {
    tag: compare(
        {key: r.correct for key, r in answers["sft"].items()},
        {key: r.correct for key, r in answers[tag].items()},
    ) for tag in VARIANTS
}

# %% [markdown]
# - Grey tiles are agreement

# %%
c = results["dpo"]
figure = plots.plot_paired(
    c.both, c.only_before, c.only_after, c.neither,
    before="sft", after="dpo", note=note,
    title=f"{len(asked)} dev problems, greedy, cap {cap}",
)
plots.show(figure, (
    "Four tiles: problems both models solve, problems lost, problems won, "
    "problems neither solves. The numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure, and those of the published settings:

# %%
pd.DataFrame([
    (f"sft → {tag}", c.both, c.only_before, c.only_after, c.neither)
    for tag, c in results.items()
], columns=["", "both right", "lost", "won", "both wrong"]).set_index("")

# %% [markdown]
# - In words

# %%
lines = [f"- sft: {results['dpo'].before}"]
for tag, c in results.items():
    lines += [f"- {tag}: {c.after}", f"- {c.sentence('sft', tag, 'dev')}"]
display(Markdown("\n".join(lines)))

# %% [markdown]
# - *Undecided* is not *no effect*: the interval says which effects are still
#   possible

# %% [markdown]
# ## 11. What β does
#
# - β counts how much one nat of distance from the reference is worth
# - The DPO paper derives the loss from *maximise reward, minus β times the
#   KL divergence from the reference*: **a higher β keeps the policy closer**
# - TRL's documentation says the same: *higher β means less deviation*

# %% [markdown]
# - Why? The pull of a pair is $\beta\,\sigma(-\beta d)$, where $d$ is how
#   many nats it has been moved; a high β pulls harder at first and lets go
#   sooner: the curves cross

# %%
distance = np.linspace(0, 60, 121)
BETAS = (0.05, 0.1, 0.3)
figure = plots.plot_curves(
    {f"β = {b}": (distance, b / (1 + np.exp(b * distance)))
     for b in BETAS},
    title="When does a pair stop pulling?", subtitle="computed, no model",
    xlabel="d: nats that the pair has been moved apart",
    ylabel="β σ(−β d)",
)
plots.show(figure, (
    "Three falling curves, one a beta: beta times sigma of minus beta d, "
    "the pull of a pair, over the distance d it has been moved. The higher "
    "beta is, the higher the curve starts and the sooner it falls."
))

# %% [markdown]
# The numbers of the figure: the distance at which the pull has fallen to a
# fifth of its start:

# %%
pd.DataFrame(
    [[f"{np.log(9) / b:.1f}" for b in BETAS]],
    columns=[f"β = {b}" for b in BETAS], index=["nats"],
)

# %% [markdown]
# - Under Adam the *first* steps are nearly the same for every β, since the
#   size of the gradient is divided out

# %% [markdown]
# ### Published stories that contradict this, or themselves
#
# - The math-slm write-up wants a *higher* β to force the answers apart: the
#   opposite of what β does
# - The [DPO notebook](https://github.com/rasbt/LLMs-from-scratch/blob/main/ch07/04_preference-tuning-with-dpo/dpo-from-scratch.ipynb)
#   of *LLMs-from-scratch* says in one cell that a higher β *reduces* the
#   impact of the difference to the reference, in a later cell that it
#   *increases* it (read at its commit `28c65cd`)
# - The [DPO page](https://github.com/huggingface/smol-course/blob/main/units/en/unit2/2.md)
#   of *smol-course* calls **lower** values *more conservative, closer to
#   reference model* (read at its commit `32dde01`)

# %%
wish = theirs.fact("dpo.rerun_beta")
display(Markdown(
    f"- used there: β = {theirs.fact('dpo.beta').value}, proposed for the "
    f"next run: β = {wish.value} ({wish.where})\n"
    f"- learning rate: {theirs.fact('dpo.learning_rate').value:g}, "
    f"proposed: {theirs.fact('dpo.rerun_learning_rate').value:g}\n\n"
    f"*{theirs.credit}*"
))

# %% [markdown]
# - Three texts, three stories about one knob: so it was measured

# %% [markdown]
# ## 12. Measured: learning rate × β × steps
#
# - `mathslm dpo-sweep` trains one setting after the other on the same SFT
#   model and the same pairs
# - Each answers the same dev problems twice: **unmerged**, and **merged in
#   bf16**, the way large models are stored
# - It takes long, so it is recorded; exercise 2 runs a part of it

# %%
from helpers.experiments import dpo_sweep

sweep = read_json(DATA_DIR / "measured" / "pocket" / "dpo_sweep.json")
sweep_note = plots.recorded_on(sweep["manifest"])
rule = dpo_sweep.StopRule(**sweep["rule"])
runs = {(r["learning_rate"], r["beta"], r["steps"]): r
        for r in sweep["rows"]}
print(len(runs), "runs,", sweep_note)

# %% [markdown]
# - A dot is a run: how far its pairs will be apart, **projected** from its
#   first steps, and how many dev verdicts its evaluation changed
# - Below the dotted line too few changed for any test to call it an effect

# %%
groups = {}
for (rate, _, _), r in sorted(runs.items()):
    dots = groups.setdefault(f"learning rate {rate:g}", [])
    changed = r["unmerged"]["won"] + r["unmerged"]["lost"]
    dots.append((dpo_sweep.project_nats(r, rule.step), changed))
figure = plots.plot_dpo_sweep(
    groups, threshold=rule.nats, silent=dpo_sweep.largest_silent(),
    title="The margin tells early what the evaluation will show",
    subtitle=f"margin over β seen at step {rule.step}; pocket, greedy",
    note=sweep_note,
)
plots.show(figure, (
    "Dots, one a run: the margin in nats as projected early against the "
    "number of dev verdicts that changed. Runs with a small learning rate "
    "lie at the lower left. A dashed vertical line is the stop rule. The "
    "numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure, and what merging in bf16 makes of them:

# %%
def describe_run(r):
    """A row of the table: how far, how many answers, what bf16 keeps."""
    plain, stored = r["unmerged"], r["merged_bf16"]
    return {
        "projected margin": f"{dpo_sweep.project_nats(r, rule.step):.2g}",
        "KL a token": f"{r['kl_per_token']:.1g}",
        "won − lost": f"{plain['won']} − {plain['lost']}",
        "p": format_p(plain["p_value"]),
        "in bf16": f"{stored['won']} − {stored['lost']}",
        "update kept (cosine)": f"{r['update_kept_bf16']['cosine']:.2f}",
    }


from helpers.results import format_p

table = pd.DataFrame({k: describe_run(r) for k, r in runs.items()}).T
table.rename_axis(["learning rate", "β", "steps"])

# %% [markdown]
# - The published settings, the author's own untested remedy, and the same
#   remedy with the β that was blamed

# %%
def say_run(label, rate, beta, steps):
    """One line: what dev showed of a setting."""
    r = runs[rate, beta, steps]
    plain = r["unmerged"]
    verdict = ("a no-op" if dpo_sweep.is_noop(r) else
               format_p(plain["p_value"]))
    return (f"- {label} ({rate:g}, β {beta:g}, {steps} steps): won "
            f"{plain['won']}, lost {plain['lost']} of {r['n']}: {verdict}")


# %% [markdown]
# - Four settings side by side

# %%
old = theirs.fact("dpo.learning_rate").value, theirs.fact("dpo.beta").value
new = theirs.fact("dpo.rerun_learning_rate").value
STEPS = theirs.fact("dpo.rerun_steps").value
display(Markdown("\n".join([
    say_run("published", *old, 60),
    say_run("remedy", new, wish.value, STEPS),
    say_run("remedy, old β", new, old[1], STEPS),
    say_run("ours, as many steps", 2e-4, old[1], STEPS),
]) + f"\n\n*{sweep_note}*"))

# %% [markdown]
# ### Nothing learnt, or rounded away?
#
# - Count dev *texts* that differ from SFT's, unmerged and in bf16
# - If rounding were the reason, the unmerged model would differ

# %%
rows = [
    (f"{rate:g}", b, n, r["unmerged"]["texts_changed"],
     r["merged_bf16"]["texts_changed"],
     f"{r['update_kept_bf16']['norm_kept']:.0%}")
    for (rate, b, n), r in runs.items() if b == old[1]
]
columns = ["learning rate", "β", "steps", "texts, unmerged",
           "texts, in bf16", "length of the update kept"]
pd.DataFrame(rows, columns=columns).set_index(columns[:3])

# %% [markdown]
# - Read the first rows: bf16 keeps a small part of a timid update, yet the
#   unmerged model answers as before too
# - So on this model the learning rate decided, and rounding came second

# %% [markdown]
# ### What β did
#
# - Same learning rate, same steps: only β differs

# %%
rows = [
    (b, f"{r['margin']:.3f}", f"{r['margin'] / b:.2f}",
     f"{r['kl_per_token']:.1g}", r["unmerged"]["won"],
     r["unmerged"]["lost"])
    for (rate, b, n), r in sorted(runs.items())
    if (rate, n) == (2e-4, STEPS)
]
columns = ["β", "margin (β·nats)", "margin (nats)", "KL a token", "won",
           "lost"]
pd.DataFrame(rows, columns=columns).set_index("β")

# %% [markdown]
# - The logged margin grows with β because it is *multiplied* by it
# - Divided by β it says how far the answers really moved

# %% [markdown]
# ### Stop early
#
# - The rule: after some steps, take the mean margin over β, times planned
#   steps over steps done; is that below a threshold?
# - Then stop: the evaluation will show nothing
# - Step and threshold were derived from the runs above, and tested on runs
#   of other seeds that took no part

# %%
def say_check(label, c):
    """What the rule did on a group of runs."""
    return (f"- {label}: right in {proportion(c['right'], c['runs'])}; "
            f"stopped {c['stopped']}, of those wrongly "
            f"{c['stopped_wrongly']}; missed {c['missed']}; saved "
            f"{c['steps_saved']} of {c['steps']} steps")


display(Markdown(
    f"- the rule: at step {rule.step}, stop below {rule.nats:.2g} nats\n"
    + say_check("runs it was derived from", sweep["derived_on"]) + "\n"
    + say_check("runs of other seeds", sweep["held_out"])
    + f"\n\n*{sweep_note}*"
))

# %% [markdown]
# - A small model on easy problems: the threshold is this model's, the way to
#   find it is general

# %% [markdown]
# ## 13. The honest caveat
#
# - Dev again: our settings were chosen on it; the test sets come next
# - A pair holds one right and one wrong answer of *easy enough* problems;
#   what the base model never solved has no pair
# - DPO can lower the probability of **both** answers and still widen the
#   margin: the loss sees the difference only (`rewards/chosen` in section 6)

# %% [markdown]
# - Right against wrong is not good reasoning against bad: the length of the
#   two sides alone can be what is learned

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
       for name in VARIANTS if name in phases]
    + [f"- memory of this kernel: {held:.1f} GiB"]
)))

# %% [markdown]
# ## Exercises
#
# 1. **Basic.** Swap chosen and rejected in ten pairs of a copy of
#    `pairs.jsonl`. Which curve shows it, and after how many steps?
# 2. **Stretch.** Where between two learning rates of section 12 does the
#    first effect appear? `mathslm dpo-sweep --run-dir runs/pocket
#    --learning-rates 1e-4 --betas 0.1 --steps 60 --dev 200`
# 3. **Open.** Is it the arithmetic or the length? Build pairs in which both
#    sides have nearly the same length, train, and compare on dev with an
#    interval. How many pairs would you need to be sure?

# %% [markdown]
# ## Recap
#
# - **reward**: β times the log ratio of policy and reference
# - **margin**: reward of chosen minus reward of rejected, in β·nats
# - **tie fraction**: pairs whose margin is zero, all of them at step one;
#   accuracy counts them wrong
# - **ln 2**: the loss before the first step, or the reference is wrong
# - **no-op alarm**: margin next to zero, so the evaluation will not move
# - **half an ulp**: a smaller change is lost when a weight is stored
#
# **Handed on:** `dpo/merged` and `dpo-published/merged` to notebook 05.
#
# **Next:** [05 · Evaluation](05_evaluation.ipynb) – four test sets, opened
# once.
