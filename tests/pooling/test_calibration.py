import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import make_images
from tests.pooling.evaluators import make_evaluator


def test_calibration_equals_update_bn(network, validation, calibration):
    made = make_evaluator(network, validation=validation, calibration=calibration, batch_size=32, tolerance=0)
    made.calibrate()
    reference = copy.deepcopy(network)
    update_bn(DataLoader(TensorDataset(*calibration), batch_size=32), reference)
    for i in (1, 4):
        ours, theirs = made.flat.model[i], reference[i]
        torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-5, atol=1e-6)
        assert ours.momentum == 0.1 and not ours.training and int(ours.num_batches_tracked) == 0


class Repeated(nn.Module):
    """BatchNorm layers that one forward pass calls several times: after a convolution, after an activation, in a loop,
    in what is computed again in a backward pass; and layers under two names, and that nothing calls."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.out = *(nn.Conv2d(i, 4, 3, padding=1) for i in (1, 4, 4)), nn.Linear(4, 3)
        self.norm, self.other, self.unused = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.same = self.norm

    def step(self, x):
        return self.other(self.norm(self.b(x)).relu() + x)

    def forward(self, x):
        x = self.same(self.a(x)).relu()
        for _ in range(2):
            x = self.step(x)
        return self.out(self.norm(self.c(x)).relu().mean((2, 3)))


class Checkpointed(Repeated):
    def step(self, x):
        return checkpoint(super().step, x, use_reentrant=False)


class Uneven(Repeated):
    """As many calls as a batch asks for: 1 to 3."""

    def step(self, x):
        for _ in range(1 + int(x.mean() * 1000) % 3):
            x = super().step(x)
        return x


class Ghost(nn.Module):
    """BatchNorm by parts of a batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.out = nn.Linear(36, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.cat([self.norm(part) for part in self.a(x.flatten(1)).chunk(5)]))


@pytest.mark.parametrize(
    ("kind", "backend"),
    [(Repeated, "torch"), (Repeated, "sparse"), (Checkpointed, "torch"), (Uneven, "torch"), (Ghost, "torch")],
)
def test_a_batchnorm_that_is_called_more_than_once(validation, calibration, kind, backend):
    network, options = kind(), {"batch_size": 32, "tolerance": 0, "backend": backend, "calibration": calibration}
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(5.0)
    made = make_evaluator(network, validation=validation, **options)
    reference = copy.deepcopy(network)
    update_bn(DataLoader(TensorDataset(*calibration), batch_size=32), reference)
    for _ in range(2):  # also from statistics that were calibrated before
        made.calibrate()
        assert made.backend == backend
        for name, ours in made.flat.model.named_buffers():
            if "running" in name and "unused" not in name:
                torch.testing.assert_close(ours, reference.get_buffer(name), rtol=1e-4, atol=1e-5)
            elif name == "unused.running_mean":
                assert (ours == 5.0).all(), "nothing else is known of it"
    for module in made.flat.model.modules():
        assert not module.training and not module._forward_pre_hooks
    assert all(int(t) == 0 for n, t in made.flat.model.named_buffers() if "tracked" in n)


class Fused(nn.Module):
    """A network that computes BatchNorm itself, with a layer's statistics."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.out = nn.Linear(36, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        n = self.norm
        x = nn.functional.batch_norm(
            self.a(x.flatten(1)), n.running_mean, n.running_var, n.weight, n.bias, n.training, n.momentum, n.eps
        )
        return self.out(x)


def test_statistics_without_a_call_of_their_layer(validation, calibration):
    network = Fused()
    plain = nn.Sequential(nn.Flatten(), network.a, network.norm, network.out)
    rests = []
    for model in (network, plain):
        made = make_evaluator(model, validation=validation, calibration=calibration, batch_size=32, backend="torch")
        made.calibrate()
        rests.append(made.flat.rest[made.flat.statistics])
    assert torch.equal(*rests)


@pytest.mark.parametrize("backend", ["torch", "sparse"])
@pytest.mark.parametrize(("samples", "batch_size"), [(1, None), (1, 32), (5, 1)])
def test_too_few_samples_for_a_variance_are_named(validation, calibration, backend, samples, batch_size):
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    options = {"calibration": calibration[0][:samples], "batch_size": batch_size, "backend": backend}
    made = make_evaluator(network, validation=validation, **options)
    with pytest.raises(ValueError, match=r"calibration: a batch of 1 gives 2 one value for each .*larger batch_size"):
        made.calibrate()
    assert not made.flat.model[2]._forward_pre_hooks and made.flat.model[2].momentum == 0.1


def test_synchronized_batchnorm_is_calibrated_alike(network, validation, calibration):
    kinds = network, nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
    one, other = (make_evaluator(kind, validation=validation, calibration=calibration, batch_size=32) for kind in kinds)
    for made in (one, other):
        made.calibrate()
    torch.testing.assert_close(one.flat.rest, other.flat.rest)
    assert int(other.flat.model[1].num_batches_tracked) == 0


def test_calibration_does_not_depend_on_what_was_there(network, validation, calibration):
    made = make_evaluator(network, validation=validation, calibration=calibration, batch_size=32)
    made.calibrate()
    first = made.flat.rest.clone()
    made.flat.rest[made.flat.statistics] = 17.0
    made.calibrate()
    assert torch.equal(made.flat.rest, first)


def test_shorter_last_calibration_batch_is_left_out(network, validation, calibration):
    images, labels = calibration
    full = make_evaluator(network, validation=validation, calibration=(images[:128], labels[:128]), batch_size=32)
    more = make_evaluator(network, validation=validation, calibration=(images[:141], labels[:141]), batch_size=32)
    full.calibrate()
    more.calibrate()
    assert torch.equal(full.flat.rest, more.flat.rest)


def test_only_batchnorm_trains_during_calibration(validation, calibration):
    seen = []

    class Spy(nn.Dropout):
        def forward(self, x):
            seen.append(self.training)
            return super().forward(x)

    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Spy(0.9), nn.Flatten(), nn.Linear(64, 3))
    made = make_evaluator(network, validation=validation, calibration=calibration)
    made.calibrate()
    assert seen and not any(seen)


def test_missing_calibration_warns_once_and_interpolates(network, validation):
    with pytest.warns(UserWarning, match="no calibration samples") as caught:
        made = make_evaluator(network, validation=validation)
    assert made.statistics == "interpolate" and len(caught) == 1


def test_no_warning_without_batchnorm(validation, recwarn):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3))
    made = make_evaluator(network, validation=validation)
    made.calibrate()
    assert not recwarn.list and made.forward_samples == 0


def batch_statistics(network, images, batch_size):
    """Each batch's statistics of the two BatchNorm layers, [batches, 28]."""
    network = copy.deepcopy(network).train()
    rows = []
    for batch in images.split(batch_size):
        for i in (1, 4):
            network[i].momentum = 1.0
        network(batch)
        rows.append(torch.cat([t for i in (1, 4) for t in (network[i].running_mean, network[i].running_var)]))
    return torch.stack(rows).double()


@pytest.mark.parametrize("tolerance", [0.3, 0.1, 0.05, 0.03])
def test_calibration_stops_when_the_standard_error_is_small(network, validation, tolerance):
    images, labels = make_images(2000, seed=5)
    made = make_evaluator(
        network, validation=validation, calibration=(images, labels), batch_size=20, tolerance=tolerance
    )
    made.calibrate()
    rows = batch_statistics(network, images, 20)
    for used in range(2, 101):
        mean = rows[:used].mean(0)
        error = rows[:used].std(0) / used**0.5
        variance = torch.cat((mean[6:12], mean[6:12], mean[20:28], mean[20:28]))
        scale = torch.cat((variance[:6].sqrt(), variance[6:12], variance[12:20].sqrt(), variance[20:]))
        if (error / scale).square().mean().sqrt() <= tolerance:
            break
    assert made.forward_samples == 20 * used < 2000
    wanted = torch.cat((mean[:12], mean[12:])).float()
    torch.testing.assert_close(made.flat.rest[made.flat.statistics], wanted, rtol=1e-4, atol=1e-5)


def test_calibration_that_never_settles_uses_all_samples(network, validation, calibration):
    made = make_evaluator(network, validation=validation, calibration=calibration, batch_size=32, tolerance=1e-9)
    made.calibrate()
    assert made.forward_samples == len(calibration[1]) // 32 * 32


def test_dead_channels_have_settled(network, validation, calibration):
    with torch.no_grad():
        network[0].weight[:5] = 0.0
    made = make_evaluator(network, validation=validation, calibration=calibration, batch_size=32, tolerance=0.2)
    made.calibrate()
    assert made.forward_samples < len(calibration[1]) // 32 * 32


def test_calibration_reads_no_more_than_it_needs(network, validation):
    read = []

    def loader():
        for seed in range(1000):
            read.append(seed)
            yield make_images(50, seed)

    made = make_evaluator(network, validation=validation, calibration=loader(), batch_size=25, tolerance=0.1)
    made.calibrate()
    assert 1 <= len(read) < 20
    statistics = made.flat.rest.clone()
    made.calibrate()
    assert torch.equal(made.flat.rest, statistics), "the second network saw other samples"


def test_backends_calibrate_alike(network, validation, calibration):
    options = {"validation": validation, "calibration": calibration, "batch_size": 50}
    statistics, used = [], []
    for wanted in ("torch", "sparse"):
        made = make_evaluator(network, backend=wanted, **options)
        made.calibrate()
        statistics.append(made.flat.rest)
        used.append(made.forward_samples)
    assert used[0] == used[1]
    torch.testing.assert_close(*statistics, rtol=1e-4, atol=1e-5)
