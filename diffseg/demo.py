"""Photos to try that are installed anyway, with the credits that their licences ask for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from diffseg.errors import UserError

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
