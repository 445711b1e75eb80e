"""Captions from visual tokens: transformers' `GitForCausalLM` whose image encoder hands features through.

GIT (Wang et al. 2022, arXiv:2205.14100) reads its vision tower's tokens as a prefix of the text. EEG_Image_decode
captions decoded embeddings by handing it tokens that a projector made instead; it does so with a copied and modified
modelling file (facts/atm.md 5). Replacing one module does the same: the tower's place is taken by one that returns
what it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from eegrecon.artifacts import sha256_file
from eegrecon.errors import ConfigError, DataError
from eegrecon.models.packaged import minilm_folder

if TYPE_CHECKING:
    from transformers import GitForCausalLM

POCKET_FILE = Path(__file__).resolve().parents[2] / "pocket" / "weights" / "captioner" / "model.safetensors"
POCKET_TOKENS, POCKET_WIDTH = 5, 1280  # EfficientNet-Lite0's map as a mean and four quarters, see tower.py
MAX_NEW_TOKENS = 25  # Generation/GIT_caption_batch.ipynb @49cb3a2 (facts/atm.md 5)
# What the package does not ship: it is MiniLM's word table, and its transpose at the output.
PACKAGED = ("git.embeddings.word_embeddings.weight", "output.weight", "output.bias")


class FeaturesAsGiven(nn.Module):
    """Stands in for GIT's image encoder: features in, the same features out."""

    def forward(self, pixel_values: torch.Tensor, **unused: Any) -> Any:
        """Return (b, 1, n_tokens, width), given as `pixel_values`, as a last hidden state (b, n_tokens, width).

        The second axis is there because `GitModel.forward` takes four axes for a picture (five are a film).
        """
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=pixel_values[:, 0])


class GitCaptioner(nn.Module):
    """Captions from visual tokens, greedy or by beams, never sampled: equal features give equal words.

    Attributes:
        n_tokens: Visual tokens a picture, 257 for git-large.
        width: Width of a token, 1024 for git-large.
        name: Repository or folder the weights came from, or "pocket".
        weights_tag: Which weights.

    Args:
        model: A `GitForCausalLM`; its image encoder is replaced in place.
        tokenizer: Its tokenizer.
        name: See above.
        weights_tag: See above.
        num_beams: 1: greedy.
        max_new_tokens: Longest caption, in tokens.

    Raises:
        ConfigError: A number outside its range.
    """

    def __init__(
        self,
        model: GitForCausalLM,
        tokenizer: Any,
        name: str,
        weights_tag: str,
        num_beams: int = 1,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        super().__init__()
        if num_beams < 1 or max_new_tokens < 1:
            raise ConfigError(
                f"num_beams and max_new_tokens of the captioner must be at least 1; got {num_beams} and "
                f"{max_new_tokens}."
            )
        config = model.config
        self.n_tokens = model.git.encoder.layer[0].attention.self.image_patch_tokens
        self.width = config.vision_config.hidden_size
        model.git.image_encoder = FeaturesAsGiven()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.name, self.weights_tag = tokenizer, name, weights_tag
        self.num_beams, self.max_new_tokens = num_beams, max_new_tokens

    def interface(self) -> dict[str, Any]:
        """What a projector for this captioner must have been trained on: {model, weights_tag, n_tokens, width}."""
        return {"model": self.name, "weights_tag": self.weights_tag, "n_tokens": self.n_tokens, "width": self.width}

    @torch.no_grad()
    def caption(self, features: torch.Tensor, batch_size: int = 32) -> list[str]:
        """Caption pictures given by their visual tokens.

        Args:
            features: (b, n_tokens, width), what the vision tower's last hidden state would be.
            batch_size: How many go through the network at once; it does not change the captions.

        Returns:
            b captions, lower case, without special tokens.

        Raises:
            ValueError: Shapes do not fit.
        """
        if features.ndim != 3 or tuple(features.shape[1:]) != (self.n_tokens, self.width):
            raise ValueError(
                f"features must be (b, {self.n_tokens}, {self.width}) for {self.name}, got {tuple(features.shape)}"
            )
        place = next(self.model.parameters())
        captions: list[str] = []
        for part in features.split(batch_size):
            start = torch.full((len(part), 1), int(self.model.config.bos_token_id), device=place.device)
            tokens = self.model.generate(
                input_ids=start,
                attention_mask=torch.ones_like(start),
                pixel_values=part[:, None].to(place.device, place.dtype),
                do_sample=False,
                num_beams=self.num_beams,
                max_new_tokens=self.max_new_tokens,
            )
            captions += [
                " ".join(text.split()) for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            ]
        return captions


def pocket_git_config() -> Any:
    """Return the pocket captioner's `GitConfig`: two layers over MiniLM's word table, five visual tokens.

    The vision tower it describes is never run: width and count of its tokens are what matters, (2 / 1)² + 1 = 5.
    """
    from transformers import GitConfig

    return GitConfig(
        vision_config={
            "hidden_size": POCKET_WIDTH,
            "intermediate_size": 1,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 2,
            "patch_size": 1,
        },
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=2,
        num_attention_heads=6,
        intermediate_size=768,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    )


def build_pocket_git() -> GitForCausalLM:
    """Build the pocket captioner, untrained but for its words: the table is MiniLM's, frozen, also at the output.

    A word that no training title holds still lies near those that mean the same, so it can be written.
    """
    from safetensors import safe_open
    from transformers import GitForCausalLM

    model = GitForCausalLM(pocket_git_config())
    model.git.image_encoder = FeaturesAsGiven()
    with safe_open(minilm_folder() / "model.safetensors", framework="pt") as file:
        words = file.get_tensor("embeddings.word_embeddings.weight").float()
    with torch.no_grad():
        model.git.embeddings.word_embeddings.weight.copy_(words)
        model.output.bias.zero_()
    model.tie_weights()
    model.git.embeddings.word_embeddings.requires_grad_(False)
    model.output.requires_grad_(False)
    return model


def trained_tensors(model: GitForCausalLM) -> dict[str, torch.Tensor]:
    """Return the tensors of a pocket captioner that eegrecon trains."""
    return {name: value for name, value in model.state_dict().items() if name not in PACKAGED}


def pocket_tokenizer() -> Any:
    """Return the pocket captioner's tokenizer: MiniLM's, which is bert-base-uncased's, as GIT's is."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm_folder())


def load_git(
    name: str = "pocket", num_beams: int = 1, max_new_tokens: int = MAX_NEW_TOKENS, weights: str = ""
) -> GitCaptioner:
    """Load a captioner from this machine; nothing is downloaded.

    Args:
        name: "pocket" (ships with the package), "microsoft/git-large-coco" or another GIT repository that was fetched
            before, or a local folder with one.
        num_beams: Beams of the search; 1: greedy.
        max_new_tokens: Longest caption, in tokens.
        weights: Another file of the pocket captioner's weights.

    Raises:
        ConfigError: A number outside its range, or `weights` for another captioner than the pocket one.
        DataError: The weights are not on this machine, or are not a GIT's.
    """
    if weights and name != "pocket":
        raise ConfigError(f"the captioner {name!r} brings its own weights: leave `weights` empty.")
    if name == "pocket":
        return _load_pocket(Path(weights) if weights else POCKET_FILE, num_beams, max_new_tokens)
    model, tokenizer = load_git_model(name)
    return GitCaptioner(model, tokenizer, short_name(name), revision(name), num_beams, max_new_tokens)


def load_git_model(name: str) -> tuple[GitForCausalLM, Any]:
    """Load a published GIT, vision tower and all, and its tokenizer, from a folder or what was fetched before.

    Raises:
        DataError: It is not on this machine, or is no GIT.
    """
    from transformers import AutoConfig, AutoTokenizer, GitForCausalLM

    try:
        kind = AutoConfig.from_pretrained(name, local_files_only=True).model_type
        if kind != "git":
            raise DataError(f"the captioner {name!r} is a {kind}, not a GIT: name microsoft/git-large-coco.")
        model = GitForCausalLM.from_pretrained(name, local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise DataError(
            f"the captioner {name!r} is neither a readable folder nor a fetched Hugging Face repository; fetch it with "
            f"`hf download {name}` or name the folder it lies in ({cause})."
        ) from error
    return model, tokenizer


def short_name(name: str) -> str:
    """What stores and manifests call a captioner: the repository's name without its owner, or the folder's."""
    return name.rstrip("/").rpartition("/")[2]


def revision(name: str) -> str:
    """Which weights: the fetched commit's first eight digits, or those of a local weight file's hash."""
    if Path(name).is_dir():
        file = weight_file(name)
        return sha256_file(file)[:8] if file else "local"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent.name[:8] if isinstance(found, str) else "unknown"


def weight_file(name: str) -> Path | None:
    """Where a captioner's weights lie on this machine: those that ship, in a folder, or fetched; None: nowhere."""
    if name == "pocket":
        return POCKET_FILE
    if Path(name).is_dir():
        return next(iter(sorted(Path(name).glob("*.safetensors"))), None)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "model.safetensors")
    return Path(found) if isinstance(found, str) else None


def _load_pocket(path: Path, num_beams: int, max_new_tokens: int) -> GitCaptioner:
    from safetensors.torch import load_file

    if not path.is_file():
        raise DataError(f"the pocket captioner is missing: {path}; reinstall eegrecon or run `make pocket-weights`.")
    model = build_pocket_git()
    tensors = {name: value.float() for name, value in load_file(path).items()}
    wanted = trained_tensors(model)
    if {name: value.shape for name, value in tensors.items()} != {name: v.shape for name, v in wanted.items()}:
        raise DataError(
            f"{path} holds {len(tensors)} tensors that are not the pocket captioner's {len(wanted)}; reinstall "
            "eegrecon or run `make pocket-weights`."
        )
    model.load_state_dict(tensors, strict=False)
    tag = f"pocket-{sha256_file(path)[:8]}"
    return GitCaptioner(model, pocket_tokenizer(), "git_pocket", tag, num_beams, max_new_tokens)


def encode_captions(tokenizer: Any, captions: Sequence[str], longest: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and mask (n, n_tokens) of captions between GIT's begin and end marks, padded to the longest."""
    found = tokenizer(list(captions), padding=True, truncation=True, max_length=longest, return_tensors="pt")
    return found.input_ids, found.attention_mask
