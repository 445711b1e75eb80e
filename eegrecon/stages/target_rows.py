"""From pictures to rows of a target store: batched, with pictures read ahead, on one device or several.

The batches lie on a fixed grid (0…b, b…2b, …) whatever was written before and however many devices share them, so a
resumed run and a shared one compute the very same numbers as one straight run.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from eegrecon.data.blur import Blur
from eegrecon.data.images import ImageSet
from eegrecon.errors import ConfigError, DataError, EegreconError
from eegrecon.stages.target_plan import Plan, build

if TYPE_CHECKING:
    from PIL import Image

READERS = (
    4  # threads that read, decode and blur pictures while the network works; PIL and scipy let go of Python's lock
)
AHEAD = 2  # batches that wait for the network, or for the writer from each process: what memory holds at most


@dataclass(frozen=True)
class Batch:
    """Pictures `start…stop` of a partition, of which rows before `skip` are written already."""

    partition: str
    start: int
    stop: int
    skip: int

    def index(self, images: ImageSet) -> np.ndarray:
        """Their `image_index`, (k,) int64."""
        return (images.train_index if self.partition == "train" else images.test_index)[self.start : self.stop]


def batches(images: ImageSet, size: int, done: dict[str, int]) -> list[Batch]:
    """Every batch that has rows to write, training pictures first, on the grid that starts at row 0."""
    counts = {"train": len(images.train_index), "test": len(images.test_index)}
    return [
        Batch(partition, start, min(start + size, count), max(start, done[partition]))
        for partition, count in counts.items()
        for start in range(done[partition] - done[partition] % size, count, size)
        if done[partition] < count
    ]


def devices(accelerator: str, wanted: int) -> list[str]:
    """The devices that share the work, such as ["cuda:0", "cuda:1"]; on CPU as many processes as asked for.

    Raises:
        ConfigError: There are fewer GPUs than asked for.
    """
    there = torch.cuda.device_count() if accelerator != "cpu" else 0
    if wanted == 0 or (accelerator == "gpu" and not there) or (there and wanted > there):
        raise ConfigError(
            f"hardware asks for {wanted} devices of the accelerator {accelerator}, but this machine has {there} GPUs: "
            "set hardware.devices (-1: all) and hardware.accelerator (auto, cpu or gpu) to what is there."
        )
    if not there:
        return ["cpu"] * max(wanted, 1)
    return [f"cuda:{number}" for number in range(there if wanted == -1 else wanted)]


def encoded(
    plan: Plan, model: Any, images: ImageSet, todo: Sequence[Batch], places: Sequence[str]
) -> Iterator[np.ndarray]:
    """The model's answer to every batch, in order; with several places, processes share the batches out.

    Raises:
        DataError: A picture cannot be read, a batch is too large for the device, or a process died.
    """
    if len(places) == 1 or len(todo) == 1:
        if hasattr(model, "to"):
            model.to(places[0])
        yield from _encode(model, images, todo, plan.blur, places[0])
        return
    # spawn: a forked process cannot use a GPU, and must not inherit the threads of this one
    context = multiprocessing.get_context("spawn")
    lines, workers = [], []
    try:
        for rank, place in enumerate(places):
            lines.append(context.Queue(maxsize=AHEAD))
            arguments = (plan, images.set_root, todo[rank :: len(places)], place, torch.get_num_threads(), lines[-1])
            workers.append(context.Process(target=_work, args=arguments, daemon=True))
            workers[-1].start()
        for _, (line, worker, place) in zip(todo, cycle(zip(lines, workers, places, strict=True)), strict=False):
            yield _receive(line, worker, place)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _receive(line: Any, worker: Any, place: str) -> np.ndarray:
    while True:
        alive = worker.is_alive()  # asked before the queue: a process that ended well has emptied itself into it
        try:
            answer = line.get(timeout=1)
        except queue.Empty:
            if alive:
                continue
            raise DataError(
                f"The process that computes targets on {place} died (exit code {worker.exitcode}; its own words, if "
                "any, are above): lower targets.<name>.batch_size or hardware.devices if it ran out of memory, then "
                "run the same command, which goes on where it stopped."
            ) from None
        if isinstance(answer, EegreconError):
            raise answer
        return np.asarray(answer)


def _work(plan: Plan, set_root: Path, todo: Sequence[Batch], place: str, threads: int, line: Any) -> None:
    """What one of several processes does: build the network, answer its share of the batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too and ends this process
    torch.set_num_threads(threads)  # as the parent: the number of threads decides the order of sums
    try:
        model = build(plan).to(place)
        for values in _encode(model, ImageSet.from_root(set_root), todo, plan.blur, place):
            line.put(values)
    except EegreconError as error:
        line.put(error)


def _encode(model: Any, images: ImageSet, todo: Sequence[Batch], blur: Blur, place: str) -> Iterator[np.ndarray]:
    def read(number: int) -> Image.Image:
        return blur(images.load(number))

    with ThreadPoolExecutor(READERS) as pool, _exact(place):
        waiting: deque[list[Future[Image.Image]]] = deque()
        rest = iter(todo)

        def order() -> None:
            if (batch := next(rest, None)) is not None:
                waiting.append([pool.submit(read, int(number)) for number in batch.index(images)])

        try:
            for _ in range(AHEAD):
                order()
            while waiting:
                pictures = [future.result() for future in waiting.popleft()]
                order()
                yield _answer(model.encode, pictures, place)
        finally:
            pool.shutdown(cancel_futures=True)


def _answer(encode: Callable[[list[Image.Image]], np.ndarray], pictures: list[Image.Image], place: str) -> np.ndarray:
    try:
        return encode(pictures)
    except torch.OutOfMemoryError as error:
        raise DataError(
            f"{len(pictures)} pictures at once are too many for {place}: lower targets.<name>.batch_size, then run the "
            "same command, which goes on where it stopped."
        ) from error


def _exact(place: str) -> AbstractContextManager[Any]:
    """On a GPU: full float32 in convolutions (the patch embedding would be rounded to TF32), one algorithm always."""
    if place == "cpu":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
