"""Task discovery, and what a task file can import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from study import task
from study.errors import InputError
from study.task import (
    class_key,
    load_task,
    task_names,
)


def test_tasks_are_found_by_file_name() -> None:
    assert {"facade", "fashion"} <= set(task_names())


def test_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown task 'fasion'; did you mean 'fashion'?"):
        load_task("fasion")


def test_class_names_in_metrics_have_no_slash() -> None:
    assert class_key("T-shirt/top") == "T-shirt-top"


def test_a_task_file_finds_all_of_its_contract_in_one_place() -> None:
    known = (
        "Figure Meter Task OBJECT WHOLE class_key TrainConfig Value setting NUM_FOLDS PRECISIONS "
        "SCHEDULES base_values best_row build_config config_fields load_task task_names prepare"
    )
    assert set(task.__all__) == set(known.split())
    assert all(hasattr(task, name) for name in task.__all__)


@pytest.mark.parametrize("module", ["train", "tune", "best", "data"])
def test_help_is_quick_because_nothing_heavy_is_imported(module: str) -> None:
    code = (
        f"import sys, study.{module} as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_loop_needs_neither_ray_nor_mlflow() -> None:
    code = (
        "import sys, study.training.loop, study.train, study.tasks.facade, study.tasks.fashion\n"
        "assert not {'ray', 'mlflow', 'optuna'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
