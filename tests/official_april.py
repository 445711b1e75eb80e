"""The ATM-S encoder of April 2024 (e0dfa58) as a plain module: the oracle of imported checkpoints of that time.

Written from shared/facts/atm.md section 2.2 and the names in `Retrieval/ATM_S_insubject_retrieval.py`, not from the
code; no line of the package is used, and attention is written out. Half of the attention's parameters are dead.
"""

import math

import torch
from torch import nn

from tests.official_atm import OfficialATMS, _Named


class _Layer(nn.Module):
    """Post-norm transformer layer with one head and ReLU over (b, n, width), torch's names."""

    def __init__(self, width, hidden):
        super().__init__()
        self.self_attn = _Named(out_proj=nn.Linear(width, width))
        self.self_attn.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) / math.sqrt(width))
        self.self_attn.in_proj_bias = nn.Parameter(torch.randn(3 * width) / 10)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        q, k, v = (x @ self.self_attn.in_proj_weight.T + self.self_attn.in_proj_bias).chunk(3, dim=-1)
        weight = torch.einsum("bid,bjd->bij", q, k).div(math.sqrt(q.shape[-1])).softmax(-1)
        x = self.norm1(x + self.self_attn.out_proj(weight @ v))
        return self.norm2(x + self.linear2(self.linear1(x).relu()))


class OfficialApril(nn.Module):
    """forward(eeg (b, 63, 250)) -> (b, 1024)."""

    def __init__(self, n_chans=63, n_times=250, dim=1024, hidden=2048, linears=1):
        super().__init__()
        angle = torch.arange(5000.0)[:, None] * torch.exp(torch.arange(0, n_chans, 2) * (-math.log(10000.0) / n_chans))
        pe = torch.zeros(5000, n_chans)
        pe[:, 0::2], pe[:, 1::2] = angle.sin(), angle.cos()[:, : n_chans // 2]
        positions = nn.Module()
        positions.register_buffer("pe", pe)
        self.attention_model = _Named(
            pos_encoder=positions,
            encoder_layer=_Layer(n_chans, hidden),  # never called
            transformer_encoder=_Named(layers=nn.ModuleList([_Layer(n_chans, hidden)])),
        )
        self.subject_wise_linear = nn.ModuleList([nn.Linear(n_times, n_times) for _ in range(linears)])
        back = OfficialATMS(n_chans, n_times, dim)  # convolution and projection are those of main
        self.enc_eeg, self.proj_eeg, self.logit_scale = back.enc_eeg, back.proj_eeg, back.logit_scale

    def forward(self, eeg, subject=None):
        x = eeg.transpose(1, 2) + self.attention_model.pos_encoder.pe[: eeg.shape[2]]
        x = self.subject_wise_linear[0](self.attention_model.transformer_encoder.layers[0](x).transpose(1, 2))
        x = self.enc_eeg[0].projection(self.enc_eeg[0].tsconv(x[:, None]))
        return OfficialATMS._project(self, x)
