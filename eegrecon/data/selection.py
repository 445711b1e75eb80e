"""Which of a store's trials are used, as a mask, so that nothing is copied, and how many are averaged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eegrecon.errors import ConfigError, DataError

Sessions = Literal["all"] | Sequence[int]
Repetitions = Literal["all"] | int | Sequence[int]
Averaging = Literal["none", "all"] | int  # over a picture's trials: none, all, or k of them


def kept_trials(session: np.ndarray, sessions: Sessions, repetitions: Repetitions, where: Path) -> np.ndarray | None:
    """The trials that are used, or None for all of them.

    Args:
        session: (n_images, n_repetitions), the recording session of each trial; 0: unknown.
        sessions: "all" or their numbers.
        repetitions: "all", a list of positions on the repetition axis, or k for the first k.
        where: The array of trials, for messages.

    Returns:
        (n_images, n_repetitions) bool; a picture may be left without any.

    Raises:
        ConfigError: A repetition is asked for twice.
        DataError: A session or repetition is not there, the store does not know its sessions, or nothing is left.
    """
    keep = np.ones(session.shape, dtype=bool)
    count = session.shape[1]
    if repetitions != "all":
        chosen = list(range(repetitions)) if isinstance(repetitions, int) else list(repetitions)
        if len(set(chosen)) != len(chosen):
            raise ConfigError(f"data.keep_repetitions names a repetition twice: {chosen}.")
        if beyond := [number for number in chosen if not 0 <= number < count]:
            raise DataError(
                f"data.keep_repetitions asks for repetition {beyond[0]}, but {where} has {count}, numbered from 0: "
                "choose among these."
            )
        keep &= np.isin(np.arange(count), chosen)
    if sessions != "all":
        known = np.unique(session).tolist()
        if known == [0]:
            raise DataError(
                f"data.sessions is {list(sessions)}, but {where} does not say in which session a trial was recorded "
                "(the published files leave that out): use all sessions, or prepare the data from the raw recordings."
            )
        if absent := [number for number in sessions if number not in known]:
            raise DataError(
                f"data.sessions asks for session {absent[0]}, but {where} holds {', '.join(map(str, known))}: choose "
                "among these."
            )
        keep &= np.isin(session, list(sessions))
    if not keep.any():
        raise DataError(
            f"No trial in {where} is of the sessions {sessions} and of the repetitions {repetitions} (data.sessions, "
            "data.keep_repetitions): choose others."
        )
    return None if keep.all() else keep


def averaging_of(repetitions: Any) -> Averaging:
    """What `data.repetitions` means: each, average or {average: k}.

    Raises:
        ConfigError: It is none of these.
    """
    if isinstance(repetitions, Mapping) and set(repetitions) == {"average"}:
        count = repetitions["average"]
        if isinstance(count, int) and count > 1:
            return count
    elif repetitions in ("each", "average"):
        return "none" if repetitions == "each" else "all"
    raise ConfigError(f"data.repetitions is {repetitions!r}, expected one of each, average, {{average: k}}, k from 2.")


def plain(choice: Any) -> Any:
    """A choice as JSON gives it back."""
    if isinstance(choice, Mapping):
        return dict(choice)
    return list(choice) if isinstance(choice, Sequence) and not isinstance(choice, str) else choice
