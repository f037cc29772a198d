"""What a measured process is asked for after its timed requests; it changes none of their
numbers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Afterwards:
    """Each part is a pass of its own; what has been read is with the parent before the next one
    begins."""

    samples: bool = False  # answers to the prompts of the cell's quality
    tasks: bool = False  # those of the cell's quality
    # File of the model that its predictions are compared with; None: they are not
    reference: str | None = None
    trace: str | None = None  # file for the trace of a profiled request; None: no profile
