"""docs/extending.md as a newcomer reads it: its files in a folder of their own, its commands, what it says of hashes.

And the sentences that somebody gets whose class, YAML file or folder is not quite right.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from diffseg.eval import run, sources
from tests.fresh import Commands

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
FILES = {match[1]: body for _, body in BLOCKS if (match := re.match(r"# (\S+\.(?:py|yaml))\n", body))}
COMMANDS = [
    shlex.split(line)
    for language, body in BLOCKS
    if language == "sh"
    for line in body.replace("\\\n", " ").splitlines()
]
QUICK = ["dataset.count=2", "dataset.size=64", "workers=0", "device=cpu"]


def newcomer(folder: Path) -> Path:
    """A folder with the page's files."""
    for name, body in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(body)
    return folder


def console_script(folder: Path) -> Path:
    """diffseg-eval as pip writes it: unlike `python -m`, it does not put the current folder on the path."""
    folder.mkdir()
    script = folder / "diffseg-eval"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom diffseg.eval.run import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return folder


class Shell:
    """Runs commands in a folder outside the repository. programs: the folder of diffseg-eval; modules: PYTHONPATH."""

    def __init__(self, commands: Commands, folder: Path, programs: Path, modules: Path):
        self.commands, self.folder, self.programs, self.modules = commands, folder, programs, modules

    def __call__(self, program: str, *arguments: str) -> subprocess.CompletedProcess:
        """program: diffseg-eval; or python, with a script or `-m` and a module."""
        what: dict = {"path": [self.modules], "script": self.programs / program}
        if program == "python" and arguments[0] == "-m":
            _, module, *arguments = arguments
            what = {"path": [self.folder, self.modules], "module": module}
        elif program == "python":
            script, *arguments = arguments
            what["script"] = self.folder / script
        ran = self.commands(*arguments, cwd=self.folder, COLUMNS="200", **what)
        assert ran.returncode == 0, f"{shlex.join([program, *arguments])}\n{ran.stdout}{ran.stderr}"
        return ran

    def evaluate(self, *arguments: str) -> Path:
        """The run's folder, by what the command says."""
        ran = self("diffseg-eval", *arguments)
        return self.folder / re.search(r"-> (\S+)$", ran.stderr, re.M)[1]


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def maps_of(folder: Path, segmenter: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted((folder / segmenter / "labels").glob("*.png"))]


@pytest.fixture(scope="module")
def shell(tmp_path_factory, commands):
    """Of somebody who has installed the package: its wheel is all there is of it."""
    place = tmp_path_factory.mktemp("newcomer")
    checkout, installed = place / "checkout", place / "installed"
    left_out = shutil.ignore_patterns(".git", ".venv", ".*_cache", "build", "*.egg-info", "runs", "__pycache__")
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=left_out)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(installed), str(checkout)], check=True)
    shutil.rmtree(checkout)
    return Shell(commands, newcomer(place / "work"), installed / "bin", installed)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_every_block_of_python_and_yaml_is_a_file_and_every_command_is_known():
    assert all(re.match(r"# \S+\.(py|yaml)\n", body) for language, body in BLOCKS if language in ("python", "yaml"))
    assert {command[0] for command in COMMANDS} == {"diffseg-eval", "python"}
    assert {Path(name).parts[1] for name in FILES if name.startswith("conf/")} == {
        "segmenter", "dataset", "model", "protocol"
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(shell):
    """The folder of each run that the page's commands make."""
    folders = [
        shell.evaluate(*arguments) if program == "diffseg-eval" else shell(program, *arguments)
        for program, *arguments in COMMANDS
    ]
    return [folder for folder in folders if isinstance(folder, Path)]


def test_the_pages_commands_run_and_make_label_maps(runs):
    assert [sorted(summary_of(folder)["segmenters"]) for folder in runs] == [
        ["diffseg", "halves"],
        ["plain"],
        ["halves"],
        ["diffseg"],
        ["diffseg"],
        ["diffseg", "features", "halves"],
        [*(f"halves.vectors={n}" for n in (1, 2, 3)), "threshold=0.6", "threshold=1.1"],
    ]
    assert [summary_of(folder)["model"] for folder in runs] == [*["mini"] * 5, "tiny", "mini"]
    for folder in runs:
        summary = summary_of(folder)
        for name in summary["segmenters"]:
            maps = maps_of(folder, name)
            assert len(maps) == summary["images"] == (2 if summary["dataset"]["name"] == "pairs" else 4)
            assert {labels.shape for labels in maps} == {(128, 128)}
    plain, halves = maps_of(runs[1], "plain"), maps_of(runs[2], "halves")
    np.testing.assert_array_equal(halves, plain)
    assert max(labels.max() for labels in halves) == 3
    assert max(labels.max() for labels in maps_of(runs[6], "halves.vectors=3")) == 7


def test_own_protocols_are_in_the_summary(runs):
    protocols = summary_of(runs[3])["protocols"]
    assert list(protocols) == ["diffseg", "pure", "segments"]
    assert 0 <= protocols["pure"]["diffseg"]["accuracy"] <= 1
    counted = [len(np.unique(labels)) for labels in maps_of(runs[3], "diffseg")]
    assert protocols["segments"]["diffseg"]["per_image"] == np.mean(counted)
    assert "per_image" in protocols["segments"]["diffseg"]["interval"]


def test_an_own_data_set_is_named_and_its_classes_are_scored(runs):
    summary = summary_of(runs[4])
    assert summary["dataset"]["name"] == "pairs"
    assert summary["dataset"]["published"] is None
    assert list(summary["segmenters"]["diffseg"]["iou"]) == ["ground", "sky"]


def test_edited_code_is_predicted_anew_and_an_untouched_rerun_does_nothing(shell, runs):
    first = runs[6]
    again = shell(*COMMANDS[-1])
    assert f"-> {first.relative_to(shell.folder)}\n" in again.stderr
    assert "predict: nothing to do" in again.stderr
    assert "score: nothing to do" in again.stderr
    source = shell.folder / "mine.py"
    source.write_text(source.read_text().replace("[: self.vectors] > 0", "[: self.vectors] > 0.01"))
    try:
        edited = shell.evaluate(*COMMANDS[-1][1:])
    finally:
        newcomer(shell.folder)
    assert edited != first
    assert not np.array_equal(maps_of(first, "halves.vectors=2"), maps_of(edited, "halves.vectors=2"))


def test_a_checkout_does_what_an_installed_wheel_does(tmp_path, shell, runs, commands):
    (shell.folder / "where.py").write_text("import diffseg.eval.run as r; print(r.__file__)")
    assert Path(shell("python", "where.py").stdout.strip()) == shell.modules / "diffseg" / "eval" / "run.py"
    checkout = Shell(commands, newcomer(tmp_path / "newcomer"), console_script(tmp_path / "bin"), ROOT)
    folder = checkout.evaluate(*COMMANDS[0][1:])
    assert summary_of(folder)["segmenters"] == summary_of(runs[0])["segmenters"]
    assert folder.name == runs[0].name  # the same sources, so the same run
    assert "predict: nothing to do" in checkout(*COMMANDS[0]).stderr


# --- what is not quite right ------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A newcomer's folder as the current one, for commands in this process."""
    before = set(sys.modules)
    monkeypatch.chdir(newcomer(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    for cached in (sources._file, sources._is_installed):
        cached.cache_clear()
    GlobalHydra.instance().clear()
    os.environ.pop("HYDRA_FULL_ERROR", None)


@pytest.fixture
def refused(here, monkeypatch, capfd):
    """A function that runs the command and returns the sentence with which it is refused."""

    def run_command(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["diffseg-eval", *arguments, *QUICK])
        with pytest.raises(SystemExit) as ended:
            run.main()
        said = capfd.readouterr().err
        assert ended.value.code == 2
        *before, sentence = said.strip().splitlines()
        assert all(" images -> " in line for line in before)  # where the run's folder is, once it has one
        return sentence.removeprefix("diffseg-eval: ")

    return run_command


MISTAKES = """
import torch
import scores
from diffseg.attention import Needs
from diffseg.backbones.base import Backbone
from diffseg.datasets.base import Dataset
from diffseg.methods.base import Segmenter

class Unfinished(Segmenter): pass
class Stranger:
    def __init__(self, **settings): pass
class Careless(Segmenter):
    needs = Needs()
    def segment(self, image): return torch.zeros(8, 8)
class Negative(Segmenter):
    needs = Needs()
    def segment(self, image): return -torch.ones(image.size).int().numpy()
class Nowhere(Backbone):
    def __init__(self): pass
class Empty(Dataset):
    def __init__(self, **settings): self.keys = []
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config-dir=nowhere"], "Additional config directory '{here}/nowhere' not found"),
        (["hydra.searchpath=[file://nowhere]"], "hydra.searchpath: nowhere is no folder"),
        (
            ["hydra.searchpath=[pkg://nobody.conf]"],
            "hydra.searchpath: nobody.conf is no folder, and no package with an __init__",
        ),
        (["--config-dir", "conf", "+segmenter@segmenters.halves=halfs"], "did you mean halves?"),
        (["--config-dir", "conf", "protocol=[diffseg,puer]"], "protocol=puer: protocol is one of boundaries"),
        (["--config-dir", "conf", "segmenter=halves"], "+segmenter@segmenters.NAME=NAME adds one"),
        (
            ["+segmenters.x.vectors=1"],
            "segmenters.x names no class: it needs _target_, as in segmenters.x._target_=mypkg.Mine; got {{'vectors'",
        ),
        (["+segmenters.x=3"], "segmenters.x names no class: it needs _target_"),
        (["+segmenters.x._target_=mine.Halfs"], "segmenters.x: {here}/mine.py has no Halfs; did you mean Halves?"),
        (
            ["+segmenters.x._target_=nothing.Mine"],
            "segmenters.x: there is no nothing.Mine to import (No module named 'nothing'): looked in the current "
            "folder {here}, on PYTHONPATH and among the installed packages of ",
        ),
        (["+segmenters.x._target_=needing.Mine"], "no needing.Mine to import (No module named 'a_library')"),
        (
            ["+segmenters.x._target_=mine.Halves", "+segmenters.x.vectros=1"],
            "segmenters.x has no setting vectros; did you mean vectors?; it takes vectors",
        ),
        (["+segmenters.x._target_=mine.Halves", "+segmenters.x.vectors=9"], "vectors must be 1 to 7, got 9"),
        (["+segmenters.x._target_=mistakes.Unfinished"], "the class mistakes.Unfinished must have segment, too"),
        (
            ["+segmenters.x._target_=scores.Pure"],
            "segmenters.x: scores.Pure gives a Pure, which is no subclass of diffseg.methods.base.Segmenter or "
            "diffseg.methods.base.Oracle",
        ),
        (["+protocols.x._target_=mine.Halves"], "no subclass of diffseg.eval.protocols.Protocol"),
        (["--config-dir=conf", "model=stranger"], "no subclass of diffseg.backbones.base.Backbone"),
        (["--config-dir=conf", "model=nowhere"], "model: the class mistakes.Nowhere must have forward and layers"),
        (["--config-dir=conf", "dataset=stranger"], "no subclass of diffseg.datasets.base.Dataset"),
        (["--config-dir=conf", "dataset=empty"], "dataset: mistakes.Empty has no images"),
        (["--config-dir=conf", "dataset=pairs", "dataset.root=nothing"], "there is no folder nothing/photos"),
        (
            ["~segmenters.diffseg", "+segmenters.x._target_=mistakes.Careless"],
            "segmenters.x: of the image 000000 it gives a Tensor torch.float32 [8, 8]; a label map is a numpy array "
            "[64, 64] of whole numbers from 0",
        ),
        (
            ["~segmenters.diffseg", "+segmenters.x._target_=mistakes.Negative"],
            "it gives a ndarray int32 [64, 64], at least -1",
        ),
        (
            ["--config-dir=conf", "experiment=unplaced"],
            "must say where it belongs: begin its file in conf/protocol with the line '# @package",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence(refused, here, arguments, words):
    (here / "mistakes.py").write_text(MISTAKES)
    (here / "needing.py").write_text("import a_library\n")
    (here / "conf" / "dataset" / "stranger.yaml").write_text("_target_: mistakes.Stranger\nsize: 64\ncount: 2\n")
    (here / "conf" / "dataset" / "empty.yaml").write_text("_target_: mistakes.Empty\nsize: 64\ncount: 2\n")
    (here / "conf" / "model" / "stranger.yaml").write_text("_target_: mistakes.Stranger\n")
    (here / "conf" / "model" / "nowhere.yaml").write_text("_target_: mistakes.Nowhere\n")
    (here / "conf" / "experiment").mkdir()
    placed = "# @package _global_\ndefaults:\n  - override /protocol: [diffseg, pure]\n"
    (here / "conf" / "experiment" / "unplaced.yaml").write_text(placed)
    assert words.format(here=here) in refused(*arguments)


@pytest.mark.parametrize("place", ["--config-dir=conf", "hydra.searchpath=[pkg://mypkg.conf]"])
def test_an_experiment_may_choose_a_protocol_that_says_its_place(here, monkeypatch, capfd, place):
    (here / "conf" / "experiment").mkdir()
    chosen = "# @package _global_\ndefaults:\n  - override /protocol: [pure, diffseg]\n"
    (here / "conf" / "experiment" / "both.yaml").write_text(chosen)
    pure = here / "conf" / "protocol" / "pure.yaml"
    pure.write_text(f"# @package protocols.pure\n{pure.read_text()}")
    for package in ("mypkg", "mypkg/conf"):
        (here / package).mkdir()
        (here / package / "__init__.py").touch()
    shutil.copytree(here / "conf", here / "mypkg" / "conf", dirs_exist_ok=True)
    monkeypatch.setattr(sys, "argv", ["diffseg-eval", place, "experiment=both", "--cfg=job", "--package=protocols"])
    run.main()
    composed = yaml.safe_load(capfd.readouterr().out)
    assert [(name, settings["_target_"]) for name, settings in composed.items()] == [
        ("pure", "scores.Pure"),
        ("diffseg", "diffseg.eval.protocols.OneToOne"),
    ]


def test_a_bug_in_somebodys_class_keeps_its_traceback(here, monkeypatch):
    (here / "buggy.py").write_text("from mine import Halves\n\nclass Buggy(Halves):\n    def __init__(self): 1 / 0\n")
    monkeypatch.setattr(sys, "argv", ["diffseg-eval", "+segmenters.x._target_=buggy.Buggy", *QUICK])
    with pytest.raises(ZeroDivisionError):
        run.main()


def test_overrides_may_stand_on_both_sides_of_options():
    given = ["dataset.count=2", "--config-dir", "a=b", "+x=1", "-m", "~y", "--cfg=job", "batch"]
    assert run.hydras(given) == ["--config-dir", "a=b", "-m", "--cfg=job", "batch", "dataset.count=2", "+x=1", "~y"]


def test_protocols_are_put_at_their_names_in_the_order_given():
    placed = ["protocol=[]", "+protocol@protocols.mine=mine", "+protocol@protocols.diffseg=diffseg"]
    assert run.hydras(["protocol=[mine, diffseg]"]) == placed
    assert run.hydras(["protocol=mine"]) == placed[:2]
    for other in ("protocol=[diffseg],[mine]", "protocol=diffseg,mine", "protocol=[]", "protocols.mine.share=0.3"):
        assert run.hydras([other]) == [other]


def test_the_sources_of_a_class_are_its_own_and_what_they_import(here, monkeypatch):
    monkeypatch.syspath_prepend(here)
    (here / "helper.py").write_text("LEAST = 3\n")
    (here / "net.py").write_text(
        "import helper\nfrom diffseg.backbones.diffusion import DiffusionModel\n\nclass Net(DiffusionModel): pass\n"
    )
    modules = run.modules_of({"_target_": "net.Net.from_pretrained", "name": "mini"})  # the parent's class method
    assert set(modules) == {"net", "diffseg.backbones.diffusion"}
    before = sources.source_hash(["net"])
    (here / "helper.py").write_text("LEAST = 4\n")
    assert sources.source_hash(["net"]) != before


def test_what_pip_installed_is_not_followed_in_any_environment(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "somebodys_library.py").write_text("A = 1\n")
    (tmp_path / "follower.py").write_text("import somebodys_library\n")
    before = sources.source_hash(["follower"])
    (tmp_path / "somebodys_library.py").write_text("A = 2\n")
    own = sources.source_hash(["follower"])
    assert own != before
    (tmp_path / "somebodys_library-1.0.dist-info").mkdir()  # as in a folder of `pip install --target`
    sources._is_installed.cache_clear()
    sources._file.cache_clear()
    installed = sources.source_hash(["follower"])
    assert installed != own
    (tmp_path / "somebodys_library.py").write_text("A = 3\n")
    assert sources.source_hash(["follower"]) == installed
