"""How fast, and in how little memory, `prepare-data` converts a real-size training file of THINGS-EEG2.

    python benchmarks/convert_recording.py [--dir DIR] [--concepts 1654] [--rounds 2]

Writes a look-alike of `preprocessed_eeg_training.npy` (16540 x 4 x 63 x 250 float64, 8.3 GB at full size; beside it a
test file of one repetition, 25 MB) into DIR, needs 19 GB there and removes it all. Each round times `cp` of that file
and the whole `eegrecon prepare-data`, both from a cold cache; the order turns from round to round. One line per
measurement: seconds, MB of the source file per second, and the peak memory that `/usr/bin/time -v` prints.
"""

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from eegrecon.artifacts import read_manifest
from eegrecon.pocket.lookalike.eeg import preprocessed_parts
from eegrecon.pocket.lookalike.pickling import write_file

REPETITIONS, EXEMPLARS, TESTS = 4, 10, 200
BLOCK = 64


def fill(n: int, repetitions: int):
    """A function that writes n x repetitions noise trials: the same 64 pictures' again and again, each time scaled."""
    noise = np.random.default_rng(0).standard_normal((BLOCK, repetitions, 63, 250))

    def write(file) -> None:
        for start in range(0, n, BLOCK):
            file.write((noise[: n - start] * (1 + start / n)).data)

    return write


def make(root: Path, concepts: int) -> Path:
    """Write pictures and recordings; returns the training file."""
    from PIL import Image

    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    for side, count, exemplars in (("training_images", concepts, EXEMPLARS), ("test_images", TESTS, 1)):
        for concept in range(count):
            folder = root / "things_eeg2/images_set" / side / f"{concept + 1:05d}_thing{concept:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            for exemplar in range(exemplars):
                (folder / f"thing{concept:04d}_{exemplar:02d}.jpg").write_bytes(jpeg.getvalue())
    home = root / "files/sub-01"
    home.mkdir(parents=True, exist_ok=True)
    n = concepts * EXEMPLARS
    parts = preprocessed_parts(TESTS, 1, fill(TESTS, 1))
    write_file(home / "preprocessed_eeg_test.npy", parts)
    parts = preprocessed_parts(n, REPETITIONS, fill(n, REPETITIONS))
    return write_file(home / "preprocessed_eeg_training.npy", parts)


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(file: Path) -> float:
    """Seconds of `cp` and `sync` of the copy, which is removed."""
    target = file.with_name("copy")
    forget(file)
    start = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", file, target], check=True)
    plain = time.perf_counter() - start
    subprocess.run(["sync", target], check=True)
    synced = time.perf_counter() - start
    target.unlink()
    print(f"cp            {plain:7.1f} s {file.stat().st_size / plain / 1e6:7.0f} MB/s", end="   ")
    print(f"with sync {synced:.1f} s {file.stat().st_size / synced / 1e6:.0f} MB/s", flush=True)
    return plain


def convert(root: Path, file: Path) -> float:
    """Seconds of `eegrecon prepare-data`; the store is removed."""
    forget(file)
    config = root / "prepare-data.yaml"
    config.write_text(
        f"data: {{set: things_eeg2, root: {root}, subjects: [1]}}\n"
        f"source: {{name: preprocessed, args: {{path: {root / 'files'}}}}}\n"
    )
    words = [sys.executable, "-m", "eegrecon", "prepare-data", "--config", str(config)]
    start = time.perf_counter()
    done = subprocess.run(["/usr/bin/time", "-v", *words], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    peak = int(re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)[1])
    store = root / "things_eeg2/trials"
    wall = read_manifest(store / "sub-01", verify=False).wall_seconds
    size = file.stat().st_size
    print(f"prepare-data  {seconds:7.1f} s {size / seconds / 1e6:7.0f} MB/s", end="   ")
    print(f"of which the store {wall} s {size / wall / 1e6:.0f} MB/s   peak {peak / 1e6:.2f} GB", flush=True)
    shutil.rmtree(store)
    return seconds


def main() -> None:
    """Measure and clean up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("/tmp/convert_recording"))
    parser.add_argument("--concepts", type=int, default=1654)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    options.dir.mkdir(parents=True)  # it is removed at the end, so it must be ours
    try:
        file = make(options.dir, options.concepts)
        print(f"{file.name}: {file.stat().st_size:,} bytes, load average {os.getloadavg()[0]:.1f}", flush=True)
        ratios = []
        for number in range(options.rounds):
            if number % 2:
                converted, copied = convert(options.dir, file), copy(file)
            else:
                copied, converted = copy(file), convert(options.dir, file)
            ratios.append(converted / copied)
        print(f"prepare-data takes {np.median(ratios):.2f} times as long as cp (median of {len(ratios)} rounds)")
    finally:
        shutil.rmtree(options.dir)


if __name__ == "__main__":
    main()
