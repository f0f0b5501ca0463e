"""The harness: what a run does, what it survives, what it refuses. Small scenes, the embedded model, real processes."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_class, instantiate
from omegaconf import open_dict
from PIL import Image
from rich.console import Console

import diffseg.conf
from diffseg.attention import Look, Needs, Observation
from diffseg.backbones.base import recommended
from diffseg.backbones.diffusion import DiffusionModel
from diffseg.datasets.base import DataError, read_map
from diffseg.datasets.coco_stuff import CLASSES
from diffseg.datasets.scenes import Scenes, scene
from diffseg.errors import UserError
from diffseg.eval import evaluation, predict, run, score
from diffseg.eval.check import check, read_reference
from diffseg.eval.metrics import agreement
from diffseg.eval.protocols import OneToOne
from diffseg.eval.runs import Run, find_run
from diffseg.eval.show.ablations import read_ablations
from diffseg.eval.show.examples import example
from diffseg.eval.show.tables import list_command, result_table, runs_table
from diffseg.eval.show.worth import differences_table
from diffseg.methods.clustering import KMeans, KMeansOracle
from diffseg.methods.controls import ColourKMeans, Whole
from diffseg.methods.merging import Merging
from diffseg.observed import Batch, Prompt
from tests.test_segmentation import CASES, GOLDEN, golden_maps

CONF = Path(diffseg.conf.__file__).parent
SMALL = ["dataset.count=6", "dataset.size=128", "segmenters.diffseg.anchors=8", "device=cpu", "workers=0"]
WITHOUT_MODEL = ["~segmenters.diffseg", "+segmenter@segmenters.grid=grid", "dataset.count=2", "dataset.size=64"]
WITHOUT_MODEL += ["device=cpu", "workers=0"]
COCO = Path(__file__).parents[2] / "shared" / "data" / "coco"


def configured(*overrides):
    with initialize_config_module("diffseg.conf", version_base="1.3"):
        config = compose("config", [*overrides], return_hydra_config=True)
    choices = config.hydra.runtime.choices
    with open_dict(config):
        del config["hydra"]
    return run.resolved(config), {key: choices.get(key) or key for key in ("dataset", "model")}


def evaluated(runs, *overrides):
    return evaluation.evaluate(run.experiment_of(*configured(f"runs={runs}", *overrides)))


def maps_of(folder):
    return {p.relative_to(folder).as_posix(): np.asarray(Image.open(p)) for p in sorted(Path(folder).rglob("*.png"))}


# --- configuration ----------------------------------------------------------------------------------------------------


def batch_of(pixels, maps):
    """Images whose pass has shown these maps; random features and attention to words where such are asked for."""

    def see(look, needs):
        g = torch.Generator().manual_seed(0)
        grid = torch.randn(len(pixels), 8, 16, 16, generator=g)
        cross = {(16, 16): torch.softmax(torch.randn(len(pixels), 256, 4, generator=g), -1)} if needs.cross else {}
        return Observation(maps, cross, dict.fromkeys(needs.features, grid))

    return Batch(pixels, see, needs={Look(prompted=True): Needs(cross=True)}, prompts=[PROMPT] * len(pixels))


PROMPT = Prompt("sky and grass", (3, 0), [[1], [2]], 27)


def options(group):
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes_and_instantiates(experiment):
    config, _ = configured(f"experiment={experiment}")
    segmenters, _ = run.segmenters_of(config, lambda: ["blocks.0.attn", "blocks.1.attn"])
    assert [run.segmenter_of(settings, name).made for name, settings in segmenters.items()]
    instantiate(config["tracker"])
    for part in ("dataset", "model"):  # neither data nor weights are at hand for all of them
        module, _, name = config[part]["_target_"].rpartition(".")
        assert callable(getattr(get_class(module), name)) if part == "model" else get_class(config[part]["_target_"])


@pytest.mark.parametrize("segmenter", options("segmenter"))
def test_every_segmenter_instantiates_and_labels_each_pixel(segmenter):
    config, _ = configured(f"+segmenter@segmenters.other={segmenter}")
    other = instantiate(config["segmenters"]["other"])
    pixels, maps = torch.rand(3, 64, 64) * 2 - 1, {}
    for n in (16, 8):
        maps[n, n] = torch.softmax(3 * torch.randn(n * n, n * n), 1)
    truth = np.repeat([0, 3], 32)[:, None].repeat(64, 1)
    batch = batch_of([pixels], {size: m[None] for size, m in maps.items()})
    (labels,) = predict.segment(other, batch, [truth])
    assert labels.shape == (64, 64)
    assert labels.min() >= 0
    assert np.issubdtype(labels.dtype, np.integer)


def test_the_models_own_defaults_come_before_the_papers():
    own = json.loads((Path(diffseg.__file__).parent / "mini" / "weights" / "diffseg.json").read_text())
    config, _ = configured()
    assert config["segmenters"]["diffseg"]["threshold"] == own["threshold"]
    assert config["timestep"] == own["timestep"]
    config, _ = configured("experiment=cityscapes")
    assert (config["segmenters"]["diffseg"]["threshold"], config["timestep"]) == (0.9, 300)
    config, _ = configured("experiment=coco", "model=mini")
    assert config["segmenters"]["diffseg"]["threshold"] == own["threshold"]


@pytest.fixture
def refused(monkeypatch, capfd, tmp_path):
    """A function that runs the command in this process and returns the sentence with which it is refused."""

    def run_command(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["diffseg-eval", *arguments])
        with pytest.raises(SystemExit) as ended:
            run.main()
        said = capfd.readouterr()
        assert (ended.value.code, said.out) == (2, "")
        assert "\n" not in said.err.strip()
        assert not list(tmp_path.iterdir())
        return said.err

    yield run_command
    GlobalHydra.instance().clear()
    os.environ.pop("HYDRA_FULL_ERROR", None)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataset.cuont=3", "there is no setting dataset.cuont; did you mean dataset.count?"),
        ("segmenters.diffseg.treshold=1", "did you mean segmenters.diffseg.threshold?"),
        ("dataset=coco_stuf27", "did you mean coco_stuff27?"),
        ("experiment=ccoo", "did you mean coco?"),
        ("model=CompVis/x", "is given as model=pretrained model.name=CompVis/x"),
        ("model=/tmp/x", "is given as model=pretrained model.name=/tmp/x"),
        ("bach_size=1", "did you mean batch_size?"),
        ("datset=scenes", "did you mean dataset?"),
        ("threshold=0.5", "there is no setting threshold; did you mean segmenters.diffseg.threshold?"),
        ("treshold=0.5", "did you mean segmenters.diffseg.threshold?"),
        ("protocol=[diffseg,strickt]", "did you mean strict?"),
        ("~segmenters.diffsek", "did you mean segmenters.diffseg?"),
    ],
)
def test_a_misspelt_override_is_refused_with_the_nearest_name(refused, override, words):
    assert words in refused(override)


@pytest.mark.parametrize("override", ["vary={threshold:[0.7,0.9]", "dataset.count", "vary={threshold=[0.7]}"])
def test_what_is_no_override_is_one_sentence_not_a_grammar(refused, override):
    said = refused("dataset.count=2", override)
    assert said.startswith(f"diffseg-eval: {override}: cannot be read as key=value")


@pytest.mark.parametrize(
    "arguments",
    [
        ["dataset=folder", "dataset.root=x", "dataset.ignore=0"],
        ["segmenters.diffseg.threshold=[0.7,0.9]"],
        ["+segmenter@segmenters.km=kmeans_c", "segmenters.km.clusters=4"],
        ["experiment=controls", "segmenters.colour.place=1"],
        ["hydra/launcher=local", "~segmenters.diffseg", "tracker=wandb", "tracker.mode=offline"],
        ["--package", "dataset", "--resolve"],
        ["--config-dir", "/", "hydra.searchpath=[file:///usr]"],
    ],
    ids=str,
)
def test_right_overrides_and_hydras_own_options_pass(arguments, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["diffseg-eval", "--cfg", "job", *arguments])
    run.main()
    assert "count:" in capfd.readouterr().out
    GlobalHydra.instance().clear()
    os.environ.pop("HYDRA_FULL_ERROR", None)


# --- a run ------------------------------------------------------------------------------------------------------------


def test_the_command_runs_continues_and_then_does_nothing(tmp_path, commands):
    args = ["runs=out", *SMALL]
    first = commands(*args, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "scenes, 6 images" in first.stdout
    assert "predict: 6 images segmented" in first.stderr
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name.startswith("scenes-6-mini-diffseg-")
    made = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    maps = {f"diffseg/labels/{i:06d}.png" for i in range(6)}
    assert made == maps | {
        "config.yaml", "run.json", "summary.json", "report.html", "images.html", "diffseg/images.parquet",
        "grid.parquet", "times/0-1.json",
    }  # fmt: skip
    stamps = {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    summary = (folder / "summary.json").read_bytes()

    again = commands(*args, cwd=tmp_path)
    assert "predict: nothing to do" in again.stderr
    assert "score: nothing to do" in again.stderr
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")} == stamps

    (folder / "diffseg/labels/000003.png").unlink()
    (folder / "summary.json").unlink()
    continued = commands(*args, cwd=tmp_path)
    assert "continuing: 5 of 6 label maps are there" in continued.stderr
    assert "predict: 1 image segmented" in continued.stderr
    assert (folder / "summary.json").read_bytes() == summary

    other = commands(*args, "segmenters.diffseg.threshold=0.3", cwd=tmp_path)
    assert "predict: 6 images segmented" in other.stderr
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_labels_and_scores_do_not_depend_on_how_the_work_is_done(tmp_path):
    small = [*SMALL, "stages=[predict,score]"]
    plain = evaluated(tmp_path / "plain", *small)
    expected = maps_of(plain["folder"])
    assert len(expected) == 6
    for name, how in {"batch": ["batch_size=4"], "one": ["batch_size=1", "workers=2"]}.items():
        other = evaluated(tmp_path / name, *small, *how)
        assert other["segmenters"] == plain["segmenters"]
        np.testing.assert_equal(maps_of(other["folder"]), expected)
    shards = [evaluated(tmp_path / "shards", *small, f"shard=[{i},3]") for i in (2, 0, 1)]
    assert shards[0] == shards[1] == {}  # the others' maps are still lacking
    assert shards[2]["segmenters"] == plain["segmenters"]
    np.testing.assert_equal(maps_of(shards[2]["folder"]), expected)


@pytest.fixture
def many_threads():
    """Four of torch's threads, whatever the machine."""
    usual = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(usual)


ARENA = [f"+segmenter@segmenters.{name}={name}" for name in ("walk", "diffcut_pamr", "colour", "kmeans_c")]


def test_images_that_a_cpu_works_on_at_the_same_time_are_labelled_as_alone(tmp_path, many_threads):
    methods = [*SMALL, *ARENA, "segmenters.diffcut_pamr.of.size=128", "stages=[predict]"]
    evaluated(tmp_path, *methods, "streams=1", f"run={tmp_path / 'alone'}")
    evaluated(tmp_path, *methods, "streams=9", f"run={tmp_path / 'beside'}")
    alone, beside = maps_of(tmp_path / "alone"), maps_of(tmp_path / "beside")
    assert len(alone) == 6 * 5
    np.testing.assert_equal(beside, alone)
    assert torch.get_num_threads() == 4


class Lazy(Whole):
    """Says whether it was ever asked for two images at the same time, which it is not made for."""

    def __init__(self):
        self.busy, self.threads, self.together = False, set(), False

    def segment(self, image):
        self.together |= self.busy
        self.busy = True
        self.threads.add(threading.get_ident())
        time.sleep(0.05)
        self.busy = False
        return super().segment(image)


def test_a_method_has_one_image_at_a_time_though_several_are_worked_on(tmp_path, many_threads):
    data = configured("dataset.count=8", "dataset.size=64")[0]["dataset"]
    lazy, dataset = Lazy(), instantiate(data)
    run_ = Run(tmp_path, {}, ("lazy",), None)
    assert (
        predict.predict(run_, dataset, dataset.keys, {"lazy": lazy}, lambda: None, Look(), streams=2, workers=0)[0] == 8
    )
    assert not lazy.together
    assert len(lazy.threads) == 2


def test_what_stops_one_of_several_images_loses_none_before_it(tmp_path, many_threads):
    class Fragile(Whole):
        def segment(self, image):
            if float(image.pixels.sum()) == bad:
                raise UserError("this one is too much")
            return super().segment(image)

    dataset = instantiate(configured("dataset.count=6", "dataset.size=64")[0]["dataset"])
    bad = float(dataset.image(dataset.keys[3], 64).sum())
    run_ = Run(tmp_path, {}, ("fragile",), None)
    with pytest.raises(UserError, match="too much"):
        predict.predict(run_, dataset, dataset.keys, {"fragile": Fragile()}, lambda: None, Look(), streams=3, workers=0)
    assert [key for key in dataset.keys if run_.map("fragile", key).exists()] == dataset.keys[:3]


def test_a_control_is_never_called_by_the_trained_models_name(tmp_path):
    assert evaluated(tmp_path, *SMALL, "dataset.count=1")["model"] == "mini"
    assert evaluated(tmp_path, *SMALL, "dataset.count=1", "model=mini_untrained")["model"] == "mini_untrained"


def test_one_run_of_many_segmenters_gives_what_single_runs_give(tmp_path):
    settings = ["segmenters.diffseg.relative=true", "segmenters.diffseg.threshold=0.3"]
    both = evaluated(tmp_path / "both", *SMALL, *settings, "+segmenter@segmenters.colour=colour")
    alone = evaluated(tmp_path / "alone", *SMALL, *settings)
    assert both["segmenters"]["diffseg"] == alone["segmenters"]["diffseg"]
    assert set(both["segmenters"]) == {"diffseg", "colour"}


def test_many_settings_share_one_pass_and_score_as_alone(tmp_path, monkeypatch):
    passes = []
    observe = DiffusionModel.observe
    monkeypatch.setattr(DiffusionModel, "observe", lambda *a, **k: passes.append(1) or observe(*a, **k))
    many = evaluated(tmp_path, *SMALL, "vary={threshold:[0.3,0.6],weights:[null,[1,0,0,0]]}")
    assert len(passes) == 6
    assert list(many["segmenters"]) == [
        f"threshold={t},weights={w}" for t in ("0.3", "0.6") for w in ("none", "1-0-0-0")
    ]
    alone = evaluated(tmp_path, *SMALL, "segmenters.diffseg.threshold=0.6", "segmenters.diffseg.weights=[1,0,0,0]")
    assert many["segmenters"]["threshold=0.6,weights=1-0-0-0"] == alone["segmenters"]["diffseg"]
    with pytest.raises(ValueError, match="has no treshold; did you mean threshold"):
        evaluated(tmp_path, *SMALL, "vary={treshold:[1]}")
    with pytest.raises(ValueError, match="must be a list of values"):
        evaluated(tmp_path, *SMALL, "vary={threshold:1}")


def test_settings_of_several_methods_share_one_pass(tmp_path, monkeypatch):
    """Also nested ones; each scores as it does alone, and each method has a curve of its own."""
    passes = []
    observe = DiffusionModel.observe
    monkeypatch.setattr(DiffusionModel, "observe", lambda *a, **k: passes.append(a[3]) or observe(*a, **k))
    two = [*SMALL, "dataset.count=2", "+segmenter@segmenters.diffcut=diffcut_pamr", "segmenters.diffcut.of.size=128"]
    many = evaluated(tmp_path, *two, "vary={threshold:[0.3,0.6],diffcut:{of:{threshold:[0.2,0.9]},iterations:[2]}}")
    assert len(passes) == 4  # two looks at each of two images
    assert list(many["segmenters"]) == [
        "threshold=0.3",
        "threshold=0.6",
        "diffcut.of.threshold=0.2,diffcut.iterations=2",
        "diffcut.of.threshold=0.9,diffcut.iterations=2",
    ]
    assert {method: list(curves) for method, curves in many["granularity"].items()} == {
        "diffseg": ["diffseg"],
        "diffcut": ["diffseg"],
    }
    alone = evaluated(tmp_path, *two, "segmenters.diffcut.of.threshold=0.9", "segmenters.diffcut.iterations=2")
    varied = many["segmenters"]["diffcut.of.threshold=0.9,diffcut.iterations=2"]
    assert varied == alone["segmenters"]["diffcut"]


def test_each_segmenter_is_compared_with_the_first_image_by_image(tmp_path):
    three = [
        "+segmenter@segmenters.grid=grid",
        "+segmenter@segmenters.twin=diffseg",
        "segmenters.twin.anchors=8",
        "protocol=[majority,diffseg]",
    ]
    summary = evaluated(tmp_path, *SMALL, *three)
    for rule, metric in summary["headlines"].items():
        scores, differences = summary["protocols"][rule], summary["differences"][rule]
        assert list(differences) == ["grid", "twin"]
        assert differences["twin"] == {"difference": 0, "interval": [0, 0], "p": 1}
        difference = scores["grid"][metric] - scores["diffseg"][metric]
        low, high = differences["grid"]["interval"]
        assert differences["grid"]["difference"] == pytest.approx(difference)
        assert low < difference < high
    table = differences_table(summary)
    assert [row[0] for row in table.cells] == ["grid", "twin"]
    assert table.cells[1][1].startswith("+0.0\n")
    report = (Path(summary["folder"]) / "report.html").read_text()
    assert "Beside diffseg" in report


def test_scoring_at_another_size_needs_no_new_prediction(tmp_path):
    whole = evaluated(tmp_path, *SMALL)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*/labels/*.png")}
    half = evaluated(tmp_path, *SMALL, "score_size=64")
    assert half["folder"] == whole["folder"]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*/labels/*.png")} == stamps
    images, _ = score.read_counts(find_run(Path(half["folder"]), 64), "diffseg")
    assert {table.sum() for table in score.tables_of(images)} == {64 * 64}
    assert half["segmenters"]["diffseg"]["miou"] == pytest.approx(whole["segmenters"]["diffseg"]["miou"], abs=0.02)
    assert evaluated(tmp_path, *SMALL)["segmenters"] == whole["segmenters"]


def test_stages_can_be_called_separately(tmp_path):
    with pytest.raises(ValueError, match=r"there is no run .*: predict first"):
        evaluated(tmp_path, *SMALL, "stages=[score]")
    assert evaluated(tmp_path, *SMALL, "stages=[predict]") == {}
    (folder,) = tmp_path.iterdir()
    assert not (folder / "summary.json").exists()
    assert evaluated(tmp_path, *SMALL, "stages=[score]")["images"] == 6
    assert not (folder / "report.html").exists()
    evaluated(tmp_path, *SMALL, "stages=[report]")
    assert (folder / "report.html").exists()


def test_a_perfect_and_a_trivial_segmenter_by_hand(tmp_path):
    """Truth as prediction scores 1; one single segment scores the share of each image's largest class."""
    scenes = Scenes(3, seed=21, size=128)
    for name in ("perfect", "trivial"):
        (tmp_path / name).mkdir()
    for key in scenes.keys:
        truth = scenes.label(key).astype(np.uint8)
        Image.fromarray(truth).save(tmp_path / "perfect" / f"{key}.png")
        Image.fromarray(np.zeros_like(truth)).save(tmp_path / "trivial" / f"{key}.png")
    data = ["dataset.count=3", "dataset.size=128", "dataset.seed=21", "workers=0"]
    perfect = evaluated(tmp_path / "runs", *data, f"labels={tmp_path / 'perfect'}")["segmenters"]["labels"]
    assert perfect["accuracy"] == perfect["miou"] == 1
    assert perfect["interval"]["miou"] == [1, 1]
    trivial = evaluated(tmp_path / "runs", *data, f"labels={tmp_path / 'trivial'}")["segmenters"]["labels"]
    largest = sum(np.bincount(scenes.label(k).ravel()).max() for k in scenes.keys) / (3 * 128 * 128)
    assert trivial["accuracy"] == pytest.approx(largest)
    assert trivial["segments"] == 1
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_images_parquet_holds_what_every_metric_follows_from(tmp_path):
    summary = evaluated(tmp_path, *SMALL)
    run_folder = find_run(Path(summary["folder"]))
    images, _ = score.read_counts(run_folder, "diffseg")
    assert list(images["key"]) == [f"{i:06d}" for i in range(6)]
    again = json.loads(json.dumps(score.scores_of(images, CLASSES, OneToOne())))
    assert again == summary["protocols"]["diffseg"]["diffseg"]
    assert again.items() <= summary["segmenters"]["diffseg"].items()
    row, table = images.iloc[2], score.tables_of(images)[2]
    labels, truth = np.asarray(Image.open(run_folder.map("diffseg", row["key"]))), Scenes(6, size=128).label(row["key"])
    assert list(row["segments"]) == sorted(np.unique(labels))
    assert table.shape == (28, labels.max() + 1)
    assert table.sum() == 128 * 128
    assert table[truth[0, 0], labels[0, 0]] == ((truth == truth[0, 0]) & (labels == labels[0, 0])).sum()


def test_golden_attention_end_to_end(tmp_path, monkeypatch):
    """The reference's attention through the whole harness, with the reference's labels as truth: a perfect score."""
    (tmp_path / "data").mkdir()
    plain = [c for c in CASES if not c["refine"] and c["weights"] is None and len(set(c["tau"])) == 1]
    cases = [c for c in plain if c["tau"] == plain[0]["tau"] and c["anchors"] == plain[0]["anchors"]]
    for case in cases:
        Image.new("RGB", (512, 512)).save(tmp_path / "data" / f"{case['name']}.png")
        truth = np.load(GOLDEN / f"{case['name']}.npz")["labels"]
        Image.fromarray(truth).save(tmp_path / "data" / f"{case['name']}.label.png")
    waiting = sorted(cases, key=lambda c: c["name"])

    class Recorded:
        """In the model's place: what the reference's UNet gave, image after image."""

        device = torch.device("cpu")

        def streams(self, size, selections=1):
            return 1

        def observe(self, images, needs, look, prompts=None, wait=True):
            return Observation(golden_maps(waiting.pop(0), torch.float32))

    monkeypatch.setattr(run, "_load_model", lambda *a, **k: Recorded())
    overrides = ["dataset=folder", f"dataset.root={tmp_path / 'data'}", "workers=0", "device=cpu"]
    overrides += ["stages=[predict,score]"]
    for case in cases:
        assert (case["tau"], case["anchors"]) == (cases[0]["tau"], cases[0]["anchors"])
    settings = [
        f"segmenters.diffseg.threshold={cases[0]['tau'][0]}",
        f"segmenters.diffseg.anchors={cases[0]['anchors']}",
    ]
    found = evaluated(tmp_path / "runs", *overrides, *settings)["segmenters"]["diffseg"]
    assert found["accuracy"] == found["miou"] == 1


# --- what a run survives ----------------------------------------------------------------------------------------------


PROCESSES = multiprocessing.get_context("forkserver")  # forks of a clean server that has imported everything once
PROCESSES.set_forkserver_preload([__name__, "tests.preload"])


def _evaluate_quietly(config, names):
    multiprocessing.set_start_method("fork", force=True)  # for the reading processes, as in a process of its own
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    evaluation.evaluate(run.experiment_of(config, names))


def children(pid):
    try:
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "times"), [(SMALL, 4), (WITHOUT_MODEL, 8)], ids=["model", "none"])
def test_a_run_killed_at_any_moment_ends_as_if_undisturbed(tmp_path, settings, times):
    """SIGKILL at random moments of real processes, each time followed by a rerun."""

    def start(runs):
        more = ["dataset.count=8", "dataset.size=128", "workers=2", "stages=[predict,score]"]
        process = PROCESSES.Process(target=_evaluate_quietly, args=configured(f"runs={runs}", *settings, *more))
        process.start()
        return process

    def finish(runs):
        process = start(runs)
        process.join()
        assert process.exitcode == 0
        (folder,) = runs.iterdir()
        return folder

    whole = finish(tmp_path / "whole")
    files = len([p for p in whole.rglob("*") if p.is_file()])
    moments, interrupted = random.Random(0), 0
    for i in range(times):
        runs = tmp_path / str(i)
        process, enough = start(runs), moments.randrange(files)
        while process.is_alive() and len([p for p in runs.rglob("*") if p.is_file()]) < enough:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05 if settings is SMALL else 0.01))
        readers = children(process.pid)
        process.kill()
        process.join()
        wait_for(lambda pids=readers: not any(alive(pid) for pid in pids))  # they leave with it
        interrupted += process.exitcode == -signal.SIGKILL
        for path in runs.rglob("*/labels/[0-9]*.png"):  # whole, or not there at all
            assert np.asarray(Image.open(path)).shape == (128, 128)
        folder = finish(runs)
        assert (folder / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()
        np.testing.assert_equal(maps_of(folder), maps_of(whole))
        assert not list(folder.rglob("*.partial"))
        shutil.rmtree(runs)
    assert interrupted >= 0.75 * times  # the others had ended just before


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_stop_says_how_to_go_on(tmp_path, stop, status):
    """With all its processes, as by a scheduler or Ctrl-C, while readers read and two images are worked on."""
    ended, said = stopped_run(tmp_path, lambda process: os.killpg(process.pid, stop), "workers=2", "streams=2")
    assert ended == status
    assert "run the same command again to go on" in said


def test_a_killed_reading_process_is_one_sentence(tmp_path):
    def kill_reader(process):
        os.kill(max(children(process.pid)), signal.SIGKILL)

    ended, said = stopped_run(tmp_path, kill_reader, "workers=1")
    assert ended == 2
    assert "a reading process was killed" in said


def stopped_run(tmp_path, stop, *more):
    """Starts a long run, stops it once the first map is there; its exit status, and what it said."""
    runs, said = tmp_path / "runs", tmp_path / "said"
    settings = [*SMALL, "dataset.count=200", "stages=[predict,score]", f"runs={runs}", *more]
    process = PROCESSES.Process(target=_command, args=(settings, said))
    process.start()
    wait_for(lambda: list(runs.rglob("*/labels/[0-9]*.png")), 60)
    stop(process)
    process.join(60)
    told = said.read_text()
    assert "Traceback" not in told
    assert maps_of(runs)
    assert not list(runs.rglob("*.partial"))
    return process.exitcode, told


def _command(arguments, said):
    """The command itself, as a session of its own, with two threads; its stderr goes to a file."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    multiprocessing.set_start_method("fork", force=True)  # for the reading processes, as in a process of its own
    torch.set_num_threads(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    sys.argv = ["diffseg-eval", *arguments]
    run.main()


def test_a_full_disk_keeps_what_is_finished(tmp_path):
    """A real one: a tmpfs of a few pages. Needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    many = [*SMALL, "dataset.count=20", "stages=[predict,score]"]
    try:
        with pytest.raises(OSError, match=r"cannot write .*\(No space left on device\); what is finished is kept"):
            evaluated(disk, *many)
        kept = list(disk.rglob("*.png"))
        assert kept
        assert all(np.asarray(Image.open(path)).shape == (128, 128) for path in kept)
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        assert evaluated(disk, *many)["images"] == 20
    finally:
        subprocess.run(["umount", disk], check=True)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    """A folder data set of three scenes with labels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        made = scene(5, i, 128)
        Image.fromarray(made.image).save(folder / f"p{i}.png")
        Image.fromarray(made.label.astype(np.uint8)).save(folder / f"p{i}.label.png")
    return folder


def on_photos(photos, *overrides):
    settings = ["dataset=folder", f"dataset.root={photos}", "dataset.size=128", *SMALL[2:]]
    return evaluated(photos.parent / "runs", *settings, *overrides)


def test_a_truncated_photo_stops_the_run_or_is_left_out(photos):
    whole = (photos / "p1.png").read_bytes()
    (photos / "p1.png").write_bytes(whole[:3000])
    with pytest.raises(DataError, match=r"p1.png is damaged.*fetch it again \(or leave such images out with on_error"):
        on_photos(photos)
    assert len(list((photos.parent / "runs").rglob("p0.png"))) == 1  # what came before is kept
    summary = on_photos(photos, "on_error=skip")
    assert summary["images"] == 2
    assert list(summary["skipped"]) == ["p1"]
    assert "p1.png is damaged" in summary["skipped"]["p1"]


def test_a_corrupt_jpeg_is_named(photos):
    picture = Image.open(photos / "p2.png").convert("RGB")
    (photos / "p2.png").unlink()
    picture.save(photos / "p2.jpg")
    whole = (photos / "p2.jpg").read_bytes()
    (photos / "p2.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"p2.jpg is damaged"):
        on_photos(photos)


def test_a_damaged_label_map_of_its_own_is_made_again(photos, capfd):
    summary = on_photos(photos)
    folder = Path(summary["folder"])
    path = folder / "diffseg" / "labels" / "p2.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:40])  # cut off: made again at once
    assert on_photos(photos) == summary
    assert "predict: 1 damaged label maps are made again" in capfd.readouterr().err
    path.write_bytes(whole[:60] + bytes(b ^ 255 for b in whole[60:80]) + whole[80:])  # seen when it is read
    with pytest.raises(DataError, match=r"1 of 3 images cannot be scored(.|\n)*p2.png is damaged.*; it is removed now"):
        on_photos(photos, "stages=[score]")
    assert on_photos(photos) == summary
    assert path.read_bytes() == whole


def test_label_values_and_sizes_that_do_not_fit(photos):
    label = photos / "p1.label.png"
    values = np.asarray(Image.open(label)).copy()
    classes = f"dataset.classes=[{','.join(CLASSES)}]"
    Image.fromarray(np.where(values == values[0, 0], 200, values).astype(np.uint8)).save(label)
    with pytest.raises(DataError, match=r"p1.label.png holds the value 200, but there are 27 classes"):
        on_photos(photos, classes)
    Image.fromarray(values[:100]).save(label)
    with pytest.raises(DataError, match=r"p1.png is 128 x 128 but its label 128 x 100 pixels"):
        on_photos(photos, classes)
    label.unlink()
    with pytest.raises(DataError, match=r"1 of 3 images lack a label, such as p1.label.png"):
        on_photos(photos, classes)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dataset=folder", "dataset.root=EMPTY"], "has no images"),
        (["dataset=coco_stuff27", "dataset.root=EMPTY"], "the layout is ROOT/val2017"),
        (["dataset=cityscapes", "dataset.root=/nowhere"], "there is no folder /nowhere"),
        (["dataset=folder"], "dataset.root must be given"),
        (["segmenters.diffseg.threshold=0"], "threshold must be above 0"),
        (["segmenters.diffseg.threshold=-1"], "threshold must be above 0"),
        (["vary={threshold:[0.5,0]}"], "segmenters.threshold=0: threshold must be above 0, got 0"),
        (
            ["segmenters.diffseg.threshold=abc"],
            "segmenters.diffseg.threshold must be a number or a list of numbers, got 'abc'",
        ),
        (["vary={threshold:[0.7,abc]}"], "got 'abc'"),
        (["timestep=1000"], "timestep must be a whole number, 0 to 999; got 1000"),
        (["timestep=-5"], "timestep must be a whole number, 0 to 999; got -5"),
        (["noise=-1"], "noise must be a seed, which is a whole number from 0, or null; got -1"),
        (["segmenters.diffseg.threshold=[1,1]", "segmenters.diffseg.anchors=17"], "anchors must be 1 to 16 per side"),
        (["segmenters.diffseg.weights=[1,2]"], "2 given, but there are 4 resolutions"),
        (["shard=[0.5,2]"], "two whole numbers"),
        (["shard=[2,2]"], "0 <= i < n"),
        (["batch_size=0"], "batch_size must be a whole number, at least 1"),
        (["workers=two"], "workers must be a whole number"),
        (["device=[]"], "device must be auto, cpu, cuda"),
        (["on_error=ignore"], "on_error must be stop or skip"),
        (["stages=[predict,scor]"], "stages must be a list of some of predict, score"),
        (["stages=[score]"], "predict first"),
        (["stages=[check]"], "needs reference="),
        (["stages=[check]", "reference=nothing"], "there is no reference"),
        (["labels=/nowhere"], "there is no folder /nowhere of label maps"),
        (["labels=EMPTY"], "holds no label map"),
        (["model=pretrained", "model.name=nothing"], "there is no model or folder 'nothing'"),
        (["device=cuda:9"], "is not there"),
        (["dtype=float8"], "dtype must be one of"),
        (["tracker=wandb", "tracker.mode=off"], "tracker.mode must be"),
        (["~segmenters.diffseg"], "segmenters must be one segmenter or more"),
        (["vary=5"], "vary must be a mapping of settings to lists of values, or null; got 5"),
        (["shard=null"], "shard must be [i, n]"),
        (["stages=null"], "stages must be a list"),
        (["device=5"], "device must be auto, cpu, cuda"),
        (["dtype=1"], "dtype must be one of"),
        (["score_size=0"], "score_size must be a whole number of pixels"),
        (["labels_suffix=null"], "labels_suffix must be what names end with"),
        (["published=foo"], "published must be one of"),
        (["~model"], "model must be a model: model=NAME; it is missing"),
        (["dataset.size=abc"], "dataset.size must be a whole number, got 'abc'"),
        (["dataset.size=0"], "size must be 8 to 8192 pixels a side, got 0"),
        (["dataset.seed=abc"], "dataset.seed must be a whole number, got 'abc'"),
        (["dataset.count=0"], "count must be at least 1 scene, got 0"),
        (["dataset.keys=[000009]"], "keys: there is no image '000009'"),
        (["+dataset.colour=red"], "dataset has no setting colour; it takes count, seed, size, keys"),
        (["segmenters.diffseg.refine=maybe"], "segmenters.diffseg.refine must be true or false, got 'maybe'"),
        (["segmenters.diffseg.relative=7"], "segmenters.diffseg.relative must be true or false, got 7"),
        (["segmenters.diffseg.threshold=[1,1]", "segmenters.diffseg.iterations=5"], "2 thresholds and 5 iterations"),
        (["segmenters.diffseg._target_=nowhere.Mine"], "segmenters.diffseg: there is no nowhere.Mine to import"),
        (["~segmenters.diffseg._target_"], "segmenters.diffseg names no class"),
        (["+segmenter@segmenters.other=kmeans_c", "segmenters.other.clusters=2.5"], "must be a whole number, got 2.5"),
        (["protocol=[]"], "protocols must be one protocol or more"),
        (["tracker=wandb", "tracker.overlays=many"], "tracker.overlays must be a whole number, got 'many'"),
        (["runs=FILE"], "cannot write to the output folder"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_bad_settings_are_one_sentence(tmp_path, overrides, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    overrides = [o.replace("EMPTY", str(tmp_path / "empty")).replace("FILE", str(tmp_path / "file")) for o in overrides]
    small = [s for s in SMALL if not (s.startswith("dataset") and any(o.startswith("dataset=") for o in overrides))]
    small = [s for s in small if "anchors" not in s or not any("anchors" in o or "~" in o for o in overrides)]
    if not any(o.startswith("runs=") for o in overrides):
        overrides = [*overrides, f"runs={tmp_path / 'runs'}"]
    with pytest.raises((ValueError, OSError)) as refused:
        evaluation.evaluate(run.experiment_of(*configured(*small, *overrides)))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_bad_setting_on_the_command_line_is_one_line(tmp_path, commands):
    ran = commands("segmenters.diffseg.threshold=0", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "diffseg-eval: segmenters.diffseg: threshold must be above 0, got 0\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_settings_is_refused(tmp_path):
    named = [*SMALL, f"run={tmp_path / 'mine'}", "stages=[predict]"]
    evaluated(tmp_path, *named)
    before = maps_of(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"other settings \(segmenters.diffseg.threshold: .* -> 0.2\)"):
        evaluated(tmp_path, *named, "segmenters.diffseg.threshold=0.2")
    record = json.loads((tmp_path / "mine" / "run.json").read_text())
    record["made_with"] = {"device": "cuda", "dtype": "float16"}  # begun on another machine
    (tmp_path / "mine" / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"begun in float16 on cuda; going on in float32 on cpu would mix two"):
        evaluated(tmp_path, *named)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match=r"not empty and holds no run"):
        evaluated(tmp_path, *SMALL, f"run={tmp_path / 'full'}")
    np.testing.assert_equal(maps_of(tmp_path / "mine"), before)


# --- other people's masks ---------------------------------------------------------------------------------------------


def test_masks_of_any_method_are_scored_at_either_size(tmp_path):
    """Cityscapes-like shapes: a map of the photo's own size is cropped and resized as the truth is."""
    data, masks = tmp_path / "data", tmp_path / "masks"
    data.mkdir()
    masks.mkdir()
    rng = np.random.default_rng(0)
    for i, size in enumerate([(90, 140), (200, 120)]):
        truth = np.kron(rng.integers(0, 5, (size[0] // 10, size[1] // 10)), np.ones((10, 10))).astype(np.uint8)
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(data / f"{i}.png")
        Image.fromarray(truth).save(data / f"{i}.label.png")
        Image.fromarray(truth).save(masks / f"{i}.seg.png")
    settings = [
        "dataset=folder",
        f"dataset.root={data}",
        "dataset.size=64",
        f"labels={masks}",
        "labels_suffix=.seg.png",
    ]
    assert evaluated(tmp_path / "runs", *settings, "workers=0")["segmenters"]["labels"]["miou"] == 1


def test_each_missing_extra_and_wrong_sized_map_is_named(tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    settings = [*SMALL, f"labels={masks}"]
    for i in range(4):
        Image.fromarray(np.zeros((128, 128) if i else (64, 99), np.uint8)).save(masks / f"{i:06d}.png")
    with pytest.raises(DataError) as refused:
        evaluated(tmp_path / "runs", *settings)
    for words in ("3 of 6 images", "000004.png is missing", "000005.png is missing", "000000.png is 99 x 64 pixels"):
        assert words in str(refused.value)
    Image.fromarray(np.zeros((128, 128), np.uint8)).save(masks / "other.png")
    with pytest.raises(ValueError, match=r"1 label maps in .* belong to no image of the data set, such as other"):
        evaluated(tmp_path / "runs", *settings)
    summary = evaluated(tmp_path / "runs", *settings, "on_error=skip")
    assert summary["images"] == 3
    assert list(summary["skipped"]) == ["000000", "000004", "000005"]


def test_real_photos_both_label_sources_score_the_same(tmp_path):
    if not COCO.is_dir():
        pytest.skip("the thirty photos of COCO are not beside this checkout")
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in sorted((COCO / "val2017").glob("*.jpg")):
        Image.fromarray(np.arange(512, dtype=np.uint8)[:, None].repeat(512, 1) // 100).save(masks / f"{path.stem}.png")
    data = ["dataset=coco_stuff27", f"dataset.root={COCO}", "dataset.split=all", f"labels={masks}", "workers=0"]
    data += ["stages=[score]"]
    png, js = (evaluated(tmp_path / kind, *data, f"dataset.labels={kind}") for kind in ("png", "json"))
    for key in ("accuracy", "miou", "iou", "interval", "ties"):
        assert png["segmenters"]["labels"][key] == js["segmenters"]["labels"][key]


def test_a_folder_without_labels_is_segmented_but_not_scored(photos, capfd):
    for path in photos.glob("*.label.png"):
        path.unlink()
    assert on_photos(photos) == {}
    assert len(list((photos.parent / "runs").rglob("p*.png"))) == 3
    assert "no labels, so there is nothing to score" in capfd.readouterr().err


# --- sweeps, references, trackers -------------------------------------------------------------------------------------


def test_a_sweep_ends_with_one_table(tmp_path, commands):
    ran = commands("-m", "runs=out", *SMALL, "segmenters.diffseg.threshold=0.3,0,0.6", cwd=tmp_path)
    assert ran.returncode == 2  # one of the jobs failed; the others did not suffer
    assert ran.stderr.endswith(
        "diffseg-eval: 1 of the sweep's 3 jobs failed:\n"
        "  segmenters.diffseg.threshold=0: segmenters.diffseg: threshold must be above 0, got 0\n"
    )
    (sweep,) = (tmp_path / "out" / "sweeps").iterdir()
    rows = pd.read_csv(sweep / "table.csv")
    assert list(rows["segmenters.diffseg.threshold"]) == [0.3, 0.0, 0.6]
    assert rows["error"].tolist()[1] == "segmenters.diffseg: threshold must be above 0, got 0"
    for i, name in ((0, 0), (2, 2)):
        summary = json.loads((tmp_path / "out" / rows["run"][i] / "summary.json").read_text())
        assert rows["miou"][name] == pytest.approx(summary["segmenters"]["diffseg"]["miou"])
    markdown = (sweep / "table.md").read_text().splitlines()
    assert markdown[0].startswith("| threshold | segmenter | accuracy % | mIoU % |")
    assert len(markdown) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lst"], "there is no command lst; did you mean list?"),
        (
            ["timestep=100,300"],
            "timestep=100,300: several values are a sweep, with -m; one list is 'timestep=[100,300]'",
        ),
    ],
)
def test_what_is_nearly_a_command(arguments, words, refused):
    assert refused(*arguments).strip() == f"diffseg-eval: {words}" + "; settings are key=value" * (arguments == ["lst"])


def test_help_explains_the_settings(tmp_path, commands):
    ran = commands("--help", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "dataset: ade20k, " in ran.stdout
    assert "on_error: stop      # or skip: leave out images that cannot be read, and say which" in ran.stdout
    assert "  cpus: 1           # of each task, and its threads" in ran.stdout
    assert "hydra:" not in ran.stdout


def test_the_slurm_preset_composes():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with initialize_config_module("diffseg.conf", version_base="1.3"):
        config = compose("config", ["hydra/launcher=slurm"], return_hydra_config=True)
    assert config.hydra.launcher._target_.endswith("SlurmLauncher")
    assert config.hydra.launcher.gpus_per_node == 1


def test_a_reference_tells_what_moved(tmp_path, capfd):
    summary = evaluated(tmp_path, *SMALL)
    found = summary["segmenters"]["diffseg"]
    reference = {
        "run": {"dataset": "scenes", "images": 6},
        "expected": [
            {"segmenter": "diffseg", "metric": "accuracy", "value": found["accuracy"] + 0.009, "tolerance": 0.01},
            {"segmenter": "diffseg", "metric": "miou", "value": found["miou"] - 0.011, "tolerance": 0.01},
        ],
    }
    assert check(summary, reference)["ok"].tolist() == [True, False]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(reference))
    with pytest.raises(evaluation.MovedError, match="1 of 2 metrics moved"):
        evaluated(tmp_path, *SMALL, "stages=[predict,score,check]", f"reference={path}")
    assert "MOVED" in capfd.readouterr().out
    reference["run"]["images"] = 7
    with pytest.raises(ValueError, match="the reference is for images = 7, the run is of 6"):
        check(summary, reference)
    path.write_text("expected: [1]")
    with pytest.raises(ValueError, match="is not a reference"):
        read_reference(str(path))


def test_wandb_offline_keeps_the_run(tmp_path, commands):
    """The real library, offline: what it wrote is read back from its own file."""
    pytest.importorskip("wandb")
    ran = commands(*SMALL, "runs=out", "tracker=wandb", "tracker.mode=offline", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    (log,) = (tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb")
    content = log.read_bytes()
    for words in (b"diffseg/miou", b"diffseg/overlays", b"diffseg/classes", b"threshold"):
        assert words in content
    assert list((tmp_path / "out" / "wandb").glob("offline-run-*/files/media/images/**/*.png"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            "device=[cpu,cpu]",
            "device must be auto, cpu, cuda or cuda:N; several GPUs share the images with workers=ray",
        ),
        ("workers=many", "workers must be a whole number, at least 0, or ray"),
        ("ray.cpus=0", "ray.cpus must be a number above 0"),
        ("ray.write=me", "ray.write must be driver or workers"),
        ("+ray.nodes=2", "ray has no nodes"),
    ],
)
def test_who_works_is_checked_before_anything_is_made(given, words, refused):
    assert words in refused(*SMALL, given, "runs=runs")


def test_two_runs_are_compared_on_their_common_images(tmp_path, commands):
    first = evaluated(tmp_path, *SMALL, "segmenters.diffseg.threshold=0.3")
    second = evaluated(tmp_path, *SMALL, "segmenters.diffseg.threshold=0.9", "dataset.count=5")
    ran = commands("compare", first["folder"], second["folder"], cwd=tmp_path, COLUMNS="100")
    assert ran.returncode == 0, ran.stderr
    assert "B - A on 5 common images" in ran.stdout
    counts = (score.read_counts(find_run(Path(x["folder"])), "diffseg")[0] for x in (first, second))
    a, b = (score.image_scores(images, OneToOne()).set_index("key") for images in counts)
    common = a.loc[b.index]
    plain = b["accuracy"].mean() - common["accuracy"].mean()  # all have as many labelled pixels
    assert f"{100 * plain:+.2f}" in ran.stdout
    assert "pixels in the same segment" in ran.stdout
    picture = Image.open(Path(second["folder"]) / "compare.png")
    assert picture.width == 4 * 328 + 8
    changed = int((b["accuracy"] != common["accuracy"]).sum())
    assert picture.height == changed * (18 + 320 + 8) + 8
    gained = (b["accuracy"] - common["accuracy"]).idxmax()  # its line is the first: photo, truth, and matched classes
    rows = [{"key": gained, **images.loc[gained]} for images in (common, b)]
    maps = [find_run(Path(x["folder"])).map("diffseg", gained) for x in (first, second)]
    panels = [example(Scenes(6, size=128), row, path).panels for row, path in zip(rows, maps, strict=True)]
    for column, panel in enumerate([*panels[0][:3], panels[1][2]]):
        left = 8 + column * 328
        shown = np.asarray(picture.convert("RGB").crop((left, 26, left + 320, 346)))
        np.testing.assert_array_equal(shown, np.asarray(panel.image.convert("RGB")))
    other = commands("compare", first["folder"], second["folder"], "--a", "nothing", cwd=tmp_path)
    assert other.returncode == 2
    assert "has no segmenter 'nothing', but diffseg" in other.stderr


def test_the_same_images_under_every_method(tmp_path, commands):
    summary = evaluated(tmp_path, *SMALL, "dataset.count=3", "+segmenter@segmenters.grid=grid")
    drawn = commands("gallery", summary["folder"], "--count", "2", "--side", "64", "--out", "g.png", cwd=tmp_path)
    assert (drawn.returncode, drawn.stdout.strip()) == (0, "g.png"), drawn.stderr
    picture = np.asarray(Image.open(tmp_path / "g.png"))
    assert picture.shape == (20 + 2 * 70 + 6, 4 * 70 + 6, 3)  # a line, two rows; photo, truth, diffseg, grid
    for arguments, words in (
        (["--segmenters", "grit"], "the run has no method 'grit'; did you mean grid"),
        (["--keys", "000009"], "the run has no image '000009'"),
    ):
        refused = commands("gallery", summary["folder"], *arguments, cwd=tmp_path)
        assert refused.returncode == 2
        assert words in refused.stderr


def test_photos_without_labels_under_every_method(tmp_path, commands):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (96, 64), colour).save(photos / f"{name}.png")
    data = ["dataset=folder", f"dataset.root={photos}", "dataset.size=64", *WITHOUT_MODEL[:2]]
    evaluation.evaluate(run.experiment_of(*configured(*data, f"run={tmp_path / 'run'}")))
    root = f"dataset.root={photos}"
    drawn = commands("gallery", tmp_path / "run", root, "--side", "64", "--out", "g.png", cwd=tmp_path)
    assert (drawn.returncode, drawn.stdout.strip()) == (0, "g.png"), drawn.stderr
    picture = np.asarray(Image.open(tmp_path / "g.png"))
    assert picture.shape == (20 + 2 * 70 + 6, 2 * 70 + 6, 3)  # a line, two rows; photo, grid
    assert (picture[58, 38] == (255, 0, 0)).all()
    assert len(np.unique(picture[26:90, 76:140].reshape(-1, 3), axis=0)) > 9  # nine segments on one colour

    finer = [*data, "segmenters.grid.rows=4"]
    evaluation.evaluate(run.experiment_of(*configured(*finer, f"run={tmp_path / 'finer'}")))
    compared = commands("compare", tmp_path / "run", tmp_path / "finer", root, cwd=tmp_path, COLUMNS="200")
    assert compared.returncode == 0, compared.stderr
    assert "2 common images, by their label maps alone: there are no scores by classes" in compared.stdout
    shares = [
        agreement(*(read_map(tmp_path / runs / "grid" / "labels" / f"{name}.png") for runs in ("run", "finer")))
        for name in "ab"
    ]
    assert f"numbers matched one to one: {100 * np.mean(shares):.2f} %" in compared.stdout
    sheet = Image.open(tmp_path / "finer" / "compare.png")
    assert sheet.width == 3 * 328 + 8  # photo, A, B


def test_nothing_of_a_run_that_is_compared_is_executed(tmp_path, commands):
    """A run's folder may be somebody else's: its class names are words, and its data is what the user says it is."""
    runs = [evaluated(tmp_path, *SMALL, f"segmenters.diffseg.threshold={t}")["folder"] for t in (0.3, 0.9)]
    trap = tmp_path / "trap"
    for name in ("run.json", "config.yaml", "summary.json"):
        path = Path(runs[1]) / name
        text = path.read_text().replace("diffseg.datasets.scenes.Scenes", "pathlib.Path.touch")
        path.write_text(text.replace("count: 6", f"self: {trap}"))
    ran = commands("compare", *runs, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (Path(runs[1]) / "compare.png").exists()
    assert not trap.exists()
    other = commands("compare", *runs, "dataset.count=5", cwd=tmp_path)
    assert other.returncode == 2
    assert "scenes, 5 images, is not the data that" in other.stderr
    summary = json.loads((Path(runs[1]) / "summary.json").read_text())
    summary["dataset"]["name"] = "../model/mini"
    (Path(runs[1]) / "summary.json").write_text(json.dumps(summary))
    refused = commands("compare", *runs, cwd=tmp_path)
    assert "names no data set: '../model/mini'" in refused.stdout


def test_scenes_of_different_seeds_are_not_compared(tmp_path, commands):
    runs = [evaluated(tmp_path, *SMALL, "dataset.count=2", f"dataset.seed={seed}")["folder"] for seed in (2, 3)]
    ran = commands("compare", *runs, cwd=tmp_path)
    assert ran.returncode == 2
    assert "cannot be compared: scenes of different seeds" in ran.stderr
    assert not (Path(runs[1]) / "compare.png").exists()


# --- segmenters -------------------------------------------------------------------------------------------------------


def quarters(n: int = 16) -> Batch:
    """A picture of four quarters: each colour, and each attention, is that of its quarter."""
    row, column = np.divmod(np.arange(n * n), n)
    quarter = torch.from_numpy((row >= n // 2) * 2 + (column >= n // 2))
    same = torch.where(quarter[:, None] == quarter, 1.0, 1e-3) + 1e-5 * torch.rand(n * n, n * n)
    pixels = torch.tensor([-0.9, -0.3, 0.3, 0.9])[quarter].view(1, n, n).repeat_interleave(8, 1).repeat_interleave(8, 2)
    return batch_of([pixels.expand(3, -1, -1)], {(n, n): (same / same.sum(1, keepdim=True))[None]})


TRUTH = np.kron(np.arange(4).reshape(2, 2), np.ones((64, 64), int))


@pytest.mark.parametrize(
    "segmenter",
    [Merging(1.0), Merging(0.5, relative=True), KMeans(4), KMeansOracle(), ColourKMeans()],
    ids=lambda method: type(method).__name__,
)
def test_every_method_finds_four_quarters(segmenter):
    (found,) = predict.segment(segmenter, quarters(), [TRUTH])
    pairs = np.unique(np.stack([found.ravel(), TRUTH.ravel()]), axis=1)
    assert pairs.shape[1] == 4  # one to one


def test_a_relative_threshold_does_not_depend_on_how_sharp_the_attention_is():
    """Maps mixed with the uniform one are nearer to each other; relative thresholds see no difference."""
    sharp = quarters()
    flat = batch_of(sharp.pixels, {(16, 16): 0.05 * sharp.seen().self_attention[16, 16] + 0.95 / 256})
    absolute, relative = Merging(1.0), Merging(0.5, relative=True)
    assert len(np.unique(absolute.segment(flat[0]))) == 1
    np.testing.assert_array_equal(relative.segment(flat[0]), relative.segment(sharp[0]))


@pytest.mark.parametrize(
    "segmenter", [Merging(0.3), Merging([0.2, 0.5], refine=True), KMeans(3)], ids=lambda method: type(method).__name__
)
def test_a_batch_is_segmented_as_its_images_are(segmenter):
    g = torch.Generator().manual_seed(0)
    maps = {(n, n): torch.softmax(3 * torch.randn(3, n * n, n * n, generator=g), -1) for n in (16, 8)}
    batch = batch_of(torch.rand(3, 3, 64, 64, generator=g), maps)
    together = segmenter.segment_batch(batch)
    assert len(together) == 3
    for found, image in zip(together, batch, strict=True):
        np.testing.assert_array_equal(found, segmenter.segment(image))


def test_the_whole_image_is_one_segment():
    assert not Whole().segment(quarters()[0]).any()


def test_long_names_of_settings_are_not_cut_in_the_table(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    name = "threshold=0.7,anchors=16,iterations=3,weights=64-32-16-8,refine=True,a_last_setting=12345"
    found = {"accuracy": 0.5, "miou": 0.4, "ties": [0.4, 0.4], "segments": 3.0, "told": None, "classes": 4}
    found["interval"] = {"accuracy": [0.4, 0.6], "miou": [0.3, 0.5]}
    facts = {"name": "scenes", "note": "", "classes": CLASSES}
    summary = {"dataset": facts, "images": 2, "protocol": "diffseg", "segmenters": {name: found}}
    Console().print(result_table(summary))
    shown = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert "".join(shown) == name


# --- what fuzzing has found -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dataset.count=1000000000000"], "count must be at most 1,000,000 scenes, got 1000000000000"),
        (["dataset.seed=-1"], "seed must be a whole number, at least 0, got -1"),
        (["+segmenter@segmenters.grid=grid", "segmenters.grid.rows=70000"], "at most 65536 cells"),
        (["../up"], "'../up' cannot be the name of a folder"),
        (["segmenters.diffseg._target_='/'"], "segmenters.diffseg._target_ must be a class with its module"),
        (["vary={diffcut:{threshold:[1]}}"], "vary.diffcut: there is no segmenter diffcut; there are diffseg"),
        (["vary={diffseg:[0.3]}"], "vary.diffseg must be a mapping of settings of diffseg to lists of values"),
        (["vary={diffseg:{threshhold:[1]}}"], "the segmenter diffseg has no threshhold; did you mean threshold"),
        (["vary={diffseg:{threshold:{low:[1]}}}"], "the segmenter diffseg has no threshold.low"),
        (["vary={weights:[a/b]}"], "'weights=a/b' cannot be the name of a folder"),
    ],
    ids=lambda x: x[-1] if isinstance(x, list) else "",
)
def test_settings_that_fuzzing_has_found(tmp_path, overrides, words):
    config, choices = configured(*SMALL, f"runs={tmp_path}", *[o for o in overrides if "../up" not in o])
    if "../up" in overrides[0]:  # as a file of a configuration folder can name it
        config["segmenters"]["../up"] = {"_target_": "diffseg.methods.controls.Whole"}
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        run.experiment_of(config, choices)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The folder of a scored run without a model."""
    place = tmp_path_factory.mktemp("scored")
    return Path(evaluated(place, *WITHOUT_MODEL)["folder"])


def copy_of(folder, place):
    return Path(shutil.copytree(folder, place / folder.name))


def test_flipped_bits_of_counts_are_noticed_and_counted_again(scored, tmp_path):
    """Each page of images.parquet has a checksum: no bit of a count flips unseen."""
    folder = copy_of(scored, tmp_path)
    path = folder / "grid" / "images.parquet"
    content = path.read_bytes()
    for place in range(4, len(content) // 2, 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            images, _ = score.read_counts(find_run(folder), "grid")
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert {table.sum() for table in score.tables_of(images)} == {64 * 64}
    (folder / "summary.json").unlink()
    again = evaluated(tmp_path, *WITHOUT_MODEL)
    assert again["segmenters"] == json.loads((scored / "summary.json").read_text())["segmenters"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(segmenters={}), "segmenters must have names"),
        (lambda s: s.update(protocol="other"), "do not go together"),
        (lambda s: s["protocols"]["diffseg"].clear(), "has other segmenters"),
        (lambda s: s["headlines"].update(diffseg="beauty"), "lacks its headline"),
        (lambda s: s["segmenters"]["grid"]["iou"].popitem(), "iou is of other classes"),
    ],
    ids=["no segmenter", "protocol", "segmenters", "headline", "classes"],
)
def test_a_summary_whose_parts_do_not_go_together_is_damaged(scored, tmp_path, change, words):
    folder = copy_of(scored, tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    change(summary)
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(DataError, match=f"summary.json is damaged.*{words}.*: score the run again"):
        score.read_summary(find_run(folder))
    assert evaluated(tmp_path, *WITHOUT_MODEL)["segmenters"].keys() == {"grid"}


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["identity"].update(segmenters={}),
        lambda r: r["identity"].update(segmenters={"../up": {}}),
        lambda r: r.update(made_with={"device": "cpu"}),
    ],
    ids=["no segmenter", "leads elsewhere", "no dtype"],
)
def test_a_record_that_leads_elsewhere_or_lacks_something_is_damaged(scored, tmp_path, change):
    folder = copy_of(scored, tmp_path)
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        find_run(folder)


def test_a_report_does_not_need_the_files_beside_the_numbers(scored, tmp_path):
    folder = copy_of(scored, tmp_path)
    (folder / "config.yaml").write_bytes(b"\x89\xff")
    evaluated(tmp_path, *WITHOUT_MODEL, "stages=[report]")
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").mkdir()
    evaluated(tmp_path, *WITHOUT_MODEL, "stages=[report]")
    assert "config.yaml cannot be read" in (folder / "report.html").read_text()
    record = json.loads((folder / "run.json").read_text())
    del record["versions"]
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"run\.json is damaged \(versions"):
        evaluated(tmp_path, *WITHOUT_MODEL, "stages=[report]")


def test_a_truth_of_fewer_classes_is_told_by_the_report(tmp_path):
    """Classes without names are those of the values: another truth may have fewer."""
    (tmp_path / "photos").mkdir()
    for key, value in (("a", 5), ("b", 2)):
        Image.new("RGB", (64, 64)).save(tmp_path / "photos" / f"{key}.png")
        Image.new("L", (64, 64), value).save(tmp_path / "photos" / f"{key}.label.png")
    data = ["dataset=folder", f"dataset.root={tmp_path / 'photos'}", "dataset.size=64"]
    settings = [o for o in WITHOUT_MODEL if "dataset" not in o] + data
    evaluated(tmp_path / "runs", *settings)
    Image.new("L", (64, 64), 1).save(tmp_path / "photos" / "a.label.png")
    with pytest.raises(DataError, match="is of other classes than the data set has now: score the run again"):
        evaluated(tmp_path / "runs", *settings, "stages=[report]")
    assert evaluated(tmp_path / "runs", *settings)["dataset"]["classes"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "expected: []\nrun: {}", "expected: {}\nrun: {}", "run: {}\nexpected: [[1]]", "[" * 3000]
    + [
        f"run: {{}}\nexpected: [{{segmenter: {s}, metric: miou, value: {v}, tolerance: 0.1}}]"
        for s, v in (("[a]", 1), ("a", ".nan"), ("a", "x"), ("a", "1" + "0" * 400), ("null", 1))
    ],
)
def test_what_is_no_reference_is_one_sentence(tmp_path, text):
    path = tmp_path / "expected.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^\S+expected\.yaml is not a reference"):
        read_reference(str(path))


@pytest.mark.parametrize("text", ["[]", "null", '{"run": 3}', '{"run": "../up"}', "{", "[" * 100_000])
def test_a_damaged_job_of_a_sweep_is_one_sentence(tmp_path, text):
    jobs = tmp_path / "sweeps" / "now" / "jobs"
    jobs.mkdir(parents=True)
    (jobs / "00000.json").write_text(text)
    with pytest.raises(ValueError, match=r"00000\.json is damaged"):
        read_ablations([jobs.parent])
    (jobs / "00000.json").write_text('{"error": "threshold must be above 0"}')
    with pytest.raises(ValueError, match="holds no job that gave a result"):
        read_ablations([jobs.parent])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"threshold": NaN}', '{"threshold": Infinity}', '{"timestep": true}'])
def test_damaged_recommendations_of_a_model_are_one_sentence(tmp_path, text):
    (tmp_path / "diffseg.json").write_text(text)
    with pytest.raises(ValueError, match=r"diffseg\.json(: \w+ must be a number| is damaged)"):
        recommended(str(tmp_path))


def test_numbers_that_no_map_can_hold_are_refused_before_any_is_written(tmp_path):
    class Many(Whole):
        def segment(self, image):
            return np.full(image.size, 70_000)

    config, choices = configured(*WITHOUT_MODEL, f"runs={tmp_path}")
    experiment = run.experiment_of(config, choices)
    part = replace(experiment.segmenters["grid"], made=Many())
    with pytest.raises(ValueError, match=r"at most 70000; a label map is .* of whole numbers from 0 to 65535"):
        evaluation.evaluate(replace(experiment, segmenters={"grid": part}))
    assert not list(tmp_path.rglob("*.png"))


def test_what_would_steer_a_terminal_is_shown_escaped():
    sentence = str(DataError("a\x1b[31m\u202eb\nc\r.png is missing\n  a list\udcff"))
    assert sentence == "a\\x1b[31m\\u202eb\\nc\\r.png is missing\n  a list\\udcff"


def test_names_are_read_of_methods_that_give_some(tmp_path, capsys):
    controls = [
        "~segmenters.diffseg",
        "+segmenter@segmenters.whole=whole",
        "dataset.count=1",
        "dataset.size=64",
        "workers=0",
    ]
    evaluated(tmp_path, *controls, "protocol=[diffseg,names]")
    told = capsys.readouterr().err
    assert "the protocol names reads labels as numbers of classes, and those of whole number segments" in told
    evaluated(tmp_path, *controls)
    assert "numbers of classes" not in capsys.readouterr().err


@pytest.mark.parametrize("given", ["{}", "runs={}"])
def test_the_folder_of_runs_may_be_named_as_an_evaluation_is_told_it(tmp_path, given, capsys):
    list_command()([given.format(tmp_path)], standalone_mode=False)
    assert f"runsin{tmp_path}" in "".join(capsys.readouterr().out.split())  # however narrow the table is


def test_runs_that_never_began_are_only_counted(tmp_path):
    whole = ["~segmenters.diffseg", "+segmenter@segmenters.whole=whole", "dataset.size=64", "workers=0"]
    evaluated(tmp_path, *whole, "dataset.count=1")
    folder = Path(evaluated(tmp_path, *whole, "dataset.count=2")["folder"])
    (folder / "summary.json").unlink()
    shown = runs_table(tmp_path)
    assert [row[4] for row in shown.cells].count("not scored") == 1
    assert (len(shown.cells), shown.caption) == (2, "")
    for file in folder.rglob("*.png"):
        file.unlink()
    shown = runs_table(tmp_path)
    assert (len(shown.cells), shown.caption) == (1, "and 1 that ended before the first label map")
