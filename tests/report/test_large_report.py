"""A report on 1,000 cells: how long it takes, how large it is, when its table can be seen.

`pytest -m slow -s -k large_report` prints it.
"""

import time
from pathlib import Path

import pytest

from tests.analysis.test_advice import measured
from tests.report.test_page import written
from tests.test_browser import CHROMIUM, Browser, Seen, browser  # noqa: F401  # the fixture

QUANTS = ("fp32", "fp16", "bf16", "int8", "int8_nodecomp", "nf4", "nf4_double", "fp4")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_large_report_stays_small_and_its_table_is_seen(browser: Browser, tmp_path: Path) -> None:  # noqa: F811
    cells = [
        measured(
            quant,
            batch,
            tpot_s=0.02 + 0.001 * batch + 0.003 * i,
            ttft_s=0.05 * batch,
            mib=300 + batch,
            kl=0.01 * i + 1e-4,
        )
        for i, quant in enumerate(QUANTS)
        for batch in range(1, 126)
    ]
    started = time.perf_counter()
    page = written(tmp_path, cells)[0]
    print(
        f"\n{len(cells)} cells: {time.perf_counter() - started:.1f} s,"
        f" {page.stat().st_size / 1e6:.2f} MB"
    )
    assert page.stat().st_size < 8e6
    seen = Seen(browser, 1400)
    started = time.perf_counter()
    seen.page.goto(page.as_uri(), wait_until="commit")
    seen.page.locator("#cells tbody tr").first.wait_for()
    print(f"first table visible after {time.perf_counter() - started:.2f} s")
    seen.page.wait_for_load_state()
    started = time.perf_counter()
    seen.page.get_by_role("button", name="TPOT ms").click()
    assert seen.page.locator("#cells tbody tr").count() == 1000
    print(f"sorted after {time.perf_counter() - started:.2f} s")
    assert seen.complaints == []
