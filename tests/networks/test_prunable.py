"""What is pruned: under the names of wrappers, and which linear layers are spared."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import lpk
from lpk.networks.flat import Layout
from lpk.networks.prunable import convolutions, prunable_names
from lpk.progress import Progress
from tests.pruning.perceptron import OPTIMIZERS, OPTIONS, X, trains
from tests.same import same

sgd = trains(OPTIMIZERS["sgd"])


# --- names ------------------------------------------------------------------------------------------------------------


class Renaming(nn.Module):
    """Calls what it wraps otherwise in its state dict, and detaches it there, as a user's own wrapper may."""

    def __init__(self, wrapped):
        super().__init__()
        self.inside = wrapped
        self.register_state_dict_post_hook(self.rename)
        self.register_load_state_dict_pre_hook(self.undo)

    @staticmethod
    def rename(module, state, prefix, metadata):
        for name in [n for n in state if n.startswith(f"{prefix}inside.")]:
            state[name.replace(f"{prefix}inside.", f"{prefix}outside_", 1)] = state.pop(name).detach()

    @staticmethod
    def undo(module, state, prefix, *_):
        for name in [n for n in state if n.startswith(f"{prefix}outside_")]:
            state[name.replace(f"{prefix}outside_", f"{prefix}inside.", 1)] = state.pop(name)

    def forward(self, x):
        return self.inside(x)


def deeper():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))


def wrapped(wrap):
    model = deeper()
    model[2] = wrap(model[2])
    return model


WRAPPERS = {
    "checkpoint": (checkpoint_wrapper, "2.weight", "2._checkpoint_wrapped_module.weight"),
    "renaming": (Renaming, "2.outside_weight", "2.inside.weight"),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_layer_whose_wrapper_renames_it_is_pruned(kind):
    wrap, name, inner = WRAPPERS[kind]
    model = wrapped(wrap)
    assert name in model.state_dict() and inner in dict(model.named_parameters())
    seen = []
    for prunable in (None, [name, "0.weight"], ["0.weight", inner], lambda n, p: seen.append(n) or p.dim() > 1):
        names = prunable_names(model, prunable)
        assert names == ["0.weight", name, *(["4.weight"] if callable(prunable) else [])]
    assert name in seen and inner not in seen
    with pytest.raises(ValueError, match=r"'2\.weights' is to be pruned, but the model has no such parameter"):
        prunable_names(model, ["2.weights"])
    expected = lpk.imp(deeper(), sgd, **OPTIONS)
    tickets = lpk.imp(model, sgd, **OPTIONS)
    for ticket, plain in zip(tickets, expected, strict=True):
        assert torch.equal(ticket.mask, plain.mask) and torch.equal(ticket.flat.weights, plain.flat.weights)
    pooled = lpk.pool(tickets, 2, model=model, evaluate=lambda m: -float(m(X).square().sum()), progress=False)
    pooled.to_prune(model)
    network = deeper()
    network.load_state_dict(dict(zip(network.state_dict(), pooled.state_dict.values(), strict=True)))
    assert torch.equal(model(X), network(X))
    inside = model.get_submodule(inner.rpartition(".")[0])
    assert torch.equal(inside.weight_mask.bool(), pooled.masks[name])


def test_a_whole_network_in_a_wrapper():
    model = checkpoint_wrapper(deeper())
    assert prunable_names(model) == ["0.weight", "2.weight"] and convolutions(model) == []
    expected = lpk.imp(deeper(), sgd, **OPTIONS)
    assert same(lpk.imp(model, lambda m, a, b: sgd(m._checkpoint_wrapped_module, a, b), **OPTIONS), expected)


def test_a_parameter_that_the_state_dict_lacks_does_not_drop_out_unnoticed():
    model = deeper()
    model[2].register_state_dict_post_hook(lambda module, state, prefix, _: state.__delitem__(f"{prefix}weight"))
    for prunable in (None, ["2.weight"], lambda name, p: p.dim() > 1):
        with pytest.raises(
            ValueError, match=r"'2\.weight' is to be pruned, but the model's state_dict\(\) does not hold"
        ):
            prunable_names(model, prunable)
    assert prunable_names(model, ["0.weight"]) == ["0.weight"]


# --- the default ------------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """Linear layers `a`, `b`, `c` in this order, and a forward of them."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.zeros(8))
        self.norm = nn.LayerNorm(8)
        self.compute = forward

    def forward(self, x):
        return self.compute(self, x)


@pytest.mark.parametrize(
    ("forward", "spared"),
    [
        (lambda m, x: m.a(m.b(m.c(x).relu()).relu()), "a"),
        (lambda m, x: m.c(m.b(m.a(x).relu()).relu()), "c"),
        (lambda m, x: (m.a(h := m.c(x).relu()), m.b(h)), "ab"),
        (lambda m, x: {"value": m.a(h := m.c(x).relu()).squeeze(-1), "policy": [m.b(h).softmax(-1)]}, "ab"),
        (lambda m, x: nn.functional.log_softmax(m.a(m.c(x)).view(x.shape[0], -1) / 2 + m.bias, 1), "a"),
        (lambda m, x: m.a(m.c(x)).flatten(1)[:, None].sigmoid(), "a"),
        (lambda m, x: (m.a(m.c(x)) + m.b(m.c(x))) / 2, "ab"),
        (lambda m, x: torch.cat((m.a(m.c(x)), x), 1), "a"),
        (lambda m, x: nn.functional.linear(m.c(x), m.b.weight, m.b.bias), "b"),
        (lambda m, x: m.norm(m.a(m.b(x))), "c"),  # no output of a linear layer: the last one
        (lambda m, x: x + m.a(m.b(x)), "c"),
        (lambda m, x: m.a(m.b(x)) if x.sum() > 0 else x, "c"),  # not to be traced
    ],
)
def test_the_linear_layers_whose_outputs_are_returned_are_spared(forward, spared):
    assert prunable_names(Heads(forward)) == [f"{name}.weight" for name in "abc" if name not in spared]


class Attentive(nn.Module):
    """Attention of one width, and of three."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.cross = nn.MultiheadAttention(8, 2, kdim=5, vdim=6, add_bias_kv=True, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.encoder(x)
        return self.head((x + self.cross(x, x[:, :3, :5], x[:, :3, :6])[0]).mean(1))


TOKENS = torch.randn(32, 6, 8, generator=torch.Generator().manual_seed(0))


def train_tokens(model, start, stop):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.train()
    for _ in range(start, stop):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(TOKENS), TOKENS.mean(1)[:, :3].argmax(1)).backward()
        optimizer.step()
    model.eval()


def test_attention_is_pruned():
    names = prunable_names(Attentive())
    block = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    cross = ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]
    blocks = [f"encoder.layers.{i}.{name}" for i in range(2) for name in block]
    assert names == [*blocks, *(f"cross.{name}" for name in cross)]
    model = Attentive()
    nn.utils.prune.identity(model.cross, "k_proj_weight")
    with pytest.raises(ValueError, match=r"'cross\.k_proj_weight' is computed .*torch\.nn\.utils\.prune\.remove"):
        prunable_names(model)


def test_attention_from_imp_to_sparsify(tmp_path):
    """Tickets, their file, a pool, torch.nn.utils.prune's buffers, other people's state dicts, and the engine."""
    model = Attentive()
    tickets = lpk.imp(model, train_tokens, epochs=2, rounds=3, rewind=1, density=0.3, store=tmp_path, progress=False)
    assert all(0.0 < mask.float().mean() < 1.0 for mask in tickets[3].masks.values())
    assert same(lpk.Tickets.load(tmp_path), tickets)
    pooled = lpk.pool(tmp_path, 3, model=model, evaluate=lambda m: -float(m(TOKENS).square().sum()), progress=False)
    model.load_state_dict(pooled.state_dict)
    with torch.no_grad():
        expected = model.eval()(TOKENS)
    torch.testing.assert_close(lpk.sparsify(model, pooled)(TOKENS), expected, rtol=1e-4, atol=1e-5)
    pooled.to_prune(model)
    assert torch.equal(model.cross.v_proj_weight_mask.bool(), pooled.masks["cross.v_proj_weight"])
    torch.testing.assert_close(lpk.sparsify(model)(TOKENS), expected, rtol=1e-4, atol=1e-5)
    (read,) = lpk.Tickets.from_state_dicts([model.state_dict()])
    assert torch.equal(read.mask, pooled.mask) and read.layout.prunable == tickets.layout.prunable


def test_a_run_of_before_attention_was_pruned_goes_on(tmp_path):
    """Its layout says what it prunes."""
    options = {"epochs": 2, "rewind": 1, "seed": 0, "progress": False}
    before = [name for name in prunable_names(Attentive()) if "proj_weight" not in name]
    first = lpk.imp(Attentive(), train_tokens, rounds=1, prunable=before, store=tmp_path, **options)
    with pytest.raises(ValueError, match=r"another `prunable`: 'cross\.k_proj_weight' is not pruned there"):
        lpk.imp(Attentive(), train_tokens, rounds=2, store=tmp_path, **options)
    loaded = lpk.Tickets.load(tmp_path)
    assert same(loaded, first)
    lpk.sparsify(Attentive(), loaded[1])
    own = loaded.layout.prunable
    assert same(lpk.imp(Attentive(), train_tokens, rounds=2, prunable=own, store=tmp_path, **options)[:2], first)


class Language(nn.Module):
    def __init__(self, words):
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(words, 8), nn.Linear(8, 8), nn.Linear(8, words)

    def forward(self, x):
        return self.head(self.body(self.words(x)).relu())


def test_matrices_that_are_many_of_the_parameters_are_told(caplog):
    def told(model, **options):
        caplog.clear()
        with pytest.warns(UserWarning, match="train changed no parameter"):
            lpk.imp(model, lambda *_: None, epochs=1, rounds=0, progress=False, **options)
        assert all(record.name.startswith("lpk.") for record in caplog.records)
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    (text,) = told(Language(50))  # 400 of 922 each, beside the head's 50 and the body's 8 biases
    assert text.startswith("not pruned are 87% of the parameters: words.weight (43%), head.weight (43%); ")
    assert "pass `prunable`" in text
    assert not told(Language(50), prunable=["body.weight"]), "who chooses knows"
    assert not told(deeper())
    frozen = Language(50)
    frozen.words.requires_grad_(False)
    frozen.head.weight.requires_grad_(False)
    assert not told(frozen), "what isn't trained can't be pruned"
    tied = Language(50)
    tied.head.weight = tied.words.weight
    (text,) = told(tied)
    assert "77% of the parameters: words.weight (77%);" in text


def test_finding_them_leaves_no_trace():
    calls = []

    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = nn.Linear(8, 3), nn.Linear(8, 8)
            self.register_buffer("calls", torch.zeros(1))
            self.kept = []

        def forward(self, x):
            calls.append(1)
            self.calls += 1
            self.kept.append(self.calls)
            self.last = x
            return self.head(self.body(x) + torch.rand(1)).softmax(1)

    model = Counts()
    before = dict(vars(model))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    layout = Layout.of_model(model)
    assert calls and layout.prunable == ("body.weight",) and layout.spared == ("head.weight",)
    assert torch.equal(torch.rand(3), expected)
    assert vars(model) == before and not model.kept and not model.calls and model.training


def test_layers_registered_behind_the_classifier_are_pruned(monkeypatch):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.classifier, self.first, self.second = nn.Linear(12, 3), nn.Linear(8, 12), nn.Linear(12, 12)

        def forward(self, x):
            return self.classifier(self.second(self.first(x).relu()).relu())

    def train(model, start, stop):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(start, stop):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), X[:, :3].argmax(1)).backward()
            optimizer.step()

    notes = []
    monkeypatch.setattr(Progress, "note", lambda self, text: notes.append(text))
    tickets = lpk.imp(Network(), train, **OPTIONS)
    assert notes[0] == "round 0: 100.0% of the weights, 2 layers (spared: classifier.weight)"
    assert notes[1] == "round 1: 80.0% of the weights, 2 layers (spared: classifier.weight), rewound to epoch 1"
    assert tickets.layout.prunable == ("first.weight", "second.weight")
