"""What all pages share: one head, one style, one script (page.html, style.html, script.html beside this file).

A page stands alone: styles, script and pictures are inside, and its policy forbids the browser to ask for anything, or
to run any script but this one, whatever keys and names from users hold.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from diffseg.eval.show.tables import metric_heading, metric_label, metric_number


@cache
def environment() -> Environment:
    """What fills the templates beside this file. Keys, class names and paths come from users: everything is escaped."""
    folder = FileSystemLoader(Path(__file__).parent)
    made = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"percent": percent, "share": _share, "data_uri": data_uri, "css": css, "csp_hash": _csp_hash}
    made.filters["zip"] = zip
    made.filters |= {"heading": metric_heading, "label": metric_label, "value": metric_number}
    return made


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction in percent; a dash where there is none."""
    return "–" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.{digits}f}"  # noqa: RUF001


def _share(fraction: float) -> str:
    return "0" if fraction == 0 else "< 0.1" if fraction < 0.0005 else percent(fraction)


def css(colour: Sequence[int]) -> str:
    """A colour as style sheets have it."""
    return "#" + bytes(int(x) for x in colour).hex()


def _csp_hash(script: str) -> str:
    """A script, by its hash, as a page's policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def data_uri(image: Image.Image, kind: str, quality: int = 85) -> str:
    """The image inside an address: WebP or JPEG for photos, PNG for flat colours (smaller, and its edges are sharp)."""
    file = io.BytesIO()
    image.save(file, kind, quality=quality, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def svg_of(figure: str, data: Any) -> str:
    """A figure of `drawing`, by its name there, as an element of a page."""
    from diffseg.eval.show import drawing  # matplotlib, which other pages do not need

    return drawing.inline_svg(getattr(drawing, figure)(data))
