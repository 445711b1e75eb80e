"""The simulated subject: determinism, where and when it answers, what its noise is like."""

import json

import numpy as np
import pytest

from eegrecon.errors import DataError
from eegrecon.pocket.brain import AREAS, CH_NAMES, BrainParams, simulate_subject
from eegrecon.pocket.noise import NoiseParams
from eegrecon.pocket.truth import ARRAYS, Truth

N, N_TRAIN = 40, 30
# The 17 channels of the original release are the last 17 of the 63 (shared/facts/atm.md 1.2).
OCCIPITO_PARIETAL = tuple(("P7 P5 P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz " + "PO4 PO8 O1 Oz O2").split())
SMALL = NoiseParams(n_traces=24)


def stimuli():
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (N, 8, 8, 3)).astype(np.uint8)
    features = np.maximum(rng.standard_normal((N, 64)), 0).astype(np.float32)
    return coarse.repeat(4, 1).repeat(4, 2), features, np.arange(N) < N_TRAIN


def make(subject=1, **changes):
    return simulate_subject(subject, *stimuli(), BrainParams(**{"gain": 0.3, "noise": SMALL, **changes}))


@pytest.fixture(scope="module")
def brain():
    return make()


def test_trials_have_the_stated_shape_unit_and_size(brain):
    trials = brain.trials([0, 35], 3)
    assert trials.shape == (2, 3, 63, 250)
    assert trials.dtype == np.float32
    assert len(CH_NAMES) == len(set(CH_NAMES)) == 63
    assert CH_NAMES[0] == "Fp1"
    assert CH_NAMES[-17:] == OCCIPITO_PARIETAL
    assert "Fz" not in CH_NAMES


def test_the_same_subject_twice_is_bitwise_equal_and_another_subject_is_not(brain):
    again, other = make(), make(subject=2)
    assert np.array_equal(brain.trials([3, 33], 2), again.trials([3, 33], 2))
    assert np.array_equal(brain.clean([3]), again.clean([3]))
    assert np.abs(brain.clean([3]) - other.clean([3])).max() > 0.1


def test_a_trial_does_not_depend_on_the_block_it_is_made_in(brain):
    images = [5, 31, 0, 12]
    whole = brain.trials(images, 4)
    for row, image in enumerate(images):
        for rep in range(4):
            assert np.array_equal(brain.trials([image], 1, first_repetition=rep)[0, 0], whole[row, rep])
    assert np.array_equal(brain.clean(images)[2], brain.clean([0])[0])


def test_statistics_come_from_training_pictures_only():
    pictures, features, mask = stimuli()
    changed = pictures.copy()
    changed[~mask] = 255 - changed[~mask]
    features2 = np.where(mask[:, None], features, features * 3)
    params = BrainParams(gain=0.3, noise=SMALL)
    first = simulate_subject(1, pictures, features, mask, params).clean(np.flatnonzero(mask))
    second = simulate_subject(1, changed, features2.astype(np.float32), mask, params).clean(np.flatnonzero(mask))
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_gain_is_the_rms_of_the_picture_driven_signal_and_zero_means_none():
    # Without jitter and subject factor the RMS over electrodes, samples and training pictures is the gain itself.
    exact = make(gain=0.25, jitter_early=0.0, jitter_late=0.0, subject_gain=0.0)
    train = exact.clean(np.arange(N_TRAIN))
    # The nuisance codes are drawn, not standardised, so their mean over 30 pictures joins the evoked response.
    assert np.sqrt(((train - exact.truth()["arrays"]["evoked"]) ** 2).mean()) == pytest.approx(0.25, rel=1e-3)
    nothing = make(gain=0.0, jitter_early=0.0, jitter_late=0.0).clean(np.arange(N))
    assert np.array_equal(nothing, np.broadcast_to(nothing[:1], nothing.shape))
    assert np.abs(nothing).max() == pytest.approx(BrainParams().evoked_peak, rel=1e-4)


def test_v1_answers_before_loc_before_itg(brain):
    truth = brain.truth()
    arrays, parts = truth["arrays"], truth["components"]
    peak = {}
    for area in AREAS:
        mine = [k for k, part in enumerate(parts) if part["area"] == area]
        power = np.einsum("ik,kt->it", arrays["codes"][:, mine] ** 2, arrays["time_courses"][mine] ** 2).mean(0)
        peak[area] = np.argmax(power) / 250
        assert peak[area] == pytest.approx(AREAS[area].latency, abs=0.03)
    assert peak["V1"] < peak["V4"] < peak["LOC"] < peak["ITG"]
    differences = brain.clean(np.arange(N)).std(0).max(0)  # over pictures, the largest electrode
    assert differences[: int(0.05 * 250)].max() < 0.1 * differences.max()  # nothing about the picture before 50 ms


@pytest.fixture(scope="module")
def truths():
    return [make(subject).truth() for subject in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("area", "where"),
    [
        ("V1", {"POz", "Oz", "O1", "O2"}),
        ("V4", {"PO7", "PO8", "P7", "P8", "O1", "O2"}),
        ("LOC", {"P7", "P8", "PO7", "PO8", "P5", "P6"}),
        ("FFA", {"P7", "P8", "TP7", "TP8", "T7", "T8"}),
        ("ITG", {"T7", "T8", "TP7", "TP8"}),
    ],
)
def test_each_area_shows_where_it_should(truths, area, where):
    for subject, truth in enumerate(truths, start=1):
        mine = [k for k, part in enumerate(truth["components"]) if part["area"] == area]
        power = (truth["arrays"]["topographies"][mine] ** 2).sum(0)
        largest = {CH_NAMES[i] for i in np.argsort(-power)[:2]}
        assert largest & where, f"subject {subject}: {area} is largest at {largest}"
        assert CH_NAMES[int(np.argmax(power))] in where | {"PO3", "PO4"}


def test_left_pictures_drive_the_right_hemisphere():
    pictures, features, mask = stimuli()
    pictures[36:], pictures[37, :, :16] = 128, 255
    truth = simulate_subject(1, pictures, features, mask, BrainParams(noise=SMALL)).truth()
    codes = truth["arrays"]["codes"][37] - truth["arrays"]["codes"][36]
    strength = {"left": 0.0, "right": 0.0}
    for code, part in zip(codes, truth["components"], strict=True):
        if part["area"] == "V1" and part["unit"] == 0:
            strength[truth["dipoles"][part["dipole"]]["hemisphere"]] += abs(code)
    assert strength["right"] > 10 * max(strength["left"], 1e-9)


def test_averages_of_many_trials_approach_the_noise_free_signal(brain):
    for image in (2, 35):
        average = brain.trials([image], 300)[0].mean(0)
        residual = average - brain.clean([image])[0]
        assert residual.std() == pytest.approx(7.3 / np.sqrt(300), rel=0.25)


def test_single_trial_noise_is_7_uv_low_frequency_and_baseline_corrected(brain):
    noise = brain.trials(np.arange(20), 8) - brain.clean(np.arange(20))[:, None]
    assert noise.std() == pytest.approx(7.3, rel=0.1)
    spectrum = (np.abs(np.fft.rfft(noise, axis=-1)) ** 2).mean((0, 1, 2))
    assert spectrum[1:4].mean() > 5 * spectrum[20:40].mean() > 5 * spectrum[80:120].mean() / 5
    assert spectrum[8:12].mean() > 1.5 * spectrum[15:20].mean()  # alpha
    assert noise[..., :5].std() < noise[..., 100:].std()  # the baseline before onset was subtracted
    correlation = np.corrcoef(noise.transpose(2, 0, 1, 3).reshape(63, -1))
    near = correlation[CH_NAMES.index("O1"), CH_NAMES.index("Oz")]
    assert near > 0.5  # coloured in space
    assert near > abs(correlation[0, -1]) + 0.1


def test_noise_of_repetitions_and_of_train_and_test_is_independent(brain):
    train = (brain.trials(np.arange(10), 4) - brain.clean(np.arange(10))[:, None]).reshape(40, -1)
    test = (brain.trials(np.arange(30, 40), 4) - brain.clean(np.arange(30, 40))[:, None]).reshape(40, -1)
    both = np.corrcoef(np.concatenate([train, test]))
    off = both[~np.eye(80, dtype=bool)]
    assert abs(off.mean()) < 0.02
    traces = [np.stack([brain._bank(side).trace(k) for k in range(SMALL.n_traces)]) for side in (True, False)]
    across = np.corrcoef(*(side[..., :1000:7].reshape(SMALL.n_traces, -1) for side in traces))[:24, 24:]
    assert np.abs(across).max() < 0.4  # no trace of one bank is a trace of the other


def test_truth_read_back_gives_the_noise_free_signal(brain, tmp_path):
    truth = brain.truth()
    arrays = truth.pop("arrays")
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    for name in ARRAYS:
        np.save(tmp_path / f"{name}.npy", arrays[name])
    saved = Truth.load(tmp_path)
    np.testing.assert_allclose(saved.noise_free([0, 35]), brain.clean([0, 35]), atol=1e-4)
    parts = sum(saved.noise_free([0], [area]) for area in saved.record["areas"])
    np.testing.assert_allclose(parts + saved.evoked, brain.clean([0]), atol=1e-4)
    with pytest.raises(DataError, match="choose from"):
        saved.noise_free([0], ["V9"])
    (tmp_path / "codes.npy").unlink()
    with pytest.raises(DataError, match=r"lacks codes\.npy"):
        Truth.load(tmp_path)


def test_inputs_that_do_not_fit_are_refused():
    pictures, features, mask = stimuli()
    with pytest.raises(ValueError, match="must agree"):
        simulate_subject(1, pictures, features[:-1], mask)
    with pytest.raises(ValueError, match="uint8"):
        simulate_subject(1, pictures.astype(np.float32), features, mask)
    with pytest.raises(ValueError, match="subject"):
        simulate_subject(0, pictures, features, mask)
