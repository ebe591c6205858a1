"""Problem sets from a hub: the real client, against a server of our own."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("datasets")

from local_hub import LocalHub

from helpers.problems import SOURCES, find_kept, kept_file, load_up_to

GSM_HARD = SOURCES["gsm-hard"]
LOAD = """
import json, sys
from helpers.problems import hash_problems, load_source, load_up_to
from helpers.base.errors import LabError
name, most = sys.argv[1], int(sys.argv[2])
where = ""
try:
    if most:
        rows = load_up_to(name, most)
    else:
        rows, report = load_source(name)
        where = report.where
except LabError as error:
    print(json.dumps({"error": str(error)}))
else:
    found = [[row.problem, row.answer] for row in rows]
    state = hash_problems(name)
    print(json.dumps({"rows": found, "where": where, "hash": state}))
"""


@pytest.fixture
def hub(tmp_path):
    hub = LocalHub(tmp_path / "hub")
    yield hub
    hub.close()


@pytest.fixture
def load(tmp_path, hub):
    """Load a set in a process that knows this hub and an empty cache."""

    def run(name, most=0):
        changes = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        environment = {**os.environ, **changes}
        environment.pop("MATHSLM_DATA_DIR", None)
        done = subprocess.run(
            [sys.executable, "-c", LOAD, name, str(most)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])

    return run


def lines(rows):
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def make_sums(n, start=0):
    return lines(
        {"input": f"What is {i} + 1?", "code": "…", "target": i + 1.0}
        for i in range(start, start + n)
    )


def pack_parquet(rows):
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, file, row_group_size=50)
    return file.getvalue()


def test_a_set_without_a_pinned_commit_stays_at_the_first_one_read(hub, load):
    first = hub.add_commit(GSM_HARD.hub_id, {"set.jsonl": make_sums(3)})
    found = load("gsm-hard")
    assert found["rows"][0] == ["What is 0 + 1?", "1"]
    assert found["where"] == f"{GSM_HARD.hub_id}@{first[:12]}"
    assert found["hash"] == f"{GSM_HARD.hub_id}@{first}"
    hub.add_commit(GSM_HARD.hub_id, {"set.jsonl": make_sums(3, start=50)})
    assert load("gsm-hard") == found
    hub.close()  # offline from here on
    assert load("gsm-hard") == found


def test_a_pinned_commit_is_read_and_its_configs_are_joined(hub, load):
    source = SOURCES["aime-2025"]
    card = ["configs:"]
    for config in source.configs:
        card += [f"- config_name: {config}", "  data_files:"]
        card += ["  - split: test", f"    path: {config}.jsonl"]
    files = {
        f"{config}.jsonl": lines(
            {"question": f"{config} {i}?", "answer": str(i)} for i in range(15)
        )
        for config in source.configs
    }
    files["README.md"] = "\n".join(["---", *card, "---", "", "# AIME"])
    hub.add_commit(source.hub_id, files, source.revision)
    empty = {name: lines([{"question": "?", "answer": "0"}]) for name in files}
    hub.add_commit(source.hub_id, {**empty, "README.md": files["README.md"]})
    found = load("aime-2025")
    assert len(found["rows"]) == 30
    assert found["rows"][15] == ["AIME2025-II 0?", "0"]
    assert found["hash"].endswith(source.revision)


def make_worked(n, correct_every=1):
    """Rows as NuminaMath-QwQ has them."""
    return [
        {
            "prompt": f"What is {i} + 1?",
            "response": f"So \\boxed{{{i + 1}}}.",
            "ground_truth": str(i + 1),
            "correct": i % correct_every == 0,
        }
        for i in range(n)
    ]


def test_a_stream_is_filtered_as_it_is_read(hub, load):
    packed = pack_parquet(make_worked(200, correct_every=3))
    files = {"data/train-00000-of-00001.parquet": packed}
    hub.add_commit(SOURCES["numina-qwq"].hub_id, files)
    found = load("numina-qwq")
    assert any("/data/train-00000" in line for line in hub.asked)
    assert len(found["rows"]) == 67
    assert found["rows"][1] == ["What is 3 + 1?", "4"]


def test_of_a_stream_no_more_is_read_than_was_asked_for(hub, load):
    files = {"train.parquet": pack_parquet(make_worked(30))}
    hub.add_commit(SOURCES["numina-qwq"].hub_id, files)
    assert len(load("numina-qwq", 12)["rows"]) == 12
    assert len(load("numina-qwq", 100)["rows"]) == 30


def test_rows_left_out_of_the_first_ones_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MATHSLM_DATA_DIR", str(tmp_path))
    rows = make_worked(9, correct_every=3)
    (tmp_path / "numina-qwq.jsonl").write_text(lines(rows))
    with pytest.warns(UserWarning, match="9 of 9 rows read, 3 kept"):
        assert len(load_up_to("numina-qwq", 100)) == 3


def test_a_changed_schema_is_named(hub, load):
    row = {"problem_text": "1 + 1?", "target": 2.0}
    hub.add_commit(GSM_HARD.hub_id, {"set.jsonl": lines([row])})
    error = load("gsm-hard")["error"]
    assert "there is no column input" in error
    assert "problem_text" in error


def test_a_set_that_is_gone_is_an_error(load):
    error = load("gsm-hard")["error"]
    assert "reasoning-machines/gsm-hard cannot be loaded" in error
    assert "MATHSLM_DATA_DIR" in error


def test_a_damaged_file_of_commits_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = kept_file()
    assert tmp_path in path.parents
    path.parent.mkdir(parents=True)
    Path(path).write_text('{"reasoning-machines/gsm-hard": "newest"}')
    with pytest.raises(Exception, match=r"revisions\.json does not hold"):
        find_kept(GSM_HARD)
