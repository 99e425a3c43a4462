"""lpk.data.uploads: each batch is sent while the one before it is in use. What a GPU gets is in test_feed.py."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lpk.data.uploads import Ahead, upload


def test_batches_are_sent_one_ahead() -> None:
    sent: list[int] = []

    def batches() -> Iterator[list[Tensor]]:  # as a DataLoader that pins memory yields them
        for number in range(4):
            sent.append(number)
            yield [torch.tensor([number]), torch.tensor([-number])]

    counts = []
    for number, batch in enumerate(Ahead(torch.device("cpu"))(batches())):
        assert isinstance(batch, tuple) and [int(x) for x in batch] == [number, -number]
        counts.append(len(sent))
    assert counts == [2, 3, 4, 4]
    assert list(Ahead(torch.device("cpu"))([])) == []


def test_on_a_cpu_nothing_is_copied() -> None:
    tensors = (torch.zeros(3), torch.ones(2))
    assert all(a is b for a, b in zip(upload(tensors, torch.device("cpu")), tensors, strict=True))
