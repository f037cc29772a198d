"""Tiny models of any architecture that transformers knows, with random weights, as folders."""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from bench.engine.transformers.load import load
from tests import fakes

VOCABULARY = 320
# What a configuration may call its sizes; each architecture has some of these
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "n_embd": 64,
    "d_model": 64,
    "intermediate_size": 128,
    "ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "n_inner": 128,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "word_embed_proj_dim": 64,
    "expand": 2,
    "state_size": 16,
}
# Where sizes depend on each other in a way of the architecture's own
_OWN: dict[str, dict[str, Any]] = {
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "num_key_value_heads": None},
}


def tiny_config(model_type: str, **settings: Any) -> PreTrainedConfig:
    """The architecture's usual configuration with small sizes, those of its parts too."""
    kind = CONFIG_MAPPING[model_type]
    return kind(**(_shrunk(kind().to_dict()) | _OWN.get(model_type, {}) | settings))


def _shrunk(usual: dict[str, Any]) -> dict[str, Any]:
    sizes = {name: size for name, size in _SIZES.items() if usual.get(name) is not None}
    if kinds := list(dict.fromkeys(usual.get("layer_types") or ())):
        sizes["layer_types"] = [kinds[0], kinds[-1]]
    sizes |= {name: 0 for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in usual}
    parts = {name: part for name, part in usual.items() if name.endswith("_config") and part}
    return sizes | {
        name: _shrunk(part) | ({"model_type": part["model_type"]} if "model_type" in part else {})
        for name, part in parts.items()
        if isinstance(part, dict)
    }


def tiny_model(model_type: str, **settings: Any) -> PreTrainedModel:
    """A random one."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(model_type, **settings))
    return model


def save_spread(folder: Path, chat_template: str | None = None) -> Path:
    """``model=tiny`` with logits that are spread out, and a tokenizer of one token a byte."""
    model = load(fakes.cell(model="tiny", quant="fp32"), None)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    model.save_pretrained(folder)
    tokenizer = fakes.byte_tokenizer()
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny(folder: Path, model_type: str, **settings: Any) -> Path:
    """As ``save_pretrained`` writes it."""
    tiny_model(model_type, **settings).save_pretrained(folder)
    return folder
