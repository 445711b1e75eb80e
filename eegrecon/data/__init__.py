"""Stores, pictures and splits: everything that lies on disk between `prepare-data` and a network."""

from eegrecon.data.channels import THINGS_EEG2_CHANNELS
from eegrecon.data.images import ImageRecord, ImageSet, build_images_json
from eegrecon.data.layout import subject_name, target_dir, trial_dir
from eegrecon.data.partition import Partition
from eegrecon.data.splits import Split, gallery_of, held_out_concepts, make_split
from eegrecon.data.targets import TargetStore, TargetStoreWriter
from eegrecon.data.trials import TrialStore, TrialStoreWriter

__all__ = [
    "THINGS_EEG2_CHANNELS",
    "ImageRecord",
    "ImageSet",
    "Partition",
    "Split",
    "TargetStore",
    "TargetStoreWriter",
    "TrialStore",
    "TrialStoreWriter",
    "build_images_json",
    "gallery_of",
    "held_out_concepts",
    "make_split",
    "subject_name",
    "target_dir",
    "trial_dir",
]
