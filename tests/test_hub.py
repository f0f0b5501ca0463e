"""Loading from the hub: the real client, in a process of its own, against a hub on localhost."""

import os
import subprocess
import sys

import pytest

from tests.hub import Hub
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
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    sd1 = save_pipeline("sd1", root / "sd1")
    save_pipeline("sd1", sd1, safe_serialization=False)  # pickles beside the safetensors, as on the hub
    (sd1 / "safety_checker").mkdir()
    (sd1 / "safety_checker" / "model.safetensors").write_bytes(b"large and of no use here")
    repositories = {("us/sd1", "main"): sd1, ("us/sd1", "v2"): save_pipeline("sdxl", root / "v2")}
    repositories["us/pickled", "main"] = save_pipeline("sd1", root / "pickled", safe_serialization=False)
    served = Hub(repositories)
    yield served
    served.close()


def load(hub, cache, name: str, revision: str = ""):
    keep = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment = keep | {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    command = [sys.executable, "-c", LOAD, name, revision]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_a_hub_id_is_fetched_once_and_without_what_is_of_no_use(hub, tmp_path):
    hub.asked.clear()
    ran = load(hub, tmp_path, "us/sd1")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[0] == "32"
    assert "unet/diffusion_pytorch_model.safetensors" in hub.asked
    assert not [name for name in hub.asked if name.endswith(".bin") or name.startswith("safety_checker")]
    hub.asked.clear()
    again = load(hub, tmp_path, "us/sd1")
    assert again.returncode == 0, again.stderr
    assert not [name for name in hub.asked if name.endswith(".safetensors")]


def test_the_revision_is_respected(hub, tmp_path):
    ran = load(hub, tmp_path, "us/sd1", "v2")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[0] == "64"


@pytest.mark.parametrize(("name", "revision"), [("us/pickled", ""), ("us/none", ""), ("us/sd1", "v3")])
def test_what_cannot_be_had_is_one_sentence(hub, tmp_path, name, revision):
    ran = load(hub, tmp_path, name, revision)
    assert ran.returncode == 1
    error = ran.stderr.strip().splitlines()[-1]
    assert error.startswith(f"OSError: cannot load '{name}'")
    assert "HF_TOKEN" in error


def test_a_model_in_the_cache_needs_no_hub(hub, tmp_path):
    assert load(hub, tmp_path, "us/sd1").returncode == 0
    gone = Hub({})
    gone.close()
    ran = load(gone, tmp_path, "us/sd1")
    assert ran.returncode == 0, ran.stderr
