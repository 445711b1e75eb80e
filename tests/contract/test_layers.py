"""Imports go down only, heavy libraries stay inside functions, and unsafe loading does not exist (DESIGN section 2)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "eegrecon"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "experiments" not in path.parts)

# Higher may import lower. Packages of one number do not import each other.
LAYERS = {
    "__main__": 6, "cli": 5, "stages": 4, "pipeline": 3.8, "pipeline_checks": 3.6, "pipeline_files": 3.6,
    "pipeline_noise": 3.6,
    "pathways": 3.2,
    "modules": 3, "callbacks": 3, "datamodule": 3, "loading": 3, "analysis": 3, "report": 3,
    "data": 2, "pocket": 2, "models": 2, "diffusion": 2, "losses": 2, "metrics": 2,
    "registry": 1, "artifacts": 1, "manifest": 0.8, "config": 0.6, "config_data": 0.5, "config_sources": 0.4,
    "config_schema": 0.2, "config_low_level": 0.1, "config_objective": 0.1, "config_pathways": 0.1,
    "config_prior": 0.1, "config_targets": 0.1, "config_training": 0.1, "config_choice": 0.05,
    "errors": 0, "__init__": 0,
}  # fmt: skip
# Only lazy attributes of the package point upwards.
ALLOWED = {("__init__", "loading"), ("__init__", "pipeline")}
LIGHT = ("__init__", "__main__", "cli", "config", "config_choice", "config_data", "config_low_level",
         "config_objective", "config_pathways", "config_prior",
         "config_schema", "config_sources", "config_targets", "config_training",
         "artifacts", "manifest", "errors", "registry")  # fmt: skip
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
LAZY = {"diffusers", "open_clip", "torchvision", "mne", "timm", "transformers", "matplotlib"}


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports(tree: ast.AST, *, top_only: bool = False) -> Iterator[str]:
    """Imported module names; with `top_only` those that run at import (not in functions or TYPE_CHECKING)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif top_only and (isinstance(node, FUNCTIONS) or is_type_checking(node)):
            continue
        else:
            yield from imports(node, top_only=top_only)


def test_the_scan_sees_the_package():
    assert len(FILES) > 20
    assert {part(path) for path in FILES} <= set(LAYERS), "give the new part of the package a layer"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_go_down_only(path):
    mine = part(path)
    for module in imports(ast.parse(path.read_text())):
        names = module.split(".")
        if names[0] != "eegrecon" or names[1] == mine or names[1] == "__version__":
            continue
        assert names[1] in LAYERS, f"{name(path)} imports {module}"
        assert LAYERS[names[1]] < LAYERS[mine] or (mine, names[1]) in ALLOWED, f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_heavy_libraries_are_imported_inside_functions(path):
    heavy = LAZY | ({"torch", "numpy", "lightning"} if part(path) in LIGHT else set())
    found = {module.split(".")[0] for module in imports(ast.parse(path.read_text()), top_only=True)}
    assert not found & heavy


@pytest.mark.parametrize("path", FILES, ids=name)
def test_omegaconf_lives_in_config_and_lightning_in_four_places(path):
    found = {module.split(".")[0] for module in imports(ast.parse(path.read_text()))}
    if not part(path).startswith("config"):
        assert not found & {"omegaconf", "yaml"}
    if part(path) not in {"modules", "callbacks", "datamodule", "stages"}:
        assert not found & {"lightning", "pytorch_lightning"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_only_stages_read_configs(path):
    if part(path) in {
        "stages",
        "cli",
        "pipeline",
        "pipeline_files",
        "pathways",
        "loading",
        "registry",
        "artifacts",
    } or part(path).startswith("config"):
        return
    # Below the stages only the registries of names may come from config.
    names = {module for module in imports(ast.parse(path.read_text())) if module.startswith("eegrecon.config")}
    assert all(module.rpartition(".")[2].isupper() for module in names), names


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_unpickles(path):
    tree = ast.parse(path.read_text())
    for function, call in calls(tree):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        pickle = given.get("allow_pickle")
        assert pickle is None or (isinstance(pickle, ast.Constant) and pickle.value is False), ast.unparse(call)
        assert function not in {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"}, ast.unparse(call)
        if function == "torch.load":
            safe = given.get("weights_only")
            assert isinstance(safe, ast.Constant), ast.unparse(call)
            assert safe.value is True, ast.unparse(call)
    assert not {module.split(".")[0] for module in imports(tree)} & {"pickle", "joblib", "dill", "cloudpickle"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in {"utils", "helpers", "common", "misc"}


def test_importing_the_light_modules_imports_nothing_heavy():
    modules = ", ".join(f"eegrecon.{module}" for module in LIGHT if not module.startswith("__"))
    script = (
        f"import sys, eegrecon, {modules}\n"
        "sys.exit(str([name for name in ('torch', 'numpy', 'lightning') if name in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stderr.strip() == ""


def test_what_the_package_exports_is_lazy():
    import eegrecon

    assert eegrecon.load.__module__ == "eegrecon.loading"
    assert eegrecon.EEGToImagePipeline.__module__ == "eegrecon.pipeline"
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        eegrecon.lod  # noqa: B018 (the access is the test)
