"""The official diffusion prior network (main, commit 49cb3a2) as a plain module: the oracle of imported checkpoints.

Written from shared/facts/atm.md section 4 and the names in atm_state_dict.json, not from the code; no line of the
package and none of diffusers is used. The facts leave open where a skip is taken: the public file (39eb211) takes it
before time and condition are added.
"""

import itertools
import math

import torch
from torch import nn


class _TimeEmbedding(nn.Module):
    """Linear, SiLU, Linear: diffusers' TimestepEmbedding."""

    def __init__(self, size, width):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(size, width), nn.Linear(width, width)

    def forward(self, code):
        return self.linear_2(nn.functional.silu(self.linear_1(code)))


def _block(a, b):
    return nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.SiLU(), nn.Dropout(0.1))


class OfficialPrior(nn.Module):
    """forward(x (b, dim), t (b,), c (b, cond_dim) or None) -> (b, dim)."""

    def __init__(self, dim=1024, cond_dim=1024, hidden=(1024, 512, 256, 128, 64), time_dim=512):
        super().__init__()
        self.time_dim, pairs = time_dim, list(itertools.pairwise(hidden))
        self.input_layer = nn.Sequential(nn.Linear(dim, hidden[0]), nn.LayerNorm(hidden[0]), nn.SiLU())
        self.encode_time_embedding = nn.ModuleList(_TimeEmbedding(time_dim, a) for a, _ in pairs)
        self.encode_cond_embedding = nn.ModuleList(nn.Linear(cond_dim, a) for a, _ in pairs)
        self.encode_layers = nn.ModuleList(_block(a, b) for a, b in pairs)
        self.decode_time_embedding = nn.ModuleList(_TimeEmbedding(time_dim, b) for _, b in reversed(pairs))
        self.decode_cond_embedding = nn.ModuleList(nn.Linear(cond_dim, b) for _, b in reversed(pairs))
        self.decode_layers = nn.ModuleList(_block(b, a) for a, b in reversed(pairs))
        self.output_layer = nn.Linear(hidden[0], dim)

    def forward(self, x, t, c=None):
        half = self.time_dim // 2
        rate = torch.exp(torch.arange(half) * (-math.log(10000.0) / half))  # downscale shift 0
        angle = t[:, None].float() * rate
        code = torch.cat([angle.cos(), angle.sin()], dim=1)  # flip_sin_to_cos

        def step(x, time, cond, layer):
            return layer(x + time(code) + (0 if c is None else cond(c)))

        x, skips = self.input_layer(x), []
        for parts in zip(self.encode_time_embedding, self.encode_cond_embedding, self.encode_layers, strict=True):
            skips.append(x)
            x = step(x, *parts)
        for parts in zip(self.decode_time_embedding, self.decode_cond_embedding, self.decode_layers, strict=True):
            x = step(x, *parts) + skips.pop()
        return self.output_layer(x)
