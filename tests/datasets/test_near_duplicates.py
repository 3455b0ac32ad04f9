"""Finding images of the same building."""

from __future__ import annotations

import numpy as np
from PIL import Image

from study.datasets.near_duplicates import connect, look_alikes
from study.datasets.source import DataSource
from study.tasks.facade import TASK, FacadeConfig


def scene(seed: int) -> Image.Image:
    """Return a picture whose spectrum falls like that of a photograph."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(320), np.fft.fftfreq(320))) + 1 / 320
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(320, 320))) / frequency).real
    grey = (128 + 50 * field / field.std()).clip(0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def crop(photo: Image.Image, left: int, top: int, side: int) -> np.ndarray:
    area = (left, top, left + side, top + side)
    return np.asarray(photo.crop(area).resize((256, 256), Image.Resampling.BOX)).transpose(2, 0, 1)


def test_shifted_enlarged_and_mirrored_crops_are_found_and_others_are_not() -> None:
    photos = [scene(seed) for seed in range(6)]
    images = [crop(photo, 10, 10, 280) for photo in photos]
    images.append(crop(photos[0], 18, 4, 280))  # 6: shifted
    images.append(crop(photos[1], 25, 25, 250))  # 7: enlarged by 1.12
    images.append(crop(photos[2], 10, 10, 280)[..., ::-1])  # 8: mirrored
    pairs = {(int(a), int(b)) for a, b in look_alikes(np.stack(images))}
    assert {(0, 6), (1, 7), (2, 8)} <= pairs
    assert pairs <= {(0, 6), (1, 7), (2, 8)}


def test_connect_joins_chains() -> None:
    groups = connect(5, np.array([[0, 3], [3, 4]]))
    assert groups[0] == groups[3] == groups[4]
    assert len({groups[0], groups[1], groups[2]}) == 3
    assert connect(2, np.empty((0, 2), np.int64)).tolist() == [0, 1]


def test_all_crops_of_a_drawn_building_are_on_one_side(sample: DataSource) -> None:
    config = FacadeConfig(image_size=64)
    splits = TASK.load_splits(sample, config)
    building = np.arange(len(splits.train.images)) // 3
    assert not set(building[splits.train.indices]) & set(building[splits.val.indices])
    leaking = TASK.load_splits(sample, FacadeConfig(image_size=64, split="image"))
    assert set(building[leaking.train.indices]) & set(building[leaking.val.indices])
