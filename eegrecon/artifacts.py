"""Stage directories: atomic writes, the up-to-date check, lineage and verification.

The one idea: `manifest.json` appears last, by an atomic rename, and only on rank 0. A directory without it is
unfinished; a directory with it is complete and its files hash to what the manifest says.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, Literal

from eegrecon.config import diff, parse_yaml
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.manifest import SCHEMA, Manifest, new_manifest, to_json

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Manifest",
    "StageState",
    "atomic_write",
    "input_record",
    "is_rank_zero",
    "load_embeds",
    "new_manifest",
    "open_stage",
    "read_manifest",
    "require_interface",
    "save_embeds",
    "sha256_file",
    "write_json",
    "write_manifest",
]

MANIFEST, CONFIG, STARTED, CHECKPOINTS = "manifest.json", "config.yaml", "started.json", "checkpoints"

StageState = Literal["up_to_date", "run", "resume"]


def is_rank_zero() -> bool:
    """Whether this process writes: rank 0 of a distributed run, or the only process."""
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    return True


def open_stage(
    directory: Path,
    stage: str,
    cfg_hash: str,
    cfg_yaml: str,
    inputs: Mapping[str, Mapping[str, str]],
    overwrite: bool = False,
) -> StageState:
    """Decide what a stage has to do in its directory, and claim the directory if it has to run.

    Args:
        directory: The stage's own directory (made if absent).
        stage: The verb, such as `train-encoder`.
        cfg_hash: `config.config_hash(cfg)`.
        cfg_yaml: `config.to_yaml(cfg)`; written to `config.yaml` when the stage has to run.
        inputs: Name to `input_record(...)` of every stage directory read.
        overwrite: Throw away what is there, finished or not.

    Returns:
        `up_to_date`: a manifest of the same config and inputs is there, with all its files; print so and return it.
        `resume`: an unfinished run of the same config and inputs left `checkpoints/last.ckpt`.
        `run`: start from nothing (a stage may find parts of its own in `checkpoints/`, of the same config and inputs).

    Raises:
        ArtifactError: Something else lives here: lists the keys or inputs that differ, names RUN= and --overwrite.
    """
    directory = Path(directory)
    claim = {"stage": stage, "config_hash": cfg_hash, "inputs": {k: v["manifest_sha256"] for k, v in inputs.items()}}
    last = directory / CHECKPOINTS / "last.ckpt"
    if not is_rank_zero():  # rank 0 has decided already, before it launched this process
        return "resume" if last.is_file() else "run"
    if overwrite:
        _clear(directory)
    if (directory / MANIFEST).exists():
        manifest = read_manifest(directory, verify=False)
        seen = {name: record["manifest_sha256"] for name, record in manifest.inputs.items()}
        there: dict[str, Any] = {"stage": manifest.stage, "config_hash": manifest.config_hash, "inputs": seen}
        _refuse_if_different(directory, claim, there, cfg_yaml, "holds a finished result")
        _check_outputs_exist(directory, manifest)
        return "up_to_date"
    if (directory / CHECKPOINTS).is_dir() and any((directory / CHECKPOINTS).iterdir()):
        there = _read_json(directory / STARTED) if (directory / STARTED).is_file() else {}
        _refuse_if_different(directory, claim, there, cfg_yaml, "holds an unfinished run")
        return "resume" if last.is_file() else "run"
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_write(directory / CONFIG) as file:
        file.write(cfg_yaml.encode())
    write_json(directory / STARTED, claim)
    return "run"


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Hash the outputs, write `manifest.json` atomically and last, and remove what was for resuming only.

    Fills `sha256`, `bytes` and, for `.npy` and `.safetensors` files, `shape` of every entry of `manifest.outputs`;
    `config.yaml` is always among them. Call on rank 0 after a barrier.

    Raises:
        ArtifactError: A listed output does not exist.
    """
    directory = Path(directory)
    names = [*manifest.outputs, *([CONFIG] if (directory / CONFIG).is_file() else [])]
    filled = {}
    for name in dict.fromkeys(names):
        path = directory / name
        if not path.is_file():
            raise ArtifactError(f"The stage {manifest.stage} lists the output {path}, which was never written.")
        shape = _shape(path)
        filled[name] = {
            **({"shape": shape} if shape is not None else {}),
            **manifest.outputs.get(name, {}),
            "sha256": sha256_file(path),
            "bytes": path.stat().st_size,
        }
    manifest.outputs = filled
    write_json(directory / MANIFEST, to_json(manifest))
    (directory / STARTED).unlink(missing_ok=True)
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    return manifest


def read_manifest(directory: Path, *, verify: bool = True, fix: str = "") -> Manifest:
    """Read a stage's manifest: it exists, its schema is known and (with `verify`) its files hash to what it says.

    A manifest may come from a stranger's repository, and its outputs are read and copied: names that leave the
    directory are refused, verified or not.

    Args:
        directory: The stage directory.
        verify: Also hash every output.
        fix: The command that makes this directory, for the message.

    Raises:
        ArtifactError: With the sentence that says which of these failed.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if not path.is_file():
        state = "is unfinished (it has no manifest.json)" if directory.is_dir() else "does not exist"
        raise ArtifactError(f"The stage directory {directory} {state}: make it first{f' with {fix}' if fix else ''}.")
    values = _read_json(path)
    if values.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{path} has schema {values.get('schema')!r}, but this eegrecon reads schema {SCHEMA}: "
            "make the directory again with --overwrite, or use the eegrecon version that wrote it."
        )
    known = {item.name for item in fields(Manifest)}
    if set(values) != known:
        odd = ", ".join(sorted(set(values) ^ known))
        raise ArtifactError(f"{path} lacks or adds fields ({odd}): make the directory again with --overwrite.")
    manifest = Manifest(**values)
    _check_output_names(path, manifest.outputs)
    if verify:
        _check_outputs_exist(directory, manifest)
        for name, record in manifest.outputs.items():
            found = sha256_file(directory / name)
            if found != record["sha256"]:
                raise ArtifactError(
                    f"{directory / name} is not the file its manifest describes (sha256 {found[:12]}…, expected "
                    f"{record['sha256'][:12]}…): it was changed after {manifest.stage} finished, so make it again "
                    "with --overwrite."
                )
    return manifest


def input_record(directory: Path) -> dict[str, str]:
    """`{path, manifest_sha256}` of a finished stage directory, for `Manifest.inputs` and `open_stage`.

    Raises:
        ArtifactError: The directory has no manifest.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        read_manifest(directory)
    return {"path": str(directory), "manifest_sha256": sha256_file(path)}


def require_interface(
    manifest: Manifest, wanted: Mapping[str, Any], *, manifest_path: Path, wanted_by: str, fix: str
) -> None:
    """Check that what a stage offers (`manifest.interface`) is what the next one's config asks for.

    Args:
        manifest: The upstream manifest.
        wanted: Field to value; only these fields are compared.
        manifest_path: The upstream stage directory or manifest, for the message.
        wanted_by: The file that asks (a config or a store's header), for the message.
        fix: The command that mends it, for the message.

    Raises:
        ArtifactError: Names every field that differs, both values, both files and the fix.
    """
    absent = "nothing"
    wrong = [
        f"{name} is {manifest.interface.get(name, absent)!r} there and {value!r} here"
        for name, value in wanted.items()
        if manifest.interface.get(name, absent) != value
    ]
    if wrong:
        raise ArtifactError(
            f"{manifest_path} ({manifest.stage}) does not fit {wanted_by}: " + "; ".join(wrong) + f"; run {fix}."
        )


@contextmanager
def atomic_write(path: Path) -> Iterator[Any]:
    """Open a temporary file (binary) in the target's folder; it takes the target's name when the block succeeds.

    On an exception the temporary file is removed and the old file, if any, is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o666 & ~_umask())  # NamedTemporaryFile makes files only their owner can read
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically, indented, with a newline at the end."""
    with atomic_write(path) as file:
        file.write((json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def sha256_file(path: Path) -> str:
    """The sha256 (hex) of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_embeds(
    path: Path,
    eeg_embeds: "np.ndarray",
    image_index: "np.ndarray",
    subject: "np.ndarray",
    repetition: "np.ndarray",
    extra: Mapping[str, "np.ndarray"] | None = None,
) -> None:
    """Write `embeds/*.safetensors` atomically.

    Args:
        path: The file.
        eeg_embeds: (n, dim), stored float32.
        image_index: (n,), position in `images.json`, stored int32 like the next two.
        subject: (n,).
        repetition: (n,), −1 where repetitions were averaged.
        extra: More arrays of n rows, such as `pred_image_embeds`, stored as they are.

    Raises:
        ArtifactError: The arrays differ in length.
    """
    import numpy as np
    from safetensors.numpy import save

    arrays = {
        "eeg_embeds": np.ascontiguousarray(eeg_embeds, dtype=np.float32),
        **{
            name: np.ascontiguousarray(value, dtype=np.int32)
            for name, value in (("image_index", image_index), ("subject", subject), ("repetition", repetition))
        },
        **{name: np.ascontiguousarray(value) for name, value in (extra or {}).items()},
    }
    lengths = {name: len(value) for name, value in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ArtifactError(f"The arrays for {path} must have one row per trial, but their lengths are {lengths}.")
    with atomic_write(path) as file:
        file.write(save(arrays))


def load_embeds(path: Path) -> dict[str, "np.ndarray"]:
    """Read an embeds file: `eeg_embeds` (n, dim) float32; `image_index`, `subject`, `repetition` (n,) int32; extras.

    Raises:
        ArtifactError: The file is missing, unreadable, or lacks one of the four arrays.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"The embeddings {path} cannot be read ({error}): make them again.") from error
    lacking = [name for name in ("eeg_embeds", "image_index", "subject", "repetition") if name not in arrays]
    if lacking:
        raise ArtifactError(f"The embeddings {path} lack {', '.join(lacking)}: make them again.")
    return arrays


def _clear(directory: Path) -> None:
    """Remove what would make an old result look valid or be resumed; the manifest goes first."""
    for name in (MANIFEST, STARTED):
        (directory / name).unlink(missing_ok=True)
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)


def _refuse_if_different(
    directory: Path, claim: Mapping[str, Any], there: Mapping[str, Any], cfg_yaml: str, what: str
) -> None:
    if all(there.get(key) == claim[key] for key in ("stage", "config_hash", "inputs")):
        return
    reasons = []
    if there.get("stage") != claim["stage"]:
        reasons.append(f"the stage ({there.get('stage')!r} there, {claim['stage']!r} here)")
    elif there.get("config_hash") != claim["config_hash"]:
        reasons += _differing_keys(directory, cfg_yaml) or ["the config"]
    old, new = there.get("inputs", {}), claim["inputs"]
    reasons += [f"the input {name!r}" for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    raise ArtifactError(
        f"{directory} {what} that differs from this command in " + ", ".join(reasons) + ": choose another directory "
        "with RUN=… (--run …), or replace it with --overwrite."
    )


def _differing_keys(directory: Path, cfg_yaml: str) -> list[str]:
    try:
        old = parse_yaml((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ConfigError):
        return []
    return diff(old, parse_yaml(cfg_yaml))


def _check_output_names(path: Path, outputs: Any) -> None:
    """Every output is a file below the manifest's own directory, on every system."""
    if not isinstance(outputs, dict) or not all(isinstance(record, dict) for record in outputs.values()):
        raise ArtifactError(
            f"{path} must list its outputs as names with what is known of each: make the directory again with "
            "--overwrite."
        )
    for name in outputs:
        parts = PurePosixPath(name).parts
        if not parts or parts[0] == "/" or ".." in parts or set(name) & set("\\:\0"):
            raise ArtifactError(
                f"{path} lists the output {name!r}, expected the name of a file inside {path.parent}: do not use this "
                "directory unless you know who made it; make or fetch it again."
            )


def _check_outputs_exist(directory: Path, manifest: Manifest) -> None:
    for name, record in manifest.outputs.items():
        path = directory / name
        if not path.is_file():
            raise ArtifactError(f"{path} is listed in the manifest but missing: make it again with --overwrite.")
        if path.stat().st_size != record["bytes"]:
            raise ArtifactError(
                f"{path} has {path.stat().st_size} bytes, but its manifest says {record['bytes']}: it was changed or "
                "truncated, so make it again with --overwrite."
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON ({error}): make it again with --overwrite.") from error
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} must hold a JSON object: make it again with --overwrite.")
    return values


def _shape(path: Path) -> Any:
    """Shape of a .npy, or of each tensor of a .safetensors; None for other files."""
    if path.suffix == ".npy":
        import numpy as np

        return list(np.load(path, mmap_mode="r", allow_pickle=False).shape)
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
    return None


def _umask() -> int:
    # The only portable way to read the umask is to set it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
