"""The generated parts of the README and of the model card.

``python -m tools.readme`` renews them from ``data/measured/pocket`` and
the recipes; a test fails when the README is out of step. So no figure in it
is typed by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

from helpers.base import (
    DATA_DIR,
    REPO_ROOT,
    ModelConfig,
    Recipe,
    RunDir,
    list_recipes,
    load_recipe,
    read_json,
    write_text,
)
from helpers.planner import find_card
from helpers.results import compare, holm, load_results, proportion

MEASURED = DATA_DIR / "measured" / "pocket"
README = REPO_ROOT / "README.md"
CARD = DATA_DIR / "pocket" / "README.md"
MODELS = {"base": "base", "sft": "SFT", "dpo": "SFT + DPO"}
STEPS = (("base", "sft"), ("sft", "dpo"))


def render_results(measured: Path = MEASURED) -> str:
    """The grid of the recorded run, its paired tests, its machine."""
    run = measured / "run"
    recipe = load_recipe(run / "recipe.yaml")
    names = [b.name for b in recipe.evaluate.benchmarks]
    metrics = read_json(run / "metrics.json")
    lines = ["| model | " + " | ".join(names) + " |"]
    lines.append("|---|" + "---|" * len(names))
    for tag, label in MODELS.items():
        row = metrics[f"evaluate/{tag}"]
        cells = [str(proportion(row[n]["k"], row[n]["n"])) for n in names]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines.append("")
    main = recipe.evaluate.main
    for before, after in STEPS:
        found = compare(
            _answers(RunDir(run, recipe), before, main),
            _answers(RunDir(run, recipe), after, main),
        )
        text = found.sentence(MODELS[before], MODELS[after], main)
        lines.append(f"- {text}")
    lines += _render_seeds(measured, main) + _render_speed(measured)
    manifest = read_json(run / "manifest.json")
    lines.append(
        f"- Recorded {manifest['created'][:10]} on {manifest['processor']}, "
        f"{manifest['cores']} cores; greedy decoding, at most "
        f"{recipe.evaluate.max_new_tokens} new tokens, seed {recipe.seed}."
    )
    return "\n".join(lines)


def _answers(run: RunDir, tag: str, benchmark: str) -> dict[str, bool]:
    rows = load_results(run, tag, benchmark)
    return {row.problem_id: row.correct for row in rows}


def _render_seeds(measured: Path, main: str) -> list[str]:
    if not (measured / "seeds.json").is_file():
        return []
    seeds = read_json(measured / "seeds.json")["seeds"]
    parts = []
    for tag, label in MODELS.items():
        scores = [seeds[s][tag][main] for s in sorted(seeds)]
        text = ", ".join(f"{s['k']}/{s['n']}" for s in scores)
        parts.append(f"{label} {text}")
    names = ", ".join(sorted(seeds))
    lines = [f"- Seeds {names} on {main}: {'; '.join(parts)}."]
    sets = list(next(iter(seeds.values()))["sft"])
    changes = []
    for name in sets:
        points = []
        for seed in sorted(seeds):
            sft, dpo = seeds[seed]["sft"][name], seeds[seed]["dpo"][name]
            points.append(f"{100 * (dpo['k'] - sft['k']) / sft['n']:+.1f}")
        changes.append(f"{name} {', '.join(points)}")
    text = "; ".join(changes)
    return [
        *lines,
        f"- What DPO adds to SFT varies: points in these seeds: {text}.",
    ]


SIDES = {
    "ours": "ours, in process",
    "vllm": "vLLM, its start left out",
    "static": "`generate` with a static cache",
    "compiled": "the same with torch.compile",
}


def _render_speed(measured: Path) -> list[str]:
    """One line a tier whose sampling was measured beside its peers."""
    lines = []
    for path in sorted(measured.parent.glob("*/bench_sampling*.json")):
        found = read_json(path)
        sides = [
            f"{label} {found[f'{name} over plain by wall_s']:.1f}"
            for name, label in SIDES.items()
            if f"{name} over plain by wall_s" in found
        ]
        lines.append(
            f"- Sampling, tier {found['tier']}: tokens per second over those "
            f"of plain `model.generate` at batch size {found['batch']}: "
            f"{', '.join(sides)}. Same prompts, same run "
            "(`tests/benchmarks/bench_sampling.py`)."
        )
    return lines


def render_timings(measured: Path = MEASURED) -> str:
    """Wall time of each notebook, from papermill's own metadata."""
    timings: dict[str, float] = read_json(measured / "timings.json")
    lines = ["| notebook | wall time |", "|---|---|"]
    total = 0.0
    for name, seconds in sorted(timings.items()):
        total += seconds
        lines.append(f"| {name} | {seconds:.0f} s |")
    lines.append(f"| all | {total / 60:.1f} min |")
    machine = read_json(measured / "run" / "manifest.json")
    lines += ["", f"Measured on {machine['processor']}, "
              f"{machine['cores']} cores, tier pocket."]  # fmt: skip
    return "\n".join([*lines, *describe_quick(measured.parent / "smol")])


def describe_quick(measured: Path) -> list[str]:
    """Time and scores of the recorded quick run of tier smol."""
    if not (measured / "timings.json").is_file():
        return []
    timings: dict[str, float] = read_json(measured / "timings.json")
    machine = read_json(measured / "run" / "manifest.json")
    metrics = read_json(measured / "run" / "metrics.json")
    scores = [
        f"{tag} {proportion(row['main']['k'], row['main']['n'])}"
        for tag in ("base", "sft", "dpo")
        if (row := metrics.get(f"evaluate/{tag}"))
    ]
    return [
        f"Tier smol with `--quick`: {sum(timings.values()) / 60:.0f} min on "
        f"{machine['processor']}, {machine['cores']} cores; on main "
        f"{', '.join(scores)}."
    ]


def render_tiers() -> str:
    """One row per shipped recipe, the smallest machine first."""
    lines = ["| tier | model | for | precision |", "|---|---|---|---|"]
    for recipe in sorted(map(load_recipe, list_recipes()), key=_count_memory):
        lines.append(
            f"| `{recipe.name}` | {recipe.model.id} | {recipe.description} "
            f"| {_name_precision(recipe.model)} |"
        )
    return "\n".join(lines)


def _count_memory(recipe: Recipe) -> float:
    """GiB of all the cards that a recipe is written for; 0 on a CPU."""
    hardware = recipe.hardware
    if hardware.card is None:
        return 0.0
    return hardware.cards * find_card(hardware.card).memory_gib


def _name_precision(model: ModelConfig) -> str:
    if model.quantization is None:
        return model.dtype
    return f"{model.quantization}, {model.dtype}"


def render_card(measured: Path = MEASURED) -> str:
    """What the base model does, for its model card."""
    base = read_json(measured / "base.json")
    metrics = read_json(measured / "run" / "metrics.json")
    lines = ["| measure | result |", "|---|---|"]
    for name, row in metrics["evaluate/base"].items():
        score = proportion(row["k"], row["n"])
        lines.append(f"| greedy, {name} | {score} |")
    for name in ("pass@1", "pass@4"):
        score = proportion(base[name]["k"], base[name]["n"])
        lines.append(f"| {name} at T=1, main | {score} |")
    mixed = metrics["distill"]["mixed"]
    lines.append(
        "| train problems with right and wrong samples (n=4) | "
        f"{proportion(mixed['k'], mixed['n'])} |"
    )
    row = metrics["evaluate/base"]["main"]
    lines.append(
        f"| greedy failures on main | {row['finished_wrong']} finished and "
        f"wrong, {row['truncated_wrong']} cut at the cap, "
        f"{row['no_answer']} without an answer |"
    )
    return "\n".join(lines)


def render_ablation(
    path: Path = MEASURED.parent / "smol-mix" / "ablation.json",
) -> str:
    """One row an arm and set: score, and what changed against the first."""
    record = read_json(path)
    settings, machine = record["settings"], record["manifest"]
    first = next(name for name, sets in record["arms"].items() if not sets)
    rows = [
        (seed, arm, name, found["sft"][name]["score"], change)
        for seed, row in record["seeds"].items()
        for arm, found in row.items()
        for name, change in found["change"].items()
    ]
    corrected = holm([change["p"] for *_, change in rows])
    lines = ["| seed | training | set | score | against | change | p | Holm |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for (seed, arm, name, score, change), p in zip(
        rows, corrected, strict=True
    ):
        against = "base" if arm == first else first
        lines.append(
            f"| {seed} | {arm} | {name} | {score} | {against} "
            f"| {change['difference']} | {change['p']:.2g} | {p:.2g} |"
        )
    sources = ", ".join(f"{n} {name}" for name, n in settings["mix"].items())
    lines += ["", f"Rows: {sources}; one source has as many in all. p: exact "
              f"McNemar; Holm: corrected for {len(rows)} comparisons, of "
              f"which {sum(p < 0.05 for p in corrected)} stay below 0.05. "
              f"{settings['epochs']:g} epoch, {machine['processor']}, "
              f"{machine['cores']} cores, "
              f"{machine['created'][:10]}."]  # fmt: skip
    return "\n".join(lines)


RENDERERS = {
    README: {
        "results": render_results,
        "timings": render_timings,
        "ablation": render_ablation,
        "tiers": render_tiers,
    },
    CARD: {"card": render_card},
}


def renew(path: Path) -> str:
    """The text of a page with every generated part rendered again."""
    text = path.read_text(encoding="utf-8")
    for name, render in RENDERERS[path].items():
        pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)"
        body = render()
        text, count = re.subn(
            pattern,
            lambda m, body=body: f"{m[1]}{body}\n{m[2]}",
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"{path} has {count} parts named '{name}'")
    return text


def draw_grid(measured: Path = MEASURED) -> Path:
    """The README's picture of the recorded run."""
    from helpers.results import plots

    recipe = load_recipe(measured / "run" / "recipe.yaml")
    manifest = read_json(measured / "run" / "manifest.json")
    metrics = read_json(measured / "run" / "metrics.json")
    figure = plots.plot_accuracy_grid(
        {
            label: {
                name: proportion(row["k"], row["n"])
                for name, row in metrics[f"evaluate/{tag}"].items()
            }
            for tag, label in MODELS.items()
        },
        decoding=f"greedy, max_new_tokens = {recipe.evaluate.max_new_tokens}",
        title="Pocket tier: accuracy by benchmark",
        note=plots.recorded_on(manifest),
    )
    path = measured / "grid.png"
    path.write_bytes(plots.figure_png(figure))
    return path


if __name__ == "__main__":
    print(f"drawn: {draw_grid()}")
    for page in RENDERERS:
        write_text(page, renew(page))
        print(f"renewed: {page}")
