"""The verb `look-alike`: options to files, errors as one sentence."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eegrecon import cli
from eegrecon.pocket.brain_params import BrainParams
from eegrecon.stages.look_alike import GAIN

SMALL = ["--concepts", "2", "--test-concepts", "2", "--exemplars", "2", "--test-repetitions", "4", "--size", "16"]


def run(out, *words):
    return cli.main(["look-alike", "--out", str(out), *SMALL, *words])


def test_noise_with_pictures_and_features(tmp_path):
    assert run(tmp_path, "--layout", "preprocessed", "--signal", "noise", "--subject", "1", "--subject", "3") == 0
    for subject in ("sub-01", "sub-03"):
        loaded = np.load(
            tmp_path / "Preprocessed_data_250Hz" / subject / "preprocessed_eeg_test.npy", allow_pickle=True
        )
        assert loaded["preprocessed_eeg_data"].shape == (2, 4, 63, 250)
    pictures = sorted(tmp_path.glob("images_set/t*_images/*/*.jpg"))
    assert len(pictures) == 6
    with Image.open(pictures[0]) as picture:
        assert picture.size == (16, 16)
    assert (tmp_path / "ViT-H-14_features_train.pt").is_file()
    # Another layout of the same pictures goes into the same folder.
    assert run(tmp_path, "--layout", "raw", "--signal", "noise") == 0
    assert len(list(tmp_path.glob("Raw_data/sub-01/ses-0?/*.npy"))) == 8


@pytest.mark.parametrize("layout", ["preprocessed", "original", "pt", "raw", "meg_fif", "meg_pkl"])
def test_the_printed_command_goes_on(tmp_path, monkeypatch, capsys, layout):
    """What is printed after a look-alike is run as it stands, in a folder with a name that a shell would split."""
    monkeypatch.chdir(tmp_path)
    out = Path("my things")
    assert run(out, "--layout", layout, "--signal", "noise", "--subject", "2") == 0
    said = capsys.readouterr().out.strip().splitlines()
    assert said[0] == "Go on with:"
    program, *words = shlex.split(said[1])
    assert (program, words[0]) == ("eegrecon", "prepare-data")
    assert cli.main(words) == 0
    header = json.loads((out / "trials/sub-02/header.json").read_text())
    n_chans = {"original": 17}.get(layout, 271 if layout.startswith("meg") else 63)
    assert (header["subject"], len(header["ch_names"])) == (2, n_chans)
    if layout == "original":
        assert "reordered" in header["preprocessing"]["channels"]


def test_without_pictures_there_is_nothing_to_go_on_with(tmp_path, capsys):
    assert run(tmp_path, "--layout", "pt", "--signal", "noise", "--no-pictures") == 0
    assert "leave out --no-pictures" in capsys.readouterr().out


def test_defaults_of_meg(tmp_path):
    words = ["--layout", "meg_pkl", "--out", str(tmp_path), "--concepts", "1", "--test-concepts", "1"]
    assert cli.main(["look-alike", *words, "--signal", "noise", "--no-pictures"]) == 0
    files = sorted(tmp_path.rglob("*.*"))
    assert [file.name for file in files] == ["preprocessed_meg_training.pkl", "preprocessed_meg_zs_test.pkl"]
    assert all(file.stat().st_size > 12 * 271 * 201 * 8 for file in files)  # 12 pictures, 12 repetitions


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layout", "npz"], "There is no layout 'npz'"),
        (["--layout", "raw", "--no-pictures"], "give --signal noise with --no-pictures"),
        (["--layout", "raw", "--size", "4"], "--size must be 8 pixels or more, but it is 4."),
        (["--layout", "raw", "--gap", "0"], "--gap must be between 0.05 and 60 seconds, but it is 0.0."),
        (["--layout", "raw", "--concepts", "0"], "--concepts must be 1 or more."),
        (["--layout", "raw", "--signal", "x"], "invalid choice: 'x'"),
        ([], "the following arguments are required: --layout"),
    ],
)
def test_errors_are_one_sentence(tmp_path, capsys, words, message):
    assert run(tmp_path / "out", *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message.lower() in lines[0].lower()
    assert not (tmp_path / "out").exists()


def test_help_imports_nothing_heavy(capsys):
    import subprocess
    import sys

    script = (
        "import sys; from eegrecon.cli import main\n"
        "try: main(['look-alike', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(str([name for name in ('torch', 'numpy', 'mne') if name in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert "--test-repetitions" in done.stdout


@pytest.mark.slow
def test_the_brain_sees_the_pictures(tmp_path):
    words = ["--layout", "preprocessed", "--concepts", "4", "--exemplars", "4", "--test-repetitions", "80"]
    assert run(tmp_path, *words) == 0
    home = tmp_path / "Preprocessed_data_250Hz" / "sub-01"
    data = np.load(home / "preprocessed_eeg_test.npy", allow_pickle=True)["preprocessed_eeg_data"]
    assert 0.8 < data.std() < 1.5  # unitless
    evoked = data.mean(axis=(0, 1))
    assert evoked[:, 20:60].std() > 1.5 * evoked[:, 200:].std()  # 80-240 ms against the trial's end
    # A picture's own response: two halves of its trials are more alike than halves of two pictures' trials.
    one, other = (data[row].reshape(2, 40, -1).mean(axis=1) - evoked.ravel() for row in (0, 1))
    assert np.corrcoef(one[0], one[1])[0, 1] > np.corrcoef(one[0], other[1])[0, 1] + 0.2
    assert BrainParams().gain == GAIN
