"""Official checkpoints beside real stores: what the later stages make of an imported encoder and prior."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import eegrecon
from eegrecon.analysis.protocol import Protocol
from eegrecon.artifacts import load_embeds, read_manifest
from eegrecon.cli import main
from eegrecon.config import parse_yaml
from eegrecon.data import ImageSet, trial_dir
from eegrecon.metrics.features import picture_tensor
from eegrecon.stages import evaluate
from tests.builders import DIM, build_tiny_set
from tests.builders_atm import official_april, official_encoder, saved, sentence
from tests.builders_sdxl import tiny_sdxl
from tests.official_prior import OfficialPrior

pytestmark = pytest.mark.usefixtures("clean_rank")
EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments" / "pocket"
TRAINING = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "loader.batch_size=8"]
PRIOR = ["prior.args={hidden: [16, 8], time_embed_dim: 8}", "sample.num_inference_steps=3", "trainer.max_epochs=1"]
PRIOR += ["trainer.check_val_every_n_epoch=1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    build_tiny_set(home / "data", subjects=(1, 2))
    official = official_encoder(n_chans=63, n_times=250, dim=DIM)
    saved(home / "encoder.pth", official.state_dict())
    torch.manual_seed(5)
    tiny_sdxl(home / "sdxl", dim=DIM, conditioning={"model": "pocket_clip", "weights_tag": "tiny", "dim": DIM})
    saved(home / "prior.pt", OfficialPrior(DIM, DIM, (16, 8), 8).state_dict())
    assert main(words(home, "import-atm", "encoder", "--out", str(home / "run"), file="encoder.pth")) == 0
    return home


def words(home, verb, stage, *more, file=None):
    shared = [f"data.root={home / 'data'}", "data.split.val_concepts=4"]
    first = [verb] + ([str(home / file)] if file else [])
    return [*first, "--config", str(EXPERIMENT / f"{stage}.yaml"), "--subject", "1", *more, *shared]


def pixels(pictures):
    """Coarse pixels, instead of EfficientNet-Lite2 and the pocket CLIP."""
    return picture_tensor(pictures, 4).flatten(1)


def read_config(directory):
    return parse_yaml((directory / "config.yaml").read_text(encoding="utf-8"))


def run_of(home):
    return ["--run", str(home / "run")]


def test_the_directory_is_what_train_encoder_leaves(home):
    manifest = read_manifest(home / "run" / "encoder")
    assert {"model.safetensors", "embeds/train.safetensors", "embeds/val.safetensors"} <= set(manifest.outputs)
    assert set(manifest.inputs) == {"checkpoint", "trials/sub-01", "targets/clip-pocket"}
    assert (manifest.stage, manifest.interface["dim"], manifest.data["subjects"]) == ("train-encoder", DIM, [1])
    assert manifest.selection["rule"] == "imported checkpoint: how its epoch was chosen is not known here"


def test_no_score_of_concepts_that_the_checkpoint_was_trained_on(home):
    manifest = read_manifest(home / "run" / "encoder")
    assert manifest.selection["saw_validation"]
    assert not manifest.metrics
    assert not {"metrics.json", "ranks_val.safetensors"} & set(manifest.outputs)


def test_training_may_start_from_it_for_a_fixed_number_of_epochs(home, tmp_path, capsys):
    args = read_config(home / "run" / "encoder")["encoder"]["args"]
    more = [f"init.run={home / 'run'}", f"encoder={{name: atm_s, args: {json.dumps(args)}}}", *TRAINING]
    more += ["loss.vae_latent=0", "latent_target.name=''", "trainer.max_epochs=1", "optim.args.lr=0.0"]
    more += ["optim.args.weight_decay=0.0", "baseline_ridge=false"]
    assert main(words(home, "train-encoder", "encoder", "--run", str(tmp_path), *more)) == 2
    assert "an imported checkpoint has seen all" in capsys.readouterr().err
    assert main(words(home, "train-encoder", "encoder", "--run", str(tmp_path), *more, "select.epoch=last")) == 0
    manifest = read_manifest(tmp_path / "encoder")
    assert manifest.selection["saw_validation"]
    assert manifest.selection["training"] == "within_subject from an imported checkpoint"
    before, after = (eegrecon.load(path / "encoder").state_dict() for path in (home / "run", tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before if "running" not in key and "tracked" not in key)


def test_evaluate_embeds_test_trials_as_the_official_module_does(home, capsys):
    assert main(words(home, "evaluate", "evaluate", *run_of(home), "pictures=false")) == 0
    found = load_embeds(home / "run" / "evaluate" / "embeds" / "test.safetensors")
    raw = np.load(trial_dir(home / "data" / "pocket", 1) / "test_eeg.npy").astype(np.float32).mean(1)
    with torch.no_grad():
        wanted = official_encoder(n_chans=63, n_times=250, dim=DIM)(torch.from_numpy(raw), torch.ones(len(raw)).long())
    np.testing.assert_allclose(found["eeg_embeds"], wanted.numpy(), atol=1e-5, rtol=1e-5)
    images = ImageSet.from_root(home / "data" / "pocket")
    assert found["image_index"].tolist() == images.test_index.tolist()
    stamp = Protocol.from_metrics(json.loads((home / "run" / "evaluate" / "metrics.json").read_text())["protocol"])
    assert stamp.selection.startswith("imported checkpoint")


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_prior_is_trained_on_it(home, tmp_path, capsys):
    (tmp_path / "encoder").symlink_to(home / "run" / "encoder")
    assert main(words(home, "train-prior", "prior", "--run", str(tmp_path), *PRIOR, *TRAINING)) == 0
    manifest = read_manifest(tmp_path / "prior")
    assert set(manifest.inputs) >= {"encoder"}
    assert manifest.selection["saw_validation"]
    assert "are no estimate for new ones" in capsys.readouterr().err


def test_pictures_are_made_with_an_official_prior_beside_it(home, capsys, monkeypatch):
    assert main(words(home, "import-atm", "prior", "--out", str(home / "run"), file="prior.pt")) == 0
    assert "needs its encoder" not in capsys.readouterr().err
    encoder, prior = (read_manifest(home / "run" / name) for name in ("encoder", "prior"))
    assert (prior.interface, prior.data) == (encoder.interface, encoder.data)
    network = eegrecon.load(home / "run" / "prior")
    assert network.scheduler.config.prediction_type == "epsilon"
    assert network.scheduler.config.clip_sample  # as the official sampler does
    monkeypatch.setattr(evaluate, "load_judge", lambda name: pixels)
    monkeypatch.setattr(evaluate, "load_target_space", lambda interface: pixels)
    generator = f"generator.args={{base: {home / 'sdxl'}, num_inference_steps: 1, guidance_scale: 1.0, size: 16}}"
    more = [generator, "sample.num_inference_steps=3", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    assert main(words(home, "reconstruct", "reconstruct", *run_of(home), *more)) == 0
    found = load_embeds(home / "run" / "reconstruct" / "embeds" / "test.safetensors")
    assert np.isfinite(found["pred_image_embeds"]).all()
    assert len(list((home / "run" / "reconstruct" / "pictures").iterdir())) == len(found["image_index"])


@pytest.mark.parametrize(
    ("file", "stage", "override"),
    [("prior.pt", "prior", "diffusion.prediction_type=sample"), ("encoder.pth", "encoder", "encoder.name=nice")],
)
def test_what_the_checkpoint_decides_cannot_be_overridden(home, tmp_path, capsys, file, stage, override):
    assert main(words(home, "import-atm", stage, "--out", str(tmp_path), override, file=file)) == 2
    assert f"{override.partition('=')[0]} cannot be chosen: the checkpoint" in capsys.readouterr().err


def test_the_clamp_of_the_official_sampler_can_be_left_out(home, tmp_path):
    assert (
        main(words(home, "import-atm", "prior", "--out", str(tmp_path), "diffusion.clip_sample=false", file="prior.pt"))
        == 0
    )
    assert not eegrecon.load(tmp_path / "prior").scheduler.config.clip_sample


def test_the_encoder_of_april(home, tmp_path):
    official = official_april(n_chans=63, n_times=250, dim=DIM)
    saved(home / "april.pth", official.state_dict())
    assert main(words(home, "import-atm", "encoder", "--out", str(tmp_path), file="april.pth")) == 0
    found = load_embeds(tmp_path / "encoder" / "embeds" / "val.safetensors")
    assert found["eeg_embeds"].shape[1] == DIM


def test_another_experiment_is_refused(home, tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    said = sentence(capsys, *words(home, "import-atm", "encoder", *out, "data.window=[0,0.8]", file="encoder.pth"))
    assert "was trained on other data than the experiment names: 250 samples and not 200" in said
    saved(home / "wide.pth", official_encoder(n_chans=63, n_times=250, dim=16).state_dict())
    said = sentence(capsys, *words(home, "import-atm", "encoder", *out, file="wide.pth"))
    assert f"16 numbers in the target clip-pocket and not {DIM}" in said
    torch.manual_seed(5)
    saved(home / "narrow.pt", OfficialPrior(8, 8, (16, 8), 8).state_dict())
    said = sentence(capsys, "import-atm", home / "narrow.pt", "--out", home / "run")
    assert "is a prior of 8-dimensional embeddings, but" in said
    assert not (tmp_path / "encoder").exists()
