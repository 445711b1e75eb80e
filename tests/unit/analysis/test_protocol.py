import json
from dataclasses import replace

import pytest

from eegrecon.analysis.protocol import STAMP, Protocol, gallery_hash, unlike
from eegrecon.errors import ArtifactError

STAMPED = Protocol(
    set="things_eeg2",
    split="test",
    training="within_subject",
    subjects=(8,),
    gallery_kind="exact picture",
    gallery_n=200,
    gallery_sha256=gallery_hash(["test/00001_aircraft_carrier/aircraft_carrier_06s"]),
    repetitions=80,
    channels=("O1", "O2"),
    window=(0.0, 1.0),
    sfreq=250.0,
    selection="best val/retrieval_top1_200way",
    target="clip-vit-h-14",
)


def test_it_survives_metrics_json():
    protocol = json.loads(json.dumps({"set": "things_eeg2", STAMP: STAMPED.to_dict()}))
    assert Protocol.from_metrics(protocol) == STAMPED


@pytest.mark.parametrize("protocol", [{}, {STAMP: {"set": "pocket"}}])
def test_a_number_without_a_stamp_is_refused(protocol):
    with pytest.raises(ArtifactError, match=r"no protocol stamp of this version .*`eegrecon evaluate` again"):
        Protocol.from_metrics(protocol)


def test_what_differs_is_named():
    assert unlike(STAMPED, STAMPED) == []
    assert unlike(STAMPED, replace(STAMPED, repetitions=1)) == ["repetitions: 80 against 1"]
    assert unlike(STAMPED, replace(STAMPED, transductive=True, sfreq=200.0)) == [
        "sfreq: 250.0 against 200.0",
        "transductive: False against True",
    ]
    # whose subject it is and which space was learnt do not make numbers unlike
    assert unlike(STAMPED, replace(STAMPED, subjects=(1, 2), target="clip-pocket")) == []


def test_long_values_are_said_shortly():
    other = replace(STAMPED, channels=("O2", "O1"), gallery_sha256="f" * 64, gallery_n=100)
    assert unlike(STAMPED, other) == [
        "gallery_n: 200 against 100",
        f"gallery_sha256: {STAMPED.gallery_sha256[:12]} against {'f' * 12}",
        "channels: 2 against 2, in another order",
    ]
    assert unlike(STAMPED, other, allowed=["gallery_n", "gallery_sha256", "channels"]) == []
    foreign = replace(STAMPED, channels=(), window=(0.0, 0.0), sfreq=0.0, repetitions=0)
    assert "repetitions: 80 against not stated" in unlike(STAMPED, foreign)
    assert "window: 0 to 1 against not stated" in unlike(STAMPED, foreign)


def test_one_line_for_captions():
    assert STAMPED.describe() == (
        "things_eeg2 test · within_subject · gallery of 200 (exact picture) · 80 repetitions averaged · 2 channels · "
        "0 to 1 s at 250.0 Hz · weights: best val/retrieval_top1_200way · inductive"
    )
