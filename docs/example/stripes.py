"""Which way do the stripes run: grey images of 16x16 pixels, drawn or read from two files."""

import dataclasses

import numpy as np

from study.classification import Classification
from study.task import TrainConfig, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class StripesConfig(TrainConfig):
    """A field is a flag, a parameter to search and a column in MLflow."""

    learning_rate: float = setting(1e-2, "step size of the optimizer", low=0.0)
    width: int = setting(16, "channels of the convolution", low=1, high=256)


class Stripes(Classification):
    """Loss, accuracy, splits and figures come from `Classification`."""

    name, title = "stripes", "direction of stripes"
    classes = ("lying", "standing", "falling", "rising")
    config_class = StripesConfig
    normalization = ((0.5,), (0.4,))  # mean, deviation of images in [0, 1]

    def load_images(self, source, split):
        """Return images `(N, 1, 16, 16)` and classes `(N,)`, both uint8, always the same."""
        if source.dataset == "real":  # data/stripes/train.npz and test.npz
            arrays = np.load(source.data_dir / "stripes" / f"{split}.npz")
            return arrays["images"], arrays["classes"]
        rng = np.random.default_rng(["train", "test"].index(split))
        classes = rng.integers(4, size=1200, dtype=np.uint8)
        steps = np.array([(1, 0), (0, 1), (1, -1), (1, 1)])[classes]  # down, to the right
        phases = np.einsum("nk,khw->nhw", steps, np.indices((16, 16)))
        waves = np.sin(phases + rng.uniform(0, 6.3, (1200, 1, 1)))
        images = (128 + 90 * waves + rng.normal(0, 120, waves.shape)).clip(0, 255)
        return images.astype(np.uint8)[:, None], classes

    def build_model(self, config):
        """Return a network that takes images `(B, 1, 16, 16)` to logits `(B, 4)`."""
        from torch.nn import AdaptiveMaxPool2d, Conv2d, Flatten, Linear, ReLU, Sequential

        features = (Conv2d(1, config.width, 5), ReLU(), AdaptiveMaxPool2d(1), Flatten())
        return Sequential(*features, Linear(config.width, len(self.classes)))


TASK = Stripes()
