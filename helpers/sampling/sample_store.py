"""Open a samples file, so that two experiments never mix in it.

A samples file is append-only. Beside it lies ``<name>.inputs.json`` with
all that its lines depend on, written before the first line, so a killed run
is taken up only by one that would have written the same lines. The engine is
not among it: another one draws from the same distribution.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.base import (
    TEMPLATES,
    LabError,
    Recipe,
    RunDir,
    choose_aside,
    compare_inputs,
    disk_errors,
    fingerprint_model,
    read_json,
    write_json,
)
from helpers.models import fit_recipe
from helpers.sampling.sample_file import SampleFile

SEED_SCHEME = "per problem and sample, 1"  # see engines.base.derive_seed


def describe_sampling(
    recipe: Recipe,
    model: Path,
    *,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    stop: Sequence[str] = (),
) -> dict[str, str]:
    """All that a sample's distribution depends on besides its problem.

    The template counts with its text, not only its name; the seed counts
    where something is drawn.
    """
    recipe = fit_recipe(recipe, model)
    name, weights = recipe.data.prompt_template, recipe.model
    text = hashlib.sha256(TEMPLATES[name].encode()).hexdigest()[:16]
    drawn = f"{recipe.seed} {SEED_SCHEME}"
    return {
        "model": fingerprint_model(model, weights.revision),
        "precision": f"{weights.dtype} {weights.quantization or ''}".strip(),
        "template": f"{name} {text}",
        "temperature": str(float(temperature)),
        "top_p": str(float(top_p)),
        "max_new_tokens": str(max_new_tokens),
        "stop": repr(list(stop)),
        "seed": drawn if temperature > 0 else "greedy",
    }


def open_samples(
    run: RunDir,
    name: str,
    inputs: Mapping[str, str],
    force: bool = False,
) -> SampleFile:
    """What ``name`` (a path in the run) holds already.

    Rows of another grader version are graded again first; of two rows of
    one sample the second is moved to ``old/``.

    Raises:
        LabError: they were sampled from other inputs and ``force`` is off;
            with it they are moved to ``old/``.
    """
    path = run.file(name)
    stamp = path.with_suffix(".inputs.json")
    begun = path.is_file() and path.stat().st_size > 0
    if begun and force:
        _set_aside(run, name)
        begun = False
    have = read_json(stamp) if stamp.is_file() and begun else None
    if have is not None and (differ := compare_inputs(have, inputs)):
        raise LabError(
            f"{path} was begun with other inputs "
            f"(changed: {', '.join(differ)}).",
            why="going on would mix two experiments in one file",
            fix="choose another --run-dir, or add --force to set the begun "
            "file aside",
        )
    if have is None and begun:
        raise LabError(
            f"{path} lies there without {stamp.name}.",
            why="nobody can tell what its lines were sampled from",
            fix="add --force to set it aside",
        )
    if have is None:
        write_json(stamp, dict(inputs))
        return SampleFile(path)
    samples = SampleFile(path)
    _drop_repeated(run, name, samples)
    if samples.rows:
        print(f"{path.name}: {samples.rows} responses are there, going on.")
    return samples


def _set_aside(run: RunDir, name: str) -> None:
    folder, source = choose_aside(run.path, "begun"), run.file(name)
    with disk_errors(folder):
        (folder / name).parent.mkdir(parents=True)
        shutil.move(source, folder / name)


def _drop_repeated(run: RunDir, name: str, samples: SampleFile) -> None:
    if not samples.repeated:
        return
    folder = choose_aside(run.path, "repeated")
    if count := samples.drop_repeated(folder / name):
        print(
            f"{name}: {count} lines repeated a sample that was there. The "
            f"first of each is kept, the others are in "
            f"{folder.relative_to(run.path)}."
        )
