"""What lpk.sparsify takes: models, tickets, files."""

import pytest
import torch

import lpk
from lpk import sparse
from lpk.tickets import files
from tests.conftest import make_network
from tests.sparse.networks import pruned


def test_a_ticket_a_pooled_network_and_a_state_dict(tickets, network, validation, tmp_path):
    images, _ = validation
    pooled = lpk.pool(tickets, 3, model=network, validation=validation, statistics="leave", progress=False)
    for ticket in (tickets[3], tickets[3].state_dict, pooled):
        network.load_state_dict(getattr(ticket, "state_dict", ticket))
        with torch.no_grad():
            expected = network.eval()(images)
        torch.testing.assert_close(lpk.sparsify(make_network(), ticket)(images), expected, rtol=1e-4, atol=1e-5)
    pooled.save(tmp_path / "pooled.safetensors")
    for path in (tmp_path / "pooled.safetensors", str(tmp_path / "pooled.safetensors")):
        torch.testing.assert_close(lpk.sparsify(make_network(1), path)(images), expected, rtol=1e-4, atol=1e-5)


def test_the_model_is_copied(network):
    made = lpk.sparsify(network)
    before = made(torch.ones(1, 1, 6, 6))
    network[0].weight.data.zero_()
    assert torch.equal(made(torch.ones(1, 1, 6, 6)), before)


def test_saved_and_read_again(tickets, network, validation, tmp_path):
    images, _ = validation
    ticket = tickets[3]
    mask = ticket.mask.clone()
    mask[0] = True  # with a weight that remains although it is zero
    ticket = type(ticket)(3, ticket.layout, ticket.flat, mask)
    made = lpk.sparsify(network, ticket)
    made.save(tmp_path / "before")
    expected = made(images)
    made.save(str(tmp_path / "after"))
    assert torch.equal(made(images), expected)
    for path in (tmp_path / "before", str(tmp_path / "after")):
        state, masks = sparse.load_sparse(path)
        assert list(state) == list(ticket.state_dict) and list(masks) == list(ticket.masks)
        assert all(torch.equal(state[name], tensor) for name, tensor in ticket.state_dict.items())
        assert all(torch.equal(masks[name], tensor) for name, tensor in ticket.masks.items())
        assert torch.equal(lpk.sparsify(make_network(1), path)(images), expected)


def test_a_model_of_its_own_is_saved_with_the_zeros_it_has(tmp_path):
    network = pruned(make_network(), 0.3)
    sparse.sparsify(network).save(tmp_path / "net")
    state, masks = sparse.load_sparse(tmp_path / "net")
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    assert sum(int(mask.sum()) for mask in masks.values()) == sum(
        int(network[i].weight.count_nonzero()) for i in (0, 3)
    )


def test_bad_input_is_named(network, tmp_path):
    made = lpk.sparsify(network)
    with pytest.raises(RuntimeError, match="require a gradient"):
        made(torch.ones(1, 1, 6, 6, requires_grad=True))
    with pytest.raises(TypeError, match="float64 on cpu"):
        made(torch.ones(1, 1, 6, 6, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"0\.weight is torch\.float16"):
        lpk.sparsify(network.half())
    with pytest.raises(TypeError, match="of type ndarray"):
        made(torch.ones(1, 1, 6, 6).numpy())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        lpk.sparsify(make_network(), "nowhere")
    with pytest.raises(files.FileDamaged, match="is a directory"):
        lpk.sparsify(make_network(), tmp_path)
    with pytest.raises(ValueError, match="fallback is 'none'"):
        lpk.sparsify(make_network(), fallback="none")
    with pytest.raises(ValueError, match="can't be traced"):
        made(torch.ones(1, 2, 6, 6))
