"""lpk.presets: the shipped files against the paper's tables, and what is said about a wrong file."""

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from lpk import models, presets
from lpk.data import sets as data

# Tables 4 and 5, printed with the columns WD and Momentum exchanged; validation samples from Table 3.
# epochs, batch, lr, drops, momentum, weight decay, warmup, rewind, rounds, fraction, validation, prunable
CIFAR = (182, 128, 0.1, (91, 136), 0.9, 1e-4, 0, 9, 19, 0.2, 5000, "convolutions")
IMAGENET = (90, 1024, 0.4, (30, 60, 80), 0.9, 1e-4, 5, 5, 9, 0.2, 26000, "default")
TABLES = {
    "cifar10-vgg16": ("cifar10", "vgg16", CIFAR),
    "cifar100-vgg16": ("cifar100", "vgg16", CIFAR),
    "cifar10-resnet18": ("cifar10", "resnet18", CIFAR),
    "cifar100-resnet18": ("cifar100", "resnet18", CIFAR),
    "imagenet-resnet18": ("imagenet", "imagenet-resnet18", IMAGENET),
    "imagenet-resnet34": ("imagenet", "imagenet-resnet34", IMAGENET),
}

SECTIONS: dict[str, dict[str, Any]] = {
    "data": {"name": "digits", "validation": 300, "augment": False},
    "model": {"name": "small-resnet", "widths": [4, 8]},
    "train": {
        "epochs": 4,
        "batch_size": 64,
        "lr": 1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "milestones": [2, 3],
        "gamma": 0.1,
        "warmup": 0,
    },
    "imp": {"rounds": 2, "fraction": 0.2, "rewind": 1, "prunable": "default"},
    "pool": {"calibration": 100, "batch_size": 64},
}


def write(path: Path, sections: dict[str, Any]) -> Path:
    """JSON's spelling of these values is TOML's too; None, which TOML lacks, is left out."""
    lines = []
    for section, table in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items() if value is not None]
    path.write_text("\n".join(lines))
    return path


def changed(section: str, **values: Any) -> dict[str, Any]:
    return {**SECTIONS, section: {**SECTIONS[section], **values}}


def test_the_shipped_names() -> None:
    assert presets.names() == tuple(sorted([*TABLES, "demo", "digits", "fashion-mnist"]))


@pytest.mark.parametrize("name", TABLES)
def test_presets_match_the_papers_tables(name: str) -> None:
    dataset, network, row = TABLES[name]
    preset = presets.load(name)
    train, imp = preset.train, preset.imp
    assert (preset.name, preset.data.name, preset.model.name) == (name, dataset, network)
    learning = (
        train.epochs,
        train.batch_size,
        train.lr,
        train.milestones,
        train.momentum,
        train.weight_decay,
    )
    pruning = (train.warmup, imp.rewind, imp.rounds, imp.fraction, preset.data.validation, imp.prunable)
    assert (*learning, *pruning) == row
    assert train.gamma == 0.1  # "10x"
    assert preset.data.augment
    assert preset.data.train is None


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_fits_the_code_it_is_for(name: str) -> None:
    preset = presets.load(name)
    assert preset.data.name in data.NAMES
    shape = {"fashion-mnist": (1, 28, 28), "digits": (1, 8, 8)}.get(preset.data.name, (3, 32, 32))
    assert models.build(preset.model.name, classes=10, shape=shape, **preset.model.options)
    assert preset.imp.rewind < preset.train.epochs
    assert list(preset.train.milestones) == sorted(preset.train.milestones)
    assert preset.train.milestones[-1] < preset.train.epochs


def test_a_users_own_file(tmp_path: Path) -> None:
    preset = presets.load(write(tmp_path / "mine.toml", SECTIONS))
    assert preset.name == "mine"
    assert preset.model == presets.ModelPreset("small-resnet", {"widths": (4, 8)})
    assert preset.train.milestones == (2, 3)
    assert type(preset.train.lr) is float and preset.train.lr == 1.0
    assert preset.data.train is None
    assert presets.load(str(tmp_path / "mine.toml")) == preset


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_presets_offer_bfloat16(name: str, tmp_path: Path) -> None:
    """Its line needs no more than to be no comment."""
    text = resources.files(presets).joinpath(f"{name}.toml").read_text()
    path = tmp_path / f"{name}.toml"
    path.write_text(text.replace("# autocast", "autocast"))
    preset, offered = presets.load(name), presets.load(path)
    assert preset.train.autocast is None
    assert offered == replace(preset, train=replace(preset.train, autocast="bfloat16"))
    assert presets.from_dict(json.loads(json.dumps(offered.to_dict())), "manifest.json") == offered != preset


def test_a_preset_of_before_there_was_autocast() -> None:
    """It is read as float32, and said as it was: what a study measured is found by this dict."""
    plain = {"name": "mine", **SECTIONS}
    preset = presets.from_dict(plain, "manifest.json")
    assert preset.train.autocast is None
    assert preset.to_dict()["train"] == {**SECTIONS["train"], "lr": 1.0}


def test_wrong_labels_are_a_setting_of_the_data() -> None:
    """Left out, it is said as before there was this key; given, it is said and read again."""
    clean = presets.from_dict({"name": "mine", **SECTIONS}, "manifest.json")
    assert clean.data.label_noise == 0 and "label_noise" not in clean.to_dict()["data"]
    assert presets.from_dict({"name": "mine", **changed("data", label_noise=0)}, "manifest.json") == clean
    noisy = presets.from_dict({"name": "mine", **changed("data", label_noise=0.2)}, "manifest.json")
    assert noisy.to_dict()["data"]["label_noise"] == 0.2
    assert presets.from_dict(json.loads(json.dumps(noisy.to_dict())), "manifest.json") == noisy != clean


IMP = {"density": 0.1, "scope": "layer", "floor": 0.05, "restart": "learning-rate"}


def test_what_imp_can_be_asked_for(tmp_path: Path) -> None:
    """Left out, it is said as before there were these keys; given, it is said and read again."""
    plain = presets.load(write(tmp_path / "plain.toml", SECTIONS))
    assert plain.to_dict()["imp"] == SECTIONS["imp"]
    asked = {**SECTIONS["imp"], **IMP, "fraction": None}
    preset = presets.load(write(tmp_path / "mine.toml", {**SECTIONS, "imp": asked}))
    assert {key: getattr(preset.imp, key) for key in IMP} == IMP and preset.imp.fraction is None
    assert preset.to_dict()["imp"] == {key: value for key, value in asked.items() if value is not None}
    assert presets.from_dict(json.loads(json.dumps(preset.to_dict())), "manifest.json") == preset


@pytest.mark.parametrize("name", presets.names())
def test_to_dict_is_json_and_can_be_read_again(name: str, tmp_path: Path) -> None:
    preset = presets.load(name)
    plain = json.loads(json.dumps(preset.to_dict()))
    assert plain == preset.to_dict()
    assert plain.pop("name") == name
    assert presets.load(write(tmp_path / f"{name}.toml", plain)) == preset


@pytest.mark.parametrize("name", presets.names())
def test_from_dict_is_the_inverse_of_to_dict(name: str) -> None:
    preset = presets.load(name)
    assert presets.from_dict(json.loads(json.dumps(preset.to_dict())), "manifest.json") == preset


def test_from_dict_names_what_is_wrong() -> None:
    plain = {"name": "mine", **SECTIONS}
    with pytest.raises(ValueError, match=r"manifest\.json: \[imp\] rewind is missing"):
        presets.from_dict({**plain, "imp": {**SECTIONS["imp"], "rewind": None}}, "manifest.json")
    with pytest.raises(ValueError, match=r"manifest\.json: section \[pool\] is missing"):
        presets.from_dict({**plain, "pool": None}, "manifest.json")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (changed("train", epoch=4), r"\[train\] epoch is unknown"),
        (changed("model", depth=4), r"\[model\] depth is unknown; the keys are name, widths, blocks"),
        (changed("model", name="resnet50"), r"\[model\] name is 'resnet50'; .*resnet18"),
        ({**SECTIONS, "prune": {}}, r"unknown section \[prune\]"),
        ({k: v for k, v in SECTIONS.items() if k != "imp"}, r"section \[imp\] is missing"),
        (changed("imp", rewind=None), r"\[imp\] rewind is missing"),
        (changed("model", name=None), r"\[model\] name is None"),
        (changed("train", epochs=4.0), r"\[train\] epochs is 4.0; it must be a whole number"),
        (changed("train", epochs=True), r"\[train\] epochs is True; it must be a whole number"),
        (changed("train", lr="0.1"), r"\[train\] lr is '0.1'; it must be a number"),
        (changed("train", milestones=2), r"\[train\] milestones is 2; it must be a list of whole numbers"),
        (changed("train", milestones=[2, 2.5]), r"\[train\] milestones is \[2, 2.5\]"),
        (changed("train", autocast="float16"), r"\[train\] autocast is 'float16'; 'bfloat16' is possible, or to leave"),
        (changed("train", autocast=True), r"\[train\] autocast is True; it must be a string"),
        (changed("data", augment=1), r"\[data\] augment is 1; it must be true or false"),
        (changed("data", name=7), r"\[data\] name is 7; it must be a string"),
        (changed("data", train="all"), r"\[data\] train is 'all'; it must be a whole number"),
        (changed("data", label_noise="some"), r"\[data\] label_noise is 'some'; it must be a number"),
        (changed("data", label_noise=1), r"\[data\] label_noise is 1.0; it must be at least 0 and less than 1"),
        (changed("data", label_noise=-0.1), r"\[data\] label_noise is -0.1; it must be at least 0"),
        (changed("model", widths=["4"]), r"\[model\] widths is \['4'\]"),
        (changed("imp", fraction=None), r"\[imp\] fraction is missing, and so is density"),
        (changed("imp", density=0.1), r"\[imp\] fraction is 0\.\d+ and density is 0.1; one of them"),
        (changed("imp", fraction=1.5), r"\[imp\] fraction is 1.5"),
        (changed("imp", floor=1.5), r"\[imp\] floor is 1.5; 0, or a density below 1"),
        (changed("imp", scope="layers"), r"\[imp\] scope is 'layers'; it must be 'global' or 'layer'"),
        (changed("imp", restart="no"), r"\[imp\] restart is 'no'; it must be 'rewind' or 'learning-rate'"),
        (
            changed("imp", prunable="all"),
            r"\[imp\] prunable is 'all'; it must be 'convolutions' or 'default'",
        ),
    ],
)
def test_a_wrong_file_is_named_with_its_section_and_key(sections: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"mine.toml: {words}"):
        presets.load(write(tmp_path / "mine.toml", sections))


@pytest.mark.parametrize("content", [b"[data", b"\xff\xfe", b"lr = nan = 1"])
def test_a_file_that_is_not_toml(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.toml: not a TOML file"):
        presets.load(path)


def test_numbers_must_be_finite(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.toml", SECTIONS)
    path.write_text(path.read_text().replace("lr = 1", "lr = nan"))
    with pytest.raises(ValueError, match=r"\[train\] lr is nan"):
        presets.load(path)


def test_an_unknown_name_lists_the_shipped_ones(tmp_path: Path) -> None:
    for unknown in ("cifar10-resnet50", tmp_path / "none.toml", tmp_path):
        with pytest.raises(ValueError) as error:
            presets.load(unknown)
        assert str(unknown) in str(error.value)
        assert all(name in str(error.value) for name in presets.names())
