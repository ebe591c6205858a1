"""The processes that the soak test disturbs.

``serve``: a faulty server that notes each fault it gives in a file.
``nursery``: imports what the sampler needs once, then forks a fresh driver
for every line it reads, so that fifty kills do not mean fifty slow starts.
A driver is the real thing: run folder with lock, engine over HTTP, sampler.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from faulty_server import FaultyServer

NAME = "samples/soak.jsonl"
REFUSED = 3  # exit code of a driver that a LabError ended


class NotingServer(FaultyServer):
    """Writes the name of each fault to a file, so that a kill keeps it."""

    def __init__(self, notes: str, **settings):
        self.notes = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        super().__init__(**settings)

    def next_fault(self) -> str:
        """The next fault, noted."""
        name = super().next_fault()
        if name != "ok":
            os.write(self.notes, f"{name}\n".encode())
        return name


def serve(settings: dict) -> None:
    """Serve until killed; say the port."""
    server = NotingServer(**settings)
    print(server.port, flush=True)
    threading.Event().wait()


def drive(recipe_path: str, folder: str, limit: int | None) -> None:
    """Sample all that is missing in a run folder.

    Args:
        limit: the largest file that this process may write, in bytes.
    """
    from helpers.base import RunDir, load_recipe
    from helpers.problems import load_problems
    from helpers.sampling import (
        iter_requests,
        open_engine,
        open_samples,
        sample_missing,
    )

    recipe = load_recipe(recipe_path)
    problems = load_problems(recipe.data.train, recipe.data.n_problems)
    run, settings = RunDir.open(folder, recipe), recipe.sampling
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with run.stage("soak", {}), open_engine(recipe) as engine:
        samples = open_samples(run, NAME, {"soak": "1"})
        sample_missing(
            engine,
            iter_requests(
                problems,
                engine.tokenizer,
                recipe.data.prompt_template,
                n=settings.n,
                run_seed=recipe.seed,
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_new_tokens=settings.max_new_tokens,
            ),
            samples,
            {p.id: p.answer for p in problems},
            title="soak",
            total=len(problems) * settings.n,
            n=settings.n,
        )


def run_child(job: dict) -> int:
    """A driver's life; its exit code. Output goes to ``job["log"]``."""
    from helpers.base import LabError

    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        drive(job["recipe"], job["folder"], job["limit"])
    except LabError as error:
        print(error, flush=True)
        return REFUSED
    sys.stdout.flush()
    return 0


def keep_nursery() -> None:
    """Fork a driver a line of JSON; ``{"wait": pid}`` gives its end."""
    import helpers.sampling.sample
    import helpers.sampling.vllm_client
    from helpers.base import REPO_ROOT, load_recipe
    from helpers.models import load_tokenizer

    load_tokenizer(REPO_ROOT / load_recipe("pocket").model.id)
    print("ready", helpers.__name__, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            status = os.waitpid(job["wait"], 0)[1]
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = run_child(job)
            finally:
                os._exit(code)
        print(pid, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(json.loads(sys.argv[2]))
    keep_nursery()
