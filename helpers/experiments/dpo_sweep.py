"""DPO understood by measurement: learning rate × beta × steps, on dev.

train a setting ─ KL ─ answers unmerged and merged ─ compare ─ fit a rule

Every setting trains a fresh adapter on the same merged SFT model and the
same pairs, and is measured twice against SFT on the same dev problems:
unmerged in fp32, and merged the way large models are stored, in bf16. So a
"no effect" can be told apart: nothing learnt, or rounded away. Rows go to
``dpo_sweep.jsonl`` of the run folder, each as it is finished; a killed sweep
goes on with what is missing. The trials live under ``sweep/``, so the run's
own results stay as they are.

From the rows an early-stop rule is derived. A run is a **no-op** when so few
dev verdicts change that no outcome could be significant: with five or fewer
the smallest p that an exact McNemar test can give is 2 × 0.5⁵ = 0.0625. The
rule looks at the reward margin early and projects it to the end of the run:
divided by β it is in nats, and it grows about as fast as the steps, so one
threshold serves every β and every length.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from tqdm.auto import tqdm

from helpers.base import (
    LabError,
    Problem,
    Recipe,
    Record,
    RunDir,
    append_records,
    hash_file,
    read_json,
    recipe_hash,
    write_json,
)
from helpers.experiments.options import RunFolder, Sets, Tier, open_run, out
from helpers.problems import load_problems
from helpers.results import compare, format_p, mcnemar_p, proportion
from helpers.sampling import grade_texts, make_engine, make_requests
from helpers.stages import (
    load_exact,
    load_unmerged,
    measure_update,
    run_dpo,
)

# What a trial needs of the run it starts from.
NEEDED = ("recipe.yaml", "manifest.json", "metrics.json", "sft.jsonl",
          "pairs.jsonl", "stages", "sft")  # fmt: skip
RESULT = "dpo_sweep.jsonl"
KL_PROBLEMS = 100
STORED = "bfloat16"
WINDOW = 5  # logged steps that are averaged, as the monitor does
LEVEL = 0.05
CANDIDATES = (5, 10, 15, 20, 30, 40)
WIDE = 2.0  # nearest runs on both sides of a threshold differ by this factor

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One cell of the grid; ``steps`` optimizer steps of eight pairs."""

    learning_rate: float
    beta: float
    steps: int

    @property
    def name(self) -> str:
        """A short name that is also a folder's."""
        digits, power = f"{self.learning_rate:.6e}".split("e")
        rate = f"{float(digits):g}e{power}"
        return f"lr{rate}-b{self.beta:g}-s{self.steps}"


def build_grid(
    learning_rates: Iterable[float],
    betas: Iterable[float],
    steps: Iterable[int],
) -> list[Setting]:
    """Every combination, the shortest runs first."""
    grid = product(sorted(steps), betas, learning_rates)
    return [Setting(rate, beta, count) for count, beta, rate in grid]


def run_sweep(
    recipe: Recipe,
    run: RunDir,
    settings: Sequence[Setting],
    *,
    n_dev: int | None = None,
) -> list[dict[str, Any]]:
    """Train and measure what is missing; return the rows of ``settings``.

    A stored row counts only when it was made from the same pairs, SFT model,
    dev problems and recipe.

    Args:
        recipe: the run's; its ``dpo`` section is the start of each setting.
        run: a run with pairs and a merged SFT model.
        n_dev: number of dev problems; None for all.

    Raises:
        LabError: the run has no pairs or no merged SFT model.
    """
    result = run.file(RESULT)
    asked = load_problems(recipe.data.dev)[:n_dev]
    made_from = describe_start(recipe, run, asked)
    known = {
        row["name"]: row
        for row in read_rows(result)
        if row.get("made_from") == made_from
    }
    wanted = {s.name: s for s in settings}
    missing = [s for name, s in wanted.items() if name not in known]
    if missing:
        trial = open_trial(recipe, run)
        before = answer_sft(recipe, trial, asked)
        for setting in tqdm(missing, desc="DPO sweep"):
            row = measure_setting(recipe, trial, setting, asked, before)
            row["made_from"] = made_from
            append_records(result, [Record.model_validate(row)])
            known[setting.name] = row
    return [known[name] for name in wanted]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The finished rows; a line torn by a kill is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                print(f"{path.name}: a torn line is left out")
    return rows


def describe_start(
    recipe: Recipe, run: RunDir, asked: Sequence[Problem]
) -> str:
    """A hash of all that a row depends on beside its setting."""
    require_start(run)
    text = json.dumps(
        [
            recipe_hash(recipe),
            hash_file(run.file("pairs.jsonl")),
            hash_file(run.file("sft", "merged")),
            [problem.id for problem in asked],
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def require_start(run: RunDir) -> None:
    """LabError unless the run holds what DPO starts from."""
    if not run.file("sft", "merged").is_dir():
        raise LabError(
            f"{run.label} has no merged SFT model.",
            fix="run distill, sft and merge first, or mathslm course",
        )


def open_trial(recipe: Recipe, run: RunDir) -> RunDir:
    """A folder of its own that starts where DPO starts.

    Metrics of settings that were trained before stay: a sweep killed
    between a training and its row goes on from there.
    """
    target = run.file("sweep")
    own = target / "metrics.json"
    trained = read_json(own) if own.is_file() else {}
    for name in NEEDED:
        source = run.file(name)
        if source.is_dir():
            shutil.copytree(source, target / name, dirs_exist_ok=True)
        elif source.is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    write_json(own, trained | run.metrics())
    return RunDir.open(target, recipe)


def name_variant(recipe: Recipe, setting: Setting) -> Recipe:
    """The recipe with the setting as a DPO variant of its name."""
    changes = {
        "learning_rate": setting.learning_rate,
        "beta": setting.beta,
        "max_steps": setting.steps,
        "effective_batch": 8,
        "per_device_batch": 8,
    }
    variants = recipe.dpo_variants | {setting.name: changes}
    return recipe.model_copy(update={"dpo_variants": variants})


def answer_sft(
    recipe: Recipe, run: RunDir, asked: Sequence[Problem]
) -> dict[str, dict[str, Any]]:
    """Greedy answers of the SFT model, in fp32 and rounded to bf16."""
    model, tokenizer = load_exact(recipe, run.file("sft", "merged"))
    answers = {"fp32": answer(recipe, model, tokenizer, asked)}
    round_weights(model)
    answers[STORED] = answer(recipe, model, tokenizer, asked)
    return answers


def round_weights(model: Any) -> None:
    """Round all weights but the adapter's to bf16; they stay fp32 tensors."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" not in name:
                weight.copy_(weight.to(getattr(torch, STORED)))


def answer(
    recipe: Recipe, model: Any, tokenizer: Any, asked: Sequence[Problem]
) -> dict[str, Any]:
    """Graded greedy completions by problem id."""
    requests = make_requests(
        asked,
        tokenizer,
        recipe.data.prompt_template,
        n=1,
        run_seed=recipe.seed,
        temperature=0.0,
        top_p=1.0,
        max_new_tokens=recipe.evaluate.max_new_tokens,
    )
    engine = make_engine(recipe, model, tokenizer)
    texts = list(engine.sample(requests))
    rows = grade_texts(texts, {p.id: p.answer for p in asked})
    return {row.problem_id: row for row in rows}


def measure_setting(
    recipe: Recipe,
    run: RunDir,
    setting: Setting,
    asked: Sequence[Problem],
    before: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Train one setting; its row."""
    import torch

    metrics = run_dpo(name_variant(recipe, setting), run, variant=setting.name)
    tag = f"dpo-{setting.name}"
    merged = run.file("sft", "merged")
    model, tokenizer = load_unmerged(recipe, run.file(tag, "adapter"), merged)
    few = [before["fp32"][p.id] for p in asked[:KL_PROBLEMS]]
    divergence = measure_kl(model, tokenizer, few)
    unmerged = answer(recipe, model, tokenizer, asked)
    round_weights(model)
    kept = measure_update(model, getattr(torch, STORED))
    model = model.merge_and_unload(safe_merge=True)
    round_weights(model)
    stored = answer(recipe, model, tokenizer, asked)
    return {
        "name": setting.name,
        **asdict(setting),
        "seed": recipe.seed,
        "n": len(asked),
        "pairs": metrics["pairs"],
        "margin": metrics["margin"],
        "accuracy": metrics["accuracy"],
        "tie_fraction": metrics["tie_fraction"],
        "sum_learning_rates": metrics["sum_learning_rates"],
        "kl_per_token": divergence,
        "unmerged": compare_answers(before["fp32"], unmerged),
        "merged_bf16": compare_answers(before[STORED], stored),
        "update_kept_bf16": kept,
        "margins": read_margins(run.file(tag, "log.jsonl")),
    }


def compare_answers(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, Any]:
    """Right before and after, won, lost, exact p, and texts that changed."""
    result = compare(
        {key: row.correct for key, row in before.items()},
        {key: row.correct for key, row in after.items()},
    )
    return {
        "before": result.both + result.only_before,
        "after": result.both + result.only_after,
        "won": result.only_after,
        "lost": result.only_before,
        "p_value": result.p_value,
        "texts_changed": sum(
            row.response != after[key].response for key, row in before.items()
        ),
    }


def measure_kl(model: Any, tokenizer: Any, rows: Sequence[Any]) -> float:
    """Mean KL(policy ‖ reference) in nats a token.

    Exact over the vocabulary at every token of the reference's own greedy
    answers; the reference is the same model with its adapter off.

    Args:
        model: a PEFT model, unmerged.
        rows: completions of the reference.
    """
    import torch

    from helpers.stages import encode_pair

    total, tokens = 0.0, 0
    for row in rows:
        asked, answer = encode_pair(tokenizer, row.prompt, row.response)
        start = len(asked)
        ids = torch.tensor([asked + answer[:-1]], device=model.device)
        with torch.inference_mode():
            policy = model(ids).logits[0, start - 1 :].float().log_softmax(-1)
            with model.disable_adapter():
                reference = model(ids).logits[0, start - 1 :].float()
        reference = reference.log_softmax(-1)
        total += (policy.exp() * (policy - reference)).sum().item()
        tokens += policy.shape[0]
    return total / tokens


def read_margins(log: Path) -> list[list[float]]:
    """[step, margin] of every logged step."""
    rows = map(json.loads, log.read_text("utf-8").splitlines())
    return [
        [row["step"], round(row["rewards/margins"], 6)]
        for row in rows
        if "rewards/margins" in row
    ]


@dataclass(frozen=True)
class StopRule:
    """Stop at ``step`` when the projected margin is below ``nats``."""

    step: int
    nats: float

    def stops(self, row: Row) -> bool:
        """Whether the rule would have ended this run."""
        return project_nats(row, self.step) < self.nats


@dataclass(frozen=True)
class RuleCheck:
    """What a rule did on runs: counts, and steps not trained."""

    runs: int
    right: int
    stopped: int
    stopped_wrongly: int
    missed: int
    steps: int
    steps_saved: int

    def summary(self) -> dict[str, int]:
        """The counts as a dictionary."""
        return asdict(self)


def largest_silent(level: float = LEVEL) -> int:
    """Most changed verdicts with which no exact McNemar p is below level."""
    count = 0
    while mcnemar_p(0, count + 1) >= level:
        count += 1
    return count


def is_noop(row: Row, model: str = "unmerged") -> bool:
    """Whether this run's evaluation could not have shown an effect.

    Args:
        model: "unmerged" or "merged_bf16".
    """
    return row[model]["won"] + row[model]["lost"] <= largest_silent()


def project_nats(row: Row, step: int) -> float:
    """The margin at the end of the run, in nats, as seen at ``step``.

    Mean |margin| / β over the last logged steps up to there, times planned
    steps over ``step``.

    Raises:
        LabError: the run logged nothing up to there.
    """
    seen = [margin for at, margin in row["margins"] if at <= step][-WINDOW:]
    if not seen:
        raise LabError(f"{row['name']} logged no margin up to step {step}.")
    nats = abs(math.fsum(seen) / len(seen)) / row["beta"]
    return nats * row["steps"] / step


def derive_rule(
    rows: Sequence[Row], candidates: Iterable[int] = CANDIDATES
) -> StopRule:
    """The earliest step at which one threshold tells the runs apart best.

    The threshold lies between two neighbouring runs, at their geometric
    mean; of several that are as often right the one with the widest gap (as
    a ratio) is taken. Of several steps the earliest whose gap is at least
    :data:`WIDE`, else the one with the widest.

    Raises:
        LabError: the rows are all no-ops, or none is.
    """
    if len({is_noop(row) for row in rows}) < 2:
        raise LabError(
            "No rule can be derived: the runs are all no-ops, or none is.",
            fix="sweep lower and higher learning rates",
        )
    found = [(step, *max(_split(rows, step))) for step in sorted(candidates)]
    most = max(right for _, right, _, _ in found)
    best = [entry for entry in found if entry[1] == most]
    wide = [entry for entry in best if entry[2] >= WIDE]
    step, _, _, nats = (wide or [max(best, key=lambda entry: entry[2])])[0]
    return StopRule(step, nats)


def _split(
    rows: Sequence[Row], step: int
) -> Iterable[tuple[int, float, float]]:
    """(runs judged right, ratio of the gap, threshold) of every split."""
    values = sorted({project_nats(row, step) for row in rows})
    for low, high in pairwise(values):
        nats = math.sqrt(max(low, 1e-12) * high)
        rule = StopRule(step, nats)
        right = sum(rule.stops(row) == is_noop(row) for row in rows)
        yield right, high / max(low, 1e-12), nats


def check_rule(rule: StopRule, rows: Sequence[Row]) -> RuleCheck:
    """How often the rule is right on runs, and what it saves."""
    stopped = [row for row in rows if rule.stops(row)]
    wrongly = sum(not is_noop(row) for row in stopped)
    missed = sum(is_noop(row) for row in rows if not rule.stops(row))
    return RuleCheck(
        runs=len(rows),
        right=len(rows) - wrongly - missed,
        stopped=len(stopped),
        stopped_wrongly=wrongly,
        missed=missed,
        steps=sum(row["steps"] for row in rows),
        steps_saved=sum(row["steps"] - rule.step for row in stopped),
    )


def start_sweep(
    tier: Tier = None,
    run_dir: RunFolder = None,
    sets: Sets = None,
    learning_rates: Annotated[
        str, typer.Option(help="Comma-separated.")
    ] = "5e-7,5e-6,5e-5,2e-4",
    betas: Annotated[str, typer.Option(help="Comma-separated.")] = "0.1,0.3",
    steps: Annotated[str, typer.Option(help="Comma-separated.")] = "60,200",
    dev: Annotated[
        int | None, typer.Option(min=1, help="Dev problems. Default: all.")
    ] = None,
) -> None:
    """Train DPO over a grid of settings and measure each on dev."""
    grid = [
        _read_numbers("--learning-rates", learning_rates),
        _read_numbers("--betas", betas),
        _read_numbers("--steps", steps),
    ]
    recipe, run = open_run(tier, run_dir, sets)
    settings = build_grid(grid[0], grid[1], map(int, grid[2]))
    out.print(show_sweep(run_sweep(recipe, run, settings, n_dev=dev)))
    out.print(f"Rows: {run.path / 'dpo_sweep.jsonl'}", soft_wrap=True)


def _read_numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise LabError(
            f"{option} {text!r} is not a list of positive numbers.",
            fix=f"write it as {option} 5e-6,2e-4",
        )
    return numbers


def show_sweep(rows: Iterable[Row]) -> Table:
    """One row a setting: margin, KL, and what both models do on dev."""
    table = Table(
        "learning rate", "β", "steps", "margin", "KL a token",
        "unmerged: right", "won", "lost", "p", "in bf16: won", "lost",
    )  # fmt: skip
    for row in rows:
        plain, stored = row["unmerged"], row["merged_bf16"]
        table.add_row(
            f"{row['learning_rate']:g}",
            f"{row['beta']:g}",
            str(row["steps"]),
            f"{row['margin']:.4f}",
            f"{row['kl_per_token']:.2g}",
            str(proportion(plain["after"], row["n"])),
            str(plain["won"]),
            str(plain["lost"]),
            format_p(plain["p_value"]),
            str(stored["won"]),
            str(stored["lost"]),
        )
    return table
