"""Which finished stages of a run folder were made with other settings.

Compared is what the recipe alone says of a stage's recorded inputs. Files
and weights are compared by the stage itself: they may lie elsewhere now.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from helpers.base import Recipe, RunDir, read_json, recipe_hash
from helpers.results import stage_name
from helpers.sampling import describe_sampling
from helpers.stages import TOP_P

Inputs = dict[str, str]
BENCHMARK = "benchmark "


def list_changed(recipe: Recipe, run: RunDir) -> list[str]:
    """Names of the finished stages that this recipe would refuse.

    Args:
        recipe: settled, where the run settled its model.
    """
    changed = []
    for name, describe in list_stages(recipe):
        path = run.file("stages", f"{name.replace('/', '-')}.json")
        if path.is_file() and differ(describe(), read_json(path)["inputs"]):
            changed.append(name)
    return changed


def list_stages(recipe: Recipe) -> Iterator[tuple[str, Callable[[], Inputs]]]:
    """(stage, what it should have recorded) in the order of a run."""
    if recipe.solutions:
        yield "solutions", lambda: describe_solutions(recipe)
    yield "distill", lambda: describe_distill(recipe)
    yield "sft", lambda: describe_recipe(recipe, "seed", "model", "sft")
    tags = {"dpo": None} | {f"dpo-{n}": n for n in recipe.dpo_variants}
    for tag, variant in tags.items():
        yield tag, lambda variant=variant: describe_dpo(recipe, variant)
    mark = recipe.evaluate.temperature if recipe.evaluate.n > 1 else None
    for tag in ("base", "sft", *tags):
        if tag != "base":
            yield f"merge/{tag}", lambda: describe_recipe(recipe, "model")
        yield (
            stage_name(tag, mark),
            lambda tag=tag: describe_evaluation(recipe, tag),
        )


def differ(wanted: Inputs, recorded: Inputs) -> bool:
    """Whether an input that both name has another value.

    Benchmarks may be added to an evaluation, not taken away or resized.
    """
    sizes = {k: v for k, v in wanted.items() if k.startswith(BENCHMARK)}
    for name, value in recorded.items():
        if name.startswith(BENCHMARK):
            if value.split()[-1] != sizes.get(name):
                return True
        elif wanted.get(name, value) != value:
            return True
    return False


def describe_recipe(recipe: Recipe, *sections: str) -> Inputs:
    """The hash of some sections, as the stages store it."""
    return {"recipe": recipe_hash(recipe, *sections)}


def describe_dpo(recipe: Recipe, variant: str | None) -> Inputs:
    """As :func:`helpers.stages.dpo.describe_inputs`, of settings alone."""
    config = recipe.dpo_variant(variant).model_dump(mode="json")
    settings = json.dumps(config, sort_keys=True)
    return {
        "recipe": recipe_hash(recipe, "seed", "model"),
        "dpo": hashlib.sha256(settings.encode()).hexdigest()[:16],
    }


def describe_solutions(recipe: Recipe) -> Inputs:
    """As :func:`helpers.stages.solutions.describe_inputs`, without the sets."""
    asked = describe_asking(recipe, "base", temperature=0)
    return {
        "recipe": recipe_hash(recipe, "seed", "solutions"),
        "model": f"{recipe.model.id}@{recipe.model.revision}",
        "template": asked["template"],
        "max_length": str(recipe.sft.max_length),
    }


def describe_distill(recipe: Recipe) -> Inputs:
    """As :func:`helpers.stages.distill.describe_inputs`, of settings alone."""
    settings = recipe.sampling
    asked = describe_asking(
        recipe,
        recipe.sampled_model,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        stop=settings.stop,
    )
    return asked | {
        "n": str(settings.n),
        "harvest": recipe_hash(recipe, "harvest"),
        "n_problems": str(recipe.data.n_problems),
    }


def describe_evaluation(recipe: Recipe, tag: str) -> Inputs:
    """As the evaluation stores it; of a benchmark only its size."""
    asked = describe_asking(
        recipe,
        tag,
        temperature=recipe.evaluate.temperature,
        top_p=TOP_P,
        max_new_tokens=recipe.evaluate.max_new_tokens,
    )
    sizes = {
        BENCHMARK + b.name: f"n={b.n}" for b in recipe.evaluate.benchmarks
    }
    return asked | sizes


def describe_asking(
    recipe: Recipe,
    tag: str,
    *,
    temperature: float,
    top_p: float = TOP_P,
    max_new_tokens: int = 0,
    stop: Sequence[str] = (),
) -> Inputs:
    """How a model is asked, by :func:`describe_sampling`, without the model.

    Its files are not read: a base is told from a merged model by its bits.
    """
    if tag == "base":
        bits = {"merged_quantization": recipe.model.quantization}
        model = recipe.model.model_copy(update=bits)
        recipe = recipe.model_copy(update={"model": model})
    found = describe_sampling(
        recipe,
        Path(tag) / "merged",
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        stop=stop,
    )
    return {name: text for name, text in found.items() if name != "model"}
