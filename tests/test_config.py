"""Settings: what is refused, and what survives text."""

from __future__ import annotations

import pytest

from study.config import build_config, check_sync, config_fields, parse_value
from study.errors import InputError
from study.tasks.facade import FacadeConfig
from study.tasks.fashion import FashionConfig


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
