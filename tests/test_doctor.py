"""`diffseg doctor`: what it finds on machines that are made up, and that its lists are those of the project."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from diffseg import doctor
from diffseg.cli import app

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()


def by_name(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}


# --- the project's own lists ------------------------------------------------------------------------------------------


def test_every_evaluation_of_the_makefile_is_known():
    """With the model that it takes where nobody says, and the data set of its experiment."""
    recipes = dict(re.findall(r"^(eval[a-z0-9-]*): setup.*\n\t(.*)$", MAKEFILE, re.M))
    assert recipes.keys() == doctor.TARGETS.keys()
    for name, recipe in recipes.items():
        target = doctor.TARGETS[name]
        experiment = re.search(r"experiment=(\w+)", recipe)
        if experiment is None:
            assert (target.data, target.model) == (("scenes",), "mini")
            continue
        settings = yaml.safe_load((ROOT / "conf" / "experiment" / f"{experiment[1]}.yaml").read_text())
        chosen = {key: value for line in settings["defaults"] for key, value in line.items()}
        assert target.model == re.search(r"\$\(or \$\(MODEL\),(\w+)\)", recipe)[1]
        sweep = settings.get("hydra", {}).get("sweeper", {}).get("params", {}).get("dataset")
        assert set(target.data) == (set(sweep.split(",")) if sweep else {chosen["override /dataset"]})


def test_every_data_set_can_be_fetched():
    below = {name for name, s in doctor._configured("dataset").items() if "${data}" in s.get("root", "")}
    assert below == doctor.FETCHING.keys()
    assert all(f"\n{target}: setup" in MAKEFILE for target in doctor.FETCHING.values())
    assert {data for target in doctor.TARGETS.values() for data in target.data} <= {*below, "scenes"}


def test_rates_are_those_of_the_performance_page():
    page = (ROOT / "docs" / "performance.md").read_text()
    on_cpu = re.search(r"^\| whole evaluation, images/s, two at a time \| ([\d.]+) \| ([\d.]+) \|", page, re.M)
    on_gpu = re.search(r"images/s: predicted; with scoring \| 49; 44 \(of 512\) \| \d+; (\d+) \|", page)
    assert [float(rate) for rate in (*on_cpu.groups(), *on_gpu.groups())] == [rate for rate, _ in doctor.RATES.values()]


# --- machines that are made up ----------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache of our own, empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub: Path, hub_id: str, *files: str) -> Path:
    folder = hub / f"models--{hub_id.replace('/', '--')}"
    for file in files:
        path = folder / "snapshots" / "1234" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (folder / "blobs").mkdir()
    return folder


def test_models_in_the_cache_are_looked_into(hub):
    parts = ("unet/a.safetensors", "vae/a.safetensors", "text_encoder/a.safetensors")
    cached(hub, "CompVis/stable-diffusion-v1-4", "model_index.json", *parts)
    cached(hub, "stable-diffusion-v1-5/stable-diffusion-v1-5", "model_index.json", "unet/a.bin", *parts[1:])
    cached(hub, "facebook/dinov2-base", "config.json", "model.safetensors")
    begun = cached(hub, "facebook/dinov2-with-registers-base", "config.json", "model.safetensors")
    (begun / "blobs" / "1.incomplete").touch()
    found = by_name(list(doctor._models()))
    assert found["mini"].state == found["sd14"].state == found["dinov2_base"].state == doctor.GOOD
    assert found["sd15"].state == found["dinov2"].state == doctor.MISSING
    assert found["sd15"].found.endswith("without unet")
    absent = found["not in the cache"].found.split(", ")
    assert {"sdxl", "sd3", "pixart_alpha"} <= set(absent)
    assert not {"sd14", "sd15", "dinov2", "mini", "sd14_random", "pretrained"} & set(absent)


def test_spacys_model_is_told_of_where_spacy_is(hub, monkeypatch):
    there = {"spacy": "3.8"}
    monkeypatch.setattr(doctor, "_version", there.get)
    lacking = by_name(list(doctor._models()))["spaCy's"]
    assert (lacking.state, lacking.found) == (doctor.OPTIONAL, "en_core_web_sm is not there")
    assert "python -m spacy download en_core_web_sm" in lacking.advice
    there["en_core_web_sm"] = "3.8.0"
    assert by_name(list(doctor._models()))["spaCy's"].found == "en_core_web_sm 3.8.0"
    there.clear()
    assert "spaCy's" not in by_name(list(doctor._models()))


def test_data_sets_are_checked_by_themselves(tmp_path):
    for part, suffix in (("images", "jpg"), ("annotations", "png")):
        folder = tmp_path / "ade20k" / part / "validation"
        folder.mkdir(parents=True)
        Image.fromarray(np.ones((20, 20), np.uint8)).save(folder / f"ADE_val_00000001.{suffix}")
    (tmp_path / "cityscapes").mkdir()
    context = tmp_path / "voc" / "VOCdevkit" / "VOC2010"
    context.mkdir(parents=True)
    (context / "trainval_merged.json").write_text("no JSON")
    found = by_name(list(doctor._data_sets(tmp_path)))
    assert found["ade20k"].state == doctor.GOOD
    assert found["ade20k"].found.startswith("1 images")
    assert "1 of the 2,000" in found["ade20k"].found
    assert found["cityscapes"].state == doctor.MISSING
    assert "leftImg8bit" in found["cityscapes"].found
    assert found["coco_object"].state == doctor.OPTIONAL
    assert found["coco_object"].advice == f"make data-coco DATA={tmp_path / 'coco'}"
    assert found["pascal_context"].found.endswith("not read here, it takes long")
    assert found["scenes"].state == doctor.GOOD


def test_evaluations_say_what_they_need_and_how_long_they_take(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = by_name(list(doctor._targets({"mini": True, "scenes": True, "voc": True, "sd14": False})))
    assert found["make eval"].state == doctor.GOOD
    assert found["make eval"].found == "ready; 64 images, about 1 min on two CPU cores"
    assert found["make eval-voc"].found.startswith("needs sd14 (fetched on first use); 1,449 images, about 6 h")
    assert found["make eval-coco"].advice == "make data-coco"
    assert "about" not in found["make eval-sixpack"].found  # nobody has measured it
    assert found["make eval-sixpack"].advice.count("data-coco") == 1


def test_packages_out_of_range_are_told(monkeypatch):
    needed = ["numpy>=99", "nothing-of-this-name", "torch>=2", 'spacy-of-no-name; extra == "semantic"']
    monkeypatch.setattr(doctor, "requires", lambda name: needed)
    found = by_name(list(doctor._packages()))
    assert (found["numpy"].state, found["numpy"].advice) == (doctor.MISSING, "pip install 'numpy>=99'")
    assert found["nothing-of-this-name"].found == "not installed"
    assert found["torch"].state == doctor.GOOD
    assert "packages" not in found  # not all are well
    assert found["semantic"].advice == "pip install 'diffseg[semantic]'"


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_in_a_real_process(tmp_path):
    """Exit status 0, a secret stays one, and no model library is loaded."""
    code = (
        "import sys\nfrom diffseg.cli import app\ntry:\n    app(['doctor', '--json'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'diffusers', 'transformers', 'sklearn'} & set(sys.modules)"
    )
    there = {
        "HF_TOKEN": "hf_secret",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": "",
    }
    environment = {**os.environ, **there, "DIFFSEG_PRESETS": ""}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    found = {row["name"]: row for row in report["findings"]}
    assert found["hub token"]["state"] == doctor.GOOD
    assert "hf_secret" not in ran.stdout + ran.stderr
    assert found["models"]["found"].endswith(" free in ~/hub")
    assert str(tmp_path) not in ran.stdout
    assert found["Python"]["found"] == ".".join(map(str, sys.version_info[:3]))
    assert found["make eval"]["state"] == doctor.GOOD


def test_the_table_shows_every_finding(hub, tmp_path):
    ran = CliRunner().invoke(app, ["doctor", "--data", str(tmp_path)], env={"COLUMNS": "200"})
    assert ran.exit_code == 0
    for finding in doctor.examine(tmp_path):
        assert finding.name in ran.stdout
    assert "✓" in ran.stdout
