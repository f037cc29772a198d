"""Tasks of EleutherAI's lm-evaluation-harness, on the model that is already loaded: the same
weights that were timed.

The harness asks and scores; it is an optional package (``pip install '.[eval]'``) and brings its
own tasks, which it downloads. A folder with task files of one's own is ``quality.task_folder``.
"""

import math
from collections.abc import Mapping

from bench.config.cell import Cell
from bench.engine.transformers.load import Subject
from bench.record.measurement import TaskScore


def evaluate_tasks(cell: Cell, subject: Subject) -> tuple[TaskScore, ...]:
    """Every metric of every task, with the harness's standard error where it gives one."""
    import lm_eval  # seconds, and optional
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=1)
    manager = TaskManager(include_path=cell.quality.task_folder)
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=list(cell.quality.tasks),
        task_manager=manager,
        limit=cell.quality.task_limit,
        random_seed=cell.seed,
        numpy_random_seed=cell.seed,
        torch_random_seed=cell.seed,
        fewshot_random_seed=cell.seed,
        log_samples=False,
    )
    return read_scores(found["results"])


def read_scores(results: Mapping[str, Mapping[str, object]]) -> tuple[TaskScore, ...]:
    """The harness names a number ``metric,filter`` and its error ``metric_stderr,filter``."""
    scores = []
    for task, numbers in results.items():
        for key, value in numbers.items():
            metric, comma, kind = key.partition(",")
            if (
                not comma
                or metric.endswith("_stderr")
                or not isinstance(value, int | float)
                or not math.isfinite(value)
            ):
                continue
            error = numbers.get(f"{metric}_stderr,{kind}")
            known = float(error) if isinstance(error, int | float) else None
            # One task may be read by several filters
            name = metric if kind == "none" else f"{metric}_{kind}"
            scores.append(TaskScore(task, name, float(value), known))
    return tuple(scores)
