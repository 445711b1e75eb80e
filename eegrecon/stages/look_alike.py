"""`look-alike`: write the pocket set in the layouts of the published THINGS files, at any size up to theirs.

A tool, not a stage: it has no config, no manifest and no part in the chain. What it writes is read back by
`prepare-data`, as the published files are.
"""

from __future__ import annotations

import argparse
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from rich.progress import Progress

    from eegrecon.pocket.lookalike import Layout
    from eegrecon.pocket.lookalike.signals import Signals

EYE_PIXELS, SHAPE_LEVEL, SHAPE_PIXELS = 48, 1, 128  # what the simulated brain sees, as in prepare-data
FEATURE_LEVEL = 0  # EfficientNet-Lite of the feature files: not the network that drives the brain
# The brain's shape code rests on 60 leading axes of the training pictures' features (pocket.features.shape_code): with
# fewer pictures than axes, a test picture would drive it a hundred times too hard. It is shown others beside them.
FEWEST_TRAIN = 120
EEG_EXPERIMENT, MEG_EXPERIMENT = "things_eeg2/atm_s", "things_meg/atm_s"
GAIN = 1.2  # of the frozen pocket brain (experiments/pocket/prepare-data.yaml)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("--layout", required=True, help="preprocessed, original, pt, raw, meg_fif or meg_pkl")
    add("--out", required=True, metavar="DIR", help="the folder to write into")
    add("--subject", type=int, action="append", metavar="N", help="a subject to write (again for more); default 1")
    add("--concepts", type=int, default=20, metavar="N", help="training concepts (really 1654); default 20")
    add("--test-concepts", type=int, default=10, metavar="N", help="test concepts (really 200); default 10")
    add("--exemplars", type=int, metavar="N", help="pictures of a training concept; default 10, MEG 12")
    add("--repetitions", type=int, metavar="N", help="trials of a training picture; default 4, MEG 1")
    add("--test-repetitions", type=int, metavar="N", help="trials of a test picture; default 80, MEG 12")
    add("--signal", default="brain", choices=("brain", "noise"), help="the pocket brain (default), or noise for speed")
    add("--size", type=int, default=128, metavar="PIXELS", help="side of the pictures (really 500); default 128")
    add("--no-pictures", action="store_true", help="no pictures and no feature files; needs --signal noise")
    add("--unnormalised", action="store_true", help="feature files with ViT-H's own lengths, not length one")
    add("--gap", type=float, default=1.5, metavar="S", help="raw: seconds between onsets (really 0.2); default 1.5")
    add("--seed", type=int, default=0, metavar="N", help="of pictures, order and noise; default 0")


def run(options: argparse.Namespace) -> int:
    """Write the pictures, the feature files and every subject's recordings.

    Raises:
        ConfigError: an option does not fit the layout.
        DataError: the disk or (meg_fif) the memory is too small, or the folder holds other pictures.
    """
    from eegrecon.errors import ConfigError
    from eegrecon.pocket.lookalike import bytes_of, check, check_disk, layout_of, write_look_alike
    from eegrecon.pocket.lookalike.features import write_features
    from eegrecon.pocket.lookalike.pictures import IMAGES_FOLDER, LookAlikeSet, render_pictures
    from eegrecon.stages.progress import progress_bars

    out, layout = Path(options.out), layout_of(options.layout)
    exemplars = layout.exemplars if options.exemplars is None else options.exemplars
    pictures = LookAlikeSet(options.concepts, options.test_concepts, exemplars, layout.meg)
    asked = {"train": options.repetitions, "test": options.test_repetitions}
    repetitions = {side: layout.repetitions[side] if count is None else count for side, count in asked.items()}
    subjects = list(dict.fromkeys(options.subject or [1]))
    check(options.layout, pictures, repetitions, min(subjects))
    if options.no_pictures and options.signal == "brain":
        raise ConfigError("The pocket brain has to see pictures: give --signal noise with --no-pictures.")
    if options.size < 8:
        raise ConfigError(f"--size must be 8 pixels or more, but it is {options.size}.")
    if not 0.05 <= options.gap <= 60:
        raise ConfigError(f"--gap must be between 0.05 and 60 seconds, but it is {options.gap}.")
    check_disk(out, len(subjects) * bytes_of(options.layout, pictures, repetitions, options.gap))
    with progress_bars() as progress:
        brains = _Brains(pictures.n_train)
        if not options.no_pictures:
            task = progress.add_task("pictures", total=None)
            files = render_pictures(
                out / IMAGES_FOLDER, pictures, size=options.size, seed=options.seed,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )  # fmt: skip
            progress.update(task, completed=len(files), total=len(files))
            if options.signal == "brain":
                brains.see(files, progress, size=options.size, seed=options.seed)
            write_features(out, pictures, brains.features, normalised=not options.unnormalised, seed=options.seed)
        trials = pictures.n_train * repetitions["train"] + pictures.n_test * repetitions["test"]
        for subject in subjects:
            task = progress.add_task(f"sub-{subject:02d}: {options.layout}", total=trials)
            write_look_alike(
                options.layout, out, pictures, subject=subject, repetitions=repetitions,
                signals=brains.of(subject) if options.signal == "brain" else None,
                onset_gap=options.gap, seed=options.seed, progress=partial(progress.advance, task),
            )  # fmt: skip
            progress.update(task, completed=trials)
    _say_next(options.layout, layout, out, subjects, not options.no_pictures)
    return 0


def _say_next(name: str, layout: Layout, out: Path, subjects: list[int], pictures: bool) -> None:
    """Print the command that makes trial stores of what was written."""
    from rich.console import Console

    say = partial(Console(highlight=False, markup=False, emoji=False).print, soft_wrap=True)
    if not pictures:
        say("prepare-data needs the pictures too: leave out --no-pictures to go on with it.")
        return
    home = out.resolve()  # the folder is the set's own: its pictures are there, and its stores go there
    words = [
        "eegrecon",
        "prepare-data",
        "--exp",
        MEG_EXPERIMENT if layout.meg else EEG_EXPERIMENT,
        f"data.root={home.parent}",
        f"data.set={home.name}",
        f"data.subjects=[{','.join(map(str, subjects))}]",
        f"source.name={name}",
        f"source.args.path={home if name == 'meg_fif' else home / layout.folder}",
    ]
    say(f"Go on with:\n    {shlex.join(words)}")


class _Brains:
    """The simulated subjects of one set of pictures."""

    def __init__(self, n_train: int) -> None:
        self.n_train = n_train
        self.features: np.ndarray | None = None  # of another network than the brain's, for the feature files
        self._seen: tuple[Any, Any, Any] | None = None  # small pictures, features, which of them are training

    def see(self, files: list[Path], progress: Progress, *, size: int, seed: int) -> None:
        """Look at the pictures once, and in a small set at others too, which no file holds."""
        import numpy as np
        from PIL import Image

        from eegrecon.models.packaged import efficientnet_lite, efflite_features
        from eegrecon.pocket.lookalike.pictures import FAR
        from eegrecon.pocket.pictures import chosen, picture

        few = max(FEWEST_TRAIN - self.n_train, 0)
        others = [picture(drawing, 10 * FAR, size=size, seed=seed) for drawing in chosen("train", few)] if few else []
        todo: list[Any] = [*files, *others]
        task = progress.add_task("what the brain sees", total=len(todo))
        networks = [efficientnet_lite(level) for level in (SHAPE_LEVEL, FEATURE_LEVEL)]
        eyes: list[np.ndarray] = []
        shapes: list[np.ndarray] = []
        features: list[np.ndarray] = []
        for start in range(0, len(todo), 64):
            pictures = [_rgb(item) for item in todo[start : start + 64]]
            small = [picture.resize((EYE_PIXELS, EYE_PIXELS), Image.Resampling.BOX) for picture in pictures]
            eyes.append(np.stack([np.asarray(picture) for picture in small]))
            for network, found in zip(networks, (shapes, features), strict=True):
                found.append(efflite_features(network, pictures, SHAPE_PIXELS))
            progress.advance(task, len(pictures))
        is_train = np.ones(len(todo), dtype=bool)
        is_train[self.n_train : len(files)] = False
        self._seen = np.concatenate(eyes), np.concatenate(shapes).astype(np.float32), is_train
        self.features = np.concatenate(features)[: len(files)]

    def of(self, subject: int) -> Signals:
        """The subject of this number, who has seen all pictures."""
        from eegrecon.pocket.brain import BrainParams, simulate_subject

        if self._seen is None:
            raise RuntimeError("the pictures were not shown yet")
        return simulate_subject(subject, *self._seen, BrainParams(gain=GAIN))


def _rgb(item: Path | Image.Image) -> Image.Image:
    from PIL import Image

    if not isinstance(item, Path):
        return item.convert("RGB")
    with Image.open(item) as picture:
        return picture.convert("RGB")
