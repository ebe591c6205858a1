"""The client of vLLM servers against a real HTTP server that misbehaves.

The server's answers are known beforehand (``answer``), so every test can ask
for the right text, once, whatever happened on the way.
"""

import threading
import time
from collections import Counter

import pytest
from faulty_server import FAULTS, FaultyServer, answer

from helpers.base import LabError
from helpers.sampling import SampleRequest, derive_seed, open_engine
from helpers.sampling.vllm_client import MAX_RETRIES, normalise_url

PASSING = ("500", "502", "503", "429", "reset", "short")
CAP = 40


def with_engine(recipe, **settings):
    """The recipe with other settings of its engine."""
    engine = recipe.engine.model_copy(update={"name": "vllm", **settings})
    return recipe.model_copy(update={"engine": engine})


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """The openai client's pauses, a hundred times shorter."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.005)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.08)


@pytest.fixture
def open_at(tiny_recipe):
    """``open_at(*servers, **engine settings)`` gives their engine."""
    engines = []

    def open_it(*servers, **settings):
        for server in servers:
            server.model = tiny_recipe.model.id
        urls = ",".join(server.url for server in servers)
        settings = {"url": urls, "max_concurrency": 8} | settings
        engine = open_engine(with_engine(tiny_recipe, **settings))
        engines.append(engine)
        return engine

    yield open_it
    for engine in engines:
        engine.close()


def make_requests(count, **changes):
    """Four samples a problem, each with its own seed."""
    return [make_request(i // 4, i % 4, **changes) for i in range(count)]


def make_request(problem, sample, **changes):
    """One request of a made-up problem."""
    name = f"p{problem}"
    settings = {
        "problem_id": name,
        "sample": sample,
        "prompt": f"<|bos|><|user|>{problem} + 1?<|assistant|>",
        "seed": derive_seed(1, name, sample),
        "temperature": 0.7,
        "top_p": 0.9,
        "max_new_tokens": CAP,
    }
    return SampleRequest(**(settings | changes))


def check_all_once(requests, texts):
    """Every request has one text, and it is the server's own."""
    count = Counter((t.request.problem_id, t.request.sample) for t in texts)
    assert count == {(r.problem_id, r.sample): 1 for r in requests}
    for text in texts:
        right = answer(text.request.prompt, text.request.seed, CAP)
        assert text.response == right["text"]
        assert text.tokens == right["tokens"]
        assert text.finish_reason == right["finish_reason"]
        mean = sum(right["logprobs"]) / right["tokens"]
        assert text.mean_logprob == pytest.approx(mean)


# --- what is asked, what is understood ------------------------------------


def test_the_request_names_every_setting(open_at):
    with FaultyServer() as server:
        engine = open_at(server)
        request = make_request(1, 0, stop=("\n", "Q:"))
        (text,) = engine.sample([request])
    (body,) = server.asked
    assert body["prompt"] == request.prompt
    assert body["add_special_tokens"] is False
    assert body["seed"] == request.seed
    assert body["max_tokens"] == CAP
    assert (body["temperature"], body["top_p"]) == (0.7, 0.9)
    assert body["stop"] == ["\n", "Q:"]
    assert body["stop_token_ids"] == [engine.tokenizer.eos_token_id]
    assert (body["top_k"], body["min_p"]) == (0, 0.0)
    assert body["repetition_penalty"] == 1.0
    assert "n" not in body
    assert text.logprobs is None
    check_all_once([request], [text])


def test_a_request_without_seed_sends_none(open_at):
    with FaultyServer() as server:
        list(open_at(server).sample([make_request(1, 0, seed=None)]))
    assert "seed" not in server.asked[0]


def test_logprobs_one_by_one(open_at):
    with FaultyServer() as server:
        request = make_request(3, 0, logprobs=True)
        (text,) = open_at(server).sample([request])
    right = answer(request.prompt, request.seed, CAP)
    assert text.logprobs == pytest.approx(tuple(right["logprobs"]))
    assert len(text.logprobs) == text.tokens


def test_the_cap_cuts(open_at):
    with FaultyServer() as server:
        (text,) = open_at(server).sample(
            [make_request(3, 0, max_new_tokens=1)]
        )
    assert (text.finish_reason, text.tokens) == ("length", 1)


def test_an_empty_completion_is_a_result(open_at):
    with FaultyServer(["empty"]) as server:
        (text,) = open_at(server).sample([make_request(1, 0)])
    assert (text.response, text.finish_reason, text.tokens) == ("", "stop", 1)
    assert server.given == {"empty": 1}


def test_no_requests_no_samples(open_at):
    with FaultyServer() as server:
        assert list(open_at(server).sample([])) == []


def test_it_says_what_it_is(open_at):
    with FaultyServer(max_model_len=300) as server:
        said = open_at(server).describe()
        assert said["url"] == server.url
    assert said["name"] == "vllm" and said["version"] == "0.0-faulty"
    assert said["max_model_len"] == 300 and said["replicas"] == 1


# --- faults that pass ------------------------------------------------------


def test_every_fault_is_survived(open_at):
    faults = [fault for fault in PASSING for _ in range(2)]
    with FaultyServer(faults) as server:
        requests = make_requests(60)
        check_all_once(requests, list(open_at(server).sample(requests)))
        assert all(server.given[name] == 2 for name in PASSING)


def test_random_faults_lose_and_duplicate_nothing(open_at):
    odds = dict.fromkeys(PASSING, 0.015) | {"slow": 0.02}
    with FaultyServer(odds, seed=1, slow_s=0.05) as server:
        requests = make_requests(240)
        texts = list(open_at(server).sample(iter(requests)))
        check_all_once(requests, texts)
        assert sum(server.given.values()) > 240, "some had to be repeated"
        assert {b["prompt"] for b in server.asked} == {
            r.prompt for r in requests
        }


def test_an_answer_that_does_not_come_is_asked_for_again(open_at):
    with FaultyServer(["timeout"] * 2, hang_s=20) as server:
        engine = open_at(server, request_timeout_s=0.5)
        requests = make_requests(12)
        check_all_once(requests, list(engine.sample(requests)))
        assert server.given["timeout"] == 2


def test_a_server_that_always_fails_is_given_up(open_at):
    with FaultyServer({"500": 1.0}) as server:
        engine = open_at(server)
        with pytest.raises(LabError, match="HTTP status 500") as error:
            list(engine.sample([make_request(7, 2)]))
        assert server.given["500"] == 1 + MAX_RETRIES
    assert "p7, sample 2" in str(error.value)
    assert "the same command goes on" in error.value.fix


# --- faults that do not ----------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("400", "HTTP status 400"),
        ("404", "HTTP status 404"),
        ("truncated", "sample 0"),
        ("no_choices", "incomplete answer"),
    ],
)
def test_a_refusal_is_an_error_at_once(open_at, fault, said):
    with FaultyServer([fault]) as server:
        with pytest.raises(LabError, match=said):
            list(open_at(server).sample(make_requests(1)))
        assert sum(server.given.values()) == 1


def test_too_long_for_the_context_is_a_counted_result(open_at):
    """Seen here for most, and by the server where it knows better."""
    with FaultyServer(["too_long"], max_model_len=100) as server:
        long = make_request(1, 0, prompt="<|bos|>" + "x" * 90)
        requests = [make_request(0, 0), long, make_request(2, 0)]
        texts = list(open_at(server, max_concurrency=1).sample(requests))
        assert len(server.asked) == 2, "the long one is not even sent"
    found = {t.request.problem_id: t for t in texts}
    assert [found[f"p{i}"].finish_reason for i in range(3)] == [
        "too_long",
        "too_long",
        "stop",
    ]
    assert (found["p1"].response, found["p1"].tokens) == ("", 0)
    assert found["p1"].mean_logprob == 0.0


def test_an_answer_cut_by_the_servers_context_is_too_long(open_at):
    """vLLM lowers max_tokens without a word where the prompt is long."""
    with FaultyServer(["cut"]) as server:
        (text,) = open_at(server).sample([make_request(1, 0)])
    assert (text.finish_reason, text.tokens) == ("too_long", 0)


def test_an_empty_prompt_is_refused(open_at):
    with FaultyServer() as server:
        stream = open_at(server).sample([make_request(1, 0, prompt="")])
        with pytest.raises(LabError, match="p1: the prompt is empty"):
            list(stream)


# --- streaming -------------------------------------------------------------


def test_requests_are_read_as_they_are_needed(open_at):
    read = []

    def give():
        for request in make_requests(400):
            read.append(request)
            yield request

    with FaultyServer() as server:
        engine = open_at(server, max_concurrency=4)
        for count, _ in enumerate(engine.sample(give())):
            assert len(read) <= count + 4 + 2, "read too far ahead"
    assert len(read) == 400
    assert server.most_in_flight <= 4


def test_results_come_as_they_finish(open_at):
    with FaultyServer(["slow"], slow_s=3.0) as server:
        texts = list(open_at(server).sample(make_requests(8)))
    slow = server.served[-1]  # whichever came first to the server
    last = texts[-1].request
    assert (last.prompt, last.seed) == slow, "the slow one is last"
    assert len(texts) == 8


def test_a_stream_that_is_left_sends_nothing_more(open_at):
    with FaultyServer(delay_s=0.05) as server:
        engine = open_at(server, max_concurrency=2)
        stream = engine.sample(make_requests(400))
        next(stream)
        stream.close()
        time.sleep(1.0)
        later = make_requests(408)[400:]
        check_all_once(later, list(engine.sample(later)))
        wait_for(lambda: server.in_flight == 0)
        prompts = [asked["prompt"] for asked in server.asked]
    wanted = {request.prompt for request in later}
    assert sum(prompt in wanted for prompt in prompts) == 8
    assert sum(prompt not in wanted for prompt in prompts) < 20


def test_two_streams_at_once(open_at):
    with FaultyServer(delay_s=0.01) as server:
        engine = open_at(server)
        first, second = make_requests(40), make_requests(80)[40:]
        found = []
        thread = threading.Thread(
            target=lambda: found.extend(engine.sample(first))
        )
        thread.start()
        check_all_once(second, list(engine.sample(second)))
        thread.join()
        check_all_once(first, found)


def test_a_closed_engine_says_so(open_at):
    with FaultyServer() as server:
        engine = open_at(server)
        engine.close()
        engine.close()
        with pytest.raises(LabError, match="closed"):
            list(engine.sample(make_requests(1)))


# --- several servers -------------------------------------------------------


def test_two_servers_share_the_work(open_at):
    with (
        FaultyServer(delay_s=0.01) as one,
        FaultyServer(delay_s=0.01) as two,
    ):
        requests = make_requests(80)
        texts = list(open_at(one, two, max_concurrency=4).sample(requests))
        check_all_once(requests, texts)
        assert len(one.served) + len(two.served) == 80
        assert min(len(one.served), len(two.served)) >= 20
        assert max(one.most_in_flight, two.most_in_flight) <= 4


def test_a_server_that_dies_ends_the_stream_with_one_error(open_at):
    """What was answered before has been given."""
    with (
        FaultyServer(["ok"] * 5 + ["death"], delay_s=0.01) as one,
        FaultyServer(delay_s=0.01) as two,
    ):
        engine = open_at(one, two, max_concurrency=4)
        texts = []
        with pytest.raises(LabError, match="Connection error") as error:
            texts.extend(engine.sample(make_requests(400)))
        assert one.url in error.value.what
        assert "the same command goes on" in error.value.fix
        wait_for(lambda: two.in_flight == 0)
        assert len(two.served) < 300, "nothing more is asked"


def wait_for(condition, seconds=20.0):
    """Wait until something that must happen has happened."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


# --- the wrong server ------------------------------------------------------


def test_nobody_at_the_address(tiny_recipe):
    with FaultyServer() as server:
        url = server.url
    with pytest.raises(LabError, match="No server answers at") as error:
        open_engine(with_engine(tiny_recipe, url=url))
    assert "engine.url" in error.value.fix


def test_a_server_of_another_model_is_refused(tiny_recipe):
    """Its samples would be taken for this model's."""
    with FaultyServer(model="another/model") as server:
        recipe = with_engine(tiny_recipe, url=server.url)
        with pytest.raises(LabError, match="it serves: another/model"):
            open_engine(recipe)


def test_a_server_of_the_base_is_refused_for_a_trained_model(
    open_at, tiny_recipe, tiny_model_dir, tmp_path
):
    (tmp_path / "merged").symlink_to(tiny_model_dir)
    (tmp_path / "copy").mkdir()
    with FaultyServer(model=tiny_recipe.model.id) as server:
        recipe = with_engine(tiny_recipe, url=server.url)
        with pytest.raises(LabError, match="does not serve the model"):
            open_engine(recipe, tmp_path / "copy")
        with pytest.raises(LabError, match="does not serve the adapter"):
            open_engine(recipe, adapter=tmp_path / "adapter")


def test_a_server_with_too_short_a_context_is_refused(open_at):
    server = FaultyServer(max_model_len=128)
    with server, pytest.raises(LabError, match="sequences of 128 tokens"):
        open_at(server, max_model_len=256)


def test_a_server_with_another_tokenizer_is_refused(open_at):
    server = FaultyServer(encode=lambda text: [1, 1, 2])
    with server, pytest.raises(LabError, match="other tokens than we do"):
        list(open_at(server).sample(make_requests(4)))


def test_a_server_with_our_tokenizer_is_asked_once(open_at, tokenizer):
    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    with FaultyServer(encode=encode) as server:
        engine = open_at(server, max_concurrency=1)
        requests = make_requests(8)
        check_all_once(requests, list(engine.sample(requests)))
    assert [b["return_token_ids"] for b in server.asked] == [True] + [
        False
    ] * 7


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        (" https://host/v1/ ", "https://host/v1"),
        ("http://host/base/v1", "http://host/base/v1"),
    ],
)
def test_addresses(given, used):
    assert normalise_url(given) == used


@pytest.mark.parametrize("given", ["host:8000", "ftp://host", "http:///v1"])
def test_no_addresses(given):
    with pytest.raises(LabError, match="no address"):
        normalise_url(given)


def test_more_requests_than_open_files_are_refused(open_at):
    server = FaultyServer()
    with server, pytest.raises(LabError, match="open files"):
        open_at(server, max_concurrency=10**8)


def test_the_faulty_server_knows_its_faults():
    with pytest.raises(ValueError, match="no such fault"):
        FaultyServer(["nonsense"]).next_fault()
    odds = {"500": 0.5}
    with FaultyServer(odds, seed=3) as one, FaultyServer(odds, seed=3) as two:
        drawn = [[s.next_fault() for _ in range(50)] for s in (one, two)]
    assert drawn[0] == drawn[1] and set(drawn[0]) == {"500", "ok"}
    assert set(drawn[0]) <= set(FAULTS)
