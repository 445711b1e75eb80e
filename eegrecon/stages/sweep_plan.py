"""From a sweep's YAML to the list of its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from eegrecon.config import PROTOCOLS, STAGES, did_you_mean, keys_of, parse_yaml
from eegrecon.config import load as load_config
from eegrecon.config_sources import parse_override
from eegrecon.errors import ConfigError

VERBS = ("train-encoder", "evaluate")
QUIET = {VERBS[0]: ["trainer.enable_progress_bar=false"]}  # no worker has a screen
ONLY_TRAINING = ("target.levels", "target.mixing")  # of the target block that both verbs share
DATA_VERBS = ("prepare-data", "extract-targets")
PLACE = ("data.root", "data.set")


@dataclass(frozen=True)
class Group:
    """Variants of one experiment that are compared with each other."""

    experiment: str
    subjects: list[int]
    variants: dict[str, list[str]]
    seeds: list[int] = field(default_factory=lambda: [0])
    protocols: list[str] = field(default_factory=lambda: [PROTOCOLS[0]])
    shared: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sweep:
    """A sweep: `jobs` workers at a time, each with `threads` threads; `slurm` goes to submitit as it stands."""

    name: str
    groups: dict[str, Group]
    jobs: int = 1
    threads: int = 1
    slurm: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run: one encoder trained, and tested on `tested` (all subjects after one another under `joint`)."""

    group: str
    variant: str
    protocol: str
    experiment: str
    subjects: list[int]
    tested: list[int]
    seed: int
    overrides: list[str]
    directory: str

    @property
    def name(self) -> str:
        """What lists and logs call it."""
        who = "all" if len(self.tested) > 1 else f"sub-{self.tested[0]:02d}"
        return f"{self.group}/{self.variant}/{self.protocol}/{who}/seed-{self.seed}"

    def config(self, verb: str, subject: int) -> Any:
        """The config of one of `VERBS`, as a worker runs it and as its manifest's hash is of.

        Raises:
            ConfigError: As `config.load`.
        """
        first = [f"data.protocol={self.protocol}"]
        if self.protocol != PROTOCOLS[0]:
            first.append(f"data.subjects={self.subjects}".replace(" ", ""))
        first += [f"seed={self.seed}"] + (["pictures=false"] if verb == "evaluate" else [])
        known = [word for word in self.overrides if keys_of(verb, word.partition("=")[0])]
        mine = [word for word in known if verb == VERBS[0] or word.partition("=")[0] not in ONLY_TRAINING]
        return load_config(verb, self.experiment, None, [*first, *mine, *QUIET.get(verb, [])], subject)


def read_sweep(path: Path, more: Sequence[str] = ()) -> Sweep:
    """Read and check a sweep's YAML.

    Args:
        path: The file; its folder and name are the sweep's name.
        more: Overrides for every run, after those of the file.

    Raises:
        ConfigError: The file is missing or lists every problem in it.
    """
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"The sweep {path} cannot be read ({error.strerror}): give the path of a YAML file."
        ) from error
    problems: list[str] = []
    groups = values.pop("groups", None)
    if not isinstance(groups, Mapping) or not groups:
        raise ConfigError(
            f"The sweep {path} has no groups: name at least one, each with experiment, subjects, variants."
        )
    known = {item.name for item in fields(Sweep)} - {"name", "groups"}
    problems += [f"unknown key {key!r} ({did_you_mean(key, known)})" for key in values if key not in known]
    for key in ("jobs", "threads"):
        if key in values and not _is_positive(values[key]):
            problems.append(f"{key} must be a whole number from 1, but it is {values[key]!r}")
    built = {}
    for name, block in groups.items():
        found = _group(str(name), block, more, problems)
        if found is not None:
            built[str(name)] = found
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"The sweep {path} has {count}: " + "; ".join(problems) + ".")
    path = Path(path).resolve()
    return Sweep(name=f"{path.parent.name}-{path.stem}", groups=built, **values)


def runs_of(sweep: Sweep, root: Path) -> list[Run]:
    """Every run in the order of the file, seeds outermost within a group: an early stop leaves whole seeds.

    Args:
        sweep: What was read.
        root: The sweep's directory; a run lies in `<root>/<group>/<variant>/<who>/seed-N`.
    """
    runs = []
    for name, group in sweep.groups.items():
        for seed in group.seeds:
            for variant, overrides in group.variants.items():
                for protocol in group.protocols:
                    together = protocol == "joint"
                    for tested in [group.subjects] if together else [[subject] for subject in group.subjects]:
                        who = "-".join(f"{subject:02d}" for subject in tested)
                        folder = f"all-but-{who}" if protocol == "leave_one_subject_out" else f"sub-{who}"
                        directory = Path(root) / name / variant / folder / f"seed-{seed}"
                        words = [*group.shared, *overrides]
                        runs.append(
                            Run(
                                name,
                                variant,
                                protocol,
                                group.experiment,
                                group.subjects,
                                tested,
                                seed,
                                words,
                                str(directory),
                            )
                        )
    return runs


def check_runs(runs: Sequence[Run]) -> None:
    """Load every run's configs, so that a typo is found before the first run.

    Raises:
        ConfigError: Of the first config that does not load, with the run's name.
    """
    seen = set()
    for run in runs:
        key = (run.group, run.variant, run.protocol)
        if key in seen:
            continue
        seen.add(key)
        for verb in VERBS:
            try:
                run.config(verb, run.tested[0])
            except ConfigError as error:
                raise ConfigError(f"The run {run.name}: {error}") from error


def data_commands(runs: Sequence[Run], more: Sequence[str] = ()) -> list[list[str]]:
    """The data verbs' argument lists, one pair an experiment and place where runs look for data, for all subjects.

    Args:
        runs: What is to be run.
        more: Overrides for every run; those of the `data` block go along.

    Raises:
        ConfigError: As `config.load`.
    """
    subjects: dict[tuple[str, tuple[str, ...]], set[int]] = {}
    for run in {(run.group, run.variant, run.protocol): run for run in runs}.values():
        subjects.setdefault((run.experiment, _place(run)), set()).update(run.subjects)
    rest = [word for word in more if word.startswith("data.") and word.partition("=")[0] not in PLACE]
    commands = []
    for (experiment, place), who in subjects.items():
        for verb in DATA_VERBS:
            words = [verb, "--exp", experiment]
            if keys_of(verb, "data.subjects"):
                words.append(f"data.subjects={sorted(who)}".replace(" ", ""))
            commands.append([*words, *(word for word in [*rest, *place] if keys_of(verb, word.partition("=")[0]))])
    return commands


def _place(run: Run) -> tuple[str, ...]:
    """Where the run looks for its data, as overrides of the data verbs; () where the experiment alone says it."""
    if not any(word.partition("=")[0] in ("data", *PLACE) for word in run.overrides):
        return ()
    data = run.config(VERBS[0], run.tested[0]).data
    return tuple(f"{key}={value}" for key, value in zip(PLACE, (data.root, data.set), strict=True))


def write_runs(path: Path, runs: Sequence[Run]) -> None:
    """Keep the runs for the workers."""
    path.write_text(json.dumps([asdict(run) for run in runs]), encoding="utf-8")


def load_runs(path: Path) -> list[Run]:
    """What `write_runs` wrote."""
    return [Run(**values) for values in json.loads(path.read_text(encoding="utf-8"))]


def _group(name: str, block: Any, more: Sequence[str], problems: list[str]) -> Group | None:
    known = {item.name for item in fields(Group)}
    if not isinstance(block, Mapping):
        problems.append(f"groups.{name} must be a mapping, but it is {block!r}")
        return None
    before = len(problems)
    problems += [f"unknown key groups.{name}.{key} ({did_you_mean(key, known)})" for key in block if key not in known]
    lacking = [key for key in ("experiment", "subjects", "variants") if not block.get(key)]
    problems += [f"groups.{name}.{key} has no value" for key in lacking]
    values = {key: value for key, value in block.items() if key in known}
    for key in ("subjects", "seeds"):
        numbers = values.get(key, [0])
        if not isinstance(numbers, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
            problems.append(f"groups.{name}.{key} must be a list of whole numbers, but it is {numbers!r}")
    for protocol in values.get("protocols", []):
        if protocol not in PROTOCOLS:
            problems.append(f"groups.{name}.protocols names {protocol!r} ({did_you_mean(str(protocol), PROTOCOLS)})")
    variants = values.get("variants") or {}
    if not isinstance(variants, Mapping):
        problems.append(f"groups.{name}.variants must map names to lists of key=value, but it is {variants!r}")
        variants = {}
    for words in [values.get("shared", []), *variants.values()]:
        problems += _wrong_overrides(name, words)
    if len(problems) > before:
        return None
    variants = {str(key): [*words, *more] for key, words in variants.items()}  # the command line has the last word
    return Group(**{**values, "variants": variants})


def _wrong_overrides(name: str, words: Any) -> list[str]:
    if not isinstance(words, list):
        return [f"groups.{name} has {words!r} where a list of key=value is expected"]
    problems = []
    for word in words:
        try:
            parse_override(str(word))
        except ConfigError as error:
            problems.append(f"groups.{name}: {error}")
            continue
        key = str(word).partition("=")[0]
        if not any(keys_of(verb, key) for verb in VERBS):
            problems.append(f"groups.{name}: no stage of a sweep ({', '.join(VERBS)}) knows the key {key!r}")
    return problems


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def folder_of(verb: str, config: Any) -> str:
    """The stage's folder in the run's directory."""
    return f"{STAGES[verb].folder}{config.data.tested_suffix}"
