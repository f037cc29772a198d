"""The view of MLflow's UI that a sweep prepares: its cells, the columns that matter, charts chosen
for the question.

MLflow keeps a shared view as an experiment tag whose JSON is that of its own user interface (read
off MLflow 3.17, and tested in a browser): the format is internal, so the version of MLflow that was
tested is pinned in requirements.lock.
"""

import json
from collections.abc import Collection
from typing import Any

MOST_COMPARED = 100  # runs that MLflow draws at once
LATEST = "bench-latest"  # the key of the newest sweep's view
_TAG = "mlflow.sharedViewState."
_SPEED, _DETAIL = "speed", "detail"

DESCRIPTION = (
    "Each parent run is a sweep of `python -m bench`, its nested runs are the cells: one"
    " configuration of model, quantization, attention, batch and workload each. `report.html` among"
    " a parent's artifacts has advice, intervals and pictures; `samples.json` of the cells compares"
    " answers prompt by prompt (artifact view, several runs chosen)."
)


def view_tags(
    sweep_id: str,
    metrics: Collection[str],
    axes: Collection[str],
    created_ms: int,
    with_charts: bool = True,
) -> dict[str, str]:
    """Experiment tags with the view of one sweep, under its own key and as the latest.

    Args:
        metrics: keys that its cells have.
        axes: parameters that differ between them, like quant.name.
        with_charts: of more than ``MOST_COMPARED`` cells the table alone tells.
    """
    state = _state(sweep_id, metrics, axes)
    state = state if with_charts else state | {"compareRunCharts": []}
    view = {
        "name": f"sweep {sweep_id}",
        "createdAt": created_ms,
        "updatedAt": created_ms,
        "state": json.dumps(state),
    }
    return {f"{_TAG}{key}": json.dumps(view) for key in (_key(sweep_id), LATEST)}


def page(experiment_id: str, sweep_id: str, cells: int) -> str:
    """Where the UI shows it, after the server's address: charts, or the table of many cells."""
    mode = "CHART" if cells <= MOST_COMPARED else "TABLE"
    # A first visit without the workflow type opens on a page about something else.
    query = (
        f"viewStateShareKey={_key(sweep_id)}&compareRunsMode={mode}&workflowType=machine_learning"
    )
    return f"/#/experiments/{experiment_id}/runs?{query}"


def _key(sweep_id: str) -> str:
    return f"bench-{sweep_id}"


def _state(sweep_id: str, metrics: Collection[str], axes: Collection[str]) -> dict[str, Any]:
    memory = "vram_peak_bytes" if "vram_peak_bytes" in metrics else "rss_growth_bytes"
    columns = [
        key for key in ("ttft_s", "tpot_s", "output_tok_s", "kl_nats", memory) if key in metrics
    ]
    charts = _charts(metrics, memory, columns, axes)
    numbered = [{"uuid": f"chart-{index}", **chart} for index, chart in enumerate(charts)]
    sections = ((_SPEED, "Speed, memory, quality"), (_DETAIL, "Decode steps"))
    return {
        "searchFilter": f"tags.`bench.sweep_id` = '{sweep_id}' and tags.`bench.kind` = 'cell'",
        "orderByKey": "metrics.`output_tok_s`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            *(f"params.`{axis}`" for axis in axes),
            *(f"metrics.`{key}`" for key in columns),
        ],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": numbered,
        "compareRunSections": [_section(uuid, name) for uuid, name in sections],
        "isAccordionReordered": True,
        "autoRefreshEnabled": False,
        "hideEmptyCharts": True,
        "groupBy": None,
        "runListHidden": False,
        "viewMaximized": False,
        "useGroupedValuesInCharts": True,
    }


def _charts(
    metrics: Collection[str], memory: str, columns: Collection[str], axes: Collection[str]
) -> list[dict[str, Any]]:
    charts = [_scatter(memory, "output_tok_s")]
    if "kl_nats" in metrics:
        charts.append(_scatter("kl_nats", "output_tok_s"))
    charts += [_chart("BAR", _SPEED, metricKey=key) for key in columns]
    charts.append(
        _chart(
            "PARALLEL", _SPEED, selectedParams=list(axes), selectedMetrics=columns, showAllRuns=True
        )
    )
    charts.append(
        _chart(
            "LINE",
            _DETAIL,
            metricKey="decode_step_s",
            selectedMetricKeys=["decode_step_s"],
            xAxisKey="step",
            lineSmoothness=0,
            scaleType="linear",
            xAxisScaleType="linear",
            useGlobalXaxisKey=True,
            useGlobalLineSmoothing=True,
            range={},
        )
    )
    return charts


def _section(uuid: str, name: str) -> dict[str, Any]:
    flags = {"display": True, "isReordered": True, "isGenerated": False, "deleted": False}
    return {"uuid": uuid, "name": name, **flags}


def _chart(kind: str, section: str, **options: Any) -> dict[str, Any]:
    flags = {"deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    return {"type": kind, "metricSectionId": section, **flags, **options}


def _scatter(across: str, up: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": across, "type": "METRIC"}, "yaxis": {"key": up, "type": "METRIC"}}
    return _chart("SCATTER", _SPEED, **axes)  # a title of our own is ignored
