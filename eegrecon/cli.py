"""The command line: `eegrecon VERB (--exp NAME | --config FILE) [options] [key=value …]`.

A verb becomes a config, a directory and one call of `eegrecon.stages.<verb>.run`; the stage itself decides whether
there is anything to do. Stages are imported after the config is checked, so `--help` and config errors answer at once.
"""

import argparse
import importlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from eegrecon import __version__
from eegrecon.artifacts import is_rank_zero
from eegrecon.config import STAGES, keys_of, load
from eegrecon.errors import ConfigError, EegreconError

SUMMARIES = {
    "prepare-data": "make the pictures and the trial stores of a set",
    "extract-targets": "make the target stores (image embeddings, VAE latents) of a set",
    "train-projector": "captions: train the map from image embeddings to a captioner's visual tokens",
    "train-encoder": "stage 1: train the EEG encoder",
    "train-prior": "stage 2: train the diffusion prior",
    "train-low-level": "the low-level pathway: train a network from EEG to VAE latents",
    "reconstruct": "stage 3: make the pictures and score them",
    "evaluate": "score an encoder on the test trials, and finished reconstructions again",
    "pocket-weights": "retrain the small checkpoints that the package ships",
}
# Verbs without a config. The module `eegrecon.stages.<verb>` has `arguments(parser)` and `run(options) -> exit code`
# and imports heavy libraries inside functions, so that its own --help answers at once too.
TOOLS = {
    "download": "fetch and verify what is published, or say how to do so by hand",
    "inspect": "say what a file or folder is, what is wrong with it, and draw its mean response",
    "sweep": "subjects x seeds x experiments with one command, and one table",
    "compare": "runs side by side, ranked if they were measured alike",
    "decode": "the pictures that a finished run makes of the trials in a file",
    "embed": "an encoder's embeddings of the trials in a plain .npy file",
    "import-atm": "an official ATM checkpoint as a run's encoder or prior",
    "export-atm": "an ATM-S encoder or prior as an official checkpoint",
    "look-alike": "write the pocket set in the layouts of the published files",
}
# `evaluate` with this option scores plain files: a tool (`stages/score_embeds.py`) under the verb's name.
PLAIN_FILES = "--eeg-embeds"
# What each verb reads, in the order in which it has to be made.
UPSTREAM = {
    "prepare-data": (),
    "extract-targets": ("prepare-data",),
    "train-projector": ("prepare-data", "extract-targets"),
    "train-encoder": ("prepare-data", "extract-targets"),
    "train-prior": ("prepare-data", "extract-targets", "train-encoder"),
    "train-low-level": ("prepare-data", "extract-targets"),
    "reconstruct": ("prepare-data", "extract-targets", "train-encoder", "train-prior"),
    "evaluate": ("prepare-data", "extract-targets", "train-encoder", "train-prior", "reconstruct"),
    "pocket-weights": (),
}
SUBJECT_HELP = {
    "prepare-data": "the same as data.subjects=[N]",
    "": "the subject that is tested: data.subjects=[N] within a subject, else data.test_subject=N",
}
# Blocks that several stages share: an override of one reaches the earlier stages that --upstream makes.
SHARED = ("data", "target", "trainer", "seed")
# Blocks of the data verbs alone: with --upstream their overrides go to those verbs and not to the one that is typed.
DATA_VERBS_ONLY = ("source", "targets", "hardware", "pictures", "brain")


class _Parser(argparse.ArgumentParser):
    """argparse's own errors, in the one-sentence form of all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]} (see {self.prog} --help).")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; default `sys.argv[1:]`.

    Returns:
        The exit code: 0 done or up to date, 2 with one sentence on stderr for what the user can mend, 130 interrupted.
        Any other exception is a bug and keeps its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in TOOLS:
            return _tool(arguments[0], arguments[1:], TOOLS[arguments[0]])
        if arguments[:1] == ["evaluate"] and any(word.partition("=")[0] == PLAIN_FILES for word in arguments):
            return _tool("evaluate", arguments[1:], "score embeddings in plain files, without a run", "score_embeds")
        return _run(_parse(arguments), arguments)
    except EegreconError as error:
        print(f"eegrecon: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eegrecon: interrupted; the same command continues from the last checkpoint.", file=sys.stderr)
        return 130


def run_directory(options: argparse.Namespace, config: Any) -> Path:
    """Where the stage writes: `<root>/<set>` for data verbs, else the stage's folder in the run's directory.

    A run is named after whom it was trained on: `sub-08`, `sub-01-02-03` (joint) or `all-but-08`. A joint run is tested
    on one subject after another, each in a folder of its own: `reconstruct-sub-01`.
    """
    folder = STAGES[options.verb].folder
    if folder is None:
        return Path(config.data.root) / config.data.set
    if keys_of(options.verb, "data.protocol"):
        folder += config.data.tested_suffix + ("-val" if getattr(config, "part", "test") == "val" else "")
    if options.run is not None:
        return Path(options.run) / folder
    exp = options.exp if options.exp is not None else Path(options.config).resolve().parent.name
    run = Path("runs") / exp
    if keys_of(options.verb, "data.protocol") and config.data.protocol == "leave_one_subject_out":
        run /= f"all-but-{config.data.test_subject:02d}"
    elif keys_of(options.verb, "data.subjects"):
        run /= "sub-" + "-".join(f"{subject:02d}" for subject in config.data.subjects)
    return run / f"seed-{config.seed}" / folder


def upstream_commands(options: argparse.Namespace, config: Any) -> list[list[str]]:
    """The argument lists of the earlier stages, in order; each decides for itself whether it is up to date."""
    commands = []
    for verb in _upstream(options.verb, config):
        words = [verb]
        if options.exp is not None:
            words += ["--exp", options.exp]
        else:
            words += ["--config", str(Path(options.config).parent / STAGES[verb].yaml)]
        if keys_of(verb, "data.subjects"):
            if not keys_of(verb, "data.protocol") and config.data.protocol != "within_subject":
                words.append(f"data.subjects={list(config.data.subjects)}".replace(" ", ""))  # of all, not of one
            elif options.subject is not None:
                words += ["--subject", str(options.subject)]
        in_run = STAGES[verb].folder is not None
        for name in ("seed", "run"):
            if in_run and getattr(options, name) is not None:
                words += [f"--{name}", str(getattr(options, name))]
        for override in options.overrides:
            key = override.partition("=")[0]
            shared = (key.split(".")[0] in SHARED or _goes_upstream(options, override)) and keys_of(verb, key)
            # SEED changes initialisation, order and sampling, never the data or the simulated brain.
            if shared and (in_run or key != "seed") and override not in words:
                words.append(override)
        commands.append(words)
    return commands


def _upstream(verb: str, config: Any) -> tuple[str, ...]:
    """What a verb reads under this config: `evaluate` of no pictures needs nothing after the encoder."""
    skipped = ("train-prior", "reconstruct") if verb == "evaluate" and not config.pictures else ()
    beside: list[str] = []
    if verb == "reconstruct":
        beside += ["train-low-level"] * (config.pathways.low_level == "low_level")
        beside += ["train-projector"] * (config.pathways.semantic.source == "captions")
    return (*(earlier for earlier in UPSTREAM[verb] if earlier not in skipped), *beside)


def _run(options: argparse.Namespace, arguments: list[str]) -> int:
    config = _config(options)
    directory = run_directory(options, config)
    if getattr(options, "upstream", False) and is_rank_zero():
        commands = upstream_commands(options, config)
        for words in commands:  # every earlier stage's config is checked before the first of them runs
            _config(_parse(words))
        for words in commands:
            print(f"eegrecon: first: eegrecon {shlex.join(words)}", file=sys.stderr, flush=True)
            code = subprocess.run([sys.executable, "-m", "eegrecon", *words], check=False).returncode
            if code:
                return 130 if code == -signal.SIGINT else code
    before = _manifests(directory)
    stage = importlib.import_module(f"eegrecon.stages.{options.verb.replace('-', '_')}")
    command = shlex.join(["eegrecon", *arguments])
    stage.run(config, directory=directory, command=command, overwrite=options.overwrite)
    if is_rank_zero():
        state = "up to date" if before and before == _manifests(directory) else "finished"
        print(f"eegrecon: {options.verb}: {state}: {directory}", file=sys.stderr)
    return 0


def _tool(verb: str, arguments: list[str], summary: str, module: str | None = None) -> int:
    stage = importlib.import_module(f"eegrecon.stages.{module or verb.replace('-', '_')}")
    parser = _Parser(prog=f"eegrecon {verb}", allow_abbrev=False, description=f"{summary[:1].upper()}{summary[1:]}.")
    stage.arguments(parser)
    return int(stage.run(parser.parse_intermixed_args(arguments)))  # key=value may follow an option


def _manifests(directory: Path) -> dict[Path, int]:
    # A data verb keeps one manifest a store, two levels down; looking deeper would walk through the pictures.
    found = [path for pattern in ("manifest.json", "*/*/manifest.json") for path in directory.glob(pattern)]
    return {path: path.stat().st_mtime_ns for path in found}


def _config(options: argparse.Namespace) -> Any:
    overrides = []
    if getattr(options, "seed", None) is not None:
        overrides.append(f"seed={options.seed}")
    file = Path(options.config) if options.config is not None else None
    subject = getattr(options, "subject", None)
    own = [
        word
        for word in options.overrides
        if not (getattr(options, "upstream", False) and _goes_upstream(options, word))
    ]
    return load(options.verb, options.exp, file, [*overrides, *own], subject)


def _goes_upstream(options: argparse.Namespace, word: str) -> bool:
    key = word.partition("=")[0]  # the whole of it: `pictures` is a block of prepare-data and a switch of evaluate
    return key.split(".")[0] in DATA_VERBS_ONLY and not keys_of(options.verb, key)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    # argparse cannot interleave options and positionals below a verb, so what follows a later option is sorted here.
    options, rest = _parser().parse_known_args(arguments)
    for word in rest:
        if word.startswith("-"):
            raise ConfigError(f"There is no option {word!r} (see eegrecon {options.verb} --help).")
    options.overrides += rest
    for word in options.overrides:
        if "=" not in word:
            raise ConfigError(f"{word!r} is not of the form key=value (see eegrecon {options.verb} --help).")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="eegrecon", description="From EEG to the picture that was seen.")
    parser.add_argument("--version", action="version", version=f"eegrecon {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for verb, summary in SUMMARIES.items():
        sub = verbs.add_parser(
            verb, allow_abbrev=False, help=summary, description=f"{summary[:1].upper()}{summary[1:]}."
        )
        if verb == "evaluate":
            sub.epilog = f"With {PLAIN_FILES} FILE it scores plain files instead: evaluate {PLAIN_FILES} x --help."
        source = sub.add_mutually_exclusive_group(required=True)
        source.add_argument("--exp", metavar="NAME", help="a shipped experiment, such as pocket")
        source.add_argument("--config", metavar="FILE", help="a YAML file of your own")
        if keys_of(verb, "data.subjects"):
            sub.add_argument("--subject", type=int, metavar="N", help=SUBJECT_HELP.get(verb, SUBJECT_HELP[""]))
        if STAGES[verb].folder is not None:
            sub.add_argument("--seed", type=int, metavar="N", help="the same as seed=N")
            sub.add_argument("--run", metavar="DIR", help="the run's directory, not runs/<exp>/sub-XX/seed-N")
        if UPSTREAM[verb]:
            sub.add_argument("--upstream", action="store_true", help="make missing earlier stages first")
        sub.add_argument("--overwrite", action="store_true", help="replace a result of another config")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="change a config value")
    for verb, summary in TOOLS.items():
        verbs.add_parser(verb, help=summary)  # for the list only: `_tool` parses them
    return parser
