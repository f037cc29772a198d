"""The timed loops give the tokens that a plain forward over the whole text gives."""

import contextlib
import dataclasses
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bench.driver.plan import why_not
from bench.engine.clock import HostClock, Untimed
from bench.engine.protocol import ENGINES, Session, engine_at
from bench.engine.transformers import STRATEGIES, strategy
from bench.engine.transformers.attention import packed, pinned
from bench.engine.transformers.load import load
from bench.engine.transformers.lookup import GUESS_TOKENS, PromptLookup, continuation
from bench.errors import CellFailure
from bench.paths import CONF
from tests import fakes

ENGINE = engine_at(ENGINES["transformers"])
RANDOM = fakes.group("model", "smollm2-135m", weights="random")


@pytest.fixture(autouse=True)
def _no_compiled_code_of_others(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load(fakes.cell(model="tiny", quant="fp32"), None)


def greedy_without_cache(
    model: PreTrainedModel, ids: torch.Tensor, new_tokens: int
) -> torch.Tensor:
    for _ in range(new_tokens):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[:, -new_tokens:]


def random_ids(rows: int, tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 320, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def session(**changes: Any) -> Session:
    """Ready to answer."""
    cell = fakes.resolved(**{"model": "tiny", "quant": "fp32", "threads": 1} | changes)
    files = ENGINE.provide(cell, lambda what: None)
    ENGINE.prepare(cell)
    return ENGINE.open(cell, files)


@pytest.mark.parametrize(
    ("name", "batch"),
    [(name, batch) for name in STRATEGIES for batch in ((1,) if "lookup" in name else (1, 3))],
)
def test_a_loop_is_greedy_and_counts_every_token(
    model: PreTrainedModel, name: str, batch: int
) -> None:
    ids, clock = random_ids(batch, 9), HostClock()
    with torch.inference_mode():
        loop = strategy(name, model)
        loop.prepare(ids, 6)
        tokens = loop.run(ids, 6, clock)
        assert tokens.tolist() == greedy_without_cache(model, ids, 6).tolist()
    repeat, mismatch = clock.read()
    assert mismatch is None
    assert repeat.decoded_tokens == 5
    assert repeat.ttft_s + sum(repeat.decode_step_s) == pytest.approx(repeat.e2e_s)


def test_every_loop_of_the_configuration_exists() -> None:
    names = {fakes.cell(decode=file.stem).decode.strategy for file in (CONF / "decode").iterdir()}
    assert names == set(STRATEGIES)


@pytest.mark.parametrize("name", ["loop", "generate", "static", "prompt_lookup"])
def test_an_end_of_sequence_does_not_end_the_loop(model: PreTrainedModel, name: str) -> None:
    ids = torch.zeros((1, 4), dtype=torch.int64)
    with torch.inference_mode():
        first = int(strategy("loop", model).run(ids, 2, HostClock())[0, 0])
        model.generation_config.eos_token_id = first
        try:
            tokens = strategy(name, model).run(ids, 5, HostClock())
        finally:
            model.generation_config.eos_token_id = None
    assert tokens.shape == (1, 5)


def test_a_request_after_another_does_not_see_it(model: PreTrainedModel) -> None:
    with torch.inference_mode():
        loop = strategy("static", model)
        answers = [loop.run(random_ids(2, 9, seed), 6, Untimed()) for seed in (1, 2, 1)]
    assert torch.equal(answers[0], answers[2])
    assert not torch.equal(answers[0], answers[1])


def test_room_is_made_once_for_all_shorter_requests(model: PreTrainedModel) -> None:
    with torch.inference_mode():
        loop: Any = strategy("static", model)
        loop.prepare(random_ids(2, 9), 6)
        cache = loop.cache
        loop.run(random_ids(2, 9), 1, Untimed())
        loop.run(random_ids(2, 9), 6, Untimed())
        assert loop.cache is cache
        loop.run(random_ids(2, 9), 7, Untimed())
        assert loop.cache is not cache


def test_a_compiled_step_is_one_graph_and_attested() -> None:
    ids = random_ids(2, 9).numpy()
    compiled = session(decode="compiled")
    compiled.ready(ids, 6)
    compiled.request(ids, 6, Untimed())
    found = compiled.attest(ids, 6)
    assert found.mismatches == ()
    assert found.details["decode"] == {
        "cache_tokens": 15,
        "graphs": 1,
        "graph_breaks": 0,
        "from_disk": False,
        "recompilations": 0,
        "first_token_unlike_loop": None,
    }
    assert any("scaled_dot_product" in name for name in found.details["attention_operators"])


@pytest.mark.parametrize("decode", ["loop", "generate", "static", "compiled"])
def test_packed_queries_answer_what_the_plain_loop_does(
    model: PreTrainedModel, decode: str
) -> None:
    ids = random_ids(2, 9)
    packs = session(decode=decode, attn="sdpa_packed")
    packs.ready(ids.numpy(), 6)
    with torch.inference_mode():
        wanted = greedy_without_cache(model, ids, 6)
    assert packs.request(ids.numpy(), 6, Untimed()).tolist() == wanted.tolist()
    assert packs.attest(ids.numpy(), 6).mismatches == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", [None, "padded", "a head"])
def test_packing_changes_nothing_but_the_order_of_sums(
    dtype: torch.dtype, mask: str | None
) -> None:
    torch.manual_seed(1)
    rows, heads, kv_heads, past, width, of_values = 3, 12, 4, 37, 16, 24
    query = torch.randn(rows, heads, 1, width, dtype=dtype)
    key = torch.randn(rows, kv_heads, past, width, dtype=dtype)
    value = torch.randn(rows, kv_heads, past, of_values, dtype=dtype)
    module = types.SimpleNamespace(num_key_value_groups=heads // kv_heads, is_causal=True)
    keeps = torch.rand(rows, heads if mask == "a head" else 1, 1, past) > 0.3
    given: Any = (module, query, key, value, None if mask is None else keeps)
    plain, _ = sdpa_attention_forward(*given, scaling=0.2)
    ours, _ = packed(*given, scaling=0.2)
    assert ours.shape == plain.shape == (rows, 1, heads, of_values)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-2)


def test_what_a_model_asks_of_sdpa_besides_is_left_to_transformers() -> None:
    module = types.SimpleNamespace(num_key_value_groups=2, is_causal=True)
    query, key = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 5, 8)
    bias = torch.randn(1, 4, 1, 5)
    given: Any = (module, query, key, key, None)
    plain, _ = sdpa_attention_forward(*given, position_bias=bias)
    assert torch.equal(packed(*given, position_bias=bias)[0], plain)
    with pytest.raises(ValueError, match="softcap"):
        packed(*given, softcap=30.0)


def test_sdpa_is_transformers_own_outside_of_what_packs() -> None:
    packs, plain = (fakes.cell(attn=name).attn for name in ("sdpa_packed", "sdpa_math"))
    taken = AttentionInterface._global_mapping
    with pinned(packs):
        with pinned(plain):
            assert taken["sdpa"] is sdpa_attention_forward
        assert taken["sdpa"] is packed
    assert taken["sdpa"] is sdpa_attention_forward
    with contextlib.suppress(ZeroDivisionError), pinned(packs):
        raise ZeroDivisionError
    assert taken["sdpa"] is sdpa_attention_forward


def test_nothing_is_packed_where_each_head_has_its_keys() -> None:
    cell, host = fakes.resolved(model="gpt2", quant="fp32", attn="sdpa_packed"), fakes.host()
    weightless = dataclasses.replace(cell, model=dataclasses.replace(cell.model, weights="random"))
    found = why_not(weightless, host, ENGINE.describe(weightless))
    assert found is not None
    assert str(found.reason) == (
        "attn=sdpa_packed: model=gpt2 has keys of its own for each head, so there is nothing to"
        " pack: attn=sdpa"
    )


def test_another_shape_after_it_was_made_ready_is_compiled_again_and_said() -> None:
    ids = random_ids(2, 9).numpy()
    compiled: Any = session(decode="compiled")
    compiled.ready(ids, 6)
    made = compiled.strategy.made
    compiled.strategy.token = torch.zeros(1, 1, dtype=torch.int64)  # one row, behind its back
    with torch.inference_mode():
        compiled.strategy.cache.reset()
        for layer in compiled.strategy.cache.layers:
            layer.keys, layer.values = layer.keys[:1], layer.values[:1]
        compiled.strategy.step()
    ran = compiled.strategy.ran()
    assert made["graphs"] == 1
    assert ran.details["recompilations"] == 1
    assert ran.remarks == ("the decode step was compiled again between requests",)


def test_the_second_process_has_the_graph_from_disk() -> None:
    ids = random_ids(1, 5).numpy()
    for from_disk in (False, True):
        torch._dynamo.reset()
        compiled = session(decode="compiled")
        compiled.ready(ids, 3)
        assert compiled.attest(ids, 3).details["decode"]["from_disk"] is from_disk


def test_another_model_of_the_process_gets_a_graph_of_its_own() -> None:
    ids = random_ids(1, 5).numpy()
    for quant in ("bf16", "nf4"):  # alike but for what its layers are, which nobody asks
        compiled = session(decode="compiled", quant=quant)
        compiled.ready(ids, 3)
        assert compiled.attest(ids, 3).mismatches == ()


def test_a_step_that_cannot_be_one_graph_is_not_engaged(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: Any = session(decode="compiled")
    forward = compiled.model.forward

    def looks(*arguments: Any, **named: Any) -> Any:
        torch._dynamo.graph_break()
        return forward(*arguments, **named)

    monkeypatch.setattr(compiled.model, "forward", looks)
    with pytest.raises(CellFailure, match="makes no single graph of the decode step") as caught:
        compiled.ready(random_ids(1, 5).numpy(), 3)
    assert caught.value.status == "not_engaged"


@pytest.mark.parametrize("quant", ["bf16", "nf4", "int4_g64", "int8_channel"])
def test_weights_of_few_bits_are_in_the_graph_too(quant: str) -> None:
    from bench.driver import plan

    dtype = {"dtype": "fp32"} if "int" in quant else {}
    cell = fakes.cell(
        model="tiny", quant=fakes.group("quant", quant, **dtype), decode="compiled", threads=1
    )
    cell = plan.resolve(cell, fakes.host(device="cpu"))
    ENGINE.prepare(cell)
    compiled = ENGINE.open(cell, ENGINE.provide(cell, lambda what: None))
    ids = random_ids(1, 5).numpy()
    compiled.ready(ids, 3)
    found = compiled.attest(ids, 3)
    assert found.mismatches == ()
    assert found.details["decode"]["graphs"] == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"decode": "compiled", "quant": "int8"}, "decode=compiled needs a step of one graph"),
        ({"decode": "prompt_lookup", "batch": 2}, "advances each row by another count: batch=1"),
        (
            {"decode": "prompt_lookup", "model": RANDOM},
            "guesses from a text, random weights are asked made-up ids: pretrained ones",
        ),
        ({"decode": "static", "attn": "flex"}, "needs a mask, which attn=flex does not take"),
        ({"decode": "static", "attn": "sdpa_flash", "device": "cuda"}, "needs a mask"),
        ({"decode": "static", "attn": "sdpa_flash"}, None),
        ({"decode": "compiled", "attn": "sdpa_packed"}, None),
        ({"decode": "prompt_lookup", "attn": "sdpa_packed"}, "asks several queries in a step"),
        ({"decode": "compiled", "quant": "int8_nodecomp"}, "needs a step of one graph"),
    ],
)
def test_what_a_strategy_cannot_go_with_is_skipped(
    changes: dict[str, Any], reason: str | None
) -> None:
    device = changes.get("device", "cpu")
    host = fakes.host(device=device, capability=9.0 if device == "cuda" else None)
    found = ENGINE.why_not(fakes.cell(**{"quant": "fp16"} | changes), host)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert found.status == "skipped"
        assert reason in str(found.reason)


@pytest.mark.parametrize(
    ("known", "most", "guess"),
    [
        ([1, 2, 3, 9, 8, 1, 2, 3], 4, [9, 8, 1, 2]),
        ([1, 2, 3, 9, 8, 1, 2, 3], 1, [9]),
        ([5, 2, 3, 9, 7, 7, 2, 3, 6, 1, 2, 3], 2, [6, 1]),  # the last of two places
        ([1, 2, 3, 4, 5], 4, []),
        ([1, 2], 4, []),
        ([1], 4, []),
        ([4, 4, 4, 4, 4], 3, [4]),
    ],
)
def test_a_guess_is_what_followed_last_time(known: list[int], most: int, guess: list[int]) -> None:
    assert continuation(np.array(known), most).tolist() == guess


def test_a_text_that_repeats_itself_takes_fewer_forwards(model: PreTrainedModel) -> None:
    """Greedy answers of random weights run into a loop, which guesses foresee."""
    ids = random_ids(1, 6)
    with torch.inference_mode():
        plain = strategy("loop", model).run(ids, 80, Untimed())
        lookup, clock = PromptLookup(model), HostClock()
        tokens = lookup.run(ids, 80, clock)
    repeat, _ = clock.read()
    assert torch.equal(tokens, plain)
    assert repeat.decoded_tokens == 79
    assert repeat.step_tokens is not None
    assert 1 < max(repeat.step_tokens) <= GUESS_TOKENS + 1
    right = sum(repeat.step_tokens) - len(repeat.step_tokens)
    assert lookup.ran().details["accepted_share"] == pytest.approx(right / lookup.guessed, abs=1e-4)


def test_cells_are_values() -> None:
    cell = fakes.cell()
    with pytest.raises(dataclasses.FrozenInstanceError):
        cell.batch = 2  # type: ignore[misc]
