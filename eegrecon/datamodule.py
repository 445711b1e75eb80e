"""`ThingsDataModule`: one class that feeds all stages, and keeps training away from test data."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from eegrecon.data.batches import (
    Batch,
    GlobalBatchSampler,
    RowDataset,
    ShardBatchSampler,
    TrialDataset,
    as_is,
    held_on,
    loader,
    whole,
)
from eegrecon.data.budget import within_budget
from eegrecon.data.eeg_rows import GroupMeans
from eegrecon.data.fused_targets import FusionPart, open_targets
from eegrecon.data.images import ImageSet
from eegrecon.data.layout import trial_dir
from eegrecon.data.partition import Partition
from eegrecon.data.rows import channel_moments, embedded_rows, permuted_labels, rows_of, training_blocks
from eegrecon.data.selection import Averaging, Repetitions, Sessions, averaging_of, plain
from eegrecon.data.splits import Split, check_subjects, full_gallery, gallery_of, make_split
from eegrecon.data.streams import PERMUTATION, generator_of
from eegrecon.data.trials import Channels, TrialStore
from eegrecon.errors import ConfigError, DataError

Stage = Literal["encoder", "prior", "reconstruct", "evaluate"]
STAGES = ("encoder", "prior", "reconstruct", "evaluate")
TEST_STAGES = ("reconstruct", "evaluate")
Part = Literal["train", "val", "test"]


class ThingsDataModule(lightning.LightningDataModule):
    """Data of one stage.

    Batches (all ids int64, all values float32):

    - encoder, train: eeg (b, n_chans, n_times) in the store's unit, subject (b,), image_index (b,), concept_index (b,),
      repetition (b,; −1 = averaged), targets {"image": (b, dim), "vae_latent": (b, 4, h, w), …} and, with
      level_dirs, "levels": (b, n_levels, dim) among them.
    - encoder, val: the same (without levels) over all pictures of the held-out concepts, always averaged, and gallery
      (b,) bool, true for the first picture of each concept; test (`reconstruct`, `evaluate`): the same without gallery.
    - prior: eeg_embeds (b, cond_dim), image_embeds (b, dim), subject (b,), image_index (b,); val also gallery (b,).
    - generator (after `set_pictures`): image_embeds (b, dim), image_index and draw (b,), if asked for latents
      (b, 4, h, w) and caption (b,).

    `batch_size` counts rows over all processes. The trainer needs `use_distributed_sampler=False`: sharding is done
    here, in training by `GlobalBatchSampler`, elsewhere in contiguous shards. Under several processes validation shards
    of unequal length are padded with repeated rows, which scores drop by (subject, image_index).

    Headers, pictures and the split are checked on construction or first use; arrays are read in `setup`. `setup("fit")`
    and `setup("validate")` open training files of the subjects that are trained on, and nothing else.

    Args:
        stage, images_root: Who asks; the set's folder (with `images.json` and the trial stores).
        trial_dirs: Trial stores of the subjects that are trained on (`data.trial_dir`).
        target_dirs: Key in the batch to target store; "image" is the embedding that is predicted.
        fusion: Stores appended to "image" (see `open_targets`), each with whether its rows are divided by their norm.
        level_dirs: Stores that may stand in for "image" in training.
        val_concepts: How many training concepts validation holds out.
        protocol: `within_subject`, `leave_one_subject_out` or `joint` (see `DataConfig`).
        test_subject: Whose test trials are opened by the stages that may; default: those of `trial_dirs`. One that is
            left out must be named, and its store is opened by no other stage.
        split_seed, fold: See `data.splits`; (k, K): train without the k-th of K groups of training concepts.
        repetitions: Training rows are trials ("each"), averages over a picture's trials ("average") or over k of them
            ({"average": k}, see `GroupMeans`); validation and test are always averaged.
        sessions, keep_repetitions: What is used: numbers of recording sessions; of repetitions from 0, or the first k.
        budget: So many training trials of each subject and no more (see `data.budget`); None: all.
        window: [start, stop) in seconds from picture onset.
        channels: "all", names in the order wanted, or {"region": one or more regions}.
        l2_normalise: Keys of `target_dirs` whose vectors are divided by their norm.
        batch_size, num_workers: Rows of one step over all processes; loader processes, on which no batch depends.
        on_device: Whether training and validation rows are put on the trainer's device once ("auto": if they take at
            most half of its free memory), which changes no batch.
        seed: The run's seed; decides the order of training rows and the groups of k (and the permutation of labels).
        upstream, train_embeds: For the prior: the encoder's directory, of which `embeds/val.safetensors` is read and,
            for training, the file of this name beside it.
        permute_labels: The control: pictures are re-assigned by a seeded permutation, among the training pictures and
            among the validation pictures separately; image_index, concept_index and targets follow the new picture.

    Raises:
        ConfigError: A choice is unknown or does not fit.
        DataError: A store is missing, damaged, or does not belong to the pictures or to the other stores.
    """

    def __init__(
        self,
        *,
        stage: Stage,
        images_root: Path,
        trial_dirs: Sequence[Path],
        target_dirs: Mapping[str, Path],
        fusion: Sequence[FusionPart] = (),
        level_dirs: Sequence[Path] = (),
        val_concepts: int,
        protocol: str = "within_subject",
        test_subject: int | None = None,
        split_seed: int = 0,
        fold: tuple[int, int] | None = None,
        repetitions: Literal["each", "average"] | Mapping[str, int] = "each",
        sessions: Sessions = "all",
        keep_repetitions: Repetitions = "all",
        budget: int | None = None,
        window: Sequence[float] = (0.0, 1.0),
        channels: Channels = "all",
        l2_normalise: Sequence[str] = (),
        batch_size: int = 64,
        num_workers: int = 0,
        on_device: Literal["auto"] | bool = "auto",
        seed: int = 0,
        upstream: Path | None = None,
        train_embeds: str = "train",
        permute_labels: bool = False,
    ) -> None:
        super().__init__()
        if stage not in STAGES:
            raise ConfigError(f"The data module's stage is {stage!r}, expected one of {', '.join(STAGES)}.")
        if stage == "prior" and (upstream is None or "image" not in target_dirs):
            raise ConfigError("The prior's data are the encoder's directory (upstream) and an 'image' target.")
        if unknown := sorted(set(l2_normalise) - set(target_dirs)):
            raise ConfigError(f"l2_normalise names {', '.join(unknown)}, which is no target.")
        if not trial_dirs:
            raise ConfigError("The data module needs the trial store of at least one subject.")
        self.stage, self.repetitions, self.batch_size, self.num_workers = stage, repetitions, batch_size, num_workers
        self.seed, self.upstream, self.permute_labels, self.on_device = seed, upstream, permute_labels, on_device
        self._average, self._train_embeds = averaging_of(repetitions), train_embeds
        self._split_args = {"protocol": protocol, "val_concepts": val_concepts, "split_seed": split_seed, "fold": fold}
        self._selection: dict[str, Any] = {"channels": channels, "window": list(window)}
        self._selection |= {"sessions": sessions, "repetitions": keep_repetitions}
        self.images = ImageSet.from_root(images_root)
        self.trials = [TrialStore(path, self.images) for path in trial_dirs]
        self.subjects = [store.subject for store in self.trials]
        self.test_subjects = self.subjects if test_subject is None else [test_subject]
        check_subjects(protocol, self.subjects, test_subject)
        # The store of a subject that is left out is opened here and by nothing else.
        self.test_trials = self.trials
        if test_subject is not None and stage in TEST_STAGES:
            self.test_trials = [TrialStore(trial_dir(images_root, test_subject), self.images)]
        self.targets, self.levels = open_targets(target_dirs, self.images, l2_normalise, fusion, level_dirs)
        self._check_stores_agree()
        self._datasets: dict[str, TrialDataset | RowDataset] = {}
        self._placed: dict[str, TrialDataset | RowDataset] = {}
        self._budget = budget
        self._moments: tuple[Tensor, Tensor] | None = None
        self._pictures: list[RowDataset] = []

    def _check_stores_agree(self) -> None:
        first = self.trials[0]
        for store in [*self.trials[1:], *self.test_trials]:
            for name in ("set", "unit", "sfreq", "tmin", "ch_names"):
                mine, other = getattr(first, name), getattr(store, name)
                if mine != other:
                    raise DataError(
                        f"{first.path} and {store.path} cannot be used together: their {name} is {mine} and {other}; "
                        "make them in the same way with `eegrecon prepare-data`."
                    )
        samples = first.select_window(self._selection["window"])
        chosen = first.select_channels(self._selection["channels"])
        self.ch_names = [first.ch_names[i] for i in chosen]
        self.n_chans, self.n_times = len(chosen), samples.stop - samples.start
        self.sfreq, self.tmin, self.unit = first.sfreq, first.tmin, first.unit
        self.preprocessing = first.header["preprocessing"]

    # ---- facts -------------------------------------------------------------------------------------------------------

    @property
    def target_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one target by key, such as {"image": (256,), "vae_latent": (4, 16, 16)}."""
        return {key: store.shape for key, store in self.targets.items()}

    @cached_property
    def split(self) -> Split:
        """Training, validation and test pictures."""
        index = np.concatenate([store.image_index("train") for store in self.trials])
        return make_split(self.images, index, set=self.trials[0].set, subject=self.subjects, **self._split_args)  # type: ignore[arg-type]

    @cached_property
    def gallery(self) -> Tensor:
        """`image_index` of the validation gallery, (val_concepts,) int64: the first picture of each concept."""
        return torch.from_numpy(gallery_of(self.images, self.split.val))

    @property
    def channel_mean(self) -> Tensor:
        """Mean of each channel over the training rows (as trained on), (n_chans,) float32, in the store's unit."""
        return self._channel_moments()[0]

    @property
    def channel_std(self) -> Tensor:
        """Standard deviation of each channel over the same rows, (n_chans,) float32, above 0."""
        return self._channel_moments()[1]

    def describe(self) -> dict[str, Any]:
        """For the manifest's `data`: set, subjects, channels in order, sampling, window, preprocessing, split, trials.

        `subjects` are those that are trained on, `test_subjects` those whose test trials this is for. Samples of
        `window` are counted from `tmin`, the time of the stores' first one.
        """
        return {
            "set": self.trials[0].set,
            "channels": self.ch_names,
            "window": self._selection["window"],
            "repetitions": plain(self.repetitions),
            "sessions": plain(self._selection["sessions"]),
            "keep_repetitions": plain(self._selection["repetitions"]),
            "trials_per_subject": "all" if self._budget is None else self._budget,
            **{name: getattr(self, name) for name in ("subjects", "test_subjects", "permute_labels")},
            **{name: getattr(self, name) for name in ("n_chans", "n_times", "sfreq", "tmin", "unit", "preprocessing")},
            "images_sha256": self.images.sha256,
            "split": self.split.describe(),
        }

    # ---- reading -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read what a trainer function needs; calling it again costs nothing.

        Raises:
            DataError: Test data are asked for in a stage that must not see them, or arrays are damaged.
        """
        wants_test = stage in ("test", "predict")
        if wants_test and self.stage not in TEST_STAGES:
            raise DataError(
                f"Test data are opened by {' and '.join(TEST_STAGES)} alone, but setup({stage!r}) was called in the "
                f"stage {self.stage!r}: use its train and val data."
            )
        if not wants_test:
            for part in ("train", "val"):
                self.dataset(part)
        elif stage == "test":
            self.dataset("test")

    def dataset(self, part: Part) -> TrialDataset | RowDataset:
        """The rows of one part, read on first use.

        Raises:
            DataError: As `setup`.
        """
        if part == "test" and self.stage not in TEST_STAGES:
            self.setup("test")  # raises
        if part not in self._datasets:
            if self.stage == "prior":
                self._datasets[part] = self._embeds(part)
            elif part == "test":
                self._datasets[part] = self.averages("test")
            else:
                self._read_training()
        return self._datasets[part]

    def averages(self, part: Part) -> TrialDataset:
        """The pictures of one part with repetitions averaged, one row a subject and picture.

        Raises:
            DataError: As `setup`.
        """
        if part == "test":
            self.setup("predict")  # raises where test data must not be seen
        found = self._datasets.get(part)
        if isinstance(found, TrialDataset) and (part != "train" or self._average == "all"):
            return found
        return self._trials(self._open("test" if part == "test" else "train"), part, "all")

    def averaged(self, part: Part) -> Batch:
        """All of `averages` as one encoder batch."""
        return whole(self.averages(part))

    def _read_training(self) -> None:
        partitions = self._open("train")
        train = self._trials(partitions, "train", self._average)
        self._moments = channel_moments(training_blocks(train.eeg, partitions, self.split.train), self.ch_names)
        self._datasets["train"] = train
        self._datasets["val"] = self._trials(partitions, "val", "all")

    def _channel_moments(self) -> tuple[Tensor, Tensor]:
        if self.stage == "prior":
            raise ConfigError(
                "The prior sees embeddings, not EEG: ask the encoder's data module for channel statistics."
            )
        if self._moments is None:
            self._read_training()
        assert self._moments is not None
        return self._moments

    def _open(self, partition: Literal["train", "test"]) -> list[Partition]:
        stores = self.trials if partition == "train" else self.test_trials
        opened = [store.open(partition, **self._selection) for store in stores]
        if self._budget is None or partition == "test":
            return opened
        train, gallery, seed = self.split.train, self.gallery.numpy(), self.split.split_seed
        return [within_budget(one, self._budget, train=train, gallery=gallery, seed=seed) for one in opened]

    def _trials(self, partitions: list[Partition], part: Part, average: Averaging) -> TrialDataset:
        subjects = self.test_subjects if part == "test" else self.subjects
        eeg, columns = rows_of(partitions, subjects, getattr(self.split, part), average, self.seed)
        index = columns["image_index"]
        if self.permute_labels and part != "test":
            index = permuted_labels(index, generator_of(self.seed, PERMUTATION, part == "val"))
        columns = {**columns, "image_index": index, "concept_index": self.images.concept_index[index]}
        tensors = {name: torch.from_numpy(column.astype(np.int64)) for name, column in columns.items()}
        shown, target_row = np.unique(index, return_inverse=True)
        if part == "val":
            gallery = full_gallery(self.images, shown, self.split)
            tensors["gallery"] = torch.isin(tensors["image_index"], torch.from_numpy(gallery))
        targets = {key: torch.from_numpy(target.rows(shown)) for key, target in self.targets.items()}
        if self.levels and part == "train":
            targets["levels"] = torch.from_numpy(np.stack([level.rows(shown) for level in self.levels], axis=1))
        return TrialDataset(eeg, tensors, targets, torch.from_numpy(target_row))

    def _embeds(self, part: str) -> RowDataset:
        assert self.upstream is not None
        path = Path(self.upstream) / "embeds" / f"{self._train_embeds if part == 'train' else part}.safetensors"
        columns = embedded_rows(path, part, getattr(self.split, part), self.targets["image"])
        if part == "val":
            columns["gallery"] = torch.isin(columns["image_index"], self.gallery)
        return RowDataset(columns)

    # ---- loaders -----------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled; this process's share of every global batch."""
        rank, world_size = self._place()
        dataset = self._at_hand("train")
        grouped = isinstance(dataset, TrialDataset) and isinstance(dataset.eeg, GroupMeans)
        sampler = GlobalBatchSampler(len(dataset), self.batch_size, rank, world_size, self.seed, count_on=grouped)
        return loader(dataset, sampler, self.num_workers, self.seed)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """All validation rows in order, shared among processes; an empty list if no concept is held out."""
        return self._ordered(self._at_hand("val")) if len(self.split.val) else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """All test pictures in order, averaged, as encoder batches (`reconstruct` and `evaluate` only)."""
        return self._ordered(self.dataset("test"))

    def embed_dataloader(self, part: Part) -> DataLoader[Batch]:
        """Every row of one part once and in order, on every process alike: what `embeds/*.safetensors` is made of."""
        dataset = self.dataset(part)
        return loader(dataset, ShardBatchSampler(len(dataset), self.batch_size), self.num_workers, self.seed)

    def set_pictures(self, rows: Sequence[RowDataset]) -> None:
        """Give the generator its rows (`picture_rows`), one loader for each, such as the decoded and the ceiling's."""
        self._pictures = list(rows)

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        """Generator batches of this process's share of what `set_pictures` was given, none repeated.

        Raises:
            DataError: `set_pictures` was not called.
        """
        if not self._pictures:
            raise DataError("The generator has no rows yet: call set_pictures before Trainer.predict.")
        rank, world_size = self._place()
        size = max(1, self.batch_size // world_size)
        shares = [RowDataset(rows.__getitems__(range(rank, len(rows), world_size))) for rows in self._pictures]
        # A plain batch size: Lightning rebuilds prediction loaders, which it can with torch's own batch sampler only.
        return [DataLoader(share, batch_size=size, collate_fn=as_is) for share in shares]

    def _ordered(self, dataset: TrialDataset | RowDataset) -> DataLoader[Batch]:
        sampler = ShardBatchSampler(len(dataset), self.batch_size, *self._place())
        return loader(dataset, sampler, self.num_workers, self.seed)

    def _at_hand(self, part: Part) -> TrialDataset | RowDataset:
        """The rows of a part, on the trainer's device if `on_device` says so and they fit (see `held_on`)."""
        if part not in self._placed:
            dataset, trainer = self.dataset(part), self.trainer
            device = torch.device("cpu") if trainer is None else trainer.strategy.root_device
            processes = 1 if trainer is None else trainer.world_size // trainer.num_nodes
            held, note = held_on(dataset, device, self.on_device, f"The {part} rows", processes)
            if note:
                rank_zero_info(note)
            self._placed[part] = held
        return self._placed[part]

    def _place(self) -> tuple[int, int]:
        """(rank, world size) of the trainer this is attached to.

        Raises:
            ConfigError: Lightning would shard what is sharded here already.
        """
        trainer = self.trainer
        if trainer is None or trainer.world_size == 1:
            return 0, 1
        # Not public, but the mistake would silently halve what each process sees.
        if getattr(trainer._accelerator_connector, "use_distributed_sampler", False):
            raise ConfigError("trainer.use_distributed_sampler must be false: the data module shares rows out itself.")
        return trainer.global_rank, trainer.world_size
