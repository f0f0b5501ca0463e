"""Tables of published and own results: nothing invented, nothing mixed up."""

import json

import pandas as pd
from typer.testing import CliRunner

from diffseg.eval.check import published, read_reference
from diffseg.eval.show import tables


def summary(model=tables.PAPER_MODEL, note="", size=512, dataset="coco_stuff27", accuracy=0.73, name="diffseg"):
    found = {"accuracy": accuracy, "miou": 0.44, "interval": {"accuracy": [0.7, 0.75], "miou": [0.42, 0.46]}}
    return {
        "run": "r", "model": model, "dataset": {"name": dataset, "note": note}, "size": size, "skipped": {},
        "timestep": 300, "images": 3, "protocols": {},
        "segmenters": {name: found | {"segments": 5.0, "told": None, "settings": {"threshold": 1.1}}},
    }  # fmt: skip


def test_only_the_papers_model_on_the_whole_benchmark_stands_beside_the_paper():
    others = [summary(model="mini"), summary(note="16 of 2,175 images of the split"), summary(dataset="cityscapes")]
    rows = tables.paper_table("coco_stuff27", others).set_index("method")
    assert (rows["miou"] == tables.NOT_RUN).all()
    assert list(rows.index) == list(published()["coco_stuff27"])
    rows = tables.paper_table("coco_stuff27", [*others, summary()]).set_index("method")
    ours = rows.loc["diffseg_512"]
    assert (ours["accuracy published"], ours["accuracy"], ours["accuracy difference"]) == (72.5, 73.0, "+0.5")
    assert (ours["miou interval"], ours["miou difference"]) == ("42.0 to 46.0", "+0.4")
    assert (rows.drop("diffseg_512")["miou"] == tables.NOT_RUN).all()
    assert tables.paper_table("coco_stuff27", [summary(size=320)]).set_index("method").loc["diffseg_320", "miou"] == 44


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
        known = published()[benchmark]["diffseg_512"]
        for row in read_reference(benchmark)["expected"]:
            assert row["value"] == known[row["metric"]] / 100
