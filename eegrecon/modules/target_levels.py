"""Which of several targets of one picture (blur levels) a training row is asked to predict."""

import torch
from torch import Tensor, nn

SMOOTHING = 0.3  # weight of the newest epoch in a picture's similarity (UBP main.py, `gamma`)
BOUND = 1.959964  # standard deviations: 95 % of a normal distribution lie within (UBP main.py, `alpha` 0.05)


class LevelMixing(nn.Module):
    """Chooses or mixes levels: (b, n_levels, dim) -> (b, dim).

    - `random`: every row takes one level, all equally likely.
    - `mean`: the mean of all levels.
    - `uncertainty`: the uncertainty-aware blur prior (UBP: Wu et al., CVPR 2025, arXiv 2503.04207; code
      HaitaoWuTJU/Uncertainty-aware-Blur-Prior@9e87c70). Every picture starts at `start`. After each epoch, a picture
      whose similarity to its EEG lies far below those of the others, so that EEG and picture seem not to match, moves
      to a blurrier level, and one far above to a sharper one: one step for every `BOUND` standard deviations.

    UBP works on raw logits, compares a row with its batch and starts the smoothed similarity at 1; here it is the
    cosine, over all pictures of an epoch, and starts at the first value, so that nothing depends on batch size,
    temperature or number of processes. With three levels the rule is UBP's.

    State (of `uncertainty`, per image_index): level; similarity (NaN: not seen yet); and this epoch's sums.

    Args:
        mixing: `random`, `mean` or `uncertainty`.
        n_levels: how many there are, sharp first.
        start: the level that validation and test see.
        n_images: pictures of the set.
    """

    level: Tensor
    similarity: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, mixing: str, n_levels: int, start: int, n_images: int) -> None:
        super().__init__()
        if mixing not in ("random", "mean", "uncertainty"):
            raise ValueError(f"mixing must be random, mean or uncertainty, got {mixing!r}")
        self.mixing, self.n_levels, self.start = mixing, n_levels, start
        if mixing == "uncertainty":
            self.register_buffer("level", torch.full((n_images,), start))
            self.register_buffer("similarity", torch.full((n_images,), torch.nan))
            self.register_buffer("total", torch.zeros(n_images))
            self.register_buffer("count", torch.zeros(n_images))

    def forward(self, levels: Tensor, image_index: Tensor, uniform: Tensor) -> Tensor:
        """Targets (b, dim) of rows with levels (b, n_levels, dim), image_index (b,) and numbers in [0, 1) (b,)."""
        if self.mixing == "mean":
            return levels.mean(1)
        if self.mixing == "random":
            chosen = (uniform.to(levels.device) * self.n_levels).long()
        else:
            chosen = self.level[image_index]
        return levels[torch.arange(len(levels), device=levels.device), chosen]

    @torch.no_grad()
    def observe(self, eeg_embeds: Tensor, image_embeds: Tensor, image_index: Tensor) -> None:
        """Notes how alike EEG and picture (b, dim) are in the rows of all ranks; only `uncertainty` keeps it."""
        if self.mixing == "uncertainty":
            cosine = torch.cosine_similarity(eeg_embeds.float(), image_embeds.float()).to(self.total.dtype)
            self.total.index_add_(0, image_index, cosine)
            self.count.index_add_(0, image_index, torch.ones_like(cosine))

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Moves every picture that was seen in this epoch to its level for the next one."""
        if self.mixing != "uncertainty":
            return
        seen = self.count > 0
        newest = self.total / self.count.clamp_min(1)
        before = torch.where(self.similarity.isnan(), newest, self.similarity)
        self.similarity.copy_(torch.where(seen, SMOOTHING * newest + (1 - SMOOTHING) * before, self.similarity))
        values = self.similarity[seen]
        if len(values) > 1 and float(values.std()) > 0:
            steps = ((values.mean() - values) / values.std() / BOUND).trunc().long()  # unlike: positive, blurrier
            self.level[seen] = (self.start + steps).clamp(0, self.n_levels - 1)
        self.total.zero_()
        self.count.zero_()

    def shares(self) -> dict[str, float]:
        """Of the pictures seen so far, the share that moved to a blurrier and to a sharper level."""
        if self.mixing != "uncertainty":
            return {}
        level = self.level[~self.similarity.isnan()].float()
        return {
            "levels_blurrier": float((level > self.start).float().mean()),
            "levels_sharper": float((level < self.start).float().mean()),
        }
