"""One run at a time in a folder, tried out with real processes."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from helpers.base import (
    REPO_ROOT,
    LabError,
    RunDir,
    hold_lock,
    load_recipe,
    require_unlocked,
)
from helpers.base.lock import OWNER

HOLD = (
    "import sys, time\n"
    "from helpers.base.lock import hold_lock\n"
    "with hold_lock(sys.argv[1]):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.readline()\n"
)
# Writes + when it has the lock and - before it gives it back.
CONTEND = (
    "import os, sys, time\n"
    "from helpers.base.errors import LabError\n"
    "from helpers.base.lock import hold_lock\n"
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
    "                os._exit(0)\n"  # dies with the lock in hand
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


def write_owner(folder, **changes):
    """The note that this process would leave, with some of it changed."""
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": "2026-01-01T00:00:00+00:00",
        "command": "mathslm distill",
    }
    (folder / OWNER).write_text(json.dumps(owner | changes))


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path, owner):
    with pytest.raises(LabError) as refusal, hold_lock(tmp_path):
        pytest.fail("two processes in one folder")
    text = str(refusal.value)
    note = json.loads((tmp_path / OWNER).read_text())
    assert f"process {owner.pid} (-c" in text
    assert note["since"] in text and "--run-dir" in text
    with pytest.raises(LabError):
        require_unlocked(tmp_path)
    assert json.loads((tmp_path / OWNER).read_text()) == note


def test_an_owner_that_has_not_said_its_name_yet(tmp_path, owner):
    (tmp_path / OWNER).unlink()
    with (
        pytest.raises(LabError, match="in use by another process"),
        hold_lock(tmp_path),
    ):
        pytest.fail("two processes in one folder")


def test_it_is_given_back_when_the_owner_ends(tmp_path, owner, capsys):
    owner.communicate("\n")
    assert not (tmp_path / OWNER).exists()
    require_unlocked(tmp_path)
    with hold_lock(tmp_path):
        assert (tmp_path / OWNER).exists()
    assert capsys.readouterr().out == ""


def test_the_lock_of_a_killed_process_is_removed_and_said(
    tmp_path, owner, capsys
):
    owner.kill()
    time.sleep(0.05)  # not waited for: it is a zombie, and dead all the same
    with hold_lock(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    said = capsys.readouterr().out
    assert said.startswith(f"stale lock of process {owner.pid}")
    assert said.count("\n") == 1 and "removed" in said
    assert not (tmp_path / OWNER).exists()


def test_a_later_process_of_the_same_number_is_no_owner(tmp_path, capsys):
    write_owner(tmp_path, pid=os.getppid())  # it runs, and holds nothing
    with hold_lock(tmp_path):
        assert "stale lock" in capsys.readouterr().out


def test_another_machine_cannot_be_asked(tmp_path):
    """On a disk that both see, whose locks are not shared."""
    write_owner(tmp_path, host="elsewhere")
    for _ in range(2):
        with (
            pytest.raises(LabError, match="elsewhere.*\n.*\n.*delete"),
            hold_lock(tmp_path),
        ):
            pytest.fail("taken from another machine")
    assert (tmp_path / OWNER).exists()
    (tmp_path / OWNER).unlink()  # as it advises
    with hold_lock(tmp_path):
        assert (tmp_path / OWNER).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}'])
def test_a_torn_note_is_written_anew(tmp_path, text):
    (tmp_path / OWNER).write_text(text)
    with hold_lock(tmp_path):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    assert not (tmp_path / OWNER).exists()


def test_a_process_may_take_its_own_lock_again(tmp_path):
    with hold_lock(tmp_path), hold_lock(tmp_path / "." / ""):
        require_unlocked(tmp_path)
        assert (tmp_path / OWNER).exists()
    assert not (tmp_path / OWNER).exists()


def test_it_is_given_back_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), hold_lock(tmp_path):
        raise RuntimeError("stop")
    assert not (tmp_path / OWNER).exists()


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
        assert (tmp_path / OWNER).exists() is takes


@pytest.mark.skipif(sys.platform == "win32", reason="no flock there")
@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, code):
    import fcntl

    def refuse(*_):
        raise OSError(getattr(errno, code), "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(LabError, match="knows no locks") as refusal,
        hold_lock(tmp_path),
    ):
        pytest.fail("taken")
    assert "--run-dir" in refusal.value.fix
    assert not (tmp_path / OWNER).exists()


def test_two_threads_of_one_process_share_it(tmp_path):
    seen = []

    def work():
        with hold_lock(tmp_path):
            seen.append((tmp_path / OWNER).exists())

    with hold_lock(tmp_path):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [True] and (tmp_path / OWNER).exists()
    assert not (tmp_path / OWNER).exists()


@pytest.mark.slow
def test_never_two_at_once_even_over_stale_locks(tmp_path):
    """Six processes, three turns each, each dying with the lock in hand."""
    folder, log = tmp_path / "run", tmp_path / "log"
    folder.mkdir()
    log.write_text("")
    write_owner(folder, pid=2**22 + 1)
    crowd = [start(CONTEND, folder, log) for _ in range(6)]
    for process in crowd:
        process.communicate(timeout=120)
    assert log.read_text() == "+-" * 18


def test_a_stage_holds_it_and_force_needs_it(tmp_path):
    run = RunDir.open(tmp_path / "run", load_recipe("pocket"))
    with run.stage("sft", {"a": "1"}):
        assert run.file(OWNER).exists()
    assert not run.file(OWNER).exists()
    other = start(HOLD, run.path)
    assert other.stdout.readline() == "held\n"
    assert run.is_done("sft", {"a": "1"})  # reading needs no lock
    with pytest.raises(LabError, match="in use"):
        run.is_done("sft", {"a": "1"}, force=True)
    with pytest.raises(LabError, match="in use"), run.stage("dpo", {}):
        pytest.fail("entered")
    other.communicate("\n")
    assert run.file("stages", "sft.json").exists()
