import pytest
import torch

from eegrecon.metrics.functional.pixels import pixcorr, ssim
from eegrecon.metrics.pixels import SSIM, PixCorr


@pytest.mark.parametrize(("shell", "function"), [(PixCorr, pixcorr), (SSIM, ssim)])
def test_shell_is_the_mean_over_pictures_with_duplicates_once(shell, function):
    pred, true = torch.rand(2, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([4, 2, 9, 7, 1])
    metric = shell()
    metric.update(pred[:2], true[:2], index[:2])
    metric.update(pred[2:], true[2:], index[2:])
    metric.update(pred[:1], true[:1], index[:1])
    assert metric.compute().item() == pytest.approx(function(pred, true).mean().item(), abs=1e-6)
