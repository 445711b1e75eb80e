"""What a pipeline is on disk: a run's directories, a directory of its own, or a repository on the Hugging Face hub.

A saved pipeline holds `encoder/` and `prior/` (stage directories as they were finished, so their manifests still say
what they are), `pipeline.json` and a model card. The generator's weights are named, never copied.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eegrecon import __version__
from eegrecon.artifacts import CONFIG, MANIFEST, Manifest, input_record, read_manifest, sha256_file, write_json
from eegrecon.config import Choice, PathwaysConfig, SampleConfig, SemanticConfig, parse_yaml
from eegrecon.data.epochs import EEGFormat
from eegrecon.errors import ArtifactError
from eegrecon.pathways.composition import BESIDE, stages_of
from eegrecon.pathways.semantic import Words, words_of

PIPELINE, CARD = "pipeline.json", "README.md"
SCHEMA = 1
STAGES, PROJECTOR = ("encoder", "prior"), "projector"
KEYS = ("generator", "pathways", "sample", "batch_size")  # of reconstruct's config
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Plan:
    """What a pipeline is made of, known before anything heavy is loaded.

    Attributes:
        home: The run or the saved pipeline.
        generator: Name and arguments of the picture generator.
        sample: How the prior is sampled by default.
        pathways: Which pathways make a picture.
        words: Where captions come from, if there are any.
        batch_size: Pictures made together by default.
        stages: sha256 of each stage's manifest.
        eeg: What the encoder was trained on.
        interface: The target space of the prior.
        metrics: The headline numbers of the run's test pictures, if it made any.
    """

    home: Path
    generator: Choice
    sample: SampleConfig
    pathways: PathwaysConfig
    words: Words | None
    batch_size: int
    stages: dict[str, str]
    eeg: EEGFormat
    interface: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)

    def folder(self, stage: str) -> Path:
        """Where a part of the pipeline lies: a run's projector stands beside its set's targets."""
        if stage == PROJECTOR and self.words is not None and self.words.projector is not None:
            return self.words.projector
        return self.home / stage


def locate(source: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """The directory that a path or a hub id names; the hub's is fetched, or taken from the local cache.

    Raises:
        ArtifactError: There is neither.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if not HUB_ID.fullmatch(str(source)):
        raise ArtifactError(
            f"{source} is no directory and no hub id (owner/name): name a run directory, or what save_pretrained wrote."
        )
    from huggingface_hub import snapshot_download

    wanted = [PIPELINE, CARD, *(f"{stage}/*" for stage in (*STAGES, *BESIDE, PROJECTOR))]
    try:
        found = snapshot_download(str(source), revision=revision, cache_dir=cache_dir, allow_patterns=wanted)
    except (OSError, ValueError) as error:  # no network, no such repository, no such name
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{source} is neither a directory here nor in the hub's local cache, and cannot be fetched ({reason}): "
            f"where there is a network, fetch it with `hf download {source} --local-dir FOLDER` and name that folder"
            f"{f'; the folder {path.parent} is here, but holds no {path.name}' if path.parent.is_dir() else ''}."
        ) from error
    return Path(str(found))


def read_plan(home: Path, generator_args: Mapping[str, Any] | None = None) -> Plan:
    """What a run directory or a saved pipeline says; the stages' own files are checked when they are loaded.

    Args:
        home: The directory.
        generator_args: Replace single arguments of the generator, such as `{"base": "/elsewhere/sdxl-turbo"}`.

    Raises:
        ArtifactError: A part is missing or unfinished, or the parts do not belong together.
    """
    manifests = {}
    for stage, fix in zip(STAGES, ("`eegrecon train-encoder`", "`eegrecon train-prior`"), strict=True):
        manifests[stage] = read_manifest(home / stage, verify=False, fix=fix)
        if manifests[stage].stage != f"train-{stage}":
            raise ArtifactError(f"{home / stage} was made by {manifests[stage].stage}, not by train-{stage}.")
    hashes = {stage: input_record(home / stage)["manifest_sha256"] for stage in STAGES}
    if manifests["prior"].inputs.get("encoder", {}).get("manifest_sha256") != hashes["encoder"]:
        raise ArtifactError(
            f"The prior in {home / 'prior'} was trained on another encoder than {home / 'encoder'} holds: run "
            "`eegrecon train-prior … --overwrite`."
        )
    saved = (home / PIPELINE).is_file()
    says = _saved(home) if saved else _of_run(home)
    where = home / PIPELINE if saved else home / "reconstruct" / CONFIG
    try:
        pathways = _pathways(says.get("pathways") or {})
        words = _words(pathways.semantic, home, says)
        for stage in stages_of(pathways):
            read_manifest(home / stage, verify=False, fix=f"`eegrecon train-{stage.replace('_', '-')}`")
            hashes[stage] = input_record(home / stage)["manifest_sha256"]
        if words is not None and words.projector is not None:
            read_manifest(words.projector, verify=False, fix="`eegrecon train-projector`")
            hashes[PROJECTOR] = input_record(words.projector)["manifest_sha256"]
        if saved and (changed := [stage for stage in hashes if says["stages"].get(stage) != hashes[stage]]):
            raise ArtifactError(
                f"{where} was saved with another {' and '.join(changed)} than lies beside it: save or fetch it again."
            )
        choice = Choice(says["generator"]["name"], {**says["generator"]["args"], **(generator_args or {})})
        plan = Plan(
            home=home,
            generator=choice,
            sample=_sampling(says["sample"]),
            pathways=pathways,
            words=words,
            batch_size=int(says["batch_size"]),
            stages=hashes,
            eeg=EEGFormat.from_manifest(manifests["encoder"].data),
            interface=manifests["prior"].interface,
            metrics=dict(says.get("metrics", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{where} does not say how pictures are made ({error!r}): make it again.") from error
    return plan


def _sampling(says: Mapping[str, Any]) -> SampleConfig:
    """The block `sample`; what was written before the scheduler could be chosen used the default one."""
    chosen = {"scheduler": Choice(**says["scheduler"])} if "scheduler" in says else {}
    return SampleConfig(float(says["guidance_scale"]), int(says["num_inference_steps"]), **chosen)


def _pathways(says: Mapping[str, Any]) -> PathwaysConfig:
    semantic = SemanticConfig(**says.get("semantic", {}))
    return PathwaysConfig(**{**says, "semantic": semantic})


def _words(plan: SemanticConfig, home: Path, says: Mapping[str, Any]) -> Words | None:
    """Where captions come from: beside a saved pipeline, or in the set of a run."""
    if not plan.source:
        return None
    if "set_root" in says:
        return words_of(plan, _set_root(Path(says["set_root"]), home))
    return Words(plan, home / PROJECTOR if plan.source == "captions" else None, tuple(says["names"]))


def _set_root(said: Path, home: Path) -> Path:
    """A set's folder as a run's config names it: from here, or from a folder above the run.

    Raises:
        ArtifactError: It is in none of these places.
    """
    found = next((place / said for place in (Path(), *home.resolve().parents) if (place / said).is_dir()), None)
    if found is None:
        raise ArtifactError(
            f"The captions of {home} come from the set {said}, which is neither here nor above the run: start from the "
            "folder that the run was made in, or take a pipeline that save_pretrained wrote there."
        )
    return found


def _saved(home: Path) -> dict[str, Any]:
    path = home / PIPELINE
    try:
        says = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON ({error}): save or fetch the pipeline again.") from error
    if not isinstance(says, dict) or says.get("schema") != SCHEMA:
        found = says.get("schema") if isinstance(says, dict) else says
        raise ArtifactError(f"{path} has schema {found!r}, but this eegrecon reads schema {SCHEMA}: save it again.")
    return says


def _of_run(home: Path) -> dict[str, Any]:
    """The generator, pathways, sampling and batch size that `reconstruct` was told, from its resolved config."""
    # A joint run has one for each subject that was tested; what settings were tried on validation is not the run's.
    configs = [path for path in sorted(home.glob(f"reconstruct*/{CONFIG}")) if not path.parent.name.endswith("-val")]
    if not configs:
        raise ArtifactError(
            f"{home} does not name a picture generator (it has no reconstruct/{CONFIG}): run `eegrecon reconstruct` "
            "for this run first."
        )
    read = {path: parse_yaml(path.read_text(encoding="utf-8")) for path in configs}
    found = {path: {key: says.get(key) for key in KEYS} for path, says in read.items()}
    first = found[configs[0]]
    if other := next((path for path in configs if found[path] != first), None):
        raise ArtifactError(
            f"{configs[0]} and {other} make pictures in different ways: remove the folder that is not meant."
        )
    metrics: dict[str, Any] = {}
    if len(configs) == 1 and (configs[0].parent / MANIFEST).is_file():
        metrics = read_manifest(configs[0].parent, verify=False).metrics
    data = read[configs[0]].get("data") or {}
    return {**first, "metrics": metrics, "set_root": str(Path(data.get("root", "")) / data.get("set", ""))}


def save(plan: Plan, directory: Path, *, overwrite: bool = False) -> None:
    """Write a pipeline that can be moved: both stages, checked before and after copying, and what names the generator.

    Raises:
        ArtifactError: A stage is damaged or was replaced after it was loaded, or the directory holds something else.
    """
    with new_directory(directory, PIPELINE, overwrite) as temporary:
        manifests = {stage: _copy_stage(plan, stage, temporary / stage) for stage in plan.stages}
        args = dict(plan.generator.args)
        for name in ("base", "ip_adapter"):
            if args.get(name) not in (None, "", "pocket") and Path(str(args[name])).exists():
                args[name] = str(Path(str(args[name])).resolve())  # not relative to where it is saved from
        generator = Choice(plan.generator.name, args)
        (temporary / CARD).write_text(model_card(plan, generator, manifests), encoding="utf-8")
        says = {
            "schema": SCHEMA,
            "eegrecon": __version__,
            "generator": {"name": generator.name, "args": args},
            "sample": dataclasses.asdict(plan.sample),
            "pathways": dataclasses.asdict(plan.pathways),
            "names": list(plan.words.names) if plan.words is not None else [],
            "batch_size": plan.batch_size,
            "eeg": plan.eeg.describe(),
            "interface": plan.interface,
            "stages": plan.stages,
            "metrics": plan.metrics,
        }
        write_json(temporary / PIPELINE, says)


def _copy_stage(plan: Plan, stage: str, target: Path) -> Manifest:
    source = plan.folder(stage)
    if not (source / MANIFEST).is_file() or sha256_file(source / MANIFEST) != plan.stages[stage]:
        raise ArtifactError(f"{source} is not what this pipeline was loaded from any more: load it again.")
    manifest = read_manifest(source)
    for name in [MANIFEST, *manifest.outputs]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return read_manifest(target)


@contextmanager
def new_directory(target: Path, marker: str, overwrite: bool) -> Iterator[Path]:
    """A directory that appears whole, under the target's name, when the block succeeds, or not at all.

    Args:
        target: What it will be called.
        marker: A file that it will hold. Only a directory with this file is ever replaced.
        overwrite: Replace one.

    Raises:
        ArtifactError: Something is there that may not be replaced.
    """
    target = Path(target).resolve()  # the working directory has a name too
    full = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if full and not overwrite:
        raise ArtifactError(
            f"{target} is there already: choose another directory, or overwrite it (--overwrite, overwrite=True)."
        )
    if full and not (target / marker).is_file():
        raise ArtifactError(
            f"{target} holds other things (it has no {marker}) and is not overwritten: choose another directory."
        )
    temporary, old = (target.with_name(f".{target.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(temporary, target)
        except BaseException:
            if old.exists():
                os.replace(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def upload(directory: Path, repo_id: str, *, private: bool, token: str | None, message: str) -> str:
    """Put a saved pipeline into a hub repository (made if it is not there); returns the address of the commit.

    Raises:
        ArtifactError: The hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message=message)
    except Exception as error:  # the hub client's own kinds, and those of whatever it speaks HTTP with
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"The pipeline could not be pushed to {repo_id} ({reason}): log in with `hf auth login`, or write it with "
            f"save_pretrained and `hf upload {repo_id} FOLDER` where there is a network."
        ) from error
    return str(done)


def model_card(plan: Plan, generator: Choice, manifests: Mapping[str, Manifest]) -> str:
    """The README.md of a saved pipeline, with the header that the hub reads."""
    args, data = generator.args, manifests["encoder"].data
    base = str(args.get("base", "pocket"))
    shipped = base == "pocket"
    lines = ["---", "library_name: eegrecon", "tags: [eeg, brain-decoding, image-generation]"]
    lines += [f"base_model: {base}"] if HUB_ID.fullmatch(base) and not Path(base).exists() else []
    lines += ["---", "", "# From EEG to the picture that was seen", ""]
    subjects = ", ".join(map(str, data.get("subjects", []))) or "not named"
    trained_on = f"`{data.get('set') or 'unnamed'}`, subjects {subjects}"
    lines += [f"An eegrecon {__version__} pipeline, trained on {trained_on}."]
    if data.get("set") == "pocket":
        lines += ["**The EEG of this set is simulated: this pipeline tests software and says nothing about brains.**"]
    lines += ["", "```python", "from eegrecon import EEGToImagePipeline", ""]
    lines += ['pipe = EEGToImagePipeline.from_pretrained("THIS REPOSITORY OR FOLDER")']
    lines += ["pictures = pipe(eeg, generator=0).images  # a list of PIL pictures for each trial", "```", ""]
    lines += [f"`eeg` is `mne.Epochs`, or an array (trials, channels, samples): {plan.eeg}. Channels, in order:"]
    lines += [", ".join(plan.eeg.ch_names) + ".", "", f"Pictures are made by `{generator.name}` with `{args}`."]
    if shipped:
        lines += ["Its weights come with the package."]
    else:
        adapter = str(args.get("ip_adapter") or "its ip_adapter/ folder")
        lines += [
            f"Its weights are not in here: fetch `{base}` and the adapter `{adapter}`, or name where they are with"
        ]
        lines += ['`from_pretrained(…, generator_args={"base": …, "ip_adapter": …})`.']
    numbers = {**manifests["encoder"].metrics, **manifests["prior"].metrics, **plan.metrics}
    rows = [f"| {name} | {value:.4g} |" for name, value in numbers.items() if isinstance(value, int | float)]
    if rows:
        lines += ["", "Numbers of its stages (`val/`: held-out concepts; `test/`: the run's test pictures):", ""]
        lines += ["| number | value |", "| --- | --- |", *rows]
    return "\n".join([*lines, ""])
