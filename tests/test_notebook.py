"""The notebook runs from top to bottom, offline."""

import json
from pathlib import Path

from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"


def test_every_cell_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text())
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in notebook["cells"] if cell["cell_type"] == "code")
    shown, names = [], {}
    for cell in code:
        *before, last = cell.splitlines()  # a cell shows its last line
        exec("\n".join(before), names)
        shown.append(eval(last, names))
    pictures = [value for value in shown if isinstance(value, Image.Image)]
    assert [picture.size for picture in pictures[:2]] == [(640, 427), (640, 427)]
    assert len(pictures) == 5
    assert "china.json" in shown[-1]
    assert "scene.overlay.png" in shown[-1]
