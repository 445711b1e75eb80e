import pytest
import torch
from PIL import Image

from eegrecon.metrics.features import picture_features, picture_tensor


def test_batches_do_not_matter_and_order_is_kept():
    pictures = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(7)]

    def network(batch):
        return picture_tensor(batch, 8).mean((2, 3))

    whole = picture_features(network, pictures, batch_size=7)
    assert torch.equal(whole, picture_features(network, pictures, batch_size=2))
    assert torch.allclose(whole[:, 0] * 255, torch.arange(7.0))
    with pytest.raises(ValueError, match="at least one"):
        picture_features(network, [])


def test_picture_tensor_range_and_size():
    tensor = picture_tensor([Image.new("L", (20, 10), 255), Image.new("RGBA", (4, 4), (0, 0, 0, 255))], 6)
    assert tensor.shape == (2, 3, 6, 6)
    assert tensor[0].min() == 1
    assert tensor[1].max() == 0
