"""What a person sees while completions come in."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import tqdm.auto
from simulated_engine import SimulatedEngine
from test_sampling import PROBLEMS, draw, group_samples, iter_sums

from helpers import session
from helpers.base import REPO_ROOT
from helpers.grading import read_graded
from helpers.results import proportion
from helpers.sampling.sample import SampleProgress
from helpers.stages import harvest_pairs, measure_samples

LAST = re.compile(
    r"t: +100%.*60/60 \[\d\d:\d\d<00:00, [\d,]+ tokens/s, mixed \d+ % of 20, "
    r"first try (\d+/20 \(.* %, 95 % CI .*–.*\))\]"
)


def test_the_last_line_says_what_the_harvest_measures(tmp_path, capsys):
    draw(tmp_path / "x.jsonl")
    groups = group_samples(read_graded(tmp_path / "x.jsonl"), PROBLEMS)
    found = harvest_pairs(groups, pick="first", seed=0, run_name="")
    metrics = measure_samples(groups, found)
    line = capsys.readouterr().err.split("\r")[-1]
    assert LAST.search(line)[1] == metrics["pass@1"]["text"]
    share = metrics["mixed"]["k"] / metrics["mixed"]["n"]
    assert f"mixed {100 * share:.0f} % of 20" in line


def test_what_was_there_counts_but_not_for_the_speed(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    draw(path, requests=list(iter_sums(PROBLEMS[:10])))
    capsys.readouterr()
    draw(path)
    lines = capsys.readouterr().err.split("\r")
    assert "30/60" in lines[1] and LAST.search(lines[-1])
    draw(path)
    assert capsys.readouterr().err == ""  # nothing to do, no bar


def test_one_sample_a_problem_has_no_mixed_share(tmp_path, capsys):
    draw(tmp_path / "x.jsonl", requests=list(iter_sums(n=1)), n=1)
    rows = read_graded(tmp_path / "x.jsonl")
    said = capsys.readouterr().err
    right = proportion(sum(r.correct for r in rows), 20)
    assert f"right {right}" in said and "mixed" not in said


def test_only_problems_that_lack_samples_are_remembered():
    progress, most = SampleProgress("t", 3000, 3), 0
    for request in iter_sums(
        [
            p.model_copy(update={"id": str(i)})
            for i in range(50)
            for p in PROBLEMS
        ]
    ):
        progress.skip(request.problem_id, request.sample, True)
        most = max(most, len(progress._open))
    assert most == 1 and progress.whole == 1000 and progress.mixed == 0


def test_plain_lines_in_a_batch_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tqdm.auto, "tqdm", session.make_plain_bar())
    draw(tmp_path / "x.jsonl")
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and LAST.search(out)
    assert err == ""


def test_a_plain_line_now_and_then_in_a_long_run(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(session, "PLAIN_SECONDS", 0.0)
    monkeypatch.setattr("helpers.sampling.sample.WORDS_EVERY_S", 0.0)
    bar = session.make_plain_bar()
    monkeypatch.setattr(bar, "monitor_interval", 0)

    class Eager(bar):
        def __init__(self, *args, **options):
            super().__init__(*args, **options, mininterval=0)

    monkeypatch.setattr(tqdm.auto, "tqdm", Eager)
    draw(tmp_path / "x.jsonl")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10
    middle = lines[len(lines) // 2]
    assert "tokens/s" in middle and "95 % CI" in middle and "<" in middle


def test_a_widget_in_a_notebook(tmp_path, monkeypatch, capsys):
    pytest.importorskip("ipywidgets")
    from tqdm.notebook import tqdm as widget

    made = []

    class Kept(widget):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(tqdm.auto, "tqdm", Kept)
    draw(tmp_path / "x.jsonl")
    (bar,) = made
    left, middle, right = bar.container.children
    # the widget pads with figure spaces
    words = [x.value.replace("\u2007", " ") for x in (left, right)]
    assert words[0] == "t: 100%" and middle.value == 60
    assert "60/60" in words[1] and "first try" in words[1]
    assert middle.bar_style == "success"


PROGRAM = (
    "import sys; sys.path[:0] = ['tests', 'tests/sampling']\n"
    "from pathlib import Path\n"
    "import test_sampling as t\n"
    "t.draw(Path(sys.argv[1]))\n"
)


def test_one_line_in_a_terminal(tmp_path):
    """In a real terminal of 120 columns: one line, redrawn, then left."""
    pty = pytest.importorskip("pty")
    fcntl = pytest.importorskip("fcntl")
    import struct
    import termios

    master, slave = pty.openpty()
    size = struct.pack("HHHH", 24, 120, 0, 0)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "x.jsonl")],
        cwd=REPO_ROOT,
        stdout=slave,
        stderr=slave,
        close_fds=True,
    )
    os.close(slave)
    seen = b""
    while process.poll() is None or _ready(master):
        try:
            seen += os.read(master, 65536)
        except OSError:  # the other end is closed
            break
    text = seen.decode()
    assert text.count("\n") == 1 and text.count("\r") > 1
    last = text.rstrip().split("\r")[-1]
    assert "60/60" in last and "first try" in last and len(last) <= 120


def _ready(handle):
    import select

    return bool(select.select([handle], [], [], 0)[0])


def test_the_simulated_engine_is_what_the_tests_need():
    texts = list(SimulatedEngine().sample(iter_sums()))
    assert len(texts) == 60 and len({t.response for t in texts}) > 20
