"""One run at a time in a folder, tried out with real processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from helpers.base import (
    REPO_ROOT,
    LabError,
    RunDir,
    hold_lock,
    load_recipe,
    require_unlocked,
)
from helpers.base.lock import LOCK

HOLD = (
    "import sys, time\n"
    "from helpers.base.lock import hold_lock\n"
    "with hold_lock(sys.argv[1]):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.readline()\n"
)
# Writes + when it has the lock and - before it gives it back. Between seeing
# that an owner is gone and removing its lock it takes its time.
CONTEND = (
    "import os, sys, time\n"
    "from helpers.base import lock as locks\n"
    "from helpers.base.errors import LabError\n"
    "from helpers.base.lock import hold_lock\n"
    "look = locks._is_alive\n"
    "def look_slowly(owner):\n"
    "    alive = look(owner)\n"
    "    time.sleep(0.02)\n"
    "    return alive\n"
    "locks._is_alive = look_slowly\n"
    "log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)\n"
    "got = 0\n"
    "while got < 3:\n"
    "    try:\n"
    "        with hold_lock(sys.argv[1]):\n"
    "            os.write(log, b'+')\n"
    "            time.sleep(0.01)\n"
    "            os.write(log, b'-')\n"
    "            got += 1\n"
    "            if got == 3:\n"
    "                os._exit(0)\n"  # dies with the lock: a stale one
    "    except LabError:\n"
    "        time.sleep(0.005)\n"
)


def start(code, *arguments, **variables):
    """A Python process on this repository."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPO_ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def owner(tmp_path):
    """Another process that holds the lock of ``tmp_path``."""
    process = start(HOLD, tmp_path)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def write_lock(folder, **changes):
    """The lock that this process would write, with some of it changed."""
    lock = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": psutil.Process().create_time(),
        "since": "2026-01-01T00:00:00+00:00",
        "command": "mathslm distill",
    }
    (folder / LOCK).write_text(json.dumps(lock | changes))


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path, owner):
    with pytest.raises(LabError) as refusal, hold_lock(tmp_path):
        pytest.fail("two processes in one folder")
    text = str(refusal.value)
    lock = json.loads((tmp_path / LOCK).read_text())
    assert f"process {owner.pid} (-c" in text
    assert lock["since"] in text and "--run-dir" in text
    with pytest.raises(LabError):
        require_unlocked(tmp_path)


def test_it_is_given_back_when_the_owner_ends(tmp_path, owner, capsys):
    owner.communicate("\n")
    assert not (tmp_path / LOCK).exists()
    require_unlocked(tmp_path)
    with hold_lock(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert capsys.readouterr().out == ""


def test_the_lock_of_a_killed_process_is_removed_and_said(
    tmp_path, owner, capsys
):
    owner.kill()
    time.sleep(0.05)  # not waited for: it is a zombie, and dead all the same
    with hold_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    said = capsys.readouterr().out
    assert said.startswith(f"stale lock of process {owner.pid}")
    assert said.count("\n") == 1 and "removed" in said
    assert list(tmp_path.iterdir()) == []


def test_a_later_process_of_the_same_number_is_no_owner(tmp_path, capsys):
    mine = psutil.Process().create_time()
    write_lock(tmp_path, pid=os.getppid(), started=mine - 1e6)
    with hold_lock(tmp_path):
        assert "stale lock" in capsys.readouterr().out


def test_another_machine_cannot_be_asked(tmp_path):
    write_lock(tmp_path, host="elsewhere")
    with (
        pytest.raises(LabError, match="elsewhere.*\n.*\n.*delete"),
        hold_lock(tmp_path),
    ):
        pytest.fail("taken from another machine")
    assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}'])
def test_a_lock_that_says_nothing_is_left_to_a_person(
    tmp_path, text, monkeypatch
):
    monkeypatch.setattr("helpers.base.lock.UNWRITTEN_S", 0.1)
    (tmp_path / LOCK).write_text(text)
    with (
        pytest.raises(LabError, match="does not say who"),
        hold_lock(tmp_path),
    ):
        pytest.fail("taken")


def test_a_process_may_take_its_own_lock_again(tmp_path):
    with hold_lock(tmp_path), hold_lock(tmp_path / "." / ""):
        require_unlocked(tmp_path)
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()


def test_it_is_given_back_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), hold_lock(tmp_path):
        raise RuntimeError("stop")
    assert not (tmp_path / LOCK).exists()


def test_the_lock_of_somebody_else_is_not_removed(tmp_path):
    with hold_lock(tmp_path):
        write_lock(tmp_path, pid=os.getppid())
    assert (tmp_path / LOCK).exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    with (
        pytest.raises(LabError, match="Cannot write"),
        hold_lock(tmp_path / "none"),
    ):
        pytest.fail("taken")


@pytest.mark.parametrize(
    ("rank", "takes"),
    [
        ({"RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
    ],
)
def test_one_rank_takes_it_for_all(tmp_path, monkeypatch, rank, takes):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in rank.items():
        monkeypatch.setenv(name, value)
    with hold_lock(tmp_path):
        assert (tmp_path / LOCK).exists() is takes


def test_where_links_are_not_to_be_had(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    with hold_lock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    write_lock(tmp_path, host="elsewhere")
    with pytest.raises(LabError, match="elsewhere"), hold_lock(tmp_path):
        pytest.fail("taken")


@pytest.mark.slow
def test_never_two_at_once_even_over_stale_locks(tmp_path):
    """Six processes, three turns each, each dying with the lock in hand."""
    folder, log = tmp_path / "run", tmp_path / "log"
    folder.mkdir()
    log.write_text("")
    write_lock(folder, pid=2**22 + 1)
    crowd = [start(CONTEND, folder, log) for _ in range(6)]
    for process in crowd:
        process.communicate(timeout=120)
    assert log.read_text() == "+-" * 18


def test_a_stage_holds_it_and_force_needs_it(tmp_path):
    run = RunDir.open(tmp_path / "run", load_recipe("pocket"))
    with run.stage("sft", {"a": "1"}):
        assert run.file(LOCK).exists()
    assert not run.file(LOCK).exists()
    other = start(HOLD, run.path)
    assert other.stdout.readline() == "held\n"
    assert run.is_done("sft", {"a": "1"})  # reading needs no lock
    with pytest.raises(LabError, match="in use"):
        run.is_done("sft", {"a": "1"}, force=True)
    with pytest.raises(LabError, match="in use"), run.stage("dpo", {}):
        pytest.fail("entered")
    other.communicate("\n")
    assert run.file("stages", "sft.json").exists()
