"""Nothing sampled is lost, repeated, mixed or held in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from simulated_engine import PROMPT, SimulatedEngine

from helpers.base import (
    REPO_ROOT,
    Completion,
    LabError,
    Problem,
    RunDir,
    group_samples,
    load_recipe,
    read_records,
    write_json,
)
from helpers.grading import read_graded
from helpers.sampling import (
    SampleFile,
    SampleRequest,
    Speed,
    derive_seed,
    describe_sampling,
    grade_texts,
    load_completion,
    make_sample,
    open_samples,
    report_unusable,
    sample_missing,
    store,
)
from helpers.sampling.engine import SampledText
from helpers.stages import distinct_fraction, harvest_pairs, measure_samples

NAME = "samples/distill.jsonl"
PROBLEMS = [
    Problem(id=f"p{i}", problem=PROMPT.format(i, 7), answer=str(i + 7))
    for i in range(20)
]
GOLDS = {p.id: p.answer for p in PROBLEMS}


def iter_sums(problems=PROBLEMS, n=3, seed=0):
    """Requests for sums, made as they are asked for."""
    for problem in problems:
        for sample in range(n):
            yield SampleRequest(
                problem_id=problem.id,
                sample=sample,
                prompt=problem.problem,
                seed=derive_seed(seed, problem.id, sample),
                temperature=1.0,
                top_p=1.0,
                max_new_tokens=16,
            )


def draw(path, engine=None, requests=None, n=3, **options):
    """Sample what ``path`` lacks of the sums."""
    requests = list(iter_sums(n=n)) if requests is None else requests
    engine = engine or SimulatedEngine()
    samples = SampleFile(path)
    sample_missing(
        engine, requests, samples, GOLDS, title="t", total=60, n=n, **options
    )
    return read_records(path, Completion)


def key(row):
    return row.problem_id, row.sample


class Dying(SimulatedEngine):
    """Raises after so many texts."""

    def __init__(self, left):
        super().__init__()
        self.left = left

    def sample(self, requests):
        for text in super().sample(requests):
            if not self.left:
                raise LabError("The server is dead.")
            self.left -= 1
            yield text


def test_every_completion_is_on_disk_before_the_next(tmp_path):
    path, seen = tmp_path / "x.jsonl", []

    class Watching(SimulatedEngine):
        def sample(self, requests):
            for text in super().sample(requests):
                lines = path.read_bytes().splitlines()
                seen.append(len(lines))
                yield text

    rows = draw(path, Watching())
    assert seen == list(range(60))
    assert [r.engine for r in rows] == ["simulated"] * 60
    assert not rows[0].model_extra, "a verdict is not stored"
    assert sum(r.correct for r in read_graded(path)) == sum(
        bool(r.seed % 3) for r in iter_sums()
    )


@pytest.mark.parametrize("left", [0, 1, 7, 59])
def test_after_a_death_only_what_is_missing_is_asked_for(tmp_path, left):
    path = tmp_path / "x.jsonl"
    with pytest.raises(LabError, match="dead"):
        draw(path, Dying(left))
    begun = path.read_bytes()
    assert begun.count(b"\n") == left
    engine = SimulatedEngine()
    rows = draw(path, engine)
    assert engine.asked == 60 - left
    assert path.read_bytes().startswith(begun)
    whole = draw(tmp_path / "whole.jsonl")
    assert sorted(rows, key=key) == sorted(whole, key=key)


def test_requests_are_read_only_as_the_engine_asks(tmp_path):
    """A million requests would never fit; so they are never listed."""
    read = 0

    def count():
        nonlocal read
        for request in iter_sums():
            read += 1
            yield request

    class Checking(SimulatedEngine):
        def sample(self, requests):
            for given, text in enumerate(super().sample(requests)):
                assert read <= given + self.window
                yield text

    engine = Checking(window=5)
    draw(tmp_path / "x.jsonl", engine, count())
    assert read == 60 and engine.most_ahead == 5


def test_an_engine_that_loses_a_request_is_found_out(tmp_path):
    class Losing(SimulatedEngine):
        def sample(self, requests):
            for text in super().sample(requests):
                if key(text.request) != ("p3", 1):
                    yield text

    path = tmp_path / "x.jsonl"
    with pytest.raises(LabError, match="no answer to 1 req.*sample 1 of 'p3'"):
        draw(path, Losing())
    assert len(draw(path)) == 60


def test_an_engine_that_answers_twice_is_found_out(tmp_path):
    class Twice(SimulatedEngine):
        def sample(self, requests):
            for text in super().sample(requests):
                yield text
                yield text

    with pytest.raises(ValueError, match="unasked"):
        draw(tmp_path / "x.jsonl", Twice())
    assert len(read_records(tmp_path / "x.jsonl", Completion)) == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 5}, "another seed"),
        ({"prompt": PROMPT.format(3, 8)}, "another prompt"),
        ({"prompt": PROMPT.format(3, 8), "seed": 5}, "prompt and seed"),
    ],
)
def test_a_row_of_another_prompt_or_seed_is_never_gone_on_from(
    tmp_path, change, word
):
    path = tmp_path / "x.jsonl"
    with pytest.raises(LabError):
        draw(path, Dying(30))
    before = path.read_bytes()
    requests = [
        replace(r, **change) if key(r) == ("p3", 1) else r for r in iter_sums()
    ]
    with pytest.raises(LabError, match=f"sample 1 of 'p3'.*{word}"):
        draw(path, requests=requests)
    assert path.read_bytes().startswith(before)
    assert {key(r) for r in read_records(path, Completion)} <= {
        key(r) for r in requests
    }


def test_another_engine_goes_on_and_that_is_said(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    with pytest.raises(LabError):
        draw(path, Dying(30))
    rows = draw(path, SimulatedEngine(name="vllm"))
    said = capsys.readouterr().out
    assert "30 by simulated; the rest comes from vllm" in said
    assert [r.engine for r in rows] == ["simulated"] * 30 + ["vllm"] * 30


def test_speed_counts_only_what_was_sampled_now(tmp_path):
    path, speed = tmp_path / "x.jsonl", Speed()
    with pytest.raises(LabError):
        draw(path, Dying(30), speed=speed)
    first = sum(r.tokens for r in read_records(path, Completion))
    assert speed.tokens == first and speed.tokens_per_second > 0
    again = Speed()
    draw(path, speed=again)
    assert first + again.tokens == sum(
        r.tokens for r in read_records(path, Completion)
    )
    nothing = Speed()
    draw(path, speed=nothing)
    assert nothing.tokens_per_second is None and nothing.seconds == 0


# --- what is there is opened, cleaned or refused --------------------------


@pytest.fixture
def run(tmp_path):
    return RunDir.open(tmp_path / "run", load_recipe("pocket"))


def begin(run, inputs, left=10):
    samples = open_samples(run, NAME, inputs)
    with pytest.raises(LabError, match="dead"):
        sample_missing(
            Dying(left), iter_sums(), samples, GOLDS, title="t", total=60
        )


def test_changed_settings_are_named_and_nothing_is_mixed(run):
    begin(run, {"temperature": "1.0", "model": "a"})
    before = run.file(NAME).read_bytes()
    with pytest.raises(LabError, match=r"changed: temperature\)"):
        open_samples(run, NAME, {"temperature": "0.5", "model": "a"})
    assert run.file(NAME).read_bytes() == before
    fresh = open_samples(run, NAME, {"temperature": "0.5"}, force=True)
    assert fresh.rows == 0
    (old,) = run.file("old").rglob("distill.jsonl")
    assert old.read_bytes() == before


def test_a_begun_file_without_a_line_binds_nobody(run):
    """The server died before the first response: settings may change."""
    begin(run, {"temperature": "1.0"}, left=0)
    assert run.file(NAME).read_bytes() == b""
    assert open_samples(run, NAME, {"temperature": "0.5"}).rows == 0
    stamp = run.file("samples", "distill.inputs.json")
    assert json.loads(stamp.read_text()) == {"temperature": "0.5"}


def test_lines_of_unknown_origin_are_refused(run):
    begin(run, {"temperature": "1.0"})
    run.file("samples", "distill.inputs.json").unlink()
    with pytest.raises(LabError, match="without distill.inputs.json"):
        open_samples(run, NAME, {"temperature": "1.0"})


def test_of_repeated_lines_the_first_is_kept_and_said(run, capsys):
    begin(run, {"a": "1"})
    path = run.file(NAME)
    first = path.read_bytes().splitlines(keepends=True)
    twice = json.loads(first[2]) | {"response": "another"}
    again = json.dumps(twice).encode() + b"\n"
    path.write_bytes(b"".join([*first, again, first[4], first[4]]))
    samples = open_samples(run, NAME, {"a": "1"})
    assert "3 lines repeated" in capsys.readouterr().out
    assert path.read_bytes() == b"".join(first)
    assert samples.rows == 10 and not samples.repeated
    (aside,) = run.file("old").rglob("distill.jsonl")
    assert len(read_records(aside, Completion)) == 3


def test_a_torn_line_is_made_again(run):
    begin(run, {"a": "1"})
    path = run.file(NAME)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="torn"):
        samples = open_samples(run, NAME, {"a": "1"})
    assert samples.rows == 9
    assert samples.count_missing(PROBLEMS, 3) == 51
    rows = draw(path)
    assert len({key(r) for r in rows}) == len(rows) == 60


def test_verdicts_that_older_versions_stored_do_not_count(run):
    """Graded when read, whatever the rows of an earlier version say."""
    begin(run, {"a": "1"})
    path = run.file(NAME)
    right = {key(r): r.correct for r in read_graded(path)}
    rows = [json.loads(x) for x in path.read_text().splitlines()]
    stored = {"grader": "0.1", "correct": False, "reason": "", "extracted": ""}
    old = "".join(json.dumps(r | stored) + "\n" for r in rows)
    path.write_text(old)
    samples = open_samples(run, NAME, {"a": "1"})
    assert all(samples.find(r) == right.get(key(r)) for r in iter_sums())
    assert {k: s.correct for k, s in samples.index.items()} == right
    draw(path)
    assert path.read_text().startswith(old)
    assert "grader" not in path.read_text().splitlines()[-1]


def test_rows_from_before_golds_were_stored(run):
    begin(run, {"a": "1"})
    path = run.file(NAME)
    right = [r.correct for r in read_graded(path)]
    rows = [json.loads(x) | {"gold": ""} for x in path.open()]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(LabError, match="no 'gold' answer"):
        open_samples(run, NAME, {"a": "1"})
    samples = open_samples(run, NAME, {"a": "1"}, golds=GOLDS)
    assert [s.correct for s in samples.index.values()] == right


def test_the_index_grows_with_the_file_and_is_graded_once(
    tmp_path, monkeypatch
):
    """What was sampled here is not graded again when it is read."""
    path, graded = tmp_path / "x.jsonl", []
    samples = SampleFile(path)
    grade = store.grade_completions

    def count(rows, *args):
        rows = list(rows)
        graded.extend(map(key, rows))
        return grade(rows, *args)

    monkeypatch.setattr(store, "grade_completions", count)
    with pytest.raises(LabError, match="dead"):
        sample_missing(
            Dying(7), iter_sums(), samples, GOLDS, title="t", total=60
        )
    draw(path)  # another process goes on
    samples.refresh()
    assert samples.rows == len(samples.index) == 60
    assert Counter(graded[:7]).most_common(1)[0][1] == 1
    assert len(graded) == 7 + (7 + 53) + 53
    assert SampleFile(path).index == samples.index


def test_the_key_is_the_whole_distribution_and_not_the_engine(
    tiny_recipe, tiny_model_dir, monkeypatch
):
    def describe(recipe=tiny_recipe, **changes):
        settings = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 9}
        return describe_sampling(recipe, tiny_model_dir, **settings | changes)

    def differ(recipe=tiny_recipe, **changes):
        new, old = describe(recipe, **changes), describe()
        return {k for k in old if old[k] != new[k]}

    def change(section, **values):
        part = getattr(tiny_recipe, section).model_copy(update=values)
        return tiny_recipe.model_copy(update={section: part})

    assert differ(temperature=0.5) == {"temperature"}
    assert differ(temperature=0.0) == {"temperature", "seed"}
    assert differ(top_p=0.9) == {"top_p"}
    assert differ(max_new_tokens=10) == {"max_new_tokens"}
    assert differ(stop=("\n\n",)) == {"stop"}
    assert differ(tiny_recipe.model_copy(update={"seed": 1})) == {"seed"}
    assert differ(change("model", dtype="bfloat16")) == {"precision"}
    assert differ(change("model", quantization="nf4")) == {"precision"}
    assert differ(change("data", prompt_template="boxed")) == {"template"}
    assert differ(change("engine", name="vllm", max_batch_size=1)) == set()
    before = describe()
    monkeypatch.setitem(
        store.TEMPLATES,
        "plain",
        "{problem}\n",
    )
    assert describe()["template"] != before["template"]


def test_two_large_models_of_one_size_are_two(tmp_path, monkeypatch):
    from helpers.base import run as runs

    monkeypatch.setattr(runs, "HASH_WHOLE_BELOW", 1000)
    size, step = 2 * runs.BLOCKS * runs.BLOCK, 1 << 12
    weights = bytearray(size)
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights)
    before = runs.fingerprint_model(tmp_path)
    assert runs.fingerprint_model(tmp_path) == before
    for place in range(0, size, step):  # a fine-tuned model differs all over
        weights[place] = 1
    path.write_bytes(weights)
    assert runs.fingerprint_model(tmp_path) != before
    (tmp_path / "tokenizer.json").write_text("{}")
    one = runs.fingerprint_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    assert runs.fingerprint_model(tmp_path) != one


# --- what is drawn but cannot be used -------------------------------------


def test_too_long_and_empty_ones_are_rows_counted_and_never_harvested(
    tmp_path, capsys
):
    finish = {("p0", s): "too_long" for s in range(3)}
    finish |= {("p1", 0): "too_long", ("p2", 1): "empty"}
    draw(tmp_path / "x.jsonl", SimulatedEngine(finish=finish))
    rows = read_graded(tmp_path / "x.jsonl")
    assert len(rows) == 60
    long = [r for r in rows if r.finish_reason == "too_long"]
    assert len(long) == 4
    for row in long:
        assert (row.response, row.correct, row.tokens) == ("", False, 0)
        assert row.reason == "too_long" and row.extracted is None
    groups = group_samples_of(rows)
    found = harvest_pairs(groups, pick="first", seed=0, run_name="r")
    metrics = measure_samples(groups, found)
    assert metrics["too_long"] == {"k": 4, "n": 60, "p": 4 / 60}
    assert metrics["empty"]["k"] == 1
    texts = [x for p in found.iter_pairs() for x in (p.chosen, p.rejected)]
    assert all([*texts, *(r.completion for r in found.iter_sft())])
    assert "p0" not in {r.problem_id for r in found.iter_sft()}
    assert distinct_fraction({"p0": long}) == 1.0  # nothing was drawn
    report_unusable("distill", 4, 1, 60)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "of 60 responses 4 were not" in said
    report_unusable("distill", 0, 0, 60)
    assert capsys.readouterr().out == ""


def group_samples_of(rows):
    return group_samples(rows, PROBLEMS)


def test_small_forms_harvest_as_whole_rows_do(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = draw(path)
    graded = read_graded(path)
    whole = group_samples_of(graded)
    index = SampleFile(path).index.values()
    small = group_samples_of(index)
    assert [load_completion(s) for s in index] == rows
    for pick in ("first", "shortest", "random"):
        got = [
            harvest_pairs(x, pick=pick, seed=3, run_name="r")
            for x in (whole, small)
        ]
        sft, pairs = (
            [list(getattr(harvest, name)()) for harvest in got]
            for name in ("iter_sft", "iter_pairs")
        )
        assert sft[0] == sft[1] and sft[0]
        assert pairs[0] == pairs[1] and pairs[0]
        assert measure_samples(whole, got[0]) == measure_samples(small, got[1])
    assert distinct_fraction(whole) == distinct_fraction(small)
    assert make_sample(graded[0]).answered


def test_half_a_surrogate_pair_from_a_server_can_be_stored(tmp_path):
    engine = SimulatedEngine()
    request = next(iter_sums())
    text = replace(engine.answer(request), response="\ud83d \\boxed{7}")
    (row,) = grade_texts([text], GOLDS)
    assert row.correct and row.response == "? \\boxed{7}"
    assert json.loads(row.model_dump_json())["response"] == row.response


# --- a full disk -----------------------------------------------------------

FULL = (
    "import resource, sys\n"
    "sys.path[:0] = ['tests', 'tests/sampling']\n"
    "from pathlib import Path\n"
    "import test_sampling as t\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
    "try:\n"
    "    t.draw(Path(sys.argv[1]))\n"
    "except t.LabError as error:\n"
    "    print(error)\n"
)


def test_a_full_disk_keeps_whole_lines_and_says_what_to_do(tmp_path):
    pytest.importorskip("resource", reason="no file size limits here")
    path = tmp_path / "x.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), "5000"],
        cwd=REPO_ROOT,
        env={**os.environ, "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
    )
    assert f"Cannot write {path}" in done.stdout, done.stderr
    assert "Why: the disk is full" in done.stdout
    assert "the same command goes on" in done.stdout
    begun = path.read_bytes()
    assert begun.endswith(b"\n") and 4000 < len(begun) <= 5000
    assert len(draw(path)) == 60
    assert path.read_bytes().startswith(begun)


def test_a_stamp_that_is_no_json_is_named(run):
    begin(run, {"a": "1"})
    run.file("samples", "distill.inputs.json").write_text("{")
    with pytest.raises(LabError, match="inputs.json:1 is not JSON"):
        open_samples(run, NAME, {"a": "1"})
    write_json(run.file("samples", "distill.inputs.json"), {"a": "1"})
    assert open_samples(run, NAME, {"a": "1"}).rows == 10


THINKING = "<|user|>What is 5 + 7?<|assistant|><think>\n"


@pytest.mark.parametrize(
    ("prompt", "response", "right"),
    [
        (THINKING, "So \\boxed{12}. Wait, let me check", False),
        (THINKING, "5 + 7, so we may get 12", False),
        (THINKING, "5 + 7.\n</think>\n\nIt is \\boxed{12}.", True),
        (THINKING, "It is \\boxed{11}?\n</think>\nNo: \\boxed{12}.", True),
        ("What is 5 + 7?", "So \\boxed{12}. Wait, let me check", True),
    ],
)
def test_reasoning_that_the_prompt_opened_is_no_answer(
    prompt, response, right
):
    request = replace(next(iter_sums()), prompt=prompt, problem_id="x")
    text = SampledText(
        request=request,
        response=response,
        finish_reason="length",
        tokens=9,
        mean_logprob=-0.1,
    )
    (row,) = grade_texts([text], {"x": "12"})
    assert row.correct is right
    assert row.response == response  # as it was sampled
