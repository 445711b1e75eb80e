"""The diffusion prior's network: a small U-Net over vectors (ATM, Li et al., NeurIPS 2024, arXiv 2403.07721).

After `Generation/diffusion_prior.py` of dongyangli-del/EEG_Image_decode@49cb3a2: the levels, the two embeddings added
before every block and the added (not concatenated) skips are the same, 9,675,648 parameters at the published sizes. Two
deviations: a row's condition can be dropped on its own (there only for a whole batch), and sizes are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class PriorUNet(nn.Module):
    """Predicts noise, clean embedding or velocity (the objective decides) from a noisy embedding.

    `hidden` names the widths from the outside in; n widths give n - 1 blocks down and as many up. Before each block the
    level's own projections of the timestep and of the condition are added; a block is Linear + LayerNorm + SiLU +
    Dropout. Without time and condition: Linear + LayerNorm + SiLU in front, one Linear behind.

    Args:
        dim: Size of the embedding that is denoised.
        cond_dim: Size of the condition (the EEG embedding).
        hidden: Widths from the outside in, at least two. Default: the paper's code.
        time_embed_dim: Size of the sinusoidal timestep code, even.
        dropout: Dropout probability in each block, in [0, 1).

    Raises:
        ValueError: On sizes that cannot be built.
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int,
        hidden: Sequence[int] = (1024, 512, 256, 128, 64),
        time_embed_dim: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        widths = [int(width) for width in hidden]
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"PriorUNet needs at least two positive widths in hidden, got {widths}.")
        if time_embed_dim < 2 or time_embed_dim % 2:
            raise ValueError(f"PriorUNet needs an even time_embed_dim of at least 2, got {time_embed_dim}.")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"PriorUNet needs a dropout in [0, 1), got {dropout}.")
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps

        self.dim, self.cond_dim = int(dim), int(cond_dim)
        levels = len(widths) - 1
        self.time = Timesteps(time_embed_dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.input = nn.Sequential(nn.Linear(dim, widths[0]), nn.LayerNorm(widths[0]), nn.SiLU())
        ins = widths[:-1] + widths[:0:-1]  # the width that enters each block: 4 down, then 4 up
        outs = widths[1:] + widths[-2::-1]
        self.time_embeds = nn.ModuleList(TimestepEmbedding(time_embed_dim, width) for width in ins)
        self.cond_embeds = nn.ModuleList(nn.Linear(cond_dim, width) for width in ins)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.SiLU(), nn.Dropout(dropout))
            for a, b in zip(ins, outs, strict=True)
        )
        self.output = nn.Linear(widths[0], dim)
        self.levels = levels

    def forward(
        self,
        noisy: Float[Tensor, "b dim"],
        timestep: Int[Tensor, " b"],
        eeg_embeds: Float[Tensor, "b cond_dim"] | None = None,
        cond_mask: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b dim"]:
        """Runs the U-Net.

        Args:
            noisy: `(b, dim)` noisy image embeddings.
            timestep: `(b,)` diffusion steps, `0 … num_train_timesteps - 1`.
            eeg_embeds: `(b, cond_dim)` condition, or None for no condition at all.
            cond_mask: `(b,)` bool, **True drops that row's condition**: it then contributes exactly zero (its bias
                included), as `eeg_embeds=None` does, whatever the row holds.

        Returns:
            `(b, dim)` in the units of the training objective.
        """
        code = self.time(timestep).to(noisy.dtype)
        x = self.input(noisy)
        skips = []
        for level, (block, time_embed, cond_embed) in enumerate(
            zip(self.blocks, self.time_embeds, self.cond_embeds, strict=True)
        ):
            down = level < self.levels
            if down:
                skips.append(x)  # taken before time and condition are added, as in the original
            x = x + time_embed(code)
            if eeg_embeds is not None:
                condition = cond_embed(eeg_embeds)
                if cond_mask is not None:
                    # masked_fill, not a product: 0 * inf would be NaN
                    condition = condition.masked_fill(cond_mask[:, None], 0.0)
                x = x + condition
            x = block(x)
            if not down:
                x = x + skips.pop()
        return self.output(x)
