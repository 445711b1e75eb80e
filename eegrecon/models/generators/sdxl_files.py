"""Where an SDXL pipeline and its IP-Adapter lie, whether they are whole, and how they are loaded.

Everything is looked at before anything is loaded, so that a folder that was fetched half is one sentence with the
file's name and the command that fetches it, not a stack of the loader's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from eegrecon.errors import ConfigError, DataError
from eegrecon.models.generators.pocket_sdxl import CONDITIONING_FILE, IP_ADAPTER_FOLDER

POCKET_DIRECTORY = Path(__file__).resolve().parents[2] / "pocket" / "weights" / "sdxl"
INDEX = "model_index.json"

# Folders that keep a published repository's name, so that the command which mends them can name it.
REPOSITORIES = {
    "sdxl-turbo": "stabilityai/sdxl-turbo",
    "stable-diffusion-xl-base-1.0": "stabilityai/stable-diffusion-xl-base-1.0",
}

EXAMPLE = '{"model": "ViT-H-14", "weights_tag": "laion2b_s32b_b79k", "dim": 1024, "normalised": false}'

# What published adapters were trained on (h94/IP-Adapter README): file stem → target space.
PUBLISHED_CONDITIONING: dict[str, dict[str, Any]] = {
    "ip-adapter_sdxl_vit-h": {
        "model": "ViT-H-14",
        "weights_tag": "laion2b_s32b_b79k",
        "dim": 1024,
        "normalised": False,
    },
    "ip-adapter_sdxl": {"model": "ViT-bigG-14", "weights_tag": "laion2b_s39b_b160k", "dim": 1280, "normalised": False},
}


def find_base(base: str, variant: str = "") -> Path:
    """The folder of a pipeline with every file that loading it needs.

    Args:
        base: "pocket", a folder, or a Hugging Face repository that was fetched before.
        variant: "" or, say, "fp16": which of a repository's weight files are read (`….fp16.safetensors`).

    Raises:
        DataError: It is not there, or a file of it is missing or cut short.
    """
    folder = POCKET_DIRECTORY if base == "pocket" else Path(base)
    if base != "pocket" and not folder.is_dir() and base.count("/") == 1 and not folder.is_absolute():
        folder = _fetched(base)
        get = f"hf download {base} {{}}"
    else:
        get = f"hf download {REPOSITORIES.get(folder.name, 'OWNER/NAME')} {{}} --local-dir {folder}"
    cure = "run `make pocket-weights`" if base == "pocket" else None
    if not (folder / INDEX).is_file():
        raise DataError(f"no SDXL pipeline at {folder}: {INDEX} is missing; {cure or 'check generator.args.base'}.")
    for name in _needed(folder, variant):
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing; {cure or f'fetch it with `{get.format(name)}`'}.")
        if problem := _damaged(path):
            raise DataError(f"{path} is cut short or no such file ({problem}); {cure or f'`{get.format(name)}`'}.")
    return folder


def weight_files(base: str = "pocket", ip_adapter: str = "", variant: str = "") -> list[Path]:
    """Every weight file that pictures depend on, of the pipeline and of its adapter.

    Raises:
        DataError: One is missing, or cut short.
    """
    folder = find_base(base, variant)
    found = [folder / name for name in _needed(folder, variant) if name.endswith(".safetensors")]
    return [*found, find_adapter(folder, ip_adapter)]


def _fetched(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(str(snapshot_download(repository, local_files_only=True)))
    except (OSError, ValueError) as error:  # not in the cache, or no possible name
        raise DataError(
            f"generator.args.base {repository!r} is neither a folder nor a fetched Hugging Face repository; fetch it "
            f"with `hf download {repository}` or name the folder it lies in."
        ) from error


def _needed(folder: Path, variant: str) -> Iterator[str]:
    """Names of the files that a pipeline folder must hold, as its index says.

    Some of them name others, so each must be looked at before the next is asked for.
    """
    middle = f".{variant}" if variant else ""
    for name, what in _index(folder).items():
        if not isinstance(what, list) or len(what) != 2 or what[0] is None:
            continue  # a setting, or a part that this pipeline does without
        if name == "scheduler":
            yield "scheduler/scheduler_config.json"
        elif name.startswith("tokenizer"):
            yield f"{name}/tokenizer_config.json"
            yield from (f"{name}/{file}" for file in _words_of(folder / name))
        elif name in ("unet", "vae", "text_encoder", "text_encoder_2"):
            yield f"{name}/config.json"
            stem = "diffusion_pytorch_model" if name in ("unet", "vae") else "model"
            shards = folder / name / f"{stem}.safetensors.index{middle}.json"
            if not shards.is_file():
                yield f"{name}/{stem}{middle}.safetensors"
                continue
            yield f"{name}/{shards.name}"  # looked at before it is read
            yield from (f"{name}/{part}" for part in sorted(set(json.loads(shards.read_text())["weight_map"].values())))


def _words_of(folder: Path) -> tuple[str, ...]:
    """The vocabulary files of a tokenizer: one, as today's transformers writes them, or the two that were published."""
    if (folder / "tokenizer.json").is_file():
        return ("tokenizer.json",)
    says = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if not (folder / "vocab.json").is_file() and isinstance(says, dict) and "backend" in says:
        return ("tokenizer.json",)  # it was saved so, as the pocket pipeline's
    return ("vocab.json", "merges.txt")


def _index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{folder / INDEX} is no JSON ({error}); fetch it again.") from error
    if "unet" not in index or "vae" not in index or "XL" not in str(index.get("_class_name")):
        raise DataError(
            f"{folder} holds a {index.get('_class_name')}, expected a StableDiffusionXLPipeline: name another folder "
            "in generator.args.base."
        )
    return index


def _damaged(path: Path) -> str:
    """Why a file cannot be read, "" if its form is right. Only the headers of weight files are read."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):  # compares the header with the file's length
                return ""
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
    except (SafetensorError, ValueError, OSError) as error:
        return " ".join(str(error).split())[:120]
    return ""


def load_pipeline(folder: Path, dtype: torch.dtype, variant: str = "") -> Any:
    """Load a `StableDiffusionXLPipeline` whose adapter embeddings belong to one picture each.

    SDXL's autoencoder overflows in float16 (its config says `force_upcast`) and then paints black, so it is held in
    float32 there; bfloat16 has float32's range.

    Args:
        folder: What `find_base` gave.
        dtype: Of the weights.
        variant: As `find_base`.

    Raises:
        DataError: diffusers cannot read it.
    """
    from diffusers import StableDiffusionXLPipeline

    class PerPicturePipeline(PerPicture, StableDiffusionXLPipeline):
        """Text to image."""

    held = {"default": dtype, "vae": torch.float32 if dtype == torch.float16 else dtype}
    try:
        pipe = PerPicturePipeline.from_pretrained(
            folder, dtype=held, variant=variant or None, add_watermarker=False, local_files_only=True,
            use_safetensors=True,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the SDXL pipeline at {folder} cannot be loaded ({' '.join(str(error).split())[:200]}): fetch it again."
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image_to_image(pipe: Any) -> Any:
    """The image-to-image pipeline of the same networks, with a scheduler of its own."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    class PerPictureImg2ImgPipeline(PerPicture, StableDiffusionXLImg2ImgPipeline):
        """Noised latents to image."""

    parts = {**pipe.components, "scheduler": type(pipe.scheduler).from_config(pipe.scheduler.config)}
    made = PerPictureImg2ImgPipeline(**parts, add_watermarker=False)
    made.set_progress_bar_config(disable=True)
    return made


class PerPicture:
    """An SDXL pipeline whose adapter embeddings belong to one picture each.

    diffusers 0.42.1 repeats `ip_adapter_image_embeds` by the batch size, so that every picture of a batch sees every
    embedding of it, without an error (facts/pocket.md, trap 1). Here they pass as they come: [(b or 2b, 1, dim)],
    negatives first.
    """

    def prepare_ip_adapter_image_embeds(
        self,
        ip_adapter_image: Any,
        ip_adapter_image_embeds: list[torch.Tensor],
        device: torch.device,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
    ) -> list[torch.Tensor]:
        """Hand the embeddings on as they are."""
        return [embeds.to(device=device) for embeds in ip_adapter_image_embeds]


def find_adapter(base: Path, ip_adapter: str) -> Path:
    """The adapter's file.

    Args:
        base: The pipeline's folder.
        ip_adapter: "" for the one in the base's `ip_adapter/`, a file, or owner/repository/folder/file.safetensors.

    Raises:
        DataError: There is none, or it is cut short.
    """
    if not ip_adapter:
        found = sorted((base / IP_ADAPTER_FOLDER).glob("*.safetensors"))
        if len(found) != 1:
            raise DataError(
                f"expected one IP-Adapter file in {base / IP_ADAPTER_FOLDER}, found {len(found)}; "
                "name the file in generator.args.ip_adapter."
            )
        return _whole(found[0], "copy it again")
    path = Path(ip_adapter)
    if path.is_file() and path.suffix == ".safetensors":
        return _whole(path, "copy or fetch it again")
    if ip_adapter.count("/") < 2 or path.is_absolute() or path.suffix != ".safetensors":
        raise DataError(
            f"generator.args.ip_adapter {ip_adapter!r} is no file that is read; name a local .safetensors file or "
            "owner/repository/folder/file.safetensors of a fetched repository (the published .bin files hold the same)."
        )
    from huggingface_hub import try_to_load_from_cache

    repository, name = "/".join(path.parts[:2]), "/".join(path.parts[2:])
    cached = try_to_load_from_cache(repository, name)
    if not isinstance(cached, str):
        raise DataError(
            f"generator.args.ip_adapter {ip_adapter!r} is not on this machine; fetch it with "
            f"`hf download {repository} {name}` or name a local file."
        )
    return _whole(Path(cached), f"`hf download {repository} {name} --force-download`")


def _whole(path: Path, cure: str) -> Path:
    if problem := _damaged(path):
        raise DataError(f"the IP-Adapter {path} is cut short or no such file ({problem}); {cure}.")
    return path


def load_adapter(pipe: Any, path: Path) -> int:
    """Put an adapter of the published layout with one projection layer into the pipeline's UNet.

    Returns:
        Width of the image embeddings it takes.

    Raises:
        DataError: It has another layout, or belongs to another UNet.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        keys = set(file.keys())
    if "image_proj.proj.weight" not in keys or not any(key.startswith("ip_adapter.") for key in keys):
        raise DataError(
            f"the IP-Adapter {path} does not take one embedding a picture (it has no image_proj.proj.weight or no "
            "ip_adapter.*): take ip-adapter_sdxl_vit-h.safetensors or ip-adapter_sdxl.safetensors of h94/IP-Adapter, "
            "not a plus or faceid variant."
        )
    try:
        pipe.load_ip_adapter(
            str(path.parent), subfolder="", weight_name=path.name, image_encoder_folder=None, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(
            f"the IP-Adapter {path} does not belong to this UNet ({' '.join(str(error).split())[:160]}): SDXL takes "
            "the files in sdxl_models/ of h94/IP-Adapter."
        ) from error
    return int(pipe.unet.encoder_hid_proj.image_projection_layers[0].image_embeds.in_features)


def conditioning_of(adapter: Path, ip_adapter: str) -> dict[str, Any]:
    """The target space an adapter was trained on: `conditioning.json` beside it, else by its published name.

    An adapter of somebody's own, of which neither says anything, is told on stderr: embeddings of another space with
    the same width would be painted without a word.

    Args:
        adapter: What `find_adapter` gave.
        ip_adapter: What it was found by; "": a pipeline's own, which always says what it was trained on.

    Raises:
        DataError: The file is cut short, says something else, or is missing from a pipeline's own adapter folder.
    """
    beside = adapter.parent / CONDITIONING_FILE
    cure = "run `make pocket-weights`" if adapter.is_relative_to(POCKET_DIRECTORY) else "copy it again"
    says: Any = dict(PUBLISHED_CONDITIONING.get(adapter.stem, {}))
    if beside.is_file():
        if problem := _damaged(beside):
            raise DataError(f"{beside} is cut short or no such file ({problem}); {cure}.")
        says = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(says, dict):
            raise DataError(f"{beside} holds a {type(says).__name__}, expected an object such as {EXAMPLE}; {cure}.")
    elif not says and not ip_adapter:
        raise DataError(
            f"{beside} is missing, which says what embeddings the IP-Adapter beside it was trained on; {cure}, or name "
            "the adapter in generator.args.ip_adapter."
        )
    if not says:
        sys.stderr.write(
            f"eegrecon: nothing says what embeddings the IP-Adapter {adapter} was trained on, so only their width is "
            f"checked: put {EXAMPLE} into {beside}\n"
        )
    return dict(says)


def torch_dtype_of(name: str) -> torch.dtype:
    """The type that a config names.

    Raises:
        ConfigError: There is no such choice.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in dtypes:
        raise ConfigError(f"generator.args.torch_dtype is {name!r}; choose one of {', '.join(dtypes)}.")
    return dtypes[name]


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Silence what diffusers says while it loads: that there is no image encoder is the point of embeddings."""
    from diffusers.utils import logging
    from transformers.utils import logging as text_logging  # the text encoders' loader has bars of its own

    level, bars = logging.get_verbosity(), [one for one in (logging, text_logging) if one.is_progress_bar_enabled()]
    logging.set_verbosity_error()
    for one in bars:
        one.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        for one in bars:
            one.enable_progress_bar()
