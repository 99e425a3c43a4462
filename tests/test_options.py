"""Help, what the shell completes, and names that are nearly right."""

import os
import re
import shlex
from unittest import mock

import pytest

from lpk import experiments, presets
from lpk.options import EXPERIMENTS
from tests.command import error, here, in_a_process, lpk
from tests.conftest import TINY_PRESET


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("imp", "run", "--preset", "cifar10-resnet"), "cifar10-resnet18"),
        (("imp", "run", "--preset", "Fashion_MNIST"), "fashion-mnist"),
        (("imp", "run", "--autocast", "bf16"), "bfloat16"),
        (("run", "comparisn"), "comparison"),
        (("export", "run", "out", "--target", 1, "--method", "emma"), "ema"),
        (("export", "run", "out", "--target", 1, "--format", "ONNX"), "onnx"),
        (("poool", "run"), "pool"),
        (("pool", "run", "--quite"), "--quiet"),
        (("inof", "run"), "info"),
        (("info", "run", "--jsn"), "--json"),
        (("info", "run", "--modl", "a:b"), "--model"),
    ],
)
def test_a_name_that_is_nearly_right_is_suggested(arguments, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = here(*arguments)
    assert status in (1, 2) and len(err.strip().splitlines()) == 1 and f". Did you mean '{meant}'?" in err
    assert not list(tmp_path.iterdir())


def test_names_in_a_preset_that_are_nearly_right_are_suggested(tmp_path):
    for ours, theirs, meant in (
        ("[train]", "[trian]", "train"),
        ("momentum", "momentun", "momentum"),
        ('"small-resnet"', '"smallresnet"', "small-resnet"),
        ('"digits"', '"digit"', "digits"),
    ):
        (tmp_path / "own.toml").write_text(TINY_PRESET.replace(ours, theirs))
        assert f". Did you mean '{meant}'?" in error("imp", tmp_path / "run", "--preset", tmp_path / "own.toml")


@pytest.mark.parametrize("width", [50, 80])
def test_help_shows_flags_as_flags_and_names_whole(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    for command in ((), ("imp",), ("run",), ("export",), ("import",), ("pool",), ("info",), ("eval",)):
        _, text, _ = here(*command, "--help")
        assert "--help" in text and "bool" not in text and "int range" not in text
        if command:  # of these, --install-completion is too long at 50
            assert not re.search(r"\S…", text), text
    _, text, _ = here("imp", "--help")
    assert all(name in text for name in presets.names())
    assert re.search(r"--preset +NAME", text) and re.search(r"--quiet +No progress", text)
    assert re.search(r"--seed +N +Of", text)


def test_the_shell_completes_commands_options_and_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "raise SystemExit  # nothing is run\ndef network(): pass\ndef _hidden(): pass\nclass Data: pass\nx = 1"
    (tmp_path / "nets.py").write_text(source)
    (tmp_path / "broken.py").write_text("def network(")
    for words, found in (
        (["p"], ["pool"]),
        (["imp", "run", "--preset", "cifar100"], ["cifar100-resnet18", "cifar100-vgg16"]),
        (["imp", "run", "--autocast", "b"], ["bfloat16"]),
        (["pool", "run", "--method", "e"], ["ema", "ema-newcomer"]),
        (["pool", "run", "--search", ""], ["bounded", "exhaustive", "racing"]),
        (["export", "run", "out", "--fo"], ["--format", "--force"]),
        (["in"], ["info"]),
        (["info", "run", "--j"], ["--json"]),
        (["pool", "run", "--scope", ""], ["global", "layer"]),
        (["info", "run", "--model", "ne"], ["nets:network", "nets:Data"]),
        (["pool", "run", "--data", "nets.py"], ["nets.py:network", "nets.py:Data"]),
        (["eval", "run", "--model", "broken"], []),
        (["run", "co"], ["comparison", "coefficients", "conditions", "compute"]),
    ):
        asked = {"_LPK_COMPLETE": "complete_bash", "COMP_WORDS": shlex.join(["lpk", *words]).replace("''", "")}
        with mock.patch.dict(os.environ, asked | {"COMP_CWORD": str(len(words))}):
            status, out, _ = here()
        assert status == 0 and out.split() == found
    assert {*EXPERIMENTS} == {"all", *experiments.EXPERIMENTS}
    assert "--install-completion" in here("--help")[1]


def test_help_and_version():
    status, text, _ = in_a_process("--version")
    assert status == 0 and text.startswith("lpk ") and ", torch " in text
    assert "cpu: " in lpk("backends")
    _, text, _ = here("--help")
    for command in ("demo", "imp", "import", "pool", "export", "info", "eval", "report", "run", "backends"):
        status, about, _ = here(command, "--help")
        assert command in text and status == 0 and (re.search("RUN|NAME|PATH", about) or command == "backends")
