"""Many settings and many protocols over one count: by hand, and through the harness."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from diffseg.eval.evaluation import MovedError
from diffseg.eval.granularity import best_of_each, granularity
from diffseg.eval.protocols import Majority, OneToOne
from diffseg.eval.show.worth import ranks, worth_table
from diffseg.methods.controls import Grid
from diffseg.observed import Batch
from tests.test_eval import SMALL, evaluated


def table(*rows):
    """Pixels of two classes in segments, and nothing void."""
    return np.array([*rows, [0] * len(rows[0])])


HALF, WHOLE = table([5], [5]), table([10, 0], [0, 10])  # one segment over two classes; each class its own
FINE = table([5, 5, 0, 0], [0, 0, 5, 5])  # as good as WHOLE by majority, with twice the segments


def test_the_best_common_and_the_best_setting_of_each_image():
    hists = [[WHOLE, HALF], [HALF, FINE]]  # each setting is right on one of the two images
    curve = granularity(["coarse", "fine"], hists, [np.array([1, 3]), np.array([4, 4])], Majority(), "accuracy")
    assert curve["settings"] == ["coarse", "fine"]
    assert curve["segments"] == [2, 4]
    assert curve["values"] == pytest.approx([25 / 30, 25 / 30])
    assert (curve["ods"], curve["ods_setting"]) == (pytest.approx(25 / 30), "coarse")
    assert curve["ois"] == 1
    assert curve["area"] == pytest.approx(25 / 30)
    assert curve["ois_interval"] == (1, 1)
    chosen = best_of_each([Majority().statistics(h) for h in hists], Majority(), "accuracy")
    assert chosen["tp"].tolist() == [[10, 10], [10, 10]]


def test_settings_come_in_the_order_of_their_segments_and_the_area_is_over_their_logarithm():
    hists = [[FINE, FINE], [HALF, HALF], [WHOLE, WHOLE]]
    segments = [np.full(2, n) for n in (8, 1, 2)]
    curve = granularity(["a", "b", "c"], hists, segments, OneToOne(absent=False), "miou")
    assert curve["settings"] == ["b", "c", "a"]
    assert curve["values"] == [0.25, 1, 0.5]  # half of one class of two; all; half of each
    steps = (0.25 + 1) / 2 * 1 + (1 + 0.5) / 2 * 2  # one doubling, then two
    assert curve["area"] == pytest.approx(steps / 3)
    low, high = curve["area_interval"]
    assert low == pytest.approx(high)  # all images are alike


@pytest.mark.filterwarnings("error")
def test_the_curve_of_a_single_image():
    curve = granularity(["a", "b"], [[HALF], [WHOLE]], [np.array([1]), np.array([2])], Majority(), "accuracy")
    assert (curve["ods"], curve["ods_setting"], curve["area"]) == (1, "b", 0.75)


def test_ranks_by_hand():
    assert ranks({"a": 0.5, "b": 0.9, "c": 0.5, "d": None}) == {"a": 2, "b": 1, "c": 2, "d": 4}


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (8, 8), (1, 2)])
def test_a_grid_shows_nothing_of_the_image(rows, columns):
    batch = Batch([np.zeros((3, 64, 96))], lambda look, needs: pytest.fail("a grid needs no pass"))
    labels = Grid(rows, columns).segment(batch[0])
    areas = np.bincount(labels.ravel())
    assert len(areas) == rows * columns
    assert areas.max() - areas.min() <= 64 + 96
    assert labels[0, 0] == 0
    assert labels[-1, -1] == rows * columns - 1


def test_a_finished_run_is_scored_under_any_protocols_without_a_model(tmp_path, commands):
    controls = ["+segmenter@segmenters.grid=grid", "+segmenter@segmenters.whole=whole"]
    plain = evaluated(tmp_path, *SMALL, *controls)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*/labels/*.png")}
    rules = ["diffseg", "strict", "diffcut", "majority", "dataset", "names", "regions", "boundaries"]
    again = ["stages=[score,report]", f"protocol=[{','.join(rules)}]", f"run={plain['folder']}", "runs=out"]
    ran = commands(*SMALL, *controls, *again, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "predict" not in ran.stderr
    assert "what a protocol is worth" in ran.stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*/labels/*.png")} == stamps
    many = evaluated(tmp_path, *SMALL, *controls, f"protocol=[{','.join(rules)}]")
    assert list(many["protocols"]) == rules
    assert many["protocols"]["diffseg"] == plain["protocols"]["diffseg"]
    assert many["segmenters"] == plain["segmenters"]
    whole = {rule: scores["whole"] for rule, scores in many["protocols"].items()}
    assert whole["strict"]["accuracy"] == whole["diffseg"]["accuracy"] == whole["majority"]["accuracy"]
    assert whole["boundaries"]["f"] == 0
    low, high = whole["regions"]["interval"]["vi"]
    assert 0 < low < whole["regions"]["vi"] < high  # bits: not bound by 1
    grid = {rule: scores["grid"] for rule, scores in many["protocols"].items()}
    assert grid["majority"]["accuracy"] > grid["diffseg"]["accuracy"]
    headings = worth_table(many).headings
    assert [h.partition("\n")[0] for h in headings] == ["segmenter", *rules]
    page = (Path(many["folder"]) / "report.html").read_text()
    assert "What a protocol is worth" in page
    assert "<svg" in page


def test_a_run_led_by_regions_has_a_report(tmp_path):
    summary = evaluated(tmp_path, *SMALL, "protocol=[regions]")
    assert "accuracy" not in summary["segmenters"]["diffseg"]
    assert 0 < summary["segmenters"]["diffseg"]["covering"] <= 1
    assert (Path(summary["folder"]) / "report.html").exists()


def test_a_run_that_varied_a_setting_has_curves(tmp_path):
    summary = evaluated(tmp_path, *SMALL, "vary={threshold:[0.2,0.6,1.2]}", "protocol=[diffseg,majority,regions]")
    curves = summary["granularity"]["diffseg"]
    assert list(curves) == ["diffseg", "majority", "regions"]
    for rule, curve in curves.items():
        assert curve["segments"] == sorted(curve["segments"])
        assert curve["ods"] == max(curve["values"]) <= curve["ois"]
        assert curve["ods"] == summary["protocols"][rule][curve["ods_setting"]][curve["metric"]]
        assert min(curve["values"]) <= curve["area"] <= max(curve["values"])
    assert "Without a chosen setting" in (Path(summary["folder"]) / "report.html").read_text()


def test_the_gate_holds_numbers_of_any_protocol(tmp_path):
    rules = "protocol=[diffseg,regions]"
    found = evaluated(tmp_path, *SMALL, rules)["protocols"]["regions"]["diffseg"]["covering"]
    row = {"segmenter": "diffseg", "protocol": "regions", "metric": "covering", "tolerance": 0.01}
    path = tmp_path / "mine.yaml"
    for value, moved in ((found + 0.005, False), (found + 0.02, True)):
        path.write_text(yaml.safe_dump({"run": {"images": 6}, "expected": [{**row, "value": value}]}))
        checked = [*SMALL, rules, "stages=[check]", f"reference={path}"]
        if moved:
            with pytest.raises(MovedError, match="1 of 1 metrics moved"):
                evaluated(tmp_path, *checked)
        else:
            evaluated(tmp_path, *checked)
