import copy
import itertools
import re

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lpk.networks.flat import Layout
from lpk.pooling import samples
from lpk.pooling.evaluate import Evaluator, hypergeometric_tail
from tests.conftest import make_images, make_network, sizes_as_arguments


def make_evaluator(network, **options):
    layout = Layout.of_model(network)
    made = Evaluator(network, layout, **options)
    made.flat.load(layout.flatten(network.state_dict()))
    return made


def count(network, images, labels):
    with torch.no_grad():
        return int((network.eval()(images).argmax(1) == labels).sum())


@pytest.mark.parametrize("batch_size", [1, 7, 64, 203, 500])
def test_score_is_the_number_of_correct_predictions(network, validation, batch_size):
    score = make_evaluator(network, validation=validation, calibration=None, statistics="leave", batch_size=batch_size)
    assert score.score().value == count(network, *validation)


@pytest.mark.parametrize("batch_size", [7, 203])
def test_the_criterion_may_be_the_loss(network, validation, batch_size):
    made = make_evaluator(network, validation=validation, statistics="leave", batch_size=batch_size, criterion="loss")
    score = made.score()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(network.eval()(validation[0]).double(), validation[1], reduction="sum")
    assert score.value == pytest.approx(-float(loss) * 2**20, rel=1e-5)
    assert score.accuracy == count(network, *validation) / len(validation[1])
    made.hardest_first(score)
    assert made.score(-score.value) is not None and made.score(-score.value - 1000) is None


def test_score_from_a_loader(network, validation):
    loader = DataLoader(TensorDataset(*validation), batch_size=13)
    assert make_evaluator(network, validation=loader, statistics="leave").score().value == count(network, *validation)


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


@pytest.mark.parametrize(("own", "given", "expected"), [(1, None, 1), (7, None, 7), (300, None, 128), (7, 50, 50)])
def test_batches_are_no_larger_than_a_loaders_own(network, validation, calibration, own, given, expected):
    sizes = []
    network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    loaders = [DataLoader(TensorDataset(*s), batch_size=own) for s in (validation, calibration)]
    options = {"backend": "torch", "batch_size": given, "tolerance": 0}
    if own < 8 and given is None:
        with pytest.warns(UserWarning, match=f"calibration: batches of {own}, as the loader has them.*batch_size=128"):
            made = make_evaluator(network, validation=loaders[0], calibration=loaders[1], **options)
    else:
        made = make_evaluator(network, validation=loaders[0], calibration=loaders[1], **options)
    made.calibrate()
    assert set(sizes) == {expected} == {made.batch_size, made.calibration.batch_size}
    score, reference = made.score(), copy.deepcopy(network)
    assert max(sizes) == expected and score.value == count(made.flat.model, *validation)
    whole = len(calibration[1]) // expected * expected
    update_bn(calibration[0][:whole].split(expected), reference)
    torch.testing.assert_close(made.flat.model[1].running_var, reference[1].running_var)


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


def test_streamed_samples_give_the_same_answers(network, validation, calibration, monkeypatch):
    loaders = {
        "validation": DataLoader(TensorDataset(*validation), batch_size=13),
        "calibration": DataLoader(TensorDataset(*calibration), batch_size=20),
    }
    held = make_evaluator(network, **loaders, batch_size=32)
    monkeypatch.setattr(samples, "MEMORY_BUDGET", 1000)
    streamed = make_evaluator(network, **loaders, batch_size=32)
    assert streamed.validation.source is not None and held.validation.source is None
    for made in (held, streamed):
        made.calibrate()
    assert torch.equal(held.flat.rest, streamed.flat.rest)
    assert held.score().value == streamed.score().value


def test_too_many_errors_end_the_scoring(network, validation):
    made = make_evaluator(network, validation=validation, statistics="leave", batch_size=10)
    errors = made.total - made.score().value
    assert made.score(errors).value == made.total - errors
    before = made.forward_samples
    assert made.score(errors - 1) is None
    made.hardest_first(made.score())
    before = made.forward_samples
    assert made.score(errors // 2) is None
    assert made.forward_samples - before <= errors // 2 + 20, "the errors were not asked first"


def test_order_of_samples_does_not_change_the_count(network, validation):
    made = make_evaluator(network, validation=validation, statistics="leave", batch_size=16)
    first = made.score()
    made.hardest_first(first)
    again = made.score()
    assert again.value == first.value
    assert torch.equal(again.margins, first.margins.sort(stable=True).values)


class Mixing(nn.Module):
    """Its predictions depend on what else is in a batch."""

    def __init__(self, mix):
        super().__init__()
        self.first, self.last, self.mix = nn.Linear(36, 8), nn.Linear(8, 3), mix

    def forward(self, x):
        return self.last(self.mix(self.first(x.flatten(1)).relu()))


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: nn.functional.batch_norm(x, None, None, training=True),
        lambda x: x.cumsum(0),
        lambda x: (x.flip(0) * 9).softmax(0),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "sparse"])
@pytest.mark.parametrize("criterion", ["accuracy", "loss"])
def test_samples_that_depend_on_each_other_keep_their_batches(validation, mix, backend, criterion):
    torch.manual_seed(0)
    network = Mixing(mix).eval()
    options = {"statistics": "leave", "batch_size": 40, "criterion": criterion}
    made = make_evaluator(network, validation=validation, backend=backend, **options)
    batches = list(zip(*(part.split(40) for part in validation), strict=True))
    expected = sum(count(network, *batch) for batch in batches) / made.total
    first = made.score()
    assert first.accuracy == expected and made.forward_samples == made.total
    made.hardest_first(first)
    made.draw_heat(20, 0.05)
    assert made.score().accuracy == expected and torch.equal(made.score().margins, first.margins)
    assert torch.equal(made.predict()[1], validation[1])


def test_missing_calibration_warns_once_and_interpolates(network, validation):
    with pytest.warns(UserWarning, match="no calibration samples") as caught:
        made = make_evaluator(network, validation=validation)
    assert made.statistics == "interpolate" and len(caught) == 1


def test_no_warning_without_batchnorm(validation, recwarn):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3))
    made = make_evaluator(network, validation=validation)
    made.calibrate()
    assert not recwarn.list and made.forward_samples == 0


def test_bad_samples_are_named(network, validation):
    images, labels = validation
    with pytest.raises(ValueError, match="validation has no samples"):
        make_evaluator(network, validation=(images[:0], labels[:0]), statistics="leave")
    with pytest.raises(ValueError, match="calibration has no samples"):
        make_evaluator(network, validation=validation, calibration=[])
    with pytest.raises(ValueError, match="one integer label for each input"):
        make_evaluator(network, validation=(images, labels[:-1]), statistics="leave")
    with pytest.raises(ValueError, match="yields dict"):
        make_evaluator(network, validation=[{"x": images}], statistics="leave")
    with pytest.raises(ValueError, match="either"):
        make_evaluator(network)
    with pytest.raises(ValueError, match="statistics is 'keep'"):
        make_evaluator(network, validation=validation, statistics="keep")
    with pytest.raises(ValueError, match="batch_size is 0"):
        make_evaluator(network, validation=validation, statistics="leave", batch_size=0)
    with pytest.raises(ValueError, match="logits"):
        make_evaluator(nn.Sequential(*network[:4]), validation=validation, statistics="leave").score()


def test_images_of_any_count_fit_one_batch_size(network):
    images, labels = make_images(5, seed=9)
    made = make_evaluator(network, validation=(images, labels), statistics="leave", batch_size=64)
    assert made.score().value == count(network, images, labels)
    assert made.validated == made.batch_size == 5, "no larger than there are samples"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("criterion", ["accuracy", "loss"])
def test_labels_of_any_integer_dtype(network, validation, dtype, criterion):
    images, labels = validation
    options = {"statistics": "leave", "criterion": criterion}
    expected = make_evaluator(network, validation=validation, **options).score()
    assert make_evaluator(network, validation=(images, labels.to(dtype)), **options).score().value == expected.value


def test_labels_that_no_logit_is_for(network, validation):
    images, labels = validation
    wrong = labels.clone()
    wrong[5] = 99
    made = make_evaluator(network, validation=(images, wrong), statistics="leave")
    with pytest.raises(ValueError, match="the label 99, but the model returned 3 logits"):
        made.score()
    wrong[5] = -100
    with pytest.raises(ValueError, match="the label -100; labels count from 0"):
        make_evaluator(network, validation=(images, wrong), statistics="leave")


@pytest.mark.parametrize("name", ["validation", "calibration"])
def test_inputs_that_are_no_samples(network, validation, calibration, name):
    images, labels = validation
    given = {"validation": validation, "calibration": calibration}
    for value in (float("nan"), float("inf")):
        bad = images.clone()
        bad[7, 0, 0, 0] = value
        with pytest.raises(ValueError, match=f"{name}: inputs hold nan or inf"):
            make_evaluator(network, **(given | {name: (bad, labels)}))
    narrow = [(images[:8], labels[:8]), (images[:8, :, :, :-1], labels[:8])]
    with pytest.raises(ValueError, match=f"{name}: inputs .* after samples of shape"):
        made = make_evaluator(network, **(given | {name: narrow}), batch_size=8)
        list(made.calibration.batches())


def test_calibration_needs_no_labels(network, validation, calibration):
    images, labels = calibration
    batches = list(zip(images.split(20), labels.split(20), strict=True))
    expected = make_evaluator(network, validation=validation, calibration=calibration, batch_size=32, tolerance=0)
    expected.calibrate()
    forms = {
        "inputs": images,
        "batches of inputs": images.split(20),
        "real targets": (images, labels.double()),
        "one-hot": (images, nn.functional.one_hot(labels)),
        "more than two": [(x, y, y) for x, y in batches],
        "inputs in lists": [[x] for x, _ in batches],
    }
    for name, form in forms.items():
        form = [(x,) for x in form] if name == "batches of inputs" else form
        made = make_evaluator(network, validation=validation, calibration=form, batch_size=32, tolerance=0)
        made.calibrate()
        assert torch.equal(made.flat.rest, expected.flat.rest), name
    with pytest.raises(ValueError, match="calibration yields dict; inputs are needed"):
        make_evaluator(network, validation=validation, calibration=[{"x": images}])


def test_evaluate_may_leave_the_model_in_training_mode(network, validation, calibration):
    """Many a helper ends with model.train(); calibration with dropout on would be another network's."""
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def evaluate(model):
        assert not any(module.training for module in model.modules())
        model.train()
        return 0.5

    made = make_evaluator(network, evaluate=evaluate, calibration=calibration)
    for _ in range(2):
        made.score()
        assert not any(module.training for module in made.flat.model.modules())
        made.calibrate()


class Twofold(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x), x


def test_a_model_that_returns_more_than_logits(network, validation, calibration):
    made = make_evaluator(Twofold(network), validation=validation, calibration=calibration)
    made.calibrate()
    with pytest.raises(ValueError, match="the model returned tuple; logits"):
        made.score()


# --- calibration that stops -------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("bad", [{"tolerance": -0.1}, {"tolerance": float("nan")}, {"autocast": torch.int8}])
def test_bad_options_are_named(network, validation, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        make_evaluator(network, validation=validation, statistics="leave", **bad)


def test_autocast_computes_in_the_dtype_asked_for(network, validation):
    seen = []
    network[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    made = make_evaluator(network, validation=validation, statistics="leave", autocast=torch.bfloat16)
    assert abs(made.score().value - count(network, *validation)) <= 4
    assert torch.bfloat16 in seen


# --- races ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("population", "marked", "drawn"), [(20, 7, 5), (30, 30, 4), (12, 3, 12), (9, 0, 4)])
def test_hypergeometric_tail_counts_the_draws(population, marked, drawn):
    draws = [sum(draw) for draw in itertools.combinations([1] * marked + [0] * (population - marked), drawn)]
    for least in range(drawn + 2):
        expected = sum(found >= least for found in draws) / len(draws)
        assert hypergeometric_tail(least, population, marked, drawn) == pytest.approx(expected)


def test_a_race_rarely_drops_a_network_that_makes_no_more_errors_than_allowed(validation):
    """The networks' errors are as many as allowed and all among the hardest samples: the worst case."""
    layout = Layout.of_model(network := nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.Linear(4, 3)))
    images, labels = validation
    made = Evaluator(network, layout, validation=(images, labels), batch_size=20)
    allowed, error, dropped, draws = 40, 0.1, 0, 2000
    made._margins = torch.linspace(-1, 1, len(labels))
    wrong = torch.arange(len(labels)) < 2 * allowed
    wrong[torch.randperm(2 * allowed, generator=torch.Generator().manual_seed(1))[:allowed]] = False
    for _ in range(draws):
        kept = torch.argsort(made._margins)
        made.draw_heat(allowed, error)
        rank = torch.argsort(torch.argsort(made._margins))  # of the sample that stands at each place
        assert sorted(rank.tolist()) == list(range(len(kept))) and int(rank[:20].max()) < 2 * allowed
        dropped += made._loses(int(wrong[rank[:20]].sum()), allowed)
    assert 0 < dropped / draws <= error + 3 * (error * (1 - error) / draws) ** 0.5


def test_a_heat_drops_a_network_that_gets_everything_wrong(network, validation):
    made = make_evaluator(network, validation=validation, statistics="leave", batch_size=20)
    made.hardest_first(made.score())
    made.draw_heat(40, 0.05)
    made.flat.weights.zero_()
    made.flat.rest.zero_()
    made.flat.model[8].bias[0] = 1.0  # always the same class
    before = made.validated
    assert made.score(40) is None and made.validated == before + 20


# --- backends ---------------------------------------------------------------------------------------------------------


class Sigmoid(nn.Module):
    """A network with an operation that the engine doesn't have."""

    def __init__(self):
        super().__init__()
        self.body = make_network()

    def forward(self, x):
        return self.body(torch.sigmoid(x))


class Viewed(Sigmoid):
    """A network that asks for sizes, as CIFAR's networks do before their last layer."""

    def forward(self, x):
        for layer in list(self.body)[:6]:
            x = layer(x)
        x = nn.functional.avg_pool2d(x, x.size(3))
        return self.body[8](x.view(x.size(0), -1))


def hooked():
    network = make_network()
    network.register_forward_hook(lambda module, inputs, output: 0.99 * output)
    return network


class Untraceable(Sigmoid):
    def forward(self, x):
        return self.body(x if x.sum() > 0 else -x)


@pytest.mark.parametrize(
    ("wanted", "kind", "expected"),
    [
        ("auto", make_network, "sparse"),
        ("sparse", make_network, "sparse"),
        ("torch", make_network, "torch"),
        pytest.param("auto", Viewed, "sparse", marks=sizes_as_arguments),
        ("auto", Sigmoid, "torch"),
        ("sparse", Sigmoid, "sparse"),
        ("auto", Untraceable, "torch"),
        ("auto", hooked, "torch"),
        ("auto", lambda: make_network().bfloat16(), "torch"),
    ],
)
def test_backend(validation, calibration, wanted, kind, expected):
    network = kind()
    made = make_evaluator(network, validation=validation, calibration=calibration, batch_size=50, backend=wanted)
    made.calibrate()
    calibrated = copy.deepcopy(made.flat.model)
    assert made.backend == expected
    assert abs(made.score().value - count(calibrated.float(), *validation)) <= (4 if kind is not make_network else 0)


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


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        (Untraceable, {}, "Untraceable can't be traced"),
        (hooked, {}, "Sequential has the forward hook hooked.<locals>.<lambda>"),
        (make_network, {"autocast": torch.bfloat16}, "it has no autocast"),
        (lambda: make_network().half(), {}, "0.weight is torch.float16"),
    ],
)
def test_an_impossible_backend_is_an_error(validation, kind, options, reason):
    made = make_evaluator(kind(), validation=validation, statistics="leave", backend="sparse", **options)
    with pytest.raises(ValueError, match=f"backend is 'sparse', which is not possible here: .*{re.escape(reason)}"):
        made.score()
