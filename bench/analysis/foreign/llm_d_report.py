"""A cell of ours as llm-d's Benchmark Report 0.2, one report a cell.

The schema's statistics are over the timed requests of all processes; each row of a batch is a
request. What the schema has no place for (metrics with their intervals, what the cell is) stands
under ``observability``, which takes keys of others: read again it gives the same figures.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from statistics import fmean, median, stdev
from typing import Any

from bench.analysis import readings
from bench.analysis.foreign.llm_d import OURS
from bench.config.cell import identity
from bench.record.result import Result
from bench.record.sweep import Provenance

VERSION = "0.2.1"


def as_report(result: Result, values: Mapping[str, float], code: Provenance) -> dict[str, Any]:
    """A measured cell as a report.

    Args:
        values: as derived.
        code: that measured it.
    """
    cell, rows = result.cell, result.cell.rows
    prompt, new = result.measurements[0].prompt_tokens, cell.workload.new_tokens
    repeats = [repeat for m in result.measurements for repeat in m.repeats]
    e2e_s = [repeat.e2e_s for repeat in repeats]
    rates = {
        "input_token_rate": ("tokens/s", rows * prompt),
        "output_token_rate": ("tokens/s", rows * new),
        "total_token_rate": ("tokens/s", rows * (prompt + new)),
        "request_rate": ("queries/s", rows),
    }
    aggregate = {
        "requests": {
            "total": rows * len(repeats),
            "failures": 0,
            "input_length": _statistics("count", [prompt]),
            "output_length": _statistics("count", [new]),
        },
        "latency": {
            "time_to_first_token": _statistics("s", [r.ttft_s for r in repeats]),
            "time_per_output_token": _statistics("s/token", [readings.tpot_s(r) for r in repeats]),
            "request_latency": _statistics("s", e2e_s),
        },
        "throughput": {
            name: _statistics(units, [amount / s for s in e2e_s])
            for name, (units, amount) in rates.items()
        },
    }
    own = {
        "model": cell.model.name,
        "engine": cell.engine.name,
        "quant": cell.quant.name,
        "attn": cell.attn.name,
        "batch": rows,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "processes": len(result.measurements),
        "metrics": dict(values),
    }
    return {
        "version": VERSION,
        "run": {
            "uid": f"{result.sweep_id}-{result.cell_id}",
            "eid": result.sweep_id,
            "time": {"start": _at(result.started_at), "end": _at(result.ended_at)},
            "description": f"{cell.label} of sweep {result.sweep_id}",
        },
        "scenario": {"stack": [_component(result)], "load": _load(result, prompt, new, code)},
        "results": {
            "request_performance": {"aggregate": aggregate},
            "observability": {OURS: own},
        },
    }


def _component(result: Result) -> dict[str, Any]:
    cell, host = result.cell, result.host
    on_gpu = cell.device == "cuda"
    versions = host.versions
    return {
        "metadata": {"label": cell.engine.name, "cfg_id": result.cell_id},
        "standardized": {
            "kind": "inference_engine",
            "tool": cell.engine.name,
            "tool_version": ", ".join(f"{name} {versions[name]}" for name in sorted(versions)),
            "role": "replica",
            "replicas": 1,
            "model": {"name": cell.model.repo or cell.model.name},
            "accelerator": {
                "model": host.device_name if on_gpu else host.cpu_name,
                "count": int(on_gpu),
                "parallelism": dict.fromkeys(("tp", "dp", "dp_local", "workers", "ep", "pp"), 1),
            },
        },
        "native": {"config": identity(cell)},
    }


def _load(result: Result, prompt: int, new: int, code: Provenance) -> dict[str, Any]:
    return {
        "metadata": {"description": f"workload {result.cell.workload.name}, one fixed batch"},
        "standardized": {
            "tool": OURS,
            "tool_version": (code.commit or code.measuring)[:12],
            "source": "unknown" if result.cell.model.weights == "random" else "sampled",
            "input_seq_len": {"distribution": "fixed", "value": prompt},
            "output_seq_len": {"distribution": "fixed", "value": new},
            "concurrency": result.cell.rows,
        },
        "native": {},
    }


def _statistics(units: str, values: Sequence[float]) -> dict[str, Any]:
    spread = {} if len(values) < 2 else {"stddev": stdev(values)}
    ends = {"min": min(values), "p50": median(values), "max": max(values)}
    return {"units": units, "mean": fmean(values), **spread, **ends}


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat()
