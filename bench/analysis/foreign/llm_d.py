"""llm-d's Benchmark Report 0.2: what a load of requests took of an inference service, as JSON or
YAML.

Its times are distributions over requests; read are medians, or means where there are none. A
service has a queue and a network in its time to first token, and a number of requests at once in
place of a batch, so both are named as unknown. Its ``input_token_rate`` counts the time of decoding
too: it is no throughput of a prefill, and is passed over.

A report of ours (``llm_d_report``) has all metrics of its cell besides, and those are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.analysis.foreign.file import File
from bench.config.parse import COUNT, POSITIVE
from bench.record.foreign import Foreign

_FORMAT = "a Benchmark Report 0.2"
OURS = "bench"
_FACTORS = {"s": 1.0, "ms": 1e-3, "s/token": 1.0, "ms/token": 1e-3, "tokens/s": 1.0}


@dataclass(frozen=True, slots=True)
class _Statistics:
    units: str
    mean: float = field(metadata=POSITIVE)
    p50: float | None = None


@dataclass(frozen=True, slots=True)
class _Latency:
    time_to_first_token: _Statistics | None = None
    time_per_output_token: _Statistics | None = None
    request_latency: _Statistics | None = None


@dataclass(frozen=True, slots=True)
class _Throughput:
    output_token_rate: _Statistics | None = None


@dataclass(frozen=True, slots=True)
class _Requests:
    total: int | None = None
    input_length: _Statistics | None = None
    output_length: _Statistics | None = None


@dataclass(frozen=True, slots=True)
class _Aggregate:
    requests: _Requests = field(default_factory=_Requests)
    latency: _Latency = field(default_factory=_Latency)
    throughput: _Throughput = field(default_factory=_Throughput)


@dataclass(frozen=True, slots=True)
class _Performance:
    aggregate: _Aggregate = field(default_factory=_Aggregate)


@dataclass(frozen=True, slots=True)
class _Own:
    """What a report of ours says beside the schema."""

    model: str
    engine: str
    quant: str
    attn: str
    batch: int = field(metadata=COUNT)
    prompt_tokens: int = field(metadata=COUNT)
    new_tokens: int = field(metadata=COUNT)
    processes: int = field(metadata=COUNT)
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Observability:
    bench: _Own | None = None


@dataclass(frozen=True, slots=True)
class _Results:
    request_performance: _Performance = field(default_factory=_Performance)
    observability: _Observability = field(default_factory=_Observability)


@dataclass(frozen=True, slots=True)
class _Model:
    name: str


@dataclass(frozen=True, slots=True)
class _Accelerator:
    model: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class _Engine:
    kind: str
    tool: str
    tool_version: str = ""
    model: _Model | None = None
    accelerator: _Accelerator | None = None


@dataclass(frozen=True, slots=True)
class _Native:
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Component:
    standardized: _Engine
    native: _Native = field(default_factory=_Native)


@dataclass(frozen=True, slots=True)
class _Load:
    tool: str
    tool_version: str = ""
    rate_qps: float | None = None


@dataclass(frozen=True, slots=True)
class _Workload:
    standardized: _Load


@dataclass(frozen=True, slots=True)
class _Scenario:
    stack: tuple[_Component, ...] = ()
    load: _Workload | None = None


@dataclass(frozen=True, slots=True)
class _Report:
    version: str
    results: _Results
    scenario: _Scenario = field(default_factory=_Scenario)


def is_it(content: Any) -> bool:
    """Whether this is a Benchmark Report, of any version."""
    return isinstance(content, Mapping) and {"version", "run", "results"} <= content.keys()


def read(file: File, content: Mapping[str, Any]) -> list[Foreign]:
    """A report as one configuration.

    Raises:
        ConfigError: when it is of another version, a field of another type, or no figure in it.
    """
    version = str(content["version"])
    if version.split(".")[:2] != ["0", "2"]:
        raise file.refused(f"a Benchmark Report of version {version}; want 0.2")
    report = file.fields(_Report, {**content, "version": version}, _FORMAT)
    own = report.results.observability.bench
    return [_of_ours(file, report, own) if own is not None else _of_a_service(file, report)]


def _of_a_service(file: File, report: _Report) -> Foreign:
    figures = report.results.request_performance.aggregate
    latency, output = figures.latency, figures.throughput.output_token_rate
    found = {
        "ttft_s": latency.time_to_first_token,
        "tpot_s": latency.time_per_output_token,
        "e2e_s": latency.request_latency,
        "output_tok_s": output,
    }
    values = {key: _value(file, given) for key, given in found.items() if given is not None}
    if not values:
        raise file.refused("no figure in it that is read here")
    load = None if report.scenario.load is None else report.scenario.load.standardized
    engine = _engine(report)
    arguments = {} if engine is None else engine.native.args
    quant = next((arguments[key] for key in ("--quantization", "quantization") if key in arguments),
                 None)  # fmt: skip
    unknown = ("warm-up", "definition of time to first token")
    total = figures.requests.total
    return Foreign(
        file=file.name,
        digest=file.digest,
        tool=_FORMAT.removeprefix("a ") if load is None else load.tool,
        version=None if load is None else load.tool_version or None,
        protocol=f"{'requests' if total is None else f'{total} requests'} to a service, medians"
        " over them where the file has medians, else means",
        hardware=_hardware(engine),
        model=None if engine is None or engine.standardized.model is None
        else engine.standardized.model.name,
        engine=None if engine is None else _named(engine.standardized),
        quant=None if quant is None else str(quant),
        prompt_tokens=_count(figures.requests.input_length),
        new_tokens=_count(figures.requests.output_length),
        settings=_settings(engine, load),
        values=values,
        unknown=unknown if "ttft_s" in values else unknown[:1],
    )  # fmt: skip


def _of_ours(file: File, report: _Report, own: _Own) -> Foreign:
    load = None if report.scenario.load is None else report.scenario.load.standardized
    engine = _engine(report)
    return Foreign(
        file=file.name,
        digest=file.digest,
        tool=OURS,
        version=None if load is None else load.tool_version or None,
        protocol=f"a cell of python -m bench, {own.processes} "
        f"{'process' if own.processes == 1 else 'processes'}, from its report",
        hardware=_hardware(engine),
        model=own.model,
        engine=own.engine,
        quant=own.quant,
        attn=own.attn,
        batch=own.batch,
        prompt_tokens=own.prompt_tokens,
        new_tokens=own.new_tokens,
        values=own.metrics,
    )


def _engine(report: _Report) -> _Component | None:
    """The part of the stack that runs the model."""
    engines = (c for c in report.scenario.stack if c.standardized.kind == "inference_engine")
    return next(engines, None)


def _named(engine: _Engine) -> str:
    return f"{engine.tool} {engine.tool_version}".strip()


def _hardware(engine: _Component | None) -> str | None:
    accelerator = None if engine is None else engine.standardized.accelerator
    if accelerator is None:
        return None
    many = f"{accelerator.count} x " if accelerator.count > 1 else ""
    return many + accelerator.model


def _settings(engine: _Component | None, load: _Load | None) -> dict[str, str]:
    settings = {}
    if engine is not None and "--dtype" in engine.native.args:
        settings["dtype"] = str(engine.native.args["--dtype"])
    if load is not None and load.rate_qps is not None:
        settings["rate_qps"] = f"{load.rate_qps:g}"
    return settings


def _value(file: File, given: _Statistics) -> float:
    if given.units not in _FACTORS:
        raise file.refused(f"units={given.units}: want one of {', '.join(_FACTORS)}")
    return (given.mean if given.p50 is None else given.p50) * _FACTORS[given.units]


def _count(given: _Statistics | None) -> int | None:
    if given is None:
        return None
    return round(given.mean if given.p50 is None else given.p50)
