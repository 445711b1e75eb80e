"""InfoNCE against a loop, and its two known points."""

import math

import pytest
import torch

from eegrecon.losses.contrastive import info_nce, same_image, siglip


def by_loop(eeg, image, scale, positives=None):
    n = len(eeg)
    sim = [[scale * torch.cosine_similarity(eeg[i], image[j], dim=0).item() for j in range(n)] for i in range(n)]
    keep = lambda i, j: i == j or positives is None or not positives[i][j]  # noqa: E731
    total = 0.0
    for i in range(n):
        total += math.log(sum(math.exp(sim[i][j]) for j in range(n) if keep(i, j))) - sim[i][i]
        total += math.log(sum(math.exp(sim[j][i]) for j in range(n) if keep(i, j))) - sim[i][i]
    return total / (2 * n)


@pytest.mark.parametrize("repeated", [False, True])
def test_equals_a_loop(repeated):
    torch.manual_seed(0)
    eeg, image = torch.randn(6, 5) * 3, torch.randn(6, 5)
    index = torch.tensor([4, 1, 4, 2, 2, 2]) if repeated else torch.arange(6)
    positives = same_image(index)
    loss = info_nce(eeg, image, torch.tensor(1.3), positives)
    assert loss.item() == pytest.approx(by_loop(eeg, image, math.exp(1.3), positives.tolist()), rel=1e-5)


def test_perfect_and_chance():
    eye = torch.eye(8)
    assert info_nce(eye, 7 * eye, torch.tensor(4.0)).item() < 1e-6
    flat = torch.ones(8, 3)
    assert info_nce(flat, flat, torch.tensor(2.0)).item() == pytest.approx(math.log(8))


def test_a_second_trial_of_the_picture_is_no_negative():
    image = torch.eye(4)[[0, 0, 1, 2]]
    eeg = image.clone()
    loss = info_nce(eeg, image, torch.tensor(4.0), same_image(torch.tensor([9, 9, 5, 6])))
    assert loss.item() < 1e-6
    assert info_nce(eeg, image, torch.tensor(4.0)).item() > 0.3  # without the mask it is punished
    alone = info_nce(eeg[:2], image[:2], torch.tensor(4.0), torch.ones(2, 2, dtype=torch.bool))
    assert alone.item() == 0.0  # nothing left to confuse it with


def test_gradient_reaches_both_sides_and_the_temperature():
    eeg, image = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    info_nce(eeg, image, scale, same_image(torch.tensor([1, 1, 2, 3]))).backward()
    for tensor in (eeg, image, scale):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


def by_pairs(eeg, image, scale, bias, positives):
    """SigLIP as b² questions, each answered by itself."""
    n = len(eeg)
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i != j and positives[i][j]:
                continue
            logit = scale * torch.cosine_similarity(eeg[i], image[j], dim=0).item() + bias
            right = 1 / (1 + math.exp(-logit))
            total -= math.log(right if i == j else 1 - right)
    return total / n


@pytest.mark.parametrize("index", [[0, 1, 2, 3, 4, 5], [4, 1, 4, 2, 2, 2]])
def test_siglip_equals_its_pairs(index):
    torch.manual_seed(0)
    eeg, image = torch.randn(6, 5) * 3, torch.randn(6, 5)
    positives = same_image(torch.tensor(index))
    loss = siglip(eeg, image, torch.tensor(1.1), torch.tensor(-0.7), positives)
    assert loss.item() == pytest.approx(by_pairs(eeg, image, math.exp(1.1), -0.7, positives.tolist()), rel=1e-5)


def test_siglip_perfect_and_blind():
    eye = torch.eye(8)
    assert siglip(eye, 3 * eye, torch.tensor(4.0), torch.tensor(-27.0)).item() < 1e-6  # logits 27.6 and -27
    flat = torch.ones(8, 3)
    zero = siglip(flat, flat, torch.tensor(0.0), torch.tensor(-1.0))  # every logit is 0
    assert zero.item() == pytest.approx(8 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("loss", [info_nce, lambda *args, **kw: siglip(*args[:3], torch.tensor(-1.0), **kw)])
def test_each_side_may_keep_its_length_and_the_scale_may_be_raw(loss):
    torch.manual_seed(0)
    eeg, image, scale = torch.randn(5, 4), 2 * torch.randn(5, 4), torch.tensor(0.8)
    unit = torch.nn.functional.normalize
    bare = {"normalise_eeg": False, "normalise_image": False, "raw_scale": True}
    for by_eeg in (True, False):
        for by_image in (True, False):
            for raw in (True, False):
                a, b = (unit(eeg) if by_eeg else eeg), (unit(image) if by_image else image)
                wanted = loss(a, b, scale if raw else scale.exp(), **bare)
                found = loss(eeg, image, scale, normalise_eeg=by_eeg, normalise_image=by_image, raw_scale=raw)
                torch.testing.assert_close(found, wanted)
    assert loss(eeg, image, scale) != loss(eeg, image, scale, normalise_eeg=False)
