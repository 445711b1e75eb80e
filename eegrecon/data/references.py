"""Whether somebody's EEG is measured against the reference that training trials were measured against.

An encoder learns potentials against one electrode (or average of some), and the same trials against another are other
numbers: on the pocket set an average reference takes top-1 of 100 from .56 to .43, Cz to .34, and nothing looks odd.
"""

from __future__ import annotations

from typing import Any

from eegrecon.errors import DataError

AS_RECORDED = "as recorded"
# What `preprocessing.reference` says where no reference was applied to a recording; a simulated brain has infinity.
UNTOUCHED = (None, AS_RECORDED, "infinity")
AVERAGE_PROJECTOR = 10  # FIFFV_PROJ_ITEM_EEG_AVREF, the kind of a projector that subtracts the average


def check_reference(epochs: Any, reference: str | None, as_array: str) -> list[str]:
    """Refuse epochs that were re-referenced where training trials were not, and the other way round.

    Args:
        epochs: `mne.Epochs`. MNE says whether a reference was set, not which.
        reference: What was applied to the training trials, `preprocessing.reference`; None: the manifest does not say.
        as_array: What an array must be, for the message.

    Returns:
        What the user should know, a sentence each.

    Raises:
        DataError: Says how to undo it, or how to use these epochs all the same.
    """
    active = [projector for projector in epochs.info["projs"] if projector["active"]]
    averaged = any(projector["kind"] == AVERAGE_PROJECTOR for projector in active)
    how = "an average reference projector is applied" if averaged else 'MNE\'s info["custom_ref_applied"] is set'
    applied = averaged or bool(epochs.info["custom_ref_applied"])
    way_out = (
        "; who wants these numbers all the same, or knows that the reference is right, passes "
        f'epochs.get_data(units="uV") as {as_array}.'
    )
    if reference in UNTOUCHED and applied:
        said = "their manifest names none" if reference is None else f"their reference is {reference!r}"
        raise DataError(
            f"The epochs were re-referenced ({how}), but the encoder's training trials were not ({said}): hand over "
            f"epochs with the reference of the recording{way_out}"
        )
    if reference not in UNTOUCHED and not applied:
        raise DataError(
            f"The encoder's training trials were re-referenced to {reference}, but the epochs were not "
            f'(info["custom_ref_applied"] is off): call epochs.set_eeg_reference likewise{way_out}'
        )
    notes = []
    if applied:
        notes.append(f"the epochs were re-referenced, the training trials to {reference}: is it the same?")
    if others := [str(projector["desc"]) for projector in active if projector["kind"] != AVERAGE_PROJECTOR]:
        notes.append(f"projectors are applied that training did not have: {', '.join(others)}")
    return notes
