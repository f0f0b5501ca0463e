"""What passes have seen of some images, each thing computed once, whatever the number of methods and settings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffseg.attention import Look, Maps, Needs, Observation, Size
from diffseg.errors import UserError
from diffseg.segmentation import aggregate, anchor_distances, anchor_grid

Weights = tuple[float, ...] | None
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Prompt:
    """What a prompted look says of an image.

    text: the prompt. classes: the class that each of its nouns means. tokens: positions of each noun's tokens in the
    encoded text. unnamed: a number that is no class.
    """

    text: str
    classes: tuple[int, ...]
    tokens: Sequence[Sequence[int]]
    unnamed: int


class Batch:
    """Images that are passed through a backbone together; looks that differ in `layers` alone share one pass.

    pixels: float32 [3, H, W] in [-1, 1] of each.

    Args:
        see: (look, needs) -> what a pass shows of these images; called when it is first asked for, once for each look.
        look: how this batch is looked at where a method does not say. needs: what all methods together ask of each
            look, so that one pass serves them; others are asked for attention alone.
        sizes: (H, W) in pixels that labels are wanted at; None: the pixels' own.
        prompts: of each image, where a method's look is prompted.
    """

    def __init__(
        self,
        pixels: Sequence[Tensor],
        see: Callable[[Look, Needs], Observation],
        look: Look = Look(),
        needs: Mapping[Look, Needs] | None = None,
        sizes: Sequence[Size] | None = None,
        prompts: Sequence[Prompt] | None = None,
    ):
        self.pixels, self.look, self.prompts, self._see = pixels, look, prompts, see
        self._needs: dict[Look, Needs] = {}
        for asked, wanted in (needs or {}).items():
            key = asked.within(look)
            self._needs[key] = self._needs.get(key, Needs()) | wanted
        self.sizes = [(p.shape[1], p.shape[2]) for p in pixels] if sizes is None else list(sizes)
        self._kept: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Observed:
        return Observed(self, range(len(self))[index])

    def __iter__(self) -> Iterator[Observed]:
        return (self[i] for i in range(len(self)))

    def within(self, look: Look) -> Batch:
        """The same images, looked at like this where a method does not say; all that was seen is shared."""
        view = copy(self)
        view.look = look.within(self.look)
        return view

    def once(self, key: Hashable, make: Callable[[], Thing]) -> Thing:
        """What `make` makes of the batch's own look, made when it is first asked for under this key and then kept."""
        return self._once(("once", self.look, key), make)

    def _once(self, key: Hashable, make: Callable[[], Thing]) -> Thing:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def start(self) -> None:
        """Makes the first pass that is needed before it is asked for; a GPU goes on with it while the caller does
        something else."""
        for look, needs in self._needs.items():
            if needs:
                self._see_once(look)
                return

    def seen(self, look: Look = Look()) -> Observation:
        """What a pass has shown; the model runs when that is first asked for."""
        look = look.within(self.look)
        self._see_once(look)
        self._once(("checked", look), self._kept["seen", look].check)
        return self._kept["seen", look]

    def _see_once(self, look: Look) -> None:
        if ("seen", look) not in self._kept:
            self._kept |= {("seen", other): seen for other, seen in self._pass(look).items()}

    def _pass(self, look: Look) -> dict[Look, Observation]:
        """What one pass shows for a look, and for all others asked for that differ from it in `layers` alone."""
        alike = {
            other: needs
            for other, needs in self._needs.items()
            if replace(other, layers=look.layers) == look and ("seen", other) not in self._kept
        }
        alike.setdefault(look, Needs(attention=True))
        mapped = [other for other, needs in alike.items() if needs.attention or needs.cross]
        first, *rest = mapped or [look]
        needs = replace(reduce(or_, alike.values()), selections=frozenset(other.layers for other in rest))
        seen = self._see(first, needs)
        featured = replace(seen, self_attention={}, cross_attention={})  # for those who want no attention
        found = {first: seen} | {other: seen.selections[other.layers] for other in rest}
        return {other: found.get(other, featured) for other in alike}

    def attention(self, weights: Weights = None, look: Look = Look()) -> Tensor:
        """Aggregated attention [B, h, w, h, w] for the weights R."""
        look = look.within(self.look)
        return self._once(("attention", weights, look), lambda: aggregate(self.seen(look).self_attention, weights))

    def features(self, name: str, look: Look = Look()) -> Tensor:
        """The output [B, C, h, w] of a layer of the backbone."""
        look = look.within(self.look)
        if name in self._needs.get(look, Needs()).features:
            return self.seen(look).features[name]
        needs = Needs(features=frozenset({name}))

        def see() -> Tensor:
            seen = self._see(look, needs)
            seen.check()
            return seen.features[name]

        return self._once(("features", name, look), see)

    def distances(self, weights: Weights, anchors: int, look: Look = Look()) -> Tensor:
        """Distances D [B, M*M, h*w] in nats from the maps of the M x M anchors to all maps."""
        look = look.within(self.look)
        key = ("distances", weights, anchors, look)
        return self._once(key, lambda: anchor_distances(self.attention(weights, look), anchors))


class Observed:
    """One image of a batch, as methods see it."""

    def __init__(self, batch: Batch, index: int):
        self.batch, self.index = batch, index

    @property
    def pixels(self) -> Tensor:
        """float32 [3, h, w] in [-1, 1]."""
        return self.batch.pixels[self.index]

    @property
    def size(self) -> Size:
        """(H, W) in pixels that labels are wanted at."""
        return self.batch.sizes[self.index]

    @property
    def prompt(self) -> Prompt:
        """What a prompted look says of the image.

        Raises:
            UserError: nothing, as for photos without a data set.
        """
        if self.batch.prompts is None:
            raise UserError("there is no prompt to name segments with: use diffseg.semantic.label for a single photo")
        return self.batch.prompts[self.index]

    def cross_attention(self, look: Look = Look(prompted=True)) -> Maps:
        """Attention to the prompt's tokens, {(h, w): [1, h*w, tokens]}."""
        maps = self.batch.seen(look).cross_attention
        return {size: attention[self.index : self.index + 1] for size, attention in maps.items()}

    def attention(self, weights: Weights = None, look: Look = Look()) -> Tensor:
        """Aggregated attention [h, w, h, w] for the weights R."""
        return self.batch.attention(weights, look)[self.index]

    def features(self, name: str, look: Look = Look()) -> Tensor:
        """The output [C, h, w] of a layer of the backbone."""
        return self.batch.features(name, look)[self.index]

    def distances(self, weights: Weights, anchors: int, look: Look = Look()) -> Tensor:
        """Distances D [M*M, h*w] in nats from the maps of the M x M anchors to all maps."""
        return self.batch.distances(weights, anchors, look)[self.index]

    def scale(self, weights: Weights = None, look: Look = Look(), anchors: int = 16) -> float:
        """Median distance in nats between two different anchors: how far apart this image's maps are."""
        attention = self.attention(weights, look)
        h, w = attention.shape[:2]
        anchors = min(anchors, h, w)
        grid = anchor_grid(anchors, (h, w))
        positions = (grid[:, 0] * w + grid[:, 1]).to(attention.device)
        between = self.distances(weights, anchors, look)[:, positions]
        rows, columns = torch.triu_indices(len(grid), len(grid), offset=1)
        return float(between[rows, columns].median()) if len(rows) else 1.0
