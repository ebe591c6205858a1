"""Our sampling engines against plain ``generate``, same prompts, same run.

``python tests/benchmarks/bench_sampling.py --tier pocket --out bench.json``

The peer is what one writes first: fixed batches in the order of the data
set, left padding, ``model.generate(do_sample=True)``. All draw the same
number of responses from the same model with the same settings; a token is
counted when it belongs to a response (end token included, padding not). The
rounds alternate, because another program on the machine would otherwise slow
only one side. ``--vllm`` adds a vLLM server (the command is that of the
recipe or of MATHSLM_VLLM); its start is timed apart. ``--static`` adds plain
``generate`` with a static cache, without and with ``torch.compile``; the
compilation is timed apart too. Tokens per second are given by wall clock,
and for what runs in this process by CPU time too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import CompileConfig

from helpers.base import describe_machine, load_recipe, write_json
from helpers.models import load_model
from helpers.problems import load_problems
from helpers.sampling import SampleRequest, make_requests, open_engine
from helpers.sampling.local import TransformersEngine


def run_plain(
    model,
    tokenizer,
    requests: list[SampleRequest],
    batch: int,
    **settings: Any,
) -> int:
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
                **settings,
            )
        new = ids[:, encoded["input_ids"].shape[1] :]
        before_end = (new == end).int().cumsum(1) == 0
        ended = (new == end).any(1).sum()
        tokens += int(before_end.sum() + ended)
    return tokens


def run_engine(engine, requests: list[SampleRequest]) -> int:
    """Tokens drawn by an engine that is open."""
    return sum(text.tokens for text in engine.sample(requests))


def build_static(run: Callable[..., int]) -> dict[str, Callable[..., int]]:
    """Plain generate with a static cache, not compiled and compiled."""
    compiler = CompileConfig(mode="default")
    compiler._compile_all_devices = True  # transformers compiles on GPU only
    return {
        "static": partial(
            run, cache_implementation="static", disable_compile=True
        ),
        "compiled": partial(
            run, cache_implementation="static", compile_config=compiler
        ),
    }


def measure(run) -> dict[str, float]:
    """One round: tokens, and seconds by wall clock and of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = run()
    return {
        "tokens": tokens,
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
    }


def summarize(rounds: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Median tokens per second of each side, and each over plain.

    A server's work is not in this process, so it has no CPU time here.
    """
    out: dict[str, float] = {}
    for clock in ("wall_s", "cpu_s"):
        for name, runs in rounds.items():
            if (name, clock) == ("vllm", "cpu_s"):
                continue
            rates = [r["tokens"] / r[clock] for r in runs]
            out[f"{name} tokens per {clock}"] = statistics.median(rates)
            if name != "plain":
                plain = out[f"plain tokens per {clock}"]
                ratio = out[f"{name} tokens per {clock}"] / plain
                out[f"{name} over plain by {clock}"] = ratio
    return out


def parse_options() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tier", default="pocket")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm", action="store_true")
    parser.add_argument("--static", action="store_true")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--batch", type=int, help="default: the recipe's")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    return parser.parse_args()


def build_requests(recipe, tokenizer, options) -> list[SampleRequest]:
    """The recipe's own sampling of its first training problems."""
    sampling = recipe.sampling
    return make_requests(
        load_problems(recipe.data.train, options.problems),
        tokenizer,
        recipe.data.prompt_template,
        n=sampling.n,
        run_seed=recipe.seed,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_new_tokens=options.max_new_tokens or sampling.max_new_tokens,
    )


def open_server(recipe, stack: ExitStack) -> tuple[Any, float]:
    """A vLLM engine for the same model, and the seconds its start took."""
    section = recipe.engine.model_copy(update={"name": "vllm"})
    start = time.perf_counter()
    engine = stack.enter_context(
        open_engine(recipe.model_copy(update={"engine": section}))
    )
    return engine, time.perf_counter() - start


def run_rounds(
    sides: dict[str, Callable[[], int]], count: int
) -> dict[str, list[dict[str, float]]]:
    """``count`` rounds of every side, in turn."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(count):
        for name, run in sides.items():
            rounds[name].append(measure(run))
            shown = {k: round(v, 2) for k, v in rounds[name][-1].items()}
            print(name, shown, flush=True)
    return rounds


def main() -> None:
    """Run the rounds, print the ratios, write the JSON."""
    options = parse_options()
    recipe = load_recipe(options.tier)
    batch = options.batch or recipe.engine.max_batch_size
    model, tokenizer = load_model(recipe)
    requests = build_requests(recipe, tokenizer, options)
    ours = TransformersEngine(model, tokenizer, max_batch_size=batch)
    plain = partial(run_plain, model, tokenizer, batch=batch)
    seconds, said, compile_s = None, None, None
    with ExitStack() as stack:
        sides: dict[str, Callable[[list[SampleRequest]], int]] = {
            "plain": plain,
            "ours": lambda r: run_engine(ours, r),
        }
        if options.vllm:
            server, seconds = open_server(recipe, stack)
            said = server.describe()
            sides["vllm"] = lambda r: run_engine(server, r)
        for run in sides.values():
            run(requests[:8])  # warm up
        if options.static:
            more = build_static(plain)
            compile_s = measure(lambda: more["compiled"](requests[:batch]))
            sides |= more
        rounds = run_rounds(
            {name: partial(run, requests) for name, run in sides.items()},
            options.rounds,
        )
    result = summarize(rounds) | {
        "rounds": rounds,
        "requests": len(requests),
        "batch": batch,
        "tier": options.tier,
        "dtype": recipe.model.dtype,
        "threads": torch.get_num_threads(),
        "vllm_start_s": seconds,
        "compile_s": compile_s and compile_s["wall_s"],
        "vllm": said,
        "manifest": describe_machine(recipe),
    }
    write_json(options.out, result)
    for key, value in result.items():
        if isinstance(value, float):
            print(f"{key}: {value:.2f}")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
