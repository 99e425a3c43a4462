"""What the kernel benchmarks run on: sizes, dtypes, densities, distributions, coefficients, threads and devices."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util

import torch

from lpk import _core, ops

RESNET18 = 11_164_352  # its prunable weights
LARGE = 2**26  # what fills a GPU
PAPER = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

# The functions of lpk.ops that run on every device, and PyTorch's single call that does most of the same.
COMPARABLE = {
    "interpolate": "torch.lerp",
    "interpolate_threshold": "torch.topk",
    "interpolate_prune": "torch.topk",
    "interpolate_prune_all": "torch.topk",
    "magnitude_prune": "torch.topk",
    "magnitude_mask": "torch.topk",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One benchmark's vectors, how many coefficients share a sweep over them, and where and with how many threads."""

    n: int = RESNET18
    dtype: torch.dtype = torch.float32
    density: float = 0.2
    distribution: str = "normal"
    coefficients: int = len(PAPER)
    threads: int | None = None  # None: all
    device: str = "cpu"

    def __str__(self):
        threads = f" threads={self.threads}" if self.threads else ""
        return (
            f"{self.device} n={self.n} {dtype_name(self.dtype)} {self.density:.2g} {self.distribution} "
            f"K={self.coefficients}{threads}"
        )

    @property
    def keep(self):
        return max(1, round(self.density * self.n))

    @property
    def bytes(self):
        """The size of one vector."""
        return self.n * self.dtype.itemsize

    @property
    def alphas(self):
        return PAPER if self.coefficients == len(PAPER) else torch.linspace(0.3, 0.95, self.coefficients).tolist()

    def contestants(self, all_of_them):
        """Those that can run here. Peers answer one coefficient a call, so K changes nothing for them."""
        for name in all_of_them:
            library = name.partition(".")[0]
            if name in ("lpk", "copy"):
                yield name
            elif name == "lpk.triton":
                if self.device == "cuda" and _core.cuda_compiled and importlib.util.find_spec("triton"):
                    yield name
            elif name == "lpk.packed":
                if self.device == "cpu" and self.distribution == "tickets":
                    yield name
            elif self.coefficients not in (1, len(PAPER)):
                continue
            elif library == "numpy":
                # NumPy has no bfloat16 and computes float16 in software.
                if self.device == "cpu" and self.dtype == torch.float32:
                    yield name
            elif library in ("cub", "cupy", "flashinfer"):
                # CUB is no module: bench.cub_peer builds it, or says why it can't.
                found = library == "cub" or importlib.util.find_spec(library)
                if self.device == "cuda" and self.dtype == torch.float32 and found:
                    yield name
            else:
                yield name


def dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


@functools.lru_cache(maxsize=1)
def vectors(n, dtype, distribution, density, device):
    """θ_best and θ_i: the second one is the first, trained a little further."""
    generator = torch.Generator(device).manual_seed(0)
    a = DISTRIBUTIONS[distribution](n, generator)
    noise = torch.randn(n, generator=generator, device=device).mul_(0.3)
    b = a.clone() if distribution in EXACT else a + noise.mul_(a)
    if distribution == "tickets":
        a, b = tickets(a, b, density)
    return a.to(dtype), b.to(dtype)


def tickets(a, b, density):
    """Pruned as in two rounds of IMP: `b` a round earlier than `a`, whose mask lies inside b's."""
    n = len(a)
    b = ops.magnitude_prune(b, min(n, round(density / 0.8 * n)))
    return ops.magnitude_prune(a.where(b != 0, 0), round(density * n)), b


def normal(n, generator):
    return torch.randn(n, generator=generator, device=generator.device)


def heavy_tailed(n, generator):
    return torch.empty(n, device=generator.device).cauchy_(generator=generator).clamp_(-6e4, 6e4)


def ties(n, generator):
    return torch.randint(-8, 9, (n,), generator=generator, device=generator.device).float()


def equal(n, generator):
    return torch.ones(n, device=generator.device)


def mostly_zero(n, generator):
    """A ticket of a late round: 98% of its weights are pruned."""
    return normal(n, generator).mul_(torch.rand(n, generator=generator, device=generator.device) < 0.02)


def channels(n, generator):
    """Every 64th weight far larger than the others, as where one input channel dominates."""
    return normal(n, generator).mul_(1 + 100 * (torch.arange(n, device=generator.device) % 64 == 0))


DISTRIBUTIONS = {
    "normal": normal,
    "heavy-tailed": heavy_tailed,
    "ties": ties,
    "equal": equal,
    "mostly-zero": mostly_zero,
    "channels": channels,
    "tickets": normal,  # pruned afterwards, to the density
}
EXACT = ("ties", "equal")  # interpolated with themselves, so that the magnitudes still tie


def cases(operation, sizes, device):
    """The cases of an operation, short or full; the main one first."""
    fewer_threads = [2**exponent for exponent in range((torch.get_num_threads() - 1).bit_length())]
    main = Case(n=LARGE if device == "cuda" else RESNET18, device=device)
    varied = {
        "short": {
            "n": [2**16, 2**20, 2**24],
            "distribution": ["tickets"],
            "coefficients": [1],
            "threads": fewer_threads[:1],
        },
        "full": {
            "n": [2**exponent for exponent in range(16, 28)],
            "density": [0.5, 0.05, 0.018, 0.001],
            "dtype": [torch.float16, torch.bfloat16],
            "distribution": [name for name in DISTRIBUTIONS if name != main.distribution],
            "coefficients": [1, 3, 33],
            "threads": fewer_threads,
        },
    }[sizes]
    if operation in ("interpolate", "magnitude_mask"):  # one coefficient, or none
        main = dataclasses.replace(main, coefficients=1)
        varied.pop("coefficients")
    if operation == "interpolate":
        varied.pop("density", None)
    if device == "cuda":
        varied.pop("threads")
        if sizes == "short":
            varied.pop("distribution")  # packing is for the CPU
    if sizes == "short" and operation != "interpolate_prune":  # the search step is the one that the table shows
        varied.pop("threads", None)
        varied.pop("distribution", None)
        varied["n"] = varied["n"][:2] if device == "cpu" and operation == "magnitude_mask" else varied["n"]
    others = [dataclasses.replace(main, **{field: value}) for field in varied for value in varied[field]]
    return list(dict.fromkeys([main, *others]))
