"""The same work again and again, while a thread beside it reads an instrument.

It has requests of its own, because that thread takes the interpreter from the loop it watches:
nothing is timed in it.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Read = TypeVar("Read")


def watched(
    read: Callable[[], Read], work: Callable[[], object], window_s: float, every_s: float
) -> tuple[list[Read], int]:
    """What was read, and how many times the work ran, at least once. The first reading is from
    before the work and the last from after it.

    Args:
        work: has to wait for the device before it returns, or the window ends before its last round
            does.

    Raises:
        Whatever ``read`` or ``work`` does.
    """
    first, began_s = read(), time.perf_counter()
    rounds, over = 0, threading.Event()
    with ThreadPoolExecutor(max_workers=1) as pool:
        between = pool.submit(_read_until, over, read, every_s)
        try:
            # It is done before it is told so only when reading fails: then there is nothing left to
            # wait for.
            while not between.done() and (rounds == 0 or time.perf_counter() - began_s < window_s):
                work()
                rounds += 1
        finally:
            over.set()
    return [first, *between.result(), read()], rounds


def _read_until(over: threading.Event, read: Callable[[], Read], every_s: float) -> list[Read]:
    readings = []
    while not over.wait(every_s):
        readings.append(read())
    return readings
