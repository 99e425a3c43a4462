import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from lpk.pooling import samples
from tests.conftest import make_images
from tests.pooling.evaluators import count, make_evaluator


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
