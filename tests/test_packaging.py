"""What stands around the code: citation, changelog, types, links of the texts, pre-commit and Docker."""

import re
import tomllib
from itertools import chain
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from PIL import Image

import diffseg

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "diffseg" / "mini" / "README.md"]
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^(```+).*?^\1$", "", page.read_text(), flags=re.M | re.S))


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub names them: small letters, hyphens, a number where one comes again."""
    names: dict[str, int] = {}
    found = set()
    text = re.sub(r"^(```+).*?^\1$", "", page.read_text(), flags=re.M | re.S)
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(f"{name}-{names[name]}" if name in names else name)
        names[name] = names.get(name, 0) + 1
    return found


def links(page: Path) -> list[str]:
    """Where a page's links and pictures lead, but to the web."""
    found = re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", prose(page))
    found += re.findall(r"(?:src|href|srcset)=\"([^\"\s]+)", prose(page))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_pages_are_read_as_github_does(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# 1, two: `three`\n```sh\n# none [x](y)\n```\n## A [b](c.md)\n## A b\n![p](<d.png>) `[e](f)`")
    assert anchors(page) == {"1-two-three", "a-b", "a-b-1"}
    assert links(page) == ["c.md", "d.png"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_pages_tell_to_type_is_there(page):
    text = page.read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    told = re.findall(r"(?:`|^|&& )make ([a-z][a-z0-9-]*[a-z0-9])\b(?!-?\.\.\.)", text, re.M)
    assert set(told) <= targets
    experiments = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
    assert set(re.findall(r"experiment=(\w+)", text)) <= experiments


def test_the_quick_start_runs(tmp_path, monkeypatch):
    """Its Python, from top to bottom, with the embedded model."""
    photo = np.zeros((120, 160, 3), np.uint8)
    photo[:, 80:] = (200, 120, 40)
    Image.fromarray(photo).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "quickstart.md").read_text(), re.M | re.S)
    names: dict = {}
    exec("\n".join(blocks), names)
    assert len(blocks) == 2
    assert (tmp_path / "overlay.png").is_file()
    assert names["walked"].shape == (120, 160)


def test_one_version():
    assert PROJECT["version"] == diffseg.__version__
    assert f"version = {{{PROJECT['version']}}}" in (ROOT / "README.md").read_text()


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Tian", "Aggarwal", "Colaco", "Kira", "Gonzalez-Franco",
    ]  # fmt: skip
    assert citation["references"] == [paper]


def test_changelog_has_the_version():
    headings = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d{2}-\d{2})?$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"
    assert PROJECT["version"] in headings


def test_every_pinned_requirement_is_one():
    """Direct requirements of the package and of its extras are in constraints.txt, which is in order."""
    pinned = {name.lower().replace("_", "-") for name in PINNED}
    assert list(PINNED) == sorted(PINNED, key=lambda name: name.lower().replace("_", "-"))
    everything = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    names = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in everything if ";" not in requirement}
    assert names - pinned == {"diffseg", "sentencepiece"}  # the second is for PixArt's tokenizer, which no test needs


def test_precommit_takes_the_ruff_of_the_project():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    assert all(hook["entry"].startswith(".venv/bin/python -m ruff ") for hook in local["hooks"])
    assert "ruff" in PINNED


def test_the_workflow_calls_what_contributors_run():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert [step["run"] for step in jobs["ci"]["steps"] if "run" in step] == [".ci/run"]


def test_what_docker_copies_is_there():
    """The package's links to folders beside it lead somewhere in the image, too."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "!results/reference" in ignored
    for link in (path for path in (ROOT / "diffseg").iterdir() if path.is_symlink()):
        top = link.resolve().relative_to(ROOT).parts[0]
        assert top not in ignored, f"{link.name} would lead nowhere"
