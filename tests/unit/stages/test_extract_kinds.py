"""`extract-targets` for layers, texts, blur levels and imported files, resumed and shared among processes."""

import json
import queue
import threading
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import gaussian_blur

from eegrecon.artifacts import read_manifest
from eegrecon.config import Choice, ExtractTargetsConfig, HardwareConfig, SetConfig, TargetSpec, config_hash, load
from eegrecon.data import ImageSet, TargetStore, build_images_json, target_dir
from eegrecon.errors import ArtifactError, ConfigError, DataError
from eegrecon.models.vision import load_open_clip, load_pocket_clip
from eegrecon.pocket.pictures import render_set
from eegrecon.stages import extract_targets, target_rows
from eegrecon.stages.target_plan import plans, source_files
from tests.builders import build_tiny_set
from tests.builders_clip import build_tiny_clip

POCKET = Choice("pocket_clip")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return build_tiny_set(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def images(root):
    return ImageSet.from_root(root)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return Choice("open_clip", {"model": build_tiny_clip(tmp_path_factory.mktemp("clip")), "pretrained": None})


def run(root, targets, devices=1, **kw):
    cfg = ExtractTargetsConfig(
        data=SetConfig(root.name, str(root.parent)), targets=targets, hardware=HardwareConfig("cpu", devices)
    )
    return extract_targets.run(cfg, directory=root, command="test", **kw)


def bytes_of(root, name):
    return {file: (target_dir(root, name) / file).read_bytes() for file in extract_targets.FILES}


def all_rows(root, name, images):
    return TargetStore(target_dir(root, name), images).rows(np.arange(len(images)))


def test_images_and_layers_by_the_tower_itself(root, images, tiny):
    run(root, {
        "tiny": TargetSpec("image", tiny, batch_size=7),
        "layer": TargetSpec("layer", tiny, batch_size=7, layer="2", pooling="cls"),
        "tokens": TargetSpec("layer", tiny, batch_size=7, layer="2", pooling="tokens", dtype="float16"),
    })  # fmt: skip
    model, preprocess = open_clip.create_model_from_pretrained(tiny.args["model"])
    model.eval()
    pixels = torch.stack([preprocess(images.load(i)) for i in range(len(images))])
    caught = []
    model.visual.transformer.resblocks[1].register_forward_hook(lambda module, given, output: caught.append(output))
    with torch.no_grad():
        embeds = model.encode_image(pixels).numpy()
    tokens = caught[0].numpy()
    assert np.abs(all_rows(root, "tiny", images) - embeds).max() < 1e-5
    assert np.abs(all_rows(root, "layer", images) - tokens[:, 0]).max() < 1e-5
    store = TargetStore(target_dir(root, "tokens"), images)
    assert store.shape == (17, 48)
    assert store.open("train")[0].dtype == np.float16
    assert np.allclose(all_rows(root, "tokens", images), tokens, rtol=2e-3, atol=1e-3)
    assert store.header["layer"].endswith("transformer.resblocks), all tokens")
    assert store.header["weights_sha256"] == read_manifest(store.path).inputs["weights"]["manifest_sha256"]


@pytest.mark.parametrize(("prompt", "first"), [("This picture is {}", "This picture is other_thing01"),
                                               ("a photo of a {spaced}.", "a photo of a other thing01.")])  # fmt: skip
def test_texts_by_open_clip_itself(root, images, tiny, prompt, first):
    name = f"text{len(prompt)}"
    run(root, {name: TargetSpec("text", tiny, batch_size=5, prompt=prompt)})
    model = open_clip.create_model(tiny.args["model"]).eval()
    tokenizer = open_clip.get_tokenizer(tiny.args["model"])
    fill = prompt.replace("{spaced}", "{}")
    concepts = [record.folder.split("_", 1)[1] for record in images.records]
    texts = [fill.format(c.replace("_", " ") if "spaced" in prompt else c) for c in concepts]
    assert first in texts
    with torch.no_grad():
        oracle = np.concatenate([model.encode_text(tokenizer([text])).numpy() for text in texts])
    found = all_rows(root, name, images)
    assert np.abs(found - oracle).max() < 1e-5
    for row, concept in zip(found, concepts, strict=True):  # pictures of one concept hold the same bits
        assert np.array_equal(row, found[concepts.index(concept)])
    assert len(np.unique(found, axis=0)) == 16
    header = TargetStore(target_dir(root, name)).header
    assert (header["kind"], header["prompt"], header["transform"]) == ("text", prompt, None)


def test_a_list_of_blurs_is_a_store_a_level(root, images, tiny):
    run(root, {"b": TargetSpec("image", tiny, blur=[0, 2.0, {"kernel": 11, "size": 40}])})
    clip = load_open_clip(**tiny.args)

    def embed(blurred):
        return clip.encode([Image.fromarray(np.rint(blurred(i)).astype(np.uint8)) for i in range(len(images))])

    def tensor(picture):
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()

    plain = embed(lambda i: np.asarray(images.load(i)))
    sigma = embed(lambda i: gaussian_blur(tensor(images.load(i)), [17, 17], [2.0, 2.0]).permute(1, 2, 0).numpy())
    kernel = embed(
        lambda i: gaussian_blur(tensor(images.load(i).resize((40, 40))), [11, 11], [2.0, 2.0]).permute(1, 2, 0).numpy()
    )
    for name, oracle in {"b-blur0": plain, "b-blur2": sigma, "b-kernel11": kernel}.items():
        assert np.abs(all_rows(root, name, images) - oracle).max() < 0.02 * np.abs(oracle).max()
    assert np.abs(sigma - plain).max() > 0.1 * np.abs(plain).max()
    assert TargetStore(target_dir(root, "b-blur0")).header["blur"] is None
    assert TargetStore(target_dir(root, "b-blur2")).header["blur"]["gaussian_sigma_px"] == 2.0
    before = (target_dir(root, "b-blur2") / "manifest.json").read_text()
    run(root, {"b-blur2": TargetSpec("image", tiny, blur=2.0)})  # one level by itself is the same store
    assert (target_dir(root, "b-blur2") / "manifest.json").read_text() == before


class Threads:
    """Stands in for the processes: the same share of the work each, without seconds of imports."""

    Queue = queue.Queue

    class Process(threading.Thread):
        def __init__(self, **kw):
            SHARES.append(kw["args"][2])
            super().__init__(**kw)

        def terminate(self):
            pass


SHARES: list = []


def test_a_captioners_weights_are_an_input_of_its_tokens(tmp_path, monkeypatch):
    own = source_files(Choice("git"))["weights"]
    assert own.name == "model.safetensors"
    assert own.parent.name == "captioner"
    folder = tmp_path / "git-large-coco"
    folder.mkdir()
    assert source_files(Choice("git", {"name": str(folder)})) == {}
    (folder / "model.safetensors").touch()
    assert source_files(Choice("git", {"name": str(folder)})) == {"weights": folder / "model.safetensors"}
    cached = {("microsoft/git-large-coco", "model.safetensors"): str(folder / "model.safetensors")}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *of: cached.get(of))
    found = source_files(Choice("git", {"name": "microsoft/git-large-coco"}))
    assert found == {"weights": folder / "model.safetensors"}
    assert source_files(Choice("git", {"name": "microsoft/git-base"})) == {}


@pytest.mark.parametrize(("kind", "devices"), [("threads", 3), pytest.param("spawn", 2, marks=pytest.mark.slow)])
def test_several_processes_write_the_same_bytes(tmp_path, tiny, monkeypatch, kind, devices):
    one, two = (build_tiny_set(tmp_path / name) for name in ("one", "two"))
    targets = {"tiny": TargetSpec("image", tiny, batch_size=6, blur=1.0)}
    run(one, targets)
    if kind == "threads":
        SHARES.clear()
        monkeypatch.setattr(target_rows.multiprocessing, "get_context", lambda kind: Threads)
        monkeypatch.setattr(target_rows.signal, "signal", lambda *_: None)
    run(two, targets, devices=devices)
    assert bytes_of(one, "tiny") == bytes_of(two, "tiny")
    if kind == "threads":  # 36 + 4 pictures by 6: every batch once, and every process has some
        assert sorted(batch.start for share in SHARES for batch in share) == [0, 0, 6, 12, 18, 24, 30]
        assert [len(share) for share in SHARES] == [3, 2, 2]


def test_a_resumed_run_writes_the_same_bytes(root, tiny, monkeypatch):
    targets = {"cut": TargetSpec("image", tiny, batch_size=7)}
    real, calls = target_rows._encode, []

    def killed(model, images, todo, *rest):
        for answer in real(model, images, todo, *rest):
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(len(answer))
            yield answer

    monkeypatch.setattr(target_rows, "_encode", killed)
    with pytest.raises(KeyboardInterrupt):
        run(root, targets)
    home = target_dir(root, "cut")
    with (home / ".train.npy.partial").open("r+b") as file:  # cut within a batch and within a row
        file.truncate(128 + 24 * 4 * 10 + 50)
    monkeypatch.setattr(target_rows, "_encode", real)
    seen = []
    monkeypatch.setattr(
        target_rows, "batches", lambda *a, _real=target_rows.batches: seen.append(_real(*a)) or seen[-1]
    )
    monkeypatch.setattr(extract_targets, "batches", target_rows.batches)
    run(root, targets)
    assert (seen[0][0].start, seen[0][0].stop, seen[0][0].skip) == (7, 14, 10)
    run(root, {"straight": TargetSpec("image", tiny, batch_size=7)})
    cut, straight = bytes_of(root, "cut"), bytes_of(root, "straight")
    assert cut["train.npy"] == straight["train.npy"]
    assert cut["test.npy"] == straight["test.npy"]


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_unreadable_picture_stops_with_its_name(tmp_path, tiny, devices):
    root = build_tiny_set(tmp_path)
    images = ImageSet.from_root(root)
    path = root / images.records[20].path
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=rf"The picture .*{path.name} .* cannot be read"):
        run(root, {"tiny": TargetSpec("image", tiny, batch_size=6)}, devices=devices)
    assert not (target_dir(root, "tiny") / "header.json").exists()
    assert not (target_dir(root, "tiny") / "manifest.json").exists()


def test_a_process_that_dies_is_a_sentence():
    class Dead:
        exitcode = -9

        def is_alive(self):
            return False

    with pytest.raises(DataError, match=r"computes targets on cuda:1 died \(exit code -9.*batch_size"):
        target_rows._receive(queue.Queue(), Dead(), "cuda:1")


# ------------------------------------------------------------------------------------------------ imported features


def feature_pair(folder, images, clip, *, prompt="This picture is {}", swap=None, order=None):
    """Files as EEG_Image_decode writes them, made with the pocket CLIP."""
    for partition, index in (("train", images.train_index), ("test", images.test_index)):
        pictures = clip.encode([images.load(int(i)) for i in index])
        folders = sorted({images.records[int(i)].folder for i in index})
        texts = clip.encode_texts([prompt.format(f.split("_", 1)[1]) for f in folders])
        if partition == "train" and swap:
            pictures[list(swap)] = pictures[list(swap)[::-1]]
        if order is not None:
            pictures = pictures[np.random.default_rng(0).permutation(len(pictures))]
        content = {"text_features": torch.from_numpy(texts), "img_features": torch.from_numpy(pictures)}
        torch.save(content, folder / f"clip_{partition}.pt")
    return str(folder)


@pytest.fixture(scope="module")
def clip():
    return load_pocket_clip()


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """A small set of real pocket pictures: coloured ellipses all look alike to a trained network."""
    root = tmp_path_factory.mktemp("drawings") / "pocket"
    render_set(root / "images_set", train_concepts=20, test_concepts=6, exemplars=2, size=128, seed=0)
    build_images_json(root)
    return root


def imported(folder, kind="image", **args):
    return TargetSpec(kind, Choice("feature_file", {"folder": folder, "stem": "clip", "model": "pocket_clip", **args}))


def test_imported_features_are_stored_as_they_are(drawings, clip, tmp_path):
    images = ImageSet.from_root(drawings)
    folder = feature_pair(tmp_path, images, clip)
    manifest = run(drawings, {"images": imported(folder)})
    assert np.array_equal(all_rows(drawings, "images", images), clip_rows(images, clip))
    assert manifest.data["spot_check"]["rows"] == 16 + 6
    assert manifest.data["spot_check"]["min_cosine"] > 0.999
    assert manifest.inputs["features_train"]["path"].endswith("clip_train.pt")
    manifest = run(drawings, {"texts": imported(folder, "text")})
    assert manifest.data["spot_check"]["min_cosine"] > 0.999
    assert manifest.interface["layer"] == "final, lengths as the model gave them"
    assert manifest.interface["normalised"] is False
    # the same files elsewhere are the same store; other files are not
    other = tmp_path / "moved"
    other.mkdir()
    feature_pair(other, images, clip)
    for name in ("train", "test"):
        (other / f"clip_{name}.pt").write_bytes((tmp_path / f"clip_{name}.pt").read_bytes())
    before = (target_dir(drawings, "images") / "manifest.json").read_text()
    run(drawings, {"images": imported(str(other))})
    assert (target_dir(drawings, "images") / "manifest.json").read_text() == before
    feature_pair(other, images, clip, swap=(0, 1))
    with pytest.raises(ArtifactError, match="the input 'features_train'"):
        run(drawings, {"images": imported(str(other))})


def clip_rows(images, clip):
    parts = [[images.load(int(i)) for i in index] for index in (images.train_index, images.test_index)]
    return np.concatenate([clip.encode(part) for part in parts])


@pytest.mark.parametrize(("how", "message"), [
    ({"swap": (0, 1)}, r"another order than the pictures: .* 2 are elsewhere \(row 0 looks like row 1\)"),
    ({"order": 0}, r"do not belong to the texts|in another order than the pictures"),
])  # fmt: skip
def test_imported_features_in_another_order_are_refused(drawings, clip, tmp_path, how, message):
    images = ImageSet.from_root(drawings)
    with pytest.raises(DataError, match=message):
        run(drawings, {"bad": imported(feature_pair(tmp_path, images, clip, **how))})
    assert not (target_dir(drawings, "bad") / "header.json").exists()
    assert not list(target_dir(drawings, "bad").glob("*.npy"))


def test_features_of_another_model_are_refused(drawings, clip, tmp_path, tiny):
    images = ImageSet.from_root(drawings)
    folder = feature_pair(tmp_path, images, clip)
    with pytest.raises(DataError, match=r"vectors of 256 numbers, but .* gives 24: they are another model's"):
        run(drawings, {"bad": imported(folder, model=tiny.args["model"], weights_tag="")})
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(256, 256)))[0].astype(np.float32)
    for name in ("train", "test"):  # another model of the same size: every relation inside is kept
        content = torch.load(tmp_path / f"clip_{name}.pt", weights_only=True)
        torch.save({k: v @ torch.from_numpy(rotation) for k, v in content.items()}, tmp_path / f"clip_{name}.pt")
    with pytest.raises(DataError, match=r"are not those of pocket_clip .* mean cosine of -?0\.\d+"):
        run(drawings, {"bad": imported(folder)})
    manifest = run(drawings, {"unchecked": imported(folder, spot_check=0)})
    assert manifest.data["spot_check"] == {"rows": 0, "why": "spot_check is 0"}


def test_whoever_reads_imported_unit_vectors_is_told_so(drawings, clip, tmp_path):
    folder = feature_pair(tmp_path, ImageSet.from_root(drawings), clip)
    for name in ("train", "test"):
        content = torch.load(tmp_path / f"clip_{name}.pt", weights_only=True)
        torch.save({k: torch.nn.functional.normalize(v) for k, v in content.items()}, tmp_path / f"clip_{name}.pt")
    manifest = run(drawings, {"unit": imported(folder)})
    assert manifest.data["spot_check"]["min_cosine"] > 0.999
    assert (
        manifest.interface["normalised"] is True
    )  # as if the reader had asked for it: an IP-Adapter must not take them


def test_a_model_that_is_not_here_is_said_and_not_fetched(drawings, clip, tmp_path, capsys):
    folder = feature_pair(tmp_path, ImageSet.from_root(drawings), clip)
    with pytest.raises(DataError, match=r"vectors of 256 numbers, but ViT-H-14 gives 1024: they are another model's"):
        run(drawings, {"far": imported(folder, model="ViT-H-14", spot_check=0)})
    for name in ("train", "test"):
        content = torch.load(tmp_path / f"clip_{name}.pt", weights_only=True)
        torch.save({k: torch.nn.functional.pad(v, (0, 768)) for k, v in content.items()}, tmp_path / f"clip_{name}.pt")
    manifest = run(drawings, {"far": imported(folder, model="ViT-H-14")})
    assert manifest.data["spot_check"]["rows"] == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "the weights of ViT-H-14 (laion2b_s32b_b79k) are not on this machine" in said


# ------------------------------------------------------------------------------------------------ what is asked for


def test_a_pocket_store_of_before_is_still_up_to_date():
    cfg = load("extract-targets", "pocket")
    (plan, latents) = plans(cfg.targets)
    old = {
        "data": {"set": "pocket"},
        "target": {"name": "clip-pocket", "kind": "image", "model": {"name": "pocket_clip", "args": {}}},
    }
    assert plan.identity("pocket") == old
    assert config_hash(plan.identity("pocket")) == config_hash(old)
    assert latents.identity("pocket")["target"]["model"]["args"] == {"base": "pocket"}
    changed = replace(plan, spec=replace(plan.spec, blur=2.0))
    assert config_hash(changed.identity("pocket")) != config_hash(old)


def named(model, pretrained):
    return Choice("open_clip", {"model": model, "pretrained": pretrained})


@pytest.mark.parametrize(("spec", "message"), [
    (TargetSpec("layer", POCKET), "layer has no value"),
    (TargetSpec("image", POCKET, layer="2", pooling="cls"), "layer belongs to kind layer; pooling belongs to"),
    (TargetSpec("text", POCKET, blur=1.0), "blur belongs to kind image or layer or vae_latent"),
    (TargetSpec("image", POCKET, prompt="a {}"), "prompt belongs to kind text"),
    (TargetSpec("text", POCKET, prompt="a picture"), r"prompt is 'a picture', which has no \{\}"),
    (TargetSpec("vae_latent", Choice("feature_file")), "published feature files hold the kinds image and text only"),
    (TargetSpec("image", Choice("feature_file"), blur=1), "blur cannot be applied to features that are made"),
    (TargetSpec("layer", Choice("sdxl_vae"), layer="1"), "'layer', which needs a CLIP model, but 'sdxl_vae' gives"),
    (TargetSpec("image", named("ViT-B-32", "")), "ViT-B-32 comes without weights"),
    (TargetSpec("image", named("local-dir:/x", "openai")), "set pretrained to null"),
])  # fmt: skip
def test_contradictions_are_refused(root, spec, message):
    with pytest.raises(ConfigError, match=message):
        run(root, {"odd": spec})


def test_two_entries_for_one_store_are_refused(root, tiny):
    with pytest.raises(ConfigError, match="would make the store a-blur1 twice"):
        run(root, {"a": TargetSpec("image", tiny, blur=[1, 2]), "a-blur1": TargetSpec("image", tiny)})


def test_devices():
    assert target_rows.devices("cpu", -1) == ["cpu"]
    assert target_rows.devices("cpu", 3) == ["cpu"] * 3
    for accelerator, wanted in (("cpu", 0), ("gpu", 99)):
        with pytest.raises(ConfigError, match=f"hardware asks for {wanted} devices of the accelerator {accelerator}"):
            target_rows.devices(accelerator, wanted)


def test_keys_of_the_yaml(tmp_path):
    file = tmp_path / "extract-targets.yaml"
    file.write_text(
        "data: {set: pocket}\nhardware: {devices: -1}\ntargets:\n"
        "  a: {kind: layer, model: {name: pocket_clip}, layer: 4, pooling: tokens, dtype: float16}\n"
        "  b: {kind: image, model: {name: pocket_clip}, blur: [0, {kernel: 15, size: 224}]}\n"
    )
    cfg = load("extract-targets", None, file)
    assert cfg.targets["a"].layer == "4"
    assert [plan.name for plan in plans(cfg.targets)] == ["a", "b-blur0", "b-kernel15"]
    assert json.dumps(plans(cfg.targets)[2].config("pocket"))
    with pytest.raises(ConfigError, match=r"'targets.a.pooling' is 'max'"):
        load("extract-targets", None, file, ["targets.a.pooling=max"])
