"""What forward functions change in place: nothing is on the engine, and who reads it sees what PyTorch shows."""

import pytest
import torch
from torch.nn import functional as F

from tests.networks.random_statistics import with_random_statistics
from tests.sparse.networks import Zoo, same


def inplace_read_again(m, x):
    x = m.conv(x)
    y = F.relu(x, inplace=True)
    return m.second(y) + x


def added_in_place(m, x):
    y = m.conv(x)
    z = m.second(y)
    z += y
    return F.relu6(z) + y


def changed_in_place(m, x):
    x = m.conv(x)
    y = torch.sigmoid(x)
    x.mul_(0.5)
    return m.second(F.hardswish(y, inplace=True)) + y + x


def only_read_before_it_is_changed(m, x):
    x = m.conv(x)
    return (x < 0) + F.relu6(x, inplace=True)


def read_before_it_is_changed_in_place(m, x):
    x = m.conv(x)
    negative = x < 0
    x.relu_()
    return x.masked_fill(negative, 1.0)


def changes_a_view(m, x):
    x = m.conv(x)
    x[:, :2].mul_(2)
    return m.second(x)


def changes_what_was_chunked(m, x):
    x = m.conv(x)
    a, b = x.chunk(2, 1)
    x.relu_()
    return torch.cat((b, a), 1)


def changes_another_view(m, x):
    x = m.conv(x)
    last = x.permute(0, 2, 3, 1)
    x[:, :2].relu_()
    return last.relu() + x.permute(0, 2, 3, 1)


def changed_before_it_is_packed(m, x):
    y = F.softplus(m.conv(x))
    z = m.second(y)
    y.mul_(2)
    return m.second(y) + z


def added_in_place_and_read_again(m, x):
    x, y = m.conv(x), m.second(m.conv(x))
    x.add_(y)
    return F.relu(x) + x


def changed_after_it_is_padded(m, x):
    x = m.conv(x)
    y = F.pad(x, (1, 1, 1, 1))
    x.relu_()
    return F.conv2d(y, m.second.weight, groups=2) + x


def added_in_place_and_read_by_both_names(m, x):
    x, y = m.conv(x), m.second(m.conv(x))
    z = x.add_(y)
    return F.relu(z) + x


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 20])
@pytest.mark.parametrize(
    "forward",
    [
        inplace_read_again,
        added_in_place,
        changed_in_place,
        only_read_before_it_is_changed,
        read_before_it_is_changed_in_place,
        changes_a_view,
        changes_what_was_chunked,
        changes_another_view,
        changed_before_it_is_packed,
        added_in_place_and_read_again,
        changed_after_it_is_padded,
        added_in_place_and_read_by_both_names,
    ],
)
def test_what_is_changed_in_place(forward, batch):
    torch.manual_seed(0)
    same(with_random_statistics(Zoo(forward)), torch.randn(batch, 3, 8, 8))
