"""Any network of braindecode, an optional package, with its classifier as the map to the embedding.

braindecode (Schirrmeister et al. 2017, https://braindecode.org) is not installed with eegrecon and imported only where
this encoder is built. It brings torchaudio, which refuses to be imported beside a torch that it was not compiled for.
"""

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eegrecon.errors import ConfigError
from eegrecon.registry import lookup

# Heads as arguments: `add_log_softmax` before braindecode 1.0, `log_softmax` in some networks of later ones.
_HEAD_OPTIONS = ("add_log_softmax", "log_softmax")


class Braindecode(nn.Module):
    """A network of braindecode without softmax: eeg (b, n_chans, n_times), subject not used -> eeg_embeds (b, dim).

    A trial of noise goes through it once when it is built, so that what does not fit is said before training.

    Args:
        n_chans: channels.
        n_times: samples of a trial; how many a network needs is its own business.
        dim: size of the target embedding; the network's `n_outputs`.
        model: a class of `braindecode.models`, such as EEGNet, Deep4Net or ATCNet.
        args: its other arguments. Networks that ask for the sampling frequency get it here, as `sfreq` in Hz.

    Raises:
        ConfigError: braindecode is missing or cannot be imported, there is no such class, its constructor refuses
            something, or its output is not one embedding a trial.
    """

    def __init__(self, n_chans: int, n_times: int, dim: int, *, model: str = "EEGNet", args: Any = None) -> None:
        super().__init__()
        args = {} if args is None else args
        if not isinstance(args, Mapping):
            raise ConfigError(f"encoder.args.args must map the arguments of {model!r} to values, got {args!r}.")
        self.model, self.dim = str(model), dim
        build = _lookup(self.model)
        facts = _facts(build, n_chans, n_times, dim)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # how it is written is not our user's business
                self.network = build(**facts, **args)
                out = _probe(self.network, n_chans, n_times)
        except Exception as error:  # somebody else's code: anything may come
            raise ConfigError(
                f"The network {model!r} of braindecode refuses {n_chans} channels, {n_times} samples and {dim} outputs "
                f"with args {dict(args)} ({_reason(error)}): change encoder.args.args (sfreq, in Hz, where it asks "
                "for that) or data.window."
            ) from error
        if _is_normalised(self._check(out, 2)):
            raise ConfigError(
                f"The network {model!r} of braindecode ends in a softmax that cannot be switched off: choose another "
                "encoder.args.model."
            )

    def forward(self, eeg: Float[Tensor, "b n_chans n_times"], subject: Int[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        """Embeddings (b, dim), not L2-normalised."""
        return self._check(self.network(eeg), len(eeg))

    def _check(self, out: Any, b: int) -> Tensor:
        if not isinstance(out, Tensor):
            found = f"a {type(out).__name__}"
        else:
            while out.ndim > 2 and out.shape[-1] == 1:
                out = out.squeeze(-1)
            if out.shape == (b, self.dim):
                return out
            found = f"{tuple(out.shape)}"
        raise ConfigError(
            f"The network {self.model!r} of braindecode gives {found} for {b} trials, expected one embedding a trial, "
            f"({b}, {self.dim}): set its output under encoder.args.args or choose another encoder.args.model."
        )


def import_models() -> ModuleType:
    """The module `braindecode.models`.

    Raises:
        ConfigError: braindecode is not installed, or its import fails.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pandas and mne
            return importlib.import_module("braindecode.models")
    except Exception as error:  # a torchaudio that does not fit raises RuntimeError, OSError or ImportError
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name is not None else ""
        if missing.partition(".")[0] == "braindecode":
            raise ConfigError(
                "Encoder braindecode needs the package braindecode, which is not installed: run `pip install "
                "braindecode` in this environment, or choose another encoder."
            ) from error
        raise ConfigError(
            f"Encoder braindecode cannot import the package braindecode ({type(error).__name__}: {_reason(error)}): "
            f"install what it asks for, such as the torchaudio made for torch {torch.__version__}, or choose another "
            "encoder."
        ) from error


def _reason(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _lookup(model: str) -> Callable[..., nn.Module]:
    items = vars(import_models()).items()
    names = sorted(name for name, item in items if inspect.isclass(item) and issubclass(item, nn.Module))
    try:
        return lookup({name: f"braindecode.models:{name}" for name in names}, model)
    except ConfigError as error:
        raise ConfigError(f"encoder.args.model must be a network of braindecode. {error}") from error


def _facts(build: Callable[..., Any], n_chans: int, n_times: int, dim: int) -> dict[str, Any]:
    """What the data say and the head that is switched off, as far as a network takes them."""
    parameters = inspect.signature(build).parameters
    free = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values())
    facts = {"n_chans": n_chans, "n_times": n_times, "n_outputs": dim}
    # TCN takes trials of any length and is not told theirs.
    facts = {name: value for name, value in facts.items() if free or name in parameters}
    return facts | {name: False for name in _HEAD_OPTIONS if name in parameters}


def _probe(network: nn.Module, n_chans: int, n_times: int) -> Any:
    """What the network gives for two trials of noise, after every softmax that was its last step became nothing."""
    ends: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, end, name=name: ends.update({name: end}))
        for name, module in network.named_modules()
        if isinstance(module, nn.Softmax | nn.LogSoftmax)
    ]
    eeg = torch.randn(2, n_chans, n_times, generator=torch.Generator().manual_seed(0))
    training = network.training
    with torch.no_grad():
        out = network.eval()(eeg)
        for hook in hooks:
            hook.remove()
        # The last step: its memory is that of the output, whatever was squeezed or reshaped in between. Attention
        # weights inside a network are not.
        heads = [name for name, end in ends.items() if isinstance(out, Tensor) and _same_memory(end, out)]
        for name in heads:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, nn.Identity())
        out = network(eeg) if heads else out
    network.train(training)
    return out


def _same_memory(first: Tensor, second: Tensor) -> bool:
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def _is_normalised(out: Tensor) -> bool:
    """Whether rows are (logarithms of) probabilities, which no linear output is by chance."""
    if out.shape[1] < 2:
        return False
    return any(bool((p >= 0).all() and ((p.sum(1) - 1).abs() < 1e-4).all()) for p in (out, out.exp()))
