"""What a sensitivity study read off a model: each layer alone under each scheme, and whole models
whose layers are quantized together.

Raw readings: what follows from them (orders, sums, allocations) is computed in
``bench.analysis.sensitivity`` and ``bench.analysis.allocation``.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.config.cell import Cell, Model, Quant
from bench.config.parse import COUNT, NOT_NEGATIVE, POSITIVE, parse, within
from bench.errors import ConfigError, StoreError
from bench.record.redact import redacted
from bench.record.result import Host

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Effect:
    """What one scheme does to one layer, all others as published.

    The estimate is half the sum over outputs of (gradient x change)^2 (Fisher), the measurement the
    divergence of the final logits; both are nats a token, an entry for each window of the text.
    """

    stored_bytes: int = field(metadata=COUNT)
    output_error: float = field(metadata=NOT_NEGATIVE)  # root mean square, of the output's
    cosine: float  # between the outputs as published and quantized, all tokens as one vector
    estimated_kl_nats: tuple[float, ...] = field(metadata=within(length=1))
    measured_kl_nats: tuple[float, ...] | None = None  # --exact


@dataclass(frozen=True, slots=True)
class Layer:
    """A matrix by its name in the model, and what each scheme does to it."""

    name: str
    outputs: int = field(metadata=COUNT)
    inputs: int = field(metadata=COUNT)
    effects: Mapping[str, Effect]  # by scheme; without those that cannot hold it

    @property
    def weights(self) -> int:
        """Numbers in it."""
        return self.outputs * self.inputs

    @property
    def kind(self) -> str:
        """What it is called in its block, like ``down_proj``."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Trial:
    """Layers that were quantized together, and the divergence of that, by window."""

    name: str  # like: all int4_g64
    schemes: Mapping[str, str]  # by layer; the others as published
    kl_nats: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Timing:
    """A model with all layers under one scheme, timed. Units: seconds.

    The layers were timed within requests, where their weights come from as far away as they do in
    use; the requests by themselves in others.
    """

    # Of the whole batch, an entry for each request
    decode_step_s: tuple[float, ...] = field(metadata=within(length=1, each=POSITIVE))
    prefill_s: tuple[float, ...] = field(metadata=within(length=1, each=POSITIVE))
    # By layer, of one call: the least of all requests
    layer_decode_s: Mapping[str, float] = field(metadata=within(each=POSITIVE))
    layer_prefill_s: Mapping[str, float] = field(metadata=within(each=POSITIVE))


@dataclass(frozen=True, slots=True)
class Module:
    """A leaf module's output in the quantized model against that of the unquantized one, on the
    same tokens: the errors of all modules before it are in it."""

    name: str
    kind: str  # its class
    mean_square_error: float = field(metadata=NOT_NEGATIVE)
    mean_square: float = field(metadata=NOT_NEGATIVE)  # of the unquantized output
    cosine: float
    # A few outputs, as published and quantized, of the modules that differ most
    points: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Readings:
    """What the measured process hands back."""

    revision: str | None  # of the model: hub commit or package version
    other_bytes: int = field(metadata=NOT_NEGATIVE)  # stored beside the layers
    layers: tuple[Layer, ...]
    trials: tuple[Trial, ...]
    modules: tuple[Module, ...]  # of the model with all layers under the scheme that was asked for
    timings: Mapping[str, Timing]  # by scheme; ``none`` too

    @property
    def layer_weights(self) -> int:
        """Numbers in all layers."""
        return sum(layer.weights for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What an allocation was predicted to cost: a value, the ends of its interval."""

    model: Model
    layers: Mapping[str, str]  # the schemes' names by pattern, as ``quant.layers`` has them
    device_name: str
    rows: int = field(metadata=COUNT)
    kl_nats: tuple[float, float, float]
    tpot_s: tuple[float, float, float] | None  # of that many rows on that device

    def is_of(self, cell: Cell) -> bool:
        """Whether the cell has these layers of this model."""
        layers = {pattern: quant.name for pattern, quant in cell.quant.layers.items()}
        return cell.model == self.model and layers == self.layers


@dataclass(frozen=True, slots=True)
class Study:
    """A whole study: what was asked, where, and what was read."""

    schema: int
    asked: str  # as typed
    cell: Cell  # resolved; its quant is the scheme that is looked at closely
    schemes: Mapping[str, Quant]  # by name, all of them
    text: str
    window_tokens: int = field(metadata=COUNT)
    host: Host
    commit: str | None
    started_at: float = field(metadata=NOT_NEGATIVE)  # seconds since 1970
    took_s: float = field(metadata=NOT_NEGATIVE)
    readings: Readings

    def to_json(self) -> str:
        """The record as text, without what looks like a secret."""
        return json.dumps(redacted(dataclasses.asdict(self)), indent=1, allow_nan=False)


def from_json(text: str | bytes, where: str) -> Study:
    """The study in ``text``; ``where`` names it in messages.

    Raises:
        StoreError: when it is none, or of another schema.
    """
    try:
        mapping: Any = json.loads(text)
    except ValueError as error:
        raise StoreError(f"{where}: not a study's file ({error})") from error
    found = mapping.get("schema") if isinstance(mapping, dict) else None
    if found != SCHEMA:
        raise StoreError(
            f"{where}: written in schema {found}, this version reads {SCHEMA}; run the study again"
        )
    try:
        return parse(Study, mapping)
    except ConfigError as error:
        raise StoreError(f"{where}: {'; '.join(error.problems)}") from error
