"""Who is working on a sweep: whoever does shows that it is alive, so that no run is ever made by two at once.

The call itself leaves a sign as well, from before data are made until its last worker has ended: workers that are
pending on a cluster or still import have none. When a call is killed, its workers stay: one that runs keeps its sign
and is waited for; a SLURM job whose turn comes later either finds its folder gone and ends, or takes runs as usual and
shows itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from eegrecon.errors import ConfigError

BEAT_SECONDS = 20.0
SILENT_SECONDS = 120.0  # after which it counts as dead, whatever has its PID now
RUNS = "runs.json"  # of a state folder: what its workers read
_OWN: set[Path] = set()


@contextlib.contextmanager
def beating(state: Path) -> Iterator[None]:
    """While inside, a file `HOST-PID.alive` in the sweep's state folder is touched again and again."""
    sign, done = Path(state) / f"{socket.gethostname()}-{os.getpid()}.alive", threading.Event()
    if sign in _OWN:  # the call's own, which works off the runs itself (inline) and needs it for longer
        yield
        return
    sign.touch()
    _OWN.add(sign)

    def beat() -> None:
        while not done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(sign)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        _OWN.discard(sign)
        sign.unlink(missing_ok=True)


@contextlib.contextmanager
def alone_in(root: Path) -> Iterator[Path]:
    """A state folder for this call, shown to be alive while inside; what calls that were killed have left is removed.

    Raises:
        ConfigError: Another call is at work in the sweep's directory.
    """
    folder = Path(root) / ".sweep"
    state = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    state.mkdir(parents=True)
    try:
        with beating(state):  # before looking for others: of two calls at one moment neither may miss the other
            if busy := at_work(root):
                raise ConfigError(
                    f"An earlier call is still at work in {root} ({', '.join(busy)}): wait for it, stop it, or give "
                    "another --out."
                )
            for old in folder.iterdir():
                if old != state:
                    shutil.rmtree(old, ignore_errors=True)
            yield state
    finally:
        if not (state / RUNS).exists():  # no worker knows this folder; else its end is for who waits for them
            shutil.rmtree(state, ignore_errors=True)


def at_work(root: Path) -> list[str]:
    """The processes, `HOST-PID`, that other calls have at work in a sweep's directory.

    A PID alone proves nothing: in a container that was killed and started again the host's name is the same and small
    PIDs come back, even this process's own.
    """
    found = []
    for sign in sorted((Path(root) / ".sweep").glob("*/*.alive")):
        host, _, pid = sign.stem.rpartition("-")
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            here = host == socket.gethostname()
            gone = here and (int(pid) == os.getpid() or not exists(int(pid)))
            if not gone and time.time() - sign.stat().st_mtime < SILENT_SECONDS:
                found.append(sign.stem)
    return found


def exists(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
