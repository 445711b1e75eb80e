"""From a config's `data` and target blocks to the data module: the same for every stage that reads trials."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eegrecon.config import DataConfig, LoaderConfig, TargetConfig
from eegrecon.data.budget import trials_in
from eegrecon.data.layout import target_dir, trial_dir
from eegrecon.datamodule import Stage, ThingsDataModule
from eegrecon.errors import ConfigError


def data_module(
    stage: Stage,
    data: DataConfig,
    targets: Mapping[str, TargetConfig],
    *,
    seed: int,
    fusion: Sequence[TargetConfig] = (),
    loader: LoaderConfig | None = None,
    **more: Any,
) -> ThingsDataModule:
    """The data of a stage; headers are read and checked, arrays are not.

    Args:
        stage: Who asks.
        data: The config's block.
        targets: Key in the batch to the config's target block.
        seed: The run's seed.
        fusion: The config's `fusion_targets`.
        loader: The config's block, for the stages that train.
        more: Further arguments of `ThingsDataModule`.

    Raises:
        ConfigError: A choice does not fit.
        DataError: A store is missing, broken or does not belong to the others.
    """
    set_root = Path(data.root) / data.set
    _check_levels(stage, targets, fusion)
    if loader is not None:
        more |= {"batch_size": loader.batch_size, "num_workers": loader.num_workers, "on_device": loader.on_device}
    return ThingsDataModule(
        stage=stage,
        images_root=set_root,
        trial_dirs=[trial_dir(set_root, subject) for subject in data.training_subjects],
        target_dirs={key: target_dir(set_root, target.name) for key, target in targets.items()},
        fusion=[(target_dir(set_root, target.name), target.l2_normalise) for target in fusion],
        level_dirs=[target_dir(set_root, name) for name in ladder(targets["image"])] if "image" in targets else [],
        val_concepts=data.split.val_concepts,
        protocol=data.protocol,
        test_subject=data.test_subject,
        split_seed=data.split.split_seed,
        repetitions=data.repetitions,
        sessions=data.sessions,
        keep_repetitions=data.keep_repetitions,
        budget=None if data.keep_minutes is None else trials_in(data.keep_minutes, data.seconds_per_trial),
        window=data.window,
        channels=data.channels,
        l2_normalise=[key for key, target in targets.items() if target.l2_normalise],
        seed=seed,
        **more,
    )


def ladder(target: TargetConfig) -> list[str]:
    """The stores that training rows choose among, sharp first: `levels`, below them `name` unless it is one of them."""
    if target.mixing == "none":
        return []
    return list(target.levels) if target.name in target.levels else [target.name, *target.levels]


def _check_levels(stage: Stage, targets: Mapping[str, TargetConfig], fusion: Sequence[TargetConfig]) -> None:
    others = [target for key, target in targets.items() if stage != "encoder" or key != "image"]
    for target in [*others, *fusion]:
        if target.levels or target.mixing != "none":
            raise ConfigError(
                f"The target {target.name!r} has levels {target.levels} with mixing {target.mixing!r}, but only the "
                "`target` of train-encoder may have them: leave them out here."
            )
