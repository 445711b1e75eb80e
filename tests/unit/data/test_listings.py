"""What the publishers' listings say, in the forms of their interfaces, and the catalogue's own statements."""

import json
from dataclasses import replace

import pytest

from eegrecon.config_schema import SOURCES
from eegrecon.data import listings
from eegrecon.data.catalogue import CATALOGUE, ENTRIES, UNKNOWN, Entry, PublishedFile
from eegrecon.data.listings import link_of, path_of, remotes_of
from eegrecon.data.web import Unreachable
from eegrecon.errors import DataError
from tests.web_server import serving

REPO = "/api/datasets/LidongYang/EEG_Image_decode/tree/main"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as running:
        for kind in ("huggingface", "openneuro", "osf"):
            monkeypatch.setitem(listings.ENDPOINTS, kind, running.url)
        yield running


def lfs(path, size, sha256="ab" * 32):
    return {"type": "file", "oid": "c" * 40, "size": size, "path": path, "lfs": {"oid": sha256, "size": size,
            "pointerSize": 134}}  # fmt: skip


def small(path, size=3):
    return {"type": "file", "oid": "d" * 40, "size": size, "path": path}


def listed(server, path, items, **options):
    server.add(path, json.dumps(items).encode(), kind="application/json", **options)


def of(entry, *subjects):
    return {remote.path: remote for remote in remotes_of(entry, subjects, pause=0.001)}


def refused(entry, *subjects):
    with pytest.raises(DataError) as caught:
        of(entry, *subjects)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


FOLDER = "Preprocessed_data_250Hz/sub-08"
TRAINING, TEST = f"{FOLDER}/preprocessed_eeg_training.npy", f"{FOLDER}/preprocessed_eeg_test.npy"


def test_hugging_face_gives_sizes_and_sums(server):
    items = [lfs(TRAINING, 8_336_163_007), lfs(TEST, 2_016_003_002, "ef" * 32), small(f"{FOLDER}/README.md"),
             {"type": "directory", "oid": "x", "size": 0, "path": f"{FOLDER}/deep"}]  # fmt: skip
    listed(server, f"{REPO}/{FOLDER}", items)
    found = of(CATALOGUE["things-eeg2-preprocessed"], 8)
    assert list(found) == [TRAINING, TEST]
    test = found[TEST]
    assert (test.size, test.checksum) == (2_016_003_002, "sha256:" + "ef" * 32)
    assert test.url == f"{server.url}/datasets/LidongYang/EEG_Image_decode/resolve/main/{TEST}"
    assert server.asked == [(f"{REPO}/{FOLDER}?recursive=false&expand=false", None)]


def test_a_file_that_is_not_what_the_catalogue_knows_is_refused(server):
    listed(server, f"{REPO}/{FOLDER}", [lfs(TRAINING, 8_336_163_006), lfs(TEST, 2_016_003_002)])
    text = refused(CATALOGUE["things-eeg2-preprocessed"], 8)
    assert f"lists {TRAINING} with 8,336,163,006 bytes, but the published file has 8,336,163,007" in text
    listed(server, f"{REPO}/{FOLDER}", [lfs(TRAINING, 8_336_163_007), small(f"{FOLDER}/other.npy")])
    text = refused(CATALOGUE["things-eeg2-preprocessed"], 8)
    assert f"does not list {TEST} any more; there is: {FOLDER}/other.npy, {TRAINING}" in text


def test_hugging_face_pages_are_followed_and_small_files_have_gits_sums(server):
    home = "/api/datasets/EEGDash/nm000232/tree/main"
    listed(server, home, [small("a b.txt")], headers={"Link": f'<{server.url}/two?cursor=x>; rel="next"'})
    listed(server, "/two", [lfs("sub/eeg.edf", 7)])
    found = of(CATALOGUE["things-eeg2-bids"])
    assert list(found) == ["nm000232/a b.txt", "nm000232/sub/eeg.edf"]
    assert found["nm000232/a b.txt"].checksum == "git-sha1:" + "d" * 40
    assert found["nm000232/a b.txt"].url.endswith("/datasets/EEGDash/nm000232/resolve/main/a%20b.txt")
    assert server.asked[0][0].endswith("?recursive=true&expand=false")


def test_a_listing_that_continues_elsewhere_or_has_another_form(server):
    home, entry = "/api/datasets/EEGDash/nm000232/tree/main", CATALOGUE["things-eeg2-bids"]
    listed(server, home, [], headers={"Link": '<http://localhost:1/x>; rel="next"'})
    assert "continues at another server (http://localhost:1/x)" in refused(entry)
    listed(server, home, {"error": "x"})
    assert "should list files, but has another form" in refused(entry)
    listed(server, home, [{"type": "file", "path": "x", "size": -1}])
    assert "gives -1 as the size of x" in refused(entry)
    server.add(home, b"<html>")
    assert "should be a listing in JSON, but is not" in refused(entry)
    listed(server, home, [])
    assert "does not list * any more; there is: nothing" in refused(entry)
    del server.pages[home]
    assert "There is nothing at" in refused(entry)


def test_the_mirrors_own_sums_are_used_and_compared(server):
    entry, home = CATALOGUE["things-eeg2-mirror"], "/api/datasets/2Levi/eeg2img-THINGS_EEG2/tree/main"
    sums = f"{'AB' * 32}  a.bin\n{'12' * 32} *./b.txt\n{'34' * 32}  not-there\nnonsense\n".encode()
    server.add("/datasets/2Levi/eeg2img-THINGS_EEG2/resolve/main/SHA256SUMS", sums)
    items = [lfs("a.bin", 5), small("b.txt"), small("c.txt"), small("SHA256SUMS", len(sums))]
    listed(server, home, items)
    found = of(entry)
    assert {path: remote.checksum for path, remote in found.items()} == {
        "mirror/a.bin": "sha256:" + "ab" * 32, "mirror/b.txt": "sha256:" + "12" * 32,
        "mirror/c.txt": "git-sha1:" + "d" * 40, "mirror/SHA256SUMS": "git-sha1:" + "d" * 40,
    }  # fmt: skip
    listed(server, home, [lfs("a.bin", 5, "00" * 32), small("SHA256SUMS", len(sums))])
    assert "gives a.bin another sha256 than the listing" in refused(entry)
    listed(server, home, [lfs("a.bin", 5)])
    assert "does not list SHA256SUMS any more" in refused(entry)


def s3(*contents, token=""):
    rows = "".join(f"<Contents><Key>{key}</Key><ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size></Contents>"
                   for key, etag, size in contents)  # fmt: skip
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<?xml version="1.0"?><ListBucketResult xmlns="{space}">{rows}{more}</ListBucketResult>'.encode()


def test_open_neuro_lists_the_parts_of_a_recording(server):
    folder = "ds004212/derivatives/preprocessed"
    first = "/?list-type=2&prefix=ds004212%2Fderivatives%2Fpreprocessed%2F"
    server.add(first, s3((f"{folder}/", "x", 0), (f"{folder}/preprocessed_P1-epo.fif", "ab" * 16 + "-9", 2 * 10**9),
               (f"{folder}/preprocessed_P1-epo-1.fif", "ab" * 16, 10**9), token="t/="))  # fmt: skip
    second = f"{first}&continuation-token=t%2F%3D"
    server.add(second, s3((f"{folder}/preprocessed_P2-epo.fif", "", 5), (f"{folder}/preprocessed_P10-epo.fif", "", 6)))
    # The bucket's own name is part of the endpoint: the server here stands for it.
    listings.ENDPOINTS["openneuro"] = f"{server.url}/"
    found = of(CATALOGUE["things-meg-fif"], 1)
    assert list(found) == [f"derivatives/preprocessed/preprocessed_P1-epo{part}.fif" for part in ("", "-1")]
    whole, part = found.values()
    assert (whole.size, whole.checksum) == (2 * 10**9, None)  # an ETag of parts is no checksum
    assert (part.size, part.checksum) == (10**9, "md5:" + "ab" * 16)
    assert [path for path, _ in server.asked] == [first, second]
    assert set(of(CATALOGUE["things-meg-fif"], 2)) == {"derivatives/preprocessed/preprocessed_P2-epo.fif"}


def test_open_neuro_listings_that_are_none(server):
    listings.ENDPOINTS["openneuro"] = f"{server.url}/"
    for body, why in ((b"<a", "not (unclosed"), (b'<!DOCTYPE x [<!ENTITY a "b">]><x/>', "it declares entities")):
        server.add("/", body)
        assert why in refused(CATALOGUE["things-meg-fif"], 1)


def osf_file(path, size=4, **hashes):
    return {"attributes": {"kind": "file", "name": path.rpartition("/")[2], "materialized_path": f"/{path}",
                           "size": size, "extra": {"hashes": hashes}},
            "links": {"download": f"https://osf.io/download/{path}"}}  # fmt: skip


def osf_folder(url):
    return {"attributes": {"kind": "folder"}, "relationships": {"files": {"links": {"related": {"href": url}}}}}


def test_osf_is_walked_through_storages_folders_and_pages(server):
    listed(server, "/nodes/anp5v/files/", {"data": [osf_folder(f"{server.url}/s"), {"attributes": {}}],
                                           "links": {"next": None}})  # fmt: skip
    listed(server, "/s", {"data": [osf_file("sub-01.zip", md5="m", sha256="S" * 4), osf_folder(f"{server.url}/f")],
                          "links": {"next": f"{server.url}/s?page=2"}})  # fmt: skip
    listed(server, "/s?page=2", {"data": [osf_file("sub-02/a.npy", size=None, md5="m")], "links": {}})
    listed(server, "/f", {"data": [osf_file("deep/sub-01.txt"), osf_folder(f"{server.url}/s")], "links": {}})
    found = of(CATALOGUE["things-eeg2-original"], 1)
    assert list(found) == ["preprocessed_data/sub-01.zip", "preprocessed_data/deep/sub-01.txt"]
    assert found["preprocessed_data/sub-01.zip"].checksum == "sha256:SSSS"
    assert found["preprocessed_data/sub-01.zip"].url == "https://osf.io/download/sub-01.zip"
    other = of(CATALOGUE["things-eeg2-original"], 2)["preprocessed_data/sub-02/a.npy"]
    assert (other.size, other.checksum) == (None, "md5:m")
    assert "does not list *sub-03* any more; there is: deep/sub-01.txt" in refused(CATALOGUE["things-eeg2-original"], 3)


def test_osf_stays_at_its_server(server):
    listed(server, "/nodes/anp5v/files/", {"data": [osf_folder("http://localhost:1/s")], "links": {}})
    assert "continues at another server (http://localhost:1/s)" in refused(CATALOGUE["things-eeg2-original"], 1)


def test_the_raw_recordings_are_fixed_links(server):
    (remote,) = of(CATALOGUE["things-eeg2-raw"], 3).values()
    assert (remote.path, remote.size) == ("Raw_data/sub-03.zip", None)
    assert remote.url == "https://files.osf.io/v1/resources/crxs4/providers/googledrive/sub-03.zip"
    assert server.asked == []


def test_a_listing_that_breaks_off_is_asked_again_and_a_missing_network_said(server, monkeypatch):
    home = "/api/datasets/Feronl/NeuroBridge/tree/main"
    listed(server, home, [small("a")], cuts=[5], failures=[503])
    assert list(of(CATALOGUE["feronl-neurobridge"])) == ["feronl-neurobridge/a"]
    monkeypatch.setitem(listings.ENDPOINTS, "huggingface", "http://127.0.0.1:1")
    with pytest.raises(Unreachable):
        of(CATALOGUE["feronl-neurobridge"])


def test_odd_characters_in_names_are_not_patterns(server):
    entry = Entry("x", "x", "huggingface", "LidongYang/EEG_Image_decode", (PublishedFile("a[1]?.txt"),))
    listed(server, REPO, [small("a1x.txt"), small("a[1]?.txt")])
    assert list(of(entry)) == ["a[1]?.txt"]


# The catalogue: what is said must be what the facts say (shared/facts/atm.md 1.1-1.6, 3; landscape.md 2).


def test_what_the_facts_give_to_the_byte():
    entry = CATALOGUE["things-eeg2-preprocessed"]
    assert [file.size for file in entry.wanted((8,))] == [8_336_163_007, 2_016_003_002]
    size, exact = entry.bytes_of()
    assert exact
    assert round(size / 1e9, 1) == 103.5  # "10 subjects ≈ 103.5 GB"
    # A pickle is little more than its array.
    assert 0 < entry.files[0].size - 16540 * 4 * 63 * 250 * 8 < 10_000
    assert 0 < entry.files[1].size - 200 * 80 * 63 * 250 * 8 < 10_000
    assert sum(file.size is not None for other in ENTRIES for file in other.files) == 2


def test_what_the_facts_round():
    assert CATALOGUE["vit-h-14-features"].bytes_of() == (76_140_000, False)
    assert CATALOGUE["vit-l-14-features"].bytes_of() == (None, False)
    assert CATALOGUE["atm-prior"].bytes_of((1, 2)) == (77_400_000, False)
    assert CATALOGUE["things-meg-fif"].bytes_of() == (36_000_000_000, False)
    assert CATALOGUE["things-meg-fif"].bytes_of((1,)) == (None, False)
    assert CATALOGUE["things-eeg2-raw"].bytes_of() == (None, False)


def test_entries_are_in_order():
    assert len(CATALOGUE) == len(ENTRIES) >= 15
    for entry in ENTRIES:
        assert entry.kind in {"huggingface", "openneuro", "osf", "link"}
        assert entry.layout is None or entry.layout in SOURCES
        assert entry.page.startswith("https://")
        assert bool(entry.subjects) == ("{subject" in entry.files[0].path)
        assert entry.licence
        assert (entry.layout is None) or entry.holds
        for file in entry.wanted():
            assert "{" not in file.path
            if entry.kind == "link":
                assert link_of(entry, file).startswith("https://")
    assert CATALOGUE["things-meg-fif"].licence == UNKNOWN
    assert CATALOGUE["things-meg-fif"].page == "https://openneuro.org/datasets/ds004212/versions/2.0.0"
    assert "CC-BY-4.0" in CATALOGUE["things-eeg2-raw"].licence


def test_folders_and_links():
    assert PublishedFile("*").folder == ""
    assert PublishedFile("a/b/c-*/d*").folder == "a/b"
    assert PublishedFile("a/b.npy").folder == "a"
    assert PublishedFile("b.npy").folder == ""
    entry = CATALOGUE["vit-h-14-features"]
    known = f"{listings.ENDPOINTS['huggingface']}/datasets/LidongYang/EEG_Image_decode/resolve/main/"
    assert link_of(entry, entry.files[0]) == f"{known}ViT-H-14_features_train.pt"
    assert link_of(CATALOGUE["things-images"], CATALOGUE["things-images"].files[0]) is None
    assert path_of(replace(entry, into="x"), "a") == "x/a"
