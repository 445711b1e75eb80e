"""The adapter of braindecode: on fakes of its module what may differ, and on the real one where it can be imported."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from eegrecon.config import ENCODERS, Choice
from eegrecon.errors import ConfigError
from eegrecon.models.encoders.braindecode import Braindecode, import_models
from eegrecon.registry import lookup, resolve
from tests.optional import skip_without_braindecode

SMALL = {"n_chans": 5, "n_times": 40, "dim": 6}


@pytest.fixture
def no_braindecode():
    """The modules as they were before, whatever the test imports."""

    def ours():
        return [name for name in sys.modules if name.partition(".")[0] == "braindecode"]

    before = {name: sys.modules.pop(name) for name in ours()}
    yield
    for name in ours():
        del sys.modules[name]
    sys.modules.update(before)


class Mixin:
    """No network, as braindecode's EEGModuleMixin."""


class Plain(nn.Module):
    """A network of today's braindecode."""

    def __init__(self, n_chans=None, n_outputs=None, n_times=None, *, width=3, sfreq=None):
        super().__init__()
        if width < 1:
            raise AssertionError("width is below 1\nand a second line")
        self.mix = nn.Conv1d(n_chans, width, 1)
        self.final = nn.Linear(width * n_times, n_outputs)

    def forward(self, x):
        return self.final(self.mix(x).flatten(1))


class Old(Plain):
    """One of before 1.0: a log-softmax unless told otherwise, and two dimensions too many."""

    def __init__(self, n_chans, n_outputs, n_times, add_log_softmax=True):
        super().__init__(n_chans, n_outputs, n_times)
        self.add_log_softmax = add_log_softmax

    def forward(self, x):
        x = super().forward(x)
        return (x.log_softmax(1) if self.add_log_softmax else x)[:, :, None, None]


class Head(Plain):
    """One that has a softmax as its last module, and one inside, as attention has."""

    def __init__(self, *args, last=nn.LogSoftmax, **kwargs):
        super().__init__(*args, **kwargs)
        self.inside = nn.Softmax(dim=1)
        self.last = nn.Sequential(last(dim=1))

    def forward(self, x):
        return self.last(super().forward(self.inside(x))[:, :, None])


class Stuck(Plain):
    def forward(self, x):
        return super().forward(x).log_softmax(1)


class Dense(nn.Module):
    """Not told the length, and one output a sample."""

    def __init__(self, n_chans=None, n_outputs=None):
        super().__init__()
        self.mix = nn.Conv1d(n_chans, n_outputs, 1)

    def forward(self, x):
        return self.mix(x)


class Pair(Plain):
    def forward(self, x):
        return super().forward(x), x


class Warns(Plain):
    def __init__(self, *args, **kwargs):
        import warnings

        warnings.warn("an old name", DeprecationWarning, stacklevel=1)
        super().__init__(*args, **kwargs)


@pytest.fixture
def fake(no_braindecode):
    module = ModuleType("braindecode.models")
    for item in (Mixin, Plain, Old, Head, Stuck, Dense, Pair, Warns):
        setattr(module, item.__name__, item)
    sys.modules["braindecode"] = ModuleType("braindecode")
    sys.modules["braindecode.models"] = module


def build(model, args=None, **facts):
    return Braindecode(**(SMALL | facts), model=model, args=args)


def batch(n=3):
    return torch.randn(n, 5, 40), torch.ones(n, dtype=torch.long)


@pytest.mark.usefixtures("fake")
def test_its_outputs_are_the_embedding_and_its_args_are_passed_on():
    torch.manual_seed(0)
    encoder = resolve(ENCODERS, Choice("braindecode", {"model": "Plain", "args": {"width": 4}}), **SMALL)
    assert encoder.training
    eeg, subject = batch()
    torch.testing.assert_close(encoder(eeg, subject), encoder.network(eeg))
    assert encoder(eeg, subject).shape == (3, 6)
    assert encoder.network.mix.out_channels == 4


@pytest.mark.usefixtures("fake")
def test_a_head_that_is_an_argument_is_off_and_trailing_dimensions_go():
    encoder = build("Old")
    assert not encoder.network.add_log_softmax
    eeg, subject = batch(1)  # a single trial keeps its dimension
    torch.testing.assert_close(encoder(eeg, subject), Plain.forward(encoder.network, eeg))
    with pytest.raises(ConfigError, match="multiple values for keyword argument 'add_log_softmax'"):
        build("Old", {"add_log_softmax": True})


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("last", [nn.LogSoftmax, nn.Softmax])
def test_a_head_that_is_a_module_is_taken_away_and_one_inside_stays(last):
    encoder = build("Head", {"last": last})
    eeg, subject = batch()
    expected = Plain.forward(encoder.network, eeg.softmax(1))
    torch.testing.assert_close(encoder(eeg, subject), expected)
    assert isinstance(encoder.network.inside, nn.Softmax)
    assert isinstance(encoder.network.last[0], nn.Identity)
    assert not encoder.network.last[0]._forward_hooks
    assert not encoder.network.inside._forward_hooks


@pytest.mark.usefixtures("fake")
def test_its_own_warnings_stay_its_own():
    assert build("Warns")(*batch()).shape == (3, 6)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("model", "args", "words"),
    [
        (
            "plain",
            None,
            r"of braindecode. The name 'plain' is not known: did you mean 'Plain'\? .*: Dense, Head, .*Warns\.$",
        ),
        ("Mixin", None, "The name 'Mixin' is not known: .*the choices are: Dense"),
        ("Plain", {"widht": 3}, r"with args \{'widht': 3\} \(.*got an unexpected keyword argument 'widht'"),
        ("Plain", {"n_times": 3}, "got multiple values for keyword argument 'n_times'"),
        ("Plain", [3], r"encoder.args.args must map the arguments of 'Plain' to values, got \[3\]"),
        (
            "Plain",
            {"width": 0},
            r"The network 'Plain' of braindecode refuses 5 channels, 40 samples and 6 outputs with args "
            r"\{'width': 0\} \(width is below 1\): change encoder.args.args \(sfreq, in Hz, .*\) or data.window\.$",
        ),
        ("Stuck", None, "ends in a softmax that cannot be switched off: choose another"),
        ("Dense", None, r"gives \(2, 6, 40\) for 2 trials, expected one embedding a trial, \(2, 6\): "),
        ("Pair", None, "gives a tuple for 2 trials"),
    ],
)
def test_what_does_not_fit_is_one_sentence(model, args, words):
    with pytest.raises(ConfigError, match=words) as error:
        build(model, args)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("no_braindecode")
def test_a_missing_package_is_named_with_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "braindecode", None)
    with pytest.raises(ConfigError, match="package braindecode, which is not installed: run `pip install braindecode`"):
        build("EEGNet")


@pytest.mark.usefixtures("no_braindecode")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "raise OSError('libtorchaudio.so: undefined symbol\\nmore')",
            r"\(OSError: libtorchaudio.so: undefined symbol\)",
        ),
        (
            "raise RuntimeError('compiled with different CUDA versions.')",
            r"\(RuntimeError: compiled with different CUDA",
        ),
        ("import a_package_that_is_nowhere", r"\(ModuleNotFoundError: No module named 'a_package_that_is_nowhere'\)"),
    ],
)
def test_an_import_that_fails_gives_its_reason(line, words, tmp_path, monkeypatch):
    (tmp_path / "braindecode").mkdir()
    (tmp_path / "braindecode" / "__init__.py").touch()
    (tmp_path / "braindecode" / "models.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):  # the second attempt says the same
        with pytest.raises(ConfigError, match=f"cannot import the package braindecode {words}") as error:
            build("EEGNet")
        assert "the torchaudio made for torch" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.usefixtures("no_braindecode")
def test_nothing_is_imported_before_an_encoder_is_built(monkeypatch):
    monkeypatch.delitem(sys.modules, "eegrecon.models.encoders.braindecode")
    lookup(ENCODERS, "braindecode")
    assert not [name for name in sys.modules if name.partition(".")[0] == "braindecode"]


@pytest.mark.parametrize(
    ("model", "args"),
    [
        ("EEGNet", {"drop_prob": 0.1}),
        ("EEGNeX", {}),
        ("Deep4Net", {}),
        ("ATCNet", {"sfreq": 250}),
        ("EEGInceptionERP", {}),
        ("TIDNet", {}),
    ],
)
def test_real_networks_train(model, args):
    skip_without_braindecode()
    torch.manual_seed(0)
    encoder = Braindecode(8, 250, 12, model=model, args=args)
    out = encoder(torch.randn(4, 8, 250), torch.ones(4, dtype=torch.long))
    out.square().sum().backward()
    assert out.shape == (4, 12)
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_real_networks_give_no_probabilities():
    skip_without_braindecode()
    out = Braindecode(8, 250, 12, model="Deep4Net").eval()(torch.randn(2, 8, 250), torch.ones(2, dtype=torch.long))
    assert not torch.allclose(out.exp().sum(1), torch.ones(2), atol=1e-3)


def test_a_real_name_that_does_not_exist_lists_the_real_ones():
    skip_without_braindecode()
    assert hasattr(import_models(), "Deep4Net")
    with pytest.raises(ConfigError, match="did you mean 'Deep4Net'"):
        build("Deep4net")
