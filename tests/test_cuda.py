"""The same on a CUDA device: every fast path against the plain one. (The fused kernels: tests/test_fused.py.)"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from diffseg import DiffSeg, parts
from diffseg.attention import Look, Needs, add_head_mean
from diffseg.backbones.diffusion import DiffusionModel
from diffseg.backbones.pretrained import from_pretrained
from diffseg.datasets.coco_stuff import CLASSES
from diffseg.datasets.scenes import TEST_SEED, scene
from diffseg.datasets.transforms import image_to_pixels
from diffseg.eval.metrics import agreement
from diffseg.methods.ncut import CutTree, cosine_affinity, partitions
from diffseg.segmentation import aggregate, merge, merge_batch, refine, symmetric_kl, to_labels
from tests.dits import TRANSFORMERS, save_dit
from tests.test_methods import CASES as CUTS
from tests.test_methods import features_of
from tests.test_segmentation import CASES, GOLDEN, golden_maps
from tests.test_vit import KINDS, save_vit

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_golden(case):
    maps = {size: m.cuda() for size, m in golden_maps(case, torch.float32).items()}
    attention = aggregate(maps, case["weights"])[0]
    proposals = merge(attention, case["anchors"], case["tau"])
    if case["refine"]:
        proposals = refine(attention, proposals)
    labels = to_labels(proposals, (512, 512)).cpu().numpy()
    assert (labels == np.load(GOLDEN / f"{case['name']}.npz")["labels"]).mean() >= 0.999


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.99), (torch.float16, 0.95)], ids=str)
def test_whole_photos(dtype, share):
    photo = scene(4, 0).image
    expected = DiffSeg.from_pretrained("mini", device="cpu")(photo).labels
    found = DiffSeg.from_pretrained("mini", device="cuda", dtype=dtype)(photo).labels
    assert agreement(found, expected) >= share


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 1e-3)])
def test_a_whole_pass_with_the_fused_kernels_is_the_plain_one(monkeypatch, dtype, tolerance):
    """Queries and keys are the same bits in both: only what becomes of them may differ."""
    model = DiffusionModel.from_pretrained("mini", device="cuda", dtype=dtype)
    pixels = torch.stack([image_to_pixels(scene(TEST_SEED, i).image) for i in range(2)])
    fused = model.observe(pixels, Needs(attention=True, cross=True), Look(100))
    monkeypatch.setattr("diffseg.attention._head_mean_for", lambda queries, heads: add_head_mean)
    plain = model.observe(pixels, Needs(attention=True, cross=True), Look(100))
    for kind in ("self_attention", "cross_attention"):
        for size, expected in getattr(plain, kind).items():
            found = getattr(fused, kind)[size]
            assert ((found - expected).abs() / expected.clamp_min(1e-12)).median() <= tolerance
            assert ((found - expected).norm() / expected.norm()).item() <= tolerance


@pytest.mark.parametrize("name", [*TRANSFORMERS, *KINDS])
def test_transformers_are_seen_as_on_the_cpu(tmp_path, name):
    """Small random ones of each architecture, in float32: maps, and the keys that a method may ask for."""
    folder = str((save_dit if name in TRANSFORMERS else save_vit)(name, tmp_path))
    size = (64, 96) if name in TRANSFORMERS else (112, 112)
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    needs, seen = Needs(attention=True, features=frozenset({"keys"})), {}
    for device in ("cpu", "cuda"):
        model = from_pretrained(folder, device=device, dtype=torch.float32)
        seen[device] = model.observe(images.to(device), needs, Look(500))
    for size, expected in seen["cpu"].self_attention.items():
        found = seen["cuda"].self_attention[size].cpu()
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)
    expected, found = (seen[device].features["keys"].cpu() for device in ("cpu", "cuda"))
    assert ((found - expected).norm() / expected.norm()).item() <= 1e-3


def test_recursive_cuts_of_several_images_at_once():
    """The release's partitions, all sets of a level of three images padded and cut together."""
    chosen = [case for case in CUTS.values() if case["alpha"] == 10]
    trees = [CutTree(cosine_affinity(features_of(case).cuda(), 10)) for case in chosen]
    for case, labels in zip(chosen, partitions(trees, 0.5), strict=True):
        golden = np.load(GOLDEN / "diffcut" / f"{case['name']}.npz")["coarse"]
        assert agreement(labels.view(32, 32).cpu().numpy(), golden) == 1


@pytest.fixture
def tf32_allowed():
    """As a program around may have it."""
    matmul = torch.backends.cuda.matmul
    name, on = ("fp32_precision", "tf32") if hasattr(matmul, "fp32_precision") else ("allow_tf32", True)
    before = getattr(matmul, name)
    setattr(matmul, name, on)
    yield
    assert getattr(matmul, name) == on
    setattr(matmul, name, before)


def test_distances_do_not_use_tf32(tf32_allowed):
    p = torch.softmax(8 * torch.randn(256, 4096, generator=torch.Generator().manual_seed(0)), -1)
    found = symmetric_kl(p.cuda(), p.cuda()).cpu()
    torch.testing.assert_close(found.double(), symmetric_kl(p.double(), p.double()), atol=5e-5, rtol=1e-5)


def test_a_float32_model_is_one(tf32_allowed):
    """Convolutions, too, for which torch allows TF32 unless told otherwise."""
    image = image_to_pixels(scene(TEST_SEED, 0).image)[None]
    needs, maps = Needs(attention=True), {}
    for device in ("cpu", "cuda"):
        model = DiffusionModel.from_pretrained("mini", device=device, dtype=torch.float32)
        maps[device] = model.observe(image.to(device), needs, Look(100)).self_attention
    for size, expected in maps["cpu"].items():
        found = maps["cuda"][size].cpu()
        assert ((found - expected).norm() / expected.norm()).item() <= 2e-5, size


def test_residual_blocks_are_fused_and_right():
    """In the autoencoder's encoder and the UNet, with weights and names as they were."""
    plain = DiffusionModel.from_pretrained("mini", device="cpu")
    model = DiffusionModel.from_pretrained("mini", device="cuda", dtype=torch.float32)
    kinds = {type(m).__name__ for part in (model.pipeline.vae.encoder, model.network) for m in part.modules()}
    assert "FusedBlock" in kinds
    assert "ResnetBlock2D" not in kinds
    assert plain.network.state_dict().keys() == model.network.state_dict().keys()
    images = torch.stack([image_to_pixels(scene(TEST_SEED, i).image) for i in range(2)])
    torch.testing.assert_close(model.encode(images.cuda()).cpu(), plain.encode(images), rtol=1e-3, atol=1e-4)


def test_a_batch_is_merged_as_its_images_are():
    model = DiffusionModel.from_pretrained("mini", device="cuda", dtype=torch.float32)
    pixels = torch.stack([image_to_pixels(scene(TEST_SEED, i).image) for i in range(4)])
    attention = aggregate(model.observe(pixels, Needs(attention=True), Look(100)).self_attention)
    for found, one in zip(merge_batch(attention, 16, [0.62] * 3), attention, strict=True):
        expected = merge(one, 16, [0.62] * 3)
        labels = (to_labels(p, (512, 512)).cpu().numpy() for p in (found, expected))
        assert agreement(*labels) >= 0.999


def scores(folder, *settings):
    """What the whole command gives: the segmenters of its summary."""
    program = [sys.executable, "-m", "diffseg.eval.run", f"runs={folder}", *settings]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (summary,) = folder.glob("*/summary.json")
    return json.loads(summary.read_text())["segmenters"]


def test_an_evaluation_on_the_gpu_scores_as_on_the_cpu(tmp_path):
    """The whole command, with batches and pinned memory; half precision moves a border here and there."""
    found = {
        device: scores(tmp_path / device, "dataset.count=8", f"device={device}", "batch_size=3")["diffseg"]
        for device in ("cpu", "cuda")
    }
    assert len(found["cpu"]["iou"]) == len(CLASSES)
    assert found["cuda"]["accuracy"] == pytest.approx(found["cpu"]["accuracy"], abs=0.02)


def test_a_part_made_on_the_gpu_is_as_on_the_cpu(tmp_path):
    """Forty photos of two shapes, so that passes are full, half full and mixed."""
    keys = []
    for i in range(40):
        keys.append(str(tmp_path / f"{i:02}.png"))
        Image.fromarray(scene(4, i, 160).image[: 120 if i % 3 else 160]).save(keys[-1])
    (tmp_path / "keys.txt").write_text("\n".join(keys))
    found = {}
    for device in ("cpu", "cuda"):
        seg = parts.load_model("mini", device=device, dtype="float32")
        run = parts.plan(seg, seg.settings(size=256), parts.scan(str(tmp_path / "keys.txt")), model="mini")
        out = str(tmp_path / device)
        parts.begin(out, run)
        for job in parts.jobs(str(tmp_path / "keys.txt"), [0], out, run, device=device):
            parts.write_part(job)
        found[device] = [parts.labels(record) for record in parts.read(out)]
    shares = [agreement(a, b) for a, b in zip(found["cuda"], found["cpu"], strict=True)]
    assert len(shares) == 40
    assert np.mean(shares) >= 0.99


def test_every_method_scores_as_on_the_cpu(tmp_path):
    """In float32, where only the order of sums differs; cuts of eigenvectors may still fall to another side."""
    settings = ["experiment=arena", "dataset.count=4", "dtype=float32"]
    found = {device: scores(tmp_path / device, *settings, f"device={device}") for device in ("cpu", "cuda")}
    for name, expected in found["cpu"].items():
        assert found["cuda"][name]["accuracy"] == pytest.approx(expected["accuracy"], abs=0.05), name
