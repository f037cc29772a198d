"""What a million tokens cost on a machine that is paid for by the hour.

A price is in whatever the hour is paid in: no currency is assumed. Each phase has a price of its
own, as if the machine were paid for while it does that phase alone, at the cell's batch, always
busy: prompt tokens cost what prefill takes, output tokens what decoding takes. An hour of waiting
costs as much and makes no token, so who keeps a machine busy a tenth of the time pays ten times
this. (``cost`` counts bytes and operations.)
"""

from collections.abc import Mapping

# By price, the time that it is proportional to
_TIMES = {"cost/input_mtok": "ttft_s", "cost/output_mtok": "tpot_s"}


def per_mtok(price_per_hour: float | None, tok_s: float) -> float | None:
    """Of a million tokens at a throughput; None where no price is known."""
    return None if price_per_hour is None else price_per_hour / 3600 / tok_s * 1e6


def intervals(values: Mapping[str, float], of_times: Mapping[str, float]) -> dict[str, float]:
    """The ends of the prices' intervals: a price is a constant times a time.

    Args:
        values: derived, prices and times among them.
        of_times: ends of the times' intervals, like ``tpot_s_low``.
    """
    return {
        end.replace(time, price): value * values[price] / values[time]
        for price, time in _TIMES.items()
        if price in values
        for end, value in of_times.items()
        if end.startswith(time)
    }
