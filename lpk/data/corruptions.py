"""Corrupted test samples at five severities: CIFAR-10-C and CIFAR-100-C from their files, others made here.

The files are those of Hendrycks and Dietterich (2019): for each corruption NAME.npy, uint8 [5·N, 32, 32, 3], the whole
test set at severity 1, then at 2, and so on; and labels.npy, [5·N].
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lpk import choices
from lpk.data.sets import Data, DataNotFound, cache_folder
from lpk.data.splits import FolderSplit, MemorySplit, Split

SEVERITIES = (1, 2, 3, 4, 5)

FOLDERS = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}
FILES = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)


def names(data: str) -> tuple[str, ...]:
    """The corruptions of this data set's test samples."""
    return FILES if data in FOLDERS else tuple(MADE)


def corrupted(data: Data, name: str, severity: int, *, root: Path | None = None) -> Split:
    """The test samples of a data set, corrupted; the same every time.

    Args:
        name: one of `names(data.name)`.
        severity: from 1 to 5.
        root: CIFAR-10-C's or CIFAR-100-C's folder, or the one that holds it; then LPK_DATA and the cache folder.

    Raises DataNotFound where these files are nowhere, ValueError where they are damaged.
    """
    if name not in names(data.name) or severity not in SEVERITIES:
        raise ValueError(
            f"corruption is {name!r} of severity {severity}; there are {', '.join(names(data.name))}, 1 to 5"
            f"{choices.suggestion(name, names(data.name)) if name not in names(data.name) else ''}"
        )
    split = data.test
    if data.name in FOLDERS:
        assert isinstance(split, MemorySplit)
        return _read(folder(data.name, root), name, severity, split)
    if isinstance(split, MemorySplit):
        return replace(split, images=corrupt(split.images, name, severity, seed=0))
    assert isinstance(split, FolderSplit) and isinstance(split.evaluation, v2.Compose)
    return replace(split, evaluation=v2.Compose([*split.evaluation.transforms, _Corrupt(name, severity)]))


def corrupt(images: Tensor, name: str, severity: int, *, seed: int | None = None) -> Tensor:
    """Images uint8 [N, C, H, W], corrupted. seed: None draws from PyTorch's global generator."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        strength = MADE[name].strengths[severity - 1]
        return MADE[name].apply(images, strength)


# --- made here --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corruption:
    """apply(images uint8 [N, C, H, W], strength) -> the same; strengths: of severities 1 to 5."""

    apply: Callable[[Tensor, Any], Tensor]
    strengths: tuple[float, ...]


def _noise(images: Tensor, sigma: float) -> Tensor:
    return F.to_dtype(
        F.gaussian_noise(F.to_dtype(images, torch.float32, scale=True), sigma=sigma), torch.uint8, scale=True
    )


def _blur(images: Tensor, share: float) -> Tensor:
    """share: the standard deviation, of the image's width; 0.4 pixels more, since less is nothing."""
    sigma = 0.4 + share * images.shape[-1]
    return F.gaussian_blur(images, 2 * max(1, round(3 * sigma)) + 1, sigma)


def _each(images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """One image after the other, on one thread: for so little at a time, others only make it wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return torch.stack([change(image) for image in images])
    finally:
        torch.set_num_threads(threads)


def _jpeg(images: Tensor, quality: float) -> Tensor:
    def compressed(image: Tensor) -> Tensor:
        file = io.BytesIO()
        F.to_pil_image(image).save(file, "jpeg", quality=int(quality))
        return F.pil_to_tensor(Image.open(file))

    return _each(images, compressed)


def _pixelate(images: Tensor, share: float) -> Tensor:
    """share: of the rows and columns that remain."""
    size = images.shape[-2:]
    small = torch.nn.functional.interpolate(images.float(), [max(1, round(share * n)) for n in size], mode="area")
    return torch.nn.functional.interpolate(small, size, mode="nearest").round().to(torch.uint8)


def _elastic(images: Tensor, share: float) -> Tensor:
    """Every image with a field of its own. share: how far pixels move, roughly, of the image's width."""
    width = images.shape[-1]
    # uniform noise blurred by sigma has the deviation 0.16 / sigma, and torchvision moves by alpha / 2 times that
    sigma = 0.1 * width
    transform = v2.ElasticTransform(alpha=share * width * 2 * sigma / 0.16, sigma=sigma)
    return _each(images, transform)


MADE = {
    "noise": Corruption(_noise, (0.05, 0.1, 0.15, 0.2, 0.3)),  # standard deviation, of the range of the pixels
    "blur": Corruption(_blur, (0.005, 0.015, 0.025, 0.04, 0.06)),
    "contrast": Corruption(F.adjust_contrast, (0.7, 0.5, 0.35, 0.2, 0.1)),  # factor
    "brightness": Corruption(F.adjust_brightness, (1.3, 1.7, 2.2, 3.0, 4.0)),  # factor
    "jpeg": Corruption(_jpeg, (40, 25, 15, 10, 5)),  # quality
    "pixelate": Corruption(_pixelate, (0.8, 0.65, 0.5, 0.4, 0.3)),
    "elastic": Corruption(_elastic, (0.01, 0.02, 0.03, 0.04, 0.05)),
}


@dataclass(frozen=True)
class _Corrupt:
    """As the last step of a folder's transform, on one image; the loader seeds the generator for each sample."""

    name: str
    severity: int

    def __call__(self, image: Tensor) -> Tensor:
        return corrupt(image[None], self.name, self.severity)[0]


# --- read from files --------------------------------------------------------------------------------------------------


def folder(data: str, root: Path | None) -> Path:
    """Where CIFAR-10-C or CIFAR-100-C lies, see `corrupted`. Raises DataNotFound."""
    name = FOLDERS[data]
    named = os.environ.get("LPK_DATA")
    places = [Path(place).expanduser().absolute() for place in (root, named, cache_folder()) if place is not None]
    for place in places:
        for found in (place / name, place):
            if (found / "labels.npy").is_file():
                return found
    raise DataNotFound(
        f"{name} is in none of these folders (--data or LPK_DATA names it): {', '.join(map(str, places))}"
    )


def _read(directory: Path, name: str, severity: int, split: MemorySplit) -> MemorySplit:
    images, labels = (_load(directory / f"{part}.npy") for part in (name, "labels"))
    count, shape = len(images) // len(SEVERITIES), (*split.images.shape[2:], 3)
    if (
        images.dtype != np.uint8
        or images.shape != (len(SEVERITIES) * count, *shape)
        or labels.shape != images.shape[:1]
    ):
        raise ValueError(
            f"{directory / name}.npy is {images.dtype} {list(images.shape)} with {list(labels.shape)} labels; "
            f"uint8 [5·N, {', '.join(map(str, shape))}] and 5·N labels are needed"
        )
    chosen = slice((severity - 1) * count, severity * count)
    pixels = torch.from_numpy(np.array(images[chosen])).permute(0, 3, 1, 2).contiguous()
    return replace(split, images=pixels, labels=torch.from_numpy(np.array(labels[chosen], dtype=np.int64)))


def _load(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataNotFound(f"{path} does not exist")
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a .npy file of numbers ({error})") from error
    return array
