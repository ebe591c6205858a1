# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Scaling up: from a laptop to eight H100
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/math-slm-lab/math-slm-lab/blob/main/notebooks/07_scaling_up.ipynb)
#
# **After this notebook you can**
#
# - say before a run whether it fits, how long it takes and what it costs
# - name what fills a card, and what each remedy takes away
# - say why eight copies beat one engine over four cards, with the arithmetic
# - choose between DDP, ZeRO-2 and ZeRO-3
# - make a doomed run refuse itself, and start the real one
#
# **You need**
#
# - any CPU: nothing is trained, no model is loaded, no network is used
# - the time and memory that this notebook took are printed at its end

# %% tags=["parameters"]
TIER: str = "pocket"
RUN_DIR: str = "runs/pocket"
RUN_MODE: str = "auto"  # "auto", "run" or "replay"
SEED: int = 42
OVERRIDES: list = []
BIG: str = "h100x8"  # the recipe that is planned in detail

# %% [markdown]
# - Setup, the same in every notebook: find the package (Colab fetches the
#   repository first), open the **session**: the recipe and the run folder
# - `BIG` is the recipe that is looked at closely; another tier works too

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
    TIER, RUN_DIR, RUN_MODE, SEED, OVERRIDES, notebook="07_scaling_up")
recipe, run = session.recipe, session.run_dir

# %% [markdown]
# ## 1. One course, many machines
#
# - Notebooks 02 to 05 do not change from tier to tier
# - Three things do: what a **card** holds, how long it **takes**, what it
#   **costs**
# - All three are arithmetic, so they can be known before anything is rented
# - `plan(recipe)` does the arithmetic: sizes of the model, settings of the
#   recipe, a table of cards
# - It loads no torch and asks no network; how long did all tiers take?

# %%
from helpers.planner import plan
from helpers.base import list_recipes, load_recipe

import time

clock = time.perf_counter()
plans = {
    name: plan(load_recipe(name), has_token=True) for name in list_recipes()
}
seconds = time.perf_counter() - clock
print(f"{len(plans)} plans in {seconds:.2f} s, torch loaded:",
      "torch" in sys.modules)

# %% [markdown]
# - One row a tier; the hours are **estimates** where nothing was measured
# - *Trainable*: what LoRA adds, counted exactly

# %%
import pandas as pd


def describe(found):
    """The row of one plan."""
    work, steps = found.workload, found.steps["SFT"].count
    machine = f"{work.cards} × {work.card.name}" if work.card else "a CPU"
    hours = found.total.hours
    return {
        "model": work.shape.name.split("/")[-1],
        "bits": work.quantization or work.dtype,
        "machine": machine,
        "trainable": f"{found.trainable['SFT'][0]:,}",
        "SFT steps": steps.total,
        "hours": "not known" if hours is None else f"{hours:.1f}",
        "USD": f"{found.total.usd:.0f}" if found.total.usd else "",
    }


pd.DataFrame({name: describe(found) for name, found in plans.items()}).T

# %% [markdown]
# The same in a shell: `mathslm plan --tier h100x8`. For another machine:
# `--card A100 --cards 4`; the batch is solved again.

# %%
from helpers.planner import describe_machine

big = plans.get(BIG) or plan(load_recipe(BIG), has_token=True)
print(describe_machine(big))
for name, (trained, total) in big.trainable.items():
    print(f"{name}: {trained:,} of {total:,} ({trained / total:.4%})")

# %% [markdown]
# ## 2. What fills a card
#
# - **Weights**: two bytes each in 16 bits, about half a byte in NF4
# - **Adapter and optimizer**: LoRA weights, their gradients, and two moments
#   that AdamW keeps of each
# - **Checkpoints** and **activations**: what the backward pass needs again
# - **Logits**: one number for every token *and* every word of the
#   vocabulary
# - **KV cache**: keys and values of all tokens that are being sampled
# - **Runtime**: CUDA itself

# %%
from helpers.results import plots
from helpers.planner import memory_rows

card = big.workload.card
figure = plots.plot_memory_bar(
    memory_rows(big), capacity=card.memory_gib, card=card.name,
    title=f"Memory of one card, recipe {BIG}",
)
plots.show(figure, (
    "Stacked bars, one for each job of the recipe, against a line for the "
    "memory of one card. The parts are in the table below."
))

# %% [markdown]
# The numbers of the figure, in GiB:

# %%
def table_of(found):
    """GiB of one card: jobs in rows, parts in columns."""
    rows = {row["job"]: row["parts"] for row in memory_rows(found)}
    table = pd.DataFrame(rows).T
    table["all"] = table.sum(axis=1)
    return table.round(1)


table_of(big)

# %% [markdown]
# Sampling fills the card on purpose: what is left after the weights becomes
# cache, and more cache is more answers at once. Training is judged by its
# longest batch, not by the average one.
#
# ### Three remedies, and what each takes
#
# - Half the rows at once: half of activations, twice the accumulation
# - Checkpointing off: no second forward pass, but every activation is kept
# - Four bits: the frozen weights shrink, each use unpacks them

# %%
TRIES = {
    "as it is": [],
    "one row at once": ["sft.per_device_batch=1"],
    "no checkpointing": ["sft.gradient_checkpointing=false"],
    "frozen weights in NF4": ["model.quantization=nf4"],
}
rows = {}
for name, changes in TRIES.items():
    changed = ["hardware.strategy=ddp", *changes]
    found = plan(load_recipe(BIG, changed), has_token=True)
    rows[name] = table_of(found).loc["SFT"]
pd.DataFrame(rows).T

# %% [markdown]
# - The last column decides; the others say where to save
# - *No checkpointing* is the faster setting where it fits
#
# ## 3. Down the ladder
#
# - A model that does not fit can be held in fewer bits
# - Each rung must need **less** than the one before
# - A published course for the T4 tried 4 bits first, then 8, then 16: a
#   ladder that leads up, and cannot help
# - The rungs for a 7B model on a T4, by the planner

# %%
RUNGS = {"fp16": "null", "8 bits": "int8", "NF4, 4 bits": "nf4"}
rows = {}
for name, kind in RUNGS.items():
    changes = [f"model.quantization={kind}"]
    found = plan(load_recipe("t4-7b", changes), has_token=True)
    parts = table_of(found).loc["SFT"]
    rows[name] = {
        "weights, GiB": parts["weights"],
        "SFT, GiB": parts["all"],
        "fits a T4": "yes" if found.fits["T4"]["SFT"] else "no",
    }
pd.DataFrame(rows).T

# %% [markdown]
# - `load_model` walks the same rungs at run time, on out-of-memory only,
#   and says what it tried
# - Below the last rung: a part of the layers on the CPU, then a smaller
#   model, which is mostly the better idea
# - **Precision** is chosen by the card: a T4 has no bf16 arithmetic, so its
#   recipes say fp16
# - Ask for bf16 there, and the guard answers

# %%
from helpers.planner import (
    check_precision, check_steps_per_epoch, check_travel, count_steps,
    learning_rate_travel,
)
from helpers.stages import check_reference_control
from helpers.base import LabError

try:
    check_precision("Tesla T4", (7, 5), "bfloat16")
except LabError as error:
    print(error)

# %% [markdown]
# ## 4. What happens when
#
# Phases one after another; the price runs all the time.

# %%
from helpers.planner import phase_rows

figure = plots.plot_gantt(
    phase_rows(big), title=f"Recipe {BIG}, estimated",
)
plots.show(figure, (
    "Horizontal bars, one a phase, in the order in which they run, with "
    "hours and dollars. The numbers are in the table below."
))

# %% [markdown]
# The numbers of the figure, and what they rest on:

# %%
rows = [
    (p.name, f"{p.tokens:,.0f}" if p.tokens else "", f"{60 * p.hours:.0f}",
     f"{p.usd:.2f}", p.how)
    for p in (*big.phases, big.total) if p.hours
]
columns = ["phase", "tokens", "minutes", "USD", "how"]
pd.DataFrame(rows, columns=columns).set_index("phase")

# %% [markdown]
# Every line says how it was got: *assumed*, a share of the **roofline** (what
# the card could do at best), or measured. An estimate with its assumption can
# be wrong in the open.

# %%
for line in big.assumptions:
    print("-", line)

# %% [markdown]
# ## 5. Eight copies, not one engine over four cards
#
# - **Tensor parallelism** splits every matrix over several cards: one
#   engine, more memory
# - **Replicas** are whole copies, one a card: each answers its own prompts
# - Prompts are independent, so no copy ever waits for another
#
# ### Which sizes are possible at all
#
# Attention heads must divide evenly; KV heads too, unless there are fewer of
# them than cards: then each is copied. So the rule is the model's, not the
# machine's.

# %%
from helpers.planner import (
    find_shape, list_shapes, valid_tensor_parallel_sizes,
)

rows = [
    (name.split("/")[-1], shape.num_attention_heads,
     shape.num_key_value_heads,
     ", ".join(map(str, valid_tensor_parallel_sizes(shape, 8))))
    for name in list_shapes() for shape in [find_shape(name)]
]
columns = ["model", "heads", "KV heads", "sizes up to 8"]
pd.DataFrame(rows, columns=columns).set_index("model")

# %% [markdown]
# The failing case, on purpose: all eight cards for the 7B model.

# %%
from helpers.planner import require_tensor_parallel

seven = find_shape("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B")
try:
    require_tensor_parallel(seven, 8)
except LabError as error:
    print(error)

# %% [markdown]
# ### The arithmetic
#
# - A decode step reads all weights and the whole cache once: memory
#   bandwidth sets its speed
# - Over four cards each reads a quarter, and then they wait for each other,
#   twice a layer
# - Below: one copy a card against the published TP=4

# %%
from helpers.planner import compare_layouts

published = compare_layouts(seven, 8, tensor_parallel_size=4)
(alone, _), (parallel, _) = published.alone, published.parallel
print(f"one card alone    {alone * 1e3:5.2f} ms a step")
print(f"four cards, TP=4  {parallel * 1e3:5.2f} ms a step")
print(f"efficiency of a card in the engine: {published.efficiency:.0%}")
print(f"8 × TP=1 over 1 × TP=4: {published.speedup:.2f} times the tokens")

# %% [markdown]
# The waiting time is an assumption, so vary it.

# %%
from helpers.results import recompute_math_slm

sampling, *_ = bill = recompute_math_slm()  # published: data generation
minutes, rate = sampling.minutes, sampling.usd / sampling.minutes
rows = []
for microseconds in (0, 10, 20, 30):
    found = compare_layouts(seven, 8, all_reduce_s=microseconds * 1e-6)
    saved = found.save_minutes(minutes)
    rows.append((microseconds, f"{found.efficiency:.0%}",
                 f"{found.speedup:.2f}", f"{minutes - saved:.0f}",
                 f"{saved * rate:.2f}"))
columns = ["µs an all-reduce", "efficiency", "speed-up",
           f"minutes instead of {minutes:.0f}", "USD saved"]
pd.DataFrame(rows, columns=columns).set_index(columns[0])

# %% [markdown]
# - Even with free communication half of the cards were idle: the first row
#   is the floor
# - The table takes the published minutes for pure decoding; they were not:
#   loading, stragglers and grading are in them
# - So **profile before you parallelise**: look how far the published rate
#   was from the roofline before you split anything
# - What the idle half alone cost there:

# %%
from helpers.results import price_idle_cards

print(f"{price_idle_cards():.2f} USD, computed from the published bill")
print(big.replicas.why if big.replicas else "no vLLM in this recipe")

# %% [markdown]
# ## 6. DDP, ZeRO-2, ZeRO-3
#
# - **DDP**: every card holds everything; after a step the gradients are
#   averaged
# - **ZeRO-2**: gradients and optimizer are shared out; weights are whole
# - **ZeRO-3**: weights are shared out too, and gathered layer by layer for
#   every pass
# - A LoRA has few gradients to share; a full fine-tune has all of them
# - So the same three letters mean something else for the two

# %%
from dataclasses import replace
from helpers.planner import estimate_training

work = big.workload
job = next(j for j in work.jobs if getattr(j, "kind", "") == "sft")
rows = {}
for strategy in ("ddp", "zero2", "zero3"):
    shared = replace(work, strategy=strategy)
    full = estimate_training(shared, replace(job, lora=None))
    part = estimate_training(shared, job)
    rows[strategy] = {
        "LoRA, GiB a card": round(part.gib, 1),
        "all weights, GiB a card": round(full.gib, 1),
    }
pd.DataFrame(rows).T

# %% [markdown]
# And the time: what gathering costs where nothing hides it.

# %%
rows = {}
for strategy in ("ddp", "zero2", "zero3"):
    changed = load_recipe(BIG, [f"hardware.strategy={strategy}"])
    found = plan(changed, has_token=True)
    rows[strategy] = {
        p.name: f"{60 * p.hours:.1f} min" for p in found.phases
        if p.name in ("SFT", "DPO") and p.hours
    }
pd.DataFrame(rows).T

# %% [markdown]
# - LoRA on a model that one card holds: **DDP**
# - Full fine-tune of a model that one card can still load: **ZeRO-3**
# - ZeRO-2 lies between: for full fine-tunes whose weights fit
# - The recipe `h100x8` says ZeRO-3 all the same: it is what was published,
#   and the planner says what it costs

# %%
for text in big.warnings:
    print("-", text)

# %% [markdown]
# ### One effective batch, any number of cards
#
# The learning rate belongs to the **effective batch**: rows that one
# optimizer step sees. So that stays, and the accumulation is solved again.

# %%
from helpers.planner import solve_batch

for cards in (1, 2, 4, 6, 8):
    print(f"{cards} card(s):", solve_batch(64, 2, cards))

# %% [markdown]
# Six cards cannot make that batch: the planner says so, and the stage refuses
# rather than train with another one.
#
# ## 7. Guards
#
# - A guard takes numbers and gives a verdict; it loads nothing
# - Each has a story: somebody paid for it
# - Here is the list, read from the package

# %%
from helpers.base import GUARDS

table = pd.DataFrame([guard.as_row() for guard in GUARDS])
table.set_index("guard")[["function", "runs"]]

# %% [markdown]
# And three of the stories.

# %%
for name in ("check_distinct_fraction", "check_noop", "check_single_bos"):
    row = table.set_index("function").loc[name]
    print(f"{row['guard']}: {row['story']}\n")

# %% [markdown]
# ### The packing trap, on purpose
#
# - **Packing** joins short rows into long ones: no padding, fewer rows
# - Fewer rows are fewer **steps**, and steps are what trains
# - The published rows, packed to their maximum length; about how many tokens
#   a row had is worked back from the steps that were reported

# %%
ROWS, TOKENS, LONGEST = 2439, 322, 2048
packed = -(-ROWS * TOKENS // LONGEST)
plain_count = count_steps(ROWS, 64, 2, 3, world_size=8)
packed_count = count_steps(packed, 64, 2, 3, world_size=8)
print("not packed:", plain_count)
print("packed:    ", packed_count)

# %% [markdown]
# The guard counts the rows that the trainer sees.

# %%
check_steps_per_epoch(plain_count, 30)
try:
    check_steps_per_epoch(packed_count, 30, unpacked_rows=ROWS)
except LabError as error:
    print(error)

# %% [markdown]
# Three times the epochs is no remedy: the same rows again, by heart.
#
# ### Learning rates too small to be stored
#
# AdamW moves a weight by about the learning rate a step, so a whole run by at
# most their **sum**. A 16-bit weight can only change by whole **ulps**; below
# half of one, merging rounds the change away.

# %%
from helpers.results import load_published

theirs = load_published("math-slm")
for name in ("dpo.", "dpo.rerun_"):
    rate = float(theirs.fact(f"{name}learning_rate").value)
    steps = int(theirs.fact(f"{name}steps").value)
    travel = learning_rate_travel(rate, steps, warmup_ratio=0.03)
    print(f"{steps} steps at {rate:g}:",
          check_travel(travel) or "no warning", end="\n\n")

# %% [markdown]
# The first is what was published, the second what its authors would try next.
# In fp32 both would be stored.

# %%
exact = learning_rate_travel(5e-7, 60, dtype="float32")
print(check_travel(exact) or f"no warning: {exact}")

# %% [markdown]
# ### A reference that moves
#
# DPO compares the model with itself, adapter switched off. A weight that is
# trained *outside* the adapter stays on in both: the reference moves too.

# %%
names = ["layers.0.q_proj.lora_A.default.weight",
         "layers.0.mlp.gate.weight"]
try:
    check_reference_control(names)
except LabError as error:
    print(error)

# %% [markdown]
# ### All that can be run before a run
#
# - `mathslm doctor --tier h100x8` calls every guard that needs no model:
#   cards, memory, packages, disk, licence, tokenizer, results that are
#   there
# - It ends with 1 where one fails, so a script stops before the money does

# %%
from helpers.doctor import check_tier

report = check_tier(load_recipe(BIG), f"runs/{BIG}")
for line in report.lines:
    if line.status != "OK":
        print(str(line)[:160])

# %% [markdown]
# ## 8. The bill
#
# A published bill, recomputed from its minutes and its hourly rate. If our
# arithmetic did not give it back, it should not be trusted with the next one.

# %%
from IPython.display import Markdown, display

rows = [
    (line.phase, f"{line.minutes:.0f}", line.published_usd,
     f"{line.usd:.2f}") for line in bill
]
columns = ["phase", "minutes", "published USD", "recomputed USD"]
display(pd.DataFrame(rows, columns=columns).set_index("phase"))
display(Markdown(f"*{theirs.credit}*"))

# %% [markdown]
# - The published total is $93 for 3.5 hours
# - The second largest line is **not computation**: a machine that waits
#   for an upload costs as much as one that trains
# - What to do about it: fetch models and data on a cheap machine, upload
#   from one, and try every stage with a few steps first
# - Ours, estimated, for the recipe of this notebook

# %%
total = big.total
print(f"{BIG}: {total.hours:.1f} h, {total.usd or 0:.0f} USD, of which")
for phase in big.phases:
    if phase.usd:
        print(f"  {phase.name:<10} {phase.usd:6.2f} USD")

# %% [markdown]
# ## 9. Start it
#
# First the checks, on the machine itself.
#
# ```bash
# mathslm doctor --tier h100x8
# mathslm plan --tier h100x8
# mathslm distill --tier h100x8 --smoke-steps 5
# mathslm distill --tier h100x8
# ```
#
# Then training, one process a card; `ddp.yaml` in place of `zero3.yaml` is
# the faster choice for a LoRA.
#
# ```bash
# CONFIG=helpers/recipes/accelerate/zero3.yaml
# accelerate launch --config_file $CONFIG -m helpers sft --tier h100x8
# mathslm merge --tier h100x8
# accelerate launch --config_file $CONFIG -m helpers dpo --tier h100x8
# mathslm merge --tier h100x8 --model dpo
# mathslm evaluate --tier h100x8
# mathslm report --tier h100x8
# ```
#
# The files are short; here is what they say.

# %%
import yaml
from helpers.base import REPO_ROOT

rows = {}
for path in sorted(REPO_ROOT.glob("helpers/recipes/accelerate/*.yaml")):
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    keys = ("distributed_type", "num_machines", "num_processes")
    rows[path.name] = {key: found.get(key, "") for key in keys}
pd.DataFrame(rows).T

# %% [markdown]
# Several machines: the same file with the address of the first one,
# `zero3_multinode.yaml`. Each command can be killed and started again;
# finished stages are loaded.
#
# ## 10. The honest caveat
#
# - Nothing on this page was run on the big machines: the plan is arithmetic
# - Memory is checked against measured peaks of the small tiers; hours on
#   cards rest on an assumed share of what the card can do
# - A plan that is wrong is still useful: it says what was assumed, so a
#   measurement can say which assumption was wrong
# - What this notebook took:

# %%
session.show_cost()

# %% [markdown]
# ## Exercises
#
# 1. **Basic.** Plan `t4` on an `A100 40GB`: what would you change in the
#    recipe now that there is room? Say which part of the memory you fill.
# 2. **Stretch.** Find the longest `max_length` at which SFT of `h100x8`
#    still fits one card under DDP. Which part grows? Then do it with
#    ZeRO-3, and say why the gain is what it is.
# 3. **Open.** Take a published training run of your choice that names its
#    machine and its time. Plan it. Where plan and report differ by more
#    than a factor of two, find out which of the two is wrong.
#
# ## Recap
#
# - **plan**: memory, steps, hours and dollars from sizes alone
# - **replica**: a whole copy on one card; first choice for sampling
# - **tensor parallelism**: for a model that one card cannot hold
# - **DDP, ZeRO-2, ZeRO-3**: what every card holds, and what it must fetch
# - **effective batch**: stays; the accumulation is solved
# - **guard**: a verdict before the bill
#
# **Handed on:** nothing; this page reads recipes only.
#
# **Next:** your own model. The map is in
# [00 · Start here](00_start_here.ipynb).
