"""Self-distillation: the model's own right answers become training rows.

sample ─ grade ─ harvest rows and pairs ─ measure ─ write

The model answers each training problem ``n`` times. One right response a
problem becomes an SFT row; a problem with right and wrong responses also
becomes a preference pair. Too few pairs (``harvest.min_pairs``) call for the
next slice of problems until there are enough or the set is exhausted. The
base model answers or, where SFT trained on worked solutions, the SFT model.
"""

from __future__ import annotations

import math
import random
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from helpers.base import (
    Completion,
    LabError,
    PairRow,
    Problem,
    Recipe,
    RunDir,
    SftRow,
    group_samples,
    name_folder,
    open_stage,
    recipe_hash,
    require_current_merge,
    require_file,
    require_unlocked,
    write_records,
)
from helpers.grading import GradedCompletion
from helpers.models import fix_model, model_path
from helpers.problems import hash_problems, is_local, load_up_to
from helpers.results import proportion
from helpers.sampling import (
    Engine,
    Sample,
    SampleFile,
    Speed,
    derive_seed,
    describe_sampling,
    iter_requests,
    load_completion,
    make_sample,
    open_engine,
    open_samples,
    sample_missing,
    say_unusable,
)
from helpers.stages.guards import check_distinct_fraction

STAGE, SAMPLES = "distill", "samples/distill.jsonl"
SFT, PAIRS = "sft.jsonl", "pairs.jsonl"
SPACE_MB = 100
PROBE_PROBLEMS = 32  # the distinct fraction is checked after these
MORE = 4  # times data.n_problems may be read of a streamed set
QUANTILES = (5, 25, 50, 75, 95)

Pick = Literal["first", "shortest", "random"]
Samples = Mapping[str, Sequence[Sample | GradedCompletion]]


def run_distill(
    recipe: Recipe,
    run: RunDir,
    *,
    force: bool = False,
    smoke_steps: int | None = None,
    check: bool = False,
) -> dict[str, Any]:
    """Sample, grade and harvest; resumable to the sample.

    Writes ``samples/distill.jsonl``, ``sft.jsonl`` and ``pairs.jsonl``.

    Args:
        force: set the old samples and harvest aside and start again.
        smoke_steps: try out only so many problems, in the folder
            ``smoke/distill`` of the run, which is emptied before.
        check: refuse what can be refused now; load and write nothing. A
            problem set that would come from the hub is not fetched.

    Returns:
        The metrics; see :func:`measure_samples`.

    Raises:
        LabError: bad problem file, samples of other inputs in the folder, or
            samples that are copies of each other.
    """
    model = find_model(recipe, run)
    wanted = smoke_steps or recipe.data.n_problems
    floor = 0 if smoke_steps else recipe.harvest.min_pairs
    problems: list[Problem] = []
    if not check or is_local(recipe.data.train):
        problems = load_training(recipe)
        _require_enough(recipe, problems, smoke_steps)
    recipe = fix_model(recipe, run, check)
    if smoke_steps and not check:
        run, problems = _open_smoke_run(recipe, run), problems[:wanted]
    with open_stage(
        run,
        STAGE,
        describe_inputs(recipe, model, wanted),
        outputs=[SAMPLES, SFT, PAIRS],
        megabytes=SPACE_MB,
        force=force,
        check=check,
    ) as stage:
        if stage.is_needed:
            inputs = _describe_samples(recipe, model)
            golds = {p.id: p.answer for p in problems}
            file = open_samples(run, SAMPLES, inputs, force, golds)
            with ExitStack() as stack:
                sampler = Sampler(recipe, run, model, file, stack)
                samples, harvest = collect(sampler, problems, wanted, floor)
                engine = sampler.engine and sampler.engine.describe()
            write_records(run.file(SFT), harvest.iter_sft())
            write_records(run.file(PAIRS), harvest.iter_pairs())
            stage.metrics = measure_samples(samples, harvest) | {
                "pair_floor": floor,
                "tokens_per_second": sampler.speed.tokens_per_second,
                "engine": engine,
            }
            _say_unusable(stage.metrics)
    return stage.metrics


def find_model(recipe: Recipe, run: RunDir) -> Path:
    """The model that is sampled: the base, or the merged SFT model.

    Raises:
        LabError: SFT is to be sampled, and was not trained and merged yet.
    """
    tag = recipe.sampled_model
    path = model_path(recipe, run, tag)
    if tag != "base":
        require_current_merge(run, tag)
        require_file(path, f"mathslm merge --model {tag}", run)
    return path


def load_training(recipe: Recipe) -> list[Problem]:
    """The problems of ``data.train``, of a streamed set as many as a run
    can come to need for ``harvest.min_pairs``."""
    most = recipe.data.n_problems * (MORE if recipe.harvest.min_pairs else 1)
    return load_up_to(recipe.data.train, most)


def _require_enough(
    recipe: Recipe, problems: Sequence[Problem], smoke_steps: int | None
) -> None:
    wanted = recipe.data.n_problems
    if smoke_steps is None and wanted > len(problems):
        raise LabError(
            f"data.n_problems={wanted}, but {recipe.data.train} holds "
            f"{len(problems)} problems.",
            fix=f"set data.n_problems to at most {len(problems)}",
        )


def _open_smoke_run(recipe: Recipe, run: RunDir) -> RunDir:
    folder = run.file("smoke", STAGE)
    require_unlocked(folder)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"Smoke run: everything goes to {name_folder(folder)}.")
    return RunDir.open(folder, recipe)


def describe_inputs(
    recipe: Recipe, model: Path, wanted: int
) -> dict[str, str]:
    """Hashes of all that the harvest depends on."""
    return _describe_samples(recipe, model) | {
        "harvest": recipe_hash(recipe, "harvest"),
        "n_problems": str(wanted),
    }


def _describe_samples(recipe: Recipe, model: Path) -> dict[str, str]:
    """All that the samples depend on; the engine does not count."""
    return {
        "problems": hash_problems(recipe.data.train),
        "n": str(recipe.sampling.n),
        **describe_sampling(recipe, model, **_list_settings(recipe)),
    }


def _list_settings(recipe: Recipe) -> dict[str, Any]:
    """temperature, top_p, max_new_tokens and stop."""
    return recipe.sampling.model_dump(exclude={"n"})


@dataclass
class Sampler:
    """Samples a run's problems; the engine is opened when it is needed."""

    recipe: Recipe
    run: RunDir
    model: Path
    file: SampleFile
    stack: ExitStack  # closes the engine, whatever happens
    speed: Speed = field(default_factory=Speed)
    engine: Engine | None = None

    def sample(self, problems: Sequence[Problem], title: str) -> None:
        """Sample what these problems lack."""
        n = self.recipe.sampling.n
        self.file.refresh()
        if not self.file.count_missing(problems, n):
            return
        if self.engine is None:
            logs = self.run.file("logs")
            engine = open_engine(self.recipe, self.model, log_dir=logs)
            self.engine = self.stack.enter_context(engine)
        requests = iter_requests(
            problems,
            self.engine.tokenizer,
            self.recipe.data.prompt_template,
            n=n,
            run_seed=self.recipe.seed,
            **_list_settings(self.recipe),
        )
        sample_missing(
            self.engine,
            requests,
            self.file,
            {p.id: p.answer for p in problems},
            title=title,
            total=len(problems) * n,
            n=n,
            speed=self.speed,
        )

    def read(self, problems: Sequence[Problem]) -> dict[str, list[Sample]]:
        """``{problem id: its graded samples in order}``."""
        return group_samples(self.file.index.values(), problems)


def collect(
    sampler: Sampler, problems: Sequence[Problem], wanted: int, floor: int
) -> tuple[dict[str, list[Sample]], Harvest]:
    """Sample ``wanted`` problems, then more until ``floor`` pairs are there.

    Returns:
        (the samples by problem, the harvest of them).
    """
    # Step 1: a few problems, so that copies are found before all is paid for.
    probe = problems[: min(PROBE_PROBLEMS, wanted)]
    sampler.sample(probe, "first problems")
    _check_samples_differ(sampler, probe)
    # Step 2: all that were asked for.
    recipe, used = sampler.recipe, problems[:wanted]
    sampler.sample(used, "distill")
    while True:
        samples = sampler.read(used)
        harvest = harvest_pairs(
            samples,
            pick=recipe.harvest.pick,
            seed=recipe.seed,
            run_name=sampler.run.path.resolve().name,
        )
        pairs, old = len(harvest.matched), len(used)
        if pairs >= floor or old == len(problems):
            break
        # Step 3: pairs are missing, so the next slice of problems.
        more = size_next_slice(pairs, old, floor)
        print(
            f"{pairs} pairs of {floor} after {old} problems: going on with "
            f"the next {more}."
        )
        used = problems[: old + more]
        sampler.sample(used[old:], "distill, next slice")
    if pairs < floor:
        print(
            f"The problem set is exhausted: {pairs} pairs from all {old} "
            f"problems, {floor} were asked for (harvest.min_pairs)."
        )
    return samples, harvest


def _check_samples_differ(
    sampler: Sampler, problems: Sequence[Problem]
) -> None:
    """Stop early when the samples of a problem are copies.

    Of too few problems (a smoke run) it only says what it saw.
    """
    if sampler.recipe.sampling.n < 2:
        return
    fraction = distinct_fraction(sampler.read(problems))
    try:
        check_distinct_fraction(
            fraction,
            sampler.recipe.harvest.min_distinct_fraction,
            sampler.recipe.sampling.temperature,
        )
    except LabError as error:
        if len(problems) >= PROBE_PROBLEMS:
            raise
        print(f"Only {len(problems)} problems, so not refused: {error.what}")


def distinct_fraction(
    samples: Mapping[str, Sequence[Sample | Completion]],
) -> float:
    """Distinct responses / responses, counted within each problem."""
    total = distinct = 0
    for rows in samples.values():
        texts = [
            row.response_key if isinstance(row, Sample) else row.response
            for row in rows
            if row.finish_reason != "too_long"  # nothing was drawn
        ]
        total += len(texts)
        distinct += len(set(texts))
    return distinct / total if total else 1.0


def size_next_slice(pairs: int, problems: int, floor: int) -> int:
    """How many more problems should bring the missing pairs.

    At the rate so far plus a fifth; at least the size of the probe, at most
    as many as were sampled already.
    """
    rate = max(pairs, 1) / problems
    need = math.ceil(1.2 * (floor - pairs) / rate)
    return max(PROBE_PROBLEMS, min(need, problems))


@dataclass
class Harvest:
    """What is kept: the right samples, and the (right, wrong) pairs.

    ``repeated`` problems were left out because an earlier one has the same
    prompt. ``rows_cut`` and ``pairs_cut`` count what would be there if
    responses cut at the token cap were kept too.
    """

    run_name: str = ""
    kept: list[Sample] = field(default_factory=list)
    matched: list[tuple[Sample, Sample]] = field(default_factory=list)
    repeated: int = 0
    rows_cut: int = 0
    pairs_cut: int = 0

    def iter_sft(self) -> Iterator[SftRow]:
        """One SFT row for each right sample, with its texts."""
        for row in map(load_completion, self.kept):
            yield SftRow(
                prompt=row.prompt,
                completion=row.response,
                problem_id=row.problem_id,
                sample=row.sample,
                run=self.run_name,
            )

    def iter_pairs(self) -> Iterator[PairRow]:
        """One preference pair for each pair of samples, with its texts."""
        for pair in self.matched:
            right, wrong = map(load_completion, pair)
            yield PairRow(
                prompt=right.prompt,
                chosen=right.response,
                rejected=wrong.response,
                problem_id=right.problem_id,
                run=self.run_name,
                chosen_sample=right.sample,
                rejected_sample=wrong.sample,
            )


def harvest_pairs(
    samples: Samples, *, pick: Pick, seed: int, run_name: str
) -> Harvest:
    """One right response a problem, and a wrong one beside it if there is.

    Only responses that the model ended itself are kept: training puts the
    end token behind each, which would be untrue of one cut at the cap. What
    was not drawn (prompt too long) or is empty is never chosen or rejected.
    A prompt is used once, however many problems have it.

    Args:
        samples: ``{problem id: its graded samples in order}``.
        pick: which of several: the first, the shortest (in tokens, then the
            first), or a random one (seeded by problem).
        seed: of the random choice.
        run_name: provenance written into every row.
    """
    out, seen = Harvest(run_name), set()
    for rows in _iter_groups(samples):
        if rows[0].prompt_key in seen:
            out.repeated += 1
            continue
        seen.add(rows[0].prompt_key)
        ended = [r for r in rows if r.finish_reason == "stop" and not r.empty]
        right = _choose([r for r in ended if r.correct], pick, seed)
        wrong = _choose([r for r in ended if not r.correct], pick, seed)
        # What the token cap costs: these would be there without it.
        found = {r.correct for r in rows if r.finish_reason != "too_long"}
        out.rows_cut += True in found and right is None
        out.pairs_cut += len(found) == 2 and None in (right, wrong)
        if right is None:
            continue
        out.kept.append(right)
        if wrong is not None and wrong.response_key != right.response_key:
            out.matched.append((right, wrong))
    return out


def _iter_groups(samples: Samples) -> Iterator[list[Sample]]:
    """The samples of each problem that has any, in their small form."""
    for rows in samples.values():
        if rows:
            yield [
                row if isinstance(row, Sample) else make_sample(row)
                for row in rows
            ]


def _choose(rows: Sequence[Sample], pick: Pick, seed: int) -> Sample | None:
    if not rows:
        return None
    if pick == "shortest":
        return min(rows, key=lambda row: (row.tokens, row.sample))
    if pick == "random":
        draw = random.Random(derive_seed(seed, rows[0].problem_id, -1))
        return draw.choice(rows)
    return rows[0]


def measure_samples(samples: Samples, harvest: Harvest) -> dict[str, Any]:
    """All that distillation reports of samples and harvest.

    ``pass@1`` is the share of problems whose first sample is right,
    ``pass@n`` of those with any right one, ``mixed`` of those with right and
    wrong ones: independent trials, with a Wilson interval. ``solve_rate``
    counts samples; those of one problem are alike, so it has no interval.
    ``too_long`` samples were not drawn and count as wrong; ``empty`` ones
    hold no text. ``sft_mean_logprob`` is per token over the kept rows, in
    nats.
    """
    groups = list(_iter_groups(samples))
    rows = [row for group in groups for row in group]
    reasons = [row.finish_reason for row in rows]
    right = [sum(row.correct for row in group) for group in groups]
    most = max((len(group) for group in groups), default=0)
    kept_tokens = sum(row.tokens for row in harvest.kept)
    kept_logprob = sum(r.mean_logprob * r.tokens for r in harvest.kept)

    def share(count: int) -> dict[str, Any]:
        n = len(rows)
        return {"k": count, "n": n, "p": count / n if n else None}

    def score(count: int) -> dict[str, Any]:
        found = proportion(count, len(groups))
        return {"k": found.k, "n": found.n, "text": str(found)}

    return {
        "problems": len(groups),
        "samples": len(rows),
        "solve_rate": share(sum(right)),
        "pass@1": score(sum(group[0].correct for group in groups)),
        f"pass@{most}" if most > 1 else "pass@n": score(
            sum(k > 0 for k in right)
        ),
        "mixed": score(
            sum(0 < k < len(g) for k, g in zip(right, groups, strict=True))
        ),
        "distinct_fraction": distinct_fraction(samples),
        "truncated": share(reasons.count("length")),
        "no_answer": share(sum(not row.answered for row in rows)),
        "too_long": share(reasons.count("too_long")),
        "empty": share(sum(row.empty for row in rows)),
        "tokens": sum(row.tokens for row in rows),
        "length": _quantiles([row.tokens for row in rows]),
        "sft_rows": len(harvest.kept),
        "pairs": len(harvest.matched),
        "repeated_prompts": harvest.repeated,
        "sft_rows_cut": harvest.rows_cut,
        "pairs_cut": harvest.pairs_cut,
        "sft_mean_logprob": kept_logprob / kept_tokens
        if kept_tokens
        else None,
    }


def _quantiles(lengths: Sequence[int]) -> dict[str, float]:
    """``{"p5": …, "p95": …, "mean": …}`` in tokens."""
    if len(lengths) < 2:
        return {}
    cuts = statistics.quantiles(lengths, n=100, method="inclusive")
    out = {f"p{q}": cuts[q - 1] for q in QUANTILES}
    return out | {"mean": statistics.fmean(lengths)}


def _say_unusable(metrics: Mapping[str, Any]) -> None:
    counts = [metrics[name]["k"] for name in ("too_long", "empty")]
    say_unusable(STAGE, *counts, metrics["samples"])


def require_kept(metrics: Mapping[str, Any]) -> None:
    """Refuse to go on from a harvest without a single training row.

    Args:
        metrics: what :func:`measure_samples` found.

    Raises:
        LabError: says what the samples came to, and what to try.
    """
    if metrics["sft_rows"]:
        return
    counts = [
        f"{metrics[key]['k']} {words}"
        for key, words in (
            ("solve_rate", "right"),
            ("truncated", "cut off at the cap"),
            ("no_answer", "without an answer"),
        )
    ]
    raise LabError(
        f"Of {metrics['samples']} samples none can be kept: there is nothing "
        "to train on.",
        why=", ".join(counts),
        fix="read a few samples first; then a larger sampling.max_new_tokens "
        "where they are cut, easier problems (data.train), a stronger model, "
        "or SFT on worked solutions before (solutions.mix)",
    )
