"""The chain as one object: the pictures of `reconstruct`, from memory, from a saved directory and from the hub's."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import mne
import numpy as np
import pytest
import torch
from PIL import Image

from eegrecon import EEGToImagePipeline, pipeline
from eegrecon.artifacts import load_embeds
from eegrecon.data import THINGS_EEG2_CHANNELS
from eegrecon.errors import ArtifactError, ConfigError, DataError
from eegrecon.metrics.features import picture_tensor
from eegrecon.stages import evaluate, reconstruct
from tests.builders_runs import build_chain, chain_config

pytestmark = pytest.mark.usefixtures("clean_rank")
N, DRAWS = 6, 2


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    build_chain(home, N)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("load_judge", "load_target_space"):
            monkeypatch.setattr(evaluate, name, lambda _: lambda pictures: picture_tensor(pictures, 4).flatten(1))
        # Not the default scheduler: the pipeline has to follow the run.
        cfg = chain_config(home, f"draws={DRAWS}", "seed=5", "sample.scheduler.name=ddim")
        reconstruct.run(cfg, directory=home / "run" / "reconstruct", command="test", overwrite=True)
    return home


@pytest.fixture(scope="module")
def pipe(home):
    return EEGToImagePipeline.from_pretrained(home / "run")


@pytest.fixture(scope="module")
def eeg(home):
    """The averaged test trials, as `reconstruct` saw them."""
    return np.load(home / "data/pocket/trials/sub-01/test_eeg.npy").astype(np.float32).mean(1)


@pytest.fixture(scope="module")
def index(home):
    return np.load(home / "data/pocket/trials/sub-01/test_image_index.npy").tolist()


def arrays(images):
    return np.stack([[np.asarray(picture, dtype=int) for picture in pictures] for pictures in images])


def made(home):
    """Pictures on the disk, (N, DRAWS, h, w, 3)."""
    folder = home / "run" / "reconstruct" / "pictures"
    stems = sorted(path.stem for path in folder.iterdir() if "__draw-" not in path.name)
    names = [[f"{stem}.png", *(f"{stem}__draw-{draw}.png" for draw in range(1, DRAWS))] for stem in stems]
    return arrays([[Image.open(folder / name) for name in row] for row in names])


def as_epochs(eeg, extra="EOG"):
    """The trials as MNE would hold them: volts, channels in another order, time before onset."""
    before = np.repeat(-eeg[:, :, :1] / 50, 50, axis=2)  # the baseline, onset included, is zero as it was in training
    data = np.concatenate([before, eeg, eeg[:, :, :1]], axis=2)[:, ::-1] * 1e-6
    info = mne.create_info([*reversed(THINGS_EEG2_CHANNELS), extra], 250.0, ["eeg"] * 63 + ["eog"])
    data = np.concatenate([data, np.ones((len(eeg), 1, data.shape[2]))], axis=1)
    return mne.EpochsArray(data, info, tmin=-0.2, verbose=False)


def test_the_pictures_are_those_that_reconstruct_made(home, pipe, eeg, index):
    noise = pipe.generators(5, [1] * N, index, DRAWS)
    output = pipe(eeg, subject=1, generator=noise, num_images_per_trial=DRAWS)
    found, wanted = arrays(output.images), made(home)
    assert found.shape == wanted.shape == (N, DRAWS, 16, 16, 3)
    assert np.abs(found - wanted).max() <= 1
    assert np.abs(found[:, 0] - found[:, 1]).max() > 5  # draws and trials do differ
    assert np.abs(found[0] - found[1]).max() > 5
    embeds = load_embeds(home / "run" / "reconstruct" / "embeds" / "test.safetensors")
    np.testing.assert_allclose(output.eeg_embeds, embeds["eeg_embeds"], atol=1e-5)
    np.testing.assert_allclose(output.image_embeds, embeds["pred_image_embeds"], atol=1e-4)


def test_epochs_give_the_pictures_of_the_array(pipe, eeg, capsys):
    wanted = pipe(torch.from_numpy(eeg), subject=1, generator=3)
    assert capsys.readouterr().err == ""
    found = pipe(as_epochs(eeg), subject=1, generator=3)
    assert capsys.readouterr().err == "eegrecon: channels that the encoder does not know are left out: EOG\n"
    np.testing.assert_allclose(found.eeg_embeds, wanted.eeg_embeds, atol=1e-3)
    assert np.abs(arrays(found.images) - arrays(wanted.images)).max() <= 2


def test_a_run_that_left_the_batch_size_to_the_memory(pipe, eeg, monkeypatch):
    wanted = arrays(pipe(eeg, subject=1, generator=3).images)
    monkeypatch.setattr(pipe, "plan", dataclasses.replace(pipe.plan, batch_size=0))
    monkeypatch.setattr(pipeline, "fitting_batch", lambda generator, device: 4)
    sizes, forward = [], pipe.image_generator.forward
    monkeypatch.setattr(
        pipe.image_generator, "forward", lambda x, **rest: (sizes.append(len(x)), forward(x, **rest))[1]
    )
    assert np.abs(arrays(pipe(eeg, subject=1, generator=3).images) - wanted).max() <= 1
    assert sizes == [4, N - 4]


def test_a_picture_depends_on_its_seed_and_on_no_batch(pipe, eeg):
    def pictures(trials=eeg, **more):
        return arrays(pipe(trials, subject=1, **more).images)

    wanted = pictures(generator=3, num_images_per_trial=2)
    assert np.abs(pictures(generator=3, num_images_per_trial=2, batch_size=5) - wanted).max() <= 1
    assert np.abs(pictures(eeg[:3], generator=3) - wanted[:3, :1]).max() <= 1
    assert np.abs(pictures(generator=4) - wanted[:, :1]).max() > 5
    one_each = pictures(generator=[10, 11, 12, 13, 14, 15])
    np.testing.assert_array_equal(one_each[::-1], pictures(eeg[::-1], generator=[15, 14, 13, 12, 11, 10]))
    first, second = (pictures(generator=torch.Generator().manual_seed(0)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    torch.manual_seed(1)
    fresh, other = pictures(), pictures()
    assert np.abs(fresh - other).max() > 5
    torch.manual_seed(1)
    np.testing.assert_array_equal(pictures(), fresh)


def test_settings_are_honoured_for_one_call(pipe, eeg):
    def output(**more):
        return pipe(eeg[:2], subject=1, generator=0, output_type="pt", **more)

    plain = output()
    assert plain.images[0][0].shape == (3, 16, 16)
    for change in ({"guidance_scale": 1.0}, {"num_inference_steps": 3}):
        changed = output(**change)
        torch.testing.assert_close(changed.image_embeds, plain.image_embeds)
        assert (changed.images[0][0] - plain.images[0][0]).abs().max() > 0.01
    for change in ({"prior_guidance_scale": 1.0}, {"prior_num_inference_steps": 5}):
        assert (output(**change).image_embeds - plain.image_embeds).abs().max() > 0.01
    torch.testing.assert_close(output().images[0][0], plain.images[0][0])
    assert pipe.image_generator.num_inference_steps == 2


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"output_type": "np"}, ConfigError, "output_type is 'np', expected one of pil, pt"),
        ({"num_images_per_trial": 0}, ConfigError, "num_images_per_trial is 0, expected a whole number of at least 1"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"guidance_scale": -1.0}, ConfigError, "guidance_scale is -1.0, expected a finite number of at least 0"),
        ({"prior_num_inference_steps": 0}, ConfigError, "prior_num_inference_steps is 0"),
        ({"num_images_per_trial": 1.5}, ConfigError, "num_images_per_trial is 1.5, expected a whole number"),
        ({"num_inference_steps": 2.5}, ConfigError, "num_inference_steps is 2.5, expected a whole number"),
        ({"batch_size": 1.5}, ConfigError, "batch_size is 1.5, expected a whole number"),
        ({"guidance_scale": "3"}, ConfigError, "guidance_scale is '3', expected a finite number"),
        ({"guidance_scale": float("inf")}, ConfigError, "guidance_scale is inf, expected a finite number"),
        (
            {"num_inference_steps": 2000},
            ConfigError,
            "is 2000, but this scheduler was made for 1000",
        ),
        ({"prior_num_inference_steps": 2000}, ConfigError, "cannot make 2000 steps"),
        ({"generator": [[(1, 2)]] + [[1]] * 5}, ConfigError, "expected for each draw a pair of torch.Generators"),
        ({"subject": -1}, ConfigError, "subject is -1, expected an id from 1"),
        ({"subject": [1, 2]}, ConfigError, "or 6 of them"),
        ({"subject": "one"}, ConfigError, "subject is 'one'"),
        ({"generator": [1, 2]}, ConfigError, "generator has 2 entries for 6 trials"),
        ({"generator": "x"}, ConfigError, "generator is str, expected an integer"),
        ({"generator": EEGToImagePipeline.generators(0, [1] * N, range(N), 3)}, ConfigError, "has 3 draws"),
    ],
)
def test_arguments_that_make_no_sense(pipe, eeg, change, error, says):
    with pytest.raises(error, match=re.escape(says)):
        pipe(eeg, **{"generator": 0, **change})


def test_eeg_that_does_not_fit(pipe, eeg, capsys):
    with pytest.raises(DataError, match=r"must be numbers \(trials, 63, 250\)"):
        pipe(eeg[:, :60])
    broken = eeg.copy()
    broken[2, 0, 9] = np.nan
    with pytest.raises(DataError, match=r"nan in trial 2 at Fp1, sample 9"):
        pipe(torch.from_numpy(broken))
    with pytest.raises(DataError, match=r"lack 2 of the 63 channels .*\(O1, Oz\)"):
        pipe(as_epochs(eeg).drop_channels(["Oz", "O1"]))
    with pytest.raises(DataError, match="another unit than MNE's"):
        pipe(as_epochs(eeg * 1e6))
    with pytest.raises(DataError, match="list of trials of different shapes"):
        pipe([eeg[0], eeg[1, :60]])
    with pytest.raises(DataError, match=r"is a EpochsSpectrum, expected mne\.Epochs"):
        pipe(as_epochs(eeg).compute_psd(verbose=False))
    pipe(eeg[:1] * 1e-6, generator=0)
    assert re.search("the EEG varies .*e-07 times .* is its unit µV", capsys.readouterr().err)
    mixed = eeg[:1].copy()
    mixed[:, 3] *= 1e6
    mixed[:, 7] = 0
    pipe(mixed, generator=0)
    said = capsys.readouterr().err
    assert re.search(rf"channels vary .* by this factor: {THINGS_EEG2_CHANNELS[3]} .*: are they in one unit", said)
    assert f"channels are constant within every trial: {THINGS_EEG2_CHANNELS[7]}" in said


def test_any_numbers_of_the_right_shape_will_do(pipe, eeg):
    """Such as an array that was written on another machine; as on an array of float32."""
    wanted = pipe(eeg[:2], generator=0, output_type="pt").images[0][0]
    for kind in (">f4", "<f8", np.longdouble, "<f4"):
        found = pipe(eeg[:2].astype(kind), generator=0, output_type="pt").images[0][0]
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_embeds": torch.zeros(2, 256)}, r"must be \(trials, draws, 256\).*got \(2, 256\)"),
        ({"image_embeds": torch.zeros(2, 1, 255)}, r"must be \(trials, draws, 256\).*got \(2, 1, 255\)"),
        ({"image_embeds": torch.zeros(0, 1, 256)}, r"got \(0, 1, 256\)"),
        ({"latents": torch.zeros(4, 4, 2, 2)}, r"latents must be .*2.* got \(4, 4, 2, 2\)"),
        ({"captions": [["one"]]}, "captions must be 2 lists of 1 prompts"),
        (
            {"image_embeds": torch.tensor([1.0, torch.nan])[:, None, None].repeat(1, 1, 256)},
            r"in trial 1 \(1 of 2 ",
        ),
    ],
)
def test_a_generator_that_is_told_something_odd(pipe, change, says):
    with pytest.raises(DataError, match=says):
        list(pipe.generate(**{"image_embeds": torch.zeros(2, 1, 256), "batch_size": 1, **change}))


def test_memory_that_is_full_before_the_first_picture(home, pipe, eeg, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    monkeypatch.setattr(pipe.pathways, "decoded", full)
    with pytest.raises(ConfigError, match="not enough memory for latents and captions of the trials: try fewer trials"):
        pipe(eeg, generator=0)
    monkeypatch.setattr(EEGToImagePipeline, "to", full)
    with pytest.raises(ConfigError, match="not enough memory for the networks: try another device"):
        EEGToImagePipeline.from_pretrained(home / "run")


def test_the_batch_that_fits_is_reckoned_with_the_guidance_that_is_asked_for(pipe, eeg, monkeypatch):
    seen = []
    monkeypatch.setattr(pipeline, "fitting_batch", lambda generator, _: seen.append(generator.guidance_scale) or 1)
    monkeypatch.setattr(pipe, "plan", dataclasses.replace(pipe.plan, batch_size=0))
    pipe(eeg[:1], generator=0, guidance_scale=7.5)
    assert seen == [7.5]


def test_a_full_memory_names_the_batch_to_try(pipe, eeg, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(pipe.image_generator, "forward", full)
    for size, says in ((None, "a batch of 4 pictures: try batch_size=2"), (1, "1 pictures: try smaller pictures")):
        with pytest.raises(ConfigError, match=says):
            pipe(eeg, generator=0, batch_size=size)
    monkeypatch.setattr(pipe.image_generator, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipe(eeg, generator=0)


def test_saved_and_loaded_it_is_the_same(home, pipe, eeg, tmp_path):
    target = tmp_path / "pipeline"
    pipe.save_pretrained(target)
    says = json.loads((target / "pipeline.json").read_text())
    assert says["generator"]["args"]["base"] == str(home / "sdxl")
    assert (says["eeg"]["unit"], says["eeg"]["sfreq"], says["eeg"]["baseline"]) == ("uV", 250.0, [-0.2, 0.0])
    assert says["metrics"]["test/two_way_efflite2"] >= 0
    assert not any("sdxl" in str(path) for path in target.rglob("*"))
    card = (target / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: eegrecon\n")
    for words in ("63 channels × 250 samples (0 to 1 s at 250 Hz) in µV", "simulated", str(home / "sdxl"), "| test/"):
        assert words in card
    shutil.move(target, tmp_path / "moved")
    again = EEGToImagePipeline.from_pretrained(tmp_path / "moved", device="cpu")
    wanted, found = (one(eeg[:2], subject=1, generator=0) for one in (pipe, again))
    np.testing.assert_array_equal(arrays(found.images), arrays(wanted.images))
    with pytest.raises(ArtifactError, match="is there already"):
        again.save_pretrained(tmp_path / "moved")
    pipe.save_pretrained(tmp_path / "moved", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ArtifactError, match=r"has no pipeline.json\) and is not overwritten"):
        pipe.save_pretrained(tmp_path / "mine", overwrite=True)
    (tmp_path / "moved" / "prior" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"model.safetensors has 0 bytes"):
        EEGToImagePipeline.from_pretrained(tmp_path / "moved")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "moved"]


def test_the_generator_can_be_somewhere_else(home, tmp_path):
    shutil.copytree(home / "sdxl", tmp_path / "sdxl")
    pipe = EEGToImagePipeline.from_pretrained(home / "run", generator_args={"base": str(tmp_path / "sdxl")})
    assert pipe.plan.generator.args["size"] == 16
    with pytest.raises(DataError, match=r"model_index\.json"):
        EEGToImagePipeline.from_pretrained(home / "run", generator_args={"base": str(tmp_path)})
    (tmp_path / "sdxl" / "ip_adapter" / "conditioning.json").write_text('{"model": "ViT-bigG-14"}')
    with pytest.raises(ArtifactError, match="model is 'ViT-bigG-14' in the generator and 'pocket_clip' in the target"):
        EEGToImagePipeline.from_pretrained(home / "run", generator_args={"base": str(tmp_path / "sdxl")})


def test_runs_that_are_not_complete(home, tmp_path):
    def refused(source):
        with pytest.raises(ArtifactError) as found:
            EEGToImagePipeline.from_pretrained(source)
        return str(found.value)

    assert "no directory and no hub id (owner/name)" in refused("/not/there/at/all")
    run = shutil.copytree(home / "run", tmp_path / "run", ignore=shutil.ignore_patterns("pictures*"))
    other = shutil.copytree(run / "reconstruct", run / "reconstruct-sub-02")
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("batch_size: 4", "batch_size: 3"))
    assert "make pictures in different ways" in refused(run)
    shutil.rmtree(other)
    (run / "reconstruct" / "config.yaml").write_text("seed: 0\n")
    assert "does not say how pictures are made" in refused(run)
    shutil.rmtree(run / "reconstruct")
    assert "run `eegrecon reconstruct`" in refused(run)
    encoder = json.loads((run / "encoder" / "manifest.json").read_text())
    (run / "encoder" / "manifest.json").write_text(json.dumps({**encoder, "seed": 1}))
    assert "trained on another encoder" in refused(run)
    shutil.rmtree(run / "prior")
    assert "make it first with `eegrecon train-prior`" in refused(run)


def test_the_hub_comes_from_its_cache_or_says_what_to_fetch(pipe, eeg, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ArtifactError, match=r"hf download somebody/brains --local-dir FOLDER"):
        EEGToImagePipeline.from_pretrained("somebody/brains", cache_dir=tmp_path)
    cached = tmp_path / "models--somebody--brains"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("a" * 40)
    (cached / "snapshots").mkdir()
    pipe.save_pretrained(cached / "snapshots" / ("a" * 40))
    found = EEGToImagePipeline.from_pretrained("somebody/brains", cache_dir=tmp_path)
    torch.testing.assert_close(found(eeg[:1], generator=0).image_embeds, pipe(eeg[:1], generator=0).image_embeds)


def test_a_misspelt_run_says_that_its_folder_is_here(home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    (home / "runs").mkdir(exist_ok=True)
    with pytest.raises(ArtifactError, match="the folder runs is here, but holds no typo"):
        EEGToImagePipeline.from_pretrained("runs/typo")


def test_push_uploads_what_save_writes(home, pipe, monkeypatch, capsys):
    calls = []

    class FakeApi:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))
            if repo_id == "not/mine":
                raise huggingface_hub.errors.HFValidationError("403 Forbidden:\nno such right")

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            files = {str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()}
            calls.append((repo_id, files, commit_message))
            return "https://hub/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    assert pipe.push_to_hub("me/brains", private=True, token="t", commit_message="x") == "https://hub/commit/1"
    assert calls[:2] == ["t", ("me/brains", {"private": True, "exist_ok": True})]
    repo_id, files, message = calls[2]
    assert (repo_id, message) == ("me/brains", "x")
    assert {"README.md", "pipeline.json", "encoder/model.safetensors", "prior/manifest.json"} <= files
    assert f"the generator lies in {home / 'sdxl'}" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match=r"could not be pushed to not/mine \(403 Forbidden: no such right\)"):
        pipe.push_to_hub("not/mine")
