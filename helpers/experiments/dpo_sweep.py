"""DPO understood by measurement: learning rate × beta × steps, on dev.

Every setting trains a fresh adapter on the same merged SFT model and the
same pairs, and is measured twice against SFT on the same dev problems:
unmerged in fp32, and merged the way large models are stored, in bf16. So a
"no effect" can be told apart: nothing learnt, or rounded away.

    mathslm dpo-sweep --tier pocket --run-dir runs/pocket

Writes ``dpo_sweep.jsonl`` into the run folder, a line a setting, appended as
each is finished; a killed sweep goes on with what is missing. The trials
live under ``sweep/``, so the run's own results stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
from helpers.problems import load_problems
from helpers.results import compare

# What a trial needs of the run it starts from.
NEEDED = ("recipe.yaml", "manifest.json", "metrics.json", "sft.jsonl",
          "pairs.jsonl", "stages", "sft")  # fmt: skip
RESULT = "dpo_sweep.jsonl"
KL_PROBLEMS = 100
STORED = "bfloat16"


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
    betas, rates = list(betas), list(learning_rates)
    return [
        Setting(rate, beta, count)
        for count in sorted(steps)
        for beta in betas
        for rate in rates
    ]


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
    from helpers.stages import load_exact

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
    from helpers.sampling import grade_texts, make_engine, make_requests

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

    from helpers.stages import load_unmerged, measure_update, run_dpo

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
