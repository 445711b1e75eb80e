"""From an experiment's YAML to a plain, frozen config object, with every problem reported at once.

`dataclass defaults < YAML (one `extends:` parent at most) < key=value`, then interpolations are resolved, missing
values looked for, and the result becomes plain dataclasses. Nothing here imports torch or numpy: keys, types, missing
values and registry names are answered in well under a second. OmegaConf appears in this module and its schema only.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eegrecon.config_choice import Choice
from eegrecon.config_data import check_data, subject_override
from eegrecon.config_low_level import LOW_LEVEL, LowLevelLossConfig
from eegrecon.config_objective import LossConfig, TargetConfig
from eegrecon.config_pathways import PathwaysConfig, SemanticConfig
from eegrecon.config_prior import (
    DENOISERS,
    PRIORS,
    REGRESSORS,
    SCHEDULERS,
    DiffusionConfig,
    RegressionConfig,
    SampleConfig,
    ScheduleConfig,
)
from eegrecon.config_schema import (
    ENCODERS,
    GENERATORS,
    IMAGE_PROJECTIONS,
    LATENT_HEADS,
    OPTIMS,
    PROTOCOLS,
    REGIONS,
    SOURCES,
    STAGES,
    BrainConfig,
    DataConfig,
    EvaluateConfig,
    ExtractTargetsConfig,
    HardwareConfig,
    PicturesConfig,
    PocketWeightsConfig,
    PrepareDataConfig,
    ReconstructConfig,
    SetConfig,
    SplitConfig,
    StageSpec,
    StepsConfig,
    SubjectsConfig,
    TrainEncoderConfig,
    TrainLowLevelConfig,
    TrainPriorConfig,
    TrainProjectorConfig,
)
from eegrecon.config_sources import (
    did_you_mean,
    experiment_file,
    experiments_root,
    first_line,
    list_experiments,
    merge,
    parse_override,
    parse_yaml,
    read_experiment,
    stage_spec,
)
from eegrecon.config_targets import TARGET_MODELS, TargetSpec
from eegrecon.config_training import AugmentConfig, InitConfig, LoaderConfig, SelectConfig
from eegrecon.errors import ConfigError

__all__ = [
    "DENOISERS",
    "ENCODERS",
    "GENERATORS",
    "IMAGE_PROJECTIONS",
    "LATENT_HEADS",
    "LOW_LEVEL",
    "OPTIMS",
    "PRIORS",
    "PROTOCOLS",
    "REGIONS",
    "REGRESSORS",
    "SCHEDULERS",
    "SOURCES",
    "STAGES",
    "TARGET_MODELS",
    "AugmentConfig",
    "BrainConfig",
    "Choice",
    "DataConfig",
    "DiffusionConfig",
    "EvaluateConfig",
    "ExtractTargetsConfig",
    "HardwareConfig",
    "InitConfig",
    "LoaderConfig",
    "LossConfig",
    "LowLevelLossConfig",
    "PathwaysConfig",
    "PicturesConfig",
    "PocketWeightsConfig",
    "PrepareDataConfig",
    "ReconstructConfig",
    "RegressionConfig",
    "SampleConfig",
    "ScheduleConfig",
    "SelectConfig",
    "SemanticConfig",
    "SetConfig",
    "SplitConfig",
    "StageSpec",
    "StepsConfig",
    "SubjectsConfig",
    "TargetConfig",
    "TargetSpec",
    "TrainEncoderConfig",
    "TrainLowLevelConfig",
    "TrainPriorConfig",
    "TrainProjectorConfig",
    "config_hash",
    "did_you_mean",
    "diff",
    "experiment_file",
    "experiments_root",
    "keys_of",
    "list_experiments",
    "load",
    "parse_yaml",
    "to_dict",
    "to_yaml",
]

# Where a run lives and how it looks on screen do not change its result, so they do not enter the hash.
UNHASHED = (
    "data.root",
    "source.args.path",
    "source.args.tables",
    "loader.num_workers",
    "loader.on_device",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.default_root_dir",
    "trainer.log_every_n_steps",
)


def load(
    stage: str,
    exp: str | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    subject: int | None = None,
) -> Any:
    """Load, merge, check and freeze the config of one stage.

    Args:
        stage: A verb of `STAGES`, such as `train-encoder`.
        exp: An experiment's name, a folder under `experiments_root()`; or
        file: a YAML file. Exactly one of the two.
        overrides: `key=value` strings, dotted keys, YAML values.
        subject: The subject that is tested (`DataConfig` says what that is under each protocol); overrides go before.

    Returns:
        The stage's frozen dataclass (see `config_schema`).

    Raises:
        ConfigError: Lists every unknown key, wrong type, missing value and unknown name at once.
    """
    spec = stage_spec(stage)
    if (exp is None) == (file is None):
        raise ConfigError("A config needs exactly one of --exp NAME and --config FILE.")
    source = experiment_file(stage, exp) if exp is not None else Path(file)  # type: ignore[arg-type]
    values = read_experiment(source)
    problems: dict[str, str] = {}  # by dotted key, so that no key is reported twice
    values, below = _overridden(values, overrides, problems), values
    if subject is not None:  # what it stands for depends on the protocol, which an override may set
        first = subject_override(stage, values, subject)
        values = _overridden(below, [first, *overrides], problems)
    node = OmegaConf.structured(spec.schema)
    _fill(node, spec.schema, values, "", problems)
    config = None
    try:
        OmegaConf.resolve(node)
        _check(node, spec.schema, "", problems)
        if issubclass(typing.get_type_hints(spec.schema).get("data", object), DataConfig):
            check_data(node.data, stage, "data.", problems)
        config = OmegaConf.to_object(node) if not problems else None
    except OmegaConfBaseException as error:
        problems.setdefault("", first_line(error))
    if config is None:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"The {stage} config from {source} has {count}: " + "; ".join(problems.values()) + ".")
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested plain dicts and lists, every default included."""
    return dict(config) if isinstance(config, Mapping) else dataclasses.asdict(config)


def to_yaml(config: Any) -> str:
    """The config as YAML, every default visible."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def config_hash(config: Any) -> str:
    """The sha256 (hex) of everything in the config that can change a result; `UNHASHED` keys are left out."""
    return hashlib.sha256(json.dumps(_hashed(to_dict(config)), sort_keys=True).encode()).hexdigest()


def diff(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Dotted keys that differ between two nested dicts, sorted; keys that never enter the hash are left out.

    >>> diff({"optim": {"lr": 1}, "seed": 0}, {"optim": {"lr": 2}, "seed": 0})
    ['optim.lr']
    """
    left, right = _flatten(_hashed(dict(a))), _flatten(_hashed(dict(b)))
    absent = object()
    return sorted(key for key in left.keys() | right.keys() if left.get(key, absent) != right.get(key, absent))


def keys_of(stage: str, key: str) -> bool:
    """Whether the stage's schema knows this dotted key (anything below a free dict counts as known)."""
    return _knows(stage_spec(stage).schema, key.split("."))


def _overridden(values: dict[str, Any], overrides: Sequence[str], problems: dict[str, str]) -> dict[str, Any]:
    for override in overrides:
        try:
            values = merge(values, parse_override(override))
        except ConfigError as error:
            problems[override] = str(error)
    return values


def _fill(node: DictConfig, schema: type, values: Mapping[str, Any], where: str, problems: dict[str, str]) -> None:
    """Write values into the structured node field by field, so that one bad field does not hide the next."""
    OmegaConf.set_readonly(node, False)  # the schema's dataclasses are frozen, the config under construction is not
    kinds = typing.get_type_hints(schema)
    for key, value in values.items():
        path = f"{where}{key}"
        if key not in kinds:
            problems[path] = f"unknown key {path!r} ({did_you_mean(str(key), kinds)})"
            continue
        kind = kinds[key]
        nested = dataclasses.is_dataclass(kind)
        if (nested or typing.get_origin(kind) is dict) and not isinstance(value, Mapping):
            problems[path] = f"{path!r} must be a mapping of keys to values, but it is {value!r}"
        elif nested:
            _fill(node[key], kind, value, f"{path}.", problems)
        elif typing.get_origin(kind) is dict and dataclasses.is_dataclass(typing.get_args(kind)[1]):
            item: Any = typing.get_args(kind)[1]
            node[key] = {name: OmegaConf.structured(item) for name in value}
            for name, entry in value.items():
                if isinstance(entry, Mapping):
                    _fill(node[key][name], item, entry, f"{path}.{name}.", problems)
                else:
                    problems[f"{path}.{name}"] = f"'{path}.{name}' must be a mapping, but it is {entry!r}"
        elif (item := _list_of(kind)) is not None:
            if not isinstance(value, list | tuple) or not all(isinstance(entry, Mapping) for entry in value):
                problems[path] = f"{path!r} must be a list of mappings, but it is {value!r}"
                continue
            node[key] = [OmegaConf.structured(item) for _ in value]
            for number, entry in enumerate(value):
                _fill(node[key][number], item, entry, f"{path}.{number}.", problems)
        else:
            try:
                OmegaConf.update(node, key, value, merge=False)  # unlike assignment, takes 1 for 1.0 without a warning
            except OmegaConfBaseException:
                problems[path] = f"{path!r} must be {_type_name(kind)}, but it is {value!r}"


def _list_of(kind: Any) -> Any:
    """The dataclass that a `list[…]` holds, None for everything else."""
    items = typing.get_args(kind) if typing.get_origin(kind) is list else ()
    return items[0] if items and dataclasses.is_dataclass(items[0]) else None


def _type_name(kind: Any) -> str:
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if kind in plain:
        return plain[kind]
    if typing.get_origin(kind) is types.UnionType:  # optional
        return f"{_type_name(typing.get_args(kind)[0])} or null"
    if typing.get_origin(kind) is list:
        return f"a list, each item {_type_name(typing.get_args(kind)[0])}"
    return str(kind)


def _check(node: DictConfig, schema: Any, where: str, problems: dict[str, str]) -> None:
    """Missing values, registry names, allowed values and minima, wherever a field's metadata asks for them."""
    kinds = typing.get_type_hints(schema)
    for item in dataclasses.fields(schema):
        path, kind = f"{where}{item.name}", kinds[item.name]
        if path in problems:
            continue
        if OmegaConf.is_missing(node, item.name):
            problems[path] = f"{path!r} has no value (set it in the YAML or pass {path}=…)"
            continue
        value, metadata = node[item.name], item.metadata
        if (
            "registry" in metadata
            and not OmegaConf.is_missing(value, "name")
            and value.name not in metadata["registry"]
        ):
            path = f"{path}.name"
            problems[path] = _unknown(path, value.name, metadata["registry"])
        if "choices" in metadata and value not in metadata["choices"]:
            problems[path] = _unknown(path, value, metadata["choices"])
        if "minimum" in metadata and value < metadata["minimum"]:
            problems[path] = f"{path!r} must be at least {metadata['minimum']}, but it is {value}"
        if "maximum" in metadata and value > metadata["maximum"]:
            problems[path] = f"{path!r} must be at most {metadata['maximum']}, but it is {value}"
        if dataclasses.is_dataclass(kind):
            _check(value, kind, f"{where}{item.name}.", problems)
        elif typing.get_origin(kind) is dict and dataclasses.is_dataclass(typing.get_args(kind)[1]):
            for name in value:
                _check(value[name], typing.get_args(kind)[1], f"{path}.{name}.", problems)
        elif (entry := _list_of(kind)) is not None:
            for number in range(len(value)):
                _check(value[number], entry, f"{path}.{number}.", problems)


def _unknown(path: str, value: Any, choices: typing.Iterable[Any]) -> str:
    return f"{path!r} is {value!r}, which is not known ({did_you_mean(str(value), map(str, choices))})"


def _knows(schema: Any, parts: list[str]) -> bool:
    if schema is Any:
        return True
    if not dataclasses.is_dataclass(schema):
        if typing.get_origin(schema) is not dict:
            return not parts
        item = typing.get_args(schema)[1]
        return not parts or not dataclasses.is_dataclass(item) or _knows(item, parts[1:])
    types = typing.get_type_hints(schema)
    return not parts or (parts[0] in types and _knows(types[parts[0]], parts[1:]))


def _hashed(values: dict[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in _flatten(values).items() if key not in UNHASHED}
    return json.loads(json.dumps(flat))  # tuples and lists, 1 and "1" as keys: what YAML gives back


def _flatten(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat
