"""The sampling engine against transformers itself, and against batching."""

import copy
from collections import Counter
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from helpers.base import LabError  # noqa: E402
from helpers.models import render_prompt  # noqa: E402
from helpers.sampling import SampleRequest, derive_seed  # noqa: E402
from helpers.sampling import local as module  # noqa: E402

Engine = module.TransformersEngine
END_IDS = [2, *range(20, 30)]  # many end tokens: random weights stop too


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model, made to end its responses often."""
    model = copy.deepcopy(tiny_model)
    model.generation_config.eos_token_id = END_IDS
    return model


def make_requests(tokenizer, temperature=1.0, top_p=1.0, cap=24, n=2):
    lengths = (1, 30, 7, 3, 60, 12, 2)
    return [
        SampleRequest(
            problem_id=f"p{i}",
            sample=s,
            prompt=render_prompt(tokenizer, "1" * length, "plain"),
            seed=derive_seed(0, f"p{i}", s),
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=cap,
        )
        for i, length in enumerate(lengths)
        for s in range(n)
    ]


def run(model, tokenizer, requests, batch):
    engine = Engine(model, tokenizer, max_batch_size=batch)
    texts = list(engine.sample(requests))
    assert len(texts) == len(requests)
    return {(t.request.problem_id, t.request.sample): t for t in texts}


def encode(tokenizer, prompt):
    return tokenizer(prompt, add_special_tokens=False, return_tensors="pt")[
        "input_ids"
    ]


def cut(ids):
    """Token ids up to and with the first end token."""
    ends = [i for i, token in enumerate(ids) if token in END_IDS]
    return ids[: ends[0] + 1] if ends else ids


def test_greedy_is_what_generate_gives_row_by_row(model, tokenizer):
    requests = make_requests(tokenizer, temperature=0.0, n=1)
    got = run(model, tokenizer, requests, batch=3)
    for request in requests:
        prompt = encode(tokenizer, request.prompt)
        with torch.inference_mode():
            ids = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=request.max_new_tokens,
                pad_token_id=0,
            )
        want = cut(ids[0, prompt.shape[1] :].tolist())
        text = got[request.problem_id, 0]
        assert text.tokens == len(want)
        assert text.response == tokenizer.decode(
            want, skip_special_tokens=True
        )
        stopped = want[-1] in END_IDS
        assert text.finish_reason == ("stop" if stopped else "length")


@pytest.mark.parametrize("settings", [(1.0, 1.0), (0.7, 0.9), (0.0, 1.0)])
def test_a_sample_does_not_depend_on_its_batch(model, tokenizer, settings):
    # Enough rows that some of them wait for others at a segment's end.
    requests = make_requests(tokenizer, *settings, n=4)
    alone = run(model, tokenizer, requests[::-1], batch=1)
    for batch in (3, 64):
        together = run(model, tokenizer, requests, batch)
        for key, text in together.items():
            assert text.response == alone[key].response
            assert text.tokens == alone[key].tokens
            assert text.finish_reason == alone[key].finish_reason
            assert text.mean_logprob == pytest.approx(
                alone[key].mean_logprob, abs=1e-4
            )


def test_rows_end_for_both_reasons_and_at_the_cap(model, tokenizer):
    texts = run(model, tokenizer, make_requests(tokenizer), 4).values()
    assert {t.finish_reason for t in texts} == {"stop", "length"}
    assert all(t.tokens == 24 for t in texts if t.finish_reason == "length")
    assert all(1 <= t.tokens <= 24 for t in texts)


class Recording(Engine):
    """The engine, which also keeps the token ids of each response."""

    def sample(self, requests):
        self.ids = {}
        return super().sample(requests)

    def _decode_segment(self, rows, cache, warpers):
        super()._decode_segment(rows, cache, warpers)
        self.ids |= {row.request: row.new_ids for row in rows}


def test_mean_logprob_is_the_models_own(model, tokenizer):
    """At another temperature and top_p too, against one forward pass."""
    engine = Recording(model, tokenizer, max_batch_size=4)
    for text in engine.sample(make_requests(tokenizer, 0.8, 0.95, cap=9)):
        prompt = encode(tokenizer, text.request.prompt)
        reply = torch.tensor([engine.ids[text.request]])
        assert reply.shape[1] == text.tokens
        with torch.inference_mode():
            logits = model(torch.cat([prompt, reply], dim=1)).logits[0]
        own = logits[prompt.shape[1] - 1 : -1].log_softmax(-1)
        mean = own.gather(1, reply[0][:, None]).mean()
        assert text.mean_logprob == pytest.approx(float(mean), abs=1e-4)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_first_tokens_follow_the_models_distribution(model, tokenizer, top_p):
    """A chi-square test of 2,000 first tokens against the library's p."""
    from scipy.stats import chisquare

    prompt = render_prompt(tokenizer, "7", "plain")
    requests = [
        SampleRequest("p", s, prompt, derive_seed(1, "p", s), 0.7, top_p, 1)
        for s in range(2000)
    ]
    ids = encode(tokenizer, prompt)
    with torch.inference_mode():
        scores = model(ids).logits[:, -1]
    scores = transformers.TemperatureLogitsWarper(0.7)(ids, scores)
    if top_p < 1:
        scores = transformers.TopPLogitsWarper(top_p)(ids, scores)
    p = scores[0].double().softmax(-1).numpy()
    engine = Recording(model, tokenizer, max_batch_size=1000)
    assert len(list(engine.sample(requests))) == 2000
    counts = Counter(token for (token,) in engine.ids.values())
    assert all(p[token] > 0 for token in counts)
    large = [i for i in range(len(p)) if 2000 * p[i] >= 5]
    rest = 2000 * (1 - p[large].sum())
    seen, want = [counts[i] for i in large], [2000 * p[i] for i in large]
    if rest > 1e-6:
        seen.append(2000 - sum(seen))
        want.append(rest)
    assert chisquare(seen, want).pvalue > 1e-4


def test_samples_of_one_problem_differ_and_seeds_repeat(model, tokenizer):
    first = run(model, tokenizer, make_requests(tokenizer, n=4), 8)
    again = run(model, tokenizer, make_requests(tokenizer, n=4), 8)
    other = [
        replace(r, seed=r.seed + 1) for r in make_requests(tokenizer, n=4)
    ]
    changed = run(model, tokenizer, other, 8)
    texts = {key: text.response for key, text in first.items()}
    assert texts == {key: text.response for key, text in again.items()}
    assert texts != {key: text.response for key, text in changed.items()}
    for i in range(7):
        assert len({texts[f"p{i}", s] for s in range(4)}) == 4


def test_derived_seeds_are_distinct_and_exact_in_json():
    seeds = {
        derive_seed(run, f"p{i}", s)
        for run in range(3)
        for i in range(100)
        for s in range(4)
    }
    assert len(seeds) == 1200
    assert max(seeds) < 2**53
    assert derive_seed(1, "p1", 0) != derive_seed(1, "p", 10)


def test_checkpoint_penalties_do_not_leak_in(model, tokenizer):
    requests = make_requests(tokenizer, temperature=0.0, n=1)
    plain = run(model, tokenizer, requests, 8)
    theirs = copy.deepcopy(model)
    theirs.generation_config.repetition_penalty = 5.0
    theirs.generation_config.do_sample = True
    kept = theirs.generation_config
    assert run(theirs, tokenizer, requests, 8) == plain
    assert theirs.generation_config is kept


def test_running_out_of_memory_halves_the_batch(model, tokenizer, monkeypatch):
    requests = make_requests(tokenizer)
    want = run(model, tokenizer, requests, 64)
    real, sizes = Engine._decode_segment, []

    def decode(self, rows, cache, warpers):
        sizes.append(len(rows))
        if len(rows) > 5:
            raise torch.OutOfMemoryError("test")
        return real(self, rows, cache, warpers)

    monkeypatch.setattr(Engine, "_decode_segment", decode)
    got = run(model, tokenizer, requests, 14)
    assert sizes[:3] == [14, 7, 3]
    assert {k: t.response for k, t in got.items()} == {
        k: t.response for k, t in want.items()
    }


def test_a_row_that_fits_nowhere_is_refused(model, tokenizer, monkeypatch):
    def fail(self, rows, cache, warpers):
        raise torch.OutOfMemoryError("test")

    monkeypatch.setattr(Engine, "_decode_segment", fail)
    with pytest.raises(LabError, match="does not fit"):
        run(model, tokenizer, make_requests(tokenizer), 4)


def test_too_long_prompts_come_back_empty_and_said_so(model, tokenizer):
    requests = make_requests(tokenizer)
    requests[3] = replace(requests[3], max_new_tokens=600)
    texts = run(model, tokenizer, requests, 4)
    long = texts[requests[3].problem_id, requests[3].sample]
    assert (long.finish_reason, long.tokens) == ("too_long", 0)
    assert long.response == ""
    reasons = [t.finish_reason for t in texts.values()]
    assert reasons.count("too_long") == 1
    only = run(model, tokenizer, [requests[3]], 4)
    assert list(only.values()) == [long]


def test_empty_prompts_are_refused(model, tokenizer):
    request = make_requests(tokenizer)[0]
    with pytest.raises(LabError, match="prompt is empty"):
        run(model, tokenizer, [replace(request, prompt="")], 4)
    assert run(model, tokenizer, [], 4) == {}


def test_one_token_prompts_work(model, tokenizer):
    requests = [
        replace(r, prompt="<|bos|>" if r.sample else r.prompt)
        for r in make_requests(tokenizer)
    ]
    together = run(model, tokenizer, requests, 64)
    alone = run(model, tokenizer, requests, 1)
    assert all(together[key].response == alone[key].response for key in alone)


def test_models_without_an_attention_cache_are_refused(model, tokenizer):
    other = copy.deepcopy(model)
    other.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(LabError, match="linear_attention"):
        Engine(other, tokenizer)


def test_sliding_window_model_matches_generate(tokenizer):
    """A window shorter than the text, as in Mistral."""
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=8,
        initializer_range=0.3,
        pad_token_id=0,
    )
    model = transformers.MistralForCausalLM(config).eval()
    model.generation_config.eos_token_id = END_IDS
    requests = make_requests(tokenizer, temperature=0.0, n=1)
    got = run(model, tokenizer, requests, 3)
    for request in requests:
        prompt = encode(tokenizer, request.prompt)
        with torch.inference_mode():
            ids = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=24,
            )
        want = cut(ids[0, prompt.shape[1] :].tolist())
        assert got[request.problem_id, 0].response == tokenizer.decode(
            want, skip_special_tokens=True
        )


def test_log_probabilities_come_when_asked_for(model, tokenizer):
    asked = [replace(r, logprobs=True) for r in make_requests(tokenizer)]
    with_them = run(model, tokenizer, asked, 4)
    without = run(model, tokenizer, make_requests(tokenizer), 4)
    for key, text in with_them.items():
        assert len(text.logprobs) == text.tokens
        mean = sum(text.logprobs) / text.tokens
        assert text.mean_logprob == pytest.approx(mean)
        assert without[key].logprobs is None
        assert without[key].response == text.response


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_stop_text_ends_a_response_before_it(model, tokenizer, length):
    """The same response, cut where the stop text begins."""
    plain = run(model, tokenizer, make_requests(tokenizer), 4)
    cut_some = False
    for key, text in plain.items():
        middle = len(text.response) // 2
        stop = text.response[middle : middle + length]
        if not stop.strip():
            continue
        request = replace(text.request, stop=("never written", stop))
        (short,) = run(model, tokenizer, [request], 4).values()
        assert short.response == text.response.split(stop)[0], key
        assert short.finish_reason == "stop"
        assert 1 <= short.tokens <= text.tokens
        cut_some = cut_some or short.tokens < text.tokens
    assert cut_some


def test_the_cache_stays_within_its_tokens(model, tokenizer, monkeypatch):
    requests = make_requests(tokenizer)
    want = run(model, tokenizer, requests, 64)
    real, seen = Engine._decode_segment, []

    def decode(self, rows, cache, warpers):
        seen.append((len(rows), max(row.longest for row in rows)))
        return real(self, rows, cache, warpers)

    monkeypatch.setattr(Engine, "_decode_segment", decode)
    engine = Engine(model, tokenizer, max_batch_size=64, max_batch_tokens=200)
    got = {
        (t.request.problem_id, t.request.sample): t.response
        for t in engine.sample(requests)
    }
    assert got == {key: text.response for key, text in want.items()}
    assert all(n * width <= 200 or n == 1 for n, width in seen)
    assert max(n for n, _ in seen) > 1


def test_requests_are_read_a_window_at_a_time(model, tokenizer):
    """A generator of many requests is never read to its end at once."""
    read = 0

    def many():
        nonlocal read
        for number in range(10_000):
            read += 1
            base = make_requests(tokenizer, cap=2)[number % 14]
            yield replace(base, problem_id=f"p{number}")

    engine = Engine(model, tokenizer, max_batch_size=4)
    stream = engine.sample(many())
    for _ in range(20):
        next(stream)
    assert read <= 3 * module.WINDOW_BATCHES * 4


def test_settings_may_differ_within_a_call(model, tokenizer):
    mixed = make_requests(tokenizer, 1.0, 1.0) + make_requests(
        tokenizer, 0.0, 1.0
    )
    mixed = [replace(r, problem_id=f"{i}") for i, r in enumerate(mixed)]
    mixed = mixed[::2] + mixed[1::2]
    together = run(model, tokenizer, mixed, 5)
    alone = run(model, tokenizer, mixed, 1)
    assert {k: t.response for k, t in together.items()} == {
        k: t.response for k, t in alone.items()
    }


def test_an_engine_describes_itself_and_lets_go(tiny_model, tokenizer):
    with Engine(tiny_model, tokenizer, max_batch_size=3) as engine:
        said = engine.describe()
    assert said["name"] == "transformers"
    assert said["max_batch_size"] == 3
    assert said["version"] == transformers.__version__
    assert engine.model is None
