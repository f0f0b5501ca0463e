"""Which attention layers take part, by names, shell patterns and positions in the network; short names for people."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from diffseg.errors import UserError, did_you_mean

Layers = tuple[str | int, ...]  # names, shell patterns, or positions in the order of the network, negative from its end


def select(layers: Layers | None, known: Sequence[str]) -> frozenset[str]:
    """The layers that are meant; None: all.

    Args:
        known: the network's self-attention layers by name, in its order.

    Raises:
        UserError: one of `layers` means none of them.
    """
    if layers is None:
        return frozenset(known)
    return frozenset(name for wanted in layers for name in _matching(wanted, known))


def _matching(wanted: str | int, known: Sequence[str]) -> list[str]:
    if isinstance(wanted, int):
        if not -len(known) <= wanted < len(known):
            raise UserError(
                f"layers: there is no layer {wanted}; the model has {len(known)} of self-attention, 0 to "
                f"{len(known) - 1}, or -1 to -{len(known)} from the end"
            )
        return [known[wanted]]
    found = [name for name in known if fnmatchcase(name, wanted)]
    if not found:
        raise UserError(
            f"layers: {wanted!r} is no self-attention layer of the model{did_you_mean(wanted, known)} "
            f"(they are {', '.join(known)})"
        )
    return found


def in_blocks_of(chosen: frozenset[str], layer: str) -> bool:
    """Whether a layer is one of those chosen, or lies in the same block as one: `block.attn2` beside `block.attn1`."""
    block = layer.rpartition(".")[0]
    return layer in chosen or (block != "" and any(name.rpartition(".")[0] == block for name in chosen))


def short_names(names: Sequence[str]) -> dict[str, str]:
    """{name: what it has of its own}, for people: "up 1.0" of up_blocks.1.attentions.0.transformer_blocks.0.attn1.

    Words that all names share are left out, and numbers after them that are the same in all. The names as they are
    where that leaves two alike. Patterns stay as they are.
    """
    patterns = {name: name for name in names if set(name) & set("*?[")}
    paths = {name: _pairs(name) for name in dict.fromkeys(names) if name not in patterns}
    words = [dict(path) for path in paths.values()]
    shared = {word for word in words[0] if all(word in other for other in words)} if words else set()
    same = {word for word in shared if len({other[word] for other in words}) == 1}
    short = {name: _joined(path, shared, same) for name, path in paths.items()}
    is_telling = len(set(short.values())) == len(short) and all(short.values())
    return patterns | (short if is_telling else {name: name for name in paths})


def _pairs(name: str) -> list[tuple[str, str]]:
    """The words of a name with dots, each with the number behind it, if there is one."""
    pairs: list[tuple[str, str]] = []
    for part in name.split("."):
        if part.isdecimal() and pairs and not pairs[-1][1]:
            pairs[-1] = pairs[-1][0], part
        else:
            pairs.append((part, ""))
    return pairs


def _joined(path: Sequence[tuple[str, str]], shared: set[str], same: set[str]) -> str:
    words = [word.removesuffix("s").removesuffix("_block") for word, _ in path if word not in shared]
    numbers = [number for word, number in path if number and word not in same]
    return " ".join(filter(None, [".".join(words) or "layer" * bool(numbers), ".".join(numbers)]))
