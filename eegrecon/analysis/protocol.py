"""The stamp on every number: what was asked of whom, so that only like is ranked with like."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from eegrecon.errors import ArtifactError

STAMP = "stamp"  # where it lives in metrics.json: protocol.stamp
INFORMATIVE = ("target", "subjects")  # shown, never a reason not to compare
NOT_STATED = "not stated"  # of embeddings that came without a run; 0 and () mean the same where a text cannot stand


@dataclass(frozen=True)
class Protocol:
    """How a number was measured.

    Attributes:
        set: Name of the set.
        split: `val` or `test`.
        training: `within_subject`, `leave_one_subject_out` or `joint`, with what was added (`+ calibration 5 min`).
        subjects: Who was tested.
        gallery_kind: `exact picture`, `one per concept` or `blurred`.
        gallery_n: Entries of the gallery.
        gallery_sha256: Of its picture ids in order.
        repetitions: Trials averaged to one query (the smallest number, where pictures differ).
        channels: In order.
        window: [start, stop) in seconds from picture onset.
        sfreq: In Hz.
        selection: How the weights were chosen.
        transductive: Whether a query's score depends on the other queries (Hungarian matching, CSLS, whitening by
            the test set), which is another task.
        target: Name of the target space.
    """

    set: str
    split: str
    training: str
    subjects: tuple[int, ...]
    gallery_kind: str
    gallery_n: int
    gallery_sha256: str
    repetitions: int
    channels: tuple[str, ...]
    window: tuple[float, float]
    sfreq: float
    selection: str
    transductive: bool = False
    target: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_metrics(cls, protocol: Mapping[str, Any], where: str = "This metrics.json") -> Protocol:
        """From the `protocol` block of a metrics.json.

        Args:
            protocol: The block.
            where: The file, for the message.

        Raises:
            ArtifactError: It has no stamp, or one of another version.
        """
        stamp = protocol.get(STAMP)
        names = {item.name for item in fields(cls)}
        if not isinstance(stamp, Mapping) or set(stamp) != names:
            raise ArtifactError(
                f"{where} has no protocol stamp of this version of eegrecon: run `eegrecon evaluate` again "
                "with --overwrite."
            )
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stamp.items()}
        return cls(**values)

    def describe(self) -> str:
        """One line for captions."""
        inductive = "transductive" if self.transductive else "inductive"
        parts = [
            f"{self.set} {self.split}",
            self.training,
            f"gallery of {self.gallery_n} ({self.gallery_kind})",
            f"{_text('repetitions', self.repetitions)} repetitions averaged",
            f"{_text('channels', self.channels)} channels",
            f"{_text('window', self.window)} s at {_text('sfreq', self.sfreq)} Hz",
            f"weights: {self.selection}",
            inductive,
        ]
        return " · ".join(parts)


def gallery_hash(image_ids: Sequence[str]) -> str:
    """The sha256 (hex) of a gallery's picture ids in order."""
    return hashlib.sha256("\n".join(image_ids).encode()).hexdigest()


def unlike(a: Protocol, b: Protocol, allowed: Sequence[str] = ()) -> list[str]:
    """What differs, as `field: x against y`; fields that are only informative, or `allowed`, are left out."""
    return [
        f"{item.name}: {_difference(item.name, getattr(a, item.name), getattr(b, item.name))}"
        for item in fields(Protocol)
        if item.name not in (*INFORMATIVE, *allowed) and getattr(a, item.name) != getattr(b, item.name)
    ]


def _difference(name: str, a: Any, b: Any) -> str:
    first, second = _text(name, a), _text(name, b)
    if name != "channels":
        return f"{first} against {second}"
    only = [[ch for ch in mine if ch not in other] for mine, other in ((a, b), (b, a))]
    if not any(only):
        return f"{first} against {second}, in another order"
    what = [f"only in the {side}: {', '.join(names[:6])}{' …' if len(names) > 6 else ''}" for side, names in
            (("first", only[0]), ("second", only[1])) if names]  # fmt: skip
    return f"{first} against {second} ({'; '.join(what)})"


def _text(name: str, value: Any) -> str:
    if name == "channels":
        return str(len(value)) if value else NOT_STATED
    if name == "window":
        return f"{value[0]:g} to {value[1]:g}" if any(value) else NOT_STATED
    if name in ("repetitions", "sfreq"):
        return str(value) if value else NOT_STATED
    return value[:12] if name == "gallery_sha256" else str(value)
