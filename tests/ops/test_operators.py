"""The operations as PyTorch operators: opcheck and torch.compile."""

import pytest
import torch

from lpk import ops
from tests import reference
from tests.ops.problems import problem, same

A, B = torch.arange(8.0), torch.arange(8.0) + 1
HALFWAY, PAIR, OUT = torch.tensor(0.5), (torch.tensor(4.5), torch.tensor(7)), torch.zeros(8)
PACKED = ops.pack(A * (A > 2), B * (B > 2))
OPERATORS = {
    "interpolate": (A, B, HALFWAY),
    "interpolate_out": (A, B, HALFWAY, OUT),
    "interpolate_threshold": (A, B, HALFWAY.reshape(1), 3),
    "interpolate_prune": (A, B, HALFWAY, *PAIR),
    "interpolate_prune_out": (A, B, HALFWAY, *PAIR, OUT),
    "interpolate_prune_all": (A, B, HALFWAY.reshape(1), *(part.reshape(1) for part in PAIR)),
    "interpolate_prune_all_out": (A, B, HALFWAY.reshape(1), *(part.reshape(1) for part in PAIR), torch.zeros(1, 8)),
    "pack": (A, B),
    "interpolate_prune_packed": (*PACKED, HALFWAY, 3, *PAIR),
    "interpolate_prune_packed_out": (*PACKED, HALFWAY, 3, *PAIR, OUT),
    "magnitude_prune": (A, 3),
    "magnitude_prune_out": (A, 3, OUT),
    "magnitude_mask": (A, 3),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name):
    torch.library.opcheck(getattr(torch.ops.lpk, name).default, OPERATORS[name])


def test_every_operator_is_checked():
    names = torch._C._dispatch_get_all_op_names()
    registered = {name for name in names if name.startswith(("lpk::interpolate", "lpk::pack", "lpk::magnitude"))}
    assert registered == {f"lpk::{name}" for name in OPERATORS}


def test_torch_compile():
    p = problem("normal", torch.float32, 1025)
    alpha, keep = p.alphas[1], 205

    def step(a, b, scratch):
        thresholds, lasts = ops.interpolate_threshold(a, b, [0.05, 0.5], keep)
        x = ops.interpolate_prune(a, b, alpha, keep, threshold=(thresholds[0], lasts[0]))
        ops.interpolate(a, b, alpha, out=scratch)
        x = ops.interpolate_prune_all(a, b, [0.05, 0.5, alpha], keep)[2] + 0 * x
        return x * 2, ops.magnitude_prune(scratch, keep), ops.magnitude_mask(x, keep), thresholds

    expected_scratch = p.interpolated[1]
    pruned = p.expected(1, keep)[2]
    for backend in ("eager", "aot_eager"):
        torch._dynamo.reset()
        scratch = torch.zeros_like(p.a)
        twice, again, mask, thresholds = torch.compile(step, fullgraph=True, backend=backend)(p.a, p.b, scratch)
        assert same(scratch, expected_scratch)
        assert same(twice, pruned * 2) and same(again, pruned)
        assert torch.equal(mask, reference.magnitude_mask(pruned, keep))
        assert same(thresholds[0], p.expected(1, keep)[0][0])
