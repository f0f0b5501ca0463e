"""The walls inside the house: which module may import which, and which errors may become a sentence."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffseg"
# By path inside the package; conf, datasets and eval are links to folders beside it.
SOURCES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_bytes())
    for folder, _, files in os.walk(PACKAGE, followlinks=True)
    for path in map(Path(folder).joinpath, files)
    if path.suffix == ".py"
}
METHODS = sorted(path for path in SOURCES if path.startswith("methods/") and path != "methods/__init__.py")


def module_of(path: str) -> str:
    """diffseg.eval.run of eval/run.py."""
    return ".".join(["diffseg", *Path(path).with_suffix("").parts]).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, those inside functions too, but none that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from executed(node)


def imports(path: str) -> set[str]:
    """Dotted names that a source imports: modules, and things in them."""
    names = set()
    for node in executed(SOURCES[path]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports by a relative name"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def who_imports(library: str) -> set[str]:
    return {path for path in SOURCES if any(name.partition(".")[0] == library for name in imports(path))}


def all_behind(path: str) -> set[str]:
    """The sources of the package that a source needs, directly or through others."""
    reached, todo = {path}, [path]
    while todo:
        for name in imports(todo.pop()):
            if name in MODULES and MODULES[name] not in reached:
                reached.add(MODULES[name])
                todo.append(MODULES[name])
    return reached - {path}


def loaded_by(code: str) -> set[str]:
    """The names of all modules that a new process has loaded after this code."""
    code += "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(json.loads(ran.stdout.splitlines()[-1]))


def test_every_source_is_looked_at():
    assert {"attention.py", "eval/run.py", "eval/show/tracker.py", "datasets/base.py", "backbones/diffusion.py"} <= set(
        SOURCES
    )
    assert len(METHODS) >= 4
    assert {"eval/metrics.py", "eval/protocols.py"} <= all_behind("eval/check.py")


# --- libraries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "users"),
    [
        ("hydra", {"eval/run.py"}),
        ("omegaconf", {"eval/run.py"}),
        ("wandb", {"eval/show/tracker.py"}),
        ("gradio", {"web.py"}),
    ],
)
def test_a_library_with_one_user(library, users):
    assert who_imports(library) == users


@pytest.mark.parametrize(("library", "user"), [("ray", "eval/cluster.py")])
def test_a_library_that_at_most_one_may_use(library, user):
    assert who_imports(library) <= {user}


def test_models_come_from_backbones_alone():
    """Training makes models of its own; captions are another kind of model."""
    inside = {path for path in SOURCES if path.startswith(("backbones/", "mini/"))}
    assert "backbones/diffusion.py" in who_imports("diffusers") <= inside
    assert "captions.py" in who_imports("transformers") <= inside | {"captions.py"}


# --- scoring ----------------------------------------------------------------------------------------------------------

ARITHMETIC = ("metrics", "protocols", "boundaries", "regions")
SCORING = ("score", *ARITHMETIC, "check", "runs")
OF_MODELS = ("attention", "backbones", "methods", "observed", "segmenter", "semantic", "mini", "captions", "fused")


def of_models(modules: set[str]) -> set[str]:
    names = ("diffusers", "transformers", *(f"diffseg.{name}" for name in OF_MODELS))
    return {module for module in modules if any(f"{module}.".startswith(f"{name}.") for name in names)}


def test_scoring_loads_no_model_code():
    loaded = loaded_by("".join(f"import diffseg.eval.{name}\n" for name in SCORING))
    assert {f"diffseg.eval.{name}" for name in SCORING} <= loaded
    assert of_models(loaded) == set()
    for name in SCORING:  # what functions import only when they are called
        behind = {module_of(path) for path in all_behind(f"eval/{name}.py")}
        assert of_models(behind) == set()


def test_metrics_need_no_torch():
    loaded = loaded_by("".join(f"import diffseg.eval.{name}\n" for name in ARITHMETIC))
    assert not {"torch", "pandas"} & loaded
    assert {module for module in loaded if module.startswith("diffseg.")} == {
        "diffseg.errors",
        "diffseg.eval",
        *(f"diffseg.eval.{name}" for name in ARITHMETIC),
    }


# --- methods ----------------------------------------------------------------------------------------------------------


def test_the_method_knows_no_command_line_and_no_model():
    paths = ["attention.py", "segmentation.py", "observed.py", *METHODS]
    loaded = loaded_by("".join(f"import {module_of(path)}\n" for path in paths))
    assert {module_of(path) for path in paths} <= loaded
    assert not {"hydra", "omegaconf", "typer", "diffusers", "transformers"} & loaded
    assert not {module for module in loaded if module.startswith(("diffseg.eval", "diffseg.backbones"))}


RELATED = {"methods/autosc.py": {"methods/diffcut.py"}}  # it names pixels as DiffCut does


@pytest.mark.parametrize("path", [path for path in METHODS if path != "methods/base.py"])
def test_a_method_needs_no_other_method(path):
    """Then an edit of one is an edit of no other's code: see `eval/sources.py`."""
    blocks = {"methods/base.py", "methods/ncut.py", *RELATED.get(path, ())}
    assert {other for other in all_behind(path) if other in METHODS} <= blocks - {path}


def test_the_base_of_methods_needs_none_of_them():
    assert not all_behind("methods/base.py") & set(METHODS)


def test_the_explorer_knows_no_interface():
    behind = all_behind("explorer.py")
    assert not {path for path in behind if path in ("cli.py", "options.py", "web.py") or path.startswith("page/")}
    used = {name.partition(".")[0] for path in {"explorer.py", *behind} for name in imports(path)}
    assert not {"typer", "jinja2", "gradio"} & used


# --- folders and start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["datasets", "eval"])
def test_folders_at_the_top_are_no_packages_of_their_own(folder):
    """As `datasets` and `eval` they would hide, or be hidden by, libraries of these names."""
    assert (PACKAGE / folder).is_symlink()
    assert (PACKAGE / folder).resolve() == PACKAGE.parent / folder
    assert not list((PACKAGE.parent / folder).rglob("__init__.py"))


def test_help_does_not_wait_for_torch():
    code = "from diffseg.cli import app\ntry:\n    app(['--help'])\nexcept SystemExit as end:\n    assert not end.code"
    loaded = loaded_by(code)
    assert "diffseg.cli" in loaded
    assert not {"torch", "numpy", "scipy", "diffusers", "transformers", "hydra"} & loaded


def test_a_photo_does_not_wait_for_what_few_need():
    """Names on overlays, polygons, figures and scores have libraries of their own."""
    loaded = loaded_by("import diffseg.segmenter, diffseg.doctor")
    assert "torch" in loaded
    assert not {"scipy", "contourpy", "sklearn", "pandas", "matplotlib", "diffusers", "transformers"} & loaded


# --- errors -----------------------------------------------------------------------------------------------------------


def handlers(path: str) -> dict[str, list[str]]:
    """{function: what its handlers catch, in order}."""
    caught: dict[str, list[str]] = {}

    def visit(node: ast.AST, function: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ExceptHandler):
                caught.setdefault(function, []).append(ast.unparse(child.type) if child.type else "everything")
            visit(child, child.name if isinstance(child, ast.FunctionDef) else function)

    visit(SOURCES[path], "")
    return caught


MENDABLE = "(UserError, OSError)"
EXPECTED = {
    "options.py": {"one_sentence": [MENDABLE]},
    "bulk.py": {
        "segment": ["parts.StoreError"],  # status 1: the same command may go through later
        "_segment": ["(parts.StoreError, LostError)", "KeyboardInterrupt"],  # what was finished before is told
    },
    "cli.py": {
        "words": ["CaptionError"],
        "_numbers": ["ValueError"],  # of float(text), see below
        "attempt": ["ImageError"],
        "process_files": ["KeyboardInterrupt"],  # what is done is told
        "_may_be_there": ["FileNotFoundError", "OSError"],  # of lstat
    },
    "start.py": {"_run": ["SystemExit"]},  # of a command that is done
    "eval/evaluation.py": {"_score": ["DataError"]},
    "eval/paper.py": {  # one step that cannot be done, or fails, is told and takes no other with it
        "plan": [MENDABLE],
        "_wrong_with": [MENDABLE],
        "measured": ["UserError"],
        "_answer": [MENDABLE, "KeyboardInterrupt"],
        "figures": [MENDABLE],
        "do_steps": ["UserError"],
        "outcome_of": ["DataError"],
        "run": ["KeyboardInterrupt"],
    },
    "eval/run.py": {
        "_method_of": ["UserError"],  # raised on, with the segmenter that it is about
        "make": ["InstantiationException"],  # raises the constructor's own error
        "_imported": ["(ImportError, ValueError)"],  # Hydra's; what somebody's module raised is raised on
        "composed": ["(HydraException, OmegaConfBaseException)"],
        "dataset_of": ["(HydraException, OmegaConfBaseException)"],
        "resolved": ["InterpolationKeyError"],
        "_job": [
            "(OmegaConfBaseException, UserError, OSError)",
            "RuntimeError",  # raised on where it is not of a job that SLURM has ended
        ],
        "_told": [
            "KeyboardInterrupt",
            "MovedError",
            "UserWarning",  # of a search path that leads nowhere
            "InstantiationException",  # raised on
            "(HydraException, OmegaConfBaseException)",
            MENDABLE,
            "ValueError",  # raised on where it is not Hydra's own
            "RuntimeError",  # raised on where it is not of a job that SLURM has ended
        ],
    },
}


@pytest.mark.parametrize("path", EXPECTED)
def test_only_errors_that_a_user_can_mend_become_a_sentence(path):
    """A new handler at a door needs a reason here: one that is too wide turns a bug into advice."""
    assert handlers(path) == EXPECTED[path]


def test_nothing_catches_everything():
    wide = {"everything", "Exception", "BaseException"}
    seen = {path: [c for cs in handlers(path).values() for c in cs if c in wide] for path in SOURCES}
    assert {path: caught for path, caught in seen.items() if caught} == {
        "devices.py": ["Exception"],  # around a kernel that is compiled on the spot; the plain way stands beside it
        "images.py": ["Exception"],  # around Pillow's decoders, which raise anything on damaged files
        "datasets/download.py": ["BaseException"],  # removes what it began, and raises on
    }


def test_what_is_caught_around_numbers_is_their_reading_alone():
    (function,) = [n for n in ast.walk(SOURCES["cli.py"]) if isinstance(n, ast.FunctionDef) and n.name == "_numbers"]
    (attempt,) = [n for n in ast.walk(function) if isinstance(n, ast.Try)]
    assert [ast.unparse(line) for line in attempt.body] == ["return [float(x) for x in text.split(',')]"]


def test_every_error_of_the_package_is_mendable():
    """What is raised for a user to read is a UserError, so that a plain ValueError can be a bug."""
    nodes = [node for tree in SOURCES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    errors = {n.name: [ast.unparse(base) for base in n.bases] for n in nodes if n.name.endswith("Error")}
    assert errors.pop("UserError") == ["ValueError"]
    assert {"DataError", "ImageError", "MovedError"} <= set(errors)
    assert errors.pop("_TerminatedError") == ["KeyboardInterrupt"]  # a scheduler's Ctrl-C
    assert errors.pop("_ArchiveError") == ["Exception"]  # becomes a DataError where it is caught
    assert all(set(bases) <= {"UserError", *errors} for bases in errors.values())
