"""Read the ground truth that `prepare-data` saves beside a simulated subject's trials.

Later validity tests compare what a decoder or an analysis finds with what was put in; no stage of the chain reads this.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eegrecon.errors import DataError

RECORD = "truth.json"
ARRAYS = ("codes", "topographies", "time_courses", "evoked")


@dataclass(frozen=True)
class Truth:
    """What decided one subject.

    Attributes:
        record: ``truth.json``: parameters, areas with latencies and shares, every dipole (area, hemisphere, position,
            direction, latency, width) and for each component its area, dipole and kind of unit.
        codes: how strongly each picture drives each component, ``(n_images, k)``.
        topographies: uV at each electrode for a code of one, ``(k, 63)``.
        time_courses: each component's response averaged over the latency jitter, ``(k, 250)``, 250 Hz from onset.
        evoked: the response every picture evokes, uV, ``(63, 250)``.
    """

    record: dict[str, Any]
    codes: np.ndarray
    topographies: np.ndarray
    time_courses: np.ndarray
    evoked: np.ndarray

    @classmethod
    def load(cls, directory: Path) -> Truth:
        """Read ``<root>/<set>/truth/sub-XX``.

        Raises:
            DataError: a file is missing.
        """
        missing = [name for name in (RECORD, *(f"{a}.npy" for a in ARRAYS)) if not (directory / name).is_file()]
        if missing:
            raise DataError(f"{directory} lacks {', '.join(missing)}; make it with `make prepare-data`")
        arrays = {name: np.load(directory / f"{name}.npy", allow_pickle=False) for name in ARRAYS}
        return cls(json.loads((directory / RECORD).read_text(encoding="utf-8")), **arrays)

    def noise_free(self, image_indices: Sequence[int] | np.ndarray, areas: Sequence[str] | None = None) -> np.ndarray:
        """Return what infinitely many repetitions would average to, ``(m, 63, 250)`` float32 uV.

        Args:
            image_indices: ``(m,)`` positions in ``images.json``.
            areas: only these areas' share, without the evoked response that all pictures have in common.
        """
        rows = self.codes[np.asarray(image_indices, dtype=np.int64)]
        if areas is not None:
            unknown = set(areas) - set(self.record["areas"])
            if unknown:
                raise DataError(f"no area {sorted(unknown)} in this subject; choose from {list(self.record['areas'])}")
            rows = rows * np.array([item["area"] in areas for item in self.record["components"]], dtype=rows.dtype)
        out = np.stack([self.topographies.T @ (row[:, None] * self.time_courses) for row in rows])
        return np.asarray(out if areas is not None else out + self.evoked, dtype=np.float32)
