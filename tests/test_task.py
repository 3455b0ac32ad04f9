"""Settings and task discovery."""

from __future__ import annotations

import subprocess
import sys

import pytest

from study import task
from study.errors import InputError
from study.setting import check_sync, parse_value
from study.task import (
    build_config,
    class_key,
    config_fields,
    load_task,
    task_names,
)
from study.tasks.facade import FacadeConfig
from study.tasks.fashion import FashionConfig


def test_tasks_are_found_by_file_name() -> None:
    assert {"facade", "fashion"} <= set(task_names())


def test_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown task 'fasion'; did you mean 'fashion'?"):
        load_task("fasion")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, but got 0"),
        ({"epochs": 2.0}, "epochs must be a whole number, but got 2.0"),
        ({"epochs": True}, "epochs must be a whole number, but got True"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, but got 'fast'"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number, but got nan"),
        ({"learning_rat": 0.1}, "no setting 'learning_rat'; did you mean 'learning_rate'?"),
        ({"image_size": 130}, "image_size must be a multiple of 4, but got 130"),
        (
            {"image_size": 40, "model": "unet", "depth": 4},
            "image_size must be a multiple of 16 (depth=4), but got 40",
        ),
        ({"schedule": "cosin"}, "schedule must be one of constant, cosine, one_cycle, but got"),
        ({"split": "images"}, "split must be one of facade, image, but got 'images'"),
        ({"last_relu": 1}, "last_relu must be true or false, but got 1"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        build_config(FacadeConfig, values)
    assert message in str(caught.value)


def test_a_whole_number_is_a_float_too() -> None:
    config = build_config(FashionConfig, {"weight_decay": 0})
    assert config.weight_decay == 0.0 and isinstance(config.weight_decay, float)


def test_every_setting_survives_text() -> None:
    # A trial is repeated from MLflow, which keeps parameters as text.
    config = FacadeConfig(learning_rate=1.2345678901234567e-05, last_relu=False)
    for name, field in config_fields(FacadeConfig).items():
        assert parse_value(field, str(getattr(config, name))) == getattr(config, name)


def test_normalisation_over_workers_needs_gpus() -> None:
    check_sync(True, 1, gpus=False)
    check_sync(True, 2, gpus=True)
    with pytest.raises(InputError, match="only on GPUs"):
        check_sync(True, 2, gpus=False)


def test_class_names_in_metrics_have_no_slash() -> None:
    assert class_key("T-shirt/top") == "T-shirt-top"


def test_a_task_file_finds_all_of_its_contract_in_one_place() -> None:
    known = (
        "Meter Task OBJECT WHOLE class_key TrainConfig Value setting NUM_FOLDS PRECISIONS "
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
        "import sys, study.loop, study.train, study.tasks.facade, study.tasks.fashion\n"
        "assert not {'ray', 'mlflow', 'optuna'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
