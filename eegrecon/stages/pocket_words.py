"""The parts of `pocket-weights` that deal in words: the text tower's vocabulary, and the captioner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.artifacts import atomic_write

if TYPE_CHECKING:
    import numpy as np
    import torch

    from eegrecon.config import PocketWeightsConfig
    from eegrecon.stages.pocket_weights import Scenes

BATCH = 64


def build_text(titles: list[str], clip: Any, extra_words: int) -> tuple[Any, Any]:
    """Build the pocket SDXL's tokenizer and untrained text tower; every word starts where the pocket CLIP puts it.

    Args:
        titles: Of the training drawings: the vocabulary's core.
        clip: The pocket CLIP (open_clip model), heads in place.
        extra_words: Words beside those of the titles.

    Returns:
        The tokenizer and the text tower.
    """
    import torch

    from eegrecon.models.generators.pocket_text import build_text_encoder, build_tokenizer, caption_words, word_table
    from eegrecon.models.vision import build_pocket_clip

    _, _, tokenizer = build_pocket_clip()

    def embed(texts: Any) -> torch.Tensor:
        rows = []
        for at in range(0, len(texts), 256):
            ids = tokenizer(list(texts[at : at + 256]))
            used = (ids != clip.text.config.pad_token_id).any(0)  # padding changes nothing and is most of the work
            with torch.inference_mode():
                rows.append(clip.encode_text(ids[:, used]))
        return torch.cat(rows)

    words = caption_words(titles, embed, candidate_words(), extra_words)
    own = build_tokenizer(words)
    return own, build_text_encoder(own, table=word_table(own, words, embed))


def candidate_words() -> list[str]:
    """Return the words of MiniLM's vocabulary, what the text tower's extra words are chosen from."""
    from eegrecon.models.captioners.git import pocket_tokenizer

    return sorted(pocket_tokenizer().get_vocab())


def caption_ids(titles: list[str], tokenizer: Any) -> torch.Tensor:
    """Return each title's prompts as token ids (n, 2, n_tokens): "a picture of X", and X alone."""
    import torch

    from eegrecon.models.generators.pocket_text import TEMPLATE, tokenize

    return torch.stack([tokenize(tokenizer, [form.format(t) for t in titles]) for form in (TEMPLATE, "{}")], dim=1)


def train_text(
    denoiser: Any,
    tokenizer: Any,
    scenes: Scenes,
    latents: torch.Tensor,
    embeds: torch.Tensor,
    cfg: PocketWeightsConfig,
    work: Path,
) -> None:
    """Teach the text side of a trained denoiser, in place: first the tower alone, then tower and text attention.

    Args:
        denoiser: ``PocketDenoiser`` with the tower of :func:`build_text`; its UNet and adapter are trained.
        tokenizer: The tower's.
        scenes: The training material.
        latents: (n, 4, h, w) scaled, of the scenes.
        embeds: (n, dim) image embeddings of the scenes.
        cfg: Steps of `text` and `captioned`.
        work: Keeps the checkpoints.
    """
    import torch

    from eegrecon.models.generators.pocket_sdxl import build_scheduler, start_text
    from eegrecon.models.generators.pocket_text import tokenize
    from eegrecon.modules.pocket import CaptionModule, TextStartModule
    from eegrecon.stages.pocket_weights import fit_steps, random_batches

    empty = tokenize(tokenizer, [""])
    captions = caption_ids([drawing.title for drawing in scenes.drawings], tokenizer)
    named = embeds.reshape(len(captions), scenes.per_drawing, -1).mean(1)
    steps = {"lr": cfg.text.lr, "total_steps": cfg.text.steps, "weight_decay": 0.02}
    start = TextStartModule(denoiser, empty, tokenizer.eos_token_id, **steps)
    loader = random_batches((captions, named), cfg.text.batch_size, cfg.seed)
    fit_steps(start, loader, cfg.text.steps, work / "text", cfg.trainer)
    start_text(denoiser)
    steps = {"lr": cfg.captioned.lr, "total_steps": cfg.captioned.steps}
    module = CaptionModule(denoiser, build_scheduler(), empty, captions, named, **steps)
    title = torch.arange(len(captions)).repeat_interleave(scenes.per_drawing)
    loader = random_batches((latents, embeds, title), cfg.captioned.batch_size, cfg.seed)
    fit_steps(module, loader, cfg.captioned.steps, work / "captioned", cfg.trainer, average=True)


def make_visual_tokens(scenes: Scenes, with_quarters: int, folder: Path) -> np.ndarray:
    """Compute the visual tokens of the training scenes once, (n, 5, 1280) float16, memory-mapped.

    Args:
        scenes: The training material; drawn again here at the size that the captioner's tower takes.
        with_quarters: How many scenes a drawing get their own quarters (they must be rendered again); the others have
            their mean, which is known already, in all five places.
        folder: Keeps the result.
    """
    import numpy as np
    import torch
    from rich.progress import track

    from eegrecon.models.captioners.git import POCKET_TOKENS, POCKET_WIDTH
    from eegrecon.models.captioners.tower import pocket_network
    from eegrecon.models.packaged import efflite_pixels
    from eegrecon.models.vision import POCKET_SIZE
    from eegrecon.pocket.pictures import spare_scene

    done = folder / "tokens.npy"
    if not done.is_file():
        network = pocket_network().eval()
        tokens = np.repeat(scenes.features.astype(np.float16)[:, None], POCKET_TOKENS, axis=1)
        numbers = [i for i in range(len(tokens)) if i % scenes.per_drawing < with_quarters]
        for start in track(range(0, len(numbers), BATCH), description="visual tokens"):
            part = numbers[start : start + BATCH]
            pictures = [
                spare_scene(scenes.drawings[i // scenes.per_drawing], i % scenes.per_drawing, size=POCKET_SIZE)
                for i in part
            ]
            with torch.inference_mode():
                tokens[part] = network(efflite_pixels(pictures, POCKET_SIZE)).half().numpy()
        assert tokens.shape[1:] == (POCKET_TOKENS, POCKET_WIDTH)
        with atomic_write(done) as file:
            np.save(file, tokens)
    return np.load(done, mmap_mode="c")  # torch wants arrays it could write to; nothing written reaches the file


def train_captioner(scenes: Scenes, cfg: PocketWeightsConfig, work: Path, out: Path) -> None:
    """Train the pocket captioner on (visual tokens, "a picture of <title>") and write what it learnt."""
    import torch
    from safetensors.torch import save_file

    from eegrecon.models.captioners.git import build_pocket_git, encode_captions, pocket_tokenizer, trained_tensors
    from eegrecon.models.generators.pocket_text import TEMPLATE
    from eegrecon.modules.pocket import CaptionerModule
    from eegrecon.stages.pocket_weights import fit_steps, random_batches

    if out.is_file():
        return
    tokens = torch.from_numpy(make_visual_tokens(scenes, cfg.caption_scenes, work / "scenes"))
    captions = [TEMPLATE.format(drawing.title) for drawing in scenes.drawings]
    ids, mask = encode_captions(pocket_tokenizer(), captions)
    drawing = torch.arange(len(captions)).repeat_interleave(scenes.per_drawing)
    module = CaptionerModule(
        build_pocket_git(), lr=cfg.captioner.lr, total_steps=cfg.captioner.steps, weight_decay=0.05
    )
    loader = random_batches((tokens, ids[drawing], mask[drawing]), cfg.captioner.batch_size, cfg.seed)
    fit_steps(module, loader, cfg.captioner.steps, work / "captioner", cfg.trainer)
    out.parent.mkdir(parents=True, exist_ok=True)
    learnt: Any = module.model
    save_file({k: v.detach().cpu().half().contiguous() for k, v in trained_tensors(learnt).items()}, out)
    out.chmod(0o644)  # safetensors writes 0600, which would travel into the wheel
