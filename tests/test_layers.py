"""Which layers take part: names and patterns, many selections in one pass, runs that try each, memory foreseen."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffseg.attention import Look, Needs, Observation, Recorder, Tokens
from diffseg.backbones.base import maps_bytes
from diffseg.backbones.diffusion import DiffusionModel
from diffseg.devices import free_bytes
from diffseg.errors import UserError
from diffseg.eval import run
from diffseg.eval.evaluation import identity_of
from diffseg.layers import in_blocks_of, select, short_names
from diffseg.methods.base import Segmenter
from diffseg.methods.clustering import KMeansOracle
from diffseg.methods.merging import Merging
from diffseg.observed import Batch
from tests.models import UNETS, save_pipeline
from tests.test_eval import SMALL, configured, evaluated

SELF = Needs(attention=True)
KNOWN = [f"down_blocks.{i}.attentions.{j}.transformer_blocks.0.attn1" for i in (0, 1) for j in (0, 1)]
KNOWN += ["mid_block.attentions.0.transformer_blocks.0.attn1", "up_blocks.1.attentions.0.transformer_blocks.0.attn1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {
        name: DiffusionModel.from_pretrained(str(save_pipeline(name, tmp_path_factory.mktemp(name))), device="cpu")
        for name in UNETS
    }


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


# --- names ------------------------------------------------------------------------------------------------------------


def test_names_patterns_and_positions():
    assert select(None, KNOWN) == set(KNOWN)
    assert select(("down_blocks.*",), KNOWN) == set(KNOWN[:4])
    assert select((0, -1), KNOWN) == {KNOWN[0], KNOWN[-1]}
    assert select((KNOWN[2], "mid*", 4), KNOWN) == {KNOWN[2], KNOWN[4]}
    with pytest.raises(UserError, match=r"'mid_block.attn1' is no self-attention layer .*\(they are down_b.*\)$"):
        select(("mid_block.attn1",), KNOWN)
    with pytest.raises(UserError, match=f"did you mean {re.escape(KNOWN[0])}"):
        select((KNOWN[0].replace("attn1", "attn3"),), KNOWN)
    for beyond in (6, -7):
        with pytest.raises(UserError, match=rf"no layer {beyond}; .* 0 to 5, or -1 to -6 from the end"):
            select((beyond,), KNOWN)


def test_names_for_people():
    assert list(short_names(KNOWN).values()) == ["down 0.0", "down 0.1", "down 1.0", "down 1.1", "mid 0", "up 1.0"]
    numbered = [f"encoder.layer.{i}.attention" for i in range(12)]
    assert short_names(numbered)[numbered[11]] == "layer 11"
    two = ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"]
    assert list(short_names(two).values()) == ["transformer 0", "single_transformer 0"]
    assert short_names(["blocks.3.attn"]) == {"blocks.3.attn": "blocks.3.attn"}  # nothing to tell it from
    assert short_names(["up_blocks.*", *numbered]) == {"up_blocks.*": "up_blocks.*", **short_names(numbered)}
    assert short_names([]) == {}


def test_the_same_blocks():
    chosen = frozenset({"blocks.1.attn1"})
    assert in_blocks_of(chosen, "blocks.1.attn2")
    assert not in_blocks_of(chosen, "blocks.11.attn2")
    assert not in_blocks_of(frozenset({"one"}), "two")


# --- in one pass ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_each_group_is_what_its_layers_alone_show(models, images, name):
    """The mean over chosen layers of a resolution is the mean of passes with one layer each."""
    model = models[name]
    layers = model.self_attention()
    assert [layer.split("_")[0] for layer in layers] == sorted(layer.split("_")[0] for layer in layers)  # down, mid, up
    chosen = (("down_blocks.*",), (0,), None, (-1, 0))
    needs = replace(SELF, cross=True, selections=frozenset(chosen))
    together = model.observe(images, needs, Look(300))
    alone = {layer: model.observe(images, SELF, Look(300, layers=(layer,))).self_attention for layer in layers}
    for selection in chosen:
        seen = together if selection is None else together.selections[selection]
        sums = {}
        for layer in select(selection, layers):
            ((size, m),) = alone[layer].items()
            sums.setdefault(size, []).append(m)
        assert seen.self_attention.keys() == sums.keys()
        for size, parts in sums.items():
            torch.testing.assert_close(seen.self_attention[size], torch.stack(parts).mean(0), rtol=1e-5, atol=1e-8)
        assert seen.cross_attention.keys() == sums.keys()  # of the same blocks
    plain = model.observe(images, SELF, Look(300)).self_attention
    for size, m in model.observe(images, SELF, Look(300, layers=("*",))).self_attention.items():
        torch.testing.assert_close(m, plain[size], rtol=0, atol=0)


def test_joint_attention_in_groups():
    q = torch.randn(1, 2, 3 + 4, 8, generator=torch.Generator().manual_seed(0))

    class Joint(torch.nn.Module):
        def forward(self, scale):
            return torch.nn.functional.scaled_dot_product_attention(scale * q, q, q)

    network = torch.nn.ModuleDict({"a": Joint(), "b": Joint()})
    lie = Tokens((2, 2), slice(3, 7), slice(3, 7), slice(0, 3))
    needs = Needs(attention=True, cross=True)
    groups = [None, frozenset("a"), frozenset("b")]
    with Recorder(network, dict(network.named_children()), lambda *_: lie, needs, groups) as recorder:
        network["a"](1)
        network["b"](2)
    both, a, b = recorder.observations()
    for kind in ("self_attention", "cross_attention"):
        found, first, second = (getattr(seen, kind)[2, 2] for seen in (both, a, b))
        torch.testing.assert_close(found, (first + second) / 2)
        torch.testing.assert_close(found.sum(-1), torch.ones(1, 4))
        assert not torch.allclose(first, second)


def test_looks_that_differ_in_layers_alone_share_a_pass():
    asked = []

    def see(look, needs):
        asked.append((look, needs))
        others = {layers: Observation({(1, 1): torch.full((1, 1, 1), 2.0)}) for layers in needs.selections}
        return Observation({(1, 1): torch.ones(1, 1, 1)}, features={"keys": torch.zeros(1)}, selections=others)

    features = Needs(features=frozenset({"keys"}))
    wanted = {Look(layers=(0,)): SELF, Look(layers=("up*",)): SELF, Look(): features, Look(7, layers=(0,)): SELF}
    batch = Batch([torch.zeros(3, 8, 8)], see, Look(100), wanted)
    assert batch.seen(Look(layers=("up*",))).self_attention[1, 1] == 2
    assert batch.seen(Look(layers=(0,))).self_attention[1, 1] == 1
    assert batch.seen().self_attention == {}  # its methods want features alone
    assert batch.features("keys").shape == (1,)
    assert asked == [(Look(100, layers=(0,)), replace(SELF | features, selections=frozenset({("up*",)})))]
    batch.seen(Look(7, layers=(0,)))
    batch.seen(Look(layers=(5,)))  # nobody had asked for it
    assert [look for look, _ in asked[1:]] == [Look(7, layers=(0,)), Look(100, layers=(5,))]


def test_a_method_need_not_know_of_looks():
    class Plain(Segmenter):
        def segment(self, image):
            return image.batch.once("mine", lambda: image.attention().cpu().numpy())

    maps = {None: 1.0, (0,): 2.0}
    batch = Batch(
        [torch.zeros(3, 8, 8)], lambda look, needs: Observation({(1, 1): torch.full((1, 1, 1), maps[look.layers])})
    )
    from diffseg.eval.predict import segment

    methods = Plain(), Plain()
    methods[1].look = Look(layers=(0,))
    found = [segment(method, batch, [None])[0] for method in methods]
    assert found[0] is not found[1]  # what is kept is kept for each look
    assert segment(methods[1], batch, [None])[0] is found[1]


def test_anchors_fit_the_maps_of_chosen_layers():
    maps = torch.softmax(torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0)), -1)
    batch = Batch([torch.zeros(3, 32, 32)], lambda look, needs: Observation({(4, 4): maps}))
    with pytest.raises(UserError, match="anchors must be 1 to 4"):
        Merging(0.5).segment(batch[0])
    chosen = batch.within(Look(layers=(0,)))
    np.testing.assert_array_equal(Merging(0.5).segment(chosen[0]), Merging(0.5, anchors=4).segment(batch[0]))
    np.testing.assert_array_equal(Merging(0.5).segment_batch(chosen)[0], Merging(0.5).segment(chosen[0]))


def test_weights_of_other_resolutions_are_a_clear_sentence():
    maps = {(2, 2): torch.full((1, 4, 4), 0.25)}
    batch = Batch([torch.zeros(3, 32, 32)], lambda look, needs: Observation(maps), Look(layers=(0,)))
    with pytest.raises(UserError, match=r"weights: 4 given, but there are 1 resolutions \(2x2\), finest first"):
        batch.attention((1.0, 1.0, 1.0, 1.0))


# --- runs -------------------------------------------------------------------------------------------------------------


def layered(tmp_path, *settings):
    return evaluated(tmp_path, *SMALL, "dataset.count=2", "dataset.size=64", *settings)


def test_a_run_with_chosen_layers(tmp_path, monkeypatch):
    chosen = layered(tmp_path, "layers=[down_blocks.0.*]", "+segmenter@segmenters.kmeans_s=kmeans_s")
    plain = layered(tmp_path, "+segmenter@segmenters.kmeans_s=kmeans_s")
    own = layered(tmp_path, "+segmenters.diffseg.layers=[down_blocks.0.*]")
    assert chosen["folder"] != plain["folder"]
    assert chosen["layers"] == ["down_blocks.0.*"]
    assert "layers" not in plain
    for name in ("diffseg", "kmeans_s"):
        assert chosen["segmenters"][name]["accuracy"] != plain["segmenters"][name]["accuracy"]
    assert own["segmenters"]["diffseg"]["accuracy"] == chosen["segmenters"]["diffseg"]["accuracy"]


def test_what_is_not_set_is_no_part_of_a_runs_identity():
    config, choices = configured()
    assert "layers" not in identity_of(run.experiment_of(config, choices))
    config["layers"] = [0]
    assert identity_of(run.experiment_of(config, choices))["layers"] == [0]


def test_each_layer_in_one_pass(tmp_path, monkeypatch):
    passes = []
    observe = DiffusionModel.observe
    monkeypatch.setattr(DiffusionModel, "observe", lambda *a, **k: passes.append(1) or observe(*a, **k))
    found = layered(tmp_path, "experiment=ablation_layers", "layers=[mid*,up_blocks.3.*]")
    assert len(passes) == 2  # images
    assert list(found["segmenters"]) == [f"layers={name}" for name in ("all", "mid-0", "up-3.0", "up-3.1", "up-3.2")]
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1"
    assert found["segmenters"]["layers=mid-0"]["settings"]["layers"] == [layer]
    report = (Path(found["folder"]) / "report.html").read_text()
    assert "By attention layers" in report
    assert ">up 3.2<" in report


def test_layers_and_noise_in_one_run(tmp_path):
    settings = ["experiment=ablation_layers_noise", "layers=[mid*,-1]", "vary.timestep=[50,300]"]
    found = layered(tmp_path, *settings)
    assert len(found["segmenters"]) == 2 * 3
    assert found["segmenters"]["timestep=300,layers=up-3.2"]["settings"]["noise"] == 0
    assert "By attention layers and time step t" in (Path(found["folder"]) / "report.html").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["layers=[]"], "layers must be a list of names, patterns or positions of self-attention layers, or null; got"),
        (["layers=5"], "layers must be a list"),
        (["layers=[true]"], "layers must be a list"),
        (["layers=[9.*]"], r"'9\.\*' is no self-attention layer of the model .*they are down_blocks"),
        (["+segmenters.diffseg.layers=up"], "segmenters.diffseg.layers must be a list"),
        (["+segmenters.diffseg.timestep=1000"], "diffseg.timestep must be a whole number, 0 to 999, or null; got 1000"),
        (["vary={layers:[5]}"], r"segmenters.layers=5.layers must be a list of names, .*, or null; got 5"),
        (["vary={layers:up}"], "vary.layers must be a list of values to try for diffseg, got 'up'"),
        (["+segmenters.diffseg.nois=1"], "segmenters.diffseg has no setting nois"),
        (["experiment=ablation_layers", f"labels={Path(__file__).parent}"], "vary.layers: each means each layer of a"),
    ],
)
def test_wrong_layers_are_one_sentence(tmp_path, settings, message):
    with pytest.raises(UserError, match=message) as refused:
        layered(tmp_path, *settings)
    assert "\n" not in str(refused.value)


def test_a_class_keeps_settings_that_it_takes_itself():
    class Own(Merging):
        def __init__(self, timestep: int):
            super().__init__(0.5)
            self.look = Look(timestep, noise=1)

    sys.modules[__name__].Own = Own
    made = run.segmenter_of({"_target_": f"{__name__}.Own", "timestep": 50, "layers": [0]}, "own").made
    assert made.look == Look(50, 1, layers=(0,))
    oracle = run.segmenter_of({"_target_": "diffseg.methods.clustering.KMeansOracle", "noise": 3}, "k").made
    assert isinstance(oracle, KMeansOracle)
    assert oracle.look == Look(noise=3)
    assert KMeansOracle().look == Look()


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (100, 72)], ids=str)
@pytest.mark.parametrize("name", UNETS)
def test_the_grids_are_known_before_a_pass(models, name, size):
    model = models[name]
    known = {model.grid(layer, size) for layer in model.self_attention()}
    assert known == model.observe(torch.zeros(1, 3, *size), SELF).self_attention.keys()


def test_maps_that_cannot_fit_are_refused_before_the_pass(models, images, monkeypatch):
    model = models["sd1"]
    needed = maps_bytes([(8, 8), (4, 4), (2, 2), (1, 1)], 2)
    assert needed == 2 * 4 * (64**2 + 16**2 + 4**2 + 1 + 64**2)
    monkeypatch.setattr("diffseg.backbones.base.free_bytes", lambda device: needed)
    model.observe(images, SELF)
    two = replace(SELF, selections=frozenset({("mid*",)}))
    refusal = "attention at 8 x 8 positions of 2 images takes about 0.0 GiB and 0.0 GiB are free on cpu: choose a"
    with pytest.raises(UserError, match=refusal):
        model.observe(images, two)
    monkeypatch.setattr("diffseg.backbones.base.free_bytes", lambda device: needed - 1)
    monkeypatch.setattr(DiffusionModel, "forward", lambda *_: pytest.fail("it was foreseen"))
    with pytest.raises(UserError, match=refusal):
        model.observe(images, SELF)


def test_free_memory_of_a_machine_and_of_a_container(tmp_path):
    cpu = torch.device("cpu")
    assert free_bytes(cpu, tmp_path) is None  # no Linux
    assert free_bytes(torch.device("meta")) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal:  900 kB\nMemAvailable:     700 kB\n")
    assert free_bytes(cpu, tmp_path) == 700 << 10
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("300000\n")
    assert free_bytes(cpu, tmp_path) == 700 << 10
    (group / "memory.max").write_text("500000\n")
    assert free_bytes(cpu, tmp_path) == 200_000
    (group / "memory.stat").write_text("anon 5\ninactive_file 70\n")
    assert free_bytes(cpu, tmp_path) == 200_070
