"""Windows over photographs, and logits enlarged in strips, against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from study.inference import tiling as module
from study.inference.tiling import Window, label_strips, network_inputs, windows


@pytest.mark.parametrize("size", [(1, 1), (256, 256), (400, 300), (6000, 4000), (37, 5), (1, 900)])
def test_windows_cover_a_photograph_with_squares(size: tuple[int, int]) -> None:
    for width, height in (size, size[::-1]):
        covered = np.zeros((height, width), int)
        found = windows(width, height)
        for window in found:
            covered[window.top :, window.left :][: window.height, : window.width] += 1
        assert covered.min() == 1 and len(found) <= module.MOST_WINDOWS
        if 1.1 < max(size) / min(size) < module.MOST_WINDOWS:
            assert {window.width / window.height for window in found} == {1.0}


def enlarged(logits: torch.Tensor, found: list[Window], width: int, height: int) -> np.ndarray:
    strips = list(label_strips(logits, found, width, height))
    assert [top for top, _ in strips] == np.cumsum([0, *(len(s) for _, s in strips[:-1])]).tolist()
    return np.concatenate([strip for _, strip in strips])


@pytest.mark.parametrize("values", [200, 4_000_000])
def test_one_window_is_torch_s_interpolation(monkeypatch, values: int) -> None:
    monkeypatch.setattr(module, "STRIP_VALUES", values)
    logits = torch.randn(1, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = enlarged(logits, windows(61, 57), 61, 57)
    expected = torch.nn.functional.interpolate(logits, (57, 61), mode="bilinear").argmax(dim=1)[0]
    assert (labels == expected.numpy()).mean() > 0.999  # but for ties in rounding


def test_windows_meet_without_a_seam() -> None:
    width, height = 90, 30
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, 40:, 1] = 255  # left of column 40 class 0, right of it class 1
    pixels[:, :40, 0] = 255
    found = windows(width, height)
    inputs = network_inputs(pixels, found, 30, 30)
    assert inputs.shape == (3, 30, 30, 3)
    logits = torch.from_numpy(inputs[..., :2].transpose(0, 3, 1, 2).astype(np.float32))
    labels = enlarged(logits, found, width, height)
    assert (labels == (np.arange(width) >= 40)).all()
    turned = [Window(w.top, w.left, w.height, w.width) for w in found]
    assert windows(height, width) == turned
    upright = enlarged(logits.transpose(2, 3), turned, height, width)
    assert np.array_equal(upright, labels.T)


def test_a_photograph_smaller_than_the_output_gets_averages() -> None:
    logits = torch.zeros(1, 2, 4, 4)
    logits[0, 1] = 1
    logits[0, 0, 1, 1] = 5  # what a sample of one place might see
    logits[0, 0, 3, 3] = 5
    assert enlarged(logits, windows(1, 1), 1, 1).tolist() == [[1]]
