"""Any subset of the pathways, in `reconstruct` and in the pipeline object."""

import dataclasses
import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import eegrecon
from eegrecon import EEGToImagePipeline
from eegrecon.analysis.captions import caption_ranks
from eegrecon.artifacts import load_embeds, new_manifest, read_manifest, write_manifest
from eegrecon.cli import main
from eegrecon.config import Choice, ExtractTargetsConfig, SemanticConfig, SetConfig, load, parse_yaml, to_dict
from eegrecon.data import ImageSet, TargetStore, TargetStoreWriter, held_out_concepts, target_dir
from eegrecon.data.layout import projector_dir
from eegrecon.errors import ArtifactError, ConfigError, DataError
from eegrecon.metrics.features import picture_tensor
from eegrecon.models.captioners import git
from eegrecon.models.captioners.projector import PixelProjector
from eegrecon.models.generators.latents import load_vae
from eegrecon.pathways.low_level import predicted_latents
from eegrecon.pathways.semantic import Words, words_of
from eegrecon.pipeline_files import read_plan
from eegrecon.stages import evaluate, extract_targets, reconstruct, train_low_level, train_projector
from eegrecon.stages.upstream import generator_input
from tests.builders import write_store_manifest
from tests.builders_runs import build_chain, chain_config
from tests.builders_sdxl_published import tiny_published

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


@pytest.fixture(scope="module")
def reader(home):
    """Arguments of a generator that could read captions, of the same autoencoder as the one that cannot."""
    folder = tiny_published(home / "reads" / "sdxl", "base", dim=256)
    shutil.copytree(home / "sdxl" / "vae", folder / "vae", dirs_exist_ok=True)
    adapter = home / "reads" / "sdxl_models" / "ip-adapter_sdxl.safetensors"
    (adapter.parent / "conditioning.json").write_text(json.dumps({"model": "pocket_clip", "weights_tag": "tiny"}))
    return f"base: {folder}, ip_adapter: {adapter}, guidance_scale: 2.0, size: 16"


@pytest.fixture(scope="module")
def words(home, reader):
    """Overrides of a semantic pathway: a generator that reads, a projector, and a captioner that spells its tokens."""
    store = TargetStore(target_dir(home / "data" / "pocket", "clip-pocket"))
    torch.manual_seed(0)
    folder = projector_dir(home / "data" / "pocket", "tiny")
    folder.mkdir(parents=True)
    save_file(PixelProjector(256, 2, 3).state_dict(), folder / "model.safetensors")
    (folder / "config.yaml").write_text("{}\n")
    interface = {**store.interface(), "captioner": Spelling().interface()}
    manifest = new_manifest("train-projector", command="t", config_hash="0", seed=0, interface=interface, data={})
    manifest.outputs = {"model.safetensors": {}}
    write_manifest(folder, manifest)
    args = f"{reader}, captions: true, num_inference_steps: 2"
    return (f"generator.args={{{args}}}", "pathways.semantic.source=captions", "pathways.semantic.projector=tiny")


class Spelling(torch.nn.Module):
    """In the place of GIT: says the signs of its tokens, words that the tiny tokenizers tell apart."""

    def interface(self):
        return {"model": "tiny", "weights_tag": "w", "n_tokens": 2, "width": 3}

    def caption(self, features):
        return [" ".join("ab"[int(value > 0)] for value in row.flatten().tolist()) for row in features]


def go(home, directory, *overrides, exp="pocket"):
    """Reconstruct in a run of its own that has the same encoder, prior and low-level network."""
    directory.mkdir()
    for stage in ("encoder", "prior", "low_level"):
        (directory / stage).symlink_to(home / "run" / stage)
    cfg = chain_config(home, *overrides, exp=exp)
    manifest = reconstruct.run(cfg, directory=directory / "reconstruct", command="test")
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
    assert protocol["pathways"]["low_level"] == "low_level"
    assert not (made["both"] / "captions.json").exists()
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


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (("sfreq",), 200.0, r"sfreq 200\.0 there, 250\.0 here"),
        (("subjects",), [2], r"subjects \[2\] there, \[1\] here"),
        (("split", "split_seed"), 1, r"val_concepts=2 split_seed=1 there, .* val_concepts=2 split_seed=0 here"),
    ],
)
def test_a_low_level_network_of_other_data_is_refused(home, tmp_path, key, value, message):
    run = tmp_path / "run"
    run.mkdir()
    for stage in ("encoder", "prior"):
        (run / stage).symlink_to(home / "run" / stage)
    shutil.copytree(home / "run" / "low_level", run / "low_level")
    path = run / "low_level" / "manifest.json"
    says = json.loads(path.read_text())
    block = says["data"]
    for name in key[:-1]:
        block = block[name]
    block[key[-1]] = value
    path.write_text(json.dumps(says))
    with pytest.raises(ArtifactError, match=f"other data than the encoder beside it: .*{message}"):
        reconstruct.run(chain_config(home, *LOW_LEVEL), directory=run / "reconstruct", command="test")


def test_pictures_are_out_of_date_when_latents_or_weights_of_the_generator_are_others(home, made, tmp_path):
    """Each is an input, by the hash of what it holds; the pictures of before are not called up to date."""
    inputs = read_manifest(made["both"]).inputs
    assert {"generator", "latent_targets"} <= set(inputs)
    assert "latent_targets" not in read_manifest(made["prior"]).inputs
    cfg = chain_config(home, *LOW_LEVEL)
    reconstruct.run(cfg, directory=made["both"], command="again")  # up to date
    other = tmp_path / "sdxl"
    shutil.copytree(home / "sdxl", other)
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    args = {"base": str(other)}
    assert (
        generator_input(Choice("sdxl", args))["generator"]["manifest_sha256"] == inputs["generator"]["manifest_sha256"]
    )
    save_file({name: value / 2 for name, value in load_file(file).items()}, file)
    assert (
        generator_input(Choice("sdxl", args))["generator"]["manifest_sha256"] != inputs["generator"]["manifest_sha256"]
    )
    store = target_dir(home / "data" / "pocket", "vae-tiny") / "manifest.json"
    before = store.read_text()
    store.write_text(json.dumps({**json.loads(before), "seed": 5}))
    try:
        with pytest.raises(ArtifactError, match="the input 'latent_targets'"):
            reconstruct.run(cfg, directory=made["both"], command="again")
    finally:
        store.write_text(before)


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


@pytest.mark.parametrize("name", ["both", "low_level"])
def test_decode_goes_through_the_pathways_of_the_run(home, made, tmp_path, name):
    eeg = np.load(home / "data/pocket/trials/sub-01/test_eeg.npy").astype(np.float32).mean(1)
    np.save(tmp_path / "eeg.npy", eeg)
    pipe = EEGToImagePipeline.from_pretrained(made[name].parent)
    wanted = pipe(eeg, subject=1, generator=3)
    words = ["--run", str(made[name].parent), "--out", str(tmp_path / "out"), "--subject", "1", "--seed", "3"]
    assert main(["decode", str(tmp_path / "eeg.npy"), *words]) == 0
    for i in range(N):
        found = np.asarray(Image.open(tmp_path / "out" / f"{i:04d}.png"), dtype=int)
        assert np.abs(found - np.asarray(wanted.images[i][0], dtype=int)).max() <= 1
    record = json.loads((tmp_path / "out" / "decode.json").read_text())
    assert record["pathways"] == dataclasses.asdict(pipe.plan.pathways)
    assert "captions" not in record
    latents = load_file(tmp_path / "out" / "embeds.safetensors")["pred_latents"]
    torch.testing.assert_close(latents, pipe.told(eeg, wanted.image_embeds, subject=1).latents)


def test_embeddings_that_are_no_numbers_are_refused_where_nothing_shows_them(home, made, monkeypatch):
    """Without the prior in the picture they would end in its caption alone."""
    pipe = EEGToImagePipeline.from_pretrained(made["low_level"].parent)
    eeg = np.load(home / "data/pocket/trials/sub-01/test_eeg.npy").astype(np.float32).mean(1)
    real = pipe.prior.sample
    monkeypatch.setattr(pipe.prior, "sample", lambda *args, **more: real(*args, **more).log())  # of negative ones
    with pytest.raises(DataError, match=r"the prior's image embeddings hold NaN or infinity in trial 0"):
        pipe(eeg, generator=0)


def test_captions_reach_the_prompt_and_are_scored(home, words, tmp_path, monkeypatch):
    monkeypatch.setattr(git, "load_git", lambda name, num_beams: Spelling())

    def by_length(texts):
        return torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(len(text))) for text in texts])

    monkeypatch.setattr(evaluate, "caption_ranks", partial(caption_ranks, embed=by_length))
    reads, manifest = go(home, tmp_path / "reads", *words, "draws=2")
    deaf, _ = go(home, tmp_path / "deaf", words[0], "draws=2")
    weak, _ = go(home, tmp_path / "weak", *words, "draws=2", "generator.args.prompt_strength=0.0")
    assert np.abs(pixels(reads) - pixels(deaf)).max() > 5
    assert np.array_equal(pixels(weak), pixels(deaf))
    said = json.loads((reads / "captions.json").read_text())
    assert len(said) == N
    assert all(len(row["decoded"]) == len(row["ceiling"]) == 2 for row in said.values())
    projector = eegrecon.load(projector_dir(home / "data" / "pocket", "tiny"))
    embeds = load_embeds(reads / "embeds" / "test.safetensors")
    with torch.no_grad():
        wanted = [Spelling().caption(projector(torch.from_numpy(rows))) for rows in embeds["pred_image_embeds"]]
    assert [row["decoded"] for row in said.values()] == wanted
    assert {"captions.json", "ranks_caption.safetensors"} <= set(manifest.outputs)
    assert {"projector", "captioner"} <= set(manifest.inputs)
    scored = {f"test/caption_top1_{N}way{control}" for control in ("", "_ceiling", "_shuffled")}
    assert scored <= set(manifest.metrics)
    eeg = np.load(home / "data/pocket/trials/sub-01/test_eeg.npy").astype(np.float32).mean(1)
    index = np.load(home / "data/pocket/trials/sub-01/test_image_index.npy").tolist()
    pipe = EEGToImagePipeline.from_pretrained(reads.parent)
    pipe.save_pretrained(tmp_path / "saved")
    for each in (pipe, EEGToImagePipeline.from_pretrained(tmp_path / "saved")):
        output = each(eeg, subject=1, generator=each.generators(0, [1] * N, index, 2), num_images_per_trial=2)
        found = np.stack([np.asarray(one, dtype=int) for row in output.images for one in row])
        assert np.abs(found - pixels(reads)).max() <= 1
    assert (tmp_path / "saved" / "projector" / "model.safetensors").is_file()
    np.save(tmp_path / "eeg.npy", eeg)
    decode = ["decode", str(tmp_path / "eeg.npy"), "--subject", "1", "--out", str(tmp_path / "out")]
    assert main([*decode, "--run", str(reads.parent)]) == 0
    wanted = pipe(eeg, subject=1, generator=0)
    with torch.no_grad():
        said = [Spelling().caption(projector(rows)) for rows in wanted.image_embeds]
    assert json.loads((tmp_path / "out" / "decode.json").read_text())["captions"] == said
    for i in range(N):
        found = np.asarray(Image.open(tmp_path / "out" / f"{i:04d}.png"), dtype=int)
        assert np.abs(found - np.asarray(wanted.images[i][0], dtype=int)).max() <= 1


def test_captions_are_found_from_the_run_or_missed_in_a_sentence(home, made, tmp_path, monkeypatch):
    """The config names the set relative to where the run was made."""
    run = tmp_path / "project" / "runs" / "reads"
    shutil.copytree(made["prior"].parent, run, symlinks=True)
    config = run / "reconstruct" / "config.yaml"
    says = parse_yaml(config.read_text())
    says["data"]["root"] = "data"
    says["pathways"]["semantic"]["source"] = "retrieval"
    config.write_text(json.dumps(says))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=r"come from the set data/pocket, which is neither here nor above the run"):
        read_plan(run)
    (tmp_path / "project" / "data").symlink_to(home / "data")
    assert read_plan(run).words.names


@pytest.fixture(scope="module")
def projector(home):
    """Visual tokens and the projector by the YAMLs of an experiment with captions, for the captioner that ships."""
    root = home / "data" / "pocket"
    spec = load("extract-targets", "pocket_pathways").targets["git-pocket"]
    cfg = ExtractTargetsConfig(data=SetConfig(root.name, str(root.parent)), targets={"git-pocket": spec})
    extract_targets.run(cfg, directory=root, command="test")
    words = [f"data.root={root.parent}", "data.split.val_concepts=2", "batch_size=8", "trainer.max_epochs=2"]
    words += ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    return train_projector.run(load("train-projector", "pocket_pathways", None, words), directory=root, command="test")


def test_captions_of_validation_pictures_need_a_projector_that_held_them_out(home, plain, projector, tmp_path):
    """By the same concepts as the run; and retrieval must do without the names that are looked for."""
    captions = ("pathways.semantic.source=captions", "pathways.semantic.projector=clip-git", "part=val")
    words = [plain[0][0].replace("}", ", captions: true}")]
    go(home, tmp_path / "same", *words, *captions)
    root = home / "data" / "pocket"
    other = [f"data.root={root.parent}", "data.split.val_concepts=3", "name=other", "batch_size=8"]
    other += ["trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
    train_projector.run(load("train-projector", "pocket_pathways", None, other), directory=root, command="test")
    at_test = (captions[0], "pathways.semantic.projector=other")
    go(home, tmp_path / "test", *words, *at_test)  # no test concept trains any projector
    with pytest.raises(ArtifactError, match=r"holds out 3 concepts of split_seed 0, but this run 2 concepts"):
        go(home, tmp_path / "val", *words, *at_test, "part=val")
    images = ImageSet.from_root(root)
    held = held_out_concepts(len(set(images.concept_index[images.train_index])), 2, 0)
    lost = {images.concept_of(i).replace("_", " ") for i in images.train_index if images.concept_index[i] in held}
    every = words_of(SemanticConfig(source="retrieval"), root).names
    assert set(every) - set(words_of(SemanticConfig(source="retrieval"), root, set(held)).names) == lost
    assert len(lost) == 2
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconstruct, "words_of", lambda *args: seen.append(words_of(*args)) or seen[-1])
        patch.setattr(Words, "of", lambda self, rows, *_: [["word"] * rows.shape[1]] * len(rows))
        go(home, tmp_path / "names", *words, "pathways.semantic.source=retrieval", "part=val")
        go(home, tmp_path / "all", *words, "pathways.semantic.source=retrieval")
    assert set(seen[1].names) - set(seen[0].names) == lost


@pytest.fixture(scope="module")
def plain(home, small_networks, reader, tmp_path_factory):
    """Overrides of a generator of four steps, and its pictures by the prior alone."""
    words = [f"generator.args={{{reader}, num_inference_steps: 4}}"]
    return words, pixels(go(home, tmp_path_factory.mktemp("plain") / "run", *words)[0])


@pytest.mark.parametrize("exp", ["pocket_low_level", "pocket_semantic", "pocket_pathways"])
def test_a_shipped_composition_differs_from_the_prior_alone(home, plain, projector, tmp_path, exp):
    words, by_prior = plain
    shipped = load("reconstruct", exp)
    starts, reads = shipped.pathways.low_level == "low_level", shipped.pathways.semantic.source == "captions"
    assert starts or reads
    out, manifest = go(home, tmp_path / "own", *words, *LOW_LEVEL[1:] * starts, exp=exp)
    assert np.abs(pixels(out) - by_prior).max() > 5
    assert [name in manifest.inputs for name in ("low_level", "projector")] == [starts, reads]
    protocol = json.loads((out / "metrics.json").read_text())["protocol"]
    assert protocol["pathways"] == to_dict(shipped.pathways)
    for name in ("strength", "prompt_strength", "captions"):
        assert protocol["generator"]["args"].get(name) == shipped.generator.args.get(name)
    assert (out / "captions.json").exists() == reads
    if reads:
        said = json.loads((out / "captions.json").read_text())
        assert all(
            text.startswith("a picture of") for row in said.values() for text in (*row["decoded"], *row["ceiling"])
        )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("pathways.semantic.source=captions",), "needs the name of a projector"),
        (("pathways.semantic.projector=tiny",), "needs the name of a projector"),
        (("pathways.semantic.source=retrieval",), "text encoder"),
    ],
)
def test_words_that_cannot_be_had_are_one_sentence(home, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        go(home, tmp_path / "run", *overrides)
