import numpy as np
import pytest
import torch

from study.tasks.fashion import FashionConfig
from study.training.augmentation import Augmentation

BLACK = torch.tensor([-1.0, -2.0, -3.0]).view(1, 3, 1, 1)


def augmentation(**given: float) -> Augmentation:
    asked = Augmentation.of(FashionConfig(**given))
    assert asked is not None
    return asked


def batch(num: int = 64, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images whose every channel tells the class of the pixel, and the classes."""
    torch.manual_seed(0)
    targets = torch.randint(0, 5, (num, size // 4, size // 4))
    targets = targets.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return targets.unsqueeze(1).float().repeat(1, 3, 1, 1) + 1, targets


def test_without_settings_there_is_none() -> None:
    assert Augmentation.of(FashionConfig()) is None


def test_flips_are_flips_at_the_rate_asked_for() -> None:
    images, targets = batch(2000)
    changed, masks = augmentation(flip=0.25)(images, targets, BLACK)
    mirrored = (changed == images.flip(-1)).flatten(1).all(1)
    kept = (changed == images).flatten(1).all(1)
    assert (mirrored | kept).all()
    assert float((mirrored & ~kept).float().mean()) == pytest.approx(0.25, abs=0.04)
    assert torch.equal(changed[:, 0] - 1, masks.float())


@pytest.mark.parametrize("given", [{"flip": 1.0, "crop": 0.5}, {"shift": 0.25}, {"crop": 0.7}])
def test_masks_move_with_their_images(given: dict[str, float]) -> None:
    images, targets = batch()
    changed, masks = augmentation(**given)(images, targets, BLACK)
    assert changed.shape == images.shape and masks.shape == targets.shape
    assert masks.dtype == torch.int64 and not torch.equal(masks, targets)
    # Bilinear pixels lie between classes at borders only; elsewhere they are the mask's class.
    agree = (changed[:, 0].sub(1).round() == masks).float().mean()
    assert agree > 0.85
    assert set(masks.unique().tolist()) <= set(targets.unique().tolist())


def test_a_shift_is_of_whole_pixels_and_exact() -> None:
    images, _ = batch(400)
    image = torch.arange(256.0).view(1, 1, 16, 16).expand(400, 3, 16, 16)
    changed, _ = augmentation(shift=0.25)(image, torch.zeros(400, dtype=torch.int64), BLACK)
    steps = changed[:, :, 8, 8] - image[:, :, 8, 8]  # 16 * rows + columns, of at most 4 each
    assert float(steps.abs().max()) <= 16 * 4 + 4 + 1e-3
    assert float(steps.mean().abs()) < 8 and float(steps.std()) > 20, "in all directions"
    inner = changed[:, 0, 6:10, 6:10] - image[:, 0, 6:10, 6:10]
    assert float((inner - inner[:, :1, :1]).abs().max()) < 1e-3, "the whole image moves alike"
    mirrored, _ = augmentation(shift=0.1, flip=0.5)(image, torch.zeros(400).long(), BLACK)
    for moved in (changed, mirrored):
        assert float((moved - moved.round()).abs().max()) < 1e-3, "nothing is blurred"


def test_brightness_scales_what_is_above_black() -> None:
    images, targets = batch(500)
    changed, _ = augmentation(brightness=0.3)(images, targets, BLACK)
    factor = (changed - BLACK) / (images - BLACK)
    each = factor.flatten(1)
    assert torch.allclose(each, each[:, :1].expand_as(each), atol=1e-5)
    assert 0.7 <= float(each.min()) < 0.72 and 1.28 < float(each.max()) <= 1.3


def test_erased_rectangles_have_the_areas_of_the_paper() -> None:
    images, targets = batch(2000, size=32)
    changed, masks = augmentation(erase=0.5)(images, targets, BLACK)
    gone = (changed == 0).all(1)
    touched = gone.flatten(1).any(1)
    assert float(touched.float().mean()) == pytest.approx(0.5, abs=0.04)
    area = gone[touched].flatten(1).float().mean(1)
    assert 0.01 < float(area.min()) and float(area.max()) < 0.23
    assert torch.equal(masks, targets)
    for picture in gone[touched][:50].numpy():  # a rectangle is filled between its corners
        rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
        assert picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_the_same_seed_changes_alike() -> None:
    images, targets = batch()
    asked = augmentation(flip=0.5, shift=0.1, crop=0.8, erase=0.5, brightness=0.2)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(asked(images, targets, BLACK))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
