"""`EEGToImagePipeline`: encoder, prior and generator of a finished run as one object, in diffusers' idiom.

A picture's noise is that of `reconstruct`: an integer `generator` seeds each trial's prior by (seed, subject, image,
draw) and its picture by (seed, image, draw), so a result depends on no batch, and `EEGToImagePipeline.generators` with
a run's seed and image indices gives the pictures that the run made.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eegrecon.artifacts import read_manifest
from eegrecon.callbacks.grids import to_pil
from eegrecon.config import GENERATORS
from eegrecon.data.picture_rows import PictureInputs
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.loading import load
from eegrecon.models.generators.conditioning import mismatches
from eegrecon.modules.picture_memory import enough_memory, fitting_batch, half_of
from eegrecon.pathways.composition import Pathways
from eegrecon.pipeline_checks import check_counts, check_scales, check_told, trials_of
from eegrecon.pipeline_files import Plan, locate, read_plan, save, upload
from eegrecon.pipeline_noise import Noise, noise_of, picture_noise, subject_ids
from eegrecon.registry import resolve

EMBED_ROWS = 256  # trials that are embedded together, as `reconstruct` does
OUTPUT_TYPES = ("pil", "pt")


@dataclass(frozen=True)
class EEGToImageOutput:
    """What a call of the pipeline gives.

    Attributes:
        images: One list a trial, with a picture a draw: PIL pictures or, with `output_type="pt"`, tensors (3, h, w)
            in [0, 1].
        eeg_embeds: (n, dim) float32 on the CPU, the encoder's.
        image_embeds: (n, num_images_per_trial, dim) float32 on the CPU, the prior's: what the pictures (or, where
            `pathways.prior` is off, their captions alone) were made from.
    """

    images: list[list[Any]]
    eeg_embeds: Tensor
    image_embeds: Tensor


class EEGToImagePipeline:
    """EEG to pictures; build it with `from_pretrained`.

    Attributes:
        encoder: EEG to EEG embedding (`AlignedEncoder`).
        prior: EEG embedding to image embedding (has `sample`).
        pathways: What is said beside the prior: latents to start from, words (`Pathways`).
        image_generator: Image embedding to picture.
        plan: What the run or the saved pipeline says: the form of its EEG (`plan.eeg`), defaults of sampling.
        device: Where it runs.
    """

    def __init__(self, encoder: Any, prior: Any, pathways: Pathways, image_generator: Any, plan: Plan) -> None:
        self.encoder, self.prior, self.pathways = encoder, prior, pathways
        self.image_generator, self.plan = image_generator, plan
        self.device = torch.device("cpu")

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: str | torch.device = "cpu",
        generator_args: Mapping[str, Any] | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> EEGToImagePipeline:
        """Load a pipeline.

        Args:
            source: A run directory (`encoder/`, `prior/` and the `reconstruct/` whose config names the generator), a
                directory that `save_pretrained` wrote, or the hub id of one ("owner/name").
            device: A torch device.
            generator_args: Replace single arguments of the generator, such as `{"base": "/models/sdxl-turbo"}`.
            revision: Branch, tag or commit of a hub repository.
            cache_dir: Where the hub's files are kept, default the hub client's.

        Raises:
            ArtifactError: Something is missing, unfinished, changed or does not belong together.
            DataError: The generator's weights are not on this machine.
        """
        plan = read_plan(locate(source, revision=revision, cache_dir=cache_dir), generator_args)
        encoder = load(plan.home / "encoder")
        prior: Any = load(plan.home / "prior")
        prior.use_scheduler(plan.sample.scheduler, plan.sample.num_inference_steps)
        data = read_manifest(plan.home / "encoder", verify=False).data
        pathways = Pathways(plan.pathways, plan.home, data, plan.interface, plan.words)
        image_generator = resolve(GENERATORS, plan.generator)
        if wrong := mismatches(image_generator, plan.interface):
            raise ArtifactError(
                f"The generator {plan.generator.name} {plan.generator.args} does not fit the prior in "
                f"{plan.home / 'prior'}: {'; '.join(wrong)}; name a base and ip_adapter that belong to it."
            )
        pathways.check(image_generator, str(plan.generator.args.get("base", "pocket")))
        pipe = cls(encoder, prior, pathways, image_generator, plan)
        with enough_memory("another device, or a smaller generator or torch_dtype (generator_args)", "the networks"):
            return pipe.to(device)

    def to(self, device: str | torch.device) -> EEGToImagePipeline:
        """Move everything to a device; returns the pipeline."""
        for part in (self.encoder, self.prior, self.pathways, self.image_generator):
            part.to(device)
        self.device = torch.device(device)
        return self

    def save_pretrained(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Write the pipeline to a directory of its own that `from_pretrained` reads.

        Encoder and prior are copied with their manifests; the generator's weights are only named.

        Args:
            directory: Made if it is not there.
            overwrite: Replace a pipeline that is there.

        Raises:
            ArtifactError: Something else is there, or the stages changed since they were loaded.
        """
        save(self.plan, Path(directory), overwrite=overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str = "Upload EEGToImagePipeline",
    ) -> str:
        """Put what `save_pretrained` writes into a hub repository.

        Args:
            repo_id: "owner/name"; made if it is not there.
            private: Whether a new repository is private.
            token: Of the hub; default: that of `hf auth login`.
            commit_message: Of the upload.

        Returns:
            The address of the commit.

        Raises:
            ArtifactError: The hub refuses or cannot be reached.
        """
        if (base := Path(str(self.plan.generator.args.get("base", "pocket")))).is_dir():
            _note(f"the generator lies in {base}: who loads {repo_id} elsewhere has to give generator_args['base']")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "pipeline")
            return upload(Path(folder) / "pipeline", repo_id, private=private, token=token, message=commit_message)

    @staticmethod
    def generators(seed: int, subject: Sequence[int], image_index: Sequence[int], draws: int = 1) -> list[list[Noise]]:
        """What `__call__` takes as `generator`: for each trial, for each draw, a generator for prior and for picture.

        `reconstruct` uses its run's seed, the tested subject and the pictures' positions in `images.json`.

        Args:
            seed: Any integer.
            subject: (n,) whose trials they are.
            image_index: (n,) what tells one trial from another.
            draws: Pictures of each trial.
        """
        return picture_noise(seed, subject, image_index, draws)

    def __call__(
        self,
        eeg: Any,
        *,
        subject: int | Sequence[int] = 0,
        generator: Any = None,
        num_images_per_trial: int = 1,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        prior_guidance_scale: float | None = None,
        prior_num_inference_steps: int | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
    ) -> EEGToImageOutput:
        """Make pictures of what was seen.

        Args:
            eeg: `mne.Epochs` (brought to the encoder's channels, window, rate, baseline and unit, or refused), or a
                tensor or array (n, n_chans, n_times) in the encoder's form already (`pipe.plan.eeg`). Repetitions of a
                picture are worth averaging before.
            subject: Whose trials they are: one id, or one for each trial; 0: nobody the encoder was trained on.
            generator: An integer seed; a `torch.Generator`, which is asked for a seed; or a list of one a trial, each
                an integer, a `torch.Generator` or what `generators` gives. None: torch's global random numbers.
            num_images_per_trial: Pictures of each trial, of other noise.
            guidance_scale: Of the picture generator; default: what the run used. So are the next three.
            num_inference_steps: Of the picture generator.
            prior_guidance_scale: Of the prior.
            prior_num_inference_steps: Of the prior.
            batch_size: Pictures that are made together; no result depends on it, beyond 1/255 a pixel. Default: the
                run's, which may be as many as fit into memory.
            output_type: "pil" or "pt".

        Raises:
            ConfigError: An argument that makes no sense, or not enough memory for the batch size.
            DataError: EEG that is not what the encoder was trained on.
        """
        if output_type not in OUTPUT_TYPES:
            raise ConfigError(f"output_type is {output_type!r}, expected one of {', '.join(OUTPUT_TYPES)}.")
        draws = num_images_per_trial
        check_counts(num_images_per_trial=draws, num_inference_steps=num_inference_steps, batch_size=batch_size)
        check_scales(guidance_scale=guidance_scale)
        trials = self.prepare(eeg, subject=subject)
        subjects = subject_ids(subject, len(trials))
        noise = noise_of(generator, subjects, draws)
        eeg_embeds, image_embeds = self.embed(
            trials,
            subject=subjects,
            generator=noise,
            guidance_scale=prior_guidance_scale,
            num_inference_steps=prior_num_inference_steps,
        )
        inputs = self.told(trials, image_embeds, subject=subjects)
        batches = self.generate(
            inputs.image_embeds,
            latents=inputs.latents,
            captions=inputs.captions,
            generator=noise,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            batch_size=batch_size,
        )
        pictures = [to_pil(one) if output_type == "pil" else one for batch in batches for one in batch]
        images = [pictures[start : start + draws] for start in range(0, len(pictures), draws)]
        return EEGToImageOutput(images, eeg_embeds, image_embeds)

    def prepare(self, eeg: Any, *, subject: int | Sequence[int] = 0) -> np.ndarray:
        """The trials as the encoder takes them, (n, n_chans, n_times); what is odd about them is said on stderr.

        Raises:
            DataError: They are not what the encoder was trained on.
        """
        trials, notes = trials_of(eeg, self.plan.eeg, self.encoder.channel_std.cpu().numpy())
        known = self.encoder.known_subjects
        unknown = sorted(set(subject_ids(subject, len(trials))) - set([] if known is None else known.tolist()))
        if known is not None and unknown:
            notes.append(
                f"subject {', '.join(map(str, unknown))} is none of those the encoder was trained on "
                f"({', '.join(map(str, known.tolist()))}): treated as unknown"
            )
        for note in notes:
            _note(note)
        return trials

    @torch.no_grad()
    def embed(
        self,
        trials: np.ndarray,
        *,
        subject: int | Sequence[int] = 0,
        generator: Any = None,
        num_images_per_trial: int | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encoder and prior alone.

        Args:
            trials: What `prepare` gave.
            subject: As in `__call__`, like the rest.
            generator: See there.
            num_images_per_trial: Samples of each trial; default: as many as `generator` has, or 1.
            guidance_scale: Of the prior.
            num_inference_steps: Of the prior.

        Returns:
            eeg_embeds (n, dim) and image_embeds (n, num_images_per_trial, dim), float32 on the CPU.
        """
        check_counts(prior_num_inference_steps=num_inference_steps, num_images_per_trial=num_images_per_trial)
        check_scales(prior_guidance_scale=guidance_scale)
        if num_inference_steps is not None:
            self.prior.use_scheduler(self.plan.sample.scheduler, num_inference_steps)  # or says what is wrong with them
        subjects = subject_ids(subject, len(trials))
        noise = noise_of(generator, subjects, num_images_per_trial)
        scale = self.plan.sample.guidance_scale if guidance_scale is None else float(guidance_scale)
        steps = self.plan.sample.num_inference_steps if num_inference_steps is None else num_inference_steps
        eeg_embeds, image_embeds = [], []
        with enough_memory("fewer trials in one call", "the trials"):
            for start in range(0, len(trials), EMBED_ROWS):
                rows = slice(start, start + EMBED_ROWS)
                eeg = torch.from_numpy(np.array(trials[rows], dtype=np.float32, order="C")).to(self.device)
                ids = torch.tensor(subjects[rows], device=self.device)
                embeds = self.encoder(eeg, ids).float()
                draws = [
                    self.prior.sample(
                        embeds,
                        generators=[pairs[draw][0] for pairs in noise[rows]],
                        guidance_scale=scale,
                        num_inference_steps=steps,
                    )
                    for draw in range(len(noise[0]))
                ]
                eeg_embeds.append(embeds.cpu())
                image_embeds.append(torch.stack(draws, dim=1).float().cpu())
        return torch.cat(eeg_embeds), torch.cat(image_embeds)

    def told(self, trials: np.ndarray, image_embeds: Tensor, *, subject: int | Sequence[int] = 0) -> PictureInputs:
        """What the run's pathways tell the picture generator: embeddings, latents to start from, words.

        Args:
            trials: What `prepare` gave.
            image_embeds: (n, draws, dim), what `embed` gave.
            subject: As in `__call__`.

        Raises:
            ConfigError: Not enough memory.
            DataError: Embeddings that are not finite.
        """
        ids = torch.tensor(subject_ids(subject, len(trials)))
        wanted = trials if self.pathways.latents is not None else trials[:0]  # of a mapped file only what is read
        eeg = torch.from_numpy(np.array(wanted, dtype=np.float32, order="C"))
        with enough_memory("fewer trials in one call", "latents and captions of the trials"):
            return self.pathways.decoded(eeg, ids, image_embeds)

    def generate(
        self,
        image_embeds: Tensor,
        *,
        latents: Tensor | None = None,
        captions: Sequence[Sequence[str]] | None = None,
        generator: Any = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Tensor]:
        """The picture generator alone, batch by batch.

        Args:
            image_embeds: (n, draws, dim), in the space that the generator was trained on.
            latents: (n, 4, h, w) scaled latents to start from; None: from noise.
            captions: n lists of a prompt for each draw; None: no words.
            generator: As in `__call__`, like the rest.
            guidance_scale: Of the generator.
            num_inference_steps: Of the generator.
            batch_size: Pictures in a batch.

        Yields:
            (b, 3, h, w) float32 in [0, 1] on the CPU: the pictures in order, all draws of a trial after each other.
        """
        check_counts(num_inference_steps=num_inference_steps, batch_size=batch_size)
        check_scales(guidance_scale=guidance_scale)
        check_told(image_embeds, latents, captions, self.image_generator)
        n, draws, _ = image_embeds.shape
        noise = [pair[1] for pairs in noise_of(generator, [0] * n, draws) for pair in pairs]
        wanted = self.plan.batch_size if batch_size is None else batch_size
        rows = image_embeds.flatten(0, 1)
        starts = None if latents is None else latents.repeat_interleave(draws, dim=0)
        prompts = None if captions is None else [words for row in captions for words in row]
        changed = {"guidance_scale": guidance_scale, "num_inference_steps": num_inference_steps}
        with _changed(self.image_generator, changed):
            size = min(wanted or fitting_batch(self.image_generator, self.device), n * draws)
        advice = half_of(size, "batch_size={0} (--batch-size {0})", "smaller pictures (generator_args)")
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            with enough_memory(advice, f"a batch of {size} pictures"), _changed(self.image_generator, changed):
                pictures = self.image_generator(
                    rows[part].to(self.device),
                    latents=None if starts is None else starts[part].to(self.device),
                    prompts=None if prompts is None else prompts[part],
                    generators=noise[part],
                )
            yield pictures.float().cpu()


@contextmanager
def _changed(generator: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Other settings of the generator while the block runs."""
    values = {name: value for name, value in values.items() if value is not None}
    if lacking := [name for name in values if not hasattr(generator, name)]:
        raise ConfigError(f"This generator has no {' and no '.join(lacking)} to change: leave it out.")
    before = {name: getattr(generator, name) for name in values}
    try:
        for name, value in values.items():
            setattr(generator, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(generator, name, value)


def _note(text: str) -> None:
    sys.stderr.write(f"eegrecon: {text}\n")
