"""What a sensitivity study runs in its process: times and bytes of the layers in 16 bits, then, on
the same weights in fp32, what each layer's quantization costs, alone and together.

The reference is the unquantized model in fp32, and products are made in fp32 too, so that what is
read is the cost of the weights (and of 8-bit activations), and not of a dtype. Times and bytes are
of the cell's own dtype: schemes are given in both.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np

from bench.config.cell import Cell, Quant
from bench.engine.clock import Untimed
from bench.engine.exchange import Change, Exchange
from bench.engine.prompts import Ids, Tokenizer
from bench.engine.protocol import Announce, Floats, Session
from bench.errors import CellFailure
from bench.meter.cell import begin, ids_of
from bench.meter.divergence import compare
from bench.record.measurement import Repeat
from bench.record.sensitivity import Effect, Layer, Module, Readings, Timing, Trial

PLAIN = "none"  # the layers as published
_REQUESTS, _WARM_UPS = 5, 2
_SHARES = (8, 4, 2)  # of random sets that are quantized together: an eighth of the layers, ...
_POINTS, _WORST = 300, 6  # outputs of a module, and modules that keep them

Stack = list[list[Floats]]  # of each window the pieces of its logits


@dataclass(frozen=True, slots=True)
class Plan:
    """What is studied: schemes by name, in the cell's dtype and in fp32, and on which text."""

    schemes: Mapping[str, Quant]
    in_fp32: Mapping[str, Quant]
    closely: str  # the scheme whose errors are followed through the model
    text: str  # a file
    windows: int
    window_tokens: int
    is_exact: bool  # each layer's divergence is measured too


def study(announce: Announce, place: str, cell: Cell, plan: Plan) -> Readings:
    """All of it; ``cell`` is the unquantized model in the dtype that it will run in.

    Raises:
        CellFailure: where the engine, the model or a scheme has no layers to exchange.
    """
    engine, files, _ = begin(announce, place, cell)
    announce("load")
    session = engine.open(cell, files)
    exchange = _exchange(session, cell, plan.schemes)
    timings, sizes = {}, {}
    for scheme in (PLAIN, *plan.schemes):
        announce("measure", f"times of {scheme}")
        timings[scheme], sizes[scheme] = _timed(session, exchange, cell, scheme)
    other_bytes = exchange.stored_bytes()[1]
    del session, exchange

    announce("load", "in fp32")
    session = engine.open(precise(cell), files)
    exchange = _exchange(session, cell, plan.in_fp32)
    ids = windows_of(plan, session)
    names = tuple(plan.schemes)
    announce("quality", "gradients")
    changes = exchange.changes(ids, names, cell.seed, lambda what: announce("quality", what))
    logits = _logits(session, ids)
    exact = _each_alone(announce, session, exchange, ids, logits, names) if plan.is_exact else {}
    trials = _trials(announce, session, exchange, ids, logits, _sets(exchange, plan, cell.seed))
    announce("quality", "errors of every module")
    modules = _propagated(exchange, ids[:1], _whole(exchange, plan.closely))
    layers = tuple(
        Layer(name, outputs, inputs, _effects(name, changes, sizes, exact, ids.shape))
        for name, (outputs, inputs) in exchange.sizes.items()
    )
    return Readings(files.revision, other_bytes, layers, trials, modules, timings)


def try_sets(
    announce: Announce, place: str, cell: Cell, plan: Plan, sets: Mapping[str, Mapping[str, str]]
) -> tuple[Trial, ...]:
    """The divergence of these sets, each a scheme by layer, on the study's text."""
    engine, files, _ = begin(announce, place, cell)
    announce("load")
    session = engine.open(precise(cell), files)
    exchange, ids = _exchange(session, cell, plan.in_fp32), windows_of(plan, session)
    return _trials(announce, session, exchange, ids, _logits(session, ids), sets)


def precise(cell: Cell) -> Cell:
    """The cell's unquantized model in fp32, one row at a time."""
    return replace(cell, quant=Quant("fp32", PLAIN, "fp32"), batch=1)


def _exchange(session: Session, cell: Cell, quants: Mapping[str, Quant]) -> Exchange:
    plain = {PLAIN: Quant(PLAIN, PLAIN, cell.quant.dtype)}
    exchange = session.exchange({**plain, **quants})
    if exchange is None:
        raise CellFailure("skipped", f"engine={cell.engine.name} has no layers to exchange")
    return exchange


def _whole(exchange: Exchange, scheme: str) -> dict[str, str]:
    """Every layer that the scheme can hold under it."""
    if scheme == PLAIN:
        return {}
    return {name: scheme for name in exchange.sizes if exchange.obstacle(name, scheme) is None}


def windows_of(plan: Plan, session: Session) -> Ids:
    """Pieces of the text at equal distances, each after the tokenizer's mark for a beginning.

    Shapes: (windows, tokens).
    """
    tokenizer = session.tokenizer
    if tokenizer is None:
        raise CellFailure("failed", "the model has no tokenizer, so it reads no text")
    return spread_windows(
        Path(plan.text).read_text(encoding="utf-8"), tokenizer, plan.windows, plan.window_tokens
    )


def spread_windows(text: str, tokenizer: Tokenizer, windows: int, window_tokens: int) -> Ids:
    """Shapes: (windows, window_tokens). Raises: CellFailure for a text that is too short."""
    begins, ids = list(tokenizer.begins), tokenizer.encode(text, special=False)
    taken = window_tokens - len(begins)
    if len(ids) < windows * taken:
        wanted = f"{windows} windows of {window_tokens}"
        raise CellFailure("failed", f"the text has {len(ids)} tokens, less than {wanted}")
    step = (len(ids) - taken) // max(1, windows - 1)
    starts = [index * step for index in range(windows)]
    return np.array([[*begins, *ids[at : at + taken]] for at in starts], dtype=np.int64)


def _timed(
    session: Session, exchange: Exchange, cell: Cell, scheme: str
) -> tuple[Timing, Mapping[str, int]]:
    """Requests with all layers under a scheme; and the layers' stored bytes."""
    ids, new_tokens = ids_of(cell, session), cell.workload.new_tokens
    with exchange.exchanged(_whole(exchange, scheme)):
        session.ready(ids, new_tokens)
        repeats = [_repeat(session, ids, new_tokens) for _ in range(_WARM_UPS + _REQUESTS)]
        calls: dict[str, list[list[float]]] = defaultdict(list)
        for _ in range(_REQUESTS):
            for name, seconds in _calls(session, exchange, ids, new_tokens).items():
                calls[name].append(seconds)
        stored_bytes = exchange.stored_bytes()[0]
    timed = repeats[_WARM_UPS:]
    least = {name: [min(at) for at in zip(*of, strict=True)] for name, of in calls.items()}
    timing = Timing(
        decode_step_s=tuple(fmean(repeat.decode_step_s) for repeat in timed),
        prefill_s=tuple(repeat.ttft_s for repeat in timed),
        layer_decode_s={name: fmean(steps) for name, (_, *steps) in least.items()},
        layer_prefill_s={name: first for name, (first, *_) in least.items()},
    )
    return timing, stored_bytes


def _repeat(session: Session, ids: Ids, new_tokens: int) -> Repeat:
    clock = session.clock(new_tokens)
    session.request(ids, new_tokens, clock)
    return clock.read()[0]


def _calls(
    session: Session, exchange: Exchange, ids: Ids, new_tokens: int
) -> Mapping[str, list[float]]:
    """How long each call of each layer took in one request: the prefill's first."""
    clock = session.clock(2 * len(exchange.sizes) * new_tokens)
    with exchange.stamped(clock) as called:
        clock.start()
        session.request(ids, new_tokens, Untimed())
    gaps = clock.read()[0].decode_step_s
    seconds: dict[str, list[float]] = defaultdict(list)
    for name, within in zip(called, gaps[::2], strict=True):  # between them is what lies between
        seconds[name].append(within)
    return seconds


def _logits(session: Session, ids: Ids) -> Stack:
    """Of the model as it is now."""
    return [list(pieces) for pieces in _rows(session, ids)]


def _rows(session: Session, ids: Ids) -> Iterator[Iterator[Floats]]:
    for row in ids:  # one at a time: hidden states of a window are small, logits are not
        rows = session.logits(row[None])
        if rows is None:
            raise CellFailure("failed", "the model makes its logits in a way that cannot be read")
        yield rows[0]


def _kl_nats(session: Session, ids: Ids, reference: Stack) -> tuple[float, ...]:
    """Of each window, the mean over its tokens."""
    rows = zip(ids, _rows(session, ids), reference, strict=True)
    return tuple(
        float(compare(window, ours, iter(theirs)).kl_nats.mean()) for window, ours, theirs in rows
    )


def _each_alone(
    announce: Announce,
    session: Session,
    exchange: Exchange,
    ids: Ids,
    reference: Stack,
    schemes: tuple[str, ...],
) -> Mapping[tuple[str, str], tuple[float, ...]]:
    """By layer and scheme."""
    measured: dict[tuple[str, str], tuple[float, ...]] = {}
    for number, name in enumerate(exchange.sizes, 1):
        announce("quality", f"layer {number} of {len(exchange.sizes)}, measured")
        for scheme in schemes:
            if exchange.obstacle(name, scheme) is None:
                with exchange.exchanged({name: scheme}):
                    measured[name, scheme] = _kl_nats(session, ids, reference)
    return measured


def _sets(exchange: Exchange, plan: Plan, seed: int) -> Mapping[str, Mapping[str, str]]:
    """All layers under each scheme, and shares of them, drawn, under the one asked for."""
    sets = {f"all {scheme}": _whole(exchange, scheme) for scheme in plan.schemes}
    everything = _whole(exchange, plan.closely)
    for parts in _SHARES:
        count = max(1, len(everything) // parts)
        drawn = random.Random(f"{seed}/{parts}").sample(sorted(everything), count)
        sets[f"{count} layers {plan.closely}"] = dict.fromkeys(drawn, plan.closely)
    return sets


def _trials(
    announce: Announce,
    session: Session,
    exchange: Exchange,
    ids: Ids,
    reference: Stack,
    sets: Mapping[str, Mapping[str, str]],
) -> tuple[Trial, ...]:
    trials = []
    for name, schemes in sets.items():
        announce("quality", name)
        with exchange.exchanged(schemes):
            trials.append(Trial(name, dict(schemes), _kl_nats(session, ids, reference)))
    return tuple(trials)


def _effects(
    name: str,
    changes: Mapping[str, Mapping[str, Change]],
    sizes: Mapping[str, Mapping[str, int]],
    exact: Mapping[tuple[str, str], tuple[float, ...]],
    shape: tuple[int, ...],
) -> dict[str, Effect]:
    windows, tokens = shape
    effects = {
        scheme: Effect(
            stored_bytes=sizes[scheme][name],
            output_error=change.output_error,
            cosine=change.cosine,
            estimated_kl_nats=tuple(float(window) / tokens for window in change.estimated_kl_nats),
            measured_kl_nats=exact.get((name, scheme)),
        )
        for scheme, change in changes.get(name, {}).items()
    }
    return {PLAIN: Effect(sizes[PLAIN][name], 0.0, 1.0, (0.0,) * windows), **effects}


def _propagated(exchange: Exchange, ids: Ids, schemes: Mapping[str, str]) -> tuple[Module, ...]:
    """Every leaf module's output with these layers quantized beside that without."""
    published: dict[str, Floats] = {}
    found: dict[str, Module] = {}

    def keep(name: str, kind: str, output: Floats) -> None:
        published.setdefault(name, output)  # of one that is called again the first time counts

    def see(name: str, kind: str, output: Floats) -> None:
        if name not in found:
            found[name] = _module(name, kind, published.pop(name), output)

    exchange.outputs(ids, keep)
    with exchange.exchanged(schemes):
        exchange.outputs(ids, see)
    worst = sorted(found.values(), key=lambda module: module.cosine)[:_WORST]
    kept = {module.name for module in worst}
    return tuple(m if m.name in kept else replace(m, points=()) for m in found.values())


def _module(name: str, kind: str, published: Floats, quantized: Floats) -> Module:
    before, after = (each.astype(np.float64).ravel() for each in (published, quantized))
    norms = np.sqrt((before @ before) * (after @ after))
    drawn = np.random.default_rng(0).integers(0, len(before), _POINTS)
    return Module(
        name=name,
        kind=kind,
        mean_square_error=float(((before - after) ** 2).mean()),
        mean_square=float((before**2).mean()),
        cosine=float(before @ after / norms) if norms else 1.0,
        points=tuple((float(before[i]), float(after[i])) for i in drawn),
    )
