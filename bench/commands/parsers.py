"""What the command lines of the commands have in common."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands.quantities import positive, share, size_bytes, time_s
from bench.paths import whole_path

if TYPE_CHECKING:  # it imports numpy, which most command lines need not wait for
    from bench.analysis.advice import Limits

_EXAMPLES = {
    "push": "push outputs/sweeps/2026-01-31_12-00-00",
    "fetch": "fetch smollm2-135m qwen2.5-3b",
    "gate": "gate 2026-02-01_12-00-00 --baseline 2026-01-31_12-00-00 --threshold 5%",
    "compare": "compare 2026-01-31_12-00-00 2026-02-01_12-00-00 --margin 5%",
    "choose": "choose model=smollm2-135m quant=bf16,nf4 --goal chat --max-kl 0.05 --budget 20min",
    "advise": "advise --goal chat --max-memory 8GiB --max-kl 0.05",
    "import": "import llama-bench.json --sweep 2026-01-31_12-00-00",
    "report": "report 2026-01-31_12-00-00",
    "reproduce": "reproduce 2026-01-31_12-00-00 --processes 5",
    "sensitivity": "sensitivity quant=int4_g128 --schemes int4_g32,int8_channel --budget 4.5bits",
    "doctor": "doctor --calibrate",
    "export": "export outputs/sweeps/2026-01-31_12-00-00/cells/1a2b3c4d5e6f int4-model",
}


def plain_parser(name: str, description: str, **options: Any) -> argparse.ArgumentParser:
    """Of a command by its name, with an example in its help."""
    example = f"example: python -m bench {_EXAMPLES[name]}"
    prog = f"python -m bench {name}"
    options |= {"formatter_class": argparse.RawDescriptionHelpFormatter}  # an example is a line
    return argparse.ArgumentParser(prog, description=description, epilog=example, **options)


def command_parser(name: str, description: str, **options: Any) -> argparse.ArgumentParser:
    """Of a command that reads the folder of a sweep."""
    parser = plain_parser(name, description, **options)
    parser.add_argument(
        "--output-dir",
        type=typed_path,
        default="outputs",
        metavar="DIR",
        help="the output_dir that sweeps were run with (default outputs)",
    )
    return parser


def sweep_parser(name: str, description: str) -> argparse.ArgumentParser:
    """Of a command that is about one sweep."""
    parser = command_parser(name, description)
    parser.add_argument(
        "folder",
        nargs="?",
        help="folder of a sweep, or its name in DIR/sweeps; the newest one there if left out",
    )
    return parser


def take_margin(parser: argparse.ArgumentParser) -> None:
    """The option of what counts as no difference between sweeps."""
    parser.add_argument(
        "--margin",
        type=share,
        default=0.03,
        help="relative difference of times that counts as none (default 0.03: 3%%)",
    )


def take_price(parser: argparse.ArgumentParser) -> None:
    """The option of what an hour costs."""
    parser.add_argument(
        "--price-per-hour",
        type=positive,
        metavar="PRICE",
        help="what an hour of that machine costs, like 2.50; default: as the sweep was run with",
    )


def take_limits(parser: argparse.ArgumentParser) -> None:
    """The options of what a configuration must keep."""
    parser.add_argument(
        "--max-memory",
        type=size_bytes,
        metavar="SIZE",
        help="of the GPU, or of the process: 8GiB, 500MB",
    )
    parser.add_argument(
        "--max-ttft", type=time_s, metavar="TIME", help="time to first token: 200ms, 1.5s"
    )
    parser.add_argument("--max-tpot", type=time_s, metavar="TIME", help="time per output token")
    parser.add_argument(
        "--max-kl",
        type=positive,
        metavar="NATS",
        help="divergence from the unquantized model: 0.05",
    )
    parser.add_argument(
        "--min-throughput",
        "--min-tok-s",
        type=positive,
        metavar="TOK_S",
        help="output tokens per second of the batch",
    )


def limits_of(given: argparse.Namespace) -> "Limits":
    """What these options say."""
    from bench.analysis.advice import Limits

    return Limits(
        given.max_memory, given.max_ttft, given.max_tpot, given.max_kl, given.min_throughput
    )


def typed_path(text: str) -> Path:
    """As it is meant where the command was typed."""
    return Path(whole_path(text))
