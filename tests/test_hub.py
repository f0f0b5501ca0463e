"""Loading from the hub: the real client, in a process of its own, against a hub on localhost."""

import pytest

from tests.models import save_pipeline

LOAD = """
import sys
from diffseg.backbones.diffusion import DiffusionModel
try:
    model = DiffusionModel.from_pretrained(sys.argv[1], revision=sys.argv[2] or None, device="cpu")
except (ValueError, OSError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(model.pipeline.unet.config.cross_attention_dim, model.defaults)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory, on_hub):
    hub, _ = on_hub
    root = tmp_path_factory.mktemp("hub")
    sd1 = save_pipeline("sd1", root / "sd1")
    save_pipeline("sd1", sd1, safe_serialization=False)  # pickles beside the safetensors, as on the hub
    (sd1 / "safety_checker").mkdir()
    (sd1 / "safety_checker" / "model.safetensors").write_bytes(b"large and of no use here")
    pickled = save_pipeline("sd1", root / "pickled", safe_serialization=False)
    hub.repositories |= {("us/sd1", "main"): sd1, ("us/sd1", "v2"): save_pipeline("sdxl", root / "v2")}
    hub.repositories |= {("us/pickled", "main"): pickled, ("us/kept", "main"): sd1}
    return hub


@pytest.fixture
def load(hub, on_hub, tmp_path):
    """Loads a model in a process of its own; the cache is that of all tests."""
    (tmp_path / "load.py").write_text(LOAD)
    return lambda name, revision="": on_hub[1](name, revision, script=tmp_path / "load.py", cwd=tmp_path)


def test_a_hub_id_is_fetched_once_and_without_what_is_of_no_use(hub, load):
    hub.asked.clear()
    ran = load("us/sd1")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[0] == "32"
    assert "unet/diffusion_pytorch_model.safetensors" in hub.asked
    assert not [name for name in hub.asked if name.endswith(".bin") or name.startswith("safety_checker")]
    hub.asked.clear()
    again = load("us/sd1")
    assert again.returncode == 0, again.stderr
    assert not [name for name in hub.asked if name.endswith(".safetensors")]


def test_the_revision_is_respected(load):
    ran = load("us/sd1", "v2")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[0] == "64"


@pytest.mark.parametrize(("name", "revision"), [("us/pickled", ""), ("us/none", ""), ("us/sd1", "v3")])
def test_what_cannot_be_had_is_one_sentence(load, name, revision):
    ran = load(name, revision)
    assert ran.returncode == 1
    error = ran.stderr.strip().splitlines()[-1]
    assert error.startswith(f"OSError: cannot load '{name}'")
    assert "HF_TOKEN" in error


def test_a_model_in_the_cache_needs_no_hub(hub, load):
    assert load("us/kept").returncode == 0
    with hub.away():
        ran = load("us/kept")
    assert ran.returncode == 0, ran.stderr
