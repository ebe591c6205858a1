"""Other graders, each in a process of its own that can be killed.

They are here to be measured beside :mod:`helpers.grading`, not to be used.
Each is called as its documentation or its paper shows. Several of them hang
or use much memory on hostile input, so every answer has a deadline; an
answer that passes it is a wrong answer, and the verdict says why.

lm-eval needs another version of a parser library (antlr 4.11) than the
tested set of this course. Install it into an environment of its own::

    python -m venv .venv-peers
    .venv-peers/bin/python -m pip install "lm_eval[math]>=0.4.9" \\
        pebble pydantic pyyaml

and name that environment's interpreter in ``MATHSLM_PEERS_PYTHON``.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import astuple, dataclass
from multiprocessing import get_context

from helpers.base import REPO_ROOT, LabError, did_you_mean

OURS = "helpers.grading"
DEADLINE_S = 10.0
MEMORY = 8 << 30
OTHER_PYTHON = "MATHSLM_PEERS_PYTHON"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_WORDS = {True: "accepted", False: "refused", None: "no verdict"}

Grader = Callable[[str, str], "bool | None"]


@dataclass(frozen=True)
class PeerVerdict:
    """What a grader said.

    Attributes:
        correct: False unless the grader accepted the answer.
        outcome: "accepted", "refused", "no verdict" (the grader declined),
            "deadline", "worker died" or "error: NAME".
        seconds: time inside the grader; the deadline where it was killed.
    """

    correct: bool
    outcome: str
    seconds: float


def grade_last_number(response: str, gold: str) -> bool:
    """Compare what follows ``####``, else the last number of each text.

    As in the evaluation of GSM8K (Cobbe et al. 2021, arXiv:2110.14168).
    """

    def last(text: str) -> str | None:
        found = _NUMBER.findall(text.rsplit("####", 1)[-1])
        return found[-1].replace(",", "") if found else None

    return last(response) is not None and last(response) == last(gold)


def grade_math_verify_bare(response: str, gold: str) -> bool:
    """math-verify on both texts as they are (its own time limits)."""
    from math_verify import parse, verify

    return bool(verify(parse(gold), parse(response)))


def grade_math_verify_boxed(response: str, gold: str) -> bool:
    """math-verify with the gold, and a bare answer, written in a box.

    Its reader is made for whole responses: ``\\dfrac{9}{7}`` alone is
    nothing to it.
    """
    from math_verify import parse, verify

    if "boxed" not in response and _is_bare(response):
        response = rf"\boxed{{{response}}}"
    return bool(verify(parse(rf"\boxed{{{gold}}}"), parse(response)))


def _is_bare(response: str) -> bool:
    """Say whether a response is an answer without a text around it."""
    lines = len(response.splitlines()) <= 1 and "####" not in response
    return lines and len(response) < 200 and len(response.split()) <= 12


def grade_trl(response: str, gold: str) -> bool | None:
    """TRL's ``accuracy_reward``; None when it cannot read the gold."""
    from trl.rewards import accuracy_reward

    (reward,) = accuracy_reward([[{"content": response}]], [gold])
    return None if reward is None else reward == 1.0


def grade_trl_dollars(response: str, gold: str) -> bool | None:
    """TRL's ``accuracy_reward`` with the gold between dollar signs."""
    return grade_trl(response, f"${gold}$")


def grade_minerva(response: str, gold: str) -> bool:
    """lm-eval's ``minerva_math``: its normal form and its ``is_equiv``.

    Its extraction knows one phrase only ("Final Answer: The final answer is
    … I hope it is correct."); without it the last box counts, found by its
    own function, else the whole response.
    """
    from lm_eval.tasks.minerva_math import utils

    answer = utils.get_unnormalized_answer(response)
    if answer == "[invalidanswer]":
        boxed = utils.last_boxed_only_string(response)
        usable = boxed is not None and boxed.startswith(
            ("\\boxed{", "\\boxed ")
        )
        answer = utils.remove_boxed(boxed) if usable else response
    normal = utils.normalize_final_answer
    return bool(utils.is_equiv(normal(answer), normal(gold)))


def grade_ours(response: str, gold: str) -> bool:
    """This course's own grader, for a measurement on equal terms."""
    from helpers.grading import grade_response

    return grade_response(response, gold).correct


GRADERS: dict[str, tuple[Grader, str]] = {
    OURS: (grade_ours, ""),
    "last number": (grade_last_number, ""),
    "math-verify (bare)": (grade_math_verify_bare, "math_verify"),
    "math-verify (boxed)": (grade_math_verify_boxed, "math_verify"),
    "TRL accuracy_reward": (grade_trl, "trl"),
    "TRL accuracy_reward ($gold$)": (grade_trl_dollars, "trl"),
    "lm-eval minerva_math": (grade_minerva, "lm_eval"),
}
"""Each grader, and the package that it needs."""


@functools.cache
def find_python(name: str) -> str | None:
    """Return the interpreter that can run a grader: "" is this one.

    None when the grader's package is not installed.
    """
    package = GRADERS[name][1]
    if package == "lm_eval":
        return _find_lm_eval()
    if not package or importlib.util.find_spec(package) is not None:
        return ""
    return None


def _find_lm_eval() -> str | None:
    if importlib.util.find_spec("lm_eval") is not None:
        parser = importlib.metadata.version("antlr4-python3-runtime")
        if parser.startswith("4.11"):  # else its module refuses to load
            return ""
    python = os.environ.get(OTHER_PYTHON, "")
    if not python:
        return None
    check = [python, "-c", "import lm_eval.tasks.minerva_math.utils"]
    try:
        done = subprocess.run(check, capture_output=True, check=False)
    except OSError as error:
        raise LabError(
            f"{OTHER_PYTHON}={python} cannot be started",
            str(error),
            f"set {OTHER_PYTHON} to a Python interpreter, or unset it",
        ) from error
    return python if done.returncode == 0 else None


def run_peer(
    name: str,
    cases: Iterable[tuple[str, str]],
    deadline_s: float = DEADLINE_S,
    *,
    progress: bool = True,
) -> list[PeerVerdict]:
    """Grade (response, gold) pairs with one grader, one process.

    Args:
        name: a key of :data:`GRADERS`.
        cases: pairs of strings.
        deadline_s: seconds for one answer; the imports do not count.
        progress: show a bar when there are many.

    Raises:
        LabError: the grader is not known or not installed.
    """
    if name not in GRADERS:
        raise LabError(
            f"no grader is called {name!r}.{did_you_mean(name, GRADERS)}",
            "these are known: " + ", ".join(GRADERS),
            "use one of these names",
        )
    python = find_python(name)
    if python is None:
        raise LabError(
            f"{name} is not installed",
            f"it needs the package {GRADERS[name][1]}",
            "see the text at the top of tools/peers.py",
        )
    tasks = list(cases)
    if python:
        return _run_elsewhere(python, name, tasks, deadline_s)
    return _run_here(name, tasks, deadline_s, progress)


def _run_here(
    name: str,
    tasks: list[tuple[str, str]],
    deadline_s: float,
    progress: bool,
) -> list[PeerVerdict]:
    """Hand the cases to a process that pebble kills at the deadline."""
    from pebble import ProcessPool
    from tqdm.auto import tqdm

    hidden = not progress or len(tasks) < 20
    with ProcessPool(
        max_workers=1,
        initializer=_prepare_process,
        initargs=[name],
        context=get_context("spawn"),
    ) as pool:
        futures = [
            pool.schedule(_time_grader, args=[name, *task], timeout=deadline_s)
            for task in tasks
        ]
        return [
            _read_result(future, deadline_s)
            for future in tqdm(futures, desc=name, disable=hidden)
        ]


def _prepare_process(name: str) -> None:
    """Bound the memory, and import what no deadline should pay for."""
    import logging

    logging.disable(logging.ERROR)  # math-verify reports every time-out
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with suppress(Exception):
        GRADERS[name][0](r"\boxed{x+1}", "1+x")


def _time_grader(name: str, response: str, gold: str) -> PeerVerdict:
    start = time.perf_counter()
    try:
        verdict = GRADERS[name][0](response, gold)
        outcome = _WORDS[verdict]
    except (Exception, RecursionError, MemoryError) as error:
        verdict, outcome = False, f"error: {type(error).__name__}"
    return PeerVerdict(bool(verdict), outcome, time.perf_counter() - start)


def _read_result(future: Future, deadline_s: float) -> PeerVerdict:
    from pebble import ProcessExpired

    try:
        return future.result()
    except TimeoutError:
        return PeerVerdict(False, "deadline", deadline_s)
    except ProcessExpired:
        return PeerVerdict(False, "worker died", deadline_s)


def _run_elsewhere(
    python: str, name: str, tasks: list[tuple[str, str]], deadline_s: float
) -> list[PeerVerdict]:
    """Do the same in a process of another interpreter, over its pipes."""
    done = subprocess.run(
        [python, "-m", "tools.peers", name, str(deadline_s)],
        input=json.dumps(tasks),
        capture_output=True,
        text=True,
        check=False,
        cwd=REPO_ROOT,
    )
    if done.returncode:
        raise LabError(
            f"{name} failed under {python}",
            done.stderr.strip()[-300:],
            "see the text at the top of tools/peers.py",
        )
    lines = done.stdout.splitlines()  # a library may print before the last
    return [PeerVerdict(*row) for row in json.loads(lines[-1])]


def main(name: str, deadline_s: str) -> None:
    """Grade the pairs of standard input; write the verdicts as JSON."""
    tasks = json.load(sys.stdin)
    found = _run_here(name, tasks, float(deadline_s), progress=False)
    print(json.dumps([astuple(verdict) for verdict in found]))


if __name__ == "__main__":
    main(*sys.argv[1:])
