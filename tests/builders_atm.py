"""Small official ATM checkpoints and finished directories of our own networks, for import, export and embed."""

from dataclasses import replace

import torch
from safetensors.torch import save_file

from eegrecon.artifacts import new_manifest, open_stage, write_manifest
from eegrecon.cli import main
from eegrecon.config import ENCODERS, PRIORS, Choice, config_hash, load, to_yaml
from eegrecon.diffusion.objectives import build_scheduler
from eegrecon.diffusion.scaled import ScaledPrior
from eegrecon.models.encoders.wrapper import AlignedEncoder
from eegrecon.registry import resolve
from tests.official_april import OfficialApril
from tests.official_atm import OfficialATMS
from tests.official_prior import OfficialPrior

CHANS, TIMES, DIM = 5, 90, 8
HIDDEN = (16, 12, 6)


def shaken(network):
    """Batch statistics that are not 0 and 1, as after training."""
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
            elif name.endswith("num_batches_tracked"):
                buffer.fill_(41)
    return network.eval()


def official_encoder(**sizes):
    torch.manual_seed(0)
    return shaken(OfficialATMS(**{"n_chans": CHANS, "n_times": TIMES, "dim": DIM, **sizes}))


def official_april(**sizes):
    torch.manual_seed(2)
    return shaken(OfficialApril(**{"n_chans": CHANS, "n_times": TIMES, "dim": DIM, "hidden": 12, **sizes}))


def official_prior():
    torch.manual_seed(1)
    return OfficialPrior(DIM, DIM, HIDDEN, 10).eval()


def saved(path, state):
    torch.save(state, path)
    return str(path)


def finish(directory, stage, cfg, network):
    open_stage(directory, stage, config_hash(cfg), to_yaml(cfg), {})
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, directory / "model.safetensors"
    )
    data = {"channels": [f"C{index}" for index in range(CHANS)], "n_times": TIMES}
    manifest = new_manifest(stage, command="x", config_hash=config_hash(cfg), seed=0, data=data, interface={"dim": DIM})
    manifest.outputs = {"model.safetensors": {}}
    write_manifest(directory, manifest)
    return network.eval()


def our_encoder(directory, *, known=None, moments=False, name="atm_s", **args):
    official = {"position": "sinusoidal", "subject_token": "per_subject", "token_slice": "official"}
    choice = Choice(name, {**official, **args} if name == "atm_s" else args)
    cfg = replace(load("train-encoder", "pocket"), encoder=choice)
    torch.manual_seed(0)
    encoder = resolve(ENCODERS, choice, n_chans=CHANS, n_times=TIMES, dim=DIM)
    mean, std = torch.zeros(CHANS), torch.ones(CHANS)
    if moments:
        mean, std = torch.arange(5.0), torch.arange(5.0) + 1
    network = AlignedEncoder(encoder, None, mean, std, known_subjects=known)
    return finish(directory, "train-encoder", cfg, shaken(network))


def our_prior(directory, prediction_type="epsilon", target_scale="none", cond_scale="std"):
    choice = Choice("unet", {"hidden": list(HIDDEN), "time_embed_dim": 10})
    cfg = load("train-prior", "pocket")
    diffusion = replace(
        cfg.diffusion, prediction_type=prediction_type, target_scale=target_scale, cond_scale=cond_scale
    )
    cfg = replace(cfg, prior=choice, diffusion=diffusion)
    torch.manual_seed(0)
    network = ScaledPrior(resolve(PRIORS, choice, dim=DIM, cond_dim=DIM), build_scheduler(), dim=DIM, cond_dim=DIM)
    network.fit(torch.randn(30, DIM) + 1, 3 * torch.randn(30, DIM) - 2, target_scale, cond_scale)
    return finish(directory, "train-prior", cfg, network)


def same(one, two):
    assert list(one) == list(two)
    for name, value in one.items():
        assert value.dtype == two[name].dtype, name
        assert torch.equal(value, two[name]), name


def sentence(capsys, *words):
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]
