"""Whether tickets are the same, bit for bit."""

import torch


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a.mask, b.mask)
        and all(torch.equal(x, y) for x, y in zip(a.state_dict.values(), b.state_dict.values(), strict=True))
        for a, b in zip(first, second, strict=True)
    )
