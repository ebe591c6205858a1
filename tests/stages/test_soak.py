"""Fifty random disturbances, and not one sample lost, doubled or changed.

Real processes all through: a driver (lock, engine over HTTP, sampler) and a
server that gives faults. Both are killed with SIGKILL at random moments.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

pytest.importorskip("resource", reason="POSIX processes only")
pytest.importorskip("openai")
pytest.importorskip("transformers")

from soak_driver import NAME, REFUSED

from helpers.base import REPO_ROOT, Completion, load_recipe, read_records
from helpers.base.lock import LOCK
from helpers.models import load_tokenizer
from helpers.problems import load_problems
from helpers.sampling import make_requests

GOES_ON = "the same command goes on"
HERE = Path(__file__).parents[1]
SEED = 20
PROBLEMS, SAMPLES = 500, 8
EVENTS = {
    "driver killed": 22,
    "server killed": 12,
    "driver and server killed": 10,
    "last line torn": 8,
    "disk full": 6,
    "second run refused": 3,
}
FAULTS = {
    "500": 0.01,
    "503": 0.005,
    "reset": 0.01,
    "short": 0.01,
    "timeout": 0.003,
}
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


class Server:
    """The faulty server's process, always on the same port."""

    def __init__(self, notes, **settings):
        self.settings = {
            "notes": str(notes),
            "port": 0,
            "model": load_recipe("pocket").model.id,
            **settings,
        }
        self.starts = 0
        self.start()

    def start(self):
        """Start it, or start it again, and wait until it listens."""
        self.starts += 1
        settings = self.settings | {"seed": self.starts}
        self.process = subprocess.Popen(
            [sys.executable, "soak_driver.py", "serve", json.dumps(settings)],
            cwd=HERE,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.settings["port"] = int(self.process.stdout.readline())

    def kill(self):
        """SIGKILL."""
        self.process.kill()
        self.process.communicate()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.settings['port']}/v1"


class Nursery:
    """Forks drivers (see soak_driver)."""

    def __init__(self, recipe, folder, log):
        self.job = {"recipe": str(recipe), "folder": str(folder)}
        self.log, self.pid = log, None
        self.process = subprocess.Popen(
            [sys.executable, "soak_driver.py", "nursery"],
            cwd=HERE,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline().startswith("ready")

    def ask(self, **job):
        """Send a line, read the number that answers it."""
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, limit=None):
        """A new driver; its pid."""
        return self.ask(**self.job, log=str(self.log), limit=limit)

    def ensure(self):
        """Have a driver at work."""
        if self.pid is None:
            self.pid = self.start()

    def wait(self, pid):
        """Exit code of a driver (minus the signal)."""
        return self.ask(wait=pid)

    def kill(self):
        """SIGKILL the driver at work."""
        os.kill(self.pid, signal.SIGKILL)
        code, self.pid = self.wait(self.pid), None
        return code

    def stop(self):
        """End everything."""
        if self.pid is not None:
            self.kill()
        self.process.stdin.close()
        self.process.wait()


def write_recipe(path, url):
    """Tier pocket, asking a server; short timeouts."""
    raw = {
        "extends": "pocket",
        "name": "soak",
        "data": {"n_problems": PROBLEMS},
        "sampling": {"n": SAMPLES, "max_new_tokens": 64},
        "engine": {
            "name": "vllm",
            "url": url,
            "max_concurrency": 8,
            "request_timeout_s": 1.0,
        },
    }
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load_recipe(path)


class Soak:
    """Everything that is disturbed, and what was done to it."""

    def __init__(self, folder):
        self.random = random.Random(SEED)
        self.notes, self.log = folder / "faults.txt", folder / "log.txt"
        self.server = Server(
            self.notes, faults=FAULTS, delay_s=0.03, hang_s=3.0
        )
        self.recipe = write_recipe(folder / "soak.yaml", self.server.url)
        self.run = folder / "run"
        self.path = self.run / NAME
        self.nursery = Nursery(folder / "soak.yaml", self.run, self.log)
        self.done: Counter[str] = Counter()

    def disturb(self, event):
        """One event at a random moment."""
        self.nursery.ensure()
        time.sleep(self.random.uniform(0.0, 0.9))
        getattr(self, event.replace(" ", "_"))()
        self.done[event] += 1

    def driver_killed(self):
        """A driver that met no server, or lost it, has ended itself."""
        while (code := self.nursery.kill()) != -signal.SIGKILL:
            assert code == REFUSED
            last = self.log.read_text()[-2000:]
            assert "No server answers at" in last or GOES_ON in last, last
            self.done["(driver without server)"] += 1
            self.nursery.ensure()
            time.sleep(self.random.uniform(0.0, 0.9))

    def server_killed(self):
        self.server.kill()
        time.sleep(self.random.uniform(0.0, 0.5))
        self.server.start()

    def driver_and_server_killed(self):
        first, second = self.driver_killed, self.server.kill
        if self.random.random() < 0.5:
            first, second = second, first
        first()
        second()
        self.server.start()

    def last_line_torn(self):
        """As a machine that lost power leaves it: half a line, by hand."""
        self.driver_killed()
        if self.path.is_file() and self.path.stat().st_size:
            lines = self.path.read_bytes().splitlines(keepends=True)
            cut = self.random.randrange(1, len(lines[-1]))
            self.path.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])

    def disk_full(self):
        """No file may grow beyond a few more lines."""
        self.driver_killed()
        size = self.path.stat().st_size if self.path.is_file() else 0
        limit = max(size + self.random.randrange(3000), 4096)
        code = self.nursery.wait(self.nursery.start(limit))
        assert code == REFUSED, self.log.read_text()[-2000:]
        assert "the disk is full" in self.log.read_text()
        assert self.path.stat().st_size <= limit
        assert self.path.read_bytes()[-1:] in (b"\n", b"")

    def second_run_refused(self):
        """A second driver is sent away while the first is at work."""
        self.driver_killed()
        self.nursery.ensure()
        while self._read_owner() != self.nursery.pid:
            time.sleep(0.01)
        before = self.log.read_text().count("is in use by")
        assert self.nursery.wait(self.nursery.start()) == REFUSED
        assert self.log.read_text().count("is in use by") == before + 1

    def _read_owner(self):
        lock = self.run / LOCK
        with contextlib.suppress(FileNotFoundError):
            return json.loads(lock.read_text())["pid"]

    def check(self):
        """Of all that was written no line is broken, none is there twice."""
        whole = self.path.read_bytes().rpartition(b"\n")[0]
        keys = [
            (row["problem_id"], row["sample"])
            for row in map(json.loads, whole.splitlines())
        ]
        assert len(keys) == len(set(keys))
        return len(keys)

    def finish(self):
        """The same command until it comes to its end."""
        for _ in range(10):
            self.nursery.ensure()
            pid, self.nursery.pid = self.nursery.pid, None
            if self.nursery.wait(pid) == 0:
                return
        raise AssertionError(self.log.read_text()[-2000:])

    def stop(self):
        """End all processes."""
        self.nursery.stop()
        self.server.kill()


@pytest.fixture
def soak(tmp_path, pocket_model):
    made = Soak(tmp_path)
    yield made
    made.stop()


def draw_undisturbed(soak, folder):
    """The lines of a run that nothing disturbs."""
    server = Server(folder / "none.txt")
    try:
        write_recipe(folder / "calm.yaml", server.url)
        calm = Nursery(folder / "calm.yaml", folder / "calm", folder / "log")
        calm.ensure()
        pid, calm.pid = calm.pid, None
        assert calm.wait(pid) == 0, (folder / "log").read_text()
        calm.stop()
    finally:
        server.kill()
    return sorted((folder / "calm" / NAME).read_bytes().splitlines())


@pytest.mark.long
@pytest.mark.timeout(600)
def test_nothing_is_lost_or_doubled_whatever_is_killed(soak, tmp_path, capsys):
    events = [name for name, count in EVENTS.items() for _ in range(count)]
    soak.random.shuffle(events)
    for number, event in enumerate(events):
        soak.disturb(event)
        if number % 10 == 9:
            before_end = soak.check()
    soak.finish()

    total = PROBLEMS * SAMPLES
    faults = Counter(soak.notes.read_text().split())
    said = soak.log.read_text()
    with capsys.disabled():
        print(f"\n{soak.check()} samples, {len(events)} disturbances:")
        for name, count in sorted(soak.done.items()):
            print(f"  {name}: {count}")
        print(f"  stale locks removed: {said.count('stale lock of')}")
        print(f"  HTTP faults: {dict(faults.most_common())}")
    assert before_end < total, "it was finished before the last disturbance"
    assert all(soak.done[name] == EVENTS[name] for name in EVENTS)
    assert set(faults) == set(FAULTS)
    assert said.count("stale lock of") > 20

    asked = make_requests(
        load_problems(soak.recipe.data.train, PROBLEMS),
        load_tokenizer(REPO_ROOT / soak.recipe.model.id),
        soak.recipe.data.prompt_template,
        n=SAMPLES,
        run_seed=soak.recipe.seed,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=64,
    )
    rows = read_records(soak.path, Completion)
    want = {(r.problem_id, r.sample): (r.prompt, r.seed) for r in asked}
    have = {(r.problem_id, r.sample): (r.prompt, r.seed) for r in rows}
    assert len(rows) == len(have) == total and have == want
    lines = sorted(soak.path.read_bytes().splitlines())
    assert lines == draw_undisturbed(soak, tmp_path)
