# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · SFT: train on the right answers, and count the steps first
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/math-slm-lab/math-slm-lab/blob/main/notebooks/03_sft.ipynb)
#
# **After this notebook you can**
#
# - say what a LoRA adapter adds to a model, and compute how large it is
# - read the tokens and labels of a training row, and find a masked prompt
# - count optimizer steps before training, and recognise the packing trap
# - tell from the first loss whether training and sampling see the same text
# - merge an adapter, and measure what rounding kept of it
#
# **You need**
#
# - `sft.jsonl` of notebook 02; where it is missing, it is taken from a
#   recorded run or made, and the setup cell says which
# - a CPU on tier `pocket`; the recipes of the other tiers name their cards
# - the time and memory that this notebook took are printed at its end

# %% tags=["parameters"]
TIER: str = "pocket"
RUN_DIR: str = "runs/pocket"
RUN_MODE: str = "auto"  # "auto", "run" or "replay"
SEED: int = 42
OVERRIDES: list = []

# %% [markdown]
# Setup, the same in every notebook: find the package (Colab fetches the
# repository first), open the **session**: the recipe and the run folder. This
# notebook needs the stage `distill` and makes `sft` and `merge/sft`.

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
    TIER, RUN_DIR, RUN_MODE, SEED, OVERRIDES, notebook="03_sft",
    needs=("distill",), makes=("sft", "merge/sft"),
)
recipe, run = session.recipe, session.run_dir

# %% [markdown]
# ## 1. The idea in one table
#
# | | before | after |
# |---|---|---|
# | what the model can do | solve a problem in one of several styles | the same |
# | what it does by habit | the mixture of its corpus | the style of the right answers |
# | what is trained | – | a small **adapter** beside frozen weights |
# | what it learns from | – | its own right answers, and nothing else |
#
# - **SFT**, supervised fine-tuning: raise the probability of given texts,
#   token by token
# - The given texts are the model's own; so they are likely already, and
#   little has to move
# - A model that solves too little has no such texts; it learns from *worked
#   solutions* of others first (section 12)
# - Which of the two is it here?

# %%
mix = recipe.solutions.mix if recipe.solutions else {}
print(f"tier {recipe.name} learns from", "worked solutions: " + ", ".join(
    f"{n} of {name}" for name, n in mix.items()) if mix else
    "its own right answers, those of notebook 02")

# %% [markdown]
# ## 2. What LoRA adds
#
# A linear layer multiplies by a matrix $W$. LoRA leaves $W$ as it is and adds
# the product of two thin matrices:
#
# $$h = W x + \frac{\alpha}{r}\, B A\, x$$
#
# - $A$ has $r$ rows, $B$ has $r$ columns; $r$ is the **rank**
# - $B$ starts at zero, so before the first step the model is unchanged
# - Source: Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*,
#   [arXiv:2106.09685](https://arxiv.org/abs/2106.09685)
# - First the sizes: each adapted kind of matrix of this model, with what
#   LoRA adds to it

# %%
import re

model, tokenizer = session.load("base")
lora = recipe.sft.lora


def is_adapted(name):
    """Its kind is a target, in a layer that gets a LoRA (None: all do)."""
    layer = re.search(r"layers\.(\d+)\.", name)
    chosen = lora.layers is None or layer and int(layer[1]) in lora.layers
    return name.rpartition(".")[2] in lora.target_modules and chosen


@session.recorded("03 sizes")
def measure_sizes():
    """Rows, columns and LoRA weights of each adapted matrix, by kind."""
    sizes = {}
    for name, module in model.named_modules():
        kind = name.rpartition(".")[2]
        if is_adapted(name):
            m, n = module.out_features, module.in_features
            sizes.setdefault(kind, []).append((m, n, lora.r * (m + n)))
    return sizes


sizes = measure_sizes()

# %% [markdown]
# The picture is drawn in the true proportions of one of them.

# %%
from matplotlib.patches import Rectangle
from helpers.results import new_figure, plots, set_title

kind = "up_proj" if "up_proj" in sizes else next(iter(sizes))
(m, n, _), r = sizes[kind][0], lora.r
unit, orange = max(m, n), plots.OKABE_ITO["orange"]

# %% [markdown]
# One matrix after the other, from the left.

# %%
def draw_matrix(ax, x, rows, columns, text, colour):
    """One matrix on the middle line; returns where the next may start."""
    corner = (x, -rows / 2)
    ax.add_patch(Rectangle(corner, columns, rows, facecolor=colour,
                           edgecolor="black"))
    ax.text(x + columns / 2, rows / 2 + unit / 20, text, ha="center",
            va="bottom", size=9)
    return x + columns + unit / 3

# %% [markdown]
# Grey is frozen, orange is trained.

# %%
figure, (ax,) = new_figure(7.2, 3.4)
x = draw_matrix(ax, 0, m, n, f"$W$\n{m} × {n}", "#C3CAD2")
ax.text(x - unit / 6, 0, "+", ha="center", va="center", size=14)
x = draw_matrix(ax, x, m, r, f"$B$\n{m} × {r}", orange)
ax.text(x - unit / 6, 0, "·", ha="center", va="center", size=18)
x = draw_matrix(ax, x, r, n, f"$A$\n{r} × {n}", orange)
ax.set(xlim=(-unit / 3, x), ylim=(-unit * 0.55, unit * 0.75))
ax.set_aspect("equal")
ax.set_axis_off()
set_title(ax, f"{kind}: frozen (grey) and trained (orange)")
plots.show(figure, (
    "Three rectangles in true proportion: the large frozen matrix W, a "
    "plus sign, and the thin matrices B and A. Sizes are in the table."
))

# %% [markdown]
# The numbers of the figure, and the same for the other matrices:

# %%
import pandas as pd

table = pd.DataFrame(
    [(kind, len(found), f"{found[0][0]} × {found[0][1]}", found[0][2],
      sum(x[2] for x in found)) for kind, found in sizes.items()],
    columns=["matrix", "how many", "W", "trained, each", "trained, all"],
).set_index("matrix")
table

# %% [markdown]
# Summed up, against all weights of the model.

# %%
from IPython.display import Markdown, display


@session.recorded("03 weights")
def count_weights():
    """All weights of the model."""
    return sum(p.numel() for p in model.parameters())


added, whole = int(table["trained, all"].sum()), count_weights()
display(Markdown(
    f"- trained: {added:,} weights, rank {lora.r}\n"
    f"- frozen: {whole:,} weights\n"
    f"- share of the sum: {added / (added + whole):.2%}"
))

# %% [markdown]
# On a large model the share is far smaller: the trained part grows with the
# *sides* of the matrices, the frozen part with their *area*. A small adapter
# needs little memory for gradients and optimizer state; that is what makes
# one card enough.
#
# ## 3. A row of `sft.jsonl`
#
# One right answer of each problem that was solved. This text is all that
# training sees.

# %%
from helpers.base import Completion, SftRow, read_records
from helpers.stages import find_rows

rows = read_records(find_rows(recipe, run), SftRow)
row = rows[0]
print(f"{len(rows)} rows; the first, problem {row.problem_id}:\n")
print("PROMPT\n" + row.prompt)
print("\nCOMPLETION\n" + row.completion)

# %% [markdown]
# The prompt holds the special tokens of the chat template already. It comes
# from the same function that sampling used.
#
# ## 4. Tokens and labels
#
# - A row becomes two lists of equal length
# - **input ids**: what the model reads
# - **labels**: what it must predict; −100 means *no loss here*
# - The model shifts them by one inside: the label at position i is
#   predicted from the tokens *before* i
# - We make the ids, so that the prompt's are those of sampling; TRL's trainer
#   makes the labels; here for a few rows

# %%
from pathlib import Path
from tempfile import mkdtemp
from helpers.stages import sft

most = recipe.sft.max_length  # longer rows are left out, not cut
few = sft.drop_too_long(tokenizer, rows, most)[:64]
row = few[0]


@session.recorded("03 prepared rows")
def prepare_rows():
    """The first row as TRL prepares it, and PEFT's count of weights."""
    trainer = sft.build_trainer(
        recipe, model, tokenizer, few, Path(mkdtemp())
    )
    sft.check_trainer(trainer, tokenizer, few)
    first = trainer.train_dataset[0]
    return {"ids": list(first["input_ids"]),
            "labels": list(first["labels"]),
            "parameters": trainer.model.get_nb_trainable_parameters()}


prepared = prepare_rows()

# %% [markdown]
# Where the first label that is not −100 stands, the completion begins.

# %%
ids, labels = prepared["ids"], prepared["labels"]
begin = next(i for i, x in enumerate(labels) if x != -100)

# %% [markdown]
# The ends of both parts; the middle is left out.

# %%
def describe_token(i):
    """Position, part, token and label of one place."""
    part = "prompt" if i < begin else "completion"
    label = "–" if labels[i] == -100 else repr(tokenizer.decode(labels[i]))
    return i, part, repr(tokenizer.decode(ids[i])), ids[i], label


shown = [0, 1, 2, *range(begin - 2, begin + 3),
         *range(len(ids) - 3, len(ids))]
columns = ["position", "part", "token", "id", "learned here"]
pd.DataFrame(
    [describe_token(i) for i in shown], columns=columns
).set_index("position")

# %% [markdown]
# The prompt carries no loss: the model is not taught to write problems. The
# last token is the **end token**, and it is learned: without it the model
# would not know when to stop.
#
# ### The round trip
#
# Three things must hold, or training undoes the base model quietly.

# %%
bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
fed = tokenizer(row.prompt, add_special_tokens=False)["input_ids"]
print("one BOS token:              ", ids.count(bos) == 1)
print("the end token is learned:   ", labels[-1] == end)
print("prompt as sampling feeds it:", ids[:begin] == fed)

# %% [markdown]
# - The stage checks every row like this, token by token: `check_trainer`
#   above did, and found nothing
# - **Break it on purpose**: the classic slip is a second BOS, added by a
#   tokenizer to a text that has one already

# %%
from helpers.base import LabError
from helpers.stages import check_supervision

doubled = ([bos, *ids], [-100, *labels])
try:
    check_supervision([doubled], [fed], tokenizer)
except LabError as error:
    print(error)

# %% [markdown]
# The trainer has put the adapter on; its own count agrees with ours.

# %%
trainable, everything = prepared["parameters"]
print(f"PEFT: {trainable:,} trainable of {everything:,}")
print("as computed above:", trainable == added)

# %% [markdown]
# ## 5. Count the steps
#
# - One **step** is one update of the adapter, from one batch
# - Too few steps: nothing moves; too many: the rows are learnt by heart
# - The number is known *before* training; so print it before training
# - A ragged last batch is a step of its own: the trainer rounds **up**

# %%
from helpers.planner import count_training_steps

config = recipe.sft
count = count_training_steps(recipe.sft, len(rows))
print(count)

# %% [markdown]
# Older reports divide and round **down**. Both counts for a published run,
# from its own numbers.

# %%
from helpers.stages import check_initial_loss
from helpers.planner import check_steps_per_epoch, count_steps
from helpers.results import load_published

theirs = load_published("math-slm")
batch = theirs.fact("sft.effective_batch").value
they = count_steps(
    theirs.fact("harvest.sft_rows_used").value, batch, batch,
    theirs.fact("sft.epochs").value,
)

# %% [markdown]
# One line is the report, two are arithmetic.

# %%
display(Markdown(
    f"- reported: {theirs.fact('sft.steps').value} steps\n"
    f"- rounded down: {they.floor_total}\n"
    f"- as the installed trainer counts: {they.total}\n\n"
    f"*{theirs.credit}*"
))

# %% [markdown]
# A few steps are no matter; a count that is off by a factor is. That is the
# next section.
#
# ## 6. A failing case, on purpose: the packing trap
#
# - **Packing** joins short rows into long sequences, to waste no padding
# - The tokens stay the same, the number of *sequences* falls
# - The batch counts sequences: so the number of **steps** falls with it
# - Nothing crashes; the loss even looks fine
# - How many sequences would our rows make, packed without a gap into the
#   longest text that the model can read?

# %%
from math import ceil

texts = [r.prompt + r.completion for r in rows]
encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
tokens = sum(len(x) + 1 for x in encoded)

# %% [markdown]
# The sum of all tokens, cut into pieces of that length, is the least number
# of sequences.

# %%
@session.recorded("03 context")
def read_context():
    """The longest text that the model can read."""
    return model.config.max_position_embeddings


context = read_context()
packed = count_steps(
    ceil(tokens / context), config.effective_batch,
    config.per_device_batch, config.epochs,
)

# %% [markdown]
# Side by side.

# %%
table = pd.DataFrame({
    "as they are": [count.rows, count.per_epoch, count.total],
    "packed": [packed.rows, packed.per_epoch, packed.total],
}, index=["sequences", "steps an epoch", "steps in all"])
print(f"{tokens:,} tokens, {tokens / len(rows):.0f} a row, "
      f"context {context}")
table

# %% [markdown]
# The guard refuses, before any model is trained.

# %%
FLOOR = 30  # the default of sft.min_steps_per_epoch
try:
    check_steps_per_epoch(packed, FLOOR, unpacked_rows=len(rows))
    print("accepted: there are rows enough, even packed")
except LabError as error:
    print(error)

# %% [markdown]
# - More epochs are no way out: the same few batches come again and again,
#   until the model knows them by heart
# - Packing is a good tool when rows are many: check the steps, then pack
# - The whole guard, as it stands in the package

# %%
import inspect

print(inspect.getsource(check_steps_per_epoch))

# %% [markdown]
# ## 7. Before training: how good is it now?
#
# - A slice of the **dev** set: problems that are in no training row
# - Settings are chosen on dev; the test sets stay closed until notebook 05
# - Greedy: the likeliest token each time, so the same answer every time

# %%
from helpers.problems import load_problems

FEW = recipe.course.dev
asked = load_problems(recipe.data.dev)[:FEW]
gold = {p.id: p.answer for p in asked}
cap = recipe.evaluate.max_new_tokens

# %% [markdown]
# One function asks, so that before and after differ in the model only.

# %%
from tqdm.auto import tqdm
from helpers.sampling import grade_texts, make_requests


@session.recorded("03 {tag} on dev", rows=Completion)
def answer_dev(tag):
    """Graded greedy responses under a progress bar."""
    model, tokenizer = session.load(tag)
    requests = make_requests(
        asked, tokenizer, recipe.data.prompt_template, n=1,
        run_seed=recipe.seed, temperature=0.0, top_p=1.0,
        max_new_tokens=cap,
    )
    stream = session.make_engine(model, tokenizer).sample(requests)
    texts = list(tqdm(stream, total=len(requests), desc=f"{tag} on dev"))
    return grade_texts(texts, gold)

# %% [markdown]
# The base model, afresh: the trainer above has put an adapter on the other
# one.

# %%
def sort_answers(graded):
    """The graded responses by problem, in the order of the problems."""
    found = {row.problem_id: row for row in graded}
    return {p.id: found[p.id] for p in asked}


before = sort_answers(answer_dev("base"))

# %% [markdown]
# The number to beat, with its interval.

# %%
from helpers.results import proportion

right = sum(r.correct for r in before.values())
print("base on dev:", proportion(right, len(before)))

# %% [markdown]
# How the rest goes wrong says what there is to gain.

# %%
from helpers.results import summarize_results

NAMES = {"k": "right", "finished_wrong": "finished, wrong",
         "truncated_wrong": "cut at the cap", "no_answer": "no answer",
         "mean_tokens": "mean tokens"}
found = {"base": summarize_results(list(before.values()))}
table = pd.DataFrame(found).loc[list(NAMES)].rename(NAMES)
table.round(1).map("{:g}".format)

# %% [markdown]
# *cut at the cap* and *no answer* are habits: training on right answers can
# mend those without any new knowledge.
#
# ## 8. Train
#
# The settings were chosen on the dev set; these were the tries, each with its
# interval. Where intervals overlap, the choice between neighbours is partly
# luck.

# %%
from helpers.base import DATA_DIR, read_json

path = DATA_DIR / "measured" / recipe.name / "tuning.json"
tried = read_json(path)["rows"] if path.is_file() else []
tries = [(", ".join(t["set"]), str(proportion(t["k"], t["n"])))
         for t in tried if t["stage"] == "sft"]
if tries:
    columns = ["tried", "right on dev"]
    display(pd.DataFrame(tries, columns=columns).set_index("tried"))
else:
    print(f"tier {recipe.name}: no tries on dev are recorded")

# %% [markdown]
# - This cell trains; the bar shows the time left and the loss
# - Killed on the way, it goes on from the last checkpoint
# - Finished before with the same inputs, it is loaded, and says so
# - The stage loads a model of its own: ours goes first

# %%
del model
metrics = session.run("sft")
note = session.note("sft")

# %% [markdown]
# Full size is the same stage from a shell; with several cards: `accelerate
# launch -m helpers sft --tier … --run-dir …`. Before an expensive run add
# `--smoke-steps 5`: same code, five steps.
#
# ## 9. The loss
#
# - **Loss**: the mean of $-\log p$ over the learned tokens, in nats
# - Each point is one batch, so the line is rough

# %%
import json

text = run.file("sft", "log.jsonl").read_text("utf-8")
log = [json.loads(line) for line in text.splitlines()]
losses = [entry for entry in log if "loss" in entry]

# %% [markdown]
# - The rows are the model's own samples, so they are likely already, and
#   the loss *per token* hardly moves
# - What moves is the choice of style, and that is made at the first few
#   tokens of an answer: a small part of the mean
# - Dotted line: the mean $-\log p$ of the same rows when they were sampled

# %%
figure = plots.plot_loss(
    {"sft": losses},
    title="SFT: training loss",
    subtitle=f"{metrics['rows']} rows, {metrics['effective_batch']} a "
    f"step, lr {config.learning_rate:g}",
    note=note,
)
sampled = metrics["sampling_loss"]
if sampled is not None:
    line = figure.axes[0].axhline(
        sampled, color="black", linestyle=":", label="−log p when sampled")
    figure.axes[0].legend(handles=[line], frameon=False, fontsize=8)
plots.show(figure, (
    "Training loss over optimizer steps as a rough line, with a dotted "
    "line at the loss recorded when the rows were sampled."
))

# %% [markdown]
# The numbers of the figure, by epoch. The last step of an epoch holds the
# rows that are left over, so its end is a mean over ten steps:

# %%
steps = pd.DataFrame(losses)
epoch = steps["epoch"].map(lambda x: f"epoch {ceil(x - 1e-9)}")
table = steps.groupby(epoch)["loss"].agg(
    ["first", "mean", lambda x: x.tail(10).mean()])
table.columns = ["first step", "mean", "last ten steps"]
table.round(3)

# %% [markdown]
# ### Does it start where it should?
#
# - The rows are the model's own samples; their $-\log p$ was recorded when
#   they were written: the dotted line
# - Before any update the training loss must be the same number
# - If it is not, training sees another text than sampling did: another
#   template, a second BOS, a loss on the prompt

# %%
def judge(first_loss, logprob):
    """The guard's verdict in words."""
    if logprob is None:
        return "Cannot be judged: −log p at sampling is not known."
    warning = check_initial_loss(first_loss, logprob)
    return warning or "They agree."

# %% [markdown]
# The two numbers, and the verdict.

# %%
display(Markdown(
    f"- first loss: {metrics['first_loss']:.3f} nats a token\n"
    f"- recorded at sampling: "
    + ("not recorded" if sampled is None else f"{sampled:.3f}")
))
print(judge(metrics["first_loss"], None if sampled is None else -sampled))

# %% [markdown]
# - The first batch is a sample of the rows, so the guard allows a margin
# - **Make it fire**: a loss made up on purpose, ten times the first one

# %%
made_up = 10 * metrics["first_loss"]
print(f"made up, not measured: {made_up:.3f}")
print(judge(made_up, -(sampled or metrics["first_loss"])))

# %% [markdown]
# And a published first loss.

# %%
published_start = theirs.fact("sft.first_loss").value
display(Markdown(
    f"A published run on its own samples began at {published_start} nats a "
    f"token ({theirs.credit})."
))
print(judge(published_start, None))

# %% [markdown]
# Its $-\log p$ at sampling was not published, so nobody can say whether it
# began where it should. One more recorded number would have settled it.
#
# ## 10. Merge
#
# - The adapter is added into the weights: one plain model, no extra code
#   to serve it
# - The sum is made in fp32 and then **cast** to the model's number format
# - bf16 keeps few digits: a change below half of the last digit is lost
# - So measure what was kept

# %%
from helpers.stages import measure_fidelity


@session.recorded("03 merge in {dtype}")
def try_merge(dtype):
    """What a merge in another number format would keep."""
    return measure_fidelity(recipe, run, "sft", dtype)


fidelity = session.run("merge/sft")
reports = {fidelity["dtype"]: fidelity}
for dtype in {"float32", "bfloat16"} - set(reports):
    reports[dtype] = try_merge(dtype)

# %% [markdown]
# - **cosine**: does the stored change point where the adapter points?
# - **norm kept**: how much of its length is left?

# %%
figure = plots.plot_merge_fidelity(
    reports, title="SFT: what the merge keeps of the update",
    note=note,
)
plots.show(figure, (
    "Bars of cosine and norm kept for a merge in fp32 and in bf16; one is "
    "a perfect merge. The numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure, and what the model makes of them:

# %%
table = pd.DataFrame({
    name: {
        "cosine": f"{r['cosine']:.5f}",
        "norm kept": f"{r['norm_kept']:.5f}",
        "entries changed": f"{r['entries_changed']:.1%}",
        "largest logit difference": f"{r['max_abs_logit_diff']:.2g}",
        "same greedy token": f"{r['greedy_agree']} of {r['greedy_total']}",
    } for name, r in reports.items()
}).T.rename_axis("merged in")
table

# %% [markdown]
# A cosine and a norm next to one: the merged model is the trained one. A
# timid update need not survive: notebook 04 measures one.
#
# ## 11. After training
#
# ### Three samples
#
# Chosen by a rule, not by taste: the first dev problem that was won, the
# first that was lost, the first that stayed wrong.

# %%
after = sort_answers(answer_dev("sft"))

# %% [markdown]
# The rule, as a function.

# %%
def first_with(was, now):
    """The first problem with these verdicts before and after."""
    return next((p for p in asked if before[p.id].correct == was
                 and after[p.id].correct == now), None)

# %% [markdown]
# Each with both answers.

# %%
def show_both(title, problem):
    """A problem, and what both models wrote."""
    print(f"=== {title}" + (": none" if problem is None else ""))
    if problem is not None:
        print(f"{problem.problem}\ngold: {problem.answer}")
        for name, answers in (("base", before), ("sft", after)):
            print(f"--- {name}\n{answers[problem.id].response}")
    print()


show_both("won", first_with(False, True))
show_both("lost", first_with(True, False))
show_both("wrong before and after", first_with(False, False))

# %% [markdown]
# Compare the *style* first: does SFT open its answer like the base model?
#
# ### The score, paired
#
# - Both models answered the same problems
# - Problems on which they agree say nothing about which is better
# - Only *won* and *lost* do

# %%
from helpers.results import compare

result = compare(
    {key: r.correct for key, r in before.items()},
    {key: r.correct for key, r in after.items()},
)
four = (result.both, result.only_before, result.only_after, result.neither)

# %% [markdown]
# Grey tiles are agreement; the two coloured ones are the evidence.

# %%
figure = plots.plot_paired(
    *four, before="base", after="sft",
    title=f"{len(asked)} dev problems, greedy, cap {cap}", note=note,
)
plots.show(figure, (
    "Four tiles: problems both models solve, problems lost, problems won, "
    "problems neither solves. The numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure:

# %%
pd.DataFrame(
    [four[:2], four[2:]],
    index=["base right", "base wrong"],
    columns=["sft right", "sft wrong"],
)

# %% [markdown]
# In one sentence, with interval and exact test.

# %%
display(Markdown(
    f"- base: {result.before}\n- sft: {result.after}\n"
    f"- {result.sentence('base', 'sft', 'dev')}"
))

# %% [markdown]
# ### Where the change comes from
#
# The same three kinds of wrong as before training.

# %%
found["sft"] = summarize_results(list(after.values()))
table = pd.DataFrame(found).loc[list(NAMES)].rename(NAMES)
table.round(1).map("{:g}".format)

# %% [markdown]
# - Where *cut* and *no answer* fell, fewer answers were left open
# - Where *finished, wrong* fell, fewer complete answers were wrong
# - The gain goes with a change of **style**; whether the arithmetic *inside*
#   a style changed is not shown here
# - [Notebook 05](05_evaluation.ipynb) counts styles, and the right ones in
#   each
#
# ## 12. Learning from other people's solutions
#
# - `mathslm solutions` makes training rows of several problem sets
# - Each set has its own format; the rows all get one: the same prompt
#   template, one mark for the answer, the end token
# - A solution whose answer is not the gold answer is left out, and so is a
#   row that is too long; both are counted
# - The T4 paper wanted three sources, and trained on one: a filter had
#   emptied the others, and nothing said so
# - Here a mix accounts for every row, and a lost source is an error
# - Small on purpose: problems of the shipped set, and a file of our own

# %%
from helpers.problems import load_mix
from helpers.base import Problem, write_records

shipped = "pocket/train.jsonl"
mine = Path(mkdtemp()) / "mine.jsonl"
own = [Problem(id=f"mine-{i}", problem=f"What is {i} + {i * i}?",
               answer=str(i + i * i)) for i in range(40)]
write_records(mine, own)
counts = load_mix({shipped: 60, str(mine): 40}, SEED).reports
pd.DataFrame({Path(name).name: report.steps
              for name, report in counts.items()}).T

# %% [markdown]
# **Break it on purpose**: the answers of the second file are gone.

# %%
write_records(mine, [p.model_copy(update={"answer": ""}) for p in own])
try:
    load_mix({shipped: 60, str(mine): 40}, SEED)
except LabError as error:
    print(str(error).replace(str(mine), mine.name))

# %% [markdown]
# ### What one change does
#
# - The paper changed everything at once; so nobody knows what helped
# - `mathslm ablate` trains once for each change, and compares *paired*, on
#   the same problems
# - Recorded with SmolLM2-135M on two cores: three sources against one, the
#   chat format left out of training, the prompts learned too

# %%
from helpers.base import resolve_data
from helpers.results import compare_counts, holm

record = read_json(resolve_data("measured/smol-mix/ablation.json"))
arms = record["seeds"]["42"]
first = next(iter(record["arms"]))

# %% [markdown]
# The interval comes from the flips alone: problems won, problems lost.

# %%
def measure_change(arm, benchmark):
    """The paired difference of one arm on one benchmark."""
    change, n = arm["change"][benchmark], arm["sft"][benchmark]["n"]
    won, lost = change["won"], change["lost"]
    return compare_counts(0, lost, won, n - won - lost).difference


labels = {name: f"{name}\nagainst "
          + ("the base model" if name == first else first) for name in arms}
panels = {
    benchmark: {labels[name]: measure_change(arm, benchmark)
                for name, arm in arms.items()}
    for benchmark in arms[first]["change"]
}

# %%
figure = plots.plot_differences(
    panels,
    title="One change at a time, SmolLM2-135M",
    subtitle="greedy, 95 % intervals; one seed",
    note=plots.recorded_on(record["manifest"]),
)
plots.show(figure, (
    "For each benchmark one line a change: a point with a bar for the 95 % "
    "interval of the difference. The numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure, with the correction for looking several times:

# %%
rows = [(name, benchmark, str(measure_change(arm, benchmark)),
         arm["change"][benchmark]["p"])
        for name, arm in arms.items() for benchmark in arm["change"]]
table = pd.DataFrame(rows, columns=["training", "set", "change", "p"])
table["p"] = table["p"].round(3)
table["p, Holm"] = [round(p, 2) for p in holm([row[-1] for row in rows])]
table.set_index(["training", "set"])

# %% [markdown]
# What of it can be told from noise is one count.

# %%
below = int((table["p, Holm"] < 0.05).sum())
minutes = sum(sum(arm["seconds"].values()) for arm in arms.values()) / 60
display(Markdown(
    f"- below 0.05 after Holm: {below} of {len(table)} comparisons\n"
    f"- the first to test again, with more problems and more seeds: "
    f"{table.loc[table['p'].idxmin(), 'training']}\n"
    f"- what the {len(arms)} arms cost: {minutes:.0f} min on "
    f"{record['manifest']['cores']} cores"
))

# %% [markdown]
# One seed and a few hundred problems name suspects, not culprits.
#
# ## 13. The honest caveat
#
# - This is **dev**: its settings were chosen by looking at it, so its score
#   is friendly; notebook 05 has the test sets
# - One seed: another draw of samples gives another adapter
# - The rows are easy problems first: what no sample solved is in no row
# - The gain is a change of style; what it is worth with another grader or
#   another cap is not shown here (notebook 05 has the table of styles)

# %%
session.show_cost("sft", "merge/sft")

# %% [markdown]
# ## Exercises
#
# 1. **Basic.** Set `OVERRIDES` to `["sft.lora.r=4", "sft.lora.alpha=8"]`
#    with a new `RUN_DIR`. How many weights are trained now? Compare the two
#    adapters on the same dev slice, paired.
# 2. **Stretch.** Train for four times as many epochs. Draw the training
#    loss and the dev score after each of them. Where do they part, and
#    which of the two would you have trusted?
# 3. **Open.** Half of the rows are written in a style that the grader likes
#    less. Does the *choice* of the right answer matter? Design a harvest
#    that prefers one style, say beforehand what should happen, and test it
#    on dev with an interval.
#
# ## Recap
#
# - **LoRA**: two thin trained matrices beside a frozen one; *rank* is their
#   inner size
# - **label −100**: no loss at this token
# - **step**: one update; counted before training, rounded up
# - **packing trap**: fewer sequences, so fewer steps, with nothing to see
# - **initial-loss guard**: the first loss equals $-\log p$ at sampling
# - **merge fidelity**: what rounding keeps of the update
#
# **Handed on:** `sft/merged` to notebooks 04 and 05.
#
# **Next:** [04 · DPO](04_dpo.ipynb) – learn from the wrong answers too.
