"""Whose trials are trained on and tested, which trials are used, and that where rows lie changes no batch."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from eegrecon.data import batches, target_dir, trial_dir
from eegrecon.data.batches import GlobalBatchSampler
from eegrecon.datamodule import ThingsDataModule
from eegrecon.errors import ConfigError, DataError
from tests.builders import build_tiny_set

SUBJECTS = (1, 2, 3)
BACK = ["PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2"]


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_set(tmp_path_factory.mktemp("tiny"), subjects=SUBJECTS)


def module_of(root, subjects=(1,), **kw):
    facts = {
        "stage": "encoder",
        "images_root": root,
        "trial_dirs": [trial_dir(root, s) for s in subjects],
        "target_dirs": {"image": target_dir(root, "clip-pocket"), "vae_latent": target_dir(root, "vae-pocket")},
        "val_concepts": 4,
        "batch_size": 8,
    }
    return ThingsDataModule(**{**facts, **kw})


def left_out(root, **kw):
    return module_of(root, (1, 2), protocol="leave_one_subject_out", test_subject=3, **kw)


def raw(root, subject, partition="train"):
    return torch.from_numpy(np.load(trial_dir(root, subject) / f"{partition}_eeg.npy").astype(np.float32))


def epochs_of(dm, count=2):
    """Every batch of some epochs, as Lightning would ask for them."""
    loader = dm.train_dataloader()
    found = []
    for epoch in range(count):
        loader.batch_sampler.sampler.set_epoch(epoch)
        found += list(loader)
    return found


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if isinstance(value, dict):
                assert_same([value], [b[name]])
            else:
                assert torch.equal(value, b[name]), name
                assert value.dtype == b[name].dtype


# ---- protocols -------------------------------------------------------------------------------------------------------


def test_leave_one_subject_out_trains_and_validates_on_the_others(tiny_set):
    dm = left_out(tiny_set)
    every = epochs_of(dm, 1)
    assert sorted({int(s) for batch in every for s in batch["subject"]}) == [1, 2]
    for batch in every:
        for subject in (1, 2):
            mine = batch["subject"] == subject
            want = raw(tiny_set, subject)[batch["image_index"][mine], batch["repetition"][mine]]
            assert torch.equal(batch["eeg"][mine], want)
    val = list(dm.val_dataloader())
    assert sorted({int(s) for batch in val for s in batch["subject"]}) == [1, 2]
    assert {int(i) for batch in val for i in batch["image_index"]} == set(dm.split.val.tolist())
    trained = {int(c) for batch in every for c in batch["concept_index"]}
    assert not trained & {int(c) for batch in val for c in batch["concept_index"]}
    pooled = torch.cat([raw(tiny_set, s)[dm.split.train] for s in (1, 2)])
    assert torch.allclose(dm.channel_mean, pooled.mean((0, 1, 3)), atol=1e-5)
    described = dm.describe()
    assert (described["subjects"], described["test_subjects"]) == ([1, 2], [3])
    assert described["split"]["protocol"] == "leave_one_subject_out"
    joint = module_of(tiny_set, (1, 2), protocol="joint").describe()
    assert described["split"]["sha256"] == joint["split"]["sha256"]  # the same concepts are held out
    assert joint["test_subjects"] == [1, 2]


def test_the_one_left_out_is_tested_and_needs_no_training_data(tiny_set, tmp_path):
    root = Path(shutil.copytree(tiny_set, tmp_path / "pocket"))
    for subject in (1, 2):
        (trial_dir(root, subject) / "test_eeg.npy").unlink()
        (trial_dir(root, subject) / "train_eeg.npy").unlink()
    for file in trial_dir(root, 3).glob("train_*"):
        file.unlink()
    batch = left_out(root, stage="reconstruct").averaged("test")
    assert set(batch["subject"].tolist()) == {3}
    assert torch.allclose(batch["eeg"], raw(root, 3, "test").mean(1), atol=1e-6)
    assert "gallery" not in batch


def test_joint_trains_on_all_and_tests_the_one_named(tiny_set):
    dm = module_of(tiny_set, SUBJECTS, protocol="joint", stage="reconstruct", test_subject=2)
    assert set(dm.averaged("test")["subject"].tolist()) == {2}
    assert dm.describe()["subjects"] == [1, 2, 3]
    assert dm.describe()["test_subjects"] == [2]
    everyone = module_of(tiny_set, SUBJECTS, protocol="joint", stage="reconstruct")
    assert sorted(set(everyone.averaged("test")["subject"].tolist())) == [1, 2, 3]


@pytest.mark.parametrize(
    ("subjects", "options", "message"),
    [
        ((1, 2), {"protocol": "leave_one_subject_out", "test_subject": 2}, "tests a subject that is not trained on"),
        ((1, 2), {"protocol": "leave_one_subject_out"}, "tests a subject that is not trained on, .*is None"),
        ((1, 2), {"protocol": "joint", "test_subject": 3}, "tests a subject that is trained on"),
        ((1,), {"test_subject": 3}, "within_subject tests a subject that is trained on"),
    ],
)
def test_subjects_and_protocols_that_do_not_fit(tiny_set, subjects, options, message):
    with pytest.raises(ConfigError, match=message):
        module_of(tiny_set, subjects, **options)


def test_the_tested_store_must_be_like_the_others(tiny_set, tmp_path):
    root = Path(shutil.copytree(tiny_set, tmp_path / "pocket"))
    header = trial_dir(root, 3) / "header.json"
    header.write_text(header.read_text().replace('"unit": "uV"', '"unit": "mvnn"'))
    left_out(root)  # training never looks
    with pytest.raises(DataError, match=r"sub-01 and .*sub-03 cannot be used together: their unit is uV and mvnn"):
        left_out(root, stage="reconstruct")


def test_permuted_labels_join_the_subjects(tiny_set):
    plain, permuted = (left_out(tiny_set, permute_labels=p, seed=4) for p in (False, True))
    before, after = plain.averaged("train"), permuted.averaged("train")
    assert torch.equal(before["eeg"], after["eeg"])
    pairs = set(zip(before["image_index"].tolist(), after["image_index"].tolist(), strict=True))
    assert len(pairs) == 24  # both subjects' trials of a picture get the same new one
    assert sum(a != b for a, b in pairs) > 12


# ---- selections ------------------------------------------------------------------------------------------------------


def test_channels_by_region_and_a_window(tiny_set):
    dm = module_of(tiny_set, channels={"region": "occipital"}, window=(0.1, 0.3))
    assert dm.ch_names == BACK
    assert dm.describe()["channels"] == BACK
    batch = next(iter(dm.train_dataloader()))
    want = raw(tiny_set, 1)[batch["image_index"], batch["repetition"]][:, -8:, 25:75]
    assert torch.equal(batch["eeg"], want)


def test_sessions_and_repetitions(tiny_set, tmp_path):
    # The tiny set's repetition r was recorded in session r; here the first picture's trials change places.
    root = Path(shutil.copytree(tiny_set, tmp_path / "pocket"))
    path = trial_dir(root, 1) / "train_session.npy"
    session = np.load(path) + 1
    first = int(module_of(root).split.train[0])
    session[first] = [3, 3]
    np.save(path, session)
    second = module_of(root, sessions=[2])
    rows = second.dataset("train").columns
    assert set(rows["repetition"].tolist()) == {1}
    assert first not in rows["image_index"].tolist()
    assert len(rows["image_index"]) == 23
    assert second.describe()["sessions"] == [2]
    assert second.split.sha256 == module_of(root).split.sha256  # the split is of pictures, whatever trials are used
    both = module_of(root, sessions=[1, 3], repetitions="average").averaged("train")
    assert torch.allclose(both["eeg"][0], raw(root, 1)[first].mean(0), atol=1e-6)
    assert torch.equal(both["eeg"][1], raw(root, 1)[both["image_index"][1], 0])
    one = module_of(root, keep_repetitions=1)
    assert torch.equal(one.averaged("val")["eeg"], raw(root, 1)[one.split.val, 0])
    kept = module_of(root, stage="reconstruct", keep_repetitions=[0, 2]).averaged("test")["eeg"]
    assert torch.allclose(kept, raw(root, 1, "test")[:, [0, 2]].mean(1), atol=1e-6)


def test_sessions_that_leave_a_validation_concept_without_trials_are_refused(tiny_set, tmp_path):
    root = Path(shutil.copytree(tiny_set, tmp_path / "pocket"))
    dm = module_of(root)
    concept = dm.images.concept_index[dm.split.val[0]]
    path = trial_dir(root, 1) / "train_session.npy"
    session = np.load(path) + 1
    session[dm.split.val[dm.images.concept_index[dm.split.val] == concept]] = 3
    np.save(path, session)
    with pytest.raises(DataError, match="Of the 4 validation concepts, only 3 have trials"):
        module_of(root, sessions=[1]).setup("fit")


def test_broken_trials_that_are_not_used_do_not_matter(tiny_set, tmp_path):
    root = Path(shutil.copytree(tiny_set, tmp_path / "pocket"))
    eeg = np.load(trial_dir(root, 1) / "train_eeg.npy", mmap_mode="r+")
    eeg[:, 1] = np.nan
    eeg.flush()
    module_of(root, keep_repetitions=1).setup("fit")
    with pytest.raises(DataError, match="repetition 1"):
        module_of(root, repetitions={"average": 2}).setup("fit")


def test_groups_of_k(tmp_path):
    root = build_tiny_set(tmp_path, train_concepts=8)
    dm = module_of(root, (1,), repetitions={"average": 2})
    every = epochs_of(dm, 1)
    assert set(torch.cat([batch["repetition"] for batch in every]).tolist()) == {-1}
    index, eeg = (torch.cat([batch[name] for batch in every]) for name in ("image_index", "eeg"))
    assert torch.allclose(eeg, raw(root, 1)[index].mean(1), atol=1e-6)  # 2 of 2: all
    means = raw(root, 1)[dm.split.train].mean(1)
    assert torch.allclose(dm.channel_std, means.transpose(0, 1).flatten(1).std(1), atol=1e-3)
    assert dm.describe()["repetitions"] == {"average": 2}
    with pytest.raises(DataError, match="averages over 3 trials, but a picture has only 2"):
        module_of(root, repetitions={"average": 3}).setup("fit")
    with pytest.raises(ConfigError, match="expected one of each, average"):
        module_of(root, repetitions={"average": 1})


# ---- the same batches ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """More repetitions than the tiny set has, so that groups of two differ between epochs."""
    root = build_tiny_set(tmp_path_factory.mktemp("many"), subjects=(1, 2), train_concepts=8, exemplars=2)
    for subject in (1, 2):
        folder = trial_dir(root, subject)
        eeg = np.tile(np.load(folder / "train_eeg.npy"), (1, 3, 1, 1))
        eeg += np.random.default_rng(subject).normal(size=eeg.shape).astype(np.float16)
        np.save(folder / "train_eeg.npy", eeg)
        np.save(folder / "train_session.npy", np.tile(np.load(folder / "train_session.npy"), (1, 3)))
        header = folder / "header.json"
        values = json.loads(header.read_text())
        for name in ("train_eeg.npy", "train_session.npy"):
            values["files"][name]["shape"][1] = 6
        header.write_text(json.dumps(values))
    return root


REPETITIONS = ["each", "average", {"average": 2}]
SELECTION = {"channels": {"region": ["occipital", "parietal"]}, "window": (0.1, 0.5), "keep_repetitions": 5}


def test_groups_are_new_in_every_epoch(many):
    dm = module_of(many, (1, 2), protocol="joint", repetitions={"average": 2}, batch_size=1)
    sums = []
    for batches_ in (epochs_of(dm, 1), epochs_of(dm, 2)[len(dm.dataset("train")) :]):
        whole = [(int(b["subject"]), int(b["image_index"]), float(b["eeg"].double().sum())) for b in batches_]
        assert len(whole) == 2 * 8 * 3  # three pairs of each picture's six trials
        sums.append(set(whole))
    assert len(sums[0] & sums[1]) < len(sums[0]) / 2
    oracle = {(s, i): float(raw(many, s)[i].double().sum()) for s in (1, 2) for i in dm.split.train.tolist()}
    for found in sums:  # all six trials of each picture are there once
        for (s, i), want in oracle.items():
            assert 2 * sum(x for a, b, x in found if (a, b) == (s, i)) == pytest.approx(want, abs=1e-2)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("repetitions", REPETITIONS, ids=str)
def test_workers_change_no_batch(many, repetitions):
    options = {"protocol": "joint", "repetitions": repetitions, "seed": 3}
    alone = epochs_of(module_of(many, (1, 2), **options), 3)
    if repetitions != "average":
        assert not torch.equal(alone[0]["eeg"], alone[len(alone) // 3]["eeg"])
    for workers in (1, 3):
        assert_same(alone, epochs_of(module_of(many, (1, 2), num_workers=workers, **options), 3))
    other = epochs_of(module_of(many, (1, 2), **{**options, "seed": 4}), 1)
    assert not torch.equal(alone[0]["image_index"], other[0]["image_index"])


@pytest.mark.parametrize("selection", [{}, SELECTION], ids=["all", "some"])
@pytest.mark.parametrize("repetitions", REPETITIONS, ids=str)
def test_rows_kept_on_the_device_give_the_same_batches(many, repetitions, selection):
    options = {"protocol": "joint", "repetitions": repetitions, **selection}
    streamed, held = (module_of(many, (1, 2), on_device=on, **options) for on in (False, True))
    assert_same(epochs_of(streamed), epochs_of(held))
    assert_same(list(streamed.val_dataloader()), list(held.val_dataloader()))
    # They were read once: the files are not needed any more.
    inner = held.train_dataloader().dataset.eeg
    assert not hasattr(getattr(inner, "trials", inner), "partitions")
    if repetitions != "average":
        outer = streamed.train_dataloader().dataset.eeg
        assert hasattr(getattr(outer, "trials", outer), "partitions")


@pytest.mark.gpu
@pytest.mark.parametrize("repetitions", REPETITIONS, ids=str)
def test_rows_on_a_gpu_give_the_same_batches(many, repetitions):
    dm = module_of(many, (1, 2), protocol="joint", repetitions=repetitions, num_workers=2)
    here = dm.dataset("train")
    there = here.on(torch.device("cuda", 0))
    assert there.device.type == "cuda"
    sampler = GlobalBatchSampler(len(here), 8, seed=1, epoch=2, count_on=isinstance(repetitions, dict))
    for rows in sampler:
        batch = there.__getitems__(rows)
        assert batch["eeg"].device.type == "cuda"
        moved = {k: {n: t.cpu() for n, t in v.items()} if isinstance(v, dict) else v.cpu() for k, v in batch.items()}
        assert_same([here.__getitems__(rows)], [moved])


def test_what_does_not_fit_is_streamed_or_refused(many, monkeypatch):
    wanted = epochs_of(module_of(many, on_device=False), 1)
    monkeypatch.setattr(batches, "free_bytes", lambda device: 1000)
    assert_same(wanted, epochs_of(module_of(many), 1))
    with pytest.raises(ConfigError, match=r"The train rows take .* GB, and cpu has 0\.00 GB free"):
        module_of(many, on_device=True).train_dataloader()
