"""What every encoder of the registry must do; a new one gets these checks by its line in `ENCODERS`."""

import inspect
from contextlib import suppress

import pytest
import torch

from eegrecon.config import ENCODERS, Choice
from eegrecon.errors import ConfigError
from eegrecon.registry import lookup, resolve
from tests.optional import skip_without_braindecode

SMALL = {"n_chans": 7, "n_times": 110, "dim": 12}
REAL = {"n_chans": 63, "n_times": 250, "dim": 1024}
# Other forms of a registered encoder that have code of their own.
VARIANTS = {
    "atm_s-time": Choice("atm_s", {"attention_axis": "time", "subject_token": "none", "subject_linear": True}),
    "atm_s-main": Choice(
        "atm_s", {"subject_token": "per_subject", "position": "sinusoidal", "token_slice": "official", "n_subjects": 3}
    ),
    "nice-sa": Choice("nice", {"spatial": "sa"}),
    "nice-ga": Choice("nice", {"spatial": "ga"}),
    "ridge-bins": Choice("ridge", {"samples_per_bin": 4}),
    "mlp-deep": Choice("mlp", {"hidden": [16, 8]}),
}
CHOICES = {name: Choice(name) for name in ENCODERS} | VARIANTS


@pytest.fixture(params=CHOICES)
def choice(request):
    if request.param == "braindecode":
        skip_without_braindecode()
    torch.manual_seed(0)
    return CHOICES[request.param]


def build(choice, **facts):
    return resolve(ENCODERS, choice, **(facts or SMALL))


def batch(n=6, **facts):
    facts = facts or SMALL
    return torch.randn(n, facts["n_chans"], facts["n_times"]), torch.arange(n) % 3 + 1


def test_gives_one_finite_embedding_a_trial_at_real_size(choice):
    network = build(choice, **REAL)
    eeg, subject = batch(3, **REAL)
    with torch.inference_mode():
        out = network.eval()(eeg, subject)
    assert out.shape == (3, 1024)
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()


def test_every_parameter_learns(choice):
    network = build(choice)
    eeg, _ = batch(8)
    # Ids 0 to 10, so that tables of subjects are all used.
    subject = torch.arange(8) % 4
    network(eeg, subject).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_every_channel_and_nearly_every_sample_matters(choice):
    network = build(choice).eval()
    eeg, subject = batch(4)
    eeg.requires_grad_()
    network(eeg, subject).sin().sum().backward()  # not a sum of outputs, which a LayerNorm makes constant
    reach = eeg.grad.abs().sum(0)
    assert (reach.sum(1) > 0).all()
    # Poolings drop a remainder at the end.
    assert (reach.sum(0) > 0).float().mean() > 0.8


def test_a_trial_does_not_depend_on_its_batch_when_evaluated(choice):
    network = build(choice).eval()
    eeg, subject = batch(5)
    with torch.inference_mode():
        together = network(eeg, subject)
        alone = torch.cat([network(eeg[i : i + 1], subject[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_network_and_training_step(choice):
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        network = build(choice).train()
        results.append(network(*batch()))
    torch.testing.assert_close(*results, atol=0, rtol=0)


def test_its_state_is_all_there_is(choice):
    first, second = build(choice), build(choice)
    eeg, subject = batch()
    first(eeg, subject)  # moves running statistics, if there are any
    second.load_state_dict(first.state_dict(), strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(first.eval()(eeg, subject), second.eval()(eeg, subject), atol=0, rtol=0)


def test_unknown_subjects_are_one_stranger(choice):
    network = build(choice).eval()
    eeg, _ = batch(1)
    with torch.inference_mode():
        out = [network(eeg, torch.tensor([subject])) for subject in (0, 999)]
    torch.testing.assert_close(*out, atol=0, rtol=0)


def test_learns_in_bfloat16_under_autocast(choice):
    network = build(choice)
    eeg, subject = batch(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(eeg, subject)
    out.float().square().sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_overfits_a_few_trials(choice):
    if choice.name == "ridge":
        pytest.skip("ridge is fitted in closed form")
    network = build(choice)
    for module in network.modules():  # dropout hides whether anything is learnt
        if isinstance(module, torch.nn.Dropout | torch.nn.MultiheadAttention):
            setattr(module, "p" if isinstance(module, torch.nn.Dropout) else "dropout", 0.0)
    eeg, subject = batch(6)
    target = torch.randn(6, 12)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = (network(eeg, subject) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_signature_holds_facts_of_the_data_first(choice):
    parameters = list(inspect.signature(lookup(ENCODERS, choice.name)).parameters.values())
    assert [item.name for item in parameters[:3]] == ["n_chans", "n_times", "dim"]
    assert all(item.default is inspect.Parameter.empty for item in parameters[:3])
    assert all(item.default is not inspect.Parameter.empty for item in parameters[3:])


def test_short_trials_are_refused_in_a_sentence_or_work(choice):
    facts = {"n_chans": 7, "n_times": 20, "dim": 12}
    network = None
    with suppress(ConfigError):
        network = build(choice, **facts)
    if network is not None:
        assert network.eval()(*batch(2, **facts)).shape == (2, 12)
        return
    # How many samples a network of braindecode needs is known to braindecode alone.
    words = f"{choice.name} (needs trials of at least|refuses) .* samples .* data.window"
    with pytest.raises(ConfigError, match=words):
        build(choice, **facts)
