"""Where a config's values come from: shipped experiments, YAML files with one parent, and `key=value` overrides."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from eegrecon.config_schema import STAGES, StageSpec
from eegrecon.errors import ConfigError


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A clause that lists the choices and suggests the nearest.

    >>> did_you_mean("atm-s", ["atm_s", "ridge"])
    "did you mean 'atm_s'? the choices are: atm_s, ridge"
    """
    names = list(choices)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}the choices are: {', '.join(names)}"


def parse_yaml(text: str) -> dict[str, Any]:
    """Read YAML text (such as a stage directory's `config.yaml`) into plain dicts.

    Raises:
        ConfigError: The text is no YAML mapping.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"This text is not a YAML mapping: {first_line(error)}.") from error
    if not isinstance(values, dict):
        raise ConfigError("A config must be a YAML mapping of keys to values, but this text is a list.")
    return {str(key): value for key, value in values.items()}


def experiments_root() -> Path:
    """The folder of shipped experiments: inside the wheel, else the repository's."""
    package = Path(__file__).resolve().parent
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def list_experiments() -> list[str]:
    """Names of the shipped experiments: folders, at any depth, that hold at least one stage YAML."""
    root = experiments_root()
    names = {spec.yaml for spec in STAGES.values()}
    return sorted({path.parent.relative_to(root).as_posix() for path in root.rglob("*.yaml") if path.name in names})


def experiment_file(stage: str, exp: str) -> Path:
    """The YAML of one stage of a shipped experiment.

    Raises:
        ConfigError: No such experiment (lists them), or it has no YAML for this stage.
    """
    known = list_experiments()
    if exp not in known:
        raise ConfigError(f"There is no experiment {exp!r} in {experiments_root()}: {did_you_mean(exp, known)}.")
    path = experiments_root() / exp / stage_spec(stage).yaml
    if not path.is_file():
        raise ConfigError(f"The experiment {exp!r} has no {path.name}, which {stage} needs: write {path}.")
    return path


def stage_spec(stage: str) -> StageSpec:
    """The entry of `STAGES`, or a ConfigError that lists the stages."""
    if stage not in STAGES:
        raise ConfigError(f"There is no stage {stage!r}: {did_you_mean(stage, STAGES)}.")
    return STAGES[stage]


def first_line(error: BaseException) -> str:
    """The first line of another library's message, to fit into a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def read_file(path: Path) -> dict[str, Any]:
    """Read one YAML file; a ConfigError says what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config file {path} cannot be read ({first_line(error)}): check the path.") from error
    try:
        return parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"The config file {path} cannot be parsed: {error}") from error


def read_experiment(path: Path) -> dict[str, Any]:
    """Read a YAML file over the one parent that its `extends` names, if any (relative to the file)."""
    values = read_file(path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise ConfigError(f"'extends' in {path} must be one file name, but it is {parent!r}.")
    base = read_file(path.parent / parent)
    if "extends" in base:
        raise ConfigError(
            f"{path} extends {path.parent / parent}, which itself extends {base['extends']!r}: "
            "only one parent is allowed, so extend the grandparent directly."
        )
    return merge(base, values)


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=1` as `{"a": {"b": 1}}`; the value is YAML.

    >>> parse_override("optim.args.lr=1e-3")
    {'optim': {'args': {'lr': 0.001}}}
    """
    key, equals, value = text.partition("=")
    if not equals or not key or any(not part for part in key.split(".")):
        raise ConfigError(f"{text!r} is not of the form key=value")
    try:
        node: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"the value of {text!r} cannot be parsed ({first_line(error)})") from error
    nested: Any = node["value"]
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`; another `name` drops the `args` below it, which belonged to the old name."""
    merged = dict(below)
    if "name" in above and "args" in merged and above["name"] != merged.get("name"):
        del merged["args"]
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged
