"""vLLM itself: real servers on this machine's CPU (``make test``).

Run from the course's environment; the variable MATHSLM_VLLM names the
``vllm`` of another one. Loading a server takes the better part of a minute,
so six tests, which every change must pass, share one (only the owner that is
killed needs another); the others are marked ``long``.
"""

import json
import os
import socket
import sys
import textwrap
import time
import urllib.request
from collections import Counter
from dataclasses import replace

import psutil
import pytest
from openai import OpenAI

from helpers.base import REPO_ROOT, LabError, load_recipe
from helpers.models import render_prompt
from helpers.problems import load_problems
from helpers.results import proportion
from helpers.sampling import (
    SampleRequest,
    derive_seed,
    open_engine,
    vllm_serve,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("MATHSLM_VLLM"),
        reason="MATHSLM_VLLM names no vllm executable (make test does)",
    ),
]
ADAPTER = REPO_ROOT / "data/measured/pocket/run/sft/adapter"
CAP = 192
long = pytest.mark.long


def pocket(*overrides):
    """Tier pocket on vLLM; float32, so that two engines can agree."""
    return load_recipe(
        "pocket",
        ("engine.name=vllm", "engine.enforce_eager=true", *overrides),
    )


@pytest.fixture(scope="module")
def problems():
    """The first problems of the dev set."""
    return load_problems("pocket/dev.jsonl")[:40]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server of the pocket model; the engine samples an adapter."""
    log = tmp_path_factory.mktemp("log")
    recipe = pocket("engine.max_concurrency=32")
    with open_engine(recipe, adapter=ADAPTER, log_dir=log) as engine:
        yield engine
    check_nothing_left(engine)


@pytest.fixture(scope="module")
def shared(server):
    """An engine of the base model over the same server, by its URL."""
    url = server.processes[0].url
    recipe = pocket(f"engine.url={url}", "engine.max_concurrency=32")
    with open_engine(recipe) as engine:
        yield engine


@pytest.fixture(scope="module")
def here():
    """The in-process engine around the same model."""
    with open_engine(load_recipe("pocket")) as engine:
        yield engine


@pytest.fixture(scope="module")
def asked(here, problems):
    """``asked(n=…, temperature=…)`` gives requests of all problems."""

    def ask(n=1, temperature=1.0, top_p=1.0, cap=CAP, **changes):
        return [
            SampleRequest(
                problem_id=problem.id,
                sample=sample,
                prompt=render_prompt(here.tokenizer, problem.problem, "plain"),
                seed=derive_seed(3, problem.id, sample),
                temperature=temperature,
                top_p=top_p,
                max_new_tokens=cap,
                **changes,
            )
            for problem in problems
            for sample in range(n)
        ]

    return ask


@pytest.fixture(scope="module")
def client(server):
    """The openai client, as anybody would use the server."""
    return OpenAI(base_url=f"{server.processes[0].url}/v1", api_key="none")


def by_key(texts):
    """``{(problem, sample): text}``; every key once."""
    texts = list(texts)
    found = {(t.request.problem_id, t.request.sample): t for t in texts}
    assert len(found) == len(texts), "a sample came twice"
    return found


def say(what, count, total):
    """Print a share with its interval, for the record."""
    print(f"\n{what}: {proportion(count, total)}")


def check_nothing_left(engine):
    """No process of the engine's servers is left."""
    for process in engine.processes:
        assert not process.has_processes()
        for other in psutil.process_iter():
            try:
                assert os.getpgid(other.pid) != process.group
            except ProcessLookupError:
                continue


# --- start, prompts, settings ----------------------------------------------


@long
def test_it_says_what_it_is(server, shared):
    said = server.describe()
    assert (said["replicas"], said["dtype"]) == (1, "float32")
    assert said["tensor_parallel_size"] == 1
    assert said["version"][0].isdigit()
    assert shared.describe()["url"].count("http://") == 1
    assert shared.max_model_len == server.max_model_len == 512


@long
def test_the_server_reads_exactly_our_tokens(server, asked, client):
    """One beginning-of-sequence token, written by the chat template."""
    tokenizer, bos = server.tokenizer, server.tokenizer.bos_token_id
    for request in asked()[:16]:
        ids = tokenizer(request.prompt, add_special_tokens=False)["input_ids"]
        reply = client.completions.create(
            model="model",
            prompt=request.prompt,
            max_tokens=1,
            extra_body={"add_special_tokens": False, "return_token_ids": True},
        )
        assert reply.choices[0].prompt_token_ids == ids
        assert ids[0] == bos and ids.count(bos) == 1
        assert read_tokens(server, request.prompt) == ids


def read_tokens(server, prompt):
    """What the server's /tokenize makes of a prompt."""
    body = {"model": "model", "prompt": prompt, "add_special_tokens": False}
    question = urllib.request.Request(
        f"{server.processes[0].url}/tokenize",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(question) as answer:
        return json.load(answer)["tokens"]


# --- seeds -----------------------------------------------------------------


@long
def test_four_samples_of_a_problem_differ(shared, asked):
    texts = by_key(shared.sample(asked(n=4, temperature=1.5, cap=64)))
    groups = {}
    for (problem, _), text in texts.items():
        groups.setdefault(problem, set()).add(text.response)
    distinct = sum(map(len, groups.values()))
    say("distinct of 4 samples, temperature 1.5", distinct, len(texts))
    assert distinct > 0.9 * len(texts)


@long
def test_vllms_own_n_and_seed(client, asked):
    """One request of n=4 gives each child its own stream; four requests
    of one seed are one stream four times."""
    prompt = asked()[0].prompt

    def draw(n):
        reply = client.completions.create(
            model="model",
            prompt=prompt,
            n=n,
            seed=7,
            temperature=1.5,
            max_tokens=64,
            extra_body={"add_special_tokens": False},
        )
        return [choice.text for choice in reply.choices]

    first = draw(4)
    assert len(set(first)) == 4
    assert draw(4) == first
    assert len({draw(1)[0] for _ in range(4)}) == 1


def test_the_same_seeds_give_the_same_bytes(shared, asked):
    """In float32, whatever else was in the batch."""
    requests = asked(n=2, temperature=1.0, logprobs=True)
    first = by_key(shared.sample(requests))
    second = by_key(shared.sample(reversed(requests)))
    same = sum(first[k].response == second[k].response for k in first)
    say("the same text in another order", same, len(first))
    assert same == len(first)
    for key, text in first.items():
        assert text.logprobs == pytest.approx(second[key].logprobs, abs=1e-4)


# --- agreement with the in-process engine ----------------------------------


def compare(theirs, ours, what):
    """Share of equal texts; equal texts agree in everything else."""
    assert set(theirs) == set(ours)
    same = [k for k in ours if theirs[k].response == ours[k].response]
    say(what, len(same), len(ours))
    for key in same:
        one, two = theirs[key], ours[key]
        assert one.request.prompt == two.request.prompt
        assert (one.tokens, one.finish_reason) == (
            two.tokens,
            two.finish_reason,
        )
        assert one.mean_logprob == pytest.approx(two.mean_logprob, abs=1e-3)
        assert one.logprobs == pytest.approx(two.logprobs, abs=5e-3)
    # Two sums in another order may now and then break a tie differently.
    assert len(same) >= 0.95 * len(ours)


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("to the end", {}),
        pytest.param("cut at 9 tokens", {"cap": 9}, marks=long),
        pytest.param(
            "up to a stop text", {"stop": ("= ", "answer")}, marks=long
        ),
    ],
)
def test_greedy_agrees_with_transformers(shared, here, asked, what, changes):
    requests = asked(temperature=0.0, logprobs=True, **changes)
    theirs, ours = (
        by_key(shared.sample(requests)),
        by_key(here.sample(requests)),
    )
    compare(theirs, ours, f"greedy {what}, vLLM as transformers")
    reasons = Counter(text.finish_reason for text in theirs.values())
    assert reasons["length" if "cap" in changes else "stop"] > 0
    for text in theirs.values():
        assert not any(s in text.response for s in changes.get("stop", ()))
        assert len(text.logprobs) == text.tokens


def test_an_adapter_is_served_unmerged(server, shared, asked):
    requests = asked(temperature=0.0, logprobs=True)
    theirs = by_key(server.sample(requests))
    with open_engine(load_recipe("pocket"), adapter=ADAPTER) as ours:
        compare(theirs, by_key(ours.sample(requests)), "adapter, as peft")
    base = by_key(shared.sample(requests))
    changed = sum(theirs[k].response != base[k].response for k in base)
    say("changed by the adapter", changed, len(base))
    assert changed > len(base) / 2


@long
def test_logprobs_are_the_models_own(here, client, asked):
    """Not those after temperature and top_p, from which was drawn."""
    import torch

    for request in asked()[:8]:
        reply = client.completions.create(
            model="model",
            prompt=request.prompt,
            temperature=0.6,
            top_p=0.8,
            seed=1,
            max_tokens=48,
            logprobs=0,
            extra_body={"add_special_tokens": False, "return_token_ids": True},
        )
        (choice,) = reply.choices
        ids = torch.tensor([choice.prompt_token_ids + choice.token_ids])
        with torch.inference_mode():
            table = here.model(ids).logits[0].log_softmax(-1)
        start = len(choice.prompt_token_ids)
        right = [
            table[start - 1 + i, token].item()
            for i, token in enumerate(choice.token_ids)
        ]
        assert choice.logprobs.token_logprobs == pytest.approx(right, abs=2e-3)
        assert reply.usage.completion_tokens == len(choice.token_ids)


# --- what does not fit -----------------------------------------------------


def test_too_long_here_and_there(shared, asked, monkeypatch):
    """By our count, and by the server's own where we do not know better."""
    long = asked()[0]
    long = replace(long, problem_id="long", prompt=long.prompt * 40)
    fitting = asked()[4:6]
    for limit, cap in ((shared.max_model_len, 510), (None, 513)):
        monkeypatch.setattr(shared, "max_model_len", limit)
        texts = by_key(shared.sample([*asked(cap=cap)[:4], long, *fitting]))
        reasons = Counter(text.finish_reason for text in texts.values())
        assert reasons["too_long"] == 5 and sum(reasons.values()) == 7
        for request in fitting:
            key = (request.problem_id, request.sample)
            assert texts[key].finish_reason == "stop"


# --- the end, in good order and otherwise ----------------------------------


def test_nothing_is_left_after_closing(server):
    """The last that uses the shared server."""
    (process,) = server.processes
    server.close()
    check_nothing_left(server)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", process.port)) != 0


def test_a_killed_owner_leaves_no_process(tmp_path):
    """Killed while vLLM loads, with its EngineCore there already."""
    code = f"""
        from helpers.sampling.engine import open_engine
        from helpers.base.recipe import load_recipe
        recipe = load_recipe("pocket", ("engine.name=vllm",))
        open_engine(recipe, log_dir={str(tmp_path)!r})
    """
    owner = psutil.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=REPO_ROOT
    )
    until = time.monotonic() + 300
    while not any("EngineCore" in c.name() for c in list_children(owner)):
        assert owner.poll() is None and time.monotonic() < until
        time.sleep(0.2)
    children = list_children(owner)
    assert len(children) >= 3
    owner.kill()
    owner.wait()
    _, left = psutil.wait_procs(children, timeout=60)
    assert not left


def list_children(process):
    """All descendants; none where it has just ended."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def replicas(tmp_path):
    """Two servers of their own."""
    recipe = pocket("engine.data_parallel_size=2", "engine.max_concurrency=32")
    with open_engine(recipe, log_dir=tmp_path) as engine:
        yield engine
    check_nothing_left(engine)


def find_core(process):
    """The EngineCore child of a server."""
    for child in psutil.Process(process.group).children(recursive=True):
        if "EngineCore" in child.name() + " ".join(child.cmdline()):
            return child
    return None


@long
def test_a_dead_core_ends_two_replicas_with_one_error(replicas, asked):
    """They share the work before; what was sampled is as without a crash."""
    requests = asked(n=4, temperature=1.0)
    calm = by_key(replicas.sample(requests))
    answered = [server.answered for server in replicas.servers]
    assert sum(answered) == 160 and min(answered) >= 40
    core = find_core(replicas.processes[1])
    assert core is not None
    texts = []
    with pytest.raises(LabError, match="ended while sampling") as error:
        for text in replicas.sample(iter(requests)):
            texts.append(text)
            if len(texts) == 20:
                core.kill()
    assert "the same command goes on" in error.value.fix
    for key, text in by_key(texts).items():
        assert text.response == calm[key].response


@long
def test_a_taken_port_and_too_little_memory(monkeypatch, tmp_path, capsys):
    """The port is replaced; memory that is not there ends in an error."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "100000")
    find = vllm_serve.find_free_port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1]])
        monkeypatch.setattr(
            vllm_serve, "find_free_port", lambda: next(ports, 0) or find()
        )
        with pytest.raises(LabError, match="before it was ready") as error:
            open_engine(pocket(), log_dir=tmp_path)
    assert "is taken, trying another" in capsys.readouterr().out
    assert "less than requested memory" in error.value.why
    assert "VLLM_CPU_KVCACHE_SPACE" in error.value.fix


@long
def test_smol(tmp_path):
    """A model of another family size, in bf16, with its own template."""
    smol = pytest.importorskip("helpers.models.smol")
    try:
        folder = smol.ensure_smol()
    except LabError as error:
        pytest.skip(f"no SmolLM2 here: {error.what}")
    recipe = load_recipe(
        "pocket",
        (
            "engine.name=vllm",
            "engine.enforce_eager=true",
            "model.dtype=bfloat16",
            f"model.id={folder}",
            "engine.max_model_len=512",
        ),
    )
    with open_engine(recipe, log_dir=tmp_path) as engine:
        prompt = render_prompt(engine.tokenizer, "What is 2 + 3?", "plain")
        requests = [
            SampleRequest(
                "sum", i, prompt, derive_seed(1, "sum", i), 1.0, 1.0, 48
            )
            for i in range(8)
        ]
        texts = by_key(engine.sample(requests))
    assert len({text.response for text in texts.values()}) > 4
    assert all(text.mean_logprob < 0 for text in texts.values())
    check_nothing_left(engine)
