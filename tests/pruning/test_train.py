import pytest
import torch

from lpk.pruning.recipe import Recipe, stream
from tests.conftest import make_network
from tests.pruning.training import make_trainer


def test_schedule_is_the_papers():
    recipe = Recipe(epochs=182, lr=0.1, milestones=(91, 136))
    assert [recipe.lr_at(e, 0.5) for e in (0, 90, 91, 135, 136, 181)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )
    imagenet = Recipe(epochs=90, lr=0.4, milestones=(30, 60, 80), warmup=5)
    assert imagenet.lr_at(0, 0.5) == pytest.approx(0.04)
    assert imagenet.lr_at(4, 1.0) == pytest.approx(0.4)
    assert imagenet.lr_at(80, 0.0) == pytest.approx(0.0004)


def test_training_in_legs_equals_training_in_one():
    networks = []
    for legs in ([(0, 3)], [(0, 1), (1, 2), (2, 3)]):
        network, trainer = make_network(), make_trainer()
        for start, stop in legs:
            trainer(network, start, stop)
        networks.append(network)
    for a, b in zip(networks[0].state_dict().values(), networks[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_momentum_starts_empty_in_a_new_round():
    trainer = make_trainer()
    trainer(make_network(), 0, 1)
    assert trainer.state_dict()
    trainer.start_round(1)
    assert not trainer.state_dict()


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_training_is_sgd_with_momentum_and_weight_decay(autocast):
    """Two steps by hand."""
    trainer = make_trainer(batch_size=96, lr=0.1, momentum=0.9, weight_decay=0.01, autocast=autocast)
    ours, theirs = make_network(), make_network()
    trainer(ours, 0, 2)
    velocity = [torch.zeros_like(p) for p in theirs.parameters()]
    theirs.train()
    for epoch in range(2):
        (x, y), = trainer.train.loader(96, seed=stream(3, "samples", 0, epoch))  # fmt: skip
        theirs.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None):
            loss = torch.nn.functional.cross_entropy(theirs(x), y)
        loss.backward()
        with torch.no_grad():
            for p, v in zip(theirs.parameters(), velocity, strict=True):
                v.mul_(0.9).add_(p.grad + 0.01 * p)
                p.sub_(0.1 * v)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_autocast_computes_in_bfloat16_and_trains_float32():
    networks, seen = [make_network(), make_network()], []
    for network, autocast in zip(networks, (None, "bfloat16"), strict=True):
        network[-1].register_forward_hook(lambda layer, inputs, logits: seen.append(logits.dtype))
        trainer = make_trainer(autocast=autocast)
        trainer(network, 0, 1)
        kept = [*network.state_dict().values(), *trainer.state_dict().values()]
        assert {tensor.dtype for tensor in kept if tensor.is_floating_point()} == {torch.float32}
    assert seen == [torch.float32] * 3 + [torch.bfloat16] * 3
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=0, atol=0.01)


@pytest.mark.parametrize("bad", ["float16", "float32", "", torch.bfloat16, True])
def test_what_a_recipe_cannot_compute_in(bad):
    with pytest.raises(ValueError, match=f"autocast is {bad!r}; 'bfloat16' is possible, or to leave it out"):
        Recipe(epochs=1, autocast=bad)


def test_streams_differ():
    seeds = {stream(s, "samples", r, e) for s in range(3) for r in range(3) for e in range(3)}
    assert len(seeds) == 27 and all(0 <= s < 2**63 for s in seeds)
