"""The pocket SDXL's architecture: small networks of the very classes the published SDXL is made of.

How to train it (the `pocket-weights` stage does; every line matters, see facts/pocket.md):

    vae = build_vae()                                   # 1. autoencoder, pictures in [-1, 1]: x = 2 * picture - 1
    posterior = vae.encode(x).latent_dist               #    L1 (+ edge) loss on vae.decode(z).sample, tiny KL
    set_scaling_factor(vae, 1.0 / latents_mean.std())   #    after training: 1 / std of the means over training pictures
    latents = posterior.mode() * vae.config.scaling_factor          # (b, 4, 16, 16), about unit variance

    text = build_text_encoder(tokenizer, table=words)   # 2. UNet + IP-Adapter; the tower (pocket_text.py) waits
    denoiser = PocketDenoiser(build_unet(), dim=256, text_encoder=text)
    scheduler = build_scheduler()                       #    v-prediction, zero-terminal-SNR, trailing
    noisy = scheduler.add_noise(latents, noise, timesteps)          # timesteps (b,) long in 0..999
    v = denoiser(noisy, timesteps, image_embeds, drop=torch.rand(b) < 0.1)
    loss = mse(v, scheduler.get_velocity(latents, noise, timesteps))

    TextStartModule, start_text, CaptionModule          # 3. the text side, taught by the above (modules/pocket.py)

    save_pocket_sdxl(directory, denoiser, vae, tokenizer=tokenizer)     # 4. fp16, loads with SDXLGenerator

`image_embeds` go in as the generator will get them (pocket CLIP: zero mean, about unit variance per dimension, not
L2-normalised). Dropped rows become zero embeddings and zero prompts, which is what diffusers' pipeline uses as the
negative; a picture without a caption gets the *encoded* empty prompt, as in the pipeline. For EMA,
average `denoiser.state_dict()`; a `copy.deepcopy(denoiser)` is fine too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

IP_ADAPTER_FOLDER = "ip_adapter"
IP_ADAPTER_FILE = "ip-adapter_pocket.safetensors"
CONDITIONING_FILE = "conditioning.json"
N_TOKENS = 4  # what diffusers expects of an IP-Adapter whose image_proj is one Linear and a LayerNorm


def build_unet(
    *,
    sample_size: int = 16,
    block_out_channels: tuple[int, ...] = (64, 96, 160),
    layers_per_block: int = 1,
    cross_attention_dim: int = 64,
    pooled_dim: int = 64,
    head_dim: int = 32,
    norm_num_groups: int = 32,
) -> UNet2DConditionModel:
    """Build a small SDXL UNet: cross-attention in all but the top block, `text_time` micro-conditioning.

    Args:
        sample_size: Latent height and width.
        block_out_channels: Channels per level, top first; each a multiple of `head_dim` and `norm_num_groups`.
        layers_per_block: Residual blocks per level.
        cross_attention_dim: Width of a conditioning token.
        pooled_dim: Width of the pooled prompt embedding.
        head_dim: Channels per attention head.
        norm_num_groups: Groups of the group norms.

    Returns:
        A randomly initialised UNet without IP-Adapter; 7.5 M parameters by default.
    """
    from diffusers import UNet2DConditionModel

    n_levels = len(block_out_channels)
    time_dim = 32
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=4,
        out_channels=4,
        block_out_channels=block_out_channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (n_levels - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (n_levels - 1) + ("UpBlock2D",),
        layers_per_block=layers_per_block,
        cross_attention_dim=cross_attention_dim,
        # diffusers keeps SDXL's historical name: this is the NUMBER of heads per level
        attention_head_dim=tuple(channels // head_dim for channels in block_out_channels),
        use_linear_projection=True,
        norm_num_groups=norm_num_groups,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_dim,
        projection_class_embeddings_input_dim=6 * time_dim + pooled_dim,
    )


def build_vae(
    *, size: int = 64, block_out_channels: tuple[int, ...] = (32, 64, 96), layers_per_block: int = 1
) -> AutoencoderKL:
    """Build a small SDXL autoencoder: (b, 3, size, size) in [-1, 1] to (b, 4, size/4, size/4) with three levels.

    Args:
        size: Picture height and width, pixels.
        block_out_channels: Channels per level (multiples of 16); each level after the first halves the picture.
        layers_per_block: Residual blocks per level.

    Returns:
        A randomly initialised autoencoder, `scaling_factor` 1.0 (see `set_scaling_factor`).
    """
    from diffusers import AutoencoderKL

    n_levels = len(block_out_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=size,
        block_out_channels=block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * n_levels,
        up_block_types=("UpDecoderBlock2D",) * n_levels,
        layers_per_block=layers_per_block,
        norm_num_groups=16,
        scaling_factor=1.0,
        force_upcast=False,
    )


def set_scaling_factor(vae: AutoencoderKL, scaling_factor: float) -> None:
    """Write `scaling_factor` (1 / standard deviation of the training latents) into the autoencoder's config."""
    vae.register_to_config(scaling_factor=float(scaling_factor))


def build_scheduler() -> DDIMScheduler:
    """Build the sampler: v-prediction, zero-terminal-SNR betas, trailing timesteps, no clipping of latents.

    Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed", sections 3.2-3.4; the betas are
    Stable Diffusion's (`scaled_linear`, 0.00085 to 0.012). DDIM with `eta=0`: one initial noise decides the picture.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )


class PocketDenoiser(nn.Module):
    """The UNet with IP-Adapter and text tower, called exactly as `StableDiffusionXLPipeline` calls it, but trainable.

    Attributes:
        unet: The UNet, IP attention processors and image projection installed inside it.
        text_encoder: The pipeline's `text_encoder_2`, or None for a model without captions.
        dim: Width of the image embeddings.
        size: Picture size in pixels, which fixes the micro-conditioning (`time_ids`).
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        dim: int = 256,
        size: int = 64,
        text_encoder: CLIPTextModelWithProjection | None = None,
    ) -> None:
        super().__init__()
        from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
        from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

        width = unet.config.cross_attention_dim
        processors = {}
        for name, processor in unet.attn_processors.items():
            if name.endswith("attn1.processor"):  # self-attention keeps its own
                processors[name] = processor
                continue
            hidden = unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
            processors[name] = IPAdapterAttnProcessor2_0(hidden, cross_attention_dim=width, num_tokens=(N_TOKENS,))
        unet.set_attn_processor(processors)
        projection = ImageProjection(image_embed_dim=dim, cross_attention_dim=width, num_image_text_embeds=N_TOKENS)
        unet.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
        unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
        self.unet = unet
        self.text_encoder = text_encoder
        self.dim = dim
        self.size = size
        self._width = width
        self._pooled_dim = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim

    def encode_text(self, token_ids: torch.Tensor, word_noise: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode captions as `StableDiffusionXLPipeline.encode_prompt` does.

        Args:
            token_ids: (b, n_tokens) from `pocket_text.tokenize`.
            word_noise: Standard deviation of noise on the (unit-variance) word vectors, so that training does not tie
                a picture to one exact word.

        Returns:
            Prompt embeddings (b, n_tokens, cross_attention_dim) and pooled embeddings (b, pooled_dim).
        """
        assert self.text_encoder is not None
        words = self.text_encoder.get_input_embeddings()
        blur = words.register_forward_hook(lambda module, args, out: out + word_noise * torch.randn_like(out))
        try:
            encoded = self.text_encoder(token_ids, output_hidden_states=True)
        finally:
            blur.remove()
        return encoded.hidden_states[-2], encoded.text_embeds

    def forward(
        self,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor,
        image_embeds: torch.Tensor,
        prompt: tuple[torch.Tensor, torch.Tensor] | None = None,
        drop: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the velocity v of noisy latents.

        Args:
            noisy_latents: (b, 4, h, w), scaled latents plus noise.
            timesteps: (b,) or scalar integer timesteps.
            image_embeds: (b, dim).
            prompt: What `encode_text` returns, or None for zeros.
            drop: (b,) bool, True where all conditions are dropped (replaced by zeros), or None.

        Returns:
            (b, 4, h, w) prediction.
        """
        batch = len(noisy_latents)
        like = noisy_latents
        tokens, pooled = prompt or (like.new_zeros(batch, 1, self._width), like.new_zeros(batch, self._pooled_dim))
        if drop is not None:
            image_embeds = image_embeds.masked_fill(drop[:, None], 0.0)
            tokens, pooled = tokens.masked_fill(drop[:, None, None], 0.0), pooled.masked_fill(drop[:, None], 0.0)
        # original_size + crops_coords_top_left + target_size, what the pipeline passes by default
        time_ids = like.new_tensor([[self.size, self.size, 0, 0, self.size, self.size]]).expand(batch, -1)
        return self.unet(
            noisy_latents,
            timesteps,
            encoder_hidden_states=tokens,
            added_cond_kwargs={
                "text_embeds": pooled,
                "time_ids": time_ids,
                "image_embeds": [image_embeds[:, None, :]],
            },
            return_dict=False,
        )[0]


def start_text(denoiser: PocketDenoiser) -> None:
    """Let the UNet read prompt tokens as it reads the adapter's, in place: the tower was taught to speak like it.

    Keys and values of the text attention become the adapter's; the pooled embedding, which was never taught, starts
    without effect. See `modules.pocket.TextStartModule`.
    """
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    with torch.no_grad():
        for name, processor in denoiser.unet.attn_processors.items():
            if isinstance(processor, IPAdapterAttnProcessor2_0):
                attention = denoiser.unet.get_submodule(name.removesuffix(".processor"))
                attention.to_k.weight.copy_(processor.to_k_ip[0].weight)
                attention.to_v.weight.copy_(processor.to_v_ip[0].weight)
        denoiser.unet.add_embedding.linear_1.weight[:, : denoiser._pooled_dim] = 0


def ip_adapter_state_dict(denoiser: PocketDenoiser) -> dict[str, torch.Tensor]:
    """Return the IP-Adapter's weights under their published names.

    `image_proj.{proj,norm}.{weight,bias}` and `ip_adapter.{1,3,5,…}.to_{k,v}_ip.weight`, the layout of
    h94/IP-Adapter's `sdxl_models/ip-adapter_sdxl_vit-h.safetensors`.
    """
    unet = denoiser.unet
    state = {}
    for key, value in unet.encoder_hid_proj.image_projection_layers[0].state_dict().items():
        state["image_proj." + key.replace("image_embeds", "proj")] = value
    number = 1
    for name, processor in unet.attn_processors.items():  # diffusers numbers them in this order when it loads them
        if name.endswith("attn1.processor"):
            continue
        state[f"ip_adapter.{number}.to_k_ip.weight"] = processor.to_k_ip[0].weight
        state[f"ip_adapter.{number}.to_v_ip.weight"] = processor.to_v_ip[0].weight
        number += 2
    return state


def plain_unet(denoiser: PocketDenoiser) -> UNet2DConditionModel:
    """Return a copy of the denoiser's UNet without its IP-Adapter, as it is stored beside the adapter's file."""
    from diffusers import UNet2DConditionModel

    config = dict(denoiser.unet.config)
    config["encoder_hid_dim_type"] = None
    plain = UNet2DConditionModel.from_config(config)
    wanted = plain.state_dict().keys()
    plain.load_state_dict({key: value for key, value in denoiser.unet.state_dict().items() if key in wanted})
    return plain


def save_pocket_sdxl(
    directory: Path,
    denoiser: PocketDenoiser,
    vae: AutoencoderKL,
    dtype: torch.dtype = torch.float16,
    conditioning: dict[str, object] | None = None,
    tokenizer: CLIPTokenizer | None = None,
) -> None:
    """Write a `StableDiffusionXLPipeline` directory plus `ip_adapter/ip-adapter_pocket.safetensors`.

    Args:
        directory: Target folder; existing files of the same names are overwritten.
        denoiser: Trained denoiser (its EMA copy, if there is one). It is not changed.
        vae: Trained autoencoder, `scaling_factor` set. It is not changed.
        dtype: Type of the stored weights.
        conditioning: The target space the adapter was trained on, e.g. `{"model": "pocket_clip", "weights_tag": …,
            "dim": 256, "normalised": False}`; written to `ip_adapter/conditioning.json` so that `reconstruct` can
            refuse a prior of another space.
        tokenizer: The text tower's tokenizer; needed where the denoiser has a text tower.
    """
    import copy
    import json

    from diffusers import StableDiffusionXLPipeline
    from safetensors.torch import save_file

    directory, text = Path(directory), denoiser.text_encoder
    pipe = StableDiffusionXLPipeline(
        vae=_cast(copy.deepcopy(vae), dtype),
        text_encoder=None,  # the refiner's layout: the second tower alone
        text_encoder_2=text and _cast(copy.deepcopy(text), dtype),
        tokenizer=None,
        tokenizer_2=tokenizer if text else None,
        unet=_cast(plain_unet(denoiser), dtype),
        scheduler=build_scheduler(),
        add_watermarker=False,
    )
    pipe.save_pretrained(directory, safe_serialization=True)
    state = ip_adapter_state_dict(denoiser)
    adapter = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
    folder = directory / IP_ADAPTER_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    save_file(adapter, folder / IP_ADAPTER_FILE)
    if conditioning is not None:
        (folder / CONDITIONING_FILE).write_text(json.dumps(conditioning, indent=2) + "\n")
    for path in directory.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes 0600, which would travel into the wheel


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    # nn.Module.to, not diffusers' override: that one prints a warning about an empty list of float32 modules
    return nn.Module.to(module, device="cpu", dtype=dtype)
