"""`reconstruct`: stage 3, from the test EEG to pictures, their grid and their scores.

With `part: val` it makes pictures of held-out training concepts instead, for choosing settings, and opens no test file.
Beside `evaluate` the only stage that opens test EEG: EEG (repetitions averaged) → encoder → prior → generator. With it
the ceiling: the same generator on the seen pictures' own embeddings, with the same noise.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from eegrecon.artifacts import (
    Manifest,
    input_record,
    is_rank_zero,
    open_stage,
    read_manifest,
    save_embeds,
    write_json,
    write_manifest,
)
from eegrecon.callbacks.grids import log_picture, picture_grid, save_picture
from eegrecon.callbacks.reconstruction import ReconstructionWriter
from eegrecon.config import GENERATORS, config_hash, parse_yaml, to_dict, to_yaml
from eegrecon.data import ImageSet, target_dir, trial_dir
from eegrecon.data.picture_rows import picture_rows, vocabulary
from eegrecon.diffusion.samplers import row_generators
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.loading import load
from eegrecon.models.generators.conditioning import mismatches
from eegrecon.models.judges import load_target_space
from eegrecon.modules.generator import GeneratorModule
from eegrecon.modules.picture_memory import enough_memory, fitting_batch, half_of
from eegrecon.pathways.composition import Pathways, check_pathways
from eegrecon.pathways.semantic import words_of
from eegrecon.registry import resolve
from eegrecon.stages.best_draw import CHOSEN, CHOSEN_CEILING, RULES, best_draws, check_keep
from eegrecon.stages.data_module import data_module
from eegrecon.stages.encoder_scores import load_ridge, protocol_block, text_input, write_ranks
from eegrecon.stages.evaluate import (
    CAPTIONS,
    CEILING,
    PICTURES,
    SCORES,
    Scored,
    embeds_file,
    headline,
    print_summary,
    score_directory,
    write_captions,
    write_scores,
)
from eegrecon.stages.trainer import build_trainer, interruptible, trained_manifest
from eegrecon.stages.upstream import (
    check_data,
    check_same_data,
    check_target,
    generator_input,
    permuted_input,
    require_one_subject,
)

STAGE = "reconstruct"
GRID_PICTURES = 24
CREDITS = {
    "pocket": "Simulated EEG. Drawings: Twemoji (© Twitter and contributors, CC BY 4.0), OpenMoji (CC BY-SA 4.0)"
}


def run(cfg: Any, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """Make the test pictures of a run (or those of validation concepts) and score them.

    Writes `pictures/`, `pictures_ceiling/`, `grid.png`, `grid_by_score.png`, `embeds/<part>.safetensors`, `scores.csv`,
    `metrics.json`, `tensorboard/`, with a semantic pathway `captions.json`, and, last, the manifest.

    Args:
        cfg: `ReconstructConfig`.
        directory: The run's `reconstruct/`; `encoder/` and `prior/` are its siblings.
        command: What was typed.
        overwrite: Replace a finished result.

    Returns:
        The manifest (on other ranks than 0 an unwritten one).

    Raises:
        ArtifactError: An upstream stage is missing, changed, of another target space or of other data.
        DataError: The test data or the generator's weights are missing or broken.
    """
    started = time.monotonic()
    check_keep(cfg.keep, cfg.draws)
    check_part(cfg)
    upstream = _Upstream(cfg, directory.parent)
    state = open_stage(directory, STAGE, config_hash(cfg), to_yaml(cfg), upstream.inputs, overwrite)
    if state == "up_to_date":
        return read_manifest(directory)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    generator = resolve(GENERATORS, cfg.generator)
    check_conditioning(generator, upstream.store.interface(), cfg)
    upstream.pathways.check(generator, str(cfg.generator.args.get("base", "pocket")))
    embeds = decode(cfg, upstream)
    trainer = _trainer(cfg, directory, upstream.data.images, embeds["image_index"])
    if is_rank_zero():
        for folder in (PICTURES, CEILING):  # a killed attempt may have used other settings
            shutil.rmtree(directory / folder, ignore_errors=True)
    own = embeds["image_embeds"][:, None].expand(-1, cfg.draws, -1)  # what the seen pictures themselves give
    inputs = [
        upstream.pathways.decoded(embeds["eeg"], embeds["subject"], embeds["pred_image_embeds"]),
        upstream.pathways.ceiling(own, embeds.get("latents")),
    ]
    words = vocabulary(inputs)
    upstream.data.set_pictures([picture_rows(one, embeds["image_index"], words) for one in inputs])
    size = _pictures_at_once(cfg, generator, trainer, upstream.data)
    module = GeneratorModule(generator, seed=cfg.seed, words=words)
    advice = half_of(size, "batch_size={}", "a smaller generator.args.size")
    with interruptible(trainer), enough_memory(advice, f"a batch of {size} pictures"):
        trainer.predict(module, datamodule=upstream.data, return_predictions=False)
    manifest = trained_manifest(
        STAGE,
        command,
        cfg,
        trainer,
        data=upstream.data.describe(),
        interface=upstream.prior.interface,
        inputs=upstream.inputs,
    )
    if not trainer.is_global_zero:
        return manifest
    kept: tuple[str, ...] = ("pred_image_embeds", "ridge_embeds")
    extra = {name: embeds[name].numpy() for name in kept if name in embeds}
    if inputs[0].latents is not None:
        extra["pred_latents"] = inputs[0].latents.numpy()
    if cfg.keep == "best":
        network = load_target_space(upstream.store.interface())
        ids = upstream.data.images.ids(embeds["image_index"].numpy())
        for name, folder, made_from in (
            (CHOSEN, PICTURES, embeds["pred_image_embeds"]),
            (CHOSEN_CEILING, CEILING, own),
        ):
            extra[name] = best_draws(directory / folder, ids, made_from, network).numpy()
    save_embeds(
        directory / embeds_file(cfg.part),
        embeds["eeg_embeds"].numpy(),
        embeds["image_index"].numpy(),
        embeds["subject"].numpy(),
        np.full(len(embeds["subject"]), -1),
        extra,
    )
    write_captions(directory, upstream.data.images, embeds["image_index"], inputs)
    scored = score_directory(directory, cfg, upstream.store, _protocol(cfg, upstream, embeds))
    write_json(directory / "metrics.json", scored.payload)
    _write_grids(cfg, directory, upstream.data.images, scored, trainer.logger)
    print_summary(scored.payload)
    write_scores(directory, scored)
    files = [
        "metrics.json",
        SCORES,
        *[CAPTIONS][: (directory / CAPTIONS).is_file()],
        "grid.png",
        "grid_by_score.png",
        embeds_file(cfg.part),
        *write_ranks(directory, scored.ranks),
    ]
    files += [
        f"{folder}/{path.name}" for folder in (PICTURES, CEILING) for path in sorted((directory / folder).iterdir())
    ]
    manifest.outputs = {name: {} for name in files}
    manifest.metrics = headline(scored.payload)
    manifest.wall_seconds = time.monotonic() - started
    return write_manifest(directory, manifest)


class _Upstream:
    """The finished stages and stores this one reads, all checked against each other before anything heavy starts."""

    def __init__(self, cfg: Any, run_dir: Path) -> None:
        subject = require_one_subject(cfg, "reconstruct")
        taken = [name for name in ("callbacks", "logger", "enable_checkpointing") if cfg.trainer.get(name) is not None]
        if taken:
            raise ConfigError(f"trainer.{' and trainer.'.join(taken)} cannot be set for reconstruct; remove it.")
        set_root = Path(cfg.data.root) / cfg.data.set
        self.encoder_dir, self.prior_dir = run_dir / "encoder", run_dir / "prior"
        targets = target_dir(set_root, cfg.target.name)
        trials = trial_dir(set_root, subject)
        self.encoder = read_manifest(self.encoder_dir, fix="`eegrecon train-encoder`")
        self.prior = read_manifest(self.prior_dir, fix="`eegrecon train-prior`")
        check_pathways(cfg.pathways)
        self.data = data_module("reconstruct", cfg.data, _targets(cfg), seed=cfg.seed, batch_size=cfg.batch_size)
        self.store = self.data.targets["image"]
        interface = self.store.interface()
        check_target(self.encoder, interface, self.encoder_dir, targets, "`eegrecon train-encoder` with this target")
        check_target(self.prior, interface, self.prior_dir, targets, "`eegrecon train-prior` with this target")
        check_data(self.encoder, cfg.data, self.encoder_dir)
        check_same_data(self.encoder, self.data.describe(), self.encoder_dir)
        trained_on = self.prior.inputs.get("encoder", {}).get("manifest_sha256")
        if trained_on != input_record(self.encoder_dir)["manifest_sha256"]:
            raise ArtifactError(
                f"The prior in {self.prior_dir} was trained on another encoder than {self.encoder_dir} holds: run "
                "`eegrecon train-prior … --overwrite`."
            )
        split = self.data.split
        held_out = set(self.data.images.concept_index[split.val].tolist()) if cfg.part == "val" else set()
        words = words_of(cfg.pathways.semantic, set_root, held_out)
        if words is not None and cfg.part == "val":
            words.check_held_out(split.describe())
        self.pathways = Pathways(cfg.pathways, run_dir, self.encoder.data, self.prior.interface, words)
        self.permuted_labels = bool(self.config("encoder").get("permute_labels", False))
        self.inputs = {"encoder": input_record(self.encoder_dir), "prior": input_record(self.prior_dir)}
        self.inputs |= {"targets": input_record(targets), "trials": input_record(trials)}
        if cfg.pathways.low_level:  # the ceiling starts from them
            self.inputs["latent_targets"] = input_record(target_dir(set_root, cfg.latent_target.name))
        self.inputs |= self.pathways.inputs | generator_input(cfg.generator) | text_input(cfg) | permuted_input(cfg)

    def config(self, stage: str) -> dict[str, Any]:
        """The resolved config of an upstream stage."""
        return parse_yaml((getattr(self, f"{stage}_dir") / "config.yaml").read_text(encoding="utf-8"))


def _targets(cfg: Any) -> dict[str, Any]:
    """The target stores that are read, by their key in a batch."""
    if not cfg.pathways.low_level:
        return {"image": cfg.target}
    if not cfg.latent_target.name:
        raise ConfigError(
            f"pathways.low_level is {cfg.pathways.low_level!r}, but latent_target.name is empty: name the store of the "
            "pictures' latents, which the ceiling is made from."
        )
    return {"image": cfg.target, "vae_latent": cfg.latent_target}


def check_conditioning(generator: Any, interface: Mapping[str, Any], cfg: Any) -> None:
    """Refuse a generator that was trained on another embedding space than the prior's.

    Raises:
        ArtifactError: Names the fields that differ.
    """
    wrong = mismatches(generator, interface)
    if wrong:
        raise ArtifactError(
            f"The generator {cfg.generator.name} {cfg.generator.args} does not fit the target {cfg.target.name!r}: "
            f"{'; '.join(wrong)}; choose a target.name or a generator.args.ip_adapter that belong together."
        )


def decode(cfg: Any, upstream: _Upstream) -> dict[str, Tensor]:
    """Run encoder, linear baseline and prior on the averaged test trials, on the CPU.

    Returns:
        `eeg` (n, n_chans, n_times) itself, `latents` (n, 4, h, w) of the seen pictures if there is a low-level pathway,
        `eeg_embeds` (n, dim), `pred_image_embeds` (n, draws, dim), `image_embeds` (n, dim) of the seen pictures,
        `image_index` and `subject` (n,) int64, and `ridge_embeds` (n, dim) if the encoder stage fitted the baseline.
    """
    batch = _rows(cfg, upstream.data)
    eeg, subject, image_index = batch["eeg"], batch["subject"], batch["image_index"]
    encoder = load(upstream.encoder_dir)
    with torch.no_grad():
        eeg_embeds = torch.cat(
            [encoder(*rows) for rows in zip(eeg.split(256), subject.split(256), strict=True)]
        ).float()
        found = {"eeg": eeg, "eeg_embeds": eeg_embeds, "image_index": image_index, "subject": subject}
        baseline = load_ridge(upstream.encoder_dir, upstream.data)
        if baseline is not None:
            found["ridge_embeds"] = baseline(eeg, subject)
        prior: Any = load(upstream.prior_dir)
        prior.use_scheduler(cfg.sample.scheduler, cfg.sample.num_inference_steps)
        draws = [
            prior.sample(
                eeg_embeds,
                generators=row_generators(cfg.seed, subject.tolist(), image_index.tolist(), [draw] * len(image_index)),
                guidance_scale=cfg.sample.guidance_scale,
                num_inference_steps=cfg.sample.num_inference_steps,
            )
            for draw in range(cfg.draws)
        ]
    found["pred_image_embeds"] = torch.stack(draws, dim=1).float()
    found["image_embeds"] = batch["targets"]["image"]
    if "vae_latent" in batch["targets"]:
        found["latents"] = batch["targets"]["vae_latent"]
    return found


def check_part(cfg: Any) -> None:
    """Refuse what pictures of validation concepts have not.

    Raises:
        ConfigError: Says which.
    """
    if cfg.part == "val" and cfg.data.protocol != "within_subject":
        raise ConfigError(
            f"part is 'val', but under data.protocol {cfg.data.protocol!r} validation trials are of other subjects "
            "than those that are tested: choose settings within one subject."
        )
    if cfg.part == "val" and cfg.permuted_run:
        raise ConfigError("permuted_run names a control of test pictures, but part is 'val': leave it empty.")


def _rows(cfg: Any, data: Any) -> dict[str, Any]:
    """The averaged trials of the part that is asked for; of validation the first picture of each concept."""
    batch = data.averaged(cfg.part)
    if cfg.part == "test":
        return dict(batch)
    chosen = torch.isin(batch["image_index"], data.gallery)
    rows = {name: value[chosen] for name, value in batch.items() if isinstance(value, Tensor)}
    return {**rows, "targets": {name: value[chosen] for name, value in batch["targets"].items()}}


def _trainer(cfg: Any, directory: Path, images: ImageSet, image_index: Tensor) -> lightning.Trainer:
    ids = {int(i): images.records[int(i)].image_id for i in image_index}
    callbacks: list[lightning.Callback] = [ReconstructionWriter([directory / PICTURES, directory / CEILING], ids)]
    return build_trainer(
        STAGE, cfg.trainer, directory, callbacks, enable_checkpointing=False, use_distributed_sampler=False
    )


def _pictures_at_once(cfg: Any, generator: Any, trainer: lightning.Trainer, data: Any) -> int:
    """The batch size over all processes; one that is chosen here is told to the data and on stderr."""
    if cfg.batch_size:
        return cfg.batch_size
    device = trainer.strategy.root_device
    beside = 1 if device.type == "cuda" else trainer.world_size // trainer.num_nodes
    each = fitting_batch(generator, device, processes=beside)
    data.batch_size = each * trainer.world_size
    if is_rank_zero():
        sys.stderr.write(f"eegrecon: reconstruct: {each} pictures at a time fit into the memory of {device}\n")
    return data.batch_size


def _protocol(cfg: Any, upstream: _Upstream, embeds: Mapping[str, Tensor]) -> dict[str, Any]:
    shared = protocol_block(
        cfg,
        upstream.data,
        upstream.encoder,
        permuted_labels=upstream.permuted_labels,
        n_pictures=len(embeds["image_index"]),
        part=cfg.part,
    )
    return {
        **shared,
        "prior": to_dict(cfg.sample),
        "generator": {"name": cfg.generator.name, "args": dict(cfg.generator.args)},
        "pathways": to_dict(cfg.pathways),
        "keep": RULES[cfg.keep],
        "ceiling": "the same pathways from the seen pictures themselves, with the same noise",
    }


def _write_grids(cfg: Any, directory: Path, images: ImageSet, scored: Scored, logger: Any) -> None:
    """Write the two grids and show them, with the scores, in TensorBoard.

    `grid.png`: pictures at even distances through the test set, chosen by nothing else. `grid_by_score.png`: the best,
    middle and worst eight for the judge.
    """
    n = len(scored.image_index)
    spread = np.linspace(0, n - 1, min(GRID_PICTURES, n)).round().astype(int).tolist()
    judged = scored.scores.per_picture[f"{cfg.part}/two_way_{cfg.judge}"]
    ranked = torch.argsort(judged, descending=True, stable=True).tolist()
    width = min(8, n)
    middle = (n - width) // 2
    by_score = [*ranked[:width], *ranked[middle : middle + width], *ranked[n - width :]]
    decoded = "from EEG" if not scored.payload["protocol"]["permuted_labels"] else "permuted labels"
    value = scored.payload["metrics"][f"{cfg.part}/two_way_{cfg.judge}"]["value"]
    title = (
        f"{cfg.data.set} subject {cfg.data.tested_subject}, two-way identification {100 * value:.0f} % (chance 50 %)"
    )
    for name, chosen, note in (
        ("grid", spread, f"{len(spread)} of {n} pictures at even distances through the {cfg.part} pictures"),
        ("grid_by_score", by_score, "best, middle and worst for the judge, one block each"),
    ):
        captions = [images.concept_of(scored.image_index[i]).replace("_", " ") for i in chosen]
        if name == "grid_by_score":
            captions = [f"{caption} {100 * judged[i]:.0f}" for caption, i in zip(captions, chosen, strict=True)]
        rows: dict[str, Sequence[Any]] = {
            "seen": [scored.seen[i] for i in chosen],
            decoded: [scored.decoded[i] for i in chosen],
            "ceiling": [scored.ceiling[i] for i in chosen],
        }
        grid = picture_grid(
            rows, captions, columns=width, title=f"{title}: {note}", footer=CREDITS.get(cfg.data.set, "")
        )
        save_picture(grid, directory / f"{name}.png")
        log_picture(logger, f"pictures/{name}", grid)
    if logger is not None:
        logger.log_metrics(headline(scored.payload), step=0)
        logger.finalize("success")
