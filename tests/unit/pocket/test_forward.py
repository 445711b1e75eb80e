"""The forward model, the picture features and the random numbers against independent oracles."""

import numpy as np
import pytest

from eegrecon.pocket.brain import jitter_distribution
from eegrecon.pocket.features import retinotopic_features, shape_code, standardise
from eegrecon.pocket.forward import AREAS, CH_NAMES, leadfield, mirror
from eegrecon.pocket.noise import counter_normal, counter_uniform
from eegrecon.pocket.sources import magnification, visual_field


def test_leadfield_has_plausible_size_mirror_symmetry_and_place():
    right = np.array([area.centre for area in AREAS.values()])
    normal = np.array([area.normal for area in AREAS.values()])
    side = np.full(len(right), -1)
    leads = leadfield(np.concatenate([right, mirror(right, side)]), np.concatenate([normal, mirror(normal, side)]))
    assert leads.shape == (63, 14)
    largest = 10 * np.abs(leads).max(0)  # uV per 10 nAm
    assert ((largest > 1) & (largest < 4)).all()
    expected = {
        "V1": ("Oz", "Oz"),
        "V4": ("PO8", "PO7"),
        "LOC": ("P8", "P7"),
        "FFA": ("TP8", "TP7"),
        "ITG": ("T8", "T7"),
    }
    top = [CH_NAMES[i] for i in np.abs(leads).argmax(0)]
    for k, area in enumerate(AREAS):
        if area in expected:
            assert (top[k], top[k + 7]) == expected[area]
    # Homologous electrodes see homologous sources alike (the template head is not perfectly symmetric).
    p7, p8 = CH_NAMES.index("P7"), CH_NAMES.index("P8")
    np.testing.assert_allclose(leads[p8, :7], leads[p7, 7:], rtol=0.25, atol=0.01)


def test_a_dipole_outside_the_brain_is_refused():
    with pytest.raises(RuntimeError, match="outside the brain"):
        leadfield(np.array([[9.0, -93.0, 2.0], [0.0, -130.0, 0.0]]), np.array([[0.0, -1, 0], [0, -1, 0]]))


def test_retinotopic_features_of_hand_made_pictures():
    picture = np.zeros((1, 12, 12, 3), np.uint8)
    picture[0, :6, :6] = (255, 0, 0)
    picture[0, 6:, 6:] = (0, 0, 255)
    picture[0, :6, 6:] = 255
    luminance, contrast, red_green, blue_yellow, edges = retinotopic_features(picture, 2)[0].T
    np.testing.assert_allclose(luminance, [0.299, 1.0, 0.0, 0.114], atol=1e-6)
    np.testing.assert_allclose(contrast, 0, atol=1e-6)
    np.testing.assert_allclose(red_green, [1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(blue_yellow, [-0.5, 0, 0, 1], atol=1e-6)
    assert (edges > 0).all()


def test_visual_field_and_magnification():
    x, y = visual_field(6)
    assert (x[0], y[0]) == pytest.approx((-5 / 6, 5 / 6))  # first cell: upper left
    weights = magnification(6).reshape(6, 6)
    assert weights.mean() == pytest.approx(1)
    assert weights[2, 2] > weights[1, 1] > weights[0, 0]


def test_shape_code_is_standardised_seeded_and_not_linear():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((4000, 8)).astype(np.float32)
    train = np.arange(4000) < 3000
    code = shape_code(features, train, 4, hidden=64, drive=1.5, seed=3)
    np.testing.assert_allclose(code[train].mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(code[train].std(0), 1, atol=1e-3)
    assert np.array_equal(code, shape_code(features, train, 4, hidden=64, drive=1.5, seed=3))
    design = np.column_stack([features, np.ones(4000)])
    weights, *_ = np.linalg.lstsq(design[train], code[train], rcond=None)
    explained = 1 - ((code - design @ weights)[~train] ** 2).mean() / code[~train].var()
    assert 0.3 < explained < 0.97


def test_standardise_leaves_constant_columns_at_zero():
    values = np.array([[1.0, 5.0], [3.0, 5.0], [9.0, 7.0]])
    assert standardise(values, np.array([True, True, False])).tolist() == [[-1, 0], [1, 0], [7, 0]]


def test_counter_numbers_are_uniform_normal_and_a_function_of_their_keys():
    keys = np.arange(20000)
    uniform = counter_uniform(1, keys)
    assert np.array_equal(uniform[500:510], counter_uniform(1, keys[500:510]))
    assert uniform.min() > 0
    assert uniform.max() < 1
    assert uniform.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(uniform[:-1], uniform[1:])[0, 1]) < 0.03
    assert not np.array_equal(uniform, counter_uniform(2, keys))
    assert not np.array_equal(counter_uniform(3, 5), counter_uniform(5, 3))
    normal = counter_normal(1, keys)
    assert normal.std() == pytest.approx(1, abs=0.02)


def test_jitter_distribution():
    assert jitter_distribution(0.0).tolist() == [1.0]
    probabilities = jitter_distribution(0.016)
    assert probabilities.sum() == pytest.approx(1)
    assert len(probabilities) == 25
    steps = np.arange(-12, 13)
    assert probabilities @ steps == pytest.approx(0)
    assert np.sqrt(probabilities @ steps**2) == pytest.approx(4, rel=0.03)
