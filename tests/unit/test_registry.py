import importlib.util

import pytest

from eegrecon import config
from eegrecon.config import Choice
from eegrecon.errors import ConfigError
from eegrecon.registry import check_args, lookup, resolve

REGISTRY = {"path": "pathlib:PurePosixPath", "fraction": "fractions:Fraction", "net": "tests_registry_stub:Net"}


class Net:
    def __init__(self, n_chans: int, dim: int, depth: int = 2, *, width: int) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, but it is {depth}")
        self.values = (n_chans, dim, depth, width)


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    import sys
    import types

    module = types.ModuleType("tests_registry_stub")
    module.Net = Net
    monkeypatch.setitem(sys.modules, "tests_registry_stub", module)


def test_resolve_builds_with_facts_and_args():
    assert resolve(REGISTRY, Choice("net", {"width": 5}), n_chans=63, dim=4).values == (63, 4, 2, 5)
    assert resolve(REGISTRY, Choice("fraction", {"numerator": 1, "denominator": 2})) * 2 == 1


def test_unknown_name_lists_the_choices():
    with pytest.raises(ConfigError, match=r"'nett' is not known: did you mean 'net'\? the choices are: path, frac"):
        lookup(REGISTRY, "nett")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (
            {"width": 5, "dept": 1},
            r"'dept' is not an argument \(did you mean 'depth'\? the choices are: depth, width\)",
        ),
        ({"width": 5, "dim": 1}, "'dim' is a fact of the data and cannot be set"),
        ({}, "'width' has no value"),
        ({"dept": 1, "dim": 2}, "'dept' is not an argument.*'dim' is a fact.*'width' has no value"),
        ({"width": 5, "depth": 0}, "are refused: depth must be at least 1"),
    ],
)
def test_wrong_args_are_one_sentence(args, expected):
    with pytest.raises(ConfigError, match=expected):
        resolve(REGISTRY, Choice("net", args), n_chans=63, dim=4)


def test_free_keywords_are_accepted():
    check_args(lambda params, **rest: None, Choice("x", {"anything": 1}), {"params": []})


@pytest.mark.parametrize("name", ["ENCODERS", "LATENT_HEADS", "PRIORS", "GENERATORS", "OPTIMS", "TARGET_MODELS"])
def test_every_registered_name_can_be_imported(name):
    for key, target in getattr(config, name).items():
        assert importlib.util.find_spec(target.partition(":")[0]) is not None, key
        assert callable(lookup(getattr(config, name), key)), key
