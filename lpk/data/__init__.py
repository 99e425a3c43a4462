"""Data sets by name, split and augmented.

sets         where each is looked for, read and downloaded: `lpk.data.load`
splits       samples in memory or in a folder, their augmentation, and the seeds that decide every batch
corruptions  corrupted test samples: CIFAR's published files, and what is made for other data
"""

from lpk import extras

extras.need("lpk.data", "torchvision", "PIL")

from lpk.data.sets import NAMES as NAMES
from lpk.data.sets import Data as Data
from lpk.data.sets import DataNotFound as DataNotFound
from lpk.data.sets import load as load
