import json
import os
import subprocess
import sys
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch

from eegrecon.artifacts import save_embeds
from eegrecon.data import THINGS_EEG2_CHANNELS, target_dir, trial_dir
from eegrecon.data.picture_rows import PictureInputs, picture_rows
from eegrecon.datamodule import ThingsDataModule
from eegrecon.errors import ConfigError, DataError
from tests.builders import build_tiny_set


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_set(tmp_path_factory.mktemp("tiny"), subjects=(1, 2))


def module_of(root, **kw):
    subjects = kw.pop("subjects", (1,))
    facts = {
        "stage": "encoder",
        "images_root": root,
        "trial_dirs": [trial_dir(root, s) for s in subjects],
        "target_dirs": {"image": target_dir(root, "clip-pocket"), "vae_latent": target_dir(root, "vae-pocket")},
        "val_concepts": 4,
        "batch_size": 8,
    }
    return ThingsDataModule(**{**facts, **kw})


def rows(loader):
    batches = list(loader)
    names = [name for name in batches[0] if name != "targets"]
    out = {name: torch.cat([batch[name] for batch in batches]) for name in names}
    if "targets" in batches[0]:
        targets = [batch["targets"] for batch in batches]
        out |= {key: torch.cat([t[key] for t in targets]) for key in targets[0]}
    return out


def test_facts_are_known_before_setup(tiny_set):
    dm = module_of(tiny_set, window=(0.1, 0.5), channels=["Oz", "O1", "P7"])
    assert (dm.n_chans, dm.n_times, dm.sfreq, dm.ch_names) == (3, 100, 250.0, ["Oz", "O1", "P7"])
    assert dm.target_shapes == {"image": (256,), "vae_latent": (4, 16, 16)}
    described = dm.describe()
    assert described["channels"] == ["Oz", "O1", "P7"]
    assert described["split"]["n_images"] == {"train": 24, "val": 12, "test": 4}
    assert len(described["split"]["sha256"]["val"]) == 64
    assert described["preprocessing"]["baseline"] == [-0.2, 0.0]
    assert described["tmin"] == dm.trials[0].tmin


@pytest.mark.parametrize("repetitions", ["each", "average"])
def test_train_batches(tiny_set, repetitions):
    dm = module_of(tiny_set, repetitions=repetitions)
    dm.setup("fit")
    n = 24 * (2 if repetitions == "each" else 1)
    batch = next(iter(dm.train_dataloader()))
    assert batch["eeg"].shape == (8, 63, 250)
    assert batch["eeg"].dtype == torch.float32
    for name in ("subject", "image_index", "concept_index", "repetition"):
        assert batch[name].shape == (8,)
        assert batch[name].dtype == torch.int64
    assert {key: tuple(value.shape) for key, value in batch["targets"].items()} == {
        "image": (8, 256),
        "vae_latent": (8, 4, 16, 16),
    }
    every = rows(dm.train_dataloader())
    assert len(every["eeg"]) == n
    # Oracle: the files themselves. In the tiny set the row of a training picture is its image_index.
    raw = torch.from_numpy(np.load(trial_dir(tiny_set, 1) / "train_eeg.npy").astype(np.float32))
    clip = torch.from_numpy(np.load(target_dir(tiny_set, "clip-pocket") / "train.npy"))
    vae = torch.from_numpy(np.load(target_dir(tiny_set, "vae-pocket") / "train.npy"))
    index, repetition = every["image_index"], every["repetition"]
    if repetitions == "each":
        assert torch.equal(every["eeg"], raw[index, repetition])
        assert len(set(zip(index.tolist(), repetition.tolist(), strict=True))) == n
    else:
        assert torch.allclose(every["eeg"], raw[index].mean(1), atol=1e-6)
        assert set(repetition.tolist()) == {-1}
    assert torch.equal(every["image"], clip[index])
    assert torch.equal(every["vae_latent"], vae[index])
    assert torch.equal(every["concept_index"], torch.from_numpy(dm.images.concept_index)[index])
    assert set(every["subject"].tolist()) == {1}
    assert set(index.tolist()) == set(dm.split.train.tolist())


def test_validation_is_averaged_complete_and_has_a_gallery(tiny_set):
    dm = module_of(tiny_set)
    dm.setup("validate")
    every = rows(dm.val_dataloader())
    assert every["image_index"].tolist() == dm.split.val.tolist()
    raw = np.load(trial_dir(tiny_set, 1) / "train_eeg.npy").astype(np.float32)
    assert np.allclose(every["eeg"], raw[dm.split.val].mean(1), atol=1e-6)
    gallery = every["image_index"][every["gallery"]]
    assert gallery.tolist() == dm.gallery.tolist()
    assert len(gallery) == len(set(every["concept_index"][every["gallery"]].tolist())) == 4
    assert module_of(tiny_set, val_concepts=0).val_dataloader() == []


@pytest.mark.parametrize("repetitions", ["each", "average"])
def test_channel_statistics_are_of_the_training_split(tiny_set, repetitions):
    dm = module_of(tiny_set, repetitions=repetitions)
    raw = np.load(trial_dir(tiny_set, 1) / "train_eeg.npy").astype(np.float64)[dm.split.train]
    raw = raw.mean(1, keepdims=True) if repetitions == "average" else raw
    assert np.allclose(dm.channel_mean, raw.mean((0, 1, 3)), atol=1e-6)
    assert np.allclose(dm.channel_std, raw.std((0, 1, 3)), atol=1e-5)


def test_averaged_whole_parts(tiny_set):
    each, average = module_of(tiny_set), module_of(tiny_set, repetitions="average")
    for part, n in (("train", 24), ("val", 12)):
        one, other = each.averaged(part), average.averaged(part)
        assert one["eeg"].shape == (n, 63, 250)
        assert torch.equal(one["eeg"], other["eeg"])
        assert torch.equal(one["targets"]["image"], other["targets"]["image"])


def test_l2_normalise_is_by_key(tiny_set):
    batch = module_of(tiny_set, l2_normalise=("image",)).averaged("val")
    assert torch.allclose(batch["targets"]["image"].norm(dim=1), torch.ones(12), atol=1e-6)
    assert batch["targets"]["vae_latent"].abs().max() > 1
    with pytest.raises(ConfigError, match="l2_normalise names typo"):
        module_of(tiny_set, l2_normalise=("typo",))


def test_seed_moves_order_only(tiny_set):
    order = [module_of(tiny_set, seed=seed) for seed in (0, 0, 1)]
    index = [rows(dm.train_dataloader())["image_index"].tolist() for dm in order]
    assert index[0] == index[1] != index[2]
    assert order[0].split.sha256 == order[2].split.sha256
    workers = module_of(tiny_set, num_workers=1)
    assert rows(workers.train_dataloader())["image_index"].tolist() == index[0]


def test_joint_subjects(tiny_set):
    dm = module_of(tiny_set, subjects=(1, 2), protocol="joint")
    every = rows(dm.train_dataloader())
    assert len(every["eeg"]) == 2 * 48
    assert sorted(set(every["subject"].tolist())) == [1, 2]
    for subject in (1, 2):
        mine = every["subject"] == subject
        raw = torch.from_numpy(np.load(trial_dir(tiny_set, subject) / "train_eeg.npy").astype(np.float32))
        assert torch.equal(every["eeg"][mine], raw[every["image_index"][mine], every["repetition"][mine]])
    average = module_of(tiny_set, subjects=(1, 2), protocol="joint", repetitions="average").averaged("train")
    assert torch.equal(average["eeg"][24:], module_of(tiny_set, subjects=(2,)).averaged("train")["eeg"])
    with pytest.raises(ConfigError, match="needs exactly one subject"):
        module_of(tiny_set, subjects=(1, 2)).setup("fit")
    with pytest.raises(DataError, match="only once"):
        module_of(tiny_set, subjects=(1, 1))


def test_permuted_labels_stay_within_their_part(tiny_set):
    plain, permuted = (module_of(tiny_set, permute_labels=p, seed=4) for p in (False, True))
    for part in ("train", "val"):
        before, after = plain.averaged(part), permuted.averaged(part)
        assert torch.equal(before["eeg"], after["eeg"])
        assert sorted(before["image_index"].tolist()) == sorted(after["image_index"].tolist())
        assert (before["image_index"] != after["image_index"]).float().mean() > 0.5
        index = after["image_index"]
        clip = torch.from_numpy(np.load(target_dir(tiny_set, "clip-pocket") / "train.npy"))
        assert torch.equal(after["targets"]["image"], clip[index])
        assert torch.equal(after["concept_index"], torch.from_numpy(plain.images.concept_index)[index])
    # All repetitions of a picture get the same new one, and the same whatever `repetitions` is.
    each = permuted.dataset("train").columns["image_index"].view(24, 2)
    assert torch.equal(each[:, 0], each[:, 1])
    assert torch.equal(each[:, 0], permuted.averaged("train")["image_index"])
    other = module_of(tiny_set, permute_labels=True, seed=5).averaged("train")
    assert not torch.equal(other["image_index"], permuted.averaged("train")["image_index"])


@pytest.mark.parametrize("stage", ["encoder", "prior"])
def test_test_data_are_for_reconstruct_and_evaluate_alone(tiny_set, tmp_path, stage):
    dm = module_of(tiny_set, stage=stage, upstream=tmp_path)
    for call in (
        lambda: dm.setup("test"),
        lambda: dm.setup("predict"),
        lambda: dm.test_dataloader(),
        lambda: dm.dataset("test"),
        lambda: dm.embed_dataloader("test"),
        lambda: dm.averaged("test"),
    ):
        with pytest.raises(DataError, match="reconstruct and evaluate alone"):
            call()


def test_test_batches(tiny_set):
    dm = module_of(tiny_set, stage="reconstruct")
    dm.setup("predict")
    every = rows(dm.test_dataloader())
    raw = np.load(trial_dir(tiny_set, 1) / "test_eeg.npy").astype(np.float32)
    assert np.allclose(every["eeg"], raw.mean(1), atol=1e-6)
    assert every["image_index"].tolist() == dm.images.test_index.tolist()
    assert np.array_equal(every["image"], np.load(target_dir(tiny_set, "clip-pocket") / "test.npy"))
    assert "gallery" not in every


def embeds_of(dm, tmp_path, part, index):
    generator = np.random.default_rng(0)
    n = len(index)
    save_embeds(
        tmp_path / "embeds" / f"{part}.safetensors",
        generator.normal(size=(n, 16)),
        index,
        np.ones(n),
        np.full(n, -1),
    )


def test_prior_batches(tiny_set, tmp_path):
    dm = module_of(tiny_set, stage="prior", upstream=tmp_path)
    index = np.repeat(dm.split.train, 2)
    embeds_of(dm, tmp_path, "train", index)
    embeds_of(dm, tmp_path, "val", dm.split.val)
    dm.setup("fit")
    batch = next(iter(dm.train_dataloader()))
    assert {k: tuple(v.shape) for k, v in batch.items()} == {
        "eeg_embeds": (8, 16),
        "image_embeds": (8, 256),
        "subject": (8,),
        "image_index": (8,),
    }
    every = rows(dm.val_dataloader())
    clip = np.load(target_dir(tiny_set, "clip-pocket") / "train.npy")
    assert np.array_equal(every["image_embeds"], clip[every["image_index"]])
    assert every["image_index"][every["gallery"]].tolist() == dm.gallery.tolist()


def test_prior_refuses_embeddings_of_another_split(tiny_set, tmp_path):
    dm = module_of(tiny_set, stage="prior", upstream=tmp_path)
    embeds_of(dm, tmp_path, "train", np.concatenate([dm.split.train, dm.split.val[:1]]))
    with pytest.raises(DataError, match="1 pictures that are not in the train part"):
        dm.setup("fit")


def test_generator_batches(tiny_set):
    dm = module_of(tiny_set, stage="reconstruct", batch_size=3)
    with pytest.raises(DataError, match="call set_pictures"):
        dm.predict_dataloader()
    embeds, index = torch.randn(4, 2, 6), torch.tensor([36, 37, 38, 39])
    with pytest.raises(DataError, match="each of 3 pictures, got 4"):
        picture_rows(PictureInputs(embeds), index[:3])
    dm.set_pictures([picture_rows(PictureInputs(one), index) for one in (embeds, embeds[:, :1])])
    both, first = dm.predict_dataloader()
    assert [len(batch["draw"]) for batch in both] == [3, 3, 2]
    every = rows(both)
    assert every["draw"].tolist() == [0, 1] * 4
    assert every["image_index"].tolist() == index.repeat_interleave(2).tolist()
    assert torch.equal(every["image_embeds"], embeds.flatten(0, 1))
    assert torch.equal(rows(first)["image_embeds"], embeds[:, 0])


class Recorder(lightning.LightningModule):
    """Remembers which pictures came in which epoch."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen, self.predicted, self.validated = [], [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch["image_index"].tolist()))
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        if self.trainer.state.stage != "sanity_check":
            self.validated.append(batch["image_index"].tolist())

    def predict_step(self, batch, batch_idx):
        self.predicted += batch["image_index"].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder, **kw):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "log_every_n_steps": 1}
    return lightning.Trainer(accelerator="cpu", default_root_dir=folder, use_distributed_sampler=False, **quiet, **kw)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lightning_moves_the_epoch_on_and_resumes(tiny_set, tmp_path):
    straight = Recorder()
    trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(straight, datamodule=module_of(tiny_set))
    assert len(straight.seen) == 3 * 6
    assert straight.seen[0][1] != straight.seen[6][1]
    first = Recorder()
    stopped = trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
    stopped.fit(first, datamodule=module_of(tiny_set))
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    second = Recorder()
    trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(
        second, datamodule=module_of(tiny_set), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert first.seen + second.seen == straight.seen


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lightning_predicts_every_picture_once(tiny_set, tmp_path):
    dm, recorder = module_of(tiny_set, stage="reconstruct", batch_size=3), Recorder()
    dm.set_pictures([picture_rows(PictureInputs(torch.randn(4, 1, 6)), torch.arange(36, 40))])
    trainer(tmp_path, enable_checkpointing=False).predict(recorder, datamodule=dm, return_predictions=False)
    assert recorder.predicted == [36, 37, 38, 39]


def test_nan_in_single_trials_is_found_in_setup(tmp_path):
    root = build_tiny_set(tmp_path)
    dm = module_of(root)
    array = np.load(trial_dir(root, 1) / "train_eeg.npy", mmap_mode="r+")
    array[dm.split.train[5], 1, 61, 3] = np.nan
    array.flush()
    with pytest.raises(DataError, match=r"holds NaN at picture 'train/.*channel 'Oz'"):
        dm.setup("fit")


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_flat_channel_is_named(tmp_path, value):
    root = build_tiny_set(tmp_path)
    array = np.load(trial_dir(root, 1) / "train_eeg.npy", mmap_mode="r+")
    array[:, :, THINGS_EEG2_CHANNELS.index("Cz")] = value
    array.flush()
    with pytest.raises(DataError, match="constant in channel Cz"):
        module_of(root).setup("fit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "train"}, "expected one of encoder, prior"),
        ({"repetitions": "all"}, "expected one of each, average"),
        ({"stage": "prior"}, "upstream"),
        ({"trial_dirs": []}, "at least one subject"),
        ({"batch_size": 100}, "only 48 training rows"),
    ],
)
def test_wrong_choices(tiny_set, change, message):
    with pytest.raises(ConfigError, match=message):
        module_of(tiny_set, **change).train_dataloader()


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"has no images\.json"):
        module_of(tmp_path / "nowhere")


TWO_PROCESSES = """
import json, sys
from pathlib import Path
import torch
from eegrecon.data.picture_rows import PictureInputs, picture_rows
from tests.unit.test_datamodule import Recorder, module_of, trainer

root, out = Path(sys.argv[1]), Path(sys.argv[2])
ddp = {"devices": 2, "strategy": "ddp", "enable_checkpointing": False}
recorder = Recorder()
fit = trainer(out, max_epochs=2, **ddp)
fit.fit(recorder, datamodule=module_of(root))
rank = fit.global_rank
dm = module_of(root, stage="reconstruct", batch_size=2)
dm.set_pictures([picture_rows(PictureInputs(torch.randn(5, 1, 6)), torch.arange(36, 41))])
trainer(out, **ddp).predict(recorder, datamodule=dm, return_predictions=False)
val = [row for batch in recorder.validated for row in batch]
(out / f"{rank}.json").write_text(json.dumps({"seen": recorder.seen, "predicted": recorder.predicted, "val": val}))
"""


@pytest.mark.ddp
def test_two_processes_see_what_one_sees(tiny_set, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    repository = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tiny_set), str(tmp_path)]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=240)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    alone = Recorder()
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(alone, datamodule=module_of(tiny_set))
    joined = [(a[0], a[1] + b[1]) for a, b in zip(ranks[0]["seen"], ranks[1]["seen"], strict=True)]
    assert joined == alone.seen
    assert sorted(ranks[0]["predicted"] + ranks[1]["predicted"]) == list(range(36, 41))
    split = module_of(tiny_set).split
    assert sorted({*ranks[0]["val"], *ranks[1]["val"]}) == split.val.tolist()
    assert len(ranks[0]["val"]) == len(ranks[1]["val"])
