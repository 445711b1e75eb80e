"""`sweep`: subjects x seeds x experiments with one command, here or on a SLURM cluster, and one table at the end.

A tool, not a stage: what it makes are ordinary runs, each with its own manifests. Killed and started again it goes on,
since finished stages are up to date and interrupted ones continue from their checkpoints.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eegrecon.errors import ConfigError

if TYPE_CHECKING:
    from eegrecon.stages.sweep_plan import Run, Sweep

POLL_SECONDS = 1.0
A_WEEK = 7 * 24 * 60  # minutes; submitit's local executor kills a job after five unless told otherwise
EXECUTORS = ("local", "slurm", "inline")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add("file", metavar="FILE", help="the sweep's YAML, such as experiments/pocket/bench.yaml")
    add("overrides", nargs="*", metavar="key=value", help="change a config value in every run")
    add("--executor", default="local", choices=EXECUTORS, help="where workers run (through submitit); default local")
    add("--jobs", type=int, metavar="N", help="workers at a time; default: the sweep's `jobs`")
    add("--only", metavar="PATTERN", help="only runs whose name fits, such as '*/atm_s/*/seed-0'")
    add("--out", metavar="DIR", help="where the runs go; default runs/sweeps/NAME")
    add("--dry-run", action="store_true", help="list the commands and runs, and do nothing")
    add("--table", action="store_true", help="make the table of what is finished, and run nothing")
    add("--skip-data", action="store_true", help="trials and targets are there: do not look again")


def run(options: argparse.Namespace) -> int:
    """Make the data, work off the runs, write the table.

    Returns:
        0; 2 if a run failed (each is listed with its sentence and its log).

    Raises:
        ConfigError: The sweep or one of its configs is wrong, or nothing fits `--only`.
    """
    from rich.console import Console

    from eegrecon.stages.sweep_alive import alone_in
    from eegrecon.stages.sweep_plan import check_runs, data_commands, read_sweep, runs_of

    console = Console(stderr=True, highlight=False)
    sweep = read_sweep(Path(options.file), options.overrides)
    root = Path(options.out) if options.out else Path("runs") / "sweeps" / sweep.name
    every = runs_of(sweep, root)
    runs = [run for run in every if options.only is None or fnmatch.fnmatch(run.name, options.only)]
    if not runs:
        raise ConfigError(f"No run of {options.file} fits --only {options.only!r}: names look like {every[0].name}.")
    check_runs(runs)
    commands = [] if options.skip_data else data_commands(runs, options.overrides)
    if options.dry_run:
        for words in commands:
            console.print(f"first: eegrecon {shlex.join(words)}", markup=False, soft_wrap=True)
        for one in runs:
            console.print(f"{one.name}: {one.directory}", markup=False, soft_wrap=True)
        return 0
    failed: list[dict[str, Any]] = []
    if not options.table:
        with alone_in(root) as state:
            for words in commands:
                code = subprocess.run([sys.executable, "-m", "eegrecon", *words], check=False).returncode
                if code:
                    return code
            failed = _work(sweep, runs, state, options)
    from eegrecon.stages.sweep_table import write_table

    write_table(every, root, sweep)
    for outcome in failed:
        console.print(
            f"eegrecon: {outcome['name']} failed: {outcome['error']} (log: {outcome['log']})",
            markup=False,
            soft_wrap=True,
        )
    return 2 if failed else 0


def _work(sweep: Sweep, runs: Sequence[Run], state: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Work off the runs with as many workers as asked for; returns the outcomes of those that failed."""
    from eegrecon.stages.progress import progress_bars
    from eegrecon.stages.sweep_alive import RUNS
    from eegrecon.stages.sweep_plan import write_runs
    from eegrecon.stages.sweep_worker import LOG, Worker, outcomes

    write_runs(state / RUNS, runs)
    jobs: list[Any] = []
    ended_by = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: workers are stopped, too
    try:
        if options.executor == "inline":
            Worker()(str(state))
        else:
            executor = _executor(options.executor, sweep, state)
            count = min(len(runs), options.jobs or sweep.jobs)
            parent = os.getpid() if options.executor == "local" else None
            jobs = [executor.submit(Worker(parent), str(state)) for _ in range(count)]
            with progress_bars() as bars:
                bar = bars.add_task("runs", total=len(runs))
                while not all(job.done() for job in jobs):
                    _show(bars, bar, outcomes(state))
                    time.sleep(POLL_SECONDS)
                _show(bars, bar, outcomes(state))
        ended = outcomes(state)
        failed = []
        for number, one in enumerate(runs):
            lost = {"name": one.name, "state": "failed", "error": _lost(jobs, state)}
            outcome = ended.get(number, lost)
            if outcome["state"] == "failed":
                failed.append({**outcome, "log": str(Path(one.directory) / LOG)})
        return failed
    except BaseException:
        for job in jobs:
            job.cancel(check=False)
        raise
    finally:
        signal.signal(signal.SIGTERM, ended_by)
        if not jobs or all(job.done() for job in jobs):
            shutil.rmtree(state, ignore_errors=True)


def _executor(name: str, sweep: Sweep, state: Path) -> Any:
    """A submitit executor; the number of threads goes to workers through their environment."""
    import submitit

    if name == "slurm" and shutil.which("sbatch") is None:
        raise ConfigError("--executor slurm needs the command sbatch, which is not on the PATH: log in to the cluster.")
    try:
        executor = submitit.AutoExecutor(folder=state / "%j", cluster=name)
        settings = (
            {"timeout_min": A_WEEK, "name": sweep.name} if name == "local" else {"name": sweep.name, **sweep.slurm}
        )
        executor.update_parameters(**settings)
    except (NameError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"The sweep's slurm block does not fit submitit: {str(error).splitlines()[0]}.") from error
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is imported, in the worker
        os.environ[variable] = str(sweep.threads)
    return executor


def _show(bars: Any, bar: Any, ended: dict[int, dict[str, Any]]) -> None:
    failed = sum(outcome["state"] == "failed" for outcome in ended.values())
    bars.update(bar, completed=len(ended), description=f"runs, {failed} failed" if failed else "runs")


def _lost(jobs: Sequence[Any], state: Path) -> str:
    """Why a run has no outcome: its worker died."""
    for job in jobs:
        error = job.exception() if job.done() else None
        if error is not None:
            lines = str(error).strip().splitlines()
            return f"its worker died ({lines[-1] if lines else type(error).__name__}); the same command goes on"
    return "it was not reached; the same command goes on"
