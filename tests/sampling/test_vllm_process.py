"""Server processes: started, watched, explained, and ended whatever happens.

The executable is the faulty server in the place of vLLM (real processes,
real ports); what needs vLLM itself is in ``tests/real_vllm``.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from faulty_server import read_starts, write_command
from test_vllm_client import (
    check_all_once,
    impatient,  # noqa: F401
    make_requests,
    wait_for,
    with_engine,
)

from helpers.base import REPO_ROOT, LabError
from helpers.sampling import open_engine
from helpers.sampling.vllm_serve import (
    PORT_TRIES,
    ServerProcess,
    find_free_port,
    find_hint,
)


@pytest.fixture
def open_own(tiny_recipe, tmp_path):
    """``open_own(settings of the server, **engine settings)``."""
    engines = []

    def open_it(server=None, adapter=None, **settings):
        command = write_command(tmp_path / "bin", child=True, **(server or {}))
        recipe = with_engine(
            tiny_recipe,
            command=str(command),
            **{"max_concurrency": 8} | settings,
        )
        engine = open_engine(recipe, adapter=adapter, log_dir=tmp_path / "log")
        engine.command = command
        engines.append(engine)
        return engine

    yield open_it
    for engine in engines:
        engine.close()
    check_nothing_left(tmp_path / "bin" / "vllm")


def pids_of(command):
    """Every process that the command ever started."""
    return [
        start[name]
        for start in read_starts(command)
        for name in ("pid", "child")
        if start[name]
    ]


def lives(pid):
    """Whether a process runs; one that ended and waits does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def check_nothing_left(command):
    """No process of any start of this command lives."""
    assert pids_of(command), "nothing was started at all"
    wait_for(lambda: not any(map(lives, pids_of(command))))


# --- a good life -----------------------------------------------------------


def test_start_sample_stop(open_own, tmp_path, capsys):
    engine = open_own({"start_s": 0.3})
    assert [lives(pid) for pid in pids_of(engine.command)] == [True, True]
    requests = make_requests(40)
    check_all_once(requests, list(engine.sample(requests)))
    said = engine.describe()
    assert said["version"] == "0.0-faulty" and said["url"] is None
    assert (said["replicas"], said["tensor_parallel_size"]) == (1, 1)
    engine.close()
    check_nothing_left(engine.command)
    assert not engine.processes[0].has_processes()
    told = capsys.readouterr().out
    assert "starting 1 server of" in told and "ready after" in told
    assert str(tmp_path / "log") in told


def test_the_options_that_are_passed(open_own, tiny_model_dir, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 12, "rank_pattern": {"q_proj": 20}}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    engine = open_own(adapter=adapter, max_model_len=128, enforce_eager=True)
    (start,) = read_starts(engine.command)
    words = start["arguments"]
    assert words[:2] == ["serve", str(tiny_model_dir.resolve())]
    given = dict(itertools.pairwise(words))
    assert given["--dtype"] == "float32" and given["--seed"] == "42"
    assert given["--max-model-len"] == "128"
    assert given["--tensor-parallel-size"] == "1"
    assert given["--gpu-memory-utilization"] == "0.9"
    assert given["--logprobs-mode"] == "raw_logprobs"
    assert given["--generation-config"] == "vllm"
    assert given["--host"] == "127.0.0.1"
    assert given["--lora-modules"] == f"adapter={adapter.resolve()}"
    assert given["--max-lora-rank"] == "32", "the next that vLLM accepts"
    assert {"--enforce-eager", "--enable-lora"} <= set(words)
    assert not {"--quantization", "--revision"} & set(words)


def test_two_replicas_share_the_work(open_own):
    engine = open_own({"delay_s": 0.02}, data_parallel_size=2)
    assert len(read_starts(engine.command)) == 2
    ports = {process.port for process in engine.processes}
    assert len(ports) == 2
    requests = make_requests(60)
    check_all_once(requests, list(engine.sample(requests)))
    answered = [server.answered for server in engine.servers]
    assert sum(answered) == 60 and min(answered) >= 15


# --- death before it is ready ----------------------------------------------


def test_dead_before_ready_shows_its_last_lines(open_own):
    error = "ValueError: Available memory on node 0 (1/2 GiB) is less"
    with pytest.raises(LabError, match="before it was ready") as caught:
        open_own({"dies": f"loading\n{error}\nlast words\nnanobind: leaked"})
    assert "| last words" in caught.value.what
    assert "nanobind" not in caught.value.what, "noise at the exit"
    assert "exit status 1" in caught.value.what
    assert caught.value.why == error
    assert "max_model_len" in caught.value.fix


def test_one_dead_replica_ends_all(open_own):
    with pytest.raises(LabError, match="server . ended before it was ready"):
        open_own({"dies": "Boom", "dies_times": 1}, data_parallel_size=2)


def test_a_taken_port_is_replaced(open_own, capsys):
    taken = "OSError: [Errno 98] Address already in use"
    engine = open_own({"dies": taken, "dies_times": 2})
    assert len(read_starts(engine.command)) == 3
    told = capsys.readouterr().out
    assert told.count("is taken, trying another") == 2
    check_all_once(make_requests(4), list(engine.sample(make_requests(4))))


def test_ports_that_are_all_taken_end_in_an_error(open_own, tmp_path):
    taken = "OSError: [Errno 98] Address already in use"
    with pytest.raises(LabError, match="Address already in use"):
        open_own({"dies": taken})
    starts = read_starts(tmp_path / "bin" / "vllm")
    assert len(starts) == 1 + PORT_TRIES


def test_too_slow_to_start(open_own):
    with pytest.raises(LabError, match="not ready after 1 s") as caught:
        open_own({"start_s": 60}, startup_timeout_s=1)
    assert "startup_timeout_s" in caught.value.fix


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried", "memory"),
        ("ValueError: No available memory for the cache blocks", "memory"),
        ("ValueError: Total number of attention heads (9) must be "
         "divisible by tensor parallel size (2).", "tensor_parallel_size"),
        ("NotImplementedError: head_dim 16 is not supported", "head size"),
        ("OSError: Can't load tokenizer for 'x'.", "tokenizer.json"),
        ("ImportError: Please install bitsandbytes>=0.46", "bitsandbytes"),
        ("ValueError: Model architectures ['X'] are not supported for now",
         "architecture"),
        ("vllm: error: unrecognized arguments: --logprobs-mode", "option"),
        ("ModuleNotFoundError: No module named 'vllm._C'", "install vLLM"),
        ("KeyError: 'whatever'", "whole log"),
    ],
)  # fmt: skip
def test_what_to_do_about_known_causes(line, word):
    assert word in find_hint([line])


def test_no_vllm_is_said_before_anything_loads(tiny_recipe, monkeypatch):
    monkeypatch.delenv("MATHSLM_VLLM", raising=False)
    recipe = with_engine(tiny_recipe, command="vllm-that-is-not-there")
    recipe = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"id": "no/model"})}
    )
    with pytest.raises(LabError, match="no executable 'vllm-that") as error:
        open_engine(recipe)
    assert "MATHSLM_VLLM" in error.value.fix


def test_the_variable_names_the_executable(tiny_recipe, tmp_path, monkeypatch):
    command = write_command(tmp_path / "bin")
    monkeypatch.setenv("MATHSLM_VLLM", str(command))
    with open_engine(with_engine(tiny_recipe)) as engine:
        assert engine.describe()["version"] == "0.0-faulty"


def test_a_folder_without_tokenizer_starts_nothing(
    open_own, tiny_model_dir, tiny_recipe, tmp_path
):
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(tiny_model_dir / name)
    command = write_command(tmp_path / "bin")
    recipe = with_engine(tiny_recipe, command=str(command))
    with pytest.raises(LabError, match="bare") as error:
        open_engine(recipe, folder)
    assert "tokenizer" in str(error.value)
    assert not read_starts(command)
    open_own()  # the fixture wants to see something end


# --- death while sampling --------------------------------------------------


def test_a_killed_server_ends_the_stage_with_one_error(open_own):
    engine = open_own({"delay_s": 0.02}, data_parallel_size=2)
    stream = engine.sample(iter(make_requests(400)))
    texts = [next(stream) for _ in range(50)]
    os.kill(read_starts(engine.command)[0]["pid"], signal.SIGKILL)
    with pytest.raises(LabError, match="ended while sampling") as error:
        texts.extend(stream)
    assert "exit status 137" in error.value.what
    assert "| faulty server: loading" in error.value.what
    assert "the same command goes on" in error.value.fix
    assert len(read_starts(engine.command)) == 2, "none is started again"


# --- nothing is left, whatever happens -------------------------------------


def run_owner(tmp_path, code, *arguments):
    """A process that starts something, prints "open", and goes on."""
    command = write_command(tmp_path / "bin", child=True)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(command)]
        + [str(tmp_path / "log"), *map(str, arguments)],
        cwd=REPO_ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.strip() == "open":
            break
    return process, command


ENGINE = """
    import sys, time
    from helpers.sampling.engine import open_engine
    from helpers.base.recipe import load_recipe
    command, log, model = sys.argv[1:]
    recipe = load_recipe("pocket", (
        "engine.name=vllm", f"engine.command={command}",
        f"model.id={model}", "engine.data_parallel_size=2",
    ))
    engine = open_engine(recipe, log_dir=log)
    print("open", flush=True)
    time.sleep(600)
"""
SERVER = """
    import os, sys, time
    from pathlib import Path
    from helpers.sampling.vllm_serve import ServerProcess, wait_ready
    command, log, ending = sys.argv[1:]
    server = ServerProcess(
        lambda port: [command, "serve", "model", "--port", str(port)],
        env=os.environ, log=Path(log),
    )
    server.start()
    wait_ready([server], 60.0)
    print("open", flush=True)
    exec(ending)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_killed_owner(tmp_path, tiny_model_dir, number):
    owner, command = run_owner(tmp_path, ENGINE, tiny_model_dir)
    assert [lives(pid) for pid in pids_of(command)] == [True] * 4
    owner.send_signal(number)
    owner.communicate()
    check_nothing_left(command)


@pytest.mark.parametrize(
    "ending", ["raise ValueError", "sys.exit(3)", "os._exit(4)", ""]
)
def test_nothing_outlives_an_owner_that_forgets(tmp_path, ending):
    owner, command = run_owner(tmp_path, SERVER, ending)
    owner.communicate()
    check_nothing_left(command)


def test_nothing_outlives_a_killed_watcher(open_own):
    """The last resort: the server is told, and its group ended here."""
    engine = open_own({"delay_s": 0.02})
    stream = engine.sample(make_requests(200))
    next(stream)
    (process,) = engine.processes
    os.kill(process._watcher.pid, signal.SIGKILL)
    with pytest.raises(LabError, match="ended while sampling"):
        list(stream)
    engine.close()
    check_nothing_left(engine.command)


def test_a_process_that_leaves_the_group_is_found(tmp_path):
    """The watcher adopts it, and ends it too."""
    if not os.path.exists("/proc/self/task"):
        pytest.skip("needs Linux's /proc")
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(600)'], start_new_session=True)\n"
        "print('child', child.pid, flush=True)\ntime.sleep(600)\n"
    )
    log = tmp_path / "log"
    process = ServerProcess(
        lambda port: [sys.executable, "-c", code], env=os.environ, log=log
    )
    process.start()
    wait_for(lambda: "child" in log.read_text())
    child = int(log.read_text().split()[-1])
    assert lives(child) and process.has_processes()
    process.stop()
    wait_for(lambda: not lives(child))
    assert not process.has_processes()


@pytest.mark.slow
def test_a_process_that_will_not_end_is_killed(tmp_path):
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\ntime.sleep(600)\n"
    )
    log = tmp_path / "log"
    process = ServerProcess(
        lambda port: [sys.executable, "-c", code], env=os.environ, log=log
    )
    process.start()
    wait_for(lambda: "deaf" in log.read_text())
    process.stop()
    assert not process.has_processes()


def test_a_free_port_is_free():
    port = find_free_port()
    assert 1024 <= port < 65536


# --- refused before anything is started ------------------------------------


def test_eight_cards_for_28_heads(tmp_path, tiny_recipe):
    command = write_command(tmp_path / "bin")
    recipe = with_engine(
        tiny_recipe, command=str(command), tensor_parallel_size=8
    )
    model = recipe.model.model_copy(
        update={"id": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"}
    )
    with pytest.raises(LabError, match="28 attention heads") as error:
        open_engine(recipe.model_copy(update={"model": model}))
    assert "data_parallel_size" in error.value.fix
    assert not read_starts(command)


def test_eight_bits_are_refused(tmp_path, tiny_recipe):
    command = write_command(tmp_path / "bin")
    recipe = with_engine(tiny_recipe, command=str(command))
    model = recipe.model.model_copy(update={"quantization": "int8"})
    with pytest.raises(LabError, match="8 bits"):
        open_engine(recipe.model_copy(update={"model": model}))
    assert not read_starts(command)
