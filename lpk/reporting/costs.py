"""What networks of one model cost: their density layer by layer, bytes, multiply-adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lpk import sparse
from lpk.networks.states import tied
from lpk.networks.wrappers import plain_copy
from lpk.progress import Progress
from lpk.reporting import latency as timing
from lpk.schema import number, string, whole
from lpk.sparse.compact import sparse_content
from lpk.tickets import tensors
from lpk.tickets.pooled import Pooled
from lpk.tickets.ticket import Ticket

State = Mapping[str, Tensor]

# In results.json.
SECONDS = {"pytorch": number, "sparse": number}
DENSE = {
    "bytes": whole,
    "products?": whole,
    "latency?": {"batch": whole, "processor": string, "instruction_set": string, "threads": whole, "date": string},
    "problem?": string,
}
POOL = {"layers": {string: number}, "products?": whole}
TICKET = {
    **POOL,
    "bytes": whole,
    "latency?": {"one": SECONDS, "batch": SECONDS},
}


def layers(masks: State) -> dict[str, float]:
    """The density of each pruned tensor."""
    return {name: int(mask.count_nonzero()) / max(mask.numel(), 1) for name, mask in masks.items()}


def dense_bytes(state: State) -> int:
    """Of a plain safetensors file of a state dict; tied entries count once."""
    aliases = tied(state)
    return len(tensors.written({name: tensor for name, tensor in state.items() if name not in aliases}, {}))


def sparse_bytes(state: State, masks: State) -> int:
    """Of the file that lpk.sparse.save_sparse writes."""
    return len(sparse_content(state, masks))


class Products:
    """The multiply-adds of one model for one sample: of its convolutions, its matrix products and its attention.

    Args:
        model: is copied to the CPU, and called once in evaluation mode.
        sample: its argument, a batch of one sample.

    Attributes:
        of_weights: for each entry of the state dict that is multiplied with, how often all of its weights are, in sum.
        others: between activations, as in attention, and with what is computed from several weights.
    """

    def __init__(self, model: nn.Module, sample: Tensor) -> None:
        model = plain_copy(model).cpu().eval()
        state = model.state_dict(keep_vars=True)
        counter = _Counter({tensor.untyped_storage().data_ptr(): name for name, tensor in reversed(state.items())})
        with _composed(), torch.no_grad(), counter:
            model(sample.detach().cpu())
        self.others: int = counter.counts[None]
        self.of_weights: dict[str, int] = {name: n for name, n in counter.counts.items() if name is not None}

    @property
    def dense(self) -> int:
        """With every weight, zero or not."""
        return sum(self.of_weights.values()) + self.others

    def remaining(self, state: State) -> int:
        """With the weights that are not zero."""
        shares = {name: int(state[name].count_nonzero()) / state[name].numel() for name in self.of_weights}
        return round(sum(count * shares[name] for name, count in self.of_weights.items())) + self.others


class _Counter(TorchDispatchMode):
    """Counts the products of what PyTorch calls, by the entry of the state dict that is multiplied with, or None."""

    def __init__(self, names: Mapping[int, str]) -> None:
        """names: of the entries, by the address of their memory."""
        super().__init__()
        self.names = names
        self.counts: Counter[str | None] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        flops: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if flops is not None:
            read = [x.untyped_storage().data_ptr() for x in tree_leaves(args) if isinstance(x, Tensor) and x.dim() > 1]
            name = next((self.names[address] for address in read if address in self.names), None)
            self.counts[name] += flops(*args, **(kwargs or {}), out_val=out) // 2
        return out


@contextmanager
def _composed() -> Iterator[None]:
    """Attention as the matrix products that it is made of: the fused forms, which CPUs have, are not counted."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def add(
    results: dict[str, Any],
    model: nn.Module,
    tickets: Sequence[Ticket],
    pools: Mapping[str, Sequence[Pooled]],
    inputs: Tensor | None,
    *,
    latency: bool = True,
    progress: bool = True,
) -> None:
    """Writes into results what its networks cost: `costs` of the dense network, in every row, and in each of its pools.

    Args:
        inputs: a batch of the model's inputs, of which BATCH are used; None: neither products nor latencies are known.
        latency: whether it is measured. It is the tickets', as the bytes are: a pool has as many weights as its ticket.
    """
    state = tickets[0].state_dict
    about: dict[str, Any] = {"bytes": dense_bytes(state)}
    products = None
    if inputs is not None:
        inputs = inputs[: timing.BATCH].cpu()
        try:
            products = Products(model, inputs[:1])
            about["products"] = products.dense
        except Exception as error:  # whatever a stranger's forward raises on a CPU
            about["problem"] = f"on the CPU, the network fails: {_first_line(error)}"
    if latency and inputs is not None and products is not None:
        about["latency"] = timing.machine(len(inputs))
    by_round = {row["round"]: row for row in results["rows"]}
    with Progress("costs", len(tickets), show=progress) as bar:
        for ticket in tickets:
            bar.note(f"density {ticket.density:.1%}")
            row = by_round[ticket.round]
            row["costs"] = _of_network(ticket, products)
            row["costs"]["bytes"] = sparse_bytes(ticket.state_dict, ticket.masks)
            if "latency" in about and inputs is not None:
                try:
                    row["costs"]["latency"] = timing.measure(model, ticket.state_dict, inputs, budget=timing.BUDGET)
                except (sparse.NotSupported, TypeError) as error:
                    del about["latency"]
                    about["problem"] = f"lpk.sparsify does not take the network: {_first_line(error)}"
            bar.advance()
    for method, some in pools.items():
        for pooled in some:
            by_round[pooled.round]["pools"][method]["costs"] = _of_network(pooled, products)
    results["costs"] = about


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def fit(results: Mapping[str, Any]) -> bool:
    """Whether the costs in results are all there, or none: those of a row are as complete as the dense network's."""
    about, rows = results.get("costs", {}), results["rows"]
    layers = [row.get("costs", {}).get("layers", {}).keys() for row in rows]
    pools = [pool["costs"]["layers"].keys() for row in rows for pool in row["pools"].values() if "costs" in pool]
    known = [key for key in ("bytes", "products", "latency") if key in about]
    complete = all(key in row.get("costs", {}) for row in rows for key in known)
    return complete and all(names == layers[0] for names in layers + pools)


def _of_network(network: Ticket | Pooled, products: Products | None) -> dict[str, Any]:
    """The density of its layers and, where `products` are known, those that remain."""
    densities = {"layers": layers(network.masks)}
    return densities if products is None else {**densities, "products": products.remaining(network.state_dict)}
