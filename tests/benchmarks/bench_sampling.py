"""Our sampling engine against plain ``generate``, same prompts, same run.

``python tests/benchmarks/bench_sampling.py --out bench_sampling.json``

The peer is what one writes first: fixed batches in the order of the data
set, left padding, ``model.generate(do_sample=True)``. Both draw the same
number of responses from the same model with the same settings; a token is
counted when it belongs to a response (end token included, padding not). The
rounds alternate, because another program on the machine would otherwise slow
only one side. Tokens per second are given by wall clock and by CPU time.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers

from helpers.engines import SampleRequest
from helpers.engines.transformers_engine import TransformersEngine
from helpers.models import load_model
from helpers.problems import load_problems
from helpers.recipes import load_recipe
from helpers.records import write_json
from helpers.sampling import make_requests


def run_plain(model, tokenizer, requests: list[SampleRequest], batch: int):
    """Tokens drawn by ``generate`` in fixed batches, in order."""
    end, tokens = tokenizer.eos_token_id, 0
    for start in range(0, len(requests), batch):
        part = requests[start : start + batch]
        encoded = tokenizer(
            [r.prompt for r in part],
            add_special_tokens=False,
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            ids = model.generate(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                do_sample=part[0].temperature > 0,
                temperature=part[0].temperature or None,
                top_p=part[0].top_p,
                top_k=0,
                max_new_tokens=part[0].max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = ids[:, encoded["input_ids"].shape[1] :]
        before_end = (new == end).int().cumsum(1) == 0
        ended = (new == end).any(1).sum()
        tokens += int(before_end.sum() + ended)
    return tokens


def run_ours(model, tokenizer, requests: list[SampleRequest], batch: int):
    """Tokens drawn by our engine."""
    engine = TransformersEngine(model, tokenizer, max_batch_size=batch)
    return sum(text.tokens for text in engine.sample(requests))


def measure(run, *args) -> dict[str, float]:
    """One round: tokens, and seconds by wall clock and of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = run(*args)
    return {
        "tokens": tokens,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
    }


def summarize(rounds: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Median tokens per second of each side, and ours over theirs."""
    out = {}
    for clock in ("wall_s", "cpu_s"):
        for name, runs in rounds.items():
            rates = [r["tokens"] / r[clock] for r in runs]
            out[f"{name} tokens per {clock}"] = statistics.median(rates)
        ours, plain = (
            out[f"{name} tokens per {clock}"] for name in ("ours", "plain")
        )
        out[f"ratio by {clock}"] = ours / plain
    return out


def parse_options() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tier", default="pocket")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, help="default: the recipe's")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    return parser.parse_args()


def main() -> None:
    """Run the rounds, print the ratio, write the JSON."""
    options = parse_options()
    recipe = load_recipe(options.tier)
    batch = options.batch or recipe.engine.max_batch_size
    model, tokenizer = load_model(recipe)
    requests = make_requests(
        load_problems(recipe.data.train, options.problems),
        tokenizer,
        recipe.data.prompt_template,
        n=recipe.sampling.n,
        run_seed=recipe.seed,
        temperature=recipe.sampling.temperature,
        top_p=recipe.sampling.top_p,
        max_new_tokens=recipe.sampling.max_new_tokens,
    )
    sides = {"plain": run_plain, "ours": run_ours}
    for run in sides.values():
        run(model, tokenizer, requests[:8], batch)  # warm up
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, run in sides.items():
            round_ = measure(run, model, tokenizer, requests, batch)
            rounds[name].append(round_)
            print(name, {k: round(v, 2) for k, v in round_.items()})
    result = summarize(rounds) | {
        "rounds": rounds,
        "requests": len(requests),
        "batch": batch,
        "threads": torch.get_num_threads(),
        "device": str(model.device),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    write_json(options.out, result)
    for key, value in result.items():
        if isinstance(value, float):
            print(f"{key}: {value:.2f}")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
