"""What the doctor says of a machine that is not this one."""

from rich.console import Console

from bench.commands.doctor import machine
from tests import fakes


def shown(**changes: object) -> str:
    console = Console(width=400)
    with console.capture() as captured:
        console.print(machine(fakes.gpu_host(**changes), None))
    return " ".join(captured.get().split())


def test_a_gpus_settings_are_shown_with_how_to_lock_its_clocks() -> None:
    settings = {"power limit, W": "350", "ECC": "on", "highest clock, MHz": "1980"}
    text = shown(device_settings=settings | {"application clock, MHz": "1755"})
    assert "power limit, W 350, ECC on" in text
    assert "sudo nvidia-smi --lock-gpu-clocks=1755 keeps the clock at one value" in text
    # Newer cards have no application clock
    assert "--lock-gpu-clocks=1980 " in shown(device_settings=settings)
    assert "lock-gpu-clocks" not in shown(device_settings={"ECC": "off"})
    assert "GPU settings" not in shown()


def test_a_gpu_that_cannot_be_used_is_shown_with_the_reason() -> None:
    old = "cannot be used: The NVIDIA driver on your system is too old (found version 12020)."
    assert f"other devices CUDA {old}" in shown(unsupported={"CUDA": old})
