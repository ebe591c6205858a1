"""Rates that were measured: recorded runs shipped in ``data/measured``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.base import DATA_DIR, read_json
from helpers.planner.shapes import count_active_parameters, find_shape
from helpers.planner.speed import Rate, train_flops_per_token
from helpers.planner.workload import SampleJob, TrainJob, Workload

MEASURED_DIR = DATA_DIR / "measured"
# The tier whose run on a CPU is always at hand, and its model.
RECORDED_TIER, RECORDED_MODEL = "pocket", "data/pocket/model"


@dataclass(frozen=True)
class Measured:
    """What a recorded run of a tier says, for planning the next one.

    ``rates`` are by phase ("distill", "sft", "dpo"); shares are of the
    problems, lengths in tokens; None where the run does not say.
    """

    where: str = ""
    rates: dict[str, Rate] | None = None
    sft_share: float | None = None
    pair_share: float | None = None
    mean_tokens: float | None = None

    def rate(self, phase: str) -> Rate | None:
        """The measured rate of a phase, if there is one."""
        return (self.rates or {}).get(phase)


def load_measured(tier: str, folder: Path | None = None) -> Measured:
    """The recorded run of a tier; an empty one where there is none."""
    run = (folder or MEASURED_DIR) / tier / "run"
    if not (run / "metrics.json").is_file():
        return Measured()
    metrics: dict[str, Any] = read_json(run / "metrics.json")
    manifest = run / "manifest.json"
    made = read_json(manifest) if manifest.is_file() else {}
    where = f"recorded on {str(made.get('created', '?'))[:10]}"
    if made.get("processor"):
        where += f", {made['processor']}"
    rates = {
        phase: Rate(metrics[phase]["tokens_per_second"], where, True)
        for phase in ("distill", "sft", "dpo", "grpo")
        if metrics.get(phase, {}).get("tokens_per_second")
    }
    found = metrics.get("distill", {})
    problems = found.get("problems")
    return Measured(
        where=where,
        rates=rates,
        sft_share=_share(found.get("sft_rows"), problems),
        pair_share=_share(found.get("pairs"), problems),
        mean_tokens=(found.get("length") or {}).get("mean"),
    )


def _share(count: int | None, problems: int | None) -> float | None:
    return count / problems if count and problems else None


def scale_recorded_rate(
    workload: Workload, job: SampleJob | TrainJob, folder: Path | None = None
) -> Rate | None:
    """A CPU's rate from the recorded pocket run, by arithmetic alone.

    On the slow side: larger matrices keep a processor busier than those of
    the pocket model, so the hours that follow are an upper bound on a
    machine like the recorded one. None on a card, for GRPO, or without the
    recording.
    """
    phase = "distill" if isinstance(job, SampleJob) else job.kind
    recorded = load_measured(RECORDED_TIER, folder)
    rate = recorded.rate(phase)
    if workload.card or rate is None:
        return None
    small = find_shape(RECORDED_MODEL)
    if isinstance(job, SampleJob):
        sizes = [count_active_parameters(s) for s in (small, workload.shape)]
    else:
        sizes = [
            train_flops_per_token(s, job) for s in (small, workload.shape)
        ]
    return Rate(
        rate.tokens_per_second * sizes[0] / sizes[1],
        f"at most that long: the pocket model's arithmetic, {rate.source}",
    )
