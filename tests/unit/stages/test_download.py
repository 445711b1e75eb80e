"""The verb `download`, from options to files, against a local server in the place of the publishers."""

import hashlib
import json
import shlex
import subprocess
import sys
from collections import namedtuple

import pytest

from eegrecon import cli
from eegrecon.config import load
from eegrecon.data import catalogue, fetch, listings
from eegrecon.data.catalogue import Entry, PublishedFile
from eegrecon.stages import download
from tests.web_server import serving

BODY = b"0123456789" * 1000
SUB = "eeg/sub-{subject:02d}"
SMALL = Entry("small", "a small set", "huggingface", "me/small", (PublishedFile(f"{SUB}/train.npy", len(BODY)),
              PublishedFile(f"{SUB}/test.npy", 10)), "CC0", (1, 2), layout="preprocessed", holds="eeg")  # fmt: skip
WHOLE = Entry("whole", "all of it", "huggingface", "me/small", (PublishedFile("*"),), into="all", note="Unpack it.")


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(download, "PAUSE", 0.001)
    with serving() as running:
        monkeypatch.setitem(listings.ENDPOINTS, "huggingface", running.url)
        for entry in (SMALL, WHOLE):
            monkeypatch.setitem(catalogue.CATALOGUE, entry.name, entry)
        yield running


def publish(server, *subjects):
    everything = []
    for subject in subjects:
        folder = f"eeg/sub-{subject:02d}"
        files = {f"{folder}/train.npy": BODY, f"{folder}/test.npy": b"t" * 10}
        items = [{"type": "file", "path": path, "size": len(body), "oid": "x",
                  "lfs": {"oid": hashlib.sha256(body).hexdigest()}} for path, body in files.items()]  # fmt: skip
        everything += items
        server.add(f"/api/datasets/me/small/tree/main/{folder}", json.dumps(items).encode())
        for path, body in files.items():
            server.add(f"/datasets/me/small/resolve/main/{path}", body)
    server.add("/api/datasets/me/small/tree/main", json.dumps(everything).encode())


def sentence(capsys, *words):
    assert cli.main(["download", *words]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0], captured.out


def test_it_arrives_and_says_how_to_go_on(server, tmp_path, capsys):
    publish(server, 1, 2)
    assert cli.main(["download", "small", "--out", str(tmp_path), "--subject", "2"]) == 0
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert files == {"eeg/sub-02/train.npy": BODY, "eeg/sub-02/test.npy": b"t" * 10}
    said = capsys.readouterr().out
    assert "sub-02/train.npy  10,000 bytes  downloaded, verified by size and sha256" in said
    assert "licence: CC0" in said
    source = f'ARGS="source.name=preprocessed source.args.path={tmp_path / "eeg"}"'
    assert f"make prepare-data EXP=things_eeg2/atm_s SUBJECT=2 {source}" in said
    assert f"eegrecon inspect {tmp_path / 'eeg'}" in said


def test_again_only_verifies_and_the_rest_is_added(server, tmp_path, capsys):
    publish(server, 1, 2)
    assert cli.main(["download", "small", "--out", str(tmp_path), "--subject", "2"]) == 0
    capsys.readouterr()
    server.asked.clear()
    assert cli.main(["download", "small", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count("was there, verified by size and sha256") == 2
    assert said.count("downloaded, verified by size and sha256") == 2
    assert [path for path, _ in server.asked if "resolve" in path] == [
        "/datasets/me/small/resolve/main/eeg/sub-01/train.npy", "/datasets/me/small/resolve/main/eeg/sub-01/test.npy",
    ]  # fmt: skip


def test_without_a_folder_it_goes_where_prepare_data_looks(server, tmp_path, monkeypatch):
    publish(server, 1)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["download", "small", "--subject", "1"]) == 0
    assert (tmp_path / "data/things_eeg2/eeg/sub-01/train.npy").read_bytes() == BODY


@pytest.mark.parametrize("entry", [entry for entry in catalogue.ENTRIES if entry.layout], ids=lambda entry: entry.name)
def test_the_commands_to_go_on_with_have_valid_configs(server, capsys, entry):
    assert cli.main(["download", "--list", entry.name, "--subject", "2", "--out", "/d"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("make prepare-data"))
    given = dict(word.split("=", 1) for word in shlex.split(line)[2:])
    overrides = [*shlex.split(given["ARGS"]), f"data.subjects=[{given['SUBJECT']}]"]
    config = load("prepare-data", given["EXP"], None, overrides)
    assert (config.source.name, config.source.args["path"]) == (entry.layout, f"/d/{entry.holds}")
    assert config.data.set.startswith(entry.set)


def test_the_features_go_on_with_a_valid_config(server, capsys):
    assert cli.main(["download", "--list", "vit-h-14-features", "things-eeg2-images", "--out", "/d"]) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.strip().startswith("make extract-targets"))
    given = dict(word.split("=", 1) for word in shlex.split(line)[2:])
    target = load("extract-targets", given["EXP"], None, shlex.split(given["ARGS"])).targets["clip-vit-h-14"]
    assert (target.model.name, target.model.args) == ("feature_file", {"folder": "/d"})
    assert "tar -xzf /d/images_set.tar.gz -C data/things_eeg2" in said


def test_several_names_and_whole_repositories(server, tmp_path):
    publish(server, 1, 2)
    assert cli.main(["download", "whole", "small", "whole", "--out", str(tmp_path), "--subject", "1"]) == 0
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.npy")) == [
        "all/eeg/sub-01/test.npy", "all/eeg/sub-01/train.npy", "all/eeg/sub-02/test.npy", "all/eeg/sub-02/train.npy",
        "eeg/sub-01/test.npy", "eeg/sub-01/train.npy",
    ]  # fmt: skip


def test_a_damaged_file_is_one_sentence_and_the_others_stay(server, tmp_path, capsys):
    publish(server, 1)
    server.add("/datasets/me/small/resolve/main/eeg/sub-01/test.npy", b"x" * 10)
    line, _ = sentence(capsys, "small", "--out", str(tmp_path), "--subject", "1")
    assert "eeg/sub-01/test.npy is damaged: its sha256 is" in line
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["train.npy"]


def test_without_a_network_the_steps_by_hand_are_printed(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(listings.ENDPOINTS, "huggingface", "http://127.0.0.1:1")
    out = tmp_path / "my data"
    line, said = sentence(capsys, "small", "--out", str(out), "--subject", "2")
    assert "127.0.0.1 cannot be reached" in line
    assert "fetch it by hand" in line
    assert "By hand: from https://huggingface.co/datasets/me/small put" in said
    link = "http://127.0.0.1:1/datasets/me/small/resolve/main/eeg/sub-02/train.npy"
    assert f"{link}  (10,000 bytes)\n      as {out}/eeg/sub-02/train.npy\n" in said
    assert f"eegrecon download small --out '{out}' --subject 2" in said
    assert f"eegrecon inspect '{out}/eeg'" in said
    assert not out.exists()
    _, said = sentence(capsys, "whole", "--out", str(out))
    assert f"    all files\n      into {out}/all\n" in said
    assert "Unpack it." in said


def test_what_was_put_there_by_hand_is_accepted_by_its_size(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(listings.ENDPOINTS, "huggingface", "http://127.0.0.1:1")
    home = tmp_path / "eeg" / "sub-01"
    home.mkdir(parents=True)
    (home / "train.npy").write_bytes(BODY)
    (home / "test.npy").write_bytes(b"t" * 9)
    sentence(capsys, "small", "--out", str(tmp_path), "--subject", "1")
    (home / "test.npy").write_bytes(b"t" * 10)
    assert cli.main(["download", "small", "--out", str(tmp_path), "--subject", "1"]) == 0
    assert "cannot be reached; every file is there with the published size" in capsys.readouterr().out


def test_the_disk_is_asked_for_all_of_it_before_the_first_byte(server, tmp_path, capsys, monkeypatch):
    publish(server, 1, 2)
    usage = namedtuple("usage", "total used free")
    # The first file is there: 10 + 10,010 bytes are missing, and one less is free.
    (tmp_path / "eeg/sub-01").mkdir(parents=True)
    (tmp_path / "eeg/sub-01/train.npy").write_bytes(BODY)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage(0, 0, fetch.SPARE + 10_019))
    line, _ = sentence(capsys, "small", "--out", str(tmp_path))
    assert "small needs 0.00 GB more" in line
    assert not [path for path, _ in server.asked if "resolve" in path]
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage(0, 0, fetch.SPARE + 10_020))
    assert cli.main(["download", "small", "--out", str(tmp_path)]) == 0


def test_a_listing_cannot_write_elsewhere(server, tmp_path, capsys):
    items = [{"type": "file", "path": "../../evil", "size": 1, "oid": "x"}]
    server.add("/api/datasets/me/small/tree/main", json.dumps(items).encode())
    line, _ = sentence(capsys, "whole", "--out", str(tmp_path / "out"))
    assert "lists a file 'all/../../evil', which is no path below" in line
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Name what to download, such as vit-h-14-features: eegrecon download --list shows all."),
        (["vit-h-14-feature"], "'vit-h-14-feature' to download (did you mean 'vit-h-14-features'?)"),
        (["--list", "qqq"], "There is nothing named 'qqq' to download: eegrecon download --list shows all."),
        (["small", "--subject", "3"], "small has the subjects 1 to 2, but it was asked for --subject 3."),
        (["whole", "--subject", "1"], "whole does not come by subject: leave --subject out."),
        (["small", "--subject", "x"], "invalid int value: 'x'"),
        (["small", "--dir", "x"], "nrecognized arguments: --dir"),
    ],
)
def test_bad_input_is_one_sentence(server, capsys, words, message):
    line, said = sentence(capsys, *words)
    assert message in line
    assert said == ""
    assert server.asked == []


def test_the_list_has_everything_and_asks_nobody(server, capsys):
    assert cli.main(["download", "--list"]) == 0
    said = capsys.readouterr().out
    for entry in catalogue.ENTRIES:
        assert f" {entry.name} " in said
    assert " 103.5 GB " in said
    assert " 10 subjects " in said
    assert "about 76.1 MB" in said
    assert server.asked == []


def test_the_list_of_one_says_where_it_is_and_what_is_unknown(server, capsys):
    assert cli.main(["download", "things-eeg2-raw", "things-meg-fif", "--list", "--subject", "3", "--out", "/d"]) == 0
    said = capsys.readouterr().out
    assert (
        "https://files.osf.io/v1/resources/crxs4/providers/googledrive/sub-03.zip\n      as /d/Raw_data/sub-03.zip"
        in said
    )
    assert said.count("size: unknown") == 2
    assert "licence: unknown\n" in said
    assert "version: 2.0.0" in said
    assert "derivatives/preprocessed/preprocessed_P3-epo*.fif\n      into /d/derivatives/preprocessed\n" in said
    assert "make prepare-data EXP=things_meg/atm_s SUBJECT=3" in said
    assert server.asked == []


@pytest.mark.parametrize(
    ("words", "heavy"), [(["--help"], ("torch", "numpy", "rich")), (["--list"], ("torch", "mne", "lightning"))]
)
def test_help_and_list_import_nothing_heavy(words, heavy):
    script = (
        "import sys; from eegrecon.cli import main\n"
        "try: main(['download', *sys.argv[1:]])\n"
        "except SystemExit: pass\n"
        f"sys.exit(str([name for name in {heavy!r} if name in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert done.stdout
