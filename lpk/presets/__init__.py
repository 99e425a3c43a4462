"""Presets: an experiment's settings as a plain TOML file, one for each row of the paper's Tables 4 and 5."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from lpk import choices, schema
from lpk.pruning.recipe import Recipe
from lpk.tickets import reading

_Section = TypeVar("_Section")


@dataclass(frozen=True)
class DataPreset:
    """The arguments of `lpk.data.load`; augment: whether training batches are augmented.

    train: how many training samples, None for all. label_noise: the share of wrong labels among them.
    ValueError: a label_noise below 0, or not below 1.
    """

    name: str
    validation: int
    augment: bool
    train: int | None = None
    label_noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_noise < 1:
            raise ValueError(f"label_noise is {self.label_noise}; it must be at least 0 and less than 1")


@dataclass(frozen=True)
class ModelPreset:
    """The network of `lpk.models.build`; in the file its options stand beside its name."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class ImpPreset:
    """Algorithm 1, by the arguments of `lpk.imp`: either `fraction`, pruned in each round, or `density`, of the last.

    ValueError: numbers out of range; both of fraction and density, or neither.
    """

    rounds: int
    rewind: int
    prunable: Literal["convolutions", "default"]
    fraction: float | None = None
    density: float | None = None
    scope: Literal["global", "layer"] = "global"
    floor: float = 0.0
    restart: Literal["rewind", "learning-rate"] = "rewind"

    def __post_init__(self) -> None:
        from lpk.pruning.sparsity import Sparsity  # here, because it brings PyTorch, which names() need not wait for

        if self.fraction is None and self.density is None:
            raise ValueError("fraction is missing, and so is density, which may stand in its place")
        Sparsity(self.rounds, self.fraction, self.density, self.scope, self.floor)


@dataclass(frozen=True)
class PoolPreset:
    """calibration: how many training samples renew BatchNorm statistics; batch_size: of each forward pass."""

    calibration: int
    batch_size: int


@dataclass(frozen=True)
class Preset:
    """What an experiment is made from; name: the shipped name, or the user's file without .toml."""

    name: str
    data: DataPreset
    model: ModelPreset
    train: Recipe
    imp: ImpPreset
    pool: PoolPreset

    def to_dict(self) -> dict[str, Any]:
        """The name, and the sections as in the file, in types that JSON knows; a number left out is None.

        `autocast`, a `label_noise` of 0, and what of [imp] is as in the paper, are left out as in the file: runs and
        parts of experiments that were begun before there were these keys are told by the same dict as those that leave
        them out today.
        """
        plain = {key: _plain(value) for key, value in asdict(self).items()}
        if self.train.autocast is None:
            del plain["train"]["autocast"]
        if not self.data.label_noise:
            del plain["data"]["label_noise"]
        for field in fields(ImpPreset):
            if field.default is not MISSING and plain["imp"][field.name] == field.default:
                del plain["imp"][field.name]
        plain["model"] = {"name": self.model.name, **plain["model"]["options"]}
        return plain


def names() -> tuple[str, ...]:
    """The shipped presets, sorted."""
    shipped = (Path(entry.name) for entry in resources.files(__name__).iterdir())
    return tuple(sorted(file.stem for file in shipped if file.suffix == ".toml"))


def load(name_or_path: str | Path) -> Preset:
    """A shipped preset by name, or a user's own .toml file by path.

    ValueError: neither exists; it is not TOML; a section or key is unknown, missing or of the wrong type.
    """
    name = str(name_or_path)
    if name in names():
        return _parse(name, f"{name}.toml", resources.files(__name__).joinpath(f"{name}.toml").read_bytes())
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        listed, close = ", ".join(names()), choices.suggestion(name, names())
        raise ValueError(f"preset is {name!r}; it must be a .toml file's path or one of {listed}{close}")
    return _parse(path.stem, name, reading.read_bytes(path))


def from_dict(content: Mapping[str, Any], file: str) -> Preset:
    """What `Preset.to_dict` gave, read from the JSON file named `file`; checked like a preset's own file."""
    sections = {
        section: {key: value for key, value in table.items() if value is not None} if isinstance(table, dict) else table
        for section, table in content.items()
        if section != "name"
    }
    if not isinstance(content.get("name"), str):
        raise ValueError(f"{file}: the preset's name is {schema.shortened(content.get('name'))}; it must be a string")
    return _preset(content["name"], file, sections)


def _parse(name: str, file: str, content: bytes) -> Preset:
    try:
        table = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, or bytes that are not UTF-8
        raise ValueError(f"{file}: not a TOML file: {error}") from error
    return _preset(name, file, table)


def _preset(name: str, file: str, table: dict[str, Any]) -> Preset:
    sections = [field.name for field in fields(Preset) if field.name != "name"]
    for section in [*table, *sections]:
        if section not in sections:
            close = choices.suggestion(section, sections)
            raise ValueError(f"{file}: unknown section [{_plain_key(section)}]; there are {', '.join(sections)}{close}")
        if not isinstance(table.get(section), dict):
            raise ValueError(f"{file}: section [{section}] is missing")
    return Preset(
        name,
        data=_section(DataPreset, f"{file}: [data]", table["data"]),
        model=_model(f"{file}: [model]", table["model"]),
        train=_section(Recipe, f"{file}: [train]", table["train"]),
        imp=_section(ImpPreset, f"{file}: [imp]", table["imp"]),
        pool=_section(PoolPreset, f"{file}: [pool]", table["pool"]),
    )


def _section(preset: type[_Section], where: str, table: dict[str, Any]) -> _Section:
    required = [field.name for field in fields(preset) if field.default is MISSING]  # type: ignore[arg-type]
    values = _checked(where, table, get_type_hints(preset), required)
    try:
        return preset(**values)
    except ValueError as error:  # of the right type, and still not possible
        raise ValueError(f"{where} {error}") from None


def _model(where: str, table: dict[str, Any]) -> ModelPreset:
    from lpk import models  # here, because it brings torchvision, which names() need not wait for

    name: Any = table.get("name")
    try:
        options = models.option_types(name)
    except ValueError as error:
        raise ValueError(f"{where} name {str(error).removeprefix('model ')}") from None
    values = _checked(where, table, {"name": str, **options}, ["name"])
    return ModelPreset(values.pop("name"), values)


def _checked(where: str, table: dict[str, Any], types: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """The table, each value in its key's type; ValueError: an unknown key, a missing one, a wrong type."""
    for key in [*table, *required]:
        if key not in types:
            close = choices.suggestion(key, types)
            raise ValueError(f"{where} {_plain_key(key)} is unknown; the keys are {', '.join(types)}{close}")
        if key not in table:
            raise ValueError(f"{where} {key} is missing")
    return {key: _value(f"{where} {key}", value, types[key]) for key, value in table.items()}


def _value(where: str, value: Any, expected: Any) -> Any:
    if isinstance(expected, UnionType):  # int | None: TOML has no null, the key is left out instead
        expected = get_args(expected)[0]
    if get_origin(expected) is Literal:
        if value in get_args(expected):
            return value
        words = " or ".join(map(repr, get_args(expected)))
    elif get_origin(expected) is tuple:  # tuple[int, ...]
        if isinstance(value, list) and all(type(item) is int and abs(item) < schema.LARGEST for item in value):
            return tuple(value)
        words = "a list of whole numbers"
    elif expected is float:
        if (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < schema.LARGEST):
            return float(value)
        words = "a number"
    else:
        if type(value) is expected and not (expected is int and abs(value) >= schema.LARGEST):  # not isinstance: bool
            return value
        words = {int: "a whole number", bool: "true or false", str: "a string"}[expected]
    raise ValueError(f"{where} is {schema.shortened(value)}; it must be {words}")


def _plain_key(key: str) -> str:
    return key if key.isidentifier() and len(key) < 60 else schema.shortened(key)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
