import numpy as np
import torch

from study.datasets.source import ImageSet
from study.tasks.fashion import FashionConfig
from study.training.augmentation import Augmentation
from study.training.batches import Batches

CPU = torch.device("cpu")
NORMALIZATION = ((0.5,), (0.25,))


def image_set(indices: range) -> ImageSet:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 1, 4, 4), dtype=np.uint8)
    return ImageSet(images, np.arange(50, dtype=np.uint8), np.array(indices))


def test_streamed_batches_are_the_resident_ones() -> None:
    images = image_set(range(3, 45))
    ways = [Batches(images, CPU, NORMALIZATION, streaming=s) for s in (False, True)]
    shift = Augmentation.of(FashionConfig(shift=0.3, erase=0.5))
    for serve in (
        lambda b: b.training(8, (0, 1)),
        lambda b: b.training(8, (0, 1), 2),
        lambda b: b.training(8, (0, 1), 0, shift),
        lambda b: b.evaluation(16),
    ):
        served = []
        for batches in ways:
            torch.manual_seed(1)
            served.append(list(serve(batches)))
        assert len(served[0]) == len(served[1]) > 0
        for (images_a, targets_a), (images_b, targets_b) in zip(*served, strict=True):
            assert torch.equal(images_a, images_b) and torch.equal(targets_a, targets_b)


def test_a_stream_can_be_left_early() -> None:
    batches = Batches(image_set(range(50)), CPU, NORMALIZATION, streaming=True)
    stream = batches.training(4, (0, 1))
    next(stream)
    stream.close()
    assert len(list(batches.training(4, (0, 1)))) == 12


def test_two_parts_of_one_array_are_placed_once() -> None:
    whole = image_set(range(40))
    train = Batches(whole, CPU, NORMALIZATION)
    val = Batches(
        ImageSet(whole.images, whole.targets, np.arange(40, 50)), CPU, NORMALIZATION, beside=train
    )
    other = Batches(image_set(range(5)), CPU, NORMALIZATION, beside=train)
    assert val.images is train.images and other.images is not train.images
    (_, targets), *_ = val.evaluation(20)
    assert targets.tolist() == list(range(40, 50))


def test_an_epoch_serves_each_image_once_and_normalised() -> None:
    images = image_set(range(10, 42))
    served = list(Batches(images, CPU, NORMALIZATION).training(8, (0, 1)))
    targets = torch.cat([targets for _, targets in served])
    assert sorted(targets.tolist()) == list(range(10, 42))
    for batch, wanted in served:
        raw = torch.from_numpy(images.images)[wanted].float()
        assert torch.allclose(batch, (raw / 255 - 0.5) / 0.25, atol=1e-5)
