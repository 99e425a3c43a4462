"""What bench.sparse runs, compares and shows. Nothing is timed here but by stand-ins."""

import dataclasses
import sys
import textwrap

import pytest
import torch

import bench.table
from bench import memory, networks, sparse, sparse_peers, sparse_subjects
from lpk import presets
from lpk.data import sets as data
from lpk.run import Run
from lpk.sparse import NotSupported
from lpk.tickets import files
from tests.bench.command import MACHINE, command

WEIGHTS = 4  # bytes


SMALL = networks.described("small-resnet", None)


def network(masks="random", density=0.1):
    (subject,) = sparse_subjects.pruned(SMALL, masks, *sparse_subjects.untrained(SMALL), [density])
    return subject


def row(density=0.05, batch=128, **times):
    lpk_time = times["lpk"]
    return {
        "network": "resnet18",
        "shape": [3, 32, 32],
        "masks": "magnitude",
        "density": density,
        "batch": batch,
        "date": "2026-01-02",
        "contestants": {
            name: {"milliseconds": time, "iqr": 0.1, "to_lpk": time / lpk_time, "difference": 2e-6}
            for name, time in times.items()
        },
        "memory": {
            name: {"weights": 50.0, "peak": 400.0 + i, "imports": 333.0} for i, name in enumerate(["lpk", "eager"])
        },
    }


MEASURED = {
    "benchmark": "sparse",
    "machine": MACHINE,
    "rows": [
        row(lpk=100.0, eager=400.0, folded=350.0, onnxruntime=250.0, deepsparse=1200.0),
        row(density=0.018, lpk=50.0, eager=400.0, folded=350.0),
        row(batch=1, lpk=5.0, eager=7.0),
    ],
}


# --- what is run ---


@pytest.mark.parametrize("masks", ["magnitude", "random", "uniform"])
def test_pruned_networks_have_the_density_and_are_alive(masks):
    model, images = sparse_subjects.untrained(SMALL)
    images = images[:64]
    for subject in list(sparse_subjects.pruned(SMALL, masks, model, images, [1.0, 0.1])):
        convolutions = [m for m in subject.model.modules() if isinstance(m, torch.nn.Conv2d)]
        left = [int(layer.weight.count_nonzero()) for layer in convolutions]
        sizes = [layer.weight.numel() for layer in convolutions]
        if masks == "uniform":
            assert left == [sizes[0], *(round(subject.density * size) for size in sizes[1:])]
        else:
            assert sum(left) == round(subject.density * sum(sizes))
        if masks == "random" and subject.density < 1:
            assert all(abs(a / b - 0.1) < 0.06 for a, b in zip(left, sizes, strict=True))
        batchnorm = next(m for m in subject.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
        entering = convolutions[0](images)
        torch.testing.assert_close(batchnorm.running_mean, entering.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
        assert subject.model(images).std(0).min() > 1e-3  # other images, other outputs


def test_uniform_masks_keep_each_layers_largest_weights_and_its_length():
    model, images = sparse_subjects.untrained(SMALL)
    (subject,) = sparse_subjects.pruned(SMALL, "uniform", model, images, [0.1])
    whole, left = (m.layer2[0].conv1.weight.flatten() for m in (model, subject.model))
    kept = left != 0
    assert whole[kept].abs().min() > whole[~kept].abs().max()
    torch.testing.assert_close(left.norm(), whole.norm())


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.scale = torch.nn.Parameter(1e-5 * torch.ones(8))
        self.norm, self.head = torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)

    def forward(self, x):
        x = x + self.scale * self.attention(x, x, x, need_weights=False)[0]
        return {"logits": self.head(self.norm(x).mean(1)), "tokens": x}


def test_attention_is_pruned_inside_and_no_branch_is_next_to_nothing():
    model = Attention().eval().requires_grad_(False)
    networks.enliven(model)
    assert model.scale.min() >= 0.5 and model.norm.bias.std() > 0.01
    assert networks.first_convolution(model) is None
    sparse_subjects.prune_layers(model, 0.25)
    assert (
        model.attention.in_proj_weight.count_nonzero() == 48 and model.attention.out_proj.weight.count_nonzero() == 16
    )
    assert model.head.weight.count_nonzero() == 24  # not pruned
    output = model(torch.randn(2, 5, 8))
    assert (
        networks.first_tensor(output) is output["logits"] and networks.first_tensor((1, [output])) is output["logits"]
    )
    with pytest.raises(TypeError, match="without a tensor"):
        networks.first_tensor((1, None))


def test_dead_networks_are_errors_and_constant_channels_no_noise():
    model, images = sparse_subjects.untrained(SMALL)
    convolution, batchnorm = model.conv1, model.bn1
    convolution.weight[:4] = 0
    networks.renew(model, images)
    assert (batchnorm.running_var[:4] == 0).all()
    before = batchnorm.running_var.clone()
    networks.soothe(model)
    assert (batchnorm.running_var[:4] > 0.5 * before.mean()).all() and torch.equal(
        batchnorm.running_var[4:], before[4:]
    )
    networks.check_alive(model, images)
    model.fc.weight.zero_()
    with pytest.raises(RuntimeError, match="the same for all inputs"):
        networks.check_alive(model, images)


@pytest.mark.parametrize(
    ("name", "known", "shape"),
    [
        ("resnet18", "resnet18", (3, 32, 32)),
        ("resnet50", "torchvision/resnet50", (3, 224, 224)),
        ("torchvision:resnet18", "torchvision/resnet18", (3, 224, 224)),
        ("bert-base", "bert-base", (128,)),
        ("encoder-base", "encoder-base", (128, 768)),
    ],
)
def test_networks_have_one_full_name_and_a_usual_size(name, known, shape):
    assert networks.full_name(name) == known and networks.described(known, None)["shape"] == shape
    if len(shape) == 3:
        assert networks.described(known, 64)["shape"] == (3, 64, 64)


def test_networks_of_timm_have_the_size_that_they_are_made_for():
    pytest.importorskip("timm")
    assert networks.full_name("timm:swinv2_tiny_window8_256") == "timm/swinv2_tiny_window8_256"
    assert networks.described("timm/swinv2_tiny_window8_256", None)["shape"] == (3, 256, 256)
    network = networks.described(networks.full_name("vit_tiny_patch16_224"), 32)
    assert networks.build(network)(networks.inputs(network, 2)).shape == (2, 1000)


def test_training_happens_once_on_enlarged_images(tmp_path, monkeypatch):
    digits = data.load("digits", validation=0, train=64)
    monkeypatch.setattr(sparse_subjects.data, "load", lambda *_, **__: digits)
    monkeypatch.setattr(sparse_subjects, "RECIPE", dataclasses.replace(sparse_subjects.RECIPE, epochs=1))
    model, images = sparse_subjects.trained(SMALL, tmp_path)
    assert images.shape == (sparse_subjects.SAMPLES, *sparse_subjects.SHAPE)
    torch.testing.assert_close(images[:, 0, ::4, ::4], digits.test.tensors()[0][: sparse_subjects.SAMPLES, 0])
    assert not torch.equal(model.conv1.weight, networks.build(SMALL).conv1.weight)
    monkeypatch.setattr(sparse_subjects, "Trainer", None)
    again, _ = sparse_subjects.trained(SMALL, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_tickets_of_a_run_are_the_nearest_each_once(tmp_path):
    preset = presets.load("digits")
    recipe = dataclasses.replace(preset.train, epochs=1, milestones=())
    short = dataclasses.replace(preset, train=recipe, imp=dataclasses.replace(preset.imp, rounds=2, rewind=0))
    with Run.create(tmp_path / "tiny", short, seed=0, device="cpu") as run:
        tickets = run.imp(progress=False)
    found = list(sparse_subjects.tickets(tmp_path / "tiny", [1.0, 0.7, 0.6, 0.01]))
    assert [subject.density for subject in found] == [1.0, tickets[2].density]
    assert found[1].masks == "tiny" and found[1].network["widths"] == (8, 16)
    state = tickets[2].state_dict
    assert all(torch.equal(value, state[name]) for name, value in found[1].model.state_dict().items())


# --- contestants ---


def test_contestants_compute_the_same():
    subject = network()
    inputs = subject.inputs[:5]
    with sparse_peers.contestants(["lpk", "eager", "folded"], subject.model, inputs) as made:
        for contestant in made.values():
            assert sparse.difference(contestant.output(), subject.model(inputs)) < 1e-5
            assert contestant.seconds() > 0


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_peers_read_a_network_of_tokens(name):
    for package in sparse_peers.NEEDED[name]:
        pytest.importorskip(package)
    model, inputs = Attention().eval().requires_grad_(False), torch.randn(2, 5, 8)
    with sparse_peers.contestants([name, "folded"], model, inputs) as made:
        assert list(made) == [name]  # there is no BatchNorm to fold
        assert sparse.difference(made[name].output(), model(inputs)["logits"]) < 1e-5
        assert sparse_peers.about(made)[name]["version"]


def test_peer_that_fails_is_left_out_and_lpks_error_raised(monkeypatch, capsys):
    class Refused(torch.nn.Module):
        def __deepcopy__(self, memo):
            raise NotImplementedError("no copy\nof this")

    with sparse_peers.contestants(["eager"], Refused(), torch.ones(2, 3)) as made:
        assert made == {}
    assert capsys.readouterr().out == "not measured: PyTorch: NotImplementedError: no copy\n"
    monkeypatch.setattr(sparse_peers.lpk, "sparsify", Refused().__deepcopy__)
    with (
        pytest.raises(NotImplementedError, match="no copy"),
        sparse_peers.contestants(["lpk"], Refused(), torch.ones(2, 3)),
    ):
        pass


def test_contestants_take_turns(monkeypatch):
    monkeypatch.setattr(sparse, "PAUSE", 0)
    order = []

    class Stub:
        def __init__(self, name):
            self.name = name

        def seconds(self):
            order.append(self.name)
            return float(len(order))

    times = sparse.race({name: Stub(name) for name in "AB"}, 3)
    assert order == list("ABABAB")
    assert times == {"A": [1.0, 3.0, 5.0], "B": [2.0, 4.0, 6.0]}


@pytest.fixture
def deepsparse(tmp_path, monkeypatch):
    """A package of this name whose engine doubles its input, and prints."""
    (tmp_path / "deepsparse.py").write_text(
        textwrap.dedent("""
            __version__ = "1.8.stub"

            class Engine:
                fraction_of_supported_ops = 0.9

                def run(self, inputs):
                    print("a banner")
                    return [2 * inputs[0]]

            def compile_model(path, batch_size, num_cores):
                assert open(path).read() == "a network" and batch_size == 3 and num_cores == 2, "refused"
                return Engine()
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    network = tmp_path / "network.onnx"
    network.write_text("a network")
    return network


def test_deepsparse_answers_from_its_own_interpreter(deepsparse):
    inputs = torch.randn(3, 2)
    peer = sparse_peers.DeepSparse(sys.executable, deepsparse, inputs)
    try:
        assert peer.about == {"version": "1.8.stub", "supported": 0.9}
        assert torch.equal(peer.output(), 2 * inputs)
        assert peer.seconds() > 0 and peer.seconds() > 0
    finally:
        peer.close()
    assert peer.process.returncode == 0


def test_deepsparse_that_fails_says_why(deepsparse):
    with pytest.raises(RuntimeError, match="refused"):
        sparse_peers.DeepSparse(sys.executable, deepsparse, torch.randn(4, 2))


# --- memory ---


def test_memory_counts_the_weights_that_are_kept(tmp_path):
    subject = network(density=0.1)
    path = tmp_path / "network.safetensors"
    files.save_tensors(path, subject.model.state_dict(), subject.network)
    state = sum(tensor.nbytes for tensor in subject.model.state_dict().values()) / 2**20
    own, eager = (memory.peak(name, path, 2) for name in memory.NAMES)
    assert eager["weights"] == pytest.approx(state, rel=1e-3)
    pruned = [m.weight for m in subject.model.modules() if isinstance(m, torch.nn.Conv2d)]
    left = sum(int(weight.count_nonzero()) for weight in pruned)
    kept = (own["weights"] - state) * 2**20 + sum(weight.nbytes for weight in pruned)
    assert 3 * WEIGHTS * left <= kept < 4 * WEIGHTS * left  # a value, packed a value and an offset, and some ends
    assert 0 < own["imports"] <= own["loaded"] <= own["peak"]


# --- rows and tables ---


def test_rows_stay_until_they_are_measured_again(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "of", lambda *_: {"weights": 1.0, "peak": 2.0, "imports": 1.0})

    def measure(*densities):
        arguments = ["--networks", "small-resnet", "--masks", "random", "--batches", "2", "--results", tmp_path]
        command(sparse, monkeypatch, *arguments, "--peers", "eager", "--densities", *densities)
        (path,) = tmp_path.glob("sparse-*.json")
        return {row["density"]: row for row in files.read_json(path)["rows"]}

    monkeypatch.setattr(sparse, "race", lambda made, rounds: {name: [1.0] * rounds for name in made})
    assert list(measure(0.5, 1.0)) == [1.0, 0.5]
    monkeypatch.setattr(sparse, "race", lambda made, rounds: {name: [2.0] * rounds for name in made})
    rows = measure(0.5, 0.1)
    assert {d: r["contestants"]["lpk"]["milliseconds"] for d, r in rows.items()} == {1.0: 1000, 0.5: 2000, 0.1: 2000}
    assert rows[0.1]["contestants"]["eager"]["to_lpk"] == 1.0
    assert 0 < rows[0.1]["contestants"]["lpk"]["difference"] < 1e-5


def test_network_that_lpk_refuses_ends_no_run(monkeypatch, capsys):
    def compare(subject, batch, names, deepsparse):
        raise NotSupported(f"no batches of {batch}")

    monkeypatch.setattr(sparse, "compare", compare)
    command(sparse, monkeypatch, "--networks", "mlp", "--masks", "random", "--densities", 0.5, "--batches", 2, 3)
    printed = capsys.readouterr().out
    assert "not measured: mlp, batch 2: no batches of 2\nnot measured: mlp, batch 3: no batches of 3\n" in printed


def test_contestant_that_computes_something_else_is_an_error(monkeypatch):
    monkeypatch.setattr(sparse_peers.lpk, "sparsify", lambda model: lambda x: model(x) + 0.1)
    with pytest.raises(RuntimeError, match="lpk does not compute what PyTorch computes"):
        sparse.compare(network(), 2, ["lpk"], None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--densities", "0"], "must be above 0"),
        (["--batches", "0"], "at least 1"),
        (["--peers", "onnxruntime"], "onnx, onnxruntime can't be imported"),
        (["--networks", "resnet9000"], "there is no network 'resnet9000'"),
        (["--networks", "torchvision/resnet18"], "needs trained weights"),
        (["--networks", "vgg16", "--size", "64"], "vgg16 at (3, 64, 64) is not trained here"),
    ],
)
def test_what_cannot_be_measured_is_an_error(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sparse_peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        command(sparse, monkeypatch, *arguments)
    assert message in capsys.readouterr().err


def test_sizes_have_rows_and_tables_of_their_own():
    large = row(lpk=9.0, eager=12.0) | {"shape": [3, 224, 224], "masks": "uniform"}
    tokens = row(lpk=9.0, eager=12.0) | {"shape": [128], "network": "bert-base", "masks": "uniform"}
    assert len({sparse.identity(found) for found in (*MEASURED["rows"], large, large | {"shape": [3, 32, 32]})}) == 5
    text = sparse.table(MEASURED | {"rows": [large | {"shape": [3, 32, 32]}, large, tokens]})
    heads = [line.partition(":")[0] for line in text.splitlines() if ", batch " in line]
    assert heads == [
        "resnet18, 32×32, batch 128, every layer but the first pruned alike",
        "resnet18, 224×224, batch 128, every layer but the first pruned alike",
        "bert-base, 128 tokens, batch 128, every layer but the first pruned alike",
    ]


def test_fastest_dense_path_is_no_sparse_one():
    assert [sparse.fastest(found) for found in MEASURED["rows"]] == ["onnxruntime", "folded", "eager"]
    assert sparse.fastest(row(lpk=1.0, deepsparse=2.0)) is None


def test_table_has_a_part_for_each_batch():
    text = sparse.table(MEASURED)
    first, second = (part.split("\n\n") for part in text.split("\n\nresnet18, 32×32, batch 1, "))
    assert first[0].startswith("resnet18, 32×32, batch 128, pruned by magnitude")
    lines = [line.split(" | ") for line in first[1].splitlines()]
    assert [line[0] for line in lines] == ["| density", 10 * "|---:" + "|", "| 5.0%", "| 1.8%"]
    assert lines[2][1:] == ["100", "400", "350", "250", "1,200", "2.50", "12.0", "50.0 / 50.0", "400 / 401 |"]
    assert lines[3][1:] == ["50.0", "400", "350", "", "", "7.00", "", "50.0 / 50.0", "400 / 401 |"]
    assert "DeepSparse" not in second[1] and "| 5.0% | 5.00 | 7.00 | 1.40 |" in second[1]
    assert "by at most 2e-06 of the largest output. Of each peak, 333 MiB are imports." in text


def test_update_fills_the_markers_of_each_kind(tmp_path, monkeypatch, capsys):
    files.write_json(tmp_path / "sparse.json", MEASURED)
    page = tmp_path / "page.md"
    others = "<!-- bench -->\nkernels\n<!-- /bench -->\n<!-- bench: search -->\nsearch\n<!-- /bench: search -->\n"
    page.write_text(f"{others}<!-- bench: sparse -->\nold\n<!-- /bench: sparse -->\nafter\n")
    command(bench.table, monkeypatch, tmp_path / "sparse.json", "--update", page)
    text = page.read_text()
    assert text.startswith(others + "<!-- bench: sparse -->\n\nresnet18, 32×32") and text.endswith("after\n")
    assert "\nold" not in text
    assert "`python -m bench.sparse` on Imagined 9000, avx2, 4 threads" in text and "2026-01-02" in text
    page.write_text(others)
    with pytest.raises(SystemExit, match="0 pairs of <!-- bench: sparse -->"):
        command(bench.table, monkeypatch, tmp_path / "sparse.json", "--update", page)
