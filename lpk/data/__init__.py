"""Data sets by name, split and augmented, and how their batches reach a device.

sets         where each is looked for, read and downloaded: `lpk.data.load`
splits       samples in memory or in a folder, and the seeds that decide every batch
imagenet     image files as tensors, and how ImageNet's are cropped
streaming    samples of a folder that worker processes read
decoded      samples of a folder that are decoded once, into a file
preparation  from stored samples to a batch: gather, crop, mirror, normalise
feed         what training gets, step by step: samples that lie on the device, or are streamed to it
uploads      batches that are copied to a GPU while it computes
corruptions  corrupted test samples: CIFAR's published files, and what is made for other data

`sets` and `corruptions` need the extra; what trains on somebody's own samples does without.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lpk.data.sets import NAMES as NAMES
    from lpk.data.sets import Data as Data
    from lpk.data.sets import DataNotFound as DataNotFound
    from lpk.data.sets import load as load

_OF_SETS = ("NAMES", "Data", "DataNotFound", "load")


def __getattr__(name: str) -> Any:
    if name not in _OF_SETS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lpk.data import sets  # here: it needs torchvision

    globals().update({each: getattr(sets, each) for each in _OF_SETS})
    return globals()[name]
