"""The prediction code of a registered model. MLflow runs this file, so its only import from this
project is the copy of `archive_check.py` beside the model.

Input `(B, C, H, W)` float32 in [0, 1]; output logits `(B, K, ...)` float32.
"""

from __future__ import annotations

import mlflow.pyfunc
import numpy as np
import torch


class Exported(mlflow.pyfunc.PythonModel):  # type: ignore[misc,name-defined]
    """The exported `model.pt2` as an MLflow python_function."""

    _skip_type_hint_validation = True  # the signature has the types; else MLflow warns three times

    def load_context(self, context) -> None:  # type: ignore[no-untyped-def]
        """Load the exported program."""
        # MLflow finds the copy beside the model.
        from archive_check import load_program  # type: ignore[import-not-found]

        self.model = load_program(context.artifacts["model"]).module()

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Return the logits of images."""
        images = torch.from_numpy(np.ascontiguousarray(model_input, np.float32))
        with torch.inference_mode():
            return self.model(images).numpy()


if not __package__:  # MLflow runs this file on its own
    mlflow.models.set_model(Exported())
