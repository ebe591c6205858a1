"""The report of a made-up run: complete, partial, damaged and empty."""

from __future__ import annotations

import json
import random
import re
import statistics
import time

import pytest
from bs4 import BeautifulSoup
from conftest import make_tokenizer

from helpers.base import (
    Completion,
    LabError,
    RunDir,
    load_recipe,
    read_records,
    write_json,
    write_records,
    write_text,
)
from helpers.problems import load_problems
from helpers.results import (
    pass_curve,
    read_results,
    stats,
    summarize_samples,
    write_report,
)
from helpers.results.report.examples import build_examples
from helpers.results.report.page import (
    Section,
    escape,
    escape_block,
    fence,
    flatten,
    is_number,
    render_block,
    render_markdown,
    show_seconds,
)
from helpers.results.report.sampling import build_sampled, cut_alike
from helpers.results.report.scores import (
    OUTCOME_NAMES,
    build_headline,
    compare_all,
    paired_row,
)
from helpers.results.report.training import build_lengths, build_training
from tools.lm_eval import export_lm_eval, main

TAGS = ("base", "sft", "dpo", "dpo-published")
# Share of right answers per model, and of cut-off ones among the wrong.
SHARES = {"base": 0.42, "sft": 0.55, "dpo": 0.56, "dpo-published": 0.55}
EASE = {"easy": 0.3, "main": 0.0, "hard": -0.38, "shifted": -0.15}


def make_completion(problem_id: str, right: bool, rng) -> Completion:
    """A response that the grader calls right or wrong, of made-up length."""
    tokens = max(8, min(192, round(rng.gauss(90 if right else 130, 35))))
    said = "\\boxed{2}" if right else rng.choice(["\\boxed{3}"] * 4 + ["no"])
    return Completion(
        problem_id=problem_id,
        sample=0,
        prompt="What is 1 + 1?",
        response=f"<b>so</b> {letters(rng)}: {said}",
        finish_reason="length" if tokens == 192 and not right else "stop",
        tokens=tokens,
        mean_logprob=-0.3,
        seed=1,
        gold="2",
    )


def letters(rng) -> str:
    """Something that makes two responses differ and is no number."""
    return "".join(rng.choices("abcdefgh", k=12))


def list_ids(bench) -> list[str]:
    """The ids of a benchmark's real problems."""
    return [p.id for p in load_problems(bench.path, bench.n)]


def fill_evals(run: RunDir) -> None:
    for bench in run.recipe.evaluate.benchmarks:
        difficulty = [random.Random(i).random() for i in range(bench.n)]
        for tag in TAGS:
            rng = random.Random(f"{tag}{bench.name}")
            level = SHARES[tag] + EASE[bench.name]
            rows = [
                make_completion(name, d + rng.gauss(0, 0.08) < level, rng)
                for name, d in zip(list_ids(bench), difficulty, strict=True)
            ]
            write_records(run.file("eval", tag, f"{bench.name}.jsonl"), rows)


def write_log(run: RunDir, tag: str, rows: list[dict]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_text(run.file(tag, "log.jsonl"), text)


def fill_sampled(run: RunDir, n: int = 4) -> None:
    """n samples of each problem of one set, for base and sft."""
    bench = run.recipe.evaluate.benchmarks[2]
    for tag, ease in (("base", 0.3), ("sft", 0.5)):
        rng = random.Random(tag)
        rows = [
            make_completion(name, rng.random() < ease, rng).model_copy(
                update={"sample": j}
            )
            for name in list_ids(bench)
            for j in range(n)
        ]
        write_records(run.file("eval", tag, f"{bench.name}.t1.jsonl"), rows)


def fill_training(run: RunDir) -> None:
    rng = random.Random(7)
    rows = [
        {"step": i, "loss": 0.4 + 1 / (1 + i / 9) + rng.random() / 20}
        for i in range(1, 151)
    ]
    write_log(run, "sft", [*rows, {"step": 150, "train_runtime": 80.0}])
    for tag, slope in (("dpo", 0.02), ("dpo-published", 0.0003)):
        rows = [
            {
                "step": i,
                "loss": 0.693,
                "rewards/margins": slope * i,
                "rewards/accuracies": min(1.0, 12 * slope * i),
                "tie_fraction": max(0.0, 1 - 12 * slope * i),
            }
            for i in range(1, 61)
        ]
        write_log(run, tag, rows)
    for tag, cosine in (("sft", 1.0), ("dpo", 0.99), ("dpo-published", 0.2)):
        report = {"cosine": cosine, "norm_kept": cosine, "dtype": "float32"}
        counts = {"greedy_agree": 31, "greedy_total": 32}
        write_json(run.file(tag, "merge_fidelity.json"), report | counts)


def fill_run(run: RunDir) -> RunDir:
    """Everything a finished course leaves in a run folder."""
    fill_evals(run)
    fill_sampled(run)
    fill_training(run)
    rng = random.Random(3)
    samples = [
        make_completion(f"train-{i}", rng.random() < (i % 10) / 9, rng)
        for i in range(300)
        for _ in range(4)
    ]
    write_records(run.file("samples", "distill.jsonl"), samples)
    measured = {
        "distill": {"sft_rows": 240},
        "dpo": {"noop": False, "margin": 0.9},
        "dpo-published": {"noop": True, "margin": 0.004},
    }
    write_json(run.file("metrics.json"), measured)
    phases = [
        {"phase": name, "seconds": seconds, "usd": 0.0}
        for name, seconds in (("distill", 212.4), ("sft", 81.0), ("dpo", 40.1))
    ]
    write_json(run.file("ledger.json"), {"phases": phases})
    return run


@pytest.fixture
def empty_run(tmp_path) -> RunDir:
    return RunDir.open(tmp_path / "run", load_recipe("pocket"))


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> tuple[RunDir, BeautifulSoup]:
    folder = tmp_path_factory.mktemp("report") / "run"
    run = fill_run(RunDir.open(folder, load_recipe("pocket")))
    page = write_report(run, make_tokenizer, markdown=True)
    return run, BeautifulSoup(page.read_text("utf-8"), "html.parser")


@pytest.fixture(scope="module")
def results(full):
    """What the full report was made of."""
    return read_results(full[0])


def read_page(run: RunDir) -> BeautifulSoup:
    page = write_report(run, make_tokenizer)
    return BeautifulSoup(page.read_text("utf-8"), "html.parser")


def as_text(section: Section) -> str:
    """A section's words, as they stand in Markdown without its escapes."""
    text = render_markdown("", "", [section])
    return re.sub(r"\\(.)", r"\1", text)


def test_full_report_has_every_part_and_no_gap(full):
    _, page = full
    keys = [section["id"] for section in page.find_all("section")]
    assert keys == [
        "headline",
        "scores",
        "paired",
        "outcomes",
        "caps",
        "lengths",
        "sampled",
        "examples",
        "harvest",
        "training",
        "merges",
        "ledger",
        "published",
        "settings",
        "manifest",
    ]
    for section in page.find_all("section"):
        assert section.find(["table", "figure", "p"]), section["id"]


def test_page_is_self_contained(full):
    _, page = full
    assert not page.find_all("script")
    assert not page.find_all("link")
    for image in page.find_all("img"):
        assert image["src"].startswith("data:image/png;base64,")
    assert "url(" not in page.style.text


def test_page_is_accessible(full):
    _, page = full
    assert page.html["lang"] == "en"
    assert page.find("meta", attrs={"name": "viewport"})
    assert "prefers-color-scheme: dark" in page.style.text
    images = page.find_all("img")
    assert len(images) >= 9
    assert all(len(image["alt"]) > 30 for image in images)
    for table in page.find_all("table"):
        assert table.caption.text
        assert all(h["scope"] == "col" for h in table.thead.find_all("th"))
        for row in table.tbody.find_all("tr"):
            assert row.th["scope"] == "row"
            width = len(row.find_all(["th", "td"]))
            assert width == len(table.thead.find_all("th"))


def test_scores_are_those_of_the_files(full):
    """Counted from the stored texts, whose made-up answer is known."""
    run, page = full
    shown = page.find(id="scores").get_text()
    for tag in TAGS:
        for bench in run.recipe.evaluate.benchmarks:
            path = run.file("eval", tag, f"{bench.name}.jsonl")
            rows = [json.loads(x) for x in path.read_text().splitlines()]
            right = sum(row["response"].endswith("{2}") for row in rows)
            assert str(stats.proportion(right, bench.n)) in shown


def test_headline_sentence_is_the_paired_comparison(full, results):
    _, page = full
    right = {
        tag: {r.problem_id: r.correct for r in results.evals[tag]["main"]}
        for tag in TAGS
    }
    shown = " ".join(page.find(id="headline").get_text().split())
    for before, after in (("base", "sft"), ("sft", "dpo"), ("base", "dpo")):
        one = stats.compare(right[before], right[after])
        assert one.sentence(before, after, "main") in shown
    assert "dpo-published" in shown


def test_paired_table_counts_add_up_and_holm_is_larger(full):
    run, page = full
    sizes = {b.name: b.n for b in run.recipe.evaluate.benchmarks}
    tables = page.find(id="paired").find_all("table")
    assert len(tables) == 4
    for table in tables:
        for row in table.tbody.find_all("tr"):
            cells = [c.text for c in row.find_all("td")]
            assert sum(map(int, cells[:4])) == sizes[row.th.text]
            plain, holm = (float(c.lstrip("< ")) for c in cells[5:7])
            assert holm >= plain


def test_holm_names_its_family(full):
    _, page = full
    shown = " ".join(page.find(id="paired").get_text().split())
    rows = len(page.find(id="paired").select("tbody tr"))
    assert f"one family: all {rows} exact tests" in shown
    assert "base → sft, sft → dpo, base → dpo, sft → dpo-published" in shown


def test_holm_marks_a_verdict_it_does_not_share():
    one = stats.compare_counts(100, 2, 14, 84)
    assert one.verdict == "helps"
    assert paired_row("main", one, 0.2)[-1] == "helps*"
    assert paired_row("main", one, 0.04)[-1] == "helps"


def test_training_shows_the_mean_of_the_last_steps(full, results):
    _, page = full
    section = page.find(id="training")
    shown = {
        row.th.text: [cell.text for cell in row.find_all("td")]
        for row in section.table.tbody.find_all("tr")
    }
    alts = " ".join(image["alt"] for image in section.find_all("img"))
    for tag, log in results.logs.items():
        for key in ("loss", "rewards/margins", "tie_fraction"):
            values = [row[key] for row in log if key in row]
            if values:
                end = f"{statistics.fmean(values[-10:]):.4g}"
                assert shown[f"{tag}: {key}"] == [f"{values[0]:.4g}", end]
            if values and (tag == "sft" or key != "loss"):
                assert f"to {end} (mean" in alts
    assert "last 10 steps" in section.table.thead.text


def test_noop_is_what_the_stage_recorded(full, empty_run):
    _, page = full
    texts = [p.text for p in page.find(id="training").find_all("p")]
    said = {t.split(":")[0]: t for t in texts if "the stage recorded" in t}
    assert "recorded a no-op" in said["dpo-published"]
    assert "+0.004" in said["dpo-published"]
    assert "recorded no no-op" in said["dpo"]
    fill_training(empty_run)
    section = build_training(read_results(empty_run))
    assert section.blocks and "the stage recorded" not in as_text(section)


def test_identical_responses_are_drawn_once(empty_run):
    run, main = empty_run, empty_run.recipe.evaluate.main
    fill_evals(run)
    source = run.file("eval", "sft", f"{main}.jsonl").read_text()
    run.file("eval", "dpo", f"{main}.jsonl").write_text(source)
    results = read_results(run)
    section = build_lengths(results)
    assert "identical to those of sft" in as_text(section)
    assert "sft: median" in section.blocks[0].markdown
    assert "dpo: median" not in section.blocks[0].markdown
    shown = as_text(build_headline(results, compare_all(results)))
    assert "Not one problem changed" in shown


def test_every_answer_has_exactly_one_outcome(full):
    _, page = full
    table = page.find(id="outcomes").table
    for row in table.tbody.find_all("tr"):
        *counts, total = (int(cell.text) for cell in row.find_all("td"))
        assert sum(counts) == total
        assert len(counts) == len(OUTCOME_NAMES)


def test_published_scores_are_labelled_as_published(full):
    _, page = full
    section = page.find(id="published")
    assert "published by math-slm" in section.get_text()
    for row in section.table.tbody.find_all("tr"):
        label = row.th.text
        assert label.endswith(("published", "this run"))
    assert "369/500" in section.get_text()


def test_empty_run_names_every_missing_part_and_command(empty_run):
    page = read_page(empty_run)
    gaps = page.find(id="gaps")
    commands = [code.text for code in gaps.find_all("code")]
    for start in (
        "mathslm distill",
        "mathslm sft",
        "mathslm merge --model sft",
        "mathslm dpo",
        "mathslm evaluate --model base --benchmark main",
    ):
        assert any(text.startswith(start) for text in commands), start
    assert all(text.endswith(str(empty_run.path)) for text in commands)
    assert len(page.find_all("section")) == 16


def test_commands_of_gaps_are_real_commands(empty_run):
    typer_testing = pytest.importorskip("typer.testing")
    cli = pytest.importorskip("helpers.cli")
    runner = typer_testing.CliRunner()
    for gap in read_results(empty_run).gaps:
        _, command, *options = gap.command.split()
        shown = runner.invoke(cli.app, [command, "--help"])
        assert shown.exit_code == 0, gap.command
        text = re.sub(r"\x1b\[[0-9;]*m", "", shown.output)
        for option in options:
            if option.startswith("--"):
                assert option in text, gap.command


def test_damaged_torn_and_short_files_are_named_not_fatal(empty_run):
    run = fill_run(empty_run)
    run.file("dpo", "merge_fidelity.json").write_text("{")
    run.file("eval", "dpo", "easy.jsonl").write_text('{"problem_id": 1}\n')
    path = run.file("eval", "sft", "main.jsonl")
    lines = path.read_text().splitlines(keepends=True)[:-3]
    path.write_text("".join(lines) + '{"problem_id": "torn')
    page = read_page(run)
    gaps = page.find(id="gaps").get_text()
    assert "merge_fidelity.json:1 is not JSON" in gaps
    assert "scores of dpo on easy" in gaps
    assert "the last line was torn" in gaps
    # models with different problems are shown, but not compared
    assert "497 of 500 problems are there" in gaps
    assert "sft against base on main" in gaps
    assert "main-0499" in gaps
    assert "/497 (" in page.find(id="scores").get_text()


def test_replayed_stage_says_when_it_was_recorded(empty_run):
    note = {"recorded": {"date": "2020-02-03", "machine": "some machine"}}
    write_json(empty_run.file("stages", "sft.json"), note)
    results = read_results(empty_run)
    assert "2020-02-03" in results.provenance("sft")
    assert "2020-02-03" not in results.provenance("dpo")


HOSTILE = [
    "<script>alert(1)</script>",
    "a | b",
    "*x* _y_ `z` [u](http://v) ![i](j)",
    "&lt;b&gt; &amp; \\&",
    "ends in a backslash \\",
    "~~gone~~",
    "two\nlines",
]
STARTS = ["# head", "- item", "+ item", "1. one", "12) x", "---", "> quote"]


@pytest.mark.parametrize("text", [*HOSTILE, *STARTS])
def test_foreign_text_stays_text(text):
    """In a paragraph, a caption, a cell, an alt text, a fence."""
    section = Section("key", "Title")
    section.text(text)
    section.table(text, ["what", text], [[text, text]], note=text)
    told = " ".join(text.split("\n"))
    plain, table, note = (
        BeautifulSoup(render_block(b.markdown, b.caption), "html.parser")
        for b in section.blocks
    )
    for part in (plain, note):
        (only,) = part.find_all(True)
        assert (only.name, only.get_text().strip()) == ("p", told)
    assert table.caption.text == text
    cells = [cell.text for cell in table.find_all(["th", "td"])]
    assert cells == ["what", told, told, told]
    image = BeautifulSoup(
        render_block(f"![{escape(text)}](x.png)"), "html.parser"
    )
    assert image.img["alt"] == told
    (pre,) = BeautifulSoup(render_block(fence(text)), "html.parser")("pre")
    assert pre.text == f"{text}\n" and not pre.find_all(True)


def test_text_of_a_run_is_escaped(empty_run):
    run, main = empty_run, empty_run.recipe.evaluate.main
    write_json(run.file("metrics.json"), {"distill": {"<i>": "<b>x"}})
    name, hostile = "p|<b>*1*", "````\n</pre><script>x</script>\n# no\n| a |"
    row = make_completion(name, True, random.Random(0))
    row = row.model_copy(update={"response": hostile, "gold": "<u>2|3"})
    write_records(run.file("eval", "base", f"{main}.jsonl"), [row])
    text = write_report(run, make_tokenizer).read_text()
    assert "<b>" not in text and "<i>" not in text and "<script" not in text
    page = BeautifulSoup(text, "html.parser")
    section = page.find(id="examples")
    assert section.h3.text == name
    assert section.select_one(".answer").pre.text == f"{hostile}\n"
    assert "Reference answer: <u>2|3" in section.get_text()
    cells = page.find(id="harvest").tbody.find_all(["th", "td"])
    assert [cell.text for cell in cells] == ["<i>", "<b>x"]


def test_caps_end_at_the_scores_of_the_grid(full):
    run, page = full
    main = run.recipe.evaluate.main
    section = page.find(id="caps")
    tables = section.find_all("table")
    assert [t.caption.text for t in tables] == [
        f"{tag} on {main}" for tag in ("base", "sft", "dpo")
    ]
    shown = page.find(id="scores").get_text()
    for table in tables:
        last = table.tbody.find_all("tr")[-1].find_all("td")
        assert last[0].text in shown
    text = " ".join(section.get_text().split())
    assert "sft against base on main: mean length" in text
    # made-up texts are not as long as their made-up token counts
    assert "are not surely those sampled" in text


def test_sampled_section_is_what_the_samples_say(full, results):
    run, page = full
    name = run.recipe.evaluate.benchmarks[2].name
    section = page.find(id="sampled")
    found = results.sampled[name, 1.0]
    summary = summarize_samples(found["base"], 4)
    (row, _) = section.table.tbody.find_all("tr")
    cells = [cell.text for cell in row.find_all("td")]
    assert row.th.text == "base"
    assert cells[0] == str(stats.Interval(*summary["avg"]))
    assert cells[1] == str(stats.Interval(*summary["pass"]["4"]))
    assert cells[2] == str(stats.proportion(summary["majority"], 60))
    text = " ".join(section.get_text().split())
    assert f"pass@1 went from {100 * summary['avg'][0]:.1f} %" in text


def test_sampled_models_are_cut_to_the_same_samples(empty_run):
    """Figure, table and sentence are about the samples that all have."""
    fill_sampled(empty_run)
    name = empty_run.recipe.evaluate.benchmarks[2].name
    path = empty_run.file("eval", "sft", f"{name}.t1.jsonl")
    rows = read_records(path, Completion)
    write_records(path, [row for row in rows if row.sample < 2])
    results = read_results(empty_run)
    found = cut_alike(results.sampled[name, 1.0])
    curves = {tag: pass_curve(groups) for tag, groups in found.items()}
    assert [list(curve) for curve in curves.values()] == [[1, 2], [1, 2]]
    base = curves["base"]
    assert base[2] != pass_curve(results.sampled[name, 1.0]["base"])[2]
    text = as_text(build_sampled(results))
    assert f"| base | {base[1]} | {base[2]} |" in text
    assert f"pass@2 of base, {100 * base[2].value:.1f} %" in text
    assert f"went from {100 * base[1].value:.1f} %" in text


def test_ten_random_problems_show_every_model(full, results):
    _, page = full
    section = page.find(id="examples")
    titles = [head.text for head in section.find_all("h3")]
    assert len(titles) == len(set(titles)) == 10
    answers = section.select(".answer")
    assert len(answers) == 10 * len(TAGS)
    for title, first in zip(titles, answers[:: len(TAGS)], strict=True):
        rows = {r.problem_id: r for r in results.evals["base"]["main"]}
        row = rows[title]
        assert row.response in first.pre.text
        assert ("right" if row.correct else "wrong") in first.p.text
        assert ("helps" if row.correct else "hurts") in first["class"]
    again = as_text(build_examples(results))
    assert re.findall(r"(?m)^### (.*)$", again) == titles


def test_settings_hold_the_whole_recipe(full):
    run, page = full
    shown = page.find(id="settings").get_text()
    for text in ("sft.learning_rate", "0.001", "dpo.beta", "gate_proj"):
        assert text in shown
    for bench in run.recipe.evaluate.benchmarks:
        assert bench.path in shown


def test_published_claims_carry_their_verdict(full):
    _, page = full
    table = page.find(id="published").find_all("table")[1]
    told = {
        row.th.text: row.find_all("td")[-1].text
        for row in table.tbody.find_all("tr")
    }
    assert told["MATH-500, base → sft"] == stats.WORDS["real"]
    assert told["GSM8K, base → sft"] == stats.WORDS["open"]
    assert told["MathNet, sft → dpo"] == stats.WORDS["noise"]


def test_a_mean_that_is_noise_says_so(full, results):
    _, page = full
    shown = " ".join(page.find(id="headline").get_text().split())
    noise = " Not distinguishable from noise at this n."
    told = 0
    for found in compare_all(results).values():
        mean = stats.macro_compare(list(found.values()))
        assert mean.sentence("x", "y").endswith(noise) == (
            mean.verdict == "undecided"
        )
        told += mean.verdict == "undecided"
        assert str(mean.difference) in shown
    assert 0 < told < 4 and shown.count(noise.strip()) >= told


def test_markdown_has_the_texts_and_tables(full, results):
    run, page = full
    text = run.file("report.md").read_text(encoding="utf-8")
    for title in page.find_all("h2"):
        assert f"## {title.text}" in text
    for table in page.find_all("table"):
        assert f"**{escape(table.caption.text)}**" in text
    for part in page.select("section p"):
        told = part.text.partition(" ")[2] if part.strong else part.text
        if not part.img and "answer" not in part.parent.get("class", []):
            assert escape(told) in text
    rows = re.findall(r"(?m)^\|(.+)\|$", text)
    assert len(rows) == sum(
        len(t.find_all("tr")) + 1 for t in page.find_all("table")
    )
    assert "data:image" not in text and "<b>so</b>" in text
    shown = stats.proportion(
        sum(r.correct for r in results.evals["sft"]["easy"]), 200
    )
    assert str(shown) in text


def test_markdown_cannot_be_broken_by_a_response():
    told = fence("``` and ````")
    assert told.startswith("`````text\n") and told.endswith("\n`````")
    assert escape("a|b_[x](y)<i>") == r"a\|b\_\[x\](y)\<i\>"
    assert escape_block("12. a\n- b") == r"12\. a - b"
    assert escape_block("-0.7 points") == "-0.7 points"


def test_lm_eval_files_hold_every_verdict(full, results):
    run, _ = full
    files = export_lm_eval(results)
    assert files == export_lm_eval(results)
    assert len(files) == len(TAGS) * 5
    for tag in TAGS:
        (path,) = run.file("lm_eval", tag).glob("results_*.json")
        page = json.loads(path.read_text(encoding="utf-8"))
        for name, rows in results.evals[tag].items():
            score = page["results"][name]
            p = sum(r.correct for r in rows) / len(rows)
            assert score["exact_match,none"] == pytest.approx(p)
            error = statistics.stdev([float(r.correct) for r in rows])
            assert score["exact_match_stderr,none"] == pytest.approx(
                error / len(rows) ** 0.5
            )
            (path,) = run.file("lm_eval", tag).glob(f"samples_{name}_*.jsonl")
            lines = [json.loads(x) for x in path.read_text().splitlines()]
            right = {r.problem_id: float(r.correct) for r in rows}
            assert {x["doc"]["id"]: x["exact_match"] for x in lines} == right


def test_lm_eval_dates_are_utc_wherever_it_runs(empty_run, monkeypatch):
    fill_evals(empty_run)
    stage = {"started": "2026-01-02T03:04:05+00:00"}
    write_json(empty_run.file("stages", "evaluate-sft.json"), stage)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        export_lm_eval(read_results(empty_run))
    finally:
        monkeypatch.undo()
        time.tzset()
    (path,) = empty_run.file("lm_eval", "sft").glob("results_*.json")
    assert path.stem == "results_2026-01-02T03-04-05"
    assert json.loads(path.read_text())["date"] == 1767323045.0


def test_lm_eval_of_other_problems_is_refused(empty_run):
    fill_evals(empty_run)
    path = empty_run.file("eval", "sft", "hard.jsonl")
    rows = read_records(path, Completion)
    for row in rows:
        row.problem_id = f"other-{row.problem_id}"
    write_records(path, rows)
    with pytest.raises(LabError, match="None of the .* evaluated as hard"):
        export_lm_eval(read_results(empty_run))
    assert not empty_run.file("lm_eval").exists()


def test_export_of_nothing_is_refused(empty_run):
    with pytest.raises(LabError, match="no evaluation to export"):
        export_lm_eval(read_results(empty_run))


def test_the_export_is_a_command(empty_run, tmp_path, capsys):
    fill_evals(empty_run)
    main(empty_run.path)
    written = capsys.readouterr().out.splitlines()
    assert len(written) == len(TAGS) * 5
    assert all(line.startswith("written: ") for line in written)
    with pytest.raises(LabError, match="There is no run in"):
        main(tmp_path)


def test_two_models_with_other_problems_are_a_gap_not_a_number(empty_run):
    run = empty_run
    fill_evals(run)
    path = run.file("eval", "sft", "main.jsonl")
    rows = read_records(path, Completion)
    for row in rows:
        row.problem_id = f"other-{row.problem_id}"
    write_records(path, rows)
    results = read_results(run)
    headline = as_text(build_headline(results, compare_all(results)))
    gaps = as_text(results.list_gaps())
    assert "sft against base on main" in gaps
    assert "not about the same problems" in gaps
    assert "dpo helps on main against base" in headline
    assert "sft helps on main" not in headline


def test_one_problem_has_no_mean_and_the_report_says_so(empty_run):
    run = empty_run
    fill_evals(run)
    fill_sampled(run)
    for tag in TAGS:
        path = run.file("eval", tag, "hard.jsonl")
        write_records(path, read_records(path, Completion)[:1])
    benches = [
        b.model_copy(update={"n": 1}) if b.name == "hard" else b
        for b in run.recipe.evaluate.benchmarks
    ]
    asked = {"benchmarks": tuple(benches)}
    evaluate = run.recipe.evaluate.model_copy(update=asked)
    recipe = run.recipe.model_copy(update={"evaluate": evaluate})
    for tag in ("base", "sft"):
        path = run.file("eval", tag, "hard.t1.jsonl")
        write_records(path, read_records(path, Completion)[:4])
    results = read_results(RunDir(run.path, recipe))
    text = as_text(build_headline(results, compare_all(results)))
    build_sampled(results)
    gaps = as_text(results.list_gaps())
    assert "the mean over benchmarks, sft against base" in gaps
    assert "has one problem" in gaps
    assert "several samples on hard" in gaps
    assert "sft helps on main" in text
    assert "mean over 4 benchmarks" not in text


def test_small_helpers():
    assert show_seconds(3.04) == "3.0 s"
    assert show_seconds(75) == "1 min 15 s"
    assert show_seconds(7260) == "2 h 1 min"
    assert flatten({"a": {"b": 1.5}, "c": None, "d": [1]}) == [
        ["a.b", "1.5"],
        ["c", "–"],
    ]
    shares = {"a": {"k": 1, "n": 4, "p": 0.25}, "b": {"k": 1, "text": "one"}}
    assert flatten(shares) == [["a", "1/4 (25.0 %)"], ["b", "one"]]
    assert is_number("12") and is_number("-1.5") and not is_number("3/4")
