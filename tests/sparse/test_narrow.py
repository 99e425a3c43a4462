"""Where a value is cut anew: where it is narrow, and the network computes what it did."""

import pytest
import torch
from torch import nn

from lpk.sparse.network import Network
from lpk.sparse.patches import cut
from lpk.sparse.steps import Relayout
from tests.sparse.networks import same

# 28 x 28 pixels are cut into 7 x 7, which a stride of 2 does not divide.
SIZE = 28


def depthwise(channels, stride=2):
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels)


class Expanding(nn.Module):
    """Wide values of narrow ones before a stride. also: what else reads the wide or the narrow one."""

    def __init__(self, also):
        super().__init__()
        self.also = also
        self.first = nn.Conv2d(3, 4, 3, 1, 1)
        self.expand, self.norm, self.deep = nn.Conv2d(4, 24, 1), nn.BatchNorm2d(24), depthwise(24)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 24, 1), nn.Sigmoid())
        self.down = nn.Conv2d(4, 24, 1, 2)

    def forward(self, x):
        narrow = self.first(x).relu()
        wide = self.norm(self.expand(narrow))
        if self.also == "residual":
            return self.deep(wide).relu() + self.down(narrow)
        if self.also == "wide":
            return self.deep(wide) * wide.sigmoid().mean((2, 3), keepdim=True)
        if self.also == "sum":
            return self.deep(wide + narrow.repeat(1, 6, 1, 1))
        if self.also == "factor":
            return self.deep((wide * self.squeeze(wide)).relu())
        return self.deep(nn.functional.silu(wide))


def recuts(model):
    """What is cut anew in the plan for 16 images: channels, and pixels."""
    plan = cut(Network(model, (3, SIZE, SIZE)).plan, 16)
    return [(step.out.channels, step.out.pixels) for step in plan.steps if isinstance(step, Relayout)]


def recut(model):
    return [channels for channels, _ in recuts(model)]


@pytest.mark.parametrize(
    ("also", "channels"), [("nothing", [4]), ("residual", [4, 4]), ("wide", [24]), ("sum", [24]), ("factor", [24])]
)
def test_where(also, channels):
    """Before the expansion; behind it where the wide value is read as it is, too. What skips pixels has a copy of the
    others."""
    torch.manual_seed(0)
    model = Expanding(also).eval()
    assert recut(model) == channels
    for batch in (1, 2, 5):
        same(model, torch.randn(batch, 3, SIZE, SIZE))


class Bottleneck(nn.Module):
    """A ResNet's: two layers with strides, one of which reads what is narrower than what both come from."""

    def __init__(self, down_first):
        super().__init__()
        self.down_first = down_first
        self.first, self.down = nn.Conv2d(3, 24, 3, 1, 1), nn.Conv2d(24, 12, 1, 2)
        self.reduce, self.deep = nn.Conv2d(24, 12, 1), nn.Conv2d(12, 12, 3, 2, 1)

    def forward(self, x):
        x = self.first(x).relu()
        if self.down_first:
            down = self.down(x)
            return down.relu() + self.deep(self.reduce(x).relu()) + down
        return self.deep(self.reduce(x).relu()) + self.down(x)


@pytest.mark.parametrize("down_first", [False, True])
def test_a_layer_that_skips_pixels_reads_a_copy_of_the_others(down_first):
    """So the other layer takes the value as it is cut, and what it makes is cut anew, which is narrower."""
    torch.manual_seed(0)
    model = Bottleneck(down_first).eval()
    assert sorted(recuts(model)) == [(12, SIZE**2), (24, SIZE**2 // 4)]
    for batch in (1, 2, 16):
        same(model, torch.randn(batch, 3, SIZE, SIZE))


def test_a_narrowing_layer_stays_before_it():
    model = nn.Sequential(nn.Conv2d(3, 24, 3, 1, 1), nn.Conv2d(24, 4, 1), depthwise(4)).eval()
    assert recut(model) == [4]
    same(model, torch.randn(1, 3, SIZE, SIZE))


def test_whole_images_are_not_computed_by_one_lane():
    """A pooling with windows that overlap needs them; the expansion before it is spread over all lanes."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 24, 1), nn.AvgPool2d(3, 2, 1, False, False)).eval()
    assert recut(model)[0] == 24
    same(model, torch.randn(1, 3, SIZE, SIZE))
