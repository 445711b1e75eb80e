"""Ridge on a stage's data against scikit-learn, and its refusal where memory is too small."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge

from eegrecon.config import load
from eegrecon.data.batches import TrialDataset, whole
from eegrecon.data.eeg_rows import HeldTrials
from eegrecon.errors import ConfigError
from eegrecon.models.encoders.ridge import Ridge, fit_bytes
from eegrecon.stages import ridge_fit, ridge_memory
from eegrecon.stages.encoder_build import build_data
from tests.builders import build_tiny_set

CHANS, TIMES, DIM, VAL = 3, 11, 4, 6
GB = 10**9


def dataset(n, g):
    eeg = torch.randn(n, CHANS, TIMES, generator=g) * torch.tensor([[1.0], [20.0], [0.1]]) + 5
    columns = {name: torch.arange(n) for name in ("image_index", "concept_index", "subject", "repetition")}
    return TrialDataset(HeldTrials(eeg), columns, {"image": torch.randn(n, DIM, generator=g)}, torch.arange(n))


def by_hand(eeg, size):
    """Means over `size` samples, flattened; float64."""
    cuts = range(0, TIMES, size)
    return np.stack([eeg[:, :, a : a + size].mean(2) for a in cuts], axis=2).reshape(len(eeg), -1)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize(("n", "block"), [(8, 3), (50, 16)], ids=["dual", "primal"])
def test_equals_scikit_learn_on_means_of_normalised_samples(monkeypatch, size, n, block):
    monkeypatch.setattr(ridge_fit, "RIDGE_ROWS", block)
    g = torch.Generator().manual_seed(0)
    train, val = dataset(n, g), dataset(VAL, g)
    data = SimpleNamespace(
        averages=lambda part: train, averaged=lambda part: whole(val), split=SimpleNamespace(val_concepts=VAL)
    )
    eeg, targets = (values.double().numpy() for values in (train.eeg.eeg, train.targets["image"]))
    mean, std = eeg.mean((0, 2)), eeg.std((0, 2))
    moments = {"channel_mean": torch.tensor(mean).float(), "channel_std": torch.tensor(std).float()}
    ridge, folded = (Ridge(CHANS, TIMES, DIM, alphas=[0.5], samples_per_bin=size) for _ in range(2))
    for one, raw in ((ridge, False), (folded, True)):
        ridge_fit.fit_closed_form(one, data, SimpleNamespace(**moments), raw=raw)

    x = by_hand((eeg - mean[:, None]) / std[:, None], size)
    assert (n <= x.shape[1]) == (n == 8)
    centred = x - x.mean(0)
    penalty = 0.5 * (centred**2).sum() / min(x.shape)  # relative to the mean diagonal of the smaller Gram matrix
    oracle = SklearnRidge(alpha=penalty, solver="svd").fit(x, targets)
    np.testing.assert_allclose(ridge.linear.weight.detach(), oracle.coef_, atol=2e-5)
    np.testing.assert_allclose(ridge.linear.bias.detach(), oracle.intercept_, atol=2e-5)
    seen, subject = val.eeg.eeg, torch.ones(VAL, dtype=torch.long)
    expected = oracle.predict(by_hand((seen.double().numpy() - mean[:, None]) / std[:, None], size))
    np.testing.assert_allclose(folded(seen, subject).detach(), expected, atol=1e-4)  # EEG as the store holds it


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    build_tiny_set(root, train_concepts=8, exemplars=4, subjects=(1, 2))
    return root


def config(root, *overrides):
    return load("train-encoder", "pocket", None, [f"data.root={root}", "data.split.val_concepts=2", *overrides])


def refusal(monkeypatch, cfg, data, free):
    monkeypatch.setattr(ridge_memory, "free_bytes", lambda device: free)
    with pytest.raises(ConfigError) as error:
        ridge_memory.check_ridge(cfg, data)
    return str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [(), ("data.protocol=joint", "data.subjects=[1,2]"), ("data.keep_repetitions=1",), ("data.repetitions=average",)],
)
def test_rows_are_counted_as_they_are_read(root, overrides):
    cfg = config(root, "data.repetitions=each", "trainer.accelerator=cpu", *overrides)
    data = build_data(cfg)
    rows = ridge_memory._rows(cfg, data)
    assert (rows.train, rows.val) == (len(data.averages("train")), len(data.averages("val")))
    assert rows.kept == data.dataset("train").eeg.on(torch.device("cpu")).eeg.nbytes * (
        cfg.data.repetitions == "each"  # averages are in memory already
    )


def test_what_does_not_fit_is_one_sentence_that_names_everything(root, monkeypatch):
    cfg = config(root, "trainer.accelerator=cpu")
    data = build_data(cfg)
    rows = ridge_memory._Rows(70_000, 800, 0)
    monkeypatch.setattr(ridge_memory, "_rows", lambda cfg, data: rows)
    text = refusal(monkeypatch, cfg, data, 2 * GB)
    assert re.fullmatch(
        r"The linear baseline \(baseline_ridge\) does not fit into memory: ridge on 70,000 training rows x 15,750 "
        r"features \(63 channels x 250 values\) takes about \d\.\d GB, but 2\.0 GB are free; set "
        r"baseline_samples_per_bin=\d or more, choose fewer channels \(data\.channels\) or a shorter data\.window, or "
        r"leave it out with baseline_ridge=false\.",
        text,
    )
    # Two matrices of 15,750² float32, then small ones: a block of 2,048 rows, validation, weights, targets.
    assert 2 * 15_750**2 * 4 < float(re.search(r"about (\S+) GB", text)[1]) * GB < 2 * 15_750**2 * 4 + 0.8 * GB
    enough = int(re.search(r"per_bin=(\d+)", text)[1])
    cfg, coarser = (config(root, f"baseline_samples_per_bin={size}") for size in (enough - 1, enough))
    assert f"set baseline_samples_per_bin={enough} or more" in refusal(monkeypatch, cfg, data, 2 * GB)
    ridge_memory.check_ridge(coarser, data)
    assert ", but 0.1 GB are free; choose fewer channels" in refusal(monkeypatch, cfg, data, GB // 10)
    ridge_memory.check_ridge(config(root, "baseline_ridge=false"), data)
    monkeypatch.setattr(ridge_memory, "free_bytes", lambda device: 8 * GB)
    ridge_memory.check_ridge(cfg, data)


def test_many_rows_of_still_more_features_are_refused_too(root, monkeypatch):
    cfg = config(root, "encoder={name: ridge, args: {samples_per_bin: 1}}", "baseline_samples_per_bin=50")
    data = build_data(cfg)
    rows = ridge_memory._Rows(15_000, 200, 0)
    monkeypatch.setattr(ridge_memory, "_rows", lambda cfg, data: rows)
    text = refusal(monkeypatch, cfg, data, 4 * GB)
    assert text.startswith(
        "The encoder ridge does not fit into memory: ridge on 15,000 training rows x 15,750 features"
    )
    assert text.endswith("or train another encoder.")  # the baseline with its few bins fits
    assert "set encoder.args.samples_per_bin=" in text
    # Rows as the data module holds them, as given and centred; Gram matrix and factor.
    sizes = 3 * 15_000 * 15_750 * 4 + 2 * 15_000**2 * 4
    assert sizes < float(re.search(r"about (\S+) GB", text)[1]) * GB < 1.1 * sizes
    assert fit_bytes(15_000, 15_750, 256, 200) > 1.5 * fit_bytes(7_500, 15_750, 256, 200)
    monkeypatch.setattr(ridge_memory, "free_bytes", lambda device: 6 * GB)
    ridge_memory.check_ridge(cfg, data)


def test_bins_longer_than_a_trial_are_refused(root, monkeypatch):
    cfg = config(root, "baseline_samples_per_bin=251")
    words = "with this baseline_samples_per_bin: its samples_per_bin is 251, expected a whole number from 1 to 250"
    assert words in refusal(monkeypatch, cfg, build_data(cfg), GB)
    cfg = config(root, "encoder={name: ridge, args: {samples_per_bin: 251}}", "baseline_ridge=false")
    assert "samples_per_bin is 251, expected" in refusal(monkeypatch, cfg, build_data(cfg), GB)
    with pytest.raises(ConfigError, match="'baseline_samples_per_bin' must be at least 1, but it is 0"):
        config(root, "baseline_samples_per_bin=0")
