"""One watched pass of a network -> Observation (the paper's section 3.1). Knows torch alone, no model and no method.

Every attention layer of today's networks calls `torch.nn.functional.scaled_dot_product_attention`. A `Recorder` sees
the queries and keys as they are multiplied there - after projections, normalisation and rotary embedding - whatever the
architecture. `attention_maps` is all that a diffusers UNet needs; `diffseg.backbones` has whole models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffseg.devices import slice_bytes, without
from diffseg.errors import UserError, did_you_mean
from diffseg.layers import Layers, in_blocks_of

AddHeadMean = Callable[[Any, Tensor, Tensor, int, float], None]  # total, queries, keys, heads, scale
Size = tuple[int, int]  # (h, w)
Maps = dict[Size, Tensor]


@dataclass(frozen=True)
class Look:
    """One way of asking a backbone: methods that look alike share one pass.

    timestep: t, what the network is told; noise: seed of the noise that is added as of t, None: none is; prompted: with
    the images' prompts in place of the empty one; size: pixels a side of the photo; layers: the self-attention layers
    that take part (see `layers.select`), None: all. What is left as it is here is as the run, or the caller, has it.
    """

    timestep: int | None = None
    noise: int | None = None
    prompted: bool = False
    size: int | None = None
    layers: Layers | None = None

    def __post_init__(self):
        for name, least, most in (("timestep", 0, 999), ("noise", 0, 2**63 - 1), ("size", 8, 8192)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UserError(f"{name} of a look must be {least} to {most}, or none; got {value}")

    def within(self, other: Look) -> Look:
        """This look, with what it leaves open as `other` has it."""
        open_ = {f.name: getattr(other, f.name) for f in fields(self) if getattr(self, f.name) == f.default}
        return replace(self, **open_)


@dataclass(frozen=True)
class Needs:
    """What methods ask of a pass: self-attention, cross-attention, outputs of layers by name. a | b is both.

    selections: of layers, besides the look's own, whose attention is wanted as well (None: all layers).
    """

    attention: bool = False
    cross: bool = False
    features: frozenset[str] = frozenset()
    selections: frozenset[Layers | None] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.attention or other.attention,
            self.cross or other.cross,
            self.features | other.features,
            self.selections | other.selections,
        )

    def __bool__(self) -> bool:
        return self.attention or self.cross or bool(self.features)


@dataclass(frozen=True)
class Tokens:
    """How the tokens of one attention call lie.

    size: (h, w) of the image's tokens, row by row. image: where they are among the queries and, in self-attention and
    joint attention, among the keys; None: the keys have none. text: where the prompt's tokens are among the keys.
    """

    size: Size
    queries: slice
    image: slice | None = None
    text: slice | None = None


@dataclass(frozen=True)
class Observation:
    """What one pass has shown of a batch; attention is float32 (float64 where the network is), features are its own.

    self_attention: {(h, w): [B, h*w, h*w]}, mean over the heads and layers of each resolution. cross_attention:
    {(h, w): [B, h*w, tokens]}. Each row sums to 1. features: {layer: [B, C, h, w]}. What was not asked for is empty.
    selections: what the same pass has shown of other selections of layers. check: waits for the pass, and raises a
    UserError that names the layer where what it has computed are no numbers.
    """

    self_attention: Maps
    cross_attention: Maps = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    selections: dict[Layers | None, Observation] = field(default_factory=dict)
    check: Callable[[], None] = lambda: None


class Recorder(TorchFunctionMode):
    """Watches one pass of a network, inside `with`; it is left as it was, also when the pass fails.

    Passes that other threads make of the same network meanwhile are theirs: each recorder sees its own thread's alone.

    Maps are accumulated in place: no layer's per-head probabilities are ever held.

    Args:
        network: what is watched. layers: its attention layers by name, those that may be of interest.
        tokens: (layer, queries, keys) -> how the tokens of such a call lie; None: not of interest.
        needs: what to keep. Features are the outputs of any module of the network, [B, h*w, C] or [B, C, h, w].
        groups: of self-attention layers by name, each with maps of its own; None: all layers. Of the prompt's tokens,
            those layers count that lie in the same blocks.

    Raises:
        UserError: features of a module that the network does not have.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Mapping[str, nn.Module],
        tokens: Callable[[str, int, int], Tokens | None],
        needs: Needs,
        groups: Sequence[frozenset[str] | None] = (None,),
    ):
        super().__init__()
        self._network, self._layers, self._tokens, self._needs = network, layers, tokens, needs
        self._groups = list(groups)
        self._modules = {name: module for name, module in network.named_modules() if name in needs.features}
        for name in needs.features - self._modules.keys():
            known = [name for name, _ in network.named_modules() if name]
            raise UserError(
                f"{type(network).__name__} has no layer {name!r} to take features of{did_you_mean(name, known)} "
                f"(its attention layers: {', '.join(layers)})"
            )
        self._current: str | None = None
        self._seen: set[str] = set()
        self._sums: list[dict[str, Maps]] = [{"image": {}, "text": {}} for _ in groups]
        self._counts: dict[tuple[int, str, Size], int] = {}
        self._lies: dict[str, tuple[Tokens, int]] = {}  # how the tokens of each layer lie, and its number of queries
        self._outputs: dict[str, tuple[Tensor, ...]] = {}
        self._finite: dict[str, Tensor] = {}  # the sum of each layer's queries and keys: no number if one is none
        self._hooks: list[Any] = []
        self._watching = False

    def __enter__(self) -> Recorder:
        thread = get_ident()

        def here(hook: Callable[..., None]) -> Callable[..., None]:
            return lambda *args: hook(*args) if get_ident() == thread else None

        for name, layer in self._layers.items():
            self._hooks.append(layer.register_forward_pre_hook(here(partial(self._enter, name))))
            self._hooks.append(layer.register_forward_hook(here(self._leave)))
        for name, module in self._modules.items():
            self._hooks.append(module.register_forward_hook(here(partial(self._keep, name))))
        return self

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._watch(False)

    def _enter(self, name: str, *_: Any) -> None:
        self._current = name
        self._watch(True)

    def _leave(self, *_: Any) -> None:
        self._current = None
        self._watch(False)

    def _watch(self, on: bool) -> None:
        """Torch's calls come by here only inside a watched layer: each costs microseconds, a pass makes thousands."""
        if on and not self._watching:
            super().__enter__()
        elif self._watching and not on:
            super().__exit__(None, None, None)
        self._watching = on

    def _keep(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        self._outputs[name] = tuple(x for x in outputs if isinstance(x, Tensor))

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Passes everything on; of a watched layer's attention, queries and keys are looked at first.

        On a CPU the probabilities that are looked at give the layer's output as well, so that none is computed twice.
        """
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and self._current is not None:
            bound = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
            output = self._look(self._current, **bound)
            if output is not None:
                return output
        return function(*args, **kwargs)

    def _look(
        self,
        layer: str,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        scale: float | None = None,
        **other: Any,
    ) -> Tensor | None:
        """Keeps of a layer's attention what is asked for. On a CPU gives what torch's function would; else None.

        query: [B, heads, R, d]. key, value: [B, heads, T, d].
        """
        self._seen.add(layer)
        lie = self._tokens(layer, query.shape[-2], key.shape[-2])
        if lie is None:
            return None
        self._lies[layer] = lie, query.shape[-2]
        asked = {"image": lie.image if self._needs.attention else None, "text": lie.text if self._needs.cross else None}
        kinds = {kind: keys for kind, keys in asked.items() if keys is not None and self._groups_of(layer, kind)}
        once = query.device.type == "cpu" and not any(other.values()) and lie.queries == slice(0, query.shape[-2])
        if not kinds and not once:
            return None
        # Sums are finite where all is, one pass over memory each; asking now would make a GPU wait at every layer.
        if kinds:
            self._finite[layer] = _sum_of(query) + _sum_of(key)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        q, k = (x.transpose(1, 2).flatten(2) for x in (query[:, :, lie.queries], key))
        add, output = _head_mean_for(q, query.shape[1]), None
        options: dict[str, Any] = {}
        if attn_mask is not None:
            options["mask"] = attn_mask if attn_mask.shape[-2] == 1 else attn_mask[..., lie.queries, :]
        if once and (add is add_head_mean or attn_mask is not None):  # the fused kernel does not know masks
            output = query.new_empty(*query.shape[:-1], value.shape[-1])
            options |= {"values": value, "output": output}
        if options:
            add = partial(add_head_mean, **options)
        if not kinds and output is not None:  # what is kept must not move what the layer gives, not by a bit
            add(None, q, k, query.shape[1], scale)
        whole = slice(0, k.shape[1])
        joint = None
        for kind, keys in kinds.items():
            totals = [self._sum(group, kind, lie.size, q, keys) for group in self._groups_of(layer, kind)]
            if keys == whole and len(totals) == 1:
                add(totals[0], q, k, query.shape[1], scale)
                continue
            if joint is None:
                joint = totals[0].new_zeros(len(q), q.shape[1], k.shape[1])
                add(joint, q, k, query.shape[1], scale)
            part = joint[..., keys]
            if keys == whole:
                for total in totals:
                    total += part
            else:  # image and text side by side under one softmax: each block is made a distribution again
                sums = part.sum(-1, keepdim=True)
                for total in totals:
                    total.addcdiv_(part, sums)
        return output

    def _groups_of(self, layer: str, kind: str) -> list[int]:
        """The groups that a layer's attention of one kind belongs to."""

        def takes_part(chosen: frozenset[str] | None) -> bool:
            return chosen is None or (layer in chosen if kind == "image" else in_blocks_of(chosen, layer))

        return [index for index, chosen in enumerate(self._groups) if takes_part(chosen)]

    def _sum(self, group: int, kind: str, size: Size, queries: Tensor, keys: slice) -> Tensor:
        """A group's running sum [B, R, keys] of one kind and size, which one more layer is about to be added to."""
        self._counts[group, kind, size] = self._counts.get((group, kind, size), 0) + 1
        sums = self._sums[group][kind]
        if size not in sums:
            dtype = torch.promote_types(queries.dtype, torch.float32)
            shape = (len(queries), queries.shape[1], keys.stop - keys.start)
            sums[size] = torch.zeros(shape, dtype=dtype, device=queries.device)
        return sums[size]

    def observation(self) -> Observation:
        """What was seen of the first group; see `observations`."""
        return self.observations()[0]

    def observations(self, wait: bool = True) -> list[Observation]:
        """What was seen of each group, once the pass is over; the recorder is empty afterwards.

        wait: for the device, to `check` at once; otherwise that is the caller's to do.

        Raises:
            UserError: the network has attention layers that did not call `scaled_dot_product_attention`, or no
                self-attention though it was asked for, or what it computes are no numbers.
        """
        unseen = [name for name in self._layers if name not in self._seen]
        network = type(self._network).__name__
        if unseen and (self._needs.attention or self._needs.cross):
            raise UserError(
                f"{len(unseen)} of {len(self._layers)} attention layers of {network}, such as {unseen[0]}, do not call "
                f"torch's scaled_dot_product_attention, so their attention cannot be seen: use the model's own "
                f"attention processors"
            )
        for sums, chosen in zip(self._sums, self._groups, strict=True):
            if self._needs.attention and not sums["image"]:
                where = "transformer blocks" if chosen is None else ", ".join(sorted(chosen))
                raise UserError(f"{network} has no self-attention in {where}: nothing to segment with")
        features = {name: self._of_image(name, outputs) for name, outputs in self._outputs.items()}
        check = self._check_of(network, features)
        if wait:
            check()
        for group, sums in enumerate(self._sums):
            for kind, maps in sums.items():
                for size, total in maps.items():
                    total.div_(self._counts[group, kind, size])
        grids = {name: self._grid(name, values) for name, values in features.items()}
        seen = [Observation(sums["image"], sums["text"], grids, check=check) for sums in self._sums]
        self._sums, self._outputs = [], {}
        return seen

    def _check_of(self, network: str, features: Mapping[str, Tensor]) -> Callable[[], None]:
        """What refuses a pass whose numbers are none any more, naming the first layer that shows it."""
        sums = self._finite | {name: _sum_of(values) for name, values in features.items()}
        finite = torch.stack([total.isfinite() for total in sums.values()]) if sums else torch.ones(1)

        def check() -> None:
            if bool(finite.all()):
                return
            layer = next(name for name, fine in zip(sums, finite, strict=True) if not fine)
            raise UserError(
                f"{layer} of {network} computes NaN or infinite numbers: its weights are damaged, or overflow in half "
                f"precision (then set dtype to float32)"
            )

        return check

    def _near(self, name: str) -> list[str]:
        """The seen layers around or in a module, or else those beside it: in the smallest module that has both."""
        near = [layer for layer in self._lies if f"{layer}.".startswith(f"{name}.") or name.startswith(f"{layer}.")]
        while not near and name:
            name = name.rpartition(".")[0]
            near = [layer for layer in self._lies if not name or layer.startswith(f"{name}.")]
        return near

    def _of_image(self, name: str, outputs: tuple[Tensor, ...]) -> Tensor:
        """Of several outputs of a module the one with a row for each of the image's tokens; else the first.

        Joint transformers' blocks give (text, image), their attention (image, text), AdaLN its values before its
        gates. Where text and image are equally long, a block's last such output is the image's, a layer's the first.
        """
        near = self._near(name)
        lies = [self._lies[layer] for layer in near]
        lengths = {queries for _, queries in lies} | {lie.size[0] * lie.size[1] for lie, _ in lies}
        fits = [x for x in outputs if x.ndim == 3 and x.shape[1] in lengths]
        is_block = any(layer.startswith(f"{name}.") for layer in near)
        if not outputs:
            raise UserError(f"the output of {name} is no tensor: take another layer")
        return fits[-1 if is_block else 0] if fits else outputs[0]

    def _grid(self, name: str, features: Tensor) -> Tensor:
        """Features [B, N, C] of a layer, or of what is near one, as [B, C, h, w]; of four axes as they are.

        N: the image's tokens, or all that the layer has as queries, of which the image's are taken.
        """
        if features.ndim == 4:
            return features
        grids = {}
        for lie, queries in (self._lies[layer] for layer in self._near(name)):
            h, w = lie.size
            if features.ndim == 3 and features.shape[1] == queries:
                grids[lie.size] = features[:, lie.queries]
            elif features.ndim == 3 and features.shape[1] == h * w:
                grids[lie.size] = features
        if len(grids) != 1:
            raise UserError(
                f"the output of {name}, {list(features.shape)}, is no grid of positions: take another layer"
            )
        ((size, tokens),) = grids.items()
        return tokens.transpose(1, 2).unflatten(2, size)


_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")  # of torch's attention, in order


def _sum_of(values: Tensor) -> Tensor:
    """The sum of all values, in at least float32: a number where all of them are."""
    return values.sum(dtype=torch.promote_types(values.dtype, torch.float32))


def add_head_mean(
    total: Tensor | None,
    q: Tensor,
    k: Tensor,
    heads: int,
    scale: float,
    mask: Tensor | None = None,
    values: Tensor | None = None,
    output: Tensor | None = None,
) -> None:
    """Adds the mean over heads of softmax(q k^T * scale + mask) to total, slice by slice, in at least float32.

    Args:
        total: [B, R, T]; None: only the output is wanted. q: [B, R, heads * d], queries. k: [B, T, heads * d], keys.
        mask: [B or 1, heads or 1, R or 1, T], added, or boolean: False is not attended to. values: [B, heads, T, d];
        output: [B, heads, R, d], which softmax(q k^T * scale + mask) values is written to.
    """
    dtype = torch.promote_types(q.dtype, torch.float32) if total is None else total.dtype
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
        mask = mask.to(dtype).expand(len(q), heads, q.shape[1], k.shape[1])
    queries = (q.to(dtype) * scale).unflatten(-1, (heads, -1)).transpose(1, 2).contiguous()  # [B, heads, R, d]
    keys = k.to(dtype).unflatten(-1, (heads, -1)).permute(0, 2, 3, 1).contiguous()  # [B, heads, d, T]
    if values is not None:
        values = values.to(dtype).contiguous()
    step = max(1, slice_bytes(q.device) // (k.shape[1] * dtype.itemsize))
    room = queries.new_empty(min(step, q.shape[1]), k.shape[1])
    for b in range(len(q)):
        for start in range(0, q.shape[1], step):
            probabilities = room[: min(step, q.shape[1] - start)]
            for head in range(heads):
                torch.mm(queries[b, head, start : start + step], keys[b, head], out=probabilities)
                if mask is not None:
                    probabilities += mask[b, head, start : start + step]
                torch.softmax(probabilities, -1, out=probabilities)
                if total is not None:
                    total[b, start : start + step].add_(probabilities, alpha=1 / heads)
                if values is not None and output is not None:
                    output[b, head, start : start + step] = probabilities @ values[b, head]


def _head_mean_for(queries: Tensor, heads: int) -> AddHeadMean:
    """What adds the head-mean of such queries [B, R, heads * d]: on a CUDA device the fused kernel, if it is right."""
    if queries.is_cuda and queries.dtype != torch.float64 and torch.version.cuda:
        return verified(_fused, queries.device, queries.dtype, queries.shape[2] // heads)
    return add_head_mean


def _fused() -> AddHeadMean:
    from diffseg.fused import add_head_mean as fused

    return fused


@cache
def verified(load: Callable[[], AddHeadMean], device: torch.device, dtype: torch.dtype, depth: int) -> AddHeadMean:
    """A faster `add_head_mean` if a small case comes out right with it, else the plain one, with a warning.

    Tried once a process for each device, precision and number of channels a head: kernels are compiled for each.

    Args:
        load: gives it; whatever that raises, or it itself, is a reason to go without.
    """
    kind = str(dtype).removeprefix("torch.")
    unused = without(
        f"the fused attention kernel is not used on {device} in {kind}",
        lambda: deviation(load(), device, dtype, depth),
        _TOLERANCE[dtype],
        "the plain way",
    )
    return add_head_mean if unused else load()


_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 1e-3}  # of the norm of the result


def deviation(faster: AddHeadMean, device: torch.device, dtype: torch.dtype, depth: int) -> float:
    """How far a result of `faster` is from the plain one in float64, as a share of its norm; NaN where it is none."""
    heads, positions = 3, 150  # more than one tile, and no whole number of them
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, positions, heads * depth, generator=generator).to(device, dtype) for _ in range(2))
    total = torch.full((2, positions, positions), 1 / positions, device=device)
    expected = total.double()
    add_head_mean(expected, q, k, heads, 2 * depth**-0.5)
    faster(total, q, k, heads, 2 * depth**-0.5)
    return float((total - expected).norm() / expected.norm())


# --- diffusers' UNets -------------------------------------------------------------------------------------------------


def attention_maps(unet: nn.Module, latents: Tensor, timestep: int, context: Tensor) -> Maps:
    """Self-attention of one pass of a diffusers UNet; see `capture`.

    Args:
        unet: any diffusers UNet with transformer blocks; it is left as it was.
        latents: [B, c, h, w]. timestep: t, 0..999. context: [B, tokens, d], the encoded prompts.

    Returns:
        {(h, w): [B, h*w, h*w]} for each resolution that has self-attention, each row a distribution over keys.
    """
    return capture(unet, latents, timestep, context).self_attention


@torch.no_grad()
def capture(
    unet: nn.Module,
    latents: Tensor,
    timestep: int,
    context: Tensor,
    added: dict[str, Tensor] | None = None,
    needs: Needs = Needs(attention=True),
) -> Observation:
    """One watched pass of a diffusers UNet; mean over heads and layers of softmax(q k^T * scale) at each resolution.

    Args:
        unet, latents, timestep, context: as for `attention_maps`.
        added: SDXL's added conditions ("text_embeds", "time_ids"). needs: what to keep.

    Raises:
        UserError: the UNet has no self-attention in transformer blocks, or it cannot be seen.
    """
    tokens = partial(unet_tokens, size=(latents.shape[-2], latents.shape[-1]))
    with Recorder(unet, unet_layers(unet), tokens, needs) as recorder:
        t = torch.full((len(latents),), timestep, device=latents.device)
        unet(latents, t, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False)
    return recorder.observation()


def unet_layers(unet: nn.Module) -> dict[str, nn.Module]:
    """A diffusers UNet's attention layers by name: self-attention (attn1) and attention to the prompt (attn2).

    In the order of a pass: on the way down, in the middle, on the way up. A block whose "self"-attention looks at the
    prompt is left out.
    """
    crossing = {".attn1": False, ".attn2": True}
    found = {
        name: module
        for name, module in unet.named_modules()
        if name[-6:] in crossing and crossing[name[-6:]] == module.is_cross_attention
    }
    return dict(sorted(found.items(), key=lambda item: item[0].startswith("mid_") + 2 * item[0].startswith("up_")))


def unet_tokens(layer: str, queries: int, keys: int, size: Size) -> Tokens | None:
    """How the tokens of a UNet's layer lie, by its name, their numbers, and the size (h, w) of the latents.

    Each level halves both sides, rounding up.
    """
    h, w = size
    while h * w > queries:
        h, w = -(-h // 2), -(-w // 2)
    if h * w != queries:
        return None
    kind = {"image" if layer.endswith(".attn1") else "text": slice(0, keys)}
    return Tokens((h, w), slice(0, queries), **kind)
