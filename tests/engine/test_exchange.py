"""Layers exchanged in a real model: what is computed of them, against plain arithmetic."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench.config.cell import Quant
from bench.engine.clock import HostClock, Untimed
from bench.engine.protocol import Session
from bench.engine.transformers.schemes import SCHEMES, Scheme
from bench.engine.transformers.session import TransformersSession, open_session
from bench.errors import CellFailure
from bench.meter.divergence import compare
from tests import fakes

COARSE = {"coarse": Quant("coarse", "rounded", "fp32"), "fine": Quant("fine", "finely", "fp32")}
IDS = np.random.default_rng(0).integers(0, 256, (2, 24))


class Rounded(nn.Linear):
    """Weights rounded to so many steps a row."""


def rounded(steps: int) -> Scheme:
    def layer(plain: nn.Linear, quant: Quant) -> nn.Module:
        made = Rounded(plain.in_features, plain.out_features, bias=False, dtype=plain.weight.dtype)
        scale = plain.weight.detach().abs().amax(1, keepdim=True) / steps
        made.weight.data = (plain.weight.detach() / scale).round() * scale
        return made

    return Scheme(
        layer_classes=("Rounded",),
        layer=layer,
        obstacle=lambda outputs, *_: "too narrow" if outputs < 64 else None,
    )


@pytest.fixture(autouse=True)
def _two_schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEMES, "rounded", rounded(4))
    monkeypatch.setitem(SCHEMES, "finely", rounded(64))


@pytest.fixture
def session() -> TransformersSession:
    """The tiny model, with weights large enough that its layers matter to each other."""
    cell = fakes.resolved(model="tiny", quant="fp32")
    opened = open_session(cell, None)
    for parameter in opened.model.parameters():
        parameter.data *= 4
    return opened


def logits(session: Session) -> list[np.ndarray]:
    rows = session.logits(IDS)
    assert rows is not None
    return [np.concatenate(list(pieces)) for pieces in rows]


def kl_nats(session: Session, reference: list[np.ndarray]) -> float:
    pairs = zip(IDS, logits(session), reference, strict=True)
    return float(np.mean([compare(i, iter([a]), iter([b])).kl_nats.mean() for i, a, b in pairs]))


def test_layers_are_those_of_the_blocks(session: TransformersSession) -> None:
    exchange = session.exchange(COARSE)
    assert len(exchange.sizes) == 7 * session.model.config.num_hidden_layers
    assert "lm_head" not in exchange.sizes
    assert exchange.sizes["model.layers.1.mlp.down_proj"] == (64, 128)
    assert exchange.obstacle("model.layers.0.self_attn.k_proj", "coarse") == "too narrow"
    assert exchange.obstacle("model.layers.0.self_attn.q_proj", "coarse") is None


def test_what_is_exchanged_is_itself_again_afterwards(session: TransformersSession) -> None:
    exchange, name = session.exchange(COARSE), "model.layers.0.mlp.up_proj"
    before = logits(session)
    plain = session.model.get_submodule(name)
    with exchange.exchanged({name: "coarse"}):
        assert type(session.model.get_submodule(name)) is Rounded
        assert not np.array_equal(logits(session)[0], before[0])
    assert session.model.get_submodule(name) is plain
    assert np.array_equal(logits(session)[0], before[0])


def test_changes_are_of_each_layer_alone(session: TransformersSession) -> None:
    """Error and cosine against the layer's own inputs and outputs; the narrow ones are left out."""
    exchange, name = session.exchange(COARSE), "model.layers.1.mlp.gate_proj"
    seen: dict[str, torch.Tensor] = {}
    plain = session.model.get_submodule(name)
    hook = plain.register_forward_hook(lambda _, given, out: seen.update(x=given[0], y=out))
    with torch.no_grad():
        session.model(torch.from_numpy(IDS))
    hook.remove()
    changes = exchange.changes(IDS, ("coarse", "fine"), 0, lambda what: None)
    assert list(changes) == list(exchange.sizes)
    assert changes["model.layers.0.self_attn.k_proj"] == {}
    made = SCHEMES["rounded"].layer(plain, COARSE["coarse"])
    quantized = made(seen["x"])
    change = changes[name]["coarse"]
    with torch.no_grad():
        error = (quantized - seen["y"]).norm() / seen["y"].norm()
    assert change.output_error == pytest.approx(float(error), rel=1e-4)
    cosine = torch.cosine_similarity(quantized.flatten(), seen["y"].flatten(), 0)
    assert change.cosine == pytest.approx(float(cosine), rel=1e-5)
    assert changes[name]["fine"].output_error < change.output_error / 4
    assert change.estimated_kl_nats.shape == (2,)


def test_the_estimate_is_near_the_measured_divergence(session: TransformersSession) -> None:
    """A single draw of labels: the sum over all layers, and their order."""
    exchange = session.exchange(COARSE)
    changes = exchange.changes(IDS, ("coarse",), 0, lambda what: None)
    reference = logits(session)
    estimated, measured = [], []
    for name, of in changes.items():
        if "coarse" in of:
            with exchange.exchanged({name: "coarse"}):
                measured.append(kl_nats(session, reference))
            estimated.append(of["coarse"].estimated_kl_nats.mean() / IDS.shape[1])
    assert 0.4 < sum(estimated) / sum(measured) < 2.5
    ranks = [np.argsort(np.argsort(values)) for values in (estimated, measured)]
    assert np.corrcoef(*ranks)[0, 1] > 0.7


def test_nothing_stays_after_the_backward_pass(session: TransformersSession) -> None:
    exchange = session.exchange(COARSE)
    first = exchange.changes(IDS, ("coarse",), 0, lambda what: None)
    again = exchange.changes(IDS, ("coarse",), 0, lambda what: None)
    name = "model.layers.0.mlp.up_proj"
    kl = [each[name]["coarse"].estimated_kl_nats for each in (first, again)]
    assert np.array_equal(*kl)
    other = exchange.changes(IDS, ("coarse",), 1, lambda what: None)
    assert not np.array_equal(kl[0], other[name]["coarse"].estimated_kl_nats)
    assert all(parameter.grad is None for parameter in session.model.parameters())
    assert all(parameter.requires_grad for parameter in session.model.parameters())
    assert not any(module._forward_hooks for module in session.model.modules())


def test_labels_are_drawn_from_the_model(session: TransformersSession) -> None:
    """A model that is sure of its next token can only lose by another one: with the text's own
    labels its gradients would be large, with its own they are almost nothing."""
    session.model.lm_head.weight.data *= 1000
    changes = session.exchange(COARSE).changes(IDS, ("fine",), 0, lambda what: None)
    largest = max(of["fine"].estimated_kl_nats.max() for of in changes.values() if of)
    rows = zip(IDS, logits(session), strict=True)
    of_text = np.mean([compare(ids, iter([a]), iter([a])).nll_nats for ids, a in rows])
    assert largest < of_text / 10


def test_stamps_are_two_a_call_in_order(session: TransformersSession) -> None:
    exchange, clock = session.exchange(COARSE), HostClock()
    with exchange.stamped(clock) as called:
        clock.start()
        session.request(IDS, 3, Untimed())
    assert called == list(exchange.sizes) * 3
    repeat, _ = clock.read()
    assert len(repeat.decode_step_s) == 2 * len(called) - 1


@pytest.mark.parametrize("quant", ["nf4", "nf4_double", "fp4"])
def test_a_layer_is_what_the_library_loads(quant: str, tmp_path: Path) -> None:
    """The same bytes, and the same logits, as a model that is loaded under the scheme."""
    cell = fakes.resolved(model="tiny", quant="bf16")
    plain = open_session(cell, None)
    plain.model.save_pretrained(tmp_path)
    wanted = fakes.resolved(model="tiny", quant=quant)
    loaded = open_session(wanted, tmp_path)
    exchange = plain.exchange({quant: wanted.quant})
    whole = dict.fromkeys(exchange.sizes, quant)
    with exchange.exchanged(whole):
        assert np.array_equal(logits(plain)[0], logits(loaded)[0])
        of_layers, others = exchange.stored_bytes()
    attested = loaded.attest(IDS, 2)
    assert sum(of_layers.values()) + others == attested.weight_bytes


def test_outputs_are_of_every_leaf_in_order(session: TransformersSession) -> None:
    seen: list[tuple[str, str]] = []
    session.exchange(COARSE).outputs(IDS, lambda name, kind, output: seen.append((name, kind)))
    names = [name for name, _ in seen]
    assert names[0] == "model.embed_tokens"
    assert names[-1] == "lm_head"
    assert dict(seen)["model.layers.0.mlp.act_fn"] == "SiLUActivation"
    assert names.index("model.layers.0.mlp.down_proj") < names.index("model.layers.1.mlp.up_proj")


def test_a_scheme_without_layers_is_refused(session: TransformersSession) -> None:
    torchao = fakes.resolved(quant="torchao_int4").quant
    with pytest.raises(CellFailure, match="quant=torchao_int4 has no layers"):
        session.exchange({"torchao_int4": torchao})
