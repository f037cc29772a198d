"""What the command lines of the commands have in common."""

import argparse
from pathlib import Path
from typing import Any

from bench.commands.quantities import positive
from bench.paths import whole_path

_EXAMPLES = {
    "push": "push outputs/sweeps/2026-01-31_12-00-00",
    "fetch": "fetch smollm2-135m qwen2.5-3b",
    "gate": "gate 2026-02-01_12-00-00 --baseline 2026-01-31_12-00-00 --threshold 5%",
    "advise": "advise --goal tpot --max-memory 8GiB --max-kl 0.05",
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


def take_price(parser: argparse.ArgumentParser) -> None:
    """The option of what an hour costs."""
    parser.add_argument(
        "--price-per-hour",
        type=positive,
        metavar="PRICE",
        help="what an hour of that machine costs, like 2.50; default: as the sweep was run with",
    )


def typed_path(text: str) -> Path:
    """As it is meant where the command was typed."""
    return Path(whole_path(text))
