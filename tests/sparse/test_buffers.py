"""Where a plan's values lie: those that are alive together never in the same memory, and borders stay zero."""

import itertools

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import nn

from lpk.sparse.buffers import buffers_of
from lpk.sparse.network import Network
from lpk.sparse.steps import Affine, Convolve, Multiply, Pack, Plan, Seen, Slot, Step, Value
from tests.sparse.engine import arbitrary, configured


def pieces(blocks):
    """The memory of each block of images: (first, last address)."""
    data = blocks.data
    starts = [data.data_ptr() + 4 * i * data.stride(0) for i in range(len(data))]
    return [(start, start + 4 * data[0].numel()) for start in starts]


def overlap(a, b):
    return a[0] < b[1] and b[0] < a[1]


def check(plan, buffers):
    """Values that are alive together are apart, and so are different blocks of any: these, threads compute at once."""
    made = {step.out: i for i, step in enumerate(plan.steps) if step.out is not None}
    read = {
        value: max([i for i, step in enumerate(plan.steps) if value in step.inputs] or [made[value]]) for value in made
    }
    for a, b in itertools.combinations(made, 2):
        together = made[a] <= read[b] and made[b] <= read[a]
        if made[b] == read[a] and buffers[a].data.data_ptr() == buffers[b].data.data_ptr():
            together = not may_be_in_place(plan.steps[made[b]], a, b)
        same = kind(buffers[a]) == kind(buffers[b])
        for (i, x), (j, y) in itertools.product(enumerate(pieces(buffers[a])), enumerate(pieces(buffers[b]))):
            if together or i != j or not same:
                assert not overlap(x, y)
            elif overlap(x, y) and any(v.border > 0 and v.patches == (1, 1) for v in (a, b)):
                assert x == y and (a.image, a.border, a.outside) == (b.image, b.border, b.outside)
    for value, blocks in buffers.items():
        if blocks.by_thread:  # a thread takes a block from the first step that has it to the last
            steps = plan.steps[made[value] : read[value] + 1]
            assert all(isinstance(step, Step) and buffers[step.out].blocks == blocks.blocks for step in steps)


def may_be_in_place(step, given, out):
    """Whether each number of a step's output is computed from the same one of a value, or with it added."""
    is_added = isinstance(step, Convolve | Affine) and step.residual is given
    is_read = isinstance(step, Affine | Multiply) and not is_added and step.inputs[0] is given
    alike = (given.image, given.border, given.patch) == (out.image, out.border, out.patch)
    return alike and step.inputs.count(given) == 1 and (is_added or is_read)


def kind(blocks):
    """Of which values share memory."""
    return len(blocks.data), blocks.by_thread


def most_alive(plan, buffers):
    """The most floats of values of one kind that are alive together, for all kinds."""
    return sum(_most_alive(plan, buffers, one) for one in {kind(blocks) for blocks in buffers.values()})


def _most_alive(plan, buffers, one):
    alive, most = set(), 0
    for i, step in enumerate(plan.steps):
        alive |= set() if step.out is None else {step.out}
        most = max(most, sum(buffers[value].data.numel() for value in alive if kind(buffers[value]) == one))
        alive = {value for value in alive if any(value in later.inputs for later in plan.steps[i + 1 :])}
    return most


@arbitrary
@hypothesis.given(st.data(), st.integers(1, 40), st.sampled_from([None, 1, 2, 5]))
def test_any_plan(data, batch, threads):
    values, steps = [], []
    for _ in range(data.draw(st.integers(1, 9))):
        patches = data.draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (4, 4)]))
        image = tuple(data.draw(st.integers(1, 3)) for _ in range(3))
        border, patch = data.draw(st.integers(0, 1)), tuple(-(-n // m) for n, m in zip(image[1:], patches, strict=True))
        out = Value(image, border, patches, patch)
        inputs = data.draw(st.lists(st.sampled_from(values), max_size=3)) if values else []
        residual = inputs[1] if len(inputs) > 1 else None
        steps.append(Affine(inputs, out, residual=residual) if inputs else Pack(Slot("x", None), Seen(out, (), False)))
        values.append(out)
    plan = Plan([], [], steps)
    _, buffers = buffers_of(plan, batch, threads, {})
    assert all(len(x.data) == (threads if x.by_thread else x.blocks) for x in buffers.values())
    assert all(buffers[v].shape == (batch, *v.image) and buffers[v].border == v.border for v in values)
    check(plan, buffers)


class Branching(nn.Module):
    """Layers with and without borders, of all kinds of lives."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.expand, self.deep = nn.Conv2d(8, 32, 1), nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.project, self.down = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.pool, self.last = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 5)

    def forward(self, x):
        x = self.first(x).relu()
        for _ in range(2):
            deep = self.deep(self.expand(x).relu()).relu()
            x = x + self.project(deep * self.pool(deep).sigmoid())
        return self.last(self.pool(self.down(x).relu()).flatten(1))


@pytest.mark.parametrize("batch", [1, 5, 70])
@pytest.mark.parametrize("size", [14, 28])
def test_a_network(batch, size):
    """Several batches of other samples, on one to three threads: nothing of one is left for another."""
    torch.manual_seed(0)
    model = Branching().eval()
    network = Network(model, (3, size, size))
    for threads in (1, 2, 3):
        inputs = torch.randn(batch, 3, size, size)
        with configured(threads=threads), torch.no_grad():
            torch.testing.assert_close(network(inputs), model(inputs), rtol=1e-4, atol=1e-5)
    for layout in network._layouts.values():
        for run in layout.runs.values():
            check(run.plan, run.buffers)
            whole = [v for v in run.plan.values if v.patches == (1, 1) and v.border > 0]
            assert all(_border(run.buffers[value]).eq(0).all() for value in whole)
            if not whole:
                assert layout.memory[run.shapes].numel() <= 1.3 * most_alive(run.plan, run.buffers)


def test_what_is_added_is_where_the_sum_is():
    """If nobody reads it any more; BatchNorm's statistics are measured before it is added."""
    network = Network(Branching().eval(), (3, 16, 16))
    network(torch.randn(4, 3, 16, 16))
    network.measure(torch.randn(4, 3, 16, 16))
    for layout in network._layouts.values():
        for (_, threads), run in layout.runs.items():
            sums = [step for step in run.plan.layers if step.residual is not None]
            alike = [step for step in sums if step.residual.border == step.out.border]
            for step in sums:
                added, out = (run.buffers[value].data.data_ptr() for value in (step.residual, step.out))
                assert (added == out) == (threads is not None and step in alike)
            assert len(sums) == 2 and alike
    assert {threads for layout in network._layouts.values() for _, threads in layout.runs} == {
        None,
        torch.get_num_threads(),
    }


def test_what_one_stretch_reads_has_memory_for_each_thread_alone():
    """Not for each block; where another number of blocks is read, or PyTorch reads, all of them are there."""
    torch.manual_seed(0)
    stretch = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
    network = Network(nn.Sequential(*stretch, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), (3, 32, 32))
    for threads in (1, 2, 3):
        with configured(threads=threads):
            network(torch.randn(7, 3, 32, 32))
    runs = network._layouts[7].runs
    for threads in (1, 2, 3):
        buffers = runs[7, threads].buffers
        places = [len(buffers[value].data) for value in runs[7, threads].plan.values if value.pixels > 1]
        assert places == [7, threads, threads, 7]


def _border(x):
    mask = torch.ones(x.data.shape[2:4], dtype=torch.bool)
    mask[x.border : -x.border, x.border : -x.border] = False
    return x.data[:, :, mask]
