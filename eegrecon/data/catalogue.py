"""What has been published of THINGS-EEG2 and THINGS-MEG, and where: names, sizes, licences, ids.

Nothing here is guessed. Everything is from `shared/facts/atm.md` 1.1-1.6 and 3 and `shared/facts/landscape.md` 2; what
they do not say is "unknown" or None here and is asked of the publisher when the download starts.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath

UNKNOWN = "unknown"
ATM = "LidongYang/EEG_Image_decode"
ATM_LICENCE = "apache-2.0 (of the repository)"
EEG2_LICENCE = "CC-BY-4.0 (as neuralfetch and EEGDash state it)"
PAGES = {
    "huggingface": "https://huggingface.co/datasets/{where}",
    "openneuro": "https://openneuro.org/datasets/{where}",
    "osf": "https://osf.io/{where}/",
    "link": "https://osf.io/{where}/",
}


@dataclass(frozen=True)
class PublishedFile:
    """One file of an entry, or all files that a pattern matches.

    Attributes:
        path: Path at the publisher; `{subject}` is the number of a subject, `*` stands for anything, slashes too.
        size: Its exact size in bytes, where the facts give it to the byte.
        about: Its size in bytes as rounded text gives it: shown, never checked.
        link: Where it is, for an entry of fixed links.
    """

    path: str
    size: int | None = None
    about: int | None = None
    link: str | None = None

    def of(self, subject: int | None) -> "PublishedFile":
        """The file of one subject."""
        if subject is None:
            return self
        link = None if self.link is None else self.link.format(subject=subject)
        return PublishedFile(self.path.format(subject=subject), self.size, self.about, link)

    @property
    def is_pattern(self) -> bool:
        """Whether it stands for files whose names only the publisher's listing tells."""
        return "*" in self.path

    @property
    def folder(self) -> str:
        """The folder to list to find it; "" is the top."""
        parent = PurePosixPath(self.path.partition("*")[0] + "x").parent
        return "" if str(parent) == "." else str(parent)


@dataclass(frozen=True)
class Entry:
    """One thing that can be downloaded.

    Attributes:
        name: What the command line calls it.
        what: One line that says what it is.
        kind: Which kind of publisher: "huggingface", "openneuro", "osf" or "link" (a fixed link, no listing).
        where: The id there.
        files: What belongs to it.
        licence: As the facts state it, or "unknown".
        subjects: Whose files exist; empty when it does not come by subject.
        into: Folder below the chosen one that its files go to; their own paths continue from there.
        layout: The `source.name` that reads it in `prepare-data`; None when nothing does as it is.
        holds: The path below the chosen folder that `inspect` and `prepare-data` are given.
        total: Size of all of it in bytes as rounded text gives it, where no sum of files does.
        sums: A file of the publisher's with sha256 sums.
        version: The version the facts describe, where they name one.
        note: What else one should know; `{out}` is the chosen folder.
        set: Whose files they are: they go to `data/<set>` where nothing else is said, and its experiment reads them.
        then: A command that reads it, where no layout says it; `{out}` as above.
    """

    name: str
    what: str
    kind: str
    where: str
    files: tuple[PublishedFile, ...]
    licence: str = UNKNOWN
    subjects: tuple[int, ...] = ()
    into: str = ""
    layout: str | None = None
    holds: str = ""
    total: int | None = None
    sums: str | None = None
    version: str | None = None
    note: str = ""
    set: str = "things_eeg2"
    then: str = ""

    @property
    def page(self) -> str:
        """The page to open in a browser."""
        page = PAGES[self.kind].format(where=self.where)
        if self.kind == "openneuro" and self.version:
            page += f"/versions/{self.version}"
        return page

    def wanted(self, subjects: tuple[int, ...] = ()) -> list[PublishedFile]:
        """The files (or patterns) of these subjects; of all when none is named."""
        if not self.subjects:
            return list(self.files)
        return [file.of(subject) for subject in subjects or self.subjects for file in self.files]

    def bytes_of(self, subjects: tuple[int, ...] = ()) -> tuple[int | None, bool]:
        """How large they are together, and whether that is exact; None when the facts do not say."""
        files = self.wanted(subjects)
        sizes = [file.about if file.size is None else file.size for file in files]
        if None not in sizes:
            return sum(size for size in sizes if size is not None), all(file.size is not None for file in files)
        everything = not self.subjects or not subjects or set(subjects) == set(self.subjects)
        return (self.total, False) if everything else (None, False)


EEG_SUBJECTS, MEG_SUBJECTS = tuple(range(1, 11)), tuple(range(1, 5))
SUB = "sub-{subject:02d}"

ENTRIES = (
    Entry(
        "things-eeg2-preprocessed",
        "THINGS-EEG2 as ATM and NICE preprocess it: 63 channels, 250 Hz, MVNN",
        "huggingface", ATM,
        (
            # Byte sizes: atm.md 1.3.
            PublishedFile(f"Preprocessed_data_250Hz/{SUB}/preprocessed_eeg_training.npy", 8_336_163_007),
            PublishedFile(f"Preprocessed_data_250Hz/{SUB}/preprocessed_eeg_test.npy", 2_016_003_002),
        ),
        ATM_LICENCE, EEG_SUBJECTS, layout="preprocessed", holds="Preprocessed_data_250Hz",
        note="Despite .npy the files are pickles; eegrecon reads them without executing them.",
    ),
    Entry(
        "things-eeg2-original",
        "THINGS-EEG2 as its authors preprocessed it: 17 channels, 100 Hz",
        "osf", "anp5v", (PublishedFile(f"*{SUB}*"),),
        EEG2_LICENCE, EEG_SUBJECTS, into="preprocessed_data", layout="original", holds="preprocessed_data",
        note="Should the files come as archives, unpack them there.",
    ),
    Entry(
        "things-eeg2-raw",
        "THINGS-EEG2 raw recordings: 63 channels and triggers, 1000 Hz, 4 sessions",
        "link", "crxs4",
        (
            PublishedFile(
                f"{SUB}.zip",
                link=f"https://files.osf.io/v1/resources/crxs4/providers/googledrive/{SUB}.zip",
            ),
        ),
        EEG2_LICENCE, EEG_SUBJECTS, into="Raw_data", layout="raw", holds="Raw_data",
        note="Raw recordings and pictures together take about 126 GB (NeuroBridge's README). Unpack every archive so "
        "that Raw_data/sub-01/ses-01/raw_eeg_training.npy exists. The project's wiki lists mirrors.",
    ),
    Entry(
        "things-eeg2-images",
        "the pictures of THINGS-EEG2: 1654 x 10 training and 200 test pictures",
        "huggingface", ATM, (PublishedFile("images_set.tar.gz"),),
        "apache-2.0 (of the repository; of the pictures: unknown)", holds="images_set",
        note="Unpack it where prepare-data looks for images_set: tar -xzf {out}/images_set.tar.gz -C data/things_eeg2",
    ),
    Entry(
        "things-eeg2-images-osf",
        "the same pictures from the authors' own project",
        "osf", "y63gw", (PublishedFile("*"),), into="images_set", holds="images_set",
        note="Unpack what comes as an archive into images_set/training_images and images_set/test_images.",
    ),
    Entry(
        "vit-h-14-features",
        "ViT-H-14 (laion2b_s32b_b79k) features of the pictures and of the concepts' names",
        "huggingface", ATM,
        (
            PublishedFile("ViT-H-14_features_train.pt", about=74_500_000),
            PublishedFile("ViT-H-14_features_test.pt", about=1_640_000),
        ),
        ATM_LICENCE,
        note="Published normalised and unnormalised under one name: eegrecon inspect says which it is.",
        then='make extract-targets EXP=things_eeg2/atm_s ARGS="targets.clip-vit-h-14.model.name=feature_file '
        "targets.clip-vit-h-14.model.args.folder={out} targets.text-vit-h-14.model.name=feature_file "
        'targets.text-vit-h-14.model.args.folder={out}"',
    ),
    Entry(
        "vit-l-14-features",
        "ViT-L-14 multimodal features (the test file is bfloat16)",
        "huggingface", ATM,
        (
            PublishedFile("ViT-L-14_features_multimodal_train.pt"),
            PublishedFile("ViT-L-14_features_multimodal_test.pt", about=105_000_000),
        ),
        ATM_LICENCE,
    ),
    Entry(
        "atm-s-embeds",
        "EEG embeddings of the published ATM-S encoders",
        "huggingface", ATM,
        tuple(PublishedFile(f"emb_eeg/ATM_S_eeg_features_{SUB}_{side}.pt") for side in ("train", "test")),
        ATM_LICENCE, EEG_SUBJECTS,
    ),
    Entry(
        "atm-prior",
        "checkpoints of ATM's published diffusion priors",
        "huggingface", ATM, (PublishedFile(f"fintune_ckpts/{SUB}/diffusion_prior.pt", about=38_700_000),),
        ATM_LICENCE, EEG_SUBJECTS,
        note="The folder is really called fintune_ckpts. The encoders' checkpoints were removed from there (ATM #46).",
    ),
    Entry(
        "things-meg-fif",
        "THINGS-MEG epochs: 271 sensors, -100 to 1300 ms",
        "openneuro", "ds004212", (PublishedFile("derivatives/preprocessed/preprocessed_P{subject}-epo*.fif"),),
        subjects=MEG_SUBJECTS, layout="meg_fif", holds="derivatives/preprocessed", total=36_000_000_000,
        version="2.0.0", set="things_meg",
        note="Which picture an event is stands in image_paths.csv of things-images, found below things/ or beside "
        "derivatives/; source.args.tables names another folder.",
    ),
    Entry(
        "things-meg-pkl",
        "THINGS-MEG as ATM preprocesses it: 271 sensors, 201 samples at 200 Hz",
        "huggingface", ATM, (PublishedFile(f"preprocessed_MEG/{SUB}/*", about=9_700_000_000),),
        ATM_LICENCE, MEG_SUBJECTS, layout="meg_pkl", holds="preprocessed_MEG", set="things_meg",
        note="A subject's size is that of the two files the authors' notebook writes (8.65 and 1.05 GB).",
    ),
    Entry(
        "things-images",
        "the THINGS picture set and its metadata (image_concept_index.csv, image_paths.csv)",
        "osf", "jum2f", (PublishedFile("*"),), into="things", set="things_meg",
        note="Unpack the picture archive there: prepare-data links the pictures that were shown.",
    ),
    Entry(
        "things-eeg2-bids",
        "THINGS-EEG2 raw recordings as EEGDash keeps them (nm000232; 638 recordings, 87.3 h)",
        "huggingface", "EEGDash/nm000232", (PublishedFile("*"),), "CC-BY-4.0", into="nm000232",
        total=203_900_000_000,
        note="eegrecon does not read this layout; things-eeg2-raw is the one it does.",
    ),
    Entry(
        "things-eeg2-mirror",
        "a byte-identical mirror of LidongYang/EEG_Image_decode with sha256 sums",
        "huggingface", "2Levi/eeg2img-THINGS_EEG2", (PublishedFile("*"),), into="mirror", sums="SHA256SUMS",
        note="The facts describe revision dbe34bb.",
    ),
    Entry(
        "haitao999-things-eeg", "another project's export of THINGS-EEG2",
        "huggingface", "Haitao999/things-eeg", (PublishedFile("*"),), into="haitao999-things-eeg",
    ),
    Entry(
        "haitao999-things-eeg-meg", "another project's export of THINGS-EEG2 and THINGS-MEG",
        "huggingface", "Haitao999/things-eeg-meg", (PublishedFile("*"),), into="haitao999-things-eeg-meg",
    ),
    Entry(
        "feronl-neurobridge", "another project's export (NeuroBridge)",
        "huggingface", "Feronl/NeuroBridge", (PublishedFile("*"),), into="feronl-neurobridge",
    ),
)  # fmt: skip
CATALOGUE = {entry.name: entry for entry in ENTRIES}
