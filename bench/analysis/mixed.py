"""An allocation as a value of ``conf/quant``: a base scheme, and patterns of layers that have
another one."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def base_of(schemes: Mapping[str, str]) -> str:
    """The scheme that most layers have."""
    return Counter(schemes.values()).most_common(1)[0][0]


def patterns(schemes: Mapping[str, str]) -> dict[str, str]:
    """What the layers have that are not of the base scheme, as ``quant.layers`` takes it.

    Layers that differ in their block's number alone are one pattern,
    ``model.layers.{0,29}.mlp.up_proj``, or ``*`` where that is all of them.
    """
    base = base_of(schemes)
    blocks: dict[str, list[str]] = defaultdict(list)  # by name with a place for the number
    chosen: dict[tuple[str, str], list[str]] = defaultdict(list)
    for layer, scheme in schemes.items():
        number = _NUMBER.search(layer)
        place = layer if number is None else f"{layer[: number.start()]}#{layer[number.end() :]}"
        block = "" if number is None else number[0]
        blocks[place].append(block)
        if scheme != base:
            chosen[place, scheme].append(block)
    return {
        place.replace("#", _alternatives(of, blocks[place])): scheme
        for (place, scheme), of in chosen.items()
    }


def _alternatives(chosen: list[str], all_blocks: list[str]) -> str:
    if len(chosen) == len(all_blocks) > 1:
        return "*"
    return chosen[0] if len(chosen) == 1 else f"{{{','.join(chosen)}}}"
