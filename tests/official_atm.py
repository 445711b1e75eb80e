"""The official ATM-S encoder (main, commit 49cb3a2) as a plain module: the oracle of ours and of imported checkpoints.

Written from shared/facts/atm.md section 2.1 and the names in atm_state_dict.json, not from the code; no line of the
package is used. It has the official keys and shapes, dead parameters included, and the official quirks: the subject
token goes on in the place of the last channel, and one id of ten or more gives the whole batch the shared token.
"""

import math

import torch
from torch import nn


class _Named(nn.Module):
    """A module with the given children, so that keys come out as published."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


class _Flat(nn.Module):
    """(b, e, 1, w) -> (b, w * e), positions outermost."""

    def forward(self, x):
        return x[:, :, 0].transpose(1, 2).flatten(1)


class OfficialATMS(nn.Module):
    """forward(eeg (b, 63, 250), subject (b,)) -> (b, 1024)."""

    def __init__(self, n_chans=63, n_times=250, dim=1024, n_subjects=10, hidden=256, heads=4, filters=40):
        super().__init__()
        self.n_chans, self.heads = n_chans, heads
        inner = n_times // heads * heads
        n_out = (n_times - 24 - 51) // 5 + 1
        embedding = _Named(
            value_embedding=nn.Linear(n_times, n_times),
            position_embedding=nn.Module(),
            temporal_embedding=_Named(embed=nn.Linear(4, n_times, bias=False)),
            subject_embedding=_Named(subject_embedding=nn.Embedding(n_subjects, n_times)),
        )
        embedding.mask_token = nn.Parameter(torch.randn(1, n_times))
        embedding.subject_embedding.shared_embedding = nn.Parameter(torch.randn(1, n_times))
        embedding.subject_embedding.mask_embedding = nn.Parameter(torch.randn(1, n_times))
        angle = torch.arange(5000.0)[:, None] * torch.exp(torch.arange(0, n_times, 2) * (-math.log(10000.0) / n_times))
        pe = torch.zeros(1, 5000, n_times)
        pe[0, :, 0::2], pe[0, :, 1::2] = angle.sin(), angle.cos()[:, : n_times // 2]
        embedding.position_embedding.register_buffer("pe", pe)
        attention = _Named(
            query_projection=nn.Linear(n_times, inner),
            key_projection=nn.Linear(n_times, inner),
            value_projection=nn.Linear(n_times, inner),
            out_projection=nn.Linear(inner, n_times),
        )
        layer = _Named(
            attention=attention,
            conv1=nn.Conv1d(n_times, hidden, 1),
            conv2=nn.Conv1d(hidden, n_times, 1),
            norm1=nn.LayerNorm(n_times),
            norm2=nn.LayerNorm(n_times),
        )
        layers = _Named(attn_layers=nn.ModuleList([layer]), norm=nn.LayerNorm(n_times))
        self.encoder = _Named(enc_embedding=embedding, encoder=layers)
        self.subject_wise_linear = nn.ModuleList([nn.Linear(n_times, n_times) for _ in range(2)])  # never called
        tsconv = nn.Sequential(
            nn.Conv2d(1, filters, (1, 25)),
            nn.AvgPool2d((1, 51), (1, 5)),
            nn.BatchNorm2d(filters),
            nn.ELU(),
            nn.Conv2d(filters, filters, (n_chans, 1)),
            nn.BatchNorm2d(filters),
            nn.ELU(),
            nn.Dropout(0.5),
        )
        projection = nn.Sequential(nn.Conv2d(filters, filters, 1), _Flat())
        self.enc_eeg = nn.Sequential(_Named(tsconv=tsconv, projection=projection))
        residual = _Named(fn=nn.Sequential(nn.GELU(), nn.Linear(dim, dim), nn.Dropout(0.5)))
        self.proj_eeg = nn.Sequential(nn.Linear(filters * n_out, dim), residual, nn.LayerNorm(dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, eeg, subject):
        embedding = self.encoder.enc_embedding
        x = embedding.value_embedding(eeg) + embedding.position_embedding.pe[:, : eeg.shape[1]]
        table = embedding.subject_embedding
        if bool((subject >= table.subject_embedding.num_embeddings).any()):
            token = table.shared_embedding.expand(len(eeg), -1)
        else:
            token = table.subject_embedding(subject)
        x = self._layer(torch.cat([token[:, None], x], dim=1))
        x = self.encoder.encoder.norm(x)[:, : self.n_chans]  # the last channel falls out
        block = self.enc_eeg[0]
        return self._project(block.projection(block.tsconv(x[:, None])))

    def _layer(self, x):
        layer = self.encoder.encoder.attn_layers[0]
        a = layer.attention
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, self.heads, -1) for f in (a.query_projection, a.key_projection, a.value_projection))
        weight = torch.einsum("blhe,bshe->bhls", q, k).div(math.sqrt(q.shape[-1])).softmax(-1)
        x = layer.norm1(x + a.out_projection(torch.einsum("bhls,bshd->blhd", weight, v).reshape(b, n, -1)))
        y = layer.conv2(nn.functional.gelu(layer.conv1(x.transpose(1, 2)))).transpose(1, 2)
        return layer.norm2(x + y)

    def _project(self, x):
        x = self.proj_eeg[0](x)
        return self.proj_eeg[2](x + self.proj_eeg[1].fn(x))
