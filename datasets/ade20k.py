"""ADE20K, scene parsing (ADEChallengeData2016), in the layout of its own download: 150 classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffseg.datasets.base import (
    DataError,
    Dataset,
    check_values,
    names_in,
    paired,
    part_of,
    read_map,
    read_photo,
    require_folder,
)

# Values 1..150 in order, each with what else it is called; 0 is "other".
_NAMES = """
wall; building, edifice; sky; floor, flooring; tree; ceiling; road, route; bed; windowpane, window; grass; cabinet;
sidewalk, pavement; person, individual, somebody; earth, ground; door, double door; table; mountain, mount;
plant, flora; curtain, drape, drapery; chair; car, auto, automobile; water; painting, picture; sofa, couch, lounge;
shelf; house; sea; mirror; rug, carpet, carpeting; field; armchair; seat; fence, fencing; desk; rock, stone;
wardrobe, closet, press; lamp; bathtub, tub; railing, rail; cushion; base, pedestal, stand; box; column, pillar;
signboard, sign; chest of drawers, chest, bureau, dresser; counter; sand; sink; skyscraper; fireplace, hearth;
refrigerator, icebox; grandstand, covered stand; path; stairs, steps; runway; case, display case, showcase, vitrine;
pool table, billiard table, snooker table; pillow; screen door; stairway, staircase; river; bridge, span; bookcase;
blind; coffee table, cocktail table; toilet, commode; flower; book; hill; bench; countertop; stove, kitchen stove;
palm, palm tree; kitchen island; computer; swivel chair; boat; bar; arcade machine; hovel, hut, shack, shanty;
bus, coach, autobus; towel; light, light source; truck, motortruck; tower; chandelier, pendant;
awning, sunshade, sunblind; streetlight, street lamp; booth, cubicle, stall, kiosk; television, tv, telly;
airplane, aeroplane, plane; dirt track; apparel, wearing apparel, dress, clothes; pole; land, soil;
bannister, banister, balustrade, handrail; escalator, moving staircase; ottoman, pouf, hassock; bottle;
buffet, sideboard; poster, placard, notice, bill, card; stage; van; ship; fountain; conveyer belt, conveyor belt;
canopy; washer, washing machine; plaything, toy; swimming pool, natatorium; stool; barrel, cask; basket, handbasket;
waterfall, falls; tent; bag; minibike, motorbike; cradle; oven; ball; food, solid food; step, stair;
tank, storage tank; trade name, brand name, brand; microwave, microwave oven; pot, flowerpot; animal, beast, creature;
bicycle, bike, cycle; lake; dishwasher, dish washer; screen, silver screen, projection screen; blanket, cover;
sculpture; hood, exhaust hood; sconce; vase; traffic light, traffic signal, stoplight; tray;
ashcan, trash can, garbage can, wastebin, dustbin; fan; pier, wharf, dock; crt screen; plate; monitor;
bulletin board, notice board; shower; radiator; glass, drinking glass; clock; flag
"""
_CALLED = tuple(tuple(" ".join(word.split()) for word in names.split(",")) for names in _NAMES.split(";"))
CLASSES: tuple[str, ...] = tuple(names[0] for names in _CALLED)
# A class's own name comes before another's synonym.
VOCABULARY: dict[str, int] = {word: i for i, names in reversed([*enumerate(_CALLED)]) for word in names}
VOCABULARY |= {name: i for i, name in enumerate(CLASSES)}

COUNTS = {"validation": 2000, "training": 20210}
_REDUCED = 255  # what "other" becomes where one has been taken from every value
LAYOUT = (
    "ROOT/images/validation/*.jpg with ROOT/annotations/validation/*.png, as in ADEChallengeData2016.zip; "
    "make data-ade20k DATA=ROOT fetches it"
)


class Ade20k(Dataset):
    """2,000 images (validation), 150 classes; "other" is ignored. keys: "ADE_val_00000001" ...; any subset works.

    Args:
        root: folder that holds images and annotations. split: validation or training.
        count, keys: a part of the images, see `Dataset.choose`. prepare: see `Dataset`.

    Raises:
        DataError: folders missing; no image; an image without its label, or the reverse.
    """

    classes = CLASSES
    vocabulary: Mapping[str, int] = VOCABULARY

    def __init__(
        self,
        root: str | Path,
        split: str = "validation",
        size: int = 512,
        count: int | None = None,
        keys: Sequence[str] | str | None = None,
        prepare: str = "crop",
    ):
        if split not in COUNTS:
            raise DataError(f"split must be validation or training, got {split!r}")
        self.size = size
        self._photos = require_folder(Path(root) / "images" / split, LAYOUT, Path(root))
        self._labels = require_folder(Path(root) / "annotations" / split, LAYOUT, Path(root))
        photos, labels = names_in(self._photos, ".jpg"), names_in(self._labels, ".png")
        if not photos and not labels:
            raise DataError(f"{self._photos} has no .jpg photos: the layout is {LAYOUT}")
        self.keys = paired(photos, labels, "unpack ADEChallengeData2016.zip again")
        official = {f"ADE_val_{number:08d}" for number in range(1, COUNTS["validation"] + 1)}
        self.note = part_of(len(self.keys), COUNTS["validation"], "images of validation")
        if split != "validation":
            self.note = f"{len(self.keys):,} images of {split}, not of validation"
        elif not photos <= official:
            self.note = f"{len(self.keys):,} images, of which {len(photos - official):,} are not of validation"
        self.choose(count, keys, prepare)

    def file(self, key: str) -> Path:
        """ROOT/images/SPLIT/KEY.jpg."""
        return self._photos / f"{key}.jpg"

    def truth_file(self, key: str) -> Path:
        """ROOT/annotations/SPLIT/KEY.png."""
        return self._labels / f"{key}.png"

    def photo(self, key: str) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return read_photo(self.file(key))

    def raw_label(self, key: str) -> np.ndarray:
        """int32 [H, W]: 1..150 -> 0..149, and 0, which is other, -> -1.

        Raises:
            DataError: other values, such as 255 where one has been taken from every value before.
        """
        path = self.truth_file(key)
        values = read_map(path)
        if (values == _REDUCED).any():
            raise DataError(
                f"{path} holds the value 255, so one was taken from all of its values before (reduce_zero_label): the "
                f"official maps hold 0, other, to 150; unpack ADEChallengeData2016.zip again"
            )
        check_values(path, values, len(CLASSES), None, "ADE20K's scene parsing")
        return values - 1
