"""Tables of published and own results: nothing invented, nothing mixed up."""

import json

import pandas as pd
from typer.testing import CliRunner

from diffseg.eval.check import read_reference
from diffseg.eval.show import tables
from diffseg.eval.show.published import published_beside, published_rows


def summary(model=tables.PAPER_MODEL, note="", size=512, dataset="coco_stuff27", accuracy=0.73, name="diffseg"):
    interval = {"accuracy": [0.7, 0.75], "miou": [0.42, 0.46]}
    scores = {name: {"accuracy": accuracy, "miou": 0.44, "interval": interval}}
    more = {"segments": 5.0, "told": None, "images": 3, "settings": {"threshold": 1.1}}
    facts = {"name": dataset, "note": note, "classes": [], "size": 512, "published": None, "paper_threshold": None}
    return {
        "run": "r", "model": model, "dataset": facts, "size": size, "skipped": {},
        "timestep": 300, "images": 3, "protocol": "diffseg", "protocols": {"diffseg": scores},
        "segmenters": {name: scores[name] | more}, "scored_with": "", "headlines": {"diffseg": "miou"},
        "granularity": {},
    }  # fmt: skip


def test_only_the_papers_model_on_the_whole_benchmark_stands_beside_the_paper():
    others = [summary(model="mini"), summary(note="16 of 2,175 images of the split"), summary(dataset="cityscapes")]
    rows = tables.paper_table("coco_stuff27", others)
    assert (rows["miou"] == tables.NOT_RUN).all()
    assert len(rows) == sum(row["dataset"] == "coco_stuff27" for row in published_rows())
    rows = tables.paper_table("coco_stuff27", [*others, summary()])
    (ours,) = rows[rows["miou"] != tables.NOT_RUN].to_dict("records")
    assert (ours["method"], ours["backbone"], ours["protocol"], ours["size"]) == ("DiffSeg", "SD 1.4", "diffseg", 512)
    assert (ours["accuracy published"], ours["accuracy"], ours["accuracy difference"]) == (72.5, 73.0, "+0.5")
    assert (ours["miou interval"], ours["miou difference"]) == ("42.0 to 46.0", "+0.4")
    small = tables.paper_table("coco_stuff27", [summary(size=320)])
    assert small[small["miou"] != tables.NOT_RUN]["size"].tolist() == [320]


def test_an_interval_without_an_end_is_none():
    assert tables.interval({"interval": {"miou": [0.1, None]}}, "miou") == ""
    assert tables.interval({"interval": {"miou": [0.1, 0.25]}}, "miou") == "10.0 to 25.0"


def test_a_published_row_stands_beside_its_own_protocol_and_size_only():
    beside = published_beside("coco_stuff27", "diffseg", 512)
    assert {row["method"] for row in beside} == {"DiffSeg", "K-Means-C", "K-Means-S", "DBSCAN"}
    assert {row["method"] for row in published_beside("coco_stuff27", "dataset", 320)} >= {"STEGO", "PiCIE"}
    (cut,) = (
        r for r in published_beside("voc", "diffcut", 128) if r["method"] == "DiffCut" and r["refinement"] == "PAMR"
    )
    assert (cut["miou"], cut["backbone"], cut["source"]) == (65.2, "SSD-1B", "quoted")
    assert published_beside("coco_stuff27", "diffseg", 500) == published_beside(None, "diffseg", 512) == []
    of_unknown_protocol = [row for row in published_rows() if row["protocol"] is None]
    assert {row["method"] for row in of_unknown_protocol} == {"Falcon", "Seg4Diff"}
    assert all(row["note"] for row in of_unknown_protocol)


def test_the_command_writes_what_was_run(tmp_path):
    for i, made in enumerate((summary(model="mini", dataset="scenes"), summary(model="mini", accuracy=0.6))):
        (tmp_path / "runs" / str(i)).mkdir(parents=True)
        (tmp_path / "runs" / str(i) / "summary.json").write_text(json.dumps(made))
    (tmp_path / "runs" / "1" / "summary-320.json").write_text("{")  # of a killed process
    arguments = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    app = tables.typer.Typer()
    app.command()(tables.main)
    assert CliRunner().invoke(app, arguments).exit_code == 0
    rows = pd.read_csv(tmp_path / "out" / "measured-mini.csv")
    assert sorted(rows["data"]) == ["coco_stuff27", "scenes"]
    assert sorted(rows["accuracy"]) == [60.0, 73.0]
    assert "| not run |" in (tmp_path / "out" / "coco_stuff27.md").read_text()


def test_the_gates_for_the_papers_results_hold_the_published_values():
    for benchmark in tables.BENCHMARKS:
        (known,) = (row for row in published_beside(benchmark, "diffseg", 512) if row["method"] == "DiffSeg")
        for row in read_reference(benchmark)["expected"]:
            assert row["value"] == known[row["metric"]] / 100
