"""A model in vLLM behind the ``Session`` protocol.

Room for keys and values and the longest sequence are made before the first token, from the cell's
own prompts. A request hands vLLM all rows and then steps its engine: one step reads every row's
prompt and chooses its first token, each further one a token of every row. The clock is read when a
step has returned, its tokens on the host; scheduling and bookkeeping of vLLM are part of that, as
they are for whoever uses it. A step that gives other than one token of each row is no step of a
static batch, and the cell fails.

Logits are those of vLLM's own ``compute_logits``, kept as they pass: log-probabilities of the whole
vocabulary as vLLM returns them take 6.6 MB a token (0.32.0).
"""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, GenerationConfig
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.sampling_params import RequestOutputKind

from bench.config.cell import Cell, Quality, Quant
from bench.engine.clock import Clock, HostClock, Untimed
from bench.engine.prompts import Ids, load_tokenizer, prompt_ids
from bench.engine.protocol import Files, Floats, Head
from bench.engine.vllm import DTYPES, kv_type
from bench.engine.vllm.attest import attest, head_dim, kv_heads
from bench.errors import CellFailure
from bench.record.measurement import PhaseProfile, Profile, TaskScore
from bench.record.result import Attestation

BLOCK_TOKENS = 128  # of keys and values that are kept together
# Of a sequence, so that texts and answers fit too; untouched room is no memory
_LEAST_TOKENS = 2048
_POSITIONS = 16  # of which logits exist at once on the host


class VllmSession:
    """Requests, answers and logits of one model."""

    def __init__(self, cell: Cell, files: Files) -> None:
        assert files.folder is not None, "random weights are skipped"
        self.cell, self.folder = cell, files.folder
        self.tokenizer = load_tokenizer(cell.model, files.folder)
        self.config: Any = AutoConfig.from_pretrained(files.folder).get_text_config()
        self.vocabulary: int = self.config.vocab_size
        self.context_tokens: int | None = getattr(self.config, "max_position_embeddings", None)
        self.ends = _ends(files.folder, self.config)
        self.numbers = itertools.count()
        rows, prompt = prompt_ids(cell, self.tokenizer, self.vocabulary).shape
        longest = max(prompt + cell.workload.new_tokens, _LEAST_TOKENS)
        try:
            self.llm = LLM(
                str(files.folder),
                dtype=DTYPES[cell.quant.dtype],
                skip_tokenizer_init=True,
                use_tqdm_on_load=False,
                enforce_eager=True,
                enable_prefix_caching=False,
                block_size=BLOCK_TOKENS,
                max_num_seqs=rows,
                max_model_len=min(longest, self.context_tokens or longest),
                max_num_batched_tokens=max(rows * prompt, longest),
                kv_cache_dtype=kv_type(cell),
                kv_cache_memory_bytes=self._kv_bytes(rows, prompt + cell.workload.new_tokens),
                seed=cell.seed,
            )
        except (ValueError, NotImplementedError) as error:  # pydantic's too, of what it lacks
            raise CellFailure("skipped", f"vLLM does not take it: {_said(error)}") from error
        if self._is_packed and not hasattr(torch.ops._C, "cpu_gemm_wna16"):
            raise CellFailure(
                "skipped",
                "vLLM's products with packed weights need a processor with AVX-512, this one has"
                f" {torch.backends.cpu.get_cpu_capability()}",
            )

    @property
    def _is_packed(self) -> bool:
        settings = getattr(self.config, "quantization_config", None) or {}
        return bool(settings.get("format") == "pack-quantized")

    def _kv_bytes(self, rows: int, tokens: int) -> int:
        """Room for so many rows, or for one of the longest text, and the block that vLLM keeps for
        itself."""
        layers, heads, width = (
            self.config.num_hidden_layers,
            kv_heads(self.config),
            head_dim(self.config),
        )
        plain = 4 if self.cell.quant.dtype == "fp32" else 2
        size = plain if kv_type(self.cell) == "auto" else 1
        row_blocks, text_blocks = (-(-n // BLOCK_TOKENS) for n in (tokens, _LEAST_TOKENS))
        blocks = max(rows * row_blocks, text_blocks) + 2
        return int(blocks * BLOCK_TOKENS * 2 * layers * heads * width * size)

    def ready(self, ids: Ids, new_tokens: int) -> None:
        """Room is there; vLLM's own warming of shapes ended with its start."""

    def clock(self, new_tokens: int) -> Clock:
        return HostClock()

    def request(self, ids: Ids, new_tokens: int, clock: Clock) -> Ids:
        engine = self.llm.llm_engine
        names = [str(next(self.numbers)) for _ in ids]
        prompts = [TokensPrompt(prompt_token_ids=row.tolist()) for row in ids]
        how = SamplingParams(
            temperature=0,
            max_tokens=new_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        tokens = np.empty((len(ids), new_tokens), dtype=np.int64)
        clock.start()
        for name, prompt in zip(names, prompts, strict=True):
            engine.add_request(name, prompt, how)
        for step in range(new_tokens):
            given = {output.request_id: output.outputs[0].token_ids for output in engine.step()}
            clock.token()
            if len(given) != len(ids) or any(len(each) != 1 for each in given.values()):
                raise CellFailure(
                    "failed",
                    f"a step of vLLM gave {sum(map(len, given.values()))} tokens of {len(given)}"
                    f" rows, want one of each of {len(ids)}: it is no static batch",
                )
            tokens[:, step] = [given[name][0] for name in names]
        return tokens

    def complete(self, prompts: list[list[int]], most: int) -> list[list[int]]:
        how = SamplingParams(
            temperature=0, max_tokens=most, stop_token_ids=sorted(self.ends), detokenize=False
        )
        return [
            list(
                self.llm.generate(TokensPrompt(prompt_token_ids=prompt), how, use_tqdm=False)[0]
                .outputs[0]
                .token_ids
            )
            for prompt in prompts
        ]

    def hidden(self, ids: Ids) -> Floats:
        raise NotImplementedError("vLLM shows logits; its hidden states are not asked for")

    def head(self) -> Head | None:
        return None

    def logits(self, ids: Ids) -> list[Iterator[Floats]] | None:
        return [self._pieces(row) for row in ids]

    def _pieces(self, row: Ids) -> Iterator[Floats]:
        """vLLM computes logits of the last position to choose a token, and then those of all before
        it for their log-probabilities."""
        kept: list[torch.Tensor] = []
        compute = self.model.compute_logits

        def keep(hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
            logits: torch.Tensor = compute(hidden, *rest)
            kept.append(logits.clone())  # what chooses tokens may write into it
            return logits

        self.model.compute_logits = keep
        how = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        self.llm.generate(TokensPrompt(prompt_token_ids=row.tolist()), how, use_tqdm=False)
        del self.model.compute_logits
        last, *before = kept
        logits = torch.cat([*before, last])
        assert len(logits) == len(row), "one position's logits each"
        for start in range(0, len(row), _POSITIONS):
            yield logits[start : start + _POSITIONS].float().numpy()

    @property
    def runner(self) -> Any:
        """What holds the model and its keys and values."""
        core: Any = self.llm.llm_engine.engine_core
        return core.engine_core.model_executor.driver_worker.worker.model_runner

    @property
    def model(self) -> Any:
        return self.runner.model

    def alternative(self) -> None:
        raise NotImplementedError("vLLM makes no reference: the noise floor is another engine's")

    def tasks(self, quality: Quality, seed: int) -> tuple[TaskScore, ...]:
        return ()

    def attest(self, ids: Ids, new_tokens: int) -> Attestation:
        last = next(self._pieces(ids[0, -1:]))
        if not np.isfinite(last).all():
            raise CellFailure("failed", "the model's logits are not finite numbers")
        self.request(ids, new_tokens, Untimed())
        return attest(self.cell, self.folder, self.config, self.llm, self.runner)

    def exchange(self, quants: Mapping[str, Quant]) -> None:
        return None

    def allocated_peaks(self) -> tuple[int | None, int | None]:
        return None, None

    def profile_step(self, ids: Ids) -> PhaseProfile | None:
        return None

    def profile(self, ids: Ids, new_tokens: int, trace: Path) -> Profile | None:
        return None


def _ends(folder: Path, config: Any) -> frozenset[int]:
    """Tokens that end an answer, as transformers' engine reads them."""
    has_own = (folder / "generation_config.json").is_file()
    ends = (GenerationConfig.from_pretrained(folder) if has_own else config).eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or ())


def _said(error: Exception) -> str:
    """The sentence of a validation error, without pydantic's frame around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("Value error")), lines[0])
