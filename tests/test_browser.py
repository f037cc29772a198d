"""What a person sees: the report and MLflow's page of a sweep in a real browser, without a display.

Screenshots are kept in the folder that SCREENSHOTS names. Where no Chromium is installed the tests
are skipped.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from playwright.sync_api import Browser, Page, sync_playwright

from bench.commands.push import push
from bench.record.measurement import Sample
from bench.report.side_by_side_page import write_comparison
from bench.store.files import write_result, write_sweep
from bench.store.mlflow_view import LATEST, page
from tests import fakes
from tests.analysis.test_advice import KNOWN, SWEEP
from tests.command_line import TINY, in_process
from tests.report.test_page import answering, written
from tests.report.test_side_by_side import THREE

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

SAID = [
    answering(
        "bf16", Sample("one", "a b c d", (1, 2, 3, 4), True), Sample("two", "e f", (5, 6), True)
    ),
    answering("nf4", Sample("one", "a b x d", (1, 2, 9, 4), True), Sample("two", "z", (7,), True)),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-background-networking"]
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


class Seen:
    """A page, with what it complained about and what it asked of the network."""

    def __init__(self, browser: Browser, width: int, **options: str) -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 900}, **options)  # type: ignore[arg-type]
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text) if message.type == "error" else None
            ),
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def keep(self, name: str) -> None:
        if folder := os.environ.get("SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_shows_its_pictures_and_asks_nothing_of_the_network(
    browser: Browser, tmp_path: Path, width: int, scheme: str
) -> None:
    file = written(tmp_path, KNOWN)[0]
    seen = Seen(browser, width, color_scheme=scheme)
    seen.page.goto(file.as_uri())
    assert seen.requests == [file.as_uri()]
    assert seen.complaints == []
    pictures = seen.page.locator("figure svg")
    assert pictures.count() == 6
    for picture in pictures.all():
        box = picture.bounding_box()
        assert box is not None
        assert box["width"] > 300
        assert box["height"] > 50
    # On a phone wide things scroll by themselves, the page does not.
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    seen.keep(f"report-{width}-{scheme}")


@pytest.mark.parametrize("width", [1280, 420])
def test_sweeps_side_by_side_fit_the_screen(browser: Browser, tmp_path: Path, width: int) -> None:
    file = write_comparison(tmp_path, THREE)[0]
    seen = Seen(browser, width)
    seen.page.goto(file.as_uri())
    assert seen.requests == [file.as_uri()]
    assert seen.complaints == []
    assert seen.page.locator("figure svg").count() == 1
    assert seen.page.locator("#cells table").count() == 3
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    seen.keep(f"comparison-{width}")


def test_a_click_sorts_the_table_by_number_and_another_one_turns_it(
    browser: Browser, tmp_path: Path
) -> None:
    seen = Seen(browser, 1400)
    seen.page.goto(written(tmp_path, KNOWN)[0].as_uri())

    def column(index: int) -> list[str]:
        return seen.page.locator(f"#cells tbody tr td:nth-child({index})").all_inner_texts()

    assert [row[:4] for row in column(2)] == ["1", "8", "32"] * 3
    button = seen.page.get_by_role("button", name="batch")
    button.click()
    assert column(2) == ["1"] * 3 + ["8"] * 3 + ["32"] * 3  # by number: 8 before 32
    button.press("Enter")  # by keyboard too
    assert column(2) == ["32"] * 3 + ["8"] * 3 + ["1"] * 3
    assert seen.page.locator("th[aria-sort=descending]").inner_text().strip() == "batch"


def test_the_changed_part_of_an_answer_is_marked(browser: Browser, tmp_path: Path) -> None:
    seen = Seen(browser, 1400)
    seen.page.goto(written(tmp_path, SAID)[0].as_uri())
    assert seen.page.locator("#texts h3").all_inner_texts() == ["two", "one"]  # most changed first
    assert seen.page.locator("#texts td mark").all_inner_texts() == ["z", "x d"]
    seen.keep("report-texts")


def test_it_is_readable_in_a_frame_without_any_rights(browser: Browser, tmp_path: Path) -> None:
    file = written(tmp_path, KNOWN)[0]
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe sandbox srcdoc="" src="{file.name}" width="1200" height="800"></iframe>'.replace(
            ' srcdoc=""', ""
        )
    )
    seen = Seen(browser, 1400)
    seen.page.goto(frame.as_uri())
    inner = seen.page.frame_locator("iframe")
    assert inner.locator("figure svg").count() == 6
    assert "batch (most tokens" in inner.locator("#advice").inner_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's own server over a store into which a sweep was pushed; its address."""
    outputs = tmp_path_factory.mktemp("mlflow") / "outputs"
    folder = outputs / "sweeps" / SWEEP.sweep_id
    folder.mkdir(parents=True)
    write_sweep(folder, SWEEP)
    for result in KNOWN:
        write_result(folder, fakes.in_sweep(result, SWEEP.sweep_id))
    push(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{outputs / 'mlflow.db'}",
        "--default-artifact-root",
        str(outputs / "artifacts"),
    ]
    settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(outputs / "server.log", "w") as log:
        running = subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{address}/health", timeout=1)
            break
        except OSError:
            time.sleep(0.2)
    yield address
    family = [running, *psutil.Process(running.pid).children(recursive=True)]
    for process in family:
        process.terminate()
    running.wait(timeout=20)


@pytest.mark.parametrize("key", [SWEEP.sweep_id, None])
def test_mlflow_opens_on_charts_of_the_sweep(
    browser: Browser, server: str, key: str | None
) -> None:
    where = page("1", SWEEP.sweep_id, len(SWEEP.cells))
    seen = Seen(browser, 1400)
    seen.page.goto(server + (where if key else where.replace(f"bench-{SWEEP.sweep_id}", LATEST)))
    charts = seen.page.locator(".js-plotly-plot")
    charts.nth(3).wait_for(timeout=60_000)
    for title in ("rss_growth_bytes vs. output_tok_s", "kl_nats vs. output_tok_s"):
        seen.page.get_by_text(title).first.wait_for()
    assert seen.page.get_by_text("9 matching runs").count() == 1
    seen.keep(f"mlflow-{'sweep' if key else 'latest'}")


def test_mlflow_shows_the_report_among_the_artifacts_of_the_sweep(
    browser: Browser, server: str
) -> None:
    client = MlflowClient(tracking_uri=server)
    (parent,) = client.search_runs(["1"], "tags.`bench.kind` = 'sweep'")
    seen = Seen(browser, 1400)
    seen.page.goto(
        f"{server}/#/experiments/1/runs/{parent.info.run_id}/artifacts/report.html?workflowType=machine_learning"
    )
    inner = seen.page.frame_locator("iframe")
    inner.locator("#advice").wait_for(timeout=60_000)
    assert "batch (most tokens" in inner.locator("#advice").inner_text()
    assert inner.locator("figure svg").count() == 6
    seen.keep("mlflow-report")


def test_a_sweep_is_tracked_on_a_server(server: str, tmp_path: Path) -> None:
    options = ("engine=scripted", "batch=1,2", "tracking.experiment=on a server")
    done = in_process(tmp_path, "-m", *TINY, *options, MLFLOW_TRACKING_URI=server)
    assert done.returncode == 0, done.stderr
    client = MlflowClient(tracking_uri=server)
    experiment = client.get_experiment_by_name("on a server")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags["bench.kind"] for run in found) == ["cell", "cell", "sweep"]
    assert {run.info.status for run in found} == {"FINISHED"}
