"""Recorded completions instead of a model: for a course without a GPU.

``engine.recording`` names a samples file, or a folder of them. A request is
answered with the completion recorded for the same problem, sample number and
prompt, text for text; what was not recorded is an error, never made up. Only
the position of each line is kept in memory.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from helpers.base import (
    Completion,
    LabError,
    Recipe,
    hash_file,
    iter_located,
    name_folder,
)
from helpers.models import find_base, load_tokenizer
from helpers.sampling.protocol import SampledText, SampleRequest

NAMED = 5  # of the missing completions, in the message
MISSING = "was never recorded"
OTHER_PROMPT = "was recorded with another prompt"
OTHER_CAP = "was recorded with another cap of tokens"
NO_LOGPROBS = "was recorded without log probabilities"


def open_replay(recipe: Recipe, path: str | Path | None = None) -> Replay:
    """An engine that gives back what ``engine.recording`` holds.

    Args:
        path: the folder or hub id whose tokenizer renders the prompts; None
            for the recipe's base model. No weights are loaded.

    Raises:
        LabError: no recording named, or none there, or not readable.
    """
    if not recipe.engine.recording:
        raise LabError(
            "Engine 'replay' needs a recording.",
            fix="set engine.recording to a samples file or a folder of them",
        )
    source = Path(recipe.engine.recording)
    files = list_recordings(source)
    base = find_base(recipe)
    path = base if path is None else Path(path)
    revision = recipe.model.revision if path == base else None
    return Replay(load_tokenizer(path, revision), source, files)


def list_recordings(source: Path) -> list[Path]:
    """The samples files that ``source`` names.

    Raises:
        LabError: no such file, or a folder without any.
    """
    files = sorted(source.rglob("*.jsonl")) if source.is_dir() else [source]
    if not files or not source.exists():
        raise LabError(
            f"There is no recording at {source}.",
            fix="set engine.recording to a samples file (JSON lines of "
            "completions), or to a folder of them",
        )
    return files


class Replay:
    """Recorded completions as an engine; made by :func:`open_replay`.

    Args:
        tokenizer: renders the prompts.
        source: what the recipe names.
        files: the samples files.
    """

    def __init__(self, tokenizer: Any, source: Path, files: list[Path]):
        self.tokenizer, self.source, self.files = tokenizer, source, files
        # problem id → {sample: (file number, offset of the line)}
        self._index: dict[str, dict[int, tuple[int, int]]] = {}
        self._open: dict[int, Any] = {}
        for number, file in enumerate(files):
            for offset, row in iter_located(file, Completion):
                self._remember(row, number, offset)

    def _remember(self, row: Completion, number: int, offset: int) -> None:
        samples = self._index.setdefault(row.problem_id, {})
        if (known := samples.get(row.sample)) is not None:
            raise LabError(
                f"Sample {row.sample} of {row.problem_id} was recorded "
                f"twice: in {self.files[known[0]]} and in "
                f"{self.files[number]}.",
                why="nobody can tell which of the two is meant",
                fix="name one samples file as engine.recording",
            )
        samples[row.sample] = (number, offset)

    def __len__(self) -> int:
        return sum(map(len, self._index.values()))

    def describe(self) -> dict[str, Any]:
        """Name and what is replayed."""
        return {
            "name": "replay",
            "version": hash_file(self.source),
            "recording": name_folder(self.source),
            "completions": len(self),
        }

    def sample(
        self, requests: Iterable[SampleRequest]
    ) -> Iterator[SampledText]:
        """Yield the recorded texts in the requests' order.

        Raises:
            LabError: after the last request, when any had no recording;
                says how many and names the first.
        """
        missing: Counter[str] = Counter()
        names: dict[str, list[str]] = {}
        for request in requests:
            found = self._find(request)
            if isinstance(found, str):
                missing[found] += 1
                if missing[found] <= NAMED:
                    name = f"{request.problem_id}/{request.sample}"
                    names.setdefault(found, []).append(name)
                continue
            yield found
        if missing:
            self._refuse(missing, names)

    def _find(self, request: SampleRequest) -> SampledText | str:
        """The recorded text, or why there is none."""
        place = self._index.get(request.problem_id, {}).get(request.sample)
        if place is None:
            return MISSING
        row = self._read(*place)
        if row.prompt != request.prompt:
            return OTHER_PROMPT
        cut = row.finish_reason == "length"
        if row.tokens > request.max_new_tokens or (
            cut and row.tokens < request.max_new_tokens
        ):
            return OTHER_CAP
        logprobs = (row.model_extra or {}).get("logprobs")
        if request.logprobs and logprobs is None:
            return NO_LOGPROBS
        return SampledText(
            request=request,
            response=row.response,
            finish_reason=row.finish_reason,
            tokens=row.tokens,
            mean_logprob=row.mean_logprob,
            logprobs=tuple(logprobs) if request.logprobs else None,
        )

    def _read(self, number: int, offset: int) -> Completion:
        if number not in self._open:
            self._open[number] = open(self.files[number], "rb")  # noqa: SIM115
        file = self._open[number]
        file.seek(offset)
        return Completion.model_validate_json(file.readline())

    def _refuse(
        self, missing: Counter[str], names: dict[str, list[str]]
    ) -> None:
        parts = [
            f"{count} {what}: {', '.join(names[what])}"
            + ("…" if count > NAMED else "")
            for what, count in missing.items()
        ]
        raise LabError(
            f"{self.source} lacks {missing.total()} of the completions that "
            f"were asked for (problem/sample). {'. '.join(parts)}.",
            why="a replay gives back what was recorded and nothing else",
            fix="use the recipe, problems and settings of the recording, or "
            "engine.name=transformers",
        )

    def close(self) -> None:
        """Close the files; may be called twice."""
        for file in self._open.values():
            with contextlib.suppress(OSError):
                file.close()
        self._open.clear()

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
