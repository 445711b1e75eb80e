"""What one worker of a sweep does: takes runs that nobody has taken, one after another, until none is left."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from eegrecon.artifacts import write_json
from eegrecon.errors import EegreconError
from eegrecon.stages.sweep_alive import RUNS, beating, exists
from eegrecon.stages.sweep_plan import VERBS, Run, folder_of, load_runs

LOG = "sweep.log"


class Worker:
    """A callable for submitit: `Worker()(state)`; on a cluster's time limit it is requeued and goes on.

    Several workers share a folder `state`: `runs.json` lists the runs, `NNN.claim` marks one as taken, `NNN.json` says
    how it ended. All imports are paid once a worker, not once a run.
    """

    def __init__(self, parent: int | None = None) -> None:
        """Args: parent: the process that waits for this worker on this machine; when it is gone, no run is begun."""
        self._parent = parent
        self._claim: Path | None = None

    def __call__(self, state: str) -> int:
        """Work off the runs; returns how many this worker has done."""
        folder, count = Path(state), 0
        with beating(folder):
            for number, run in enumerate(load_runs(folder / RUNS)):
                if self._parent is not None and not exists(self._parent):
                    break
                claim = folder / f"{number:05d}.claim"
                try:
                    os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                except FileExistsError:
                    continue
                self._claim = claim
                write_json(claim.with_suffix(".json"), do_run(run))
                self._claim = None
                count += 1
        return count

    def checkpoint(self, state: str) -> Any:
        """Called by submitit when the cluster takes the machine back: the run in progress is free again."""
        from submitit.helpers import DelayedSubmission

        if self._claim is not None:
            self._claim.unlink(missing_ok=True)
        return DelayedSubmission(Worker(self._parent), state)


def do_run(run: Run) -> dict[str, Any]:
    """Train and evaluate one run, its output in `sweep.log`.

    Returns:
        {name, state: done | failed, seconds, error}: the sentence of an error that a user can mend, else the last line
        of the traceback, which the log holds whole.
    """
    directory = Path(run.directory)
    directory.mkdir(parents=True, exist_ok=True)
    started, error = time.monotonic(), ""
    with open(directory / LOG, "a", encoding="utf-8") as log, _said_into(log):
        try:
            for verb, subject in [(VERBS[0], run.tested[0]), *((VERBS[1], subject) for subject in run.tested)]:
                _stage(verb, run, subject)
        except EegreconError as failure:
            error = str(failure)
            log.write(f"eegrecon: {error}\n")
        except Exception as failure:  # one broken run must not stop the others; the log has everything
            error = f"{type(failure).__name__}: {failure}"
            log.write(traceback.format_exc())
    seconds = round(time.monotonic() - started, 1)
    return {"name": run.name, "state": "failed" if error else "done", "seconds": seconds, "error": error}


class _Following(io.TextIOBase):
    """A text stream that writes to wherever `target` points now.

    Loggers keep the stream that was stderr when they were made; were that one run's log, they would write to a closed
    file in the next run.
    """

    def __init__(self) -> None:
        self.target: TextIO | None = None

    def write(self, text: str) -> int:
        """Write to the log of the run in progress, between runs to stderr."""
        return (self.target or sys.__stderr__ or sys.stderr).write(text)

    def flush(self) -> None:
        """Flush the same."""
        (self.target or sys.__stderr__ or sys.stderr).flush()


_SAID = _Following()


@contextlib.contextmanager
def _said_into(log: TextIO) -> Iterator[None]:
    """What is printed or logged goes to `log`, by loggers of earlier runs, too."""
    _SAID.target = log
    try:
        with contextlib.redirect_stdout(_SAID), contextlib.redirect_stderr(_SAID):
            yield
    finally:
        _SAID.target = None


def _stage(verb: str, run: Run, subject: int) -> None:
    config = run.config(verb, subject)
    stage = importlib.import_module(f"eegrecon.stages.{verb.replace('-', '_')}")
    words = ["eegrecon", verb, "--exp", run.experiment, "--run", run.directory, "--subject", str(subject)]
    command = shlex.join([*words, f"data.protocol={run.protocol}", f"seed={run.seed}", *run.overrides])
    stage.run(config, directory=Path(run.directory) / folder_of(verb, config), command=command)


def outcomes(state: Path) -> dict[int, dict[str, Any]]:
    """How the runs that have ended ended, by number."""
    return {int(path.stem): json.loads(path.read_text(encoding="utf-8")) for path in state.glob("[0-9]*.json")}
