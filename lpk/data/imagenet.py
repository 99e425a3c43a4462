"""Image files as tensors, and how ImageNet's are cropped, as tensors: Pillow takes twice as long to resize them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import Tensor
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

try:  # torchvision 0.29 says that a later one will be without
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
except ImportError:
    decode_jpeg = None

SIDE = 224  # pixels of what the network gets


def read(path: str) -> Tensor:
    """The pixels of an image file, uint8 [3, H, W] with the channels innermost, whatever its colours and its format.

    ValueError, with the file's name: it is damaged, or no image.
    """
    # The bits are Pillow's, which uses the same library. Pillow could decode at half the size, which pays where a photo
    # has more than two million pixels, and few have: `python -m bench.loader` measures both.
    if decode_jpeg is not None:
        with suppress(RuntimeError):  # another format, as of one of ImageNet's .JPEG files, or not compiled with JPEG
            return decode_jpeg(read_file(path), mode=ImageReadMode.RGB)
    try:
        return F.pil_to_tensor(default_loader(path))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's errors rarely name the file
        raise ValueError(f"{path}: not a readable image ({error})") from error


def training() -> v2.Compose:
    """A random part of an image, mirrored half of the time: uint8 [3, H, W] to [3, 224, 224]."""
    return v2.Compose([_RandomResizedCrop(SIDE), v2.RandomHorizontalFlip()])


def evaluation() -> v2.Compose:
    """The middle of an image: uint8 [3, H, W] to [3, 224, 224]."""
    return v2.Compose([v2.Resize(256), v2.CenterCrop(SIDE)])


class _RandomResizedCrop(v2.RandomResizedCrop):
    """torchvision's, bit by bit; copied before it is resized, so that the channels stay innermost, which is faster."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        crop = F.crop(inpt, **params).permute(1, 2, 0).contiguous().permute(2, 0, 1)
        return F.resize(crop, self.size)
