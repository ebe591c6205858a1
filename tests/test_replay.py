"""Recorded completions as an engine."""

import json
import tracemalloc
from dataclasses import replace

import pytest

from helpers.base import Completion, LabError, write_records
from helpers.sampling import SampleRequest, open_engine


def make_row(problem, sample, **changes):
    """One recorded completion."""
    values = {
        "problem_id": f"p{problem}",
        "sample": sample,
        "prompt": f"<|bos|><|user|>{problem}<|assistant|>",
        "response": f"{problem} {sample} µ",
        "extracted": None,
        "correct": False,
        "finish_reason": "stop",
        "tokens": 5,
        "mean_logprob": -0.5,
        "seed": 7,
    }
    return Completion(**(values | changes))


def make_request(problem, sample, **changes):
    """The request that the row of the same numbers answers."""
    values = {
        "problem_id": f"p{problem}",
        "sample": sample,
        "prompt": f"<|bos|><|user|>{problem}<|assistant|>",
        "seed": 7,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_new_tokens": 12,
    }
    return SampleRequest(**(values | changes))


@pytest.fixture
def open_recording(tiny_recipe, tmp_path):
    """``open_recording(rows)`` writes the rows and opens them."""

    def open_it(rows, recording=None):
        path = tmp_path / "samples.jsonl"
        if rows is not None:
            write_records(path, rows)
        engine = tiny_recipe.engine.model_copy(
            update={"name": "replay", "recording": str(recording or path)}
        )
        return open_engine(tiny_recipe.model_copy(update={"engine": engine}))

    return open_it


ROWS = [make_row(i, j) for i in range(3) for j in range(2)]


def test_it_gives_back_what_was_recorded(open_recording):
    with open_recording(ROWS) as engine:
        requests = [make_request(2, 1), make_request(0, 0)]
        texts = list(engine.sample(iter(requests)))
        assert [text.request for text in texts] == requests
        assert [text.response for text in texts] == ["2 1 µ", "0 0 µ"]
        assert texts[0].tokens == 5 and texts[0].mean_logprob == -0.5
        assert texts[0].finish_reason == "stop" and texts[0].logprobs is None
        assert engine.describe()["completions"] == 6
        assert engine.tokenizer.chat_template


def test_what_is_missing_is_counted_and_named(open_recording):
    engine = open_recording(ROWS)
    requests = [make_request(1, j) for j in range(9)]
    requests.append(make_request(0, 0, prompt="another"))
    stream, texts = engine.sample(requests), []
    with pytest.raises(LabError) as error:
        texts.extend(stream)
    said = error.value.what
    assert "lacks 8 of the completions" in said
    assert "7 was never recorded: p1/2, p1/3, p1/4, p1/5, p1/6…" in said
    assert "1 was recorded with another prompt: p0/0" in said


def test_all_that_is_there_comes_first(open_recording):
    engine, texts = open_recording(ROWS), []
    with pytest.raises(LabError):
        for text in engine.sample([make_request(9, 0), make_request(1, 1)]):
            texts.append(text.response)
    assert texts == ["1 1 µ"]


@pytest.mark.parametrize(
    ("row", "cap", "there"),
    [
        ({"tokens": 5}, 5, True),
        ({"tokens": 5}, 4, False),
        ({"tokens": 5, "finish_reason": "length"}, 5, True),
        ({"tokens": 5, "finish_reason": "length"}, 6, False),
        ({"tokens": 0, "finish_reason": "too_long"}, 6, True),
    ],
)
def test_another_cap_would_have_given_another_text(
    open_recording, row, cap, there
):
    engine = open_recording([make_row(0, 0, **row)])
    stream = engine.sample([make_request(0, 0, max_new_tokens=cap)])
    if there:
        assert len(list(stream)) == 1
    else:
        with pytest.raises(LabError, match="another cap"):
            list(stream)


def test_log_probabilities_when_recorded(open_recording):
    rows = [make_row(0, 0), make_row(0, 1, logprobs=[-0.25] * 5)]
    engine = open_recording(rows)
    request = make_request(0, 1, logprobs=True)
    (text,) = engine.sample([request])
    assert text.logprobs == (-0.25,) * 5
    with pytest.raises(LabError, match="without log probabilities: p0/0"):
        list(engine.sample([replace(request, sample=0)]))


def test_a_folder_of_recordings(open_recording, tmp_path):
    folder = tmp_path / "all"
    write_records(folder / "one.jsonl", ROWS[:2])
    write_records(folder / "deep" / "two.jsonl", ROWS[2:])
    with open_recording(None, folder) as engine:
        requests = [make_request(i, j) for i in range(3) for j in range(2)]
        assert len(list(engine.sample(requests))) == 6
        engine.close()
    write_records(folder / "three.jsonl", ROWS[:1])
    with pytest.raises(LabError, match="recorded twice") as error:
        open_recording(None, folder)
    assert "one.jsonl" in error.value.what


def test_a_torn_last_line_is_left_out(open_recording, tmp_path):
    path = tmp_path / "torn.jsonl"
    write_records(path, ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="torn"):
        engine = open_recording(None, path)
    assert engine.describe()["completions"] == 5


@pytest.mark.parametrize("what", ["nothing", "empty", "no completions"])
def test_no_recording(open_recording, tmp_path, what):
    path = tmp_path / "recording"
    if what == "empty":
        path.mkdir()
    if what == "no completions":
        path.write_text(json.dumps({"id": 1}) + "\n")
    with pytest.raises(LabError, match=r"no recording at|field '"):
        open_recording(None, path)


def test_a_recipe_without_recording(tiny_recipe):
    engine = tiny_recipe.engine.model_copy(update={"name": "replay"})
    with pytest.raises(LabError, match="needs a recording"):
        open_engine(tiny_recipe.model_copy(update={"engine": engine}))


def test_texts_do_not_stay_in_memory(open_recording):
    long = "x" * 20_000
    rows = (make_row(i, 0, response=long) for i in range(500))
    engine = open_recording(rows)
    tracemalloc.start()
    requests = (make_request(i, 0) for i in range(500))
    assert sum(len(t.response) for t in engine.sample(requests)) == 10**7
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**6
