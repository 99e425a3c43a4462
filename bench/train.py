"""lpk.Trainer beside a plain PyTorch loop: images a second, and what masking adds to a loop of one's own.

python -m bench.train [--parts training called masking imp] [--results bench/results]

ResNet-18 on Fashion-MNIST, padded to 32 x 32, with CIFAR's augmentation (crops of a padded image, half of them
mirrored), batches of 128, SGD with momentum. The results file is written after every row: rows of an earlier run stay
until they are measured again.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import lpk
from bench.results import Row, machine, slug, three
from bench.results_file import ResultsFile
from lpk import data, models
from lpk.data.splits import MemorySplit
from lpk.networks.flat import Layout
from lpk.networks.prunable import convolutions
from lpk.pruning.masking import kept_pruned
from lpk.pruning.recipe import Recipe, stream
from lpk.pruning.train import Trainer

PARTS = ("training", "called", "masking", "imp")
DTYPES = {"float32": None, "bfloat16": "bfloat16"}
ASKED = {"float32": 20_000, "bfloat16": 30_000}  # images a second of an H100
MOST_MASKING = 0.05  # of a step
DENSITY = 0.2
STEPS, TIMES = 20, 9  # of the plain loop: steps in a row, and how often
FEW, TURNS = 5, 60  # of masking: in short turns, since a step is the host's time, which others' work disturbs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], prog="python -m bench.train")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training; default: 0 1 2")
    parser.add_argument("--epochs", type=int, default=10, help="of training; default: 10")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="what to compute in; default: both")
    parser.add_argument("--train", type=int, help="how many of the training samples; default: 54,000, which is all")
    parser.add_argument("--network", default="resnet18", help="lpk's, torchvision's or timm's; default: resnet18")
    parser.add_argument("--device", help="default: a GPU where there is one")
    parser.add_argument("--plain", action="store_true", help="train with the plain loop, too, which takes long")
    parser.add_argument("--results", type=Path, help="the directory that train-<machine>.json is written to")
    given = parser.parse_args()
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    here = machine() if device.type == "cuda" else machine() | {"gpu": None}
    head = {"machine": here, "benchmark": "train", "preset": {"network": given.network, "train": given.train}}
    path = given.results / f"train-{slug(here)}.json" if given.results else None
    file = ResultsFile(path, head, PARTS)
    contest = Contest(given.network, device, given.train)
    for part in given.parts:
        for row in MEASURES[part](contest, given):
            file.keep(part, row)
            print(f"{part}: {row}", flush=True)
    print("\n" + table(file.result))
    if path:
        print(f"written: {path}")


class Contest:
    """The network, the samples and the recipe of all contestants."""

    def __init__(self, network: str, device: torch.device, count: int | None) -> None:
        self.network = network
        self.device = device
        found = data.load("fashion-mnist", validation=6000, train=count)
        assert isinstance(found.train, MemorySplit) and isinstance(found.test, MemorySplit)
        self.train, self.test = enlarged(found.train, "crop-flip"), enlarged(found.test, "none")

    def model(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(stream(seed, "initialization"))
        model = models.build(self.network, classes=10, shape=(1, 32, 32)).to(self.device)
        return model.to(memory_format=torch.channels_last)

    def recipe(self, dtype: str, epochs: int) -> Recipe:
        return Recipe(epochs=epochs, milestones=(epochs // 2, epochs * 4 // 5), autocast=DTYPES[dtype])

    def autocast(self, dtype: str) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=DTYPES[dtype] is not None)

    def finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], object]) -> float:
        self.finish()
        began = time.perf_counter()
        function()
        self.finish()
        return time.perf_counter() - began

    def accuracy(self, model: nn.Module) -> float:
        right = 0
        with torch.no_grad():
            for images, labels in self.test.loader(500):
                images = images.to(self.device).contiguous(memory_format=torch.channels_last)
                right += int((model(images).argmax(1) == labels.to(self.device)).sum())
        return right / len(self.test)


def enlarged(split: MemorySplit, augmentation: str) -> MemorySplit:
    return replace(split, images=nn.functional.pad(split.images, (2,) * 4), augmentation=augmentation)


class Plain:
    """A training loop as one writes it: batches from the CPU, a step called after the other."""

    def __init__(self, contest: Contest, model: nn.Module, recipe: Recipe, dtype: str, seed: int = 0) -> None:
        self.contest, self.model, self.recipe, self.dtype, self.seed = contest, model, recipe, dtype, seed
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

    def epoch(self, epoch: int) -> Iterator[None]:
        """Trains a batch at each step of the iterator."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(epoch, 0.5)
        batches = self.contest.train.loader(
            self.recipe.batch_size, seed=stream(self.seed, "samples", 0, epoch), augment=True
        )
        for images, labels in batches:
            self.step(images.to(self.contest.device), labels.to(self.contest.device))
            yield

    def step(self, images: Tensor, labels: Tensor) -> None:
        images = images.contiguous(memory_format=torch.channels_last)
        with self.contest.autocast(self.dtype):
            loss = nn.functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def training(contest: Contest, given: argparse.Namespace) -> Iterator[Row]:
    """lpk.Trainer, epoch by epoch: images a second of all epochs but the first, and the test accuracy in the end."""
    for seed in given.seeds:
        for dtype in given.dtypes:
            model, recipe = contest.model(seed), contest.recipe(dtype, given.epochs)
            trainer = Trainer(contest.train, recipe, seed=seed, augment=True)
            first, *others = [
                contest.seconds(lambda: trainer(model, epoch, epoch + 1))  # noqa: B023
                for epoch in range(given.epochs)
            ]
            yield row(dtype, "lpk.Trainer", len(contest.train), others, seed) | {
                "first_epoch": first, "graph_problem": trainer.graph_problem, "accuracy": contest.accuracy(model),
            }  # fmt: skip
        if given.plain:
            model = contest.model(seed)
            plain = Plain(contest, model, contest.recipe("float32", given.epochs), "float32", seed)
            times = [
                contest.seconds(lambda: [step for step in plain.epoch(epoch)])  # noqa: B023
                for epoch in range(given.epochs)
            ]
            yield row("float32", "plain PyTorch", len(contest.train), times, seed) | {
                "accuracy": contest.accuracy(model.eval())
            }


def called(contest: Contest, given: argparse.Namespace) -> Iterator[Row]:
    """Images a second where nothing is replayed: an epoch of lpk.Trainer, and some steps of the plain loop."""
    for dtype in given.dtypes:
        model, recipe = contest.model(), contest.recipe(dtype, 10)
        trainer = Trainer(contest.train, recipe, augment=True, backend="torch")
        _, second = [contest.seconds(lambda: trainer(model, epoch, epoch + 1)) for epoch in range(2)]  # noqa: B023
        yield row(dtype, "lpk.Trainer, called", len(contest.train), [second])
        plain = Plain(contest, contest.model(), contest.recipe(dtype, 10), dtype)
        steps = (step for epoch in itertools.count() for step in plain.epoch(epoch))
        runs = [contest.seconds(lambda: [next(steps) for _ in range(STEPS)]) for _ in range(TIMES)]  # noqa: B023
        yield row(dtype, "plain PyTorch", STEPS * plain.recipe.batch_size, runs[2:])


def row(dtype: str, contestant: str, images: int, seconds: list[float], seed: int = 0) -> Row:
    rate = images / statistics.median(seconds)
    slowest, fastest = images / max(seconds), images / min(seconds)
    return {
        "seed": seed, "dtype": dtype, "contestant": contestant,
        "images_per_second": rate, "slowest": slowest, "fastest": fastest,
    }  # fmt: skip


def masking(contest: Contest, given: argparse.Namespace) -> Iterator[Row]:
    """A step of a loop of one's own with lpk's masking and without, in turns, on a batch that lies on the device."""
    images, labels = next(iter(contest.train.loader(128, seed=0, augment=True)))
    images, labels = images.to(contest.device), labels.to(contest.device)
    for dtype in given.dtypes:
        model = contest.model().train()
        plain = Plain(contest, model, contest.recipe(dtype, 10), dtype)
        layout = Layout.of_model(model, sorted(convolutions(model)))
        mask = torch.rand(layout.n, generator=torch.Generator().manual_seed(0)) < DENSITY
        bare, masked = [], []

        def steps() -> None:
            for _ in range(FEW):
                plain.step(images, labels)  # noqa: B023

        contest.seconds(steps)
        for _ in range(TURNS):
            bare.append(contest.seconds(steps) / FEW)
            with kept_pruned(model, layout, mask, lambda: None):
                plain.step(images, labels)
                masked.append(contest.seconds(steps) / FEW)
        yield {
            "seed": 0, "dtype": dtype, "layers": len(layout.weights),
            "bare": statistics.median(bare), "masked": statistics.median(masked),
            "added": statistics.median(masked) / statistics.median(bare) - 1,
            "added_at_best": min(masked) / min(bare) - 1,
        }  # fmt: skip


def imp(contest: Contest, given: argparse.Namespace) -> Iterator[Row]:
    """Images a second of lpk.imp from beginning to end: checkpoints after each epoch, tickets, pruning, rewinding."""
    epochs, rounds, rewind = 3, 2, 1
    images = len(contest.train) * (epochs + rounds * (epochs - rewind))
    for dtype in given.dtypes:
        model = contest.model()
        trainer = Trainer(contest.train, contest.recipe(dtype, epochs), augment=True)
        with tempfile.TemporaryDirectory() as store:

            def run() -> None:
                lpk.imp(
                    model, trainer, epochs=epochs, rounds=rounds, rewind=rewind, prunable=convolutions(model),  # noqa: B023
                    store=store, seed=0, progress=False,
                )  # fmt: skip

            seconds = contest.seconds(run)
        yield row(dtype, "lpk.imp", images, [seconds]) | {"graph_problem": trainer.graph_problem}


MEASURES: dict[str, Callable[[Contest, argparse.Namespace], Iterator[Row]]] = {
    "training": training,
    "called": called,
    "masking": masking,
    "imp": imp,
}


def table(result: Row) -> str:
    """The measurement as Markdown tables, beside what is asked of an H100."""
    parts = []
    if rows := result["training"] + result["called"] + result["imp"]:
        lines = [
            f"| {r['contestant']} | {r['dtype']} | {r['seed']} | {three(r['images_per_second'])} | "
            f"{three(r['slowest'])} to {three(r['fastest'])} | {asked(r)} | "
            f"{format(r['accuracy'], '.2%') if 'accuracy' in r else ''} |"
            for r in rows
        ]
        columns = ("training", "computed in", "seed", "images a second", "range", "asked of an H100", "test accuracy")
        parts.append("\n".join([*head(*columns), *lines]))
        for contestant, dtype in dict.fromkeys((r["contestant"], r["dtype"]) for r in rows):
            found = [r.get("accuracy") for r in rows if (r["contestant"], r["dtype"]) == (contestant, dtype)]
            if len(found) > 1 and None not in found:
                mean, spread = statistics.mean(found), statistics.stdev(found)
                parts.append(f"{contestant} in {dtype}, {len(found)} seeds: {mean:.2%} ± {spread:.2%}.")
    if rows := result["masking"]:
        lines = [
            f"| {r['dtype']} | {r['layers']} | {1e3 * r['bare']:.2f} | {1e3 * r['masked']:.2f} | {r['added']:+.1%} | "
            f"{r['added_at_best']:+.1%} | {MOST_MASKING:.0%} |"
            for r in rows
        ]
        columns = ("a plain step", "layers pruned", "ms", "with masks, ms", "added", "of the fastest", "asked: at most")
        parts.append("\n".join([*head(*columns), *lines]))
    return "\n\n".join(parts)


def asked(row: Row) -> str:
    return f"{ASKED[row['dtype']]:,}" if row["contestant"] in ("lpk.Trainer", "lpk.imp") else ""


def head(*columns: str) -> tuple[str, str]:
    return f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)


if __name__ == "__main__":
    main()
