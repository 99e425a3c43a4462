"""ImageNet's samples on their way from JPEGs to batches: images a second by cores, and how many cores a GPU needs.

python -m bench.loader [--cores 1 2] [--gpu-images-per-second 8000] [--results bench/results]

JPEGs of ImageNet's sizes are made in a temporary folder: most of some 500 x 375 pixels, some of 1600 x 1200, 110 kB in
the mean. They are read from memory, as often as it takes; a disk has to bring what is said in the end. lpk's samples
are those of `lpk.data.load("imagenet")`; the peer is what PyTorch's own ImageNet example does: ImageFolder, Pillow, and
torchvision's transforms. "Pillow, reduced" is the same, but a JPEG is decoded at 1/2, 1/4 or 1/8 where enough remains.
The process and its workers, as many as cores, are held to these. An epoch is timed from beginning to end.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as F

from bench.results import Row, machine, slug, three
from bench.results_file import ResultsFile
from lpk import data
from lpk.data.splits import FolderSplit

PARTS = ("training", "validation")
# What an H100 might train of ResNet-18 in float32: an assumption, not measured. Of 32 x 32 pixels, with 0.56 billion
# multiply-adds in place of 1.8, it trained 25,600 (docs/performance.md).
GPU = 8000
SIZES = 9 * [(500, 375), (375, 500), (500, 333), (500, 375), (400, 300), (500, 500), (333, 500)] + [(1600, 1200)] * 2
QUALITY = 93
BATCH_SIZE, TIMES = 64, 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m bench.loader")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; default: all")
    parser.add_argument("--cores", type=int, nargs="+", help="numbers of cores; default: 1, 2, 4, … and all")
    parser.add_argument("--images", type=int, default=1024, help="of an epoch; default: 1024")
    parser.add_argument(
        "--gpu-images-per-second", type=float, default=GPU, metavar="N",
        help=f"what the GPU trains; default: {GPU}, an assumption for ResNet-18 on an H100",
    )  # fmt: skip
    parser.add_argument("--results", type=Path, help="the directory that loader-<machine>.json is written to")
    given = parser.parse_args()
    here = machine() | {"gpu": None}
    head = {"machine": here, "benchmark": "loader", "preset": {"images": given.images}}
    path = given.results / f"loader-{slug(here)}.json" if given.results else None
    file = ResultsFile(path, head, PARTS)
    file.result |= {"gpu_images_per_second": given.gpu_images_per_second, "assumed": given.gpu_images_per_second == GPU}
    with tempfile.TemporaryDirectory() as folder:
        file.result["bytes"] = write_jpegs(Path(folder), SIZES)
        contest = Contest(Path(folder), given.images)
        for part in given.parts:
            for cores in given.cores or powers(len(os.sched_getaffinity(0))):
                for row in measured(contest.of(part, cores), given.images, cores):
                    file.keep(part, row)
                    print(f"{part}: {row}", flush=True)
    print("\n" + table(file.result))
    if path:
        print(f"written: {path}")


def powers(most: int) -> list[int]:
    """1, 2, 4, … and the most."""
    return sorted({min(2**i, most) for i in range(most.bit_length() + 1)})


# --- the images -------------------------------------------------------------------------------------------------------


def write_jpegs(folder: Path, sizes: list[tuple[int, int]]) -> float:
    """JPEGs of these sizes, (width, height), in ImageNet's layout, for training as for validation. Returns the mean of
    their bytes."""
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in ("n01", "n02"):
            (folder / part / label).mkdir(parents=True)
    bytes_ = []
    for number, (width, height) in enumerate(sizes):
        path = folder / "train" / f"n0{number % 2 + 1}" / f"{number}.JPEG"
        Image.fromarray(picture(random, width, height)).save(path, quality=QUALITY)
        os.link(path, folder / "val" / f"n0{number % 2 + 1}" / path.name)
        bytes_.append(path.stat().st_size)
    return statistics.mean(bytes_)


def picture(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Noise at every scale, the more the larger, as photos have: uint8 [height, width, 3]."""
    longest, total, cells = max(width, height), torch.zeros(1, 3, height, width), 2
    while cells < longest:
        shape = (max(2, cells * height // longest), max(2, cells * width // longest), 3)
        noise = random.standard_normal(shape, dtype=np.float32)
        noise = 0.5 * noise + 0.75 * noise.mean(2, keepdims=True)  # what is bright is so in all colours
        layer = torch.from_numpy(noise).permute(2, 0, 1)[None]
        total += torch.nn.functional.interpolate(layer, (height, width), mode="bilinear") * cells**-0.65
        cells *= 2
    total += 0.06 * torch.from_numpy(random.standard_normal((height, width), dtype=np.float32))
    pixels = (total - total.mean()) / total.std() * 60 + 120
    return pixels[0].clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


# --- who reads them ---------------------------------------------------------------------------------------------------


class Contest:
    """Contestants by name: each gives an epoch's batches."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def of(self, part: str, cores: int) -> dict[str, Callable[[], Iterable[Any]]]:
        if part == "training":
            pixels = self.split("train", cores).pixels(BATCH_SIZE, augment=True)
            return {
                "lpk": lambda: pixels(0),
                "PyTorch's example": self.torchs(TRAINING, "train", cores),
                "Pillow, reduced": self.torchs(REDUCED_TRAINING, "train", cores),
            }
        split = self.split("val", cores)
        kept = split.kept_in(self.folder / "kept", "validation", "")
        return {
            "lpk": replace(split, decoded=None).loader(BATCH_SIZE).__iter__,
            "lpk, kept decoded": kept.loader(BATCH_SIZE).__iter__,
            "PyTorch's example": self.torchs(VALIDATION, "val", cores),
            "Pillow, reduced": self.torchs(REDUCED_VALIDATION, "val", cores),
        }

    def split(self, part: str, cores: int) -> FolderSplit:
        loaded = data.load("imagenet", validation=0, root=self.folder)
        split = loaded.train if part == "train" else loaded.test
        assert isinstance(split, FolderSplit)
        repeated(split.folder, self.count)
        return replace(split, indices=torch.arange(self.count), workers=cores)

    def torchs(self, transform: Any, part: str, cores: int) -> Callable[[], Iterable[Any]]:
        opened = {} if transform in (TRAINING, VALIDATION) else {"loader": Image.open}
        samples = repeated(ImageFolder(self.folder / part, transform, **opened), self.count)
        return DataLoader(samples, BATCH_SIZE, shuffle=part == "train", num_workers=cores).__iter__


def repeated(folder: ImageFolder, count: int) -> ImageFolder:
    """The folder with `count` samples: its own, again and again."""
    times = math.ceil(count / len(folder.samples))
    folder.samples = (folder.samples * times)[:count]
    folder.imgs, folder.targets = folder.samples, [label for _, label in folder.samples]
    return folder


def reduced_crop(image: Image.Image) -> Image.Image:
    """torchvision's RandomResizedCrop(224) of a JPEG that is not decoded yet, at the scale that it needs."""
    width, height = image.size
    top, left, rows, columns = transforms.RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
    scale = 1 << (max(1, min(8, min(rows, columns) // 224)).bit_length() - 1)
    image.draft("RGB", (width // scale, height // scale))
    x, y = image.size[0] / width, image.size[1] / height
    box = (left * x, top * y, (left + columns) * x, (top + rows) * y)
    return image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR, box)


def reduced_resize(image: Image.Image) -> Image.Image:
    image.draft("RGB", (256, 256))
    return F.resize(image.convert("RGB"), 256)


FINISH = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
TRAINING = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *FINISH])
VALIDATION = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *FINISH])
REDUCED_TRAINING = transforms.Compose([reduced_crop, transforms.RandomHorizontalFlip(), *FINISH])
REDUCED_VALIDATION = transforms.Compose([reduced_resize, transforms.CenterCrop(224), *FINISH])


# --- what it takes ----------------------------------------------------------------------------------------------------


def measured(contestants: dict[str, Callable[[], Iterable[Any]]], images: int, cores: int) -> Iterator[Row]:
    """Images a second of each, in turns: the median epoch. One before that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    with held_to(cores):
        for _ in range(1 + TIMES):
            for name, epoch in contestants.items():
                began, seen = time.perf_counter(), 0
                for batch in epoch():
                    seen += len(batch[1])
                times[name].append(time.perf_counter() - began)
                assert seen == images, f"{name}: {seen} images"
    for name, (_, *taken) in times.items():
        yield {
            "seed": 0, "cores": cores, "contestant": name, "images_per_second": images / statistics.median(taken),
            "slowest": images / max(taken), "fastest": images / min(taken),
        }  # fmt: skip


@contextmanager
def held_to(cores: int) -> Iterator[None]:
    """This process, and those that it starts, on so many cores."""
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, sorted(before)[:cores])
    torch.set_num_threads(cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)


def table(result: Row) -> str:
    """The measurement as a Markdown table, and how many cores a GPU needs."""
    counts = sorted({row["cores"] for part in PARTS for row in result[part]})
    words = [f"{cores} core{'s' if cores > 1 else ''}" for cores in counts]
    lines = [f"| images a second | | {' | '.join(words)} |", "|---|---|" + "---:|" * len(counts)]
    for part in PARTS:
        rates = {(row["contestant"], row["cores"]): row["images_per_second"] for row in result[part]}
        for name in dict.fromkeys(contestant for contestant, _ in rates):
            cells = (three(rates[name, cores]) if (name, cores) in rates else "" for cores in counts)
            lines.append(f"| {part} | {name} | {' | '.join(cells)} |")
    lines += ["", f"JPEGs of {result['bytes'] / 1e3:.0f} kB in the mean; medians of {TIMES} epochs."]
    if rows := [row for row in result["training"] if row["contestant"] == "lpk"]:
        most = max(rows, key=lambda row: row["cores"])
        wanted, each = result["gpu_images_per_second"], most["images_per_second"] / most["cores"]
        said = "assumed for ResNet-18 on an H100, not measured" if result["assumed"] else "as given"
        lines.append(
            f"A GPU that trains {wanted:,.0f} images a second ({said}) needs {math.ceil(wanted / each)} cores "
            f"like these for decoding, of {three(each)} images a second each, and reads "
            f"{wanted * result['bytes'] / 1e6:,.0f} MB a second."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
