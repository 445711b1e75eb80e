"""The THINGS-EEG2 experiments that make pictures, as they ship, on look-alikes and tiny checkpoints as published."""

import itertools
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eegrecon import cli, config
from eegrecon.analysis.captions import caption_ranks
from eegrecon.artifacts import load_embeds, read_manifest
from eegrecon.cli import main
from eegrecon.data.layout import projector_dir
from eegrecon.errors import DataError
from eegrecon.metrics.features import picture_tensor
from eegrecon.models.captioners import git
from eegrecon.models.generators import sdxl_files
from eegrecon.stages import evaluate, extract_targets
from eegrecon.stages.target_plan import build, plans
from tests.builders_sdxl_published import adapter_of, tiny_published
from tests.integration.test_recipes import StandIn
from tests.integration.test_things_experiments import SIZE
from tests.unit.models.test_captioners import git_large_layout

pytestmark = [
    pytest.mark.usefixtures("clean_rank"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
PLAIN = "things_eeg2/atm_s"
EXPERIMENTS = {PLAIN: "turbo", "things_eeg2/atm_s_sdxl": "base"}
# Experiments with more than the prior, and how many of Turbo's four steps each takes.
PATHWAYS = {f"{PLAIN}_low_level": 2, f"{PLAIN}_semantic": 4, f"{PLAIN}_pathways": 2}
SMALL = ["data.split.val_concepts=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
TRAINED = [*SMALL, "loader.batch_size=8"]
ONCE = [*TRAINED, "trainer.max_epochs=1"]
STAGES = {  # two steps at least of everything that trains
    "train-encoder": ONCE,
    "train-prior": [*ONCE, "trainer.check_val_every_n_epoch=1"],
    "train-low-level": ONCE,
    "train-projector": [*SMALL, "batch_size=8", "trainer.max_epochs=1"],
    "reconstruct": [*SMALL, "sample.num_inference_steps=2"],
}


class RealNames(StandIn):
    """Noise under the real model's name: adapters ask which space they are given."""

    def header(self):
        return super().header() | {"model": self._model["model"], "weights_tag": self._model["pretrained"]}


HEADERS = [
    *itertools.product(("train-prior", "reconstruct"), EXPERIMENTS),
    *((stage, exp) for exp in PATHWAYS for stage, spec in config.STAGES.items()
      if (config.experiments_root() / exp / spec.yaml).is_file()),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "exp"), HEADERS)
def test_what_a_header_offers_under_args_is_understood(verb, exp):
    path = config.experiment_file(verb, exp)
    header = " ".join(line[1:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    for offer in re.findall(r'ARGS="([^"]+)"', header):
        keys, values = zip(*(word.split("=", 1) for word in offer.split()), strict=True)
        for choice in itertools.product(*(value.split("|") for value in values)):
            config.load(verb, exp, None, [f"{key}={value}" for key, value in zip(keys, choice, strict=True)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the plain experiment up to its prior, in the folder that the tests work in."""
    home = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in ("load_judge", "load_target_space"):  # real networks, 4 GB
            patch.setattr(evaluate, name, lambda what: lambda pictures: picture_tensor(pictures, 4).flatten(1))
        out = ["--out", str(home / "data" / "things_eeg2"), "--subject", "8", *SIZE, "--exemplars", "4"]
        assert main(["look-alike", "--layout", "preprocessed", *out]) == 0
        assert main(["prepare-data", "--exp", PLAIN]) == 0
        with patch.context() as targets:
            targets.setattr(extract_targets, "build", RealNames)
            assert main(["extract-targets", "--exp", PLAIN]) == 0
        for verb in ("train-encoder", "train-prior"):
            assert main([verb, "--exp", PLAIN, *STAGES[verb]]) == 0
        yield home / "runs" / "things_eeg2" / "atm_s" / "sub-08" / "seed-0"


@pytest.fixture
def steps(monkeypatch):
    """The name of the scheduler at every call of a generator's UNet."""
    calls, load = [], sdxl_files.load_pipeline

    def watched(*args):
        pipe = load(*args)
        pipe.unet.register_forward_hook(lambda *_: calls.append(pipe.scheduler.__class__.__name__))
        return pipe

    monkeypatch.setattr(sdxl_files, "load_pipeline", watched)
    return calls


def published(folder, kind):
    """Overrides that name a tiny pipeline in the place of the published one."""
    tiny_published(folder, kind)
    words = [f"generator.args.base={folder}", f"generator.args.ip_adapter={adapter_of(folder)}"]
    return [*words, "generator.args.size=16", "generator.args.variant=''"]


def pixels(folder):
    return np.stack([np.asarray(Image.open(path), dtype=int) for path in sorted(folder.iterdir())])


def test_recordings_to_pictures_by_turbo_and_base(run, tmp_path, steps, capsys):
    assert read_manifest(run / "prior").interface["dim"] == 1024
    # what is not on this machine is one sentence with the command
    assert main(["reconstruct", "--exp", PLAIN, *STAGES["reconstruct"]]) == 2
    assert "hf download stabilityai/sdxl-turbo" in " ".join(capsys.readouterr().err.split())
    for name, kind in EXPERIMENTS.items():
        more = ["--run", str(run), "--overwrite", *STAGES["reconstruct"], *published(tmp_path / kind, kind)]
        assert main(["reconstruct", "--exp", name, *more]) == 0
        out = run / "reconstruct"
        assert pixels(out / "pictures").shape == pixels(out / "pictures_ceiling").shape == (3, 16, 16, 3)
        metrics = json.loads((out / "metrics.json").read_text())
        assert "test/retrieval_top1_3way" in metrics["metrics"]
        assert "test/two_way_clip_vit_h_14" in metrics["metrics"]
        assert metrics["protocol"]["generator"]["args"]["torch_dtype"] == "float16"
    turbo, base = "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"
    # two loaders (decoded and ceiling) of one batch: four steps, and thirty
    assert steps == [turbo] * 8 + [base] * 60


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """Overrides of each verb that name tiny look-alikes in the place of what the headers say to fetch, by part."""
    from transformers import CLIPImageProcessor, GitForCausalLM

    folder = tmp_path_factory.mktemp("weights")
    generator, captioner = published(folder / "sdxl-turbo", "turbo"), folder / "git-large-coco"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = {"vocab_size": 30522, "hidden_size": 24, "num_attention_heads": 2, "initializer_range": 0.2}
        GitForCausalLM(git_large_layout(**small)).save_pretrained(captioner)
    git.pocket_tokenizer().save_pretrained(captioner)
    CLIPImageProcessor().save_pretrained(captioner)
    vae = [f"targets.vae-sdxl.model.args.base={folder / 'sdxl-turbo'}", "targets.vae-sdxl.model.args.size=16"]
    return {
        "": {"reconstruct": generator},
        "train-low-level": {"extract-targets": vae},
        "train-projector": {
            "extract-targets": [f"targets.git-large.model.args.name={captioner}"],
            "reconstruct": [f"pathways.semantic.captioner={captioner}"],
        },
    }


@pytest.fixture
def by_length(monkeypatch):
    """Captions are scored by their lengths, without the sentence encoder."""

    def embed(texts):
        return torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(len(text))) for text in texts])

    monkeypatch.setattr(evaluate, "caption_ranks", partial(caption_ranks, embed=embed))


@pytest.mark.parametrize("exp", PATHWAYS)
def test_a_pathway_makes_pictures_from_a_run_of_the_plain_experiment(run, fetched, steps, by_length, exp):
    options = cli._parse(["reconstruct", "--exp", exp, "--upstream"])
    verbs = [words[0] for words in cli.upstream_commands(options, cli._config(options))]
    starts, reads = "train-low-level" in verbs, "train-projector" in verbs
    own = Path("runs") / exp / "sub-08" / "seed-0"
    own.mkdir(parents=True)
    for stage in ("encoder", "prior"):  # as the header says
        (own / stage).symlink_to(run / stage)
    taken = [run / stage / "manifest.json" for stage in ("encoder", "prior")]
    before = [path.stat().st_mtime_ns for path in taken]
    for verb in (*verbs, "reconstruct"):
        words = [word for part, by_verb in fetched.items() if part in ("", *verbs) for word in by_verb.get(verb, [])]
        assert main([verb, "--exp", exp, *STAGES.get(verb, []), *words]) == 0, verb
    assert [path.stat().st_mtime_ns for path in taken] == before  # they were up to date
    assert steps == ["EulerAncestralDiscreteScheduler"] * 2 * PATHWAYS[exp]  # decoded and ceiling
    out, manifest = own / "reconstruct", read_manifest(own / "reconstruct")
    assert [name in manifest.inputs for name in ("low_level", "projector")] == [starts, reads]
    assert pixels(out / "pictures").shape == pixels(out / "pictures_ceiling").shape == (3, 16, 16, 3)
    assert ("pred_latents" in load_embeds(out / "embeds" / "test.safetensors")) == starts
    assert (out / "captions.json").exists() == ("test/caption_top1_3way" in manifest.metrics) == reads
    if starts:
        assert read_manifest(own / "low_level").interface["shape"] == [4, 4, 4]
    if reads:
        said = json.loads((out / "captions.json").read_text())
        assert all(row["decoded"][0] for row in said.values())
        projector = projector_dir(Path("data") / "things_eeg2", "clip-git")
        assert read_manifest(projector).interface["captioner"]["n_tokens"] == 257


@pytest.mark.parametrize(("store", "command"), [
    ("vae-sdxl", "hf download stabilityai/sdxl-turbo vae/config.json vae/diffusion_pytorch_model.safetensors"),
    ("git-large", "hf download microsoft/git-large-coco"),
])  # fmt: skip
def test_weights_that_were_not_fetched_are_named_as_the_header_does(store, command):
    exp = f"{PLAIN}_pathways"
    (plan,) = (plan for plan in plans(config.load("extract-targets", exp).targets) if plan.name == store)
    with pytest.raises(DataError, match=command):
        build(plan)
    assert command in config.experiment_file("reconstruct", exp).read_text(encoding="utf-8")
