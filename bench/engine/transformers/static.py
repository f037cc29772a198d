"""Token loops over a cache of fixed size: ``static`` as Python runs it, ``compiled`` with its
decode step as one graph.

A cache that holds prompt and answer from the start gives every decode step the same shapes, so that
``torch.compile`` makes one graph of it, argmax included: on a CPU C++ by Inductor, on CUDA kernels
of Triton that CUDA graphs repeat. The price is a mask over the whole cache, and attention to all of
it, in each step. The prefill stays eager: transformers marks the addresses of keys and values as
fixed outside of tracing alone (transformers 5.23.0, cache_utils.py, StaticLayer).

Making the cache and compiling are not timed with a request; Inductor keeps what it has compiled on
disk, so that the next process with the same model, shapes and library gets it from there.
"""

import os
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from transformers import PreTrainedModel, StaticCache

from bench.engine.clock import Clock
from bench.engine.transformers.strategies import Ran, cache_argument
from bench.errors import CellFailure
from bench.paths import cache_folder

# The first call compiles; on CUDA the second records a CUDA graph and the third repeats it
_CALLS = 3


class StaticLoop:
    """``strategies.loop`` over a StaticCache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.argument = cache_argument(type(model).forward)
        self.rows = self.tokens = 0  # that there is room for
        self.cache = StaticCache(config=model.config, max_cache_len=1)
        self.token = torch.empty(0)
        self.step: Callable[[], Tensor] = self._step

    def prepare(self, ids: Tensor, new_tokens: int) -> None:
        """Make room for a request of this shape. Shapes: ids (rows, prompt_tokens)."""
        if len(ids) != self.rows or ids.shape[1] + new_tokens > self.tokens:
            self._make_room(ids.to(self.model.device), ids.shape[1] + new_tokens)

    def run(self, prompt_ids: Tensor, new_tokens: int, clock: Clock) -> Tensor:
        """Shapes: as ``strategies.loop``."""
        self.prepare(prompt_ids, new_tokens)
        clock.start()
        self.cache.reset()
        self.token.copy_(self._next(prompt_ids.to(self.model.device)))
        self.token.tolist()  # the only synchronisation before the last token
        clock.token()
        tokens = [self.token.clone()]
        for _ in range(new_tokens - 1):
            self.token.copy_(self.step())  # a graph writes each token to the same place
            clock.token()
            tokens.append(self.token.clone())
        return torch.cat(tokens, dim=1)

    def ran(self) -> Ran:
        return Ran({"cache_tokens": self.tokens})

    def _make_room(self, ids: Tensor, tokens: int) -> None:
        self.rows, self.tokens = len(ids), tokens
        self.cache = StaticCache(config=self.model.config, max_cache_len=tokens)
        self.token = self._next(ids[:, :1]).clone()  # gives the cache its tensors

    def _step(self) -> Tensor:
        return self._next(self.token)

    def _next(self, ids: Tensor) -> Tensor:
        """The next token of each row. Shapes: (rows, tokens) to (rows, 1)."""
        cache = {self.argument: self.cache}
        logits = self.model(ids, **cache, use_cache=True, logits_to_keep=1).logits
        token: Tensor = logits[:, -1].argmax(-1, keepdim=True)
        return token


class CompiledLoop(StaticLoop):
    """The same, its decode step compiled."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
        self.made: Mapping[str, int] = {}
        self.counts_then: Mapping[str, int] = {}

    def _make_room(self, ids: Tensor, tokens: int) -> None:
        super()._make_room(ids, tokens)
        before = _counts()
        self.step = self._compiled()
        try:
            for _ in range(_CALLS):
                self.token.copy_(self.step())
        except TorchDynamoException as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise CellFailure(
                "not_engaged", f"torch.compile makes no single graph of the decode step: {reason}"
            ) from error
        self.made, self.counts_then = _since(before), _counts()

    def _compiled(self) -> Callable[[], Tensor]:
        on_cuda = self.model.device.type == "cuda"
        # Whether a module has changed is asked no more: nothing changes it, and 2.6 of 26 ms went
        # into asking (own int4, 2 threads of an AMD EPYC). Tensors' shapes are asked still.
        options = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
        graphs = {"triton.cudagraphs": True} if on_cuda else {}
        # Another model's graph in this process would answer for this one
        torch.compiler.reset()
        step: Callable[[], Tensor] = torch.compile(
            self._step, fullgraph=True, dynamic=False, options={**options, **graphs}
        )
        if not on_cuda:
            return step

        def marked() -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return step()

        return marked

    def ran(self) -> Ran:
        made, later = self.made, _since(self.counts_then)
        mismatches = []
        if made["graphs"] != 1 or made["breaks"]:
            mismatches.append(
                f"the decode step became {made['graphs']} graphs with {made['breaks']} breaks, want"
                " 1 without"
            )
        if made["cuda_graph_skips"] or later["cuda_graph_skips"]:
            mismatches.append("torch made no CUDA graph of the decode step")
        again = later["graphs"]
        return Ran(
            details={
                "cache_tokens": self.tokens,
                "graphs": made["graphs"],
                "graph_breaks": made["breaks"],
                "from_disk": made["from_disk"] > 0,
                "recompilations": again,
            },
            mismatches=tuple(mismatches),
            remarks=("the decode step was compiled again between requests",) * (again > 0),
        )


def _counts() -> Mapping[str, int]:
    """torch's own, since the process began."""
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
        "from_disk": counters["inductor"]["fxgraph_cache_hit"],
        "cuda_graph_skips": counters["inductor"]["cudagraph_skips"],
    }


def _since(before: Mapping[str, int]) -> Mapping[str, int]:
    return {name: count - before[name] for name, count in _counts().items()}
