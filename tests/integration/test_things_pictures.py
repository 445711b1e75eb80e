"""The THINGS-EEG2 experiments that make pictures, as they ship, on look-alikes and tiny checkpoints as published."""

import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image

from eegrecon import config
from eegrecon.artifacts import read_manifest
from eegrecon.cli import main
from eegrecon.metrics.features import picture_tensor
from eegrecon.models.generators import sdxl_files
from eegrecon.stages import evaluate, extract_targets
from tests.builders_sdxl_published import adapter_of, tiny_published
from tests.integration.test_recipes import StandIn
from tests.integration.test_things_experiments import SIZE

pytestmark = [
    pytest.mark.usefixtures("clean_rank"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]
VERBS = ("train-prior", "reconstruct")
EXPERIMENTS = {"things_eeg2/atm_s": "turbo", "things_eeg2/atm_s_sdxl": "base"}
SMALL = ["data.split.val_concepts=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
TRAINED = [*SMALL, "loader.batch_size=8"]


class RealNames(StandIn):
    """Noise under the real model's name: adapters ask which space they are given."""

    def header(self):
        return super().header() | {"model": self._model["model"], "weights_tag": self._model["pretrained"]}


@pytest.mark.parametrize("exp", EXPERIMENTS)
@pytest.mark.parametrize("verb", VERBS)
def test_what_a_header_offers_under_args_is_understood(exp, verb):
    path = config.experiment_file(verb, exp)
    header = " ".join(line[1:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    for offer in re.findall(r'ARGS="([^"]+)"', header):
        keys, values = zip(*(word.split("=", 1) for word in offer.split()), strict=True)
        for choice in itertools.product(*(value.split("|") for value in values)):
            config.load(verb, exp, None, [f"{key}={value}" for key, value in zip(keys, choice, strict=True)])


def test_recordings_to_pictures_by_turbo_and_base(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("load_judge", "load_target_space"):  # real networks, 4 GB
        monkeypatch.setattr(evaluate, name, lambda what: lambda pictures: picture_tensor(pictures, 4).flatten(1))
    home, exp = tmp_path / "data" / "things_eeg2", ["--exp", "things_eeg2/atm_s"]
    assert main(["look-alike", "--layout", "preprocessed", "--out", str(home), "--subject", "8", *SIZE]) == 0
    assert main(["prepare-data", *exp]) == 0
    monkeypatch.setattr(extract_targets, "build", RealNames)
    assert main(["extract-targets", *exp]) == 0
    assert main(["train-encoder", *exp, *TRAINED, "trainer.max_epochs=1"]) == 0
    assert main(["train-prior", *exp, *TRAINED, "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"]) == 0
    run = tmp_path / "runs" / "things_eeg2" / "atm_s" / "sub-08" / "seed-0"
    assert read_manifest(run / "prior").interface["dim"] == 1024
    # what is not on this machine is one sentence with the command
    capsys.readouterr()
    small = [*SMALL, "sample.num_inference_steps=2"]
    assert main(["reconstruct", *exp, *small]) == 2
    assert "hf download stabilityai/sdxl-turbo" in " ".join(capsys.readouterr().err.split())

    calls = []
    for name, kind in EXPERIMENTS.items():
        folder = tiny_published(tmp_path / "weights" / kind, kind)
        generator = [f"generator.args.base={folder}", f"generator.args.ip_adapter={adapter_of(folder)}"]
        generator += ["generator.args.size=16", "generator.args.variant=''"]
        load = sdxl_files.load_pipeline

        def watched(*args, load=load):
            pipe = load(*args)
            pipe.unet.register_forward_hook(lambda *_: calls.append(pipe.scheduler.__class__.__name__))
            return pipe

        monkeypatch.setattr(sdxl_files, "load_pipeline", watched)
        more = ["--run", str(run), "--overwrite", *small, *generator]
        assert main(["reconstruct", "--exp", name, *more]) == 0
        monkeypatch.setattr(sdxl_files, "load_pipeline", load)
        out = run / "reconstruct"
        assert [len(list((out / part).iterdir())) for part in ("pictures", "pictures_ceiling")] == [3, 3]
        assert np.asarray(Image.open(next((out / "pictures").iterdir()))).shape == (16, 16, 3)
        metrics = json.loads((out / "metrics.json").read_text())
        assert "test/retrieval_top1_3way" in metrics["metrics"]
        assert "test/two_way_clip_vit_h_14" in metrics["metrics"]
        assert metrics["protocol"]["generator"]["args"]["torch_dtype"] == "float16"
    turbo, base = "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"
    # two loaders (decoded and ceiling) of one batch: four steps, and thirty
    assert calls == [turbo] * 8 + [base] * 60
