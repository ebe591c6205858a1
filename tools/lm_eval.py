"""Results in the format of lm-evaluation-harness, for others' tools.

``python -m tools.lm_eval RUN_DIR`` writes them into the run folder,
one folder a model: ``results_<date>.json`` with the scores, and
``samples_<benchmark>_<date>.jsonl`` with every response, as the harness
(0.4.13, ``lm_eval/loggers/evaluation_tracker.py``, ``evaluator.py`` and
``result_schema.py``) writes them with ``--log_samples``. A test compares the
fields with files of the real harness. Only evaluations with one line a
problem are written; the grader's verdict is the metric ``exact_match``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from helpers import __version__
from helpers.base import (
    LabError,
    Problem,
    RunDir,
    load_recipe,
    name_folder,
    read_json,
    write_text,
)
from helpers.grading import GRADER_VERSION, GradedCompletion
from helpers.problems import load_problems
from helpers.results import Results, choose_benchmarks, read_results

METRIC, FILTER = "exact_match", "none"
NO_ANSWER = "[invalid]"  # what the harness writes when no regex matches
FOLDER = "lm_eval"


def main(
    run_dir: Annotated[Path, typer.Argument(help="A run folder.")],
) -> None:
    """Write the results of a run for other people's tools."""
    recipe = run_dir / "recipe.yaml"
    if not recipe.is_file():
        raise LabError(f"There is no run in {run_dir}.")
    run = RunDir.open(run_dir, load_recipe(recipe))
    for path in export_lm_eval(read_results(run)):
        print(f"written: {path}")


def export_lm_eval(results: Results) -> list[Path]:
    """Write ``lm_eval/<model>/`` in the run folder; returns the files.

    Raises:
        LabError: nothing was evaluated, or the problems cannot be read.
    """
    if not results.evals:
        raise LabError(
            "There is no evaluation to export.",
            fix=results.command("evaluate"),
        )
    made = {
        tag: {n: make_samples(results, n, rows) for n, rows in benches.items()}
        for tag, benches in results.evals.items()
    }
    out = []
    for tag, lines in made.items():
        folder = results.run.file(FOLDER, tag)
        stamp = _read_stamp(results, tag)
        date = stamp.isoformat().replace(":", "-")
        page = make_results(results, tag, lines, stamp)
        target = folder / f"results_{date}.json"
        write_text(target, json.dumps(page, indent=2, ensure_ascii=False))
        out.append(target)
        for name, samples in lines.items():
            target = folder / f"samples_{name}_{date}.jsonl"
            write_text(target, "".join(map(_dump_line, samples)))
            out.append(target)
    return out


def _dump_line(sample: dict[str, Any]) -> str:
    return json.dumps(sample, ensure_ascii=False) + "\n"


def _read_stamp(results: Results, tag: str) -> datetime:
    """When the model was evaluated, in UTC: the same files every time."""
    path = results.run.file("stages", f"evaluate-{tag}.json")
    started = read_json(path).get("started") if path.is_file() else None
    started = started or results.manifest_of(f"evaluate/{tag}").get("created")
    stamp = datetime.fromisoformat(started or "1970-01-01")
    if stamp.tzinfo:
        stamp = stamp.astimezone(UTC)
    return stamp.replace(tzinfo=None)


def make_samples(
    results: Results, name: str, rows: list[GradedCompletion]
) -> list[dict[str, Any]]:
    """One line a problem, in the problems' order.

    Raises:
        LabError: none of them is a problem of the recipe's benchmark.
    """
    (config,) = choose_benchmarks(results.run.recipe, [name])
    problems = load_problems(config.path, config.n)
    found = {row.problem_id: row for row in rows}
    settings = _generation(results)
    if not any(problem.id in found for problem in problems):
        raise LabError(
            f"None of the {len(rows)} problems evaluated as {name} is in "
            f"{config.path}.",
            why="the recipe names other problems than were evaluated",
            fix="give the benchmark its own problem file back, or "
            f"evaluate again: {results.command('evaluate')}",
        )
    return [
        _make_sample(place, problem, found[problem.id], settings)
        for place, problem in enumerate(problems)
        if problem.id in found
    ]


def _make_sample(
    place: int,
    problem: Problem,
    row: GradedCompletion,
    settings: dict[str, Any],
) -> dict[str, Any]:
    doc = problem.model_dump(exclude_none=True)
    told = row.extracted if row.extracted is not None else NO_ANSWER
    return {
        "doc_id": place,
        "doc": doc,
        "target": problem.answer,
        "arguments": {"gen_args_0": {"arg_0": row.prompt, "arg_1": settings}},
        "resps": [[row.response]],
        "filtered_resps": [told],
        "filter": FILTER,
        "metrics": [METRIC],
        "doc_hash": hash_string(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": hash_string(row.prompt),
        "target_hash": hash_string(problem.answer),
        METRIC: float(row.correct),
    }


def _generation(results: Results) -> dict[str, Any]:
    evaluate = results.run.recipe.evaluate
    return {
        "until": [],
        "max_gen_toks": evaluate.max_new_tokens,
        "do_sample": evaluate.temperature > 0,
        "temperature": evaluate.temperature,
    }


def make_results(
    results: Results,
    tag: str,
    lines: dict[str, list[dict[str, Any]]],
    stamp: datetime,
) -> dict[str, Any]:
    """The page of scores of one model.

    The standard error is the harness's: the sample standard deviation over
    the square root of n, "N/A" for one problem.
    """
    recipe, stage = results.run.recipe, f"evaluate/{tag}"
    manifest = results.manifest_of(stage)
    model = recipe.model.id if tag == "base" else f"{recipe.model.id}-{tag}"
    seconds = {p["phase"]: p["seconds"] for p in results.ledger}
    return {
        "results": {n: _score(n, found) for n, found in lines.items()},
        "group_subtasks": {name: [] for name in lines},
        "configs": {name: _describe_task(results, name) for name in lines},
        "versions": {name: GRADER_VERSION for name in lines},
        "n-shot": {name: 0 for name in lines},
        "higher_is_better": {name: {METRIC: True} for name in lines},
        "n-samples": {
            name: {"original": b.n, "effective": len(lines[name])}
            for name in lines
            for b in recipe.evaluate.benchmarks
            if b.name == name
        },
        "config": _describe_run(results, tag),
        "git_hash": manifest.get("commit"),
        "date": stamp.replace(tzinfo=UTC).timestamp(),
        "exported_by": f"math-slm-lab {__version__}",
        "transformers_version": manifest.get("versions", {}).get(
            "transformers"
        ),
        "task_hashes": {n: _hash_task(found) for n, found in lines.items()},
        "model_source": "hf",
        "model_name": name_folder(model),
        "model_name_sanitized": sanitize_model_name(name_folder(model)),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": False,
        "chat_template": None,
        "chat_template_sha": None,
        "total_evaluation_time_seconds": str(seconds.get(stage, "")),
    }


def _score(name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    values = [line[METRIC] for line in lines]
    n = len(values)
    p = sum(values) / n
    error = math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else "N/A"
    return {
        "name": name,
        "alias": name,
        "sample_len": n,
        f"{METRIC},{FILTER}": p,
        f"{METRIC}_stderr,{FILTER}": error,
    }


def _describe_task(results: Results, name: str) -> dict[str, Any]:
    (config,) = choose_benchmarks(results.run.recipe, [name])
    return {
        "task": name,
        "dataset_path": config.path,
        "test_split": "test",
        "doc_to_text": results.run.recipe.data.prompt_template,
        "doc_to_target": "answer",
        "num_fewshot": 0,
        "metric_list": [
            {
                "metric": METRIC,
                "aggregation": "mean",
                "higher_is_better": True,
            }
        ],
        "output_type": "generate_until",
        "generation_kwargs": _generation(results),
        "repeats": 1,
        "metadata": {
            "version": GRADER_VERSION,
            "grader": "helpers.grading",
        },
    }


def _describe_run(results: Results, tag: str) -> dict[str, Any]:
    recipe = results.run.recipe
    return {
        "model": "hf",
        "model_args": {
            "pretrained": name_folder(recipe.model.id),
            "dtype": recipe.model.dtype,
            "trained": tag,
        },
        "model_dtype": recipe.model.dtype,
        "model_revision": recipe.model.revision or "main",
        "batch_size": str(recipe.engine.max_batch_size),
        "device": recipe.hardware.device,
        "use_cache": None,
        "limit": None,
        "bootstrap_iters": 0,
        "gen_kwargs": _generation(results),
        "random_seed": recipe.seed,
    }


def _hash_task(lines: list[dict[str, Any]]) -> str:
    keys = ("doc_hash", "prompt_hash", "target_hash")
    return hash_string(
        "".join("".join(line[key] for key in keys) for line in lines)
    )


def hash_string(text: str) -> str:
    """SHA-256 in hex, as the harness marks documents and prompts."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def sanitize_model_name(name: str) -> str:
    """A model name as the harness turns it into a folder name."""
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name)


if __name__ == "__main__":
    try:
        typer.run(main)
    except LabError as error:
        raise SystemExit(f"{error}") from None
