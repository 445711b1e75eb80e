"""Any subset of the pathways, in `reconstruct` and in the pipeline object."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from eegrecon import EEGToImagePipeline
from eegrecon.artifacts import load_embeds, read_manifest
from eegrecon.config import load
from eegrecon.data import ImageSet, TargetStore, TargetStoreWriter, target_dir
from eegrecon.errors import ArtifactError, ConfigError
from eegrecon.metrics.features import picture_tensor
from eegrecon.models.generators.latents import load_vae
from eegrecon.pathways.low_level import predicted_latents
from eegrecon.stages import evaluate, reconstruct, train_low_level
from tests.builders import write_store_manifest
from tests.builders_runs import build_chain, chain_config

pytestmark = [pytest.mark.usefixtures("clean_rank"), pytest.mark.filterwarnings("ignore:.*does not have many workers")]
N = 4
LOW_LEVEL = ("pathways.low_level=low_level", "latent_target.name=vae-tiny")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    build_chain(home, N)
    images = ImageSet.from_root(home / "data" / "pocket")
    vae = load_vae(str(home / "sdxl"), size=16)
    path = target_dir(home / "data" / "pocket", "vae-tiny")
    header = {key: value for key, value in vae.header().items() if key != "dim"}
    writer = TargetStoreWriter(path, images, {"kind": "vae_latent", **header}, vae.shape)
    for part, index in (("train", images.train_index), ("test", images.test_index)):
        writer.append(part, vae.encode([images.load(i) for i in index]))
    writer.close()
    write_store_manifest(path, "extract-targets", 0)
    words = [f"data.root={home / 'data'}", "data.split.val_concepts=2", "latent_target.name=vae-tiny", "vae=''"]
    words += ["loader.batch_size=4", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    words += ["trainer.enable_progress_bar=false", "network.name=ridge"]
    cfg = load("train-low-level", "pocket", None, words)
    train_low_level.run(cfg, directory=home / "run" / "low_level", command="test")
    return home


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("load_judge", "load_target_space"):
            monkeypatch.setattr(evaluate, name, lambda _: lambda pictures: picture_tensor(pictures, 4).flatten(1))
        yield


def go(home, directory, *overrides):
    """Reconstruct in a run of its own that has the same encoder, prior and low-level network."""
    directory.mkdir()
    for stage in ("encoder", "prior", "low_level"):
        (directory / stage).symlink_to(home / "run" / stage)
    manifest = reconstruct.run(chain_config(home, *overrides), directory=directory / "reconstruct", command="test")
    return directory / "reconstruct", manifest


def pixels(folder, name="pictures"):
    return np.stack([np.asarray(Image.open(path), dtype=int) for path in sorted((folder / name).iterdir())])


@pytest.fixture(scope="module")
def made(home, small_networks, tmp_path_factory):
    """Decoded pictures, and those of the ceiling, of some compositions."""
    folder = tmp_path_factory.mktemp("made")
    compositions = {
        "prior": (),
        "both": LOW_LEVEL,
        "low_level": (*LOW_LEVEL, "pathways.prior=false"),
        "all_noise": (*LOW_LEVEL, "generator.args.strength=1.0"),
    }
    return {name: go(home, folder / name, *words)[0] for name, words in compositions.items()}


def test_each_pathway_shows_in_the_picture(made):
    found = {name: pixels(folder) for name, folder in made.items()}
    assert np.abs(found["prior"] - found["both"]).max() > 5
    assert np.abs(found["both"] - found["low_level"]).max() > 5
    assert np.array_equal(found["prior"], found["all_noise"])  # at strength 1 nothing of the latents is left


def test_the_latents_are_those_of_the_low_level_network_and_the_ceiling_has_the_pictures_own(home, made):
    embeds = load_embeds(made["both"] / "embeds" / "test.safetensors")
    index = embeds["image_index"]
    eeg = np.load(home / "data/pocket/trials/sub-01/test_eeg.npy").astype(np.float32).mean(1)
    wanted = predicted_latents(home / "run", "low_level", torch.from_numpy(eeg), torch.ones(N, dtype=torch.int64))
    np.testing.assert_allclose(embeds["pred_latents"], wanted.numpy(), atol=1e-4)
    own = TargetStore(target_dir(home / "data" / "pocket", "vae-tiny")).rows(index)
    assert np.abs(own - embeds["pred_latents"]).max() > 0.01
    assert np.abs(pixels(made["both"], "pictures_ceiling") - pixels(made["prior"], "pictures_ceiling")).max() > 5


def test_what_made_the_pictures_is_written_down(made):
    manifest = read_manifest(made["both"])
    assert set(manifest.inputs) >= {"encoder", "prior", "low_level"}
    protocol = json.loads((made["both"] / "metrics.json").read_text())["protocol"]
    assert protocol["pathways"] == {"prior": True, "low_level": "low_level", "semantic": ""}
    assert "low_level" not in read_manifest(made["prior"]).inputs


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (("pathways.prior=false",), ConfigError, "turns everything off"),
        (("pathways.low_level=low_level",), ConfigError, "latent_target.name is empty"),
        (("pathways.low_level=head", LOW_LEVEL[1]), ArtifactError, "has no latent head"),
        ((*LOW_LEVEL, "generator.args.strength=0.3"), ConfigError, "leaves no step to denoise"),
        ((*LOW_LEVEL, "generator.args.size=32"), ArtifactError, "predicts other latents than the generator"),
    ],
)
def test_what_cannot_be_composed_is_one_sentence(home, tmp_path, overrides, error, words):
    with pytest.raises(error, match=words):
        go(home, tmp_path / "run", *overrides)


def test_a_low_level_network_of_other_eeg_is_refused(home, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for stage in ("encoder", "prior"):
        (run / stage).symlink_to(home / "run" / stage)
    shutil.copytree(home / "run" / "low_level", run / "low_level")
    path = run / "low_level" / "manifest.json"
    says = json.loads(path.read_text())
    says["data"]["sfreq"] = 200.0
    path.write_text(json.dumps(says))
    with pytest.raises(ArtifactError, match=r"other EEG than the encoder beside it: sfreq 200.0 there, 250.0 here"):
        reconstruct.run(chain_config(home, *LOW_LEVEL), directory=run / "reconstruct", command="test")


def test_the_pipeline_makes_the_same_pictures_and_takes_the_pathway_along(home, made, tmp_path):
    eeg = np.load(home / "data/pocket/trials/sub-01/test_eeg.npy").astype(np.float32).mean(1)
    index = np.load(home / "data/pocket/trials/sub-01/test_image_index.npy").tolist()
    pipe = EEGToImagePipeline.from_pretrained(made["both"].parent)
    pipe.save_pretrained(tmp_path / "saved")
    for each in (pipe, EEGToImagePipeline.from_pretrained(tmp_path / "saved")):
        output = each(eeg, subject=1, generator=each.generators(0, [1] * N, index, 1))
        found = np.stack([np.asarray(row[0], dtype=int) for row in output.images])
        assert np.abs(found - pixels(made["both"])).max() <= 1
    shutil.rmtree(tmp_path / "saved" / "low_level")
    with pytest.raises(ArtifactError, match="low_level"):
        EEGToImagePipeline.from_pretrained(tmp_path / "saved")
