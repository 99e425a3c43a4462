"""lpk on a Transformer: no BatchNorm, batches that are dicts, a training loop and a score of one's own.

The task: which Python library are 32 consecutive words of a docstring from? The libraries are installed with lpk, so
nothing is downloaded; numbers differ with their versions. Training, validation and test words are of different files.

    python examples/transformer.py

Four tickets are trained and every one is pooled; about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import lpk

LIBRARIES = ("matplotlib", "networkx", "numpy", "scipy", "sklearn", "sympy")
LENGTH = 32  # words of an excerpt
WORDS = 3000  # of the vocabulary, the most frequent ones; 0 is padding and 1 any other word
PER_FILE = 100  # excerpts at most: no file should make up much of a split

Batch = dict[str, Tensor]


def excerpts(library: str) -> list[list[list[str]]]:
    """For each file of a library the excerpts of its docstrings, as words; tests are left out."""
    origin = importlib.util.find_spec(library).origin
    by_file = []
    for path in sorted(Path(origin).parent.rglob("*.py")):
        if "tests" in path.parts:
            continue
        nodes = [n for n in ast.walk(ast.parse(path.read_bytes())) if isinstance(n, ast.ClassDef | ast.FunctionDef)]
        texts = dict.fromkeys(text.lower() for node in nodes if (text := ast.get_docstring(node)))
        words = [re.findall(r"[a-z]+|\d|[^\w\s]", text) for text in texts]
        found = [w[i : i + LENGTH] for w in words for i in range(0, len(w), LENGTH)]
        by_file.append([excerpt for excerpt in found if len(excerpt) >= LENGTH // 2][:PER_FILE])
    return by_file


def load(libraries: Sequence[str], sizes: Sequence[int], seed: int) -> list[Batch]:
    """Splits of the excerpts, `sizes` of each library, no file in two of them, each as one large batch."""
    splits: list[list[tuple[list[str], int]]] = [[] for _ in sizes]
    for label, library in enumerate(libraries):
        files = excerpts(library)
        random.Random(seed).shuffle(files)
        for split, size in zip(splits, sizes, strict=True):
            chosen: list[list[str]] = []
            while len(chosen) < size:
                if not files:
                    raise ValueError(f"{library} has too few docstrings for splits of {', '.join(map(str, sizes))}")
                chosen += files.pop()
            split += [(words, label) for words in chosen[:size]]
    frequent = Counter(word for words, _ in splits[0] for word in words).most_common(WORDS - 2)
    number = {word: i for i, (word, _) in enumerate(frequent, start=2)}
    return [_tensors(split, number) for split in splits]


def _tensors(split: list[tuple[list[str], int]], number: dict[str, int]) -> Batch:
    rows = [[number.get(word, 1) for word in words] + [0] * (LENGTH - len(words)) for words, _ in split]
    input_ids = torch.tensor(rows)
    return {"input_ids": input_ids, "mask": input_ids != 0, "label": torch.tensor([label for _, label in split])}


def batches(split: Batch, size: int, *, shuffle: bool = False) -> Iterator[Batch]:
    """Batches {input_ids: int64 [B, L], mask: bool [B, L], label: int64 [B]}."""
    count = len(split["label"])
    order = torch.randperm(count) if shuffle else torch.arange(count)
    for index in order.split(size):
        yield {name: tensor[index] for name, tensor in split.items()}


class Classifier(nn.Module):
    """A small Transformer encoder; the mean over an excerpt's words is classified."""

    def __init__(self, classes: int, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.positions = nn.Parameter(torch.randn(LENGTH, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        x = self.encoder(self.words(input_ids) + self.positions, src_key_padding_mask=~mask)
        mask = mask.unsqueeze(2)
        return self.head((x * mask).sum(1) / mask.sum(1))


def prunable(name: str, parameter: nn.Parameter) -> bool:
    """The encoder's matrices, which are what lpk's default prunes, too."""
    return name.startswith("encoder.") and parameter.dim() == 2


@torch.no_grad()
def accuracy(model: nn.Module, split: Batch) -> float:
    correct = 0
    for batch in batches(split, 500):
        label = batch.pop("label")
        correct += int((model(**batch).argmax(1) == label).sum())
    return correct / len(split["label"])


def main(arguments: Sequence[str] | None = None) -> list[tuple[float, float, float]]:
    """Returns (density, the ticket's test accuracy, the pool's) for each round."""
    parser = argparse.ArgumentParser(description="Lottery Pools on a small Transformer.")
    parser.add_argument("--libraries", nargs="+", default=LIBRARIES)
    parser.add_argument("--excerpts", nargs=3, type=int, default=(1500, 400, 600), help="of each, split in three")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    training, validation, test = load(options.libraries, options.excerpts, options.seed)
    torch.manual_seed(options.seed)
    model = Classifier(len(options.libraries))

    def train(model: nn.Module, start: int, stop: int) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        model.train()
        for epoch in range(start, stop):
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * (1 - epoch / options.epochs)
            for batch in batches(training, 64, shuffle=True):
                label = batch.pop("label")
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(**batch), label).backward()
                optimizer.step()
        model.eval()

    tickets = lpk.imp(
        model,
        train,
        epochs=options.epochs,
        rounds=options.rounds,
        fraction=0.5,
        rewind=max(1, options.epochs // 3),
        prunable=prunable,
        seed=options.seed,
    )
    pools = lpk.pool(tickets, model=model, evaluate=lambda candidate: accuracy(candidate, validation))

    def tested(state_dict: dict[str, Tensor]) -> float:
        model.load_state_dict(state_dict)
        return accuracy(model.eval(), test)

    rows = [(t.density, tested(t.state_dict), tested(p.state_dict)) for t, p in zip(tickets, pools, strict=True)]
    print(f"test accuracy, {len(test['label'])} excerpts, {len(options.libraries)} libraries")
    print("density  ticket    pool")
    for density, ticket, pool in rows:
        print(f"{density:7.1%}  {ticket:6.2%}  {pool:6.2%}")
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    print(f"   mean  {means[1]:6.2%}  {means[2]:6.2%}")
    return rows


if __name__ == "__main__":
    main()
