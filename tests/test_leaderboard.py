"""The page of all runs: what stands in which board, groups, published rows, and a browser that sorts and switches."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from diffseg.errors import UserError
from diffseg.eval.protocols import Majority, OneToOne
from diffseg.eval.score import known_protocols
from diffseg.eval.show.leaderboard import boards_of, entries_in, groups_of, table_of, write_leaderboard
from tests.browser import Browser
from tests.test_eval import SMALL, evaluated


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder of two runs on the same images, and one on others."""
    place = tmp_path_factory.mktemp("runs")
    rules = "protocol=[diffseg,majority]"
    evaluated(place, *SMALL, rules, "+segmenter@segmenters.grid=grid")
    evaluated(place, *SMALL, rules, "model=mini_untrained")
    evaluated(place, *SMALL, "dataset.count=2", "+segmenter@segmenters.whole=whole")
    return place


def test_every_number_is_that_of_its_run(runs, tmp_path):
    entries = entries_in([runs])
    assert len(entries) == 5
    boards = boards_of(entries, tmp_path)
    assert [(board.protocol, len(board.rows)) for board in boards] == [("diffseg", 3), ("majority", 3), ("diffseg", 2)]
    for board in boards:
        values = [row.value for row in board.rows]
        assert values == sorted(values, reverse=True)
    by_run = {path.parent.name: json.loads(path.read_text()) for path in runs.glob("*/summary.json")}
    for entry in entries:
        scores = by_run[entry.run.name]["protocols"]["diffseg"][entry.method]
        rows = [
            row for board in boards if board.protocol == "diffseg" and board.data == entry.data for row in board.rows
        ]
        (row,) = [row for row in rows if row.method == entry.method and row.backbone == entry.summary["model"]]
        assert row.value == pytest.approx(scores["miou"])
        assert [row.low, row.high] == pytest.approx(scores["interval"]["miou"])


def test_groups_are_what_chance_cannot_tell_apart():
    """Twenty images, each of two classes; the second method errs in one pixel of each, the third in half of all."""
    right = np.array([[50, 0], [0, 50], [0, 0]])
    rng = np.random.default_rng(0)
    near = [right + np.array([[-d, d], [0, 0], [0, 0]]) for d in rng.integers(-1, 2, 20).clip(0)]
    far = [np.array([[25, 25], [25, 25], [0, 0]])] * 20
    rule = OneToOne(absent=False)
    statistics = [rule.statistics(tables) for tables in ([right] * 20, [right] * 20, near, far, far)]
    groups = groups_of(statistics, lambda sums: {"accuracy": rule.metrics(sums)["accuracy"]})
    assert groups == [1, 1, 2, 3, 3]


def test_a_folder_with_summary_and_counts_is_enough(runs, tmp_path, commands):
    """Without run.json, maps and report; a damaged one beside it is left out and named."""
    source = next(path.parent for path in runs.glob("*/summary.json") if (path.parent / "grid").is_dir())
    handed_in = tmp_path / "theirs"
    for method in ("diffseg", "grid"):
        (handed_in / "a" / method).mkdir(parents=True)
        shutil.copy(source / method / "images.parquet", handed_in / "a" / method)
    shutil.copy(source / "summary.json", handed_in / "a")
    (handed_in / "b").mkdir()
    (handed_in / "b" / "summary.json").write_text("{}")
    ran = commands("leaderboard", handed_in, "--out", "board", cwd=tmp_path)
    assert (ran.returncode, ran.stdout.strip()) == (0, "board/index.html"), ran.stderr
    assert "leaderboard: left out" in ran.stderr
    table = pd.read_csv(tmp_path / "board" / "leaderboard.csv")
    assert sorted(zip(table["protocol"], table["method"], strict=True)) == [
        (rule, method) for rule in ("diffseg", "majority") for method in ("diffseg", "grid")
    ]
    assert "| 1 | diffseg | mini |" in (tmp_path / "board" / "leaderboard.md").read_text()
    page = (tmp_path / "board" / "index.html").read_text()
    assert ">report</a>" not in page
    assert not re.findall(r'(?:src|href)="http', page)
    empty = commands("leaderboard", tmp_path / "board", cwd=tmp_path)
    assert empty.returncode == 2
    assert "no scored run is there" in empty.stderr


def test_the_same_method_is_shown_once_and_published_rows_only_beside_their_own(runs, tmp_path):
    twice = entries_in([runs, *runs.glob("*")])
    assert len(twice) == 5
    boards = boards_of(twice, tmp_path)
    assert all(row.group is not None for board in boards for row in board.rows)  # parts of scenes: nothing is published
    assert len(table_of(boards)) == 8
    with pytest.raises(UserError, match="there is no folder"):
        entries_in([tmp_path / "nothing"])


def test_published_rows_stand_beside_the_whole_benchmark(runs, tmp_path):
    entries = entries_in([runs])
    for entry in entries:
        entry.summary["dataset"] |= {"published": "coco_stuff27", "note": ""}
        entry.summary["size"] = 512
    diffseg, majority, _ = boards_of(entries, tmp_path)
    published = [row for row in diffseg.rows if row.group is None]
    assert {row.method for row in published} >= {"DiffSeg"}
    assert all(row.note.startswith("published: ") for row in published)
    assert not [row for row in majority.rows if row.group is None]
    text = write_leaderboard([diffseg], tmp_path).read_text()
    assert 'class="published"' in text


def test_known_protocols_are_those_of_the_configuration():
    known = known_protocols()
    assert known["diffseg"] == OneToOne()
    assert known["strict"] == OneToOne(absent=False)
    assert isinstance(known["majority"], Majority)


def test_a_browser_switches_and_sorts(runs, tmp_path):
    boards = boards_of(entries_in([runs]), tmp_path)
    path = write_leaderboard(boards, tmp_path)
    shown = "[...document.querySelectorAll('section')].filter(s => !s.hidden)"
    with Browser() as browser:
        page = browser.open(path.as_uri())
        page.evaluate(
            "document.getElementById('protocol').value = 'majority';"
            "document.getElementById('protocol').dispatchEvent(new Event('change'))"
        )
        assert page.evaluate(f"{shown}.map(s => s.dataset.protocol)") == ["majority"]
        page.click("section:not([hidden]) th:nth-child(7) button")
        segments = page.evaluate(f"[...{shown}[0].querySelectorAll('tbody tr')].map(r => Number(r.cells[6].innerText))")
        assert len(segments) == 3
        assert segments == sorted(segments, reverse=True)
        assert (page.problems, page.requests) == ([], [path.as_uri()])
