"""What a cell draws on a GPU, and whether something held its clocks down: passes of their own,
after the timed ones.

Prefill and whole requests are watched apart, so that the energy of decoding is their difference;
the power of the same process doing nothing is read last, with the model in memory, and is
subtracted under its own name only.
"""

import torch

from bench.config.cell import Cell
from bench.engine.transformers.attention import pinned
from bench.engine.transformers.load import Subject
from bench.engine.transformers.strategies import LOOPS
from bench.meter.memory import cuda_uuid
from bench.meter.nvml import SHORTEST_ENERGY_WINDOW_S, idle_power_w, watch
from bench.record.measurement import Energy


class _NoClock:
    def start(self) -> None:
        pass

    def first_token(self) -> None:
        pass

    def token(self) -> None:
        pass


def read_energy(cell: Cell, subject: Subject, prompt_ids: torch.Tensor) -> Energy:
    """Windows of ``cell.measure.telemetry_s`` each; below 10 s they tell clocks, power and
    throttling, but no energy.

    Raises:
        CellFailure: ``failed`` when the GPU is gone.
    """
    uuid, window_s = cuda_uuid(), cell.measure.telemetry_s
    decode = LOOPS[cell.decode.loop]

    def run(new_tokens: int) -> None:
        decode(subject.model, prompt_ids, new_tokens, _NoClock())
        torch.cuda.synchronize()

    with pinned(cell.attn):
        prefill = watch(uuid, lambda: run(1), window_s)
        request = watch(uuid, lambda: run(cell.workload.new_tokens), window_s)
    counts = window_s >= SHORTEST_ENERGY_WINDOW_S  # else there is no energy to subtract it from
    return Energy(prefill, request, idle_power_w(uuid, window_s=window_s) if counts else None)
