"""How a configuration's times grow with the context, as a sweep writes it down for the next one."""

from dataclasses import dataclass, field

from bench.config.parse import COUNT, NOT_NEGATIVE, within


@dataclass(frozen=True, slots=True)
class Fit:
    """A polynomial of a number of tokens, fitted to times. Units: seconds, of powers of a token."""

    coefficients: tuple[float, ...] = field(metadata=within(length=1))  # the lowest power first
    covariance: tuple[tuple[float, ...], ...]
    df: float  # degrees of freedom of the noise behind the covariance
    deviation: float = field(metadata=NOT_NEGATIVE)  # of one process, as a share of its time
    # How often noise alone leaves the depths so far off the curve; None: it cannot be tested
    lack_of_fit_p: float | None
    farthest: float = field(metadata=NOT_NEGATIVE)  # of a depth from the curve, as a share


@dataclass(frozen=True, slots=True)
class Growth:
    """Of cells that differ in the length of their prompt alone."""

    configuration: str  # digest of such a cell without that length
    sweep_id: str
    device_name: str
    prompt_tokens: tuple[int, ...] = field(metadata=within(length=1))  # measured, shortest first
    requests: int = field(metadata=COUNT)  # over which times are least
    step: Fit  # of a decode step, over the tokens that it attends to
    prefill: Fit | None  # TTFT over the prompt's tokens; None: too few depths for three numbers
