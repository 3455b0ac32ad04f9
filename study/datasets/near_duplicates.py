"""Near-duplicate images, found by phase correlation, and the groups they form.

A validation split that divides such a group leaks, and a search on it selects the wrong
hyperparameters.

Measured on the 906 training images of mini-facade (302 buildings with three crops each, by their
numbering): 875 images have a near-duplicate. Beyond the numbering, seven pairs of buildings are
joined: 9/300, 23/41, 51/170, 106/120 and 119/222 are the same building photographed twice from
different distances; 16/116 and 30/50 are only similar, which does no harm.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

SIZE = 64  # pixels; images are resized to this before comparison
# Images compared at a time. Their spectra fit a core's cache: 2.7 times as fast as all at once.
CHUNK = 64


@dataclasses.dataclass(frozen=True)
class View:
    """One kind of comparison: an image with another one, enlarged or mirrored."""

    windowed: bool  # fades out the border, which allows different scales
    mirrored: bool
    scale: float
    threshold: float  # correlation peak from which two images count as near-duplicates


VIEWS = (
    View(windowed=False, mirrored=False, scale=1.0, threshold=0.25),
    View(windowed=False, mirrored=True, scale=1.0, threshold=0.25),
    View(windowed=True, mirrored=True, scale=1.0, threshold=0.28),
    *(
        View(windowed=True, mirrored=False, scale=scale, threshold=0.28)
        for scale in (1.0, 1.06, 1.12, 1.18, 1.25, 1.32)
    ),
)


def look_alikes(images: np.ndarray) -> np.ndarray:
    """Find the pairs of images that are shifted, enlarged or mirrored copies of one another.

    The measure is the peak of the phase correlation (Kuglin and Hines 1975): 1 for a cyclic shift,
    near 0 for unrelated images. 906 images take about a minute.

    Args:
        images: `(N, C, H, W)` uint8.

    Returns:
        Pairs of indices `(P, 2)` int64, first below second.
    """
    import torch  # its FFT uses all cores

    greys = [Image.fromarray(image.mean(axis=0).astype(np.uint8)) for image in images]
    found: set[tuple[int, int]] = set()
    for windowed in (False, True):
        plain = torch.from_numpy(_phases(greys, View(windowed, False, 1.0, 0.0)))
        for view in (view for view in VIEWS if view.windowed == windowed):
            others = torch.from_numpy(_phases(greys, view))
            for index, spectrum in enumerate(plain):
                if view.scale == 1 and index + 1 == len(plain):
                    break
                # At another scale, "first in second" differs from "second in first".
                start = 0 if view.scale != 1 else index + 1
                turned = spectrum.conj()
                correlations = (
                    torch.fft.irfft2(part * turned, s=(SIZE, SIZE))
                    for part in torch.split(others[start:], CHUNK)
                )
                peaks = torch.cat([each.amax(dim=(1, 2)) for each in correlations])
                for hit in (peaks >= view.threshold).nonzero()[:, 0].tolist():
                    pair = sorted((index, start + hit))
                    if pair[0] != pair[1]:
                        found.add((pair[0], pair[1]))
    return np.array(sorted(found), np.int64).reshape(-1, 2)


def _phases(greys: list[Image.Image], view: View) -> np.ndarray:
    """Return the whitened spectra `(N, SIZE, SIZE // 2 + 1)` complex64 of grey images."""
    spectra = np.empty((len(greys), SIZE, SIZE // 2 + 1), np.complex64)
    window = np.hanning(SIZE)[:, None] * np.hanning(SIZE) if view.windowed else 1.0
    for index, grey in enumerate(greys):
        width, height = grey.size
        middle = (1 - 1 / view.scale) / 2
        box = (middle * width, middle * height, (1 - middle) * width, (1 - middle) * height)
        small = np.asarray(grey.resize((SIZE, SIZE), Image.Resampling.BOX, box), np.float32)
        if view.mirrored:
            small = small[:, ::-1]
        spectrum = np.fft.rfft2((small - small.mean()) * window)
        spectra[index] = spectrum / np.maximum(np.abs(spectrum), 1e-9)
    return spectra


def connect(num: int, pairs: np.ndarray) -> np.ndarray:
    """Return the connected components of a graph as group numbers `(num,)` int64 from 0."""
    ones = np.ones(len(pairs))
    graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(num, num))
    groups: np.ndarray = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups
