# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Start here
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/math-slm-lab/math-slm-lab/blob/main/notebooks/00_start_here.ipynb)
#
# **After this notebook you can**
#
# - say what the course asks, and which notebook answers which part
# - tell which tiers your machine can run, and why
# - open a recipe, change one value, and read the refusal of a bad one
# - ask the base model one problem, greedily and by sampling
# - say what lies in a run folder and what a kill can cost
#
# **You need**
#
# - Python and this repository, or Colab; no account, no key, no GPU
# - on tier `pocket` no network
# - the time and memory that this notebook took are printed at its end

# %% tags=["parameters"]
TIER: str = "pocket"
RUN_DIR: str = "runs/pocket"
RUN_MODE: str = "auto"  # "auto", "run" or "replay"
SEED: int = 42
OVERRIDES: list = []

# %% [markdown]
# The cell above holds all that can be set from outside (papermill does), for
# example `OVERRIDES = ["data.n_problems=200"]`. The cell below is the same in
# every notebook: it finds the package (Colab fetches the repository first)
# and opens a **session**: the recipe and the run folder.

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
    TIER, RUN_DIR, RUN_MODE, SEED, OVERRIDES, notebook="00_start_here")
recipe, run = session.recipe, session.run_dir

# %% [markdown]
# ## 1. What the course asks
#
# > Fine-tune a small model for math, and know whether it worked.
#
# - The sentence has two halves
# - The first half is training: samples, SFT, DPO
# - The second half is measuring: a grader, a baseline, an interval, a paired
#   test
# - Most write-ups have only the first half
# - The second half decides what the first was worth
#
# ### The map
#
# - One box is one notebook
# - An arrow names what a notebook hands to the next
# - Every notebook also starts alone: what it lacks is found in the run
#   folder, taken from a recorded run, or made, and it says which
# - 06 is **not in this version**; the map shows where it will go

# %%
from helpers.results import plots

alt = (
    "Map of the course: boxes for the notebooks 00 to 07 in two rows, "
    "joined by arrows that name the files handed on. Notebook 00 is "
    "marked; 06 is not in this version."
)
plots.show(plots.plot_course_map(here="00"), alt)

# %% [markdown]
# The same map as a table:

# %%
import pandas as pd

steps = pd.DataFrame([
    step._replace(title=f"{step.title} (not in this version)")
    if step.key == "06" else step for step in plots.COURSE_STEPS
])
steps.columns = ["notebook", "title", "hands to the next"]
steps.replace("\n", " ", regex=True).set_index("notebook")

# %% [markdown]
# - The loop in one line: **sample → grade → keep the right ones → train on
#   them → merge → measure**
# - The model that writes the training data is the model that is trained:
#   this is *self-distillation*
# - Nobody hands it new knowledge; so what can it gain? Section 6 shows it
#
# ## 2. What this machine can do
#
# - The **doctor** looks at Python, packages, cores, memory, disk and GPU
# - `[OK]` is fine, `[WARN]` narrows the choice, only `[FAIL]` stops the
#   default course
# - It changes nothing and touches no network

# %%
from helpers.doctor import run_doctor

report = run_doctor()
print(report)

# %% [markdown]
# The verdict in one word.

# %%
print("the default course runs here:", report.ok)

# %% [markdown]
# - A package that differs from the tested version is a warning, not a stop
# - A tier line says *no* with the reason: a GPU that is missing, a number
#   format that the card lacks
# - In a shell the same report is `mathslm doctor`
#
# ## 3. One course, several tiers
#
# - A **tier** is a model, a machine and all settings that go with them
# - The notebooks are the same for every tier
# - What differs stands in one file per tier, the **recipe**
# - The table is read from the recipes

# %%
from helpers.base import list_recipes, load_recipe

rows = []
for name in list_recipes():
    one = load_recipe(name)
    rows.append({
        "tier": name,
        "what": one.description,
        "model": one.model.id,
        "precision": one.model.quantization or one.model.dtype,
        "device": one.hardware.device,
        "benchmarks": ", ".join(b.name for b in one.evaluate.benchmarks),
    })
pd.DataFrame(rows).set_index("tier")

# %% [markdown]
# - `pocket` is the default: a tiny model that was trained from scratch for
#   this course
# - It solves grade-school problems only, but everything around it is the
#   real thing: the same trainer, the same merge, the same statistics
# - What you learn about method on `pocket` holds on a large card; what you
#   measure about accuracy does not
#
# ### The plan of this tier
#
# Will it fit, how many steps, how long: arithmetic, before anything is
# loaded. In a shell: `mathslm plan --tier pocket`, and the same for every
# tier.

# %%
from helpers.planner import describe_machine, memory_rows, plan

planned = plan(recipe, has_token=True)
print(describe_machine(planned))
for name, steps in planned.steps.items():
    trained, total = planned.trainable[name]
    print(f"{name}: {trained:,} of {total:,} parameters; {steps.count}")

# %% [markdown]
# What each job holds in memory, at most.

# %%
card = planned.workload.card
figure = plots.plot_memory_bar(
    memory_rows(planned), card=card.name if card else "",
    capacity=card.memory_gib if card else None,
    title=f"Memory, recipe {recipe.name}, estimated",
)
plots.show(figure, (
    "Stacked bars, one for each job of this tier: parts of its memory. The "
    "sums are in the table below."
))

# %% [markdown]
# The sums of the figure, and the time where a run was measured:

# %%
hours = {phase.name: phase.hours for phase in planned.phases}
rows = [
    (job.title, f"{job.gib:.2f}",
     f"{60 * hours[job.title]:.1f}" if hours.get(job.title) else "–")
    for job in planned.memory
]
columns = ["job", "GiB", "minutes"]
pd.DataFrame(rows, columns=columns).set_index("job")

# %% [markdown]
# Notebook 07 takes the plan apart, up to eight large cards.
#
# ## 4. The recipe, opened
#
# - Nothing in a notebook hides a setting
# - Every setting has one place, the recipe
# - A run folder keeps the resolved recipe beside its results
# - Here are two of its sections

# %%
import yaml

shown = recipe.model_dump(mode="json", include={"sampling", "harvest"})
print(yaml.safe_dump(shown, sort_keys=False))

# %% [markdown]
# - `n` samples of each problem at `temperature`: notebook 02 uses them
# - `harvest` says what is kept of the samples
#
# ### Change one value
#
# An override is `section.key=value`. It goes into `OVERRIDES` above, or after
# `--set` in a shell.

# %%
cooler = load_recipe(TIER, ["sampling.temperature=0.7"])
print(load_recipe(TIER).sampling.temperature, "→",
      cooler.sampling.temperature)

# %% [markdown]
# - Two recipes that differ must not share a result by accident
# - So each stage stores a **hash** of what it depends on
# - A temperature changes the hash of `sampling`, not that of `sft`

# %%
from helpers.base import recipe_hash

for section in ("sampling", "sft"):
    print(section, recipe_hash(load_recipe(TIER), section),
          recipe_hash(cooler, section))

# %% [markdown]
# ### A failing case, on purpose
#
# - A typing error in a recipe is the cheapest error there is, if it is
#   refused before anything loads
# - If it is ignored, it costs a training run
# - A refusal here says *what*, *why* and *what to do*

# %%
from helpers.base import LabError

for text in ("sampling.temprature=0.7", "sft.epochs=many"):
    try:
        load_recipe(TIER, [text])
    except LabError as error:
        print(error, end="\n\n")

# %% [markdown]
# ## 5. One problem
#
# - Problems live in JSONL files: one JSON object a line
# - Each has an id, a text and a **gold** answer
# - We look at *dev* problems here; the benchmarks stay unseen until
#   notebook 05

# %%
from helpers.problems import load_problems

problems = load_problems(recipe.data.dev)
problem = problems[0]
print(problem.problem)
print("gold:", problem.answer)

# %% [markdown]
# ### The base model
#
# - *Base* means: before any training of ours
# - It is loaded once and used for the rest of this notebook

# %%
model, tokenizer = session.load("base")
engine = session.make_engine(model, tokenizer)


@session.recorded("00 model")
def describe_model():
    """Its size, and where it was loaded."""
    return model.num_parameters(), str(model.device)


count, device = describe_model()
print(f"{count:,} parameters on {device}, "
      f"{tokenizer.vocab_size:,} tokens in the vocabulary")

# %% [markdown]
# - A chat model does not see the problem alone
# - A **template** puts special tokens around it
# - One function applies it, for training and for evaluation; two functions
#   would sooner or later differ

# %%
from helpers.models import render_prompt

prompt = render_prompt(
    tokenizer, problem.problem, recipe.data.prompt_template
)
print(repr(prompt))

# %% [markdown]
# ### A greedy answer
#
# - *Greedy*: always the most likely next token
# - The same prompt gives the same answer each time
# - A request names everything that decides the answer: prompt, seed,
#   temperature, cap
# - `recorded` keeps what a cell computed with the model in the run folder
# - *Ended by* `stop`: the model wrote its end token; by `length`: it was
#   cut at the cap

# %%
from helpers.base import Completion
from helpers.sampling import grade_texts, make_requests


@session.recorded(
    "00 {few} problems, {n} x T = {temperature}", rows=Completion)
def ask(few, n, temperature):
    """n graded responses to each of the first dev problems."""
    asked = problems[:few]
    requests = make_requests(
        asked, tokenizer, recipe.data.prompt_template, n=n,
        run_seed=recipe.seed, temperature=temperature, top_p=1.0,
        max_new_tokens=recipe.sampling.max_new_tokens,
    )
    golds = {p.id: p.answer for p in asked}
    return grade_texts(list(engine.sample(requests)), golds)


greedy = ask(1, 1, 0.0)[0]
print(f"seed {greedy.seed}, ended by {greedy.finish_reason}, "
      f"{greedy.tokens} tokens")
print(greedy.response)

# %% [markdown]
# - Is it right? That is the work of a **grader**
# - It finds the answer in the text and compares it with the gold
# - Notebook 01 builds one; here we only call it

# %%
from helpers.grading import grade_response

print("gold:", problem.answer)
print(grade_response(greedy.response, problem.answer))

# %% [markdown]
# ## 6. It knows more than it reliably shows
#
# - *Sampling*: draw the next token by its probability instead
# - Temperature 1 means: exactly the model's own probabilities
# - We ask a few dev problems, each once greedily and four times by sampling
# - `FEW` is how many

# %%
FEW = 16
asked = problems[:FEW]
gold = {p.id: p.answer for p in asked}
greedy_rows = ask(FEW, 1, 0.0)
rows = ask(FEW, 4, 1.0)
print(len(rows), "samples,", sum(r.tokens for r in rows), "tokens")

# %% [markdown]
# One row a problem, four samples each. Look for rows with both colours: the
# model can solve the problem, and it can fail it.

# %%
tally = {p.id: {"right": 0, "wrong": 0} for p in asked}
for row in rows:
    tally[row.problem_id]["right" if row.correct else "wrong"] += 1
mixed = [name for name, t in tally.items() if t["right"] and t["wrong"]]
figure = plots.plot_outcomes(
    tally,
    title="Four samples of each problem", note=session.note(),
    decoding="base, temperature 1, "
    f"max_new_tokens {recipe.sampling.max_new_tokens}",
)
figure.axes[0].set_xlabel("samples")
figure.axes[0].set_xticks(range(5))
plots.show(figure, (
    f"Stacked bars, one a problem: how many of four samples are right. "
    f"{len(mixed)} of {len(asked)} problems have both right and wrong ones."
))

# %% [markdown]
# The numbers of the figure, with the greedy answer beside them:

# %%
table = pd.DataFrame(tally).T
greedy_right = {row.problem_id: row.correct for row in greedy_rows}
table.insert(0, "greedy", [
    "right" if greedy_right[p.id] else "wrong" for p in asked
])
table

# %% [markdown]
# Three shares of the same problems, each with its interval.

# %%
from IPython.display import Markdown, display
from helpers.results import proportion

shares = {
    "greedy is right": [greedy_right[p.id] for p in asked],
    "at least one of four samples is right": [
        tally[p.id]["right"] > 0 for p in asked
    ],
    "both right and wrong samples": [p.id in mixed for p in asked],
}
lines = [
    f"- {name}: {proportion(sum(hits), len(hits))}"
    for name, hits in shares.items()
]
display(Markdown("\n".join(lines)))

# %% [markdown]
# The intervals are wide: so few problems prove little. That is why notebook
# 05 uses hundreds, and compares in pairs.
#
# ### The same problem, four times
#
# Below: the first problem whose samples disagree. It is picked *because* they
# disagree; do not read a rate from it.

# %%
name = (mixed or [asked[0].id])[0]
print(next(p.problem for p in asked if p.id == name))
print("gold:", gold[name])
for row in sorted(rows, key=lambda row: row.sample):
    if row.problem_id == name:
        mark = "right" if row.correct else "wrong"
        print(f"\n--- sample {row.sample}: {mark} ({row.reason}, "
              f"{row.tokens} tokens)")
        print(row.response)

# %% [markdown]
# - Compare more than the answers: compare the *style*
# - A sample may work in steps, think aloud at length, or forget to mark its
#   answer
# - The model learned all of these from a mixed corpus
# - Which style it falls into helps to decide whether it is right
# - Training on its own right samples can make the good styles the usual
#   ones: this is the whole idea of notebooks 02 and 03
# - **Honest caveat**: what no sample ever solves is in no training row;
#   that it stays unsolved is a rule of thumb, not a bound
#
# ## 7. The run folder
#
# - One run is one folder
# - Every file in it says where it came from
# - Here is what this folder holds now

# %%
def list_folder(folder):
    """Top-level names of a folder, with sizes of plain files."""
    for path in sorted(folder.iterdir()):
        size = f"{path.stat().st_size:>9,} bytes" if path.is_file() else ""
        print(f"{path.name + '/' * path.is_dir():<18}{size}")


list_folder(run.path)

# %% [markdown]
# | file | what it holds | written by |
# |---|---|---|
# | `recipe.yaml` | the resolved recipe | the first cell of any notebook |
# | `manifest.json` | versions, commit, hardware, seed | the same |
# | `samples/*.jsonl` | every completion; who reads it grades it | notebook 02 |
# | `sft.jsonl`, `pairs.jsonl` | the harvest, with provenance | notebook 02 |
# | `sft/`, `dpo/` | adapter, merged model, training log | notebooks 03, 04 |
# | `eval/<model>/` | one line a problem | notebook 05 |
# | `metrics.json`, `ledger.json` | measures and time of each stage | each stage |
# | `report.html` | the result on one page | notebook 05 |
#
# ### The manifest
#
# A number without versions and hardware cannot be repeated. So they are
# written when the folder is made.

# %%
from helpers.base import read_json

manifest = read_json(run.file("manifest.json"))
for key in ("created", "recipe", "seed", "processor", "cores"):
    print(f"{key:<10}", manifest[key])
print("versions  ", manifest["versions"])

# %% [markdown]
# ### A kill, and going on
#
# - A laptop sleeps, Colab disconnects, a queue ends the job
# - A finished **stage** is loaded, never computed again
# - A stage that was cut in the middle goes on from its last batch
# - The next cells play this in a temporary folder

# %%
from pathlib import Path
import tempfile

from helpers.base import RunDir

folder = Path(tempfile.mkdtemp())
demo = RunDir.open(folder / "run", recipe)
inputs = {"numbers": "hash-a"}
with demo.stage("count", inputs) as record:
    demo.file("count.txt").write_text("42")
    record["outputs"] = ["count.txt"]
print("done with these inputs:", demo.is_done("count", inputs))

# %% [markdown]
# The stage recorded its inputs and its output. Ask again with *other* inputs,
# and it refuses: mixing two experiments in one folder is how wrong tables are
# made.

# %%
try:
    demo.is_done("count", {"numbers": "hash-b"})
except LabError as error:
    print(str(error).replace(str(demo.path), "the run folder"))

# %% [markdown]
# A kill while a line is being written leaves half a line. Reading drops the
# torn line and says so; the lines before it are safe.

# %%
import warnings

from helpers.base import Problem, read_records, write_records

path = folder / "problems.jsonl"
write_records(path, asked[:3])
whole = path.read_text(encoding="utf-8")
path.write_text(whole[:-40], encoding="utf-8")  # the kill
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    kept = read_records(path, Problem)
print(len(kept), "of 3 lines kept")
print(str(said[0].message).replace(str(folder), "…"))

# %% [markdown]
# - So the way to go on after a kill is to run the same thing again
# - In a shell: `mathslm course`, the same command as before
# - A folder of another recipe is refused, not overwritten

# %%
try:
    RunDir.open(run.path, load_recipe(TIER, [f"seed={SEED + 1}"]))
except LabError as error:
    print(str(error).replace(str(run.path), RUN_DIR))

# %% [markdown]
# The temporary folder has served.

# %%
import shutil

shutil.rmtree(folder)

# %% [markdown]
# ## 8. What it took
#
# Measured in this kernel, on the machine in the manifest.

# %%
session.show_cost()

# %% [markdown]
# ## Exercises
#
# 1. **Basic.** Set `FEW` to a larger number and run section 6 again. How
#    does the width of the intervals change when you ask four times as many
#    problems?
# 2. **Stretch.** Sample at other temperatures between zero and two. At which
#    one is the share of problems with both right and wrong samples largest,
#    and is the difference larger than the intervals?
# 3. **Open.** Find a problem that greedy decoding solves and sampling mostly
#    fails, and one the other way round. Look at the texts: what decides? How
#    would you test your guess on problems that you have not looked at?
#
# ## Recap
#
# - **tier**: a model, a machine and their settings
# - **recipe**: the file that holds them
# - **run folder**: everything one run made, with where it came from
# - **greedy / sampling**: always the likeliest token / drawn by probability
# - **mixed problem**: one with right and wrong samples; the raw material of
#   the course
#
# **Handed on:** a machine that was looked at and a run folder with
# `recipe.yaml` and `manifest.json`.
#
# **Next:** [01 · Grading](01_grading.ipynb) – is this answer right?
