"""The seam for sensitivity studies: a loaded model whose layers can be exchanged, one by one, for
quantized ones.

Only an engine that builds its model of layers in this process has it; ``Session.exchange`` says
None where there is none.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bench.engine.clock import Clock
from bench.engine.prompts import Ids
from bench.engine.protocol import Floats

Show = Callable[[str], None]
# Name, class and output of a module; the first dimension of an output is rows or tokens
See = Callable[[str, str, Floats], None]


@dataclass(frozen=True, slots=True)
class Change:
    """What quantizing one layer, alone, does to its output, and by estimate to the model's.

    ``estimated_kl_nats``: the sum over each row's tokens, (rows,) float64.
    """

    output_error: float  # root mean square, as a share of the output's
    cosine: float  # all outputs as one vector
    estimated_kl_nats: np.ndarray[Any, np.dtype[np.float64]]


class Exchange(Protocol):
    """The layers of a model that schemes may take the place of. ``scheme`` is a name that the
    exchange was asked for; what is not exchanged is as it was loaded."""

    sizes: Mapping[str, tuple[int, int]]  # outputs and inputs of each layer, in the model's order

    def obstacle(self, layer: str, scheme: str) -> str | None:
        """Why the scheme cannot hold this layer; None: it can."""

    def exchanged(self, schemes: Mapping[str, str]) -> AbstractContextManager[None]:
        """Within the block these layers are under these schemes."""

    def stored_bytes(self) -> tuple[Mapping[str, int], int]:
        """Of each layer as it is now, and of all else; a scheme may repack at the first use."""

    def stamped(self, clock: Clock) -> AbstractContextManager[list[str]]:
        """Within the block each call of a layer is two tokens of the clock, before and after it;
        the list gets the layers' names in the order of the calls."""

    def changes(
        self, ids: Ids, schemes: tuple[str, ...], seed: int, show: Show
    ) -> Mapping[str, Mapping[str, Change]]:
        """By layer and scheme, all layers in one backward pass. Shapes: ids (rows, tokens)."""

    def outputs(self, ids: Ids, see: See) -> None:
        """Every module without modules in it, as it computes. Shapes: ids (rows, tokens)."""
