"""Who is working on a sweep: every worker shows that it is alive, so that no run is ever made by two at once."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

BEAT_SECONDS = 20.0
SILENT_SECONDS = 120.0  # after which it counts as dead, whatever has its PID now


@contextlib.contextmanager
def beating(state: Path) -> Iterator[None]:
    """While inside, a file `HOST-PID.alive` in the sweep's state folder is touched again and again."""
    sign, done = Path(state) / f"{socket.gethostname()}-{os.getpid()}.alive", threading.Event()
    sign.touch()

    def beat() -> None:
        while not done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(sign)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        sign.unlink(missing_ok=True)


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
