"""Photos to try that are installed anyway, with the credits that their licences ask for, and scenes with captions."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path

from diffseg.errors import UserError
from diffseg.files import write

_CC_BY = "CC BY 2.0, https://creativecommons.org/licenses/by/2.0/"
# name: (package, the file in it, credit). scikit-learn's list names danielbuechele for the flower, too, but its page is
# vultilion's.
PHOTOS = {
    "china": (
        "sklearn",
        "datasets/images/china.jpg",
        f"photo by danielbuechele, {_CC_BY}, https://www.flickr.com/photos/danielbuechele/6061409035",
    ),
    "flower": (
        "sklearn",
        "datasets/images/flower.jpg",
        f"photo by vultilion, {_CC_BY}, https://www.flickr.com/photos/vultilion/6056698931",
    ),
    "grace_hopper": (
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        "photo of Grace Hopper by the U.S. Navy, public domain",
    ),
}


def demo_photo(name: str) -> Path:
    """The file of one of PHOTOS; the package that holds it is not imported.

    Raises:
        UserError: no such photo, or the installed package came without it.
    """
    if name not in PHOTOS:
        raise UserError(f"there is no demo photo {name!r}: choose one of {', '.join(PHOTOS)}")
    package, inside, _ = PHOTOS[name]
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / inside).is_file():
            return path
    raise UserError(f"the installed {package} came without {Path(inside).name}: give a photo of yours")


def demo_photos() -> dict[Path, str]:
    """{file: credit} of all PHOTOS."""
    return {demo_photo(name): credit for name, (_, _, credit) in PHOTOS.items()}


SCENES = (7, 1, 4)  # of the held-out series


def demo_scenes(folder: Path) -> dict[Path, tuple[tuple[str, ...], str]]:
    """Draws generated scenes, of the kind that the embedded model has learned words from, into a folder.

    Returns:
        {file: (nouns, caption)}.

    Raises:
        OSError: the folder cannot be written.
    """
    from PIL import Image

    from diffseg.datasets.scenes import TEST_SEED, scene

    drawn = {}
    for index in SCENES:
        made, path = scene(TEST_SEED, index), folder / f"scene{index}.png"
        write(path, partial(Image.fromarray(made.image).save, format="PNG"))
        drawn[path] = tuple(noun for noun, _ in made.nouns), made.caption
    return drawn
