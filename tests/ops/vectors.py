"""Vectors on which a search for thresholds is easy, and hostile ones."""

import torch


def vector(kind: str, n: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=generator)
    made = {
        "normal": lambda: x,
        "equal": lambda: torch.full((n,), -0.5),
        "zeros": lambda: torch.zeros(n) * x.sign(),
        "mostly-zero": lambda: x * (torch.rand(n, generator=generator) < 0.02),
        "two": lambda: torch.where(x > 0.5, 1.5, -0.25),
        "ties": lambda: x.mul(4).round(),
        "sorted": lambda: x.sort().values,
        "denormal": lambda: (x * 2000).to(torch.int32).abs().view(torch.float32) * x.sign(),
        "wide": lambda: torch.ldexp(x, torch.randint(-14, 12, (n,), generator=generator)),
    }[kind]()
    return made.to(dtype)
