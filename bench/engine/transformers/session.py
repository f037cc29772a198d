"""A loaded transformers model behind the ``Session`` protocol: numpy ids in, numpy ids out."""

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from bench.config.cell import Cell, Quality, Quant
from bench.engine.clock import Clock, HostClock
from bench.engine.exchange import Exchange
from bench.engine.prompts import FileTokenizer, Ids, load_tokenizer
from bench.engine.protocol import Floats, Head
from bench.engine.transformers import strategy
from bench.engine.transformers.attention import pinned
from bench.engine.transformers.attest import attest
from bench.engine.transformers.clock import CudaClock
from bench.engine.transformers.device import allocated_peaks
from bench.engine.transformers.exchange import LayerExchange
from bench.engine.transformers.load import load, reading, release_heap
from bench.engine.transformers.profiling import (
    profile_request,
    profile_step,
)
from bench.record.measurement import PhaseProfile, Profile, TaskScore, read_scores
from bench.record.result import Attestation

_POSITIONS = 16  # of which logits exist at once
_SAME = 1e-2  # of logits: two ways through one head differ by less, a missing scale or cap by more
_SCALES = "logit|lm_head|output_multiplier"  # in names of a configuration's numbers
_BELOW_1 = 1 - 1e-6


class _HeadReached(Exception):
    """Ends a forward pass before logits are made of all positions."""


def open_session(
    cell: Cell, folder: Path | None, source: Path | None = None, packed: Path | None = None
) -> "TransformersSession":
    """The cell's model in memory; as ``load``."""
    session = TransformersSession(cell, load(cell, folder, source, packed), folder)
    if cell.device == "cuda":
        torch.cuda.synchronize()
    release_heap()
    return session


class TransformersSession:
    """Requests, answers and logits of one model."""

    def __init__(self, cell: Cell, model: PreTrainedModel, folder: Path | None) -> None:
        self.cell = cell
        self.model = model
        with contextlib.nullcontext() if folder is None else reading(cell, folder):
            self.tokenizer = load_tokenizer(cell.model, folder)
        config = model.config.get_text_config()
        self.vocabulary: int = config.vocab_size
        self.context_tokens: int | None = getattr(config, "max_position_embeddings", None)
        ends = model.generation_config.eos_token_id
        self.ends = frozenset([ends] if isinstance(ends, int) else ends or ())
        self.strategy = strategy(cell.decode.strategy, model)

    def ready(self, ids: Ids, new_tokens: int) -> None:
        """What loading has left goes back first: transformers reserves the weights' size at once
        and quantizes from 16 bits."""
        if self.cell.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        with torch.inference_mode(), pinned(self.cell.attn):
            self.strategy.prepare(torch.from_numpy(ids), new_tokens)

    def clock(self, new_tokens: int) -> Clock:
        return CudaClock(new_tokens) if self.cell.device == "cuda" else HostClock()

    def request(self, ids: Ids, new_tokens: int, clock: Clock) -> Ids:
        with torch.inference_mode(), pinned(self.cell.attn):
            tokens = self.strategy.run(torch.from_numpy(ids), new_tokens, clock)
        out: Ids = tokens.cpu().numpy()
        return out

    def complete(self, prompts: list[list[int]], most: int) -> list[list[int]]:
        """One left-padded batch with its mask, since nothing is timed; sdpa is pinned to no backend
        here: some refuse any mask."""
        longest = max(map(len, prompts))
        rows = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        config = GenerationConfig(  # all that a model's own could slip in is set
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=most,
            eos_token_id=sorted(self.ends) or None,
            pad_token_id=0,
        )
        with torch.inference_mode(), pinned(replace(self.cell.attn, backend=None)):
            out = self.model.generate(
                torch.tensor(rows, device=self.model.device),
                attention_mask=torch.tensor(mask, device=self.model.device),
                generation_config=config,
            )
        return [self._until_its_end(row) for row in out[:, longest:].tolist()]

    def _until_its_end(self, ids: list[int]) -> list[int]:
        stop = next((i + 1 for i, token in enumerate(ids) if token in self.ends), len(ids))
        return ids[:stop]

    def hidden(self, ids: Ids) -> Floats:
        return _to_numpy(self._hidden(ids))

    def _hidden(self, ids: Ids) -> torch.Tensor:
        """What the head is given, at every position; the forward pass ends there."""
        given: list[torch.Tensor] = []

        def keep(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            given.append(arguments[0])
            raise _HeadReached

        hook = self.model.get_output_embeddings().register_forward_pre_hook(keep)
        with (
            contextlib.suppress(_HeadReached),
            torch.inference_mode(),
            pinned(self.cell.attn),
        ):
            self.model(torch.from_numpy(ids).to(self.model.device), use_cache=False)
        hook.remove()
        return given[0]

    def head(self) -> Head | None:
        if self._finish is None:
            return None
        module = self.model.get_output_embeddings()
        bias = None if module.bias is None else _to_numpy(module.bias)
        return replace(self._finish, weight=_to_numpy(module.weight), bias=bias)

    @functools.cached_property
    def _finish(self) -> Head | None:
        """What happens to the product with the head, without its weights: seen by comparing it with
        the model's own logits. A scale is the configuration's own number where it is near."""
        config = self.model.config.get_text_config(decoder=True)
        probe = np.arange(1, 9)[None] % self.vocabulary
        with torch.inference_mode(), pinned(self.cell.attn):
            product = self.model.get_output_embeddings()(self._hidden(probe)[:, -1:])
            logits = self.model(
                torch.from_numpy(probe).to(self.model.device), use_cache=False, logits_to_keep=1
            ).logits
        made, real = _to_numpy(product), _to_numpy(logits)
        cap = getattr(config, "final_logit_softcapping", None)
        scaled = real if cap is None else cap * np.arctanh(np.clip(real / cap, -_BELOW_1, _BELOW_1))
        scale = float((scaled * made).sum() / (made * made).sum())
        known = [value for name, value in config.to_dict().items() if re.search(_SCALES, name)]
        numbers = [float(value) for value in known if isinstance(value, int | float) and value]
        near = [n for n in (1.0, *numbers, *(1 / n for n in numbers)) if abs(scale / n - 1) < _SAME]
        finish = Head(made[0, :1], None, near[0] if near else scale, cap)
        return finish if np.allclose(finish.finished(made), real, rtol=_SAME, atol=_SAME) else None

    def logits(self, ids: Ids) -> list[Iterator[Floats]] | None:
        finish = self._finish
        return None if finish is None else [self._pieces(row, finish) for row in self._hidden(ids)]

    def _pieces(self, hidden: torch.Tensor, finish: Head) -> Iterator[Floats]:
        head = self.model.get_output_embeddings()
        for start in range(0, len(hidden), _POSITIONS):
            with torch.inference_mode():
                piece = head(hidden[start : start + _POSITIONS])
            yield finish.finished(_to_numpy(piece))
        release_heap()  # int8's products leave 10 MB of holes in the heap with each window

    def alternative(self) -> None:
        self.model.set_attn_implementation("eager")

    def tasks(self, quality: Quality, seed: int) -> tuple[TaskScore, ...]:
        import lm_eval  # seconds, and optional: pip install '.[eval]'
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        assert isinstance(self.tokenizer, FileTokenizer), "the harness needs the model's tokenizer"
        with pinned(replace(self.cell.attn, backend=None)):
            report = lm_eval.simple_evaluate(
                model=HFLM(pretrained=self.model, tokenizer=self.tokenizer.wrapped, batch_size=1),
                tasks=list(quality.tasks),
                task_manager=TaskManager(include_path=quality.task_folder),
                limit=quality.task_limit,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
                log_samples=False,
            )
        return read_scores(report["results"])

    def attest(self, ids: Ids, new_tokens: int) -> Attestation:
        return attest(self.cell, self.model, self.strategy, self.request, ids, new_tokens)

    def allocated_peaks(self) -> tuple[int | None, int | None]:
        return allocated_peaks() if self.cell.device == "cuda" else (None, None)

    def profile(self, ids: Ids, new_tokens: int, trace: Path) -> Profile | None:
        return profile_request(self.request, ids, new_tokens, self.cell.device, trace)

    def profile_step(self, ids: Ids) -> PhaseProfile | None:
        if self.cell.decode.strategy == "compiled":
            return None  # a profiler does not see the kernels that were made for it
        with torch.inference_mode(), pinned(self.cell.attn):
            return profile_step(self.model, ids, self.cell.device)

    def exchange(self, quants: Mapping[str, Quant]) -> Exchange:
        return LayerExchange(self.model, quants, self.cell.device)


def _to_numpy(tensor: torch.Tensor) -> Floats:
    floats: Floats = tensor.detach().float().cpu().numpy()
    return floats
