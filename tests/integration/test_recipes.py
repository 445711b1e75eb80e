"""Every recipe of an encoder under `experiments/things_*`, as it ships, from targets to test numbers.

Each runs its own four YAMLs on a look-alike with the set's real channels, samples and file layout, and with targets of
the real names, kinds and sizes but random values. What is asked of a recipe is read from its config, so a new folder is
covered without a word here.
"""

import itertools
import json
import math
import re
import shutil
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import eegrecon
from eegrecon import config
from eegrecon.analysis.protocol import Protocol
from eegrecon.artifacts import load_embeds, read_manifest
from eegrecon.cli import main
from eegrecon.models.encoders.ridge import Ridge
from eegrecon.registry import check_args, lookup
from eegrecon.stages import encoder_training, extract_targets
from eegrecon.stages.encoder_build import target_names, targets_of
from eegrecon.stages.target_plan import Plan, plans

pytestmark = pytest.mark.usefixtures("clean_rank")
# Those that are scored as encoders. The rest differ from one of these only after the encoder, as test_experiments.py
# asserts, and run in test_things_pictures.py.
RECIPES = sorted(path.parent.relative_to(config.experiments_root()).as_posix()
                 for path in config.experiments_root().glob("things_*/*/evaluate.yaml"))  # fmt: skip
VERBS = ("prepare-data", "extract-targets", "train-encoder", "evaluate")
# (model, weights, kind, what else decides the size) to the real shape of one target. No weights are loaded here.
SHAPES = {
    ("ViT-H-14", "laion2b_s32b_b79k", "image", ""): (1024,),
    ("ViT-H-14", "laion2b_s32b_b79k", "text", ""): (1024,),
    ("ViT-H-14", "laion2b_s32b_b79k", "layer", "mean"): (1280,),
    ("ViT-B-32", "laion2b_s34b_b79k", "image", ""): (512,),
    ("RN50", "openai", "image", ""): (1024,),
    ("stabilityai/sdxl-turbo", "", "vae_latent", "128"): (4, 16, 16),
}
# Of each set: the published layout, channels, samples, trials of a training picture (here) and of a test picture.
LAYOUTS = {"things_eeg2": ("preprocessed", 63, 250, 2, 12), "things_meg": ("meg_fif", 271, 201, 1, 12)}
N_TRAIN, N_TEST, EXEMPLARS, N_VAL = 6, 3, 4, 2  # concepts, and pictures of a training concept
SMALL = {
    "train-encoder": [f"data.split.val_concepts={N_VAL}", "loader.batch_size=8", "trainer.max_epochs=2",
                      "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"],
    "evaluate": [f"data.split.val_concepts={N_VAL}"],
}  # fmt: skip


def configs(exp):
    """The four configs of a recipe as they ship; a YAML that is not there is an error that names it."""
    return {verb: config.load(verb, exp) for verb in VERBS}


def shape_of(plan):
    spec, args = plan.spec, plan.spec.model.args
    size = spec.pooling if spec.kind == "layer" else str(args.get("size", ""))
    key = (args.get("model") or args.get("base"), args.get("pretrained", ""), spec.kind, size)
    assert key in SHAPES, (
        f"the target {plan.name!r} comes from {key}: add its real shape to SHAPES, and where it is from"
    )
    return SHAPES[key]


class StandIn:
    """In the place of a target's network: it looks at every picture and answers with noise of the real shape."""

    def __init__(self, plan: Plan) -> None:
        check_args(lookup(config.TARGET_MODELS, plan.spec.model.name), plan.spec.model, {})  # as the real one would
        self.shape = shape_of(plan)
        self._rng = np.random.default_rng(zlib.crc32(plan.name.encode()))
        self._latent, self._model = plan.spec.kind == "vae_latent", plan.spec.model.args
        self._layer = plan.spec.layer or "final"

    def to(self, device):
        return self

    def header(self):
        found = {"model": str(self._model), "weights_tag": "noise", "weights_sha256": "", "layer": self._layer}
        return found | {"transform": None, "scaling_factor": 0.13025 if self._latent else None}

    def encode(self, pictures):
        assert all(picture.mode == "RGB" for picture in pictures)
        return self._noise(len(pictures))

    def encode_texts(self, texts):
        assert len(set(texts)) == len(texts)
        return self._noise(len(texts))

    def _noise(self, n):
        return self._rng.standard_normal((n, *self.shape), dtype=np.float32)


def test_every_folder_is_a_recipe():
    assert "things_eeg2/atm_s" in RECIPES
    assert "things_meg/atm_s" in RECIPES
    assert [exp for exp in RECIPES if exp.partition("/")[0] not in LAYOUTS] == []


def test_real_shapes_are_those_of_the_networks():
    package = find_spec("open_clip").origin
    for (model, _, kind, size), shape in SHAPES.items():
        if kind == "vae_latent":  # SDXL's autoencoder: 4 channels, 8 times smaller
            assert shape == (4, int(size) // 8, int(size) // 8)
            continue
        sizes = json.loads((Path(package).parent / "model_configs" / f"{model}.json").read_text())
        assert shape == ((sizes["vision_cfg"]["width"] if kind == "layer" else sizes["embed_dim"]),)


@pytest.mark.parametrize("exp", RECIPES)
def test_a_recipe_makes_every_target_that_it_uses(exp):
    cfg = configs(exp)
    made = {plan.name: plan.spec.kind for plan in plans(cfg["extract-targets"].targets)}
    assert all(shape_of(plan) for plan in plans(cfg["extract-targets"].targets))
    encoder, evaluate = cfg["train-encoder"], cfg["evaluate"]
    texts = {target.name for target in (encoder.text_target, evaluate.text_target) if target.name}
    latents = {encoder.latent_target.name} - {""}
    seen = {*target_names(encoder).values(), evaluate.target.name, *(each.name for each in evaluate.fusion_targets)}
    used = seen | texts | latents
    assert used <= set(made), f"{exp}/extract-targets.yaml does not make {sorted(used - set(made))}"
    assert set(made) <= used, f"{exp} makes {sorted(set(made) - used)} for nothing"
    assert {made[name] for name in texts} <= {"text"}
    assert {made[name] for name in latents} <= {"vae_latent"}
    assert len({block.data.set for block in cfg.values()}) == 1


@pytest.mark.parametrize("exp", RECIPES)
def test_what_a_header_offers_under_args_is_understood(exp):
    for verb in VERBS:
        path = config.experiment_file(verb, exp)
        header = " ".join(line[1:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
        for offer in re.findall(r'ARGS="([^"]+)"', header):
            keys, values = zip(*(word.split("=", 1) for word in offer.split()), strict=True)
            for choice in itertools.product(*(value.split("|") for value in values)):
                config.load(verb, exp, None, [f"{key}={value}" for key, value in zip(keys, choice, strict=True)])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with `data/<set>` as somebody has it who downloaded the set's files: pictures and recordings."""
    home = tmp_path_factory.mktemp("workplace")
    for name, (layout, _, _, repetitions, test_repetitions) in LAYOUTS.items():
        loaded = [config.load("prepare-data", exp) for exp in RECIPES if exp.startswith(f"{name}/")]
        counts = {"concepts": N_TRAIN, "test-concepts": N_TEST, "exemplars": EXEMPLARS, "size": 16}
        counts |= {"repetitions": repetitions, "test-repetitions": test_repetitions}
        words = [word for key, value in counts.items() for word in (f"--{key}", str(value))]
        for subject in sorted({subject for cfg in loaded for subject in cfg.data.subjects}):
            words += ["--subject", str(subject)]
        out = home / "data" / name
        assert main(["look-alike", "--layout", layout, "--out", str(out), "--signal", "noise", *words]) == 0
    return home


@pytest.fixture
def stages(workplace, monkeypatch):
    """Runs a verb of a recipe in the workplace.

    `stages.trained` gets (module, its weights before, names of parameters that a gradient reached).
    """
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(extract_targets, "build", StandIn)
    build = encoder_training.build_module

    def build_module(cfg, network, data):
        module = build(cfg, network, data)
        moved = set()
        for name, value in module.network.named_parameters():
            value.register_post_accumulate_grad_hook(lambda _, name=name: moved.add(name))
        run.trained = module, {name: value.clone() for name, value in module.network.state_dict().items()}, moved
        return module

    monkeypatch.setattr(encoder_training, "build_module", build_module)

    def run(verb, exp, *more):
        return main([verb, "--exp", exp, *SMALL.get(verb, []), *more])

    yield run
    shutil.rmtree(workplace / "runs", ignore_errors=True)  # weights of the real sizes: a gigabyte in all


@pytest.mark.parametrize("exp", RECIPES)
def test_a_recipe_trains_and_is_scored_as_it_ships(workplace, stages, exp):
    for verb in VERBS:
        assert stages(verb, exp) == 0, verb
    cfg = config.load("train-encoder", exp, None, SMALL["train-encoder"])
    shapes = {plan.name: shape_of(plan) for plan in plans(config.load("extract-targets", exp).targets)}
    for name, shape in shapes.items():  # the stores that stages read have the real sizes
        stored = np.load(workplace / "data" / cfg.data.set / "targets" / name / "train.npy", mmap_mode="r")
        assert stored.shape == (N_TRAIN * EXEMPLARS, *shape)
    directory = encoder_directory(workplace, exp)
    check_training(cfg, directory, *stages.trained, shapes)
    check_scores(cfg, config.load("evaluate", exp, None, SMALL["evaluate"]), directory)


def test_blurred_galleries_as_the_ubp_header_offers_them(workplace, stages):
    exp, blurred = "things_eeg2/ubp", "target.name=clip-rn50-kernel51"
    assert (stages("prepare-data", exp), stages("extract-targets", exp)) == (0, 0)
    assert (stages("train-encoder", exp, blurred), stages("evaluate", exp, blurred)) == (0, 0)
    module, *_ = stages.trained
    assert (module.levels.n_levels, module.levels.start) == (3, 1)
    directory = encoder_directory(workplace, exp).parent / "evaluate"
    stamp = Protocol.from_metrics(json.loads((directory / "metrics.json").read_text())["protocol"])
    assert (stamp.gallery_kind, stamp.target) == ("blurred", "clip-rn50-kernel51")


def test_levels_that_are_not_sharp_first_are_refused(stages, capsys):
    exp = "things_eeg2/ubp"
    assert (stages("prepare-data", exp), stages("extract-targets", exp)) == (0, 0)
    assert stages("train-encoder", exp, "target.levels=[clip-rn50-kernel57, clip-rn50-kernel45]") == 2
    assert "needs them sharp first" in " ".join(capsys.readouterr().err.split())


def encoder_directory(workplace, exp):
    (directory,) = (workplace / "runs" / exp).glob("*/seed-0/encoder")
    return directory


def check_training(cfg, directory, module, before, moved, shapes):
    manifest, state = read_manifest(directory), load_file(directory / "model.safetensors")
    _, n_chans, n_times, repetitions, _ = LAYOUTS[cfg.data.set]
    # what was trained is what the YAML says
    saved = config.parse_yaml((directory / "config.yaml").read_text(encoding="utf-8"))
    assert saved["encoder"] == {"name": cfg.encoder.name, "args": cfg.encoder.args}
    assert manifest.config_hash == config.config_hash(cfg)
    network = module.network
    assert isinstance(network.encoder, lookup(config.ENCODERS, cfg.encoder.name))
    assert not isinstance(network.encoder, Ridge)
    assert len(manifest.data["channels"]) == (n_chans if cfg.data.channels == "all" else len(cfg.data.channels))
    assert manifest.data["n_times"] == n_times
    parts = [cfg.target.name, *(target.name for target in cfg.fusion_targets)]
    dim = sum(math.prod(shapes[name]) for name in parts)
    interface = manifest.interface
    assert (interface["name"], interface["dim"]) == ("+".join(parts), dim)
    assert [part["name"] for part in interface.get("fusion", [])] == parts[1:]
    assert {name.removeprefix("targets/") for name in manifest.inputs if name.startswith("targets/")} == set(
        target_names(cfg).values()
    )
    # it took steps, and everything that may learn did
    rows = (N_TRAIN - N_VAL) * EXEMPLARS * (repetitions if cfg.data.repetitions == "each" else 1)
    assert module.trainer.global_step == rows // cfg.loader.batch_size * cfg.trainer["max_epochs"] >= 2
    assert moved == {name for name, value in network.named_parameters() if value.requires_grad}
    still = [name for name, value in network.named_parameters() if torch.equal(value, before[name])]
    assert [name for name in still if not name.endswith("bias")] == []  # a bias before a batch norm does nothing
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert all(bool(value.isfinite().all()) for value in state.values())
    again = eegrecon.load(directory)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in state.items())
    # its own options were in force
    assert ("projection" in interface) == any(name.startswith("image_projection.") for name in state)
    assert interface.get("projection", "none") == cfg.image_projection.name
    embed_dim = interface.get("embed_dim", dim)
    embeds = load_embeds(directory / "embeds" / "val.safetensors")["eeg_embeds"]
    assert embeds.shape == (N_VAL * EXEMPLARS, embed_dim)
    assert again.project_images(torch.zeros(1, dim)).shape == (1, embed_dim)
    assert (network.latent_head is not None) == (cfg.loss.vae_latent > 0)
    assert set(targets_of(cfg)) == {"image", *(name for name in ("text", "vae_latent") if getattr(cfg.loss, name) > 0)}
    for name in ("contrastive", "mse", "text", "scale", "positives", "normalise_eeg", "logit_scale"):
        assert getattr(module.objective, name) == getattr(cfg.loss, name)
    assert module.augment.mixup == cfg.augment.mixup
    assert (module.levels is not None) == (cfg.target.mixing != "none")
    if cfg.target.mixing == "uncertainty":  # it noted how alike each training picture and its EEG are, and no other
        ladder = cfg.target.levels if cfg.target.name in cfg.target.levels else [cfg.target.name, *cfg.target.levels]
        assert (module.levels.n_levels, module.levels.start) == (len(ladder), ladder.index(cfg.target.name))
        trained = load_embeds(directory / "embeds" / "train.safetensors")["image_index"]
        seen = torch.nonzero(~module.levels.similarity.isnan()).flatten().tolist()
        assert seen == sorted(set(trained.tolist()))
    rule = "last epoch" if cfg.select.epoch == "last" else f"best {cfg.select.monitor}"
    selection = manifest.selection
    assert (selection["rule"], selection["epochs"]) == (rule, cfg.trainer["max_epochs"])
    assert selection["epoch"] == cfg.trainer["max_epochs"] - 1 or cfg.select.epoch == "best"
    metrics = numbers(directory)
    wanted = f"val/retrieval_top1_{N_VAL}way"
    assert {wanted, *([f"{wanted}_ridge"] if cfg.baseline_ridge else [])} <= set(metrics)


def check_scores(cfg, evaluate, directory):
    *_, repetitions = LAYOUTS[cfg.data.set]
    out = directory.parent / "evaluate"
    manifest, metrics = read_manifest(out), numbers(out)
    suffixes = ["", "_ridge"] if cfg.baseline_ridge else [""]
    tasks = ["retrieval", "classification"] if evaluate.text_target.name else ["retrieval"]
    assert {f"test/{task}_top1_{N_TEST}way{suffix}" for task in tasks for suffix in suffixes} <= set(metrics)
    assert ("test/classification_top1_3way" in metrics) == bool(evaluate.text_target.name)
    embeds = load_embeds(out / "embeds" / "test.safetensors")["eeg_embeds"]
    assert embeds.shape == (N_TEST, manifest.interface.get("embed_dim", manifest.interface["dim"]))
    assert np.isfinite(embeds).all()
    trained = read_manifest(directory)
    assert manifest.interface == trained.interface
    stamp = Protocol.from_metrics(json.loads((out / "metrics.json").read_text())["protocol"])
    assert (stamp.split, stamp.gallery_n, stamp.repetitions) == ("test", N_TEST, repetitions)
    assert (stamp.selection, stamp.target) == (trained.selection["rule"], trained.interface["name"])
    assert stamp.gallery_kind == "exact picture"
    assert set(stamp.channels) == set(trained.data["channels"])


def numbers(directory):
    """The metrics of a stage, all finite and the shares between 0 and 1."""
    payload = json.loads((directory / "metrics.json").read_text())["metrics"]
    found = {name: entry["value"] for name, entry in payload.items()}
    assert all(math.isfinite(value) for value in found.values())
    assert all(0 <= value <= 1 for name, value in found.items() if "_top" in name)
    return found
