"""What bench.sparse runs, compares and shows. Nothing is timed here but by stand-ins."""

import sys
import textwrap

import pytest
import torch

import bench.table
from bench import memory, sparse, sparse_peers, sparse_subjects
from lpk.sparse import NotSupported
from lpk.tickets import files
from tests.bench.command import MACHINE, command
from tests.bench.small import SMALL, Attention

WEIGHTS = 4  # bytes


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
    # a value, packed a value and an offset, and some ends; as code an instruction for it, and some for several
    assert 3 * WEIGHTS * left <= kept < 8 * WEIGHTS * left
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
