import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.pooling.evaluators import count, make_evaluator


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
