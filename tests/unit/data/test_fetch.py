"""Downloads against a local server that cuts, lies and refuses. No byte goes further than 127.0.0.1."""

import errno
import hashlib
import io
import socket
import subprocess
import time
import zipfile
from collections import namedtuple

import pytest

from eegrecon.data import fetch as fetching
from eegrecon.data import web
from eegrecon.data.fetch import Remote, fetch, place
from eegrecon.data.verify import checksum
from eegrecon.data.web import Unreachable
from eegrecon.errors import DataError
from tests.web_server import serving

BODY = bytes(range(256)) * 4096  # 1 MiB
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as running:
        yield running


def get(url, tmp_path, *, size=None, checksum=None, path="sub/data.npy", **options):
    return fetch(Remote(path, url, size, checksum), tmp_path, pause=0.001, **options)


def leftovers(tmp_path):
    return sorted(path.name for path in tmp_path.rglob("*") if path.is_file())


def ranges(server):
    return [wanted for _, wanted in server.asked]


def refused(call, *parts):
    """It fails with one sentence that has these parts."""
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert ". " not in text.replace(" ... ", "")
    for part in parts:
        assert part in text
    return text


def test_a_file_arrives_whole_and_verified(server, tmp_path):
    seen = []
    done = get(
        server.add("/a", BODY), tmp_path, size=len(BODY), checksum=SHA256, progress=lambda *now: seen.append(now)
    )
    assert done.path.read_bytes() == BODY
    assert (done.size, done.verified, done.was_there) == (len(BODY), ("size", "sha256"), False)
    assert leftovers(tmp_path) == ["data.npy"]
    assert seen[0] == ("downloading", 0, len(BODY))
    assert ("downloading", len(BODY), len(BODY)) in seen
    assert seen[-1] == ("verifying", len(BODY), len(BODY))


def test_the_servers_own_size_is_enough_and_an_empty_file_is_one(server, tmp_path):
    assert get(server.add("/a", BODY), tmp_path).verified == ("size",)
    assert get(server.add("/b", b""), tmp_path, path="empty", size=0).path.read_bytes() == b""
    assert get(server.add("/c", b""), tmp_path, path="empty2").size == 0


def test_cuts_are_continued_where_they_happened(server, tmp_path):
    url = server.add("/a", BODY, cuts=[1000, 0, 300_000])
    assert get(url, tmp_path, size=len(BODY), checksum=SHA256).path.read_bytes() == BODY
    assert ranges(server) == [None, "bytes=1000-", "bytes=1000-", "bytes=301000-"]


def test_a_killed_download_is_continued_by_the_next_call(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "BLOCK", 65_536)
    url = server.add("/a", BODY)

    def kill(what, done, total):
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(url, tmp_path, size=len(BODY), progress=kill)
    assert leftovers(tmp_path) == [".data.npy.partial", ".data.npy.partial.json"]
    have = (tmp_path / "sub/.data.npy.partial").stat().st_size
    assert 0 < have < len(BODY)
    assert get(url, tmp_path, size=len(BODY)).path.read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={have}-"]


def test_a_download_killed_at_its_very_end_asks_for_nothing(server, tmp_path):
    url = server.add("/a", BODY)

    def kill(what, done, total):
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(url, tmp_path, checksum=SHA256, progress=kill)
    assert get(url, tmp_path, checksum=SHA256).path.read_bytes() == BODY
    assert len(server.asked) == 1


@pytest.mark.parametrize("options", [{}, {"if_range": False}, {"etag": None}], ids=["if-range", "etag", "no-validator"])
def test_a_file_that_changed_in_between_is_not_joined(server, tmp_path, options):
    url = server.add("/a", BODY, cuts=[5000], **options)
    other = BODY[::-1]

    def change(what, done, total):
        server.pages["/a"].body = other

    # The first request is cut; what is continued would be of another version of the same size.
    assert get(url, tmp_path, size=len(BODY), progress=change).path.read_bytes() == other


def test_a_range_that_begins_elsewhere_is_not_joined(server, tmp_path):
    url = server.add("/a", BODY + b"end", cuts=[5000], shift=3)
    assert get(url, tmp_path).path.read_bytes() == BODY + b"end"
    assert ranges(server) == [None, "bytes=5000-", None]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    url = server.add("/a", BODY, ranges=False, cuts=[1000])
    assert get(url, tmp_path, size=len(BODY)).path.read_bytes() == BODY
    assert len(server.asked) == 2


def test_a_server_without_ranges_that_always_cuts_is_given_up(server, tmp_path):
    url = server.add("/a", BODY, ranges=False, cuts=[1000] * 50)
    refused(
        lambda: get(url, tmp_path, size=len(BODY)), "ended at byte 1,000 of 1,048,576", "continues where it stopped"
    )
    assert len(server.asked) == web.TRIES


def test_gaining_bytes_is_never_given_up(server, tmp_path):
    url = server.add("/a", BODY, cuts=[len(BODY) // 12] * 11)
    assert get(url, tmp_path, size=len(BODY)).path.read_bytes() == BODY
    assert len(server.asked) > 2 * web.TRIES


def test_a_page_in_place_of_the_file_does_not_cost_what_is_there(server, tmp_path):
    url = server.add("/a", BODY, cuts=[1000] + [0] * 50)
    refused(lambda: get(url, tmp_path, size=len(BODY)))
    server.add("/a", b"<html>please log in</html>", kind="text/html")
    refused(lambda: get(url, tmp_path, size=len(BODY)), "has 26 bytes, but 1,048,576 were expected")
    server.add("/a", b"<html>please log in</html>", kind="text/html", length=False)
    refused(lambda: get(url, tmp_path, size=len(BODY)), "a web page instead of sub/data.npy")
    assert (tmp_path / "sub/.data.npy.partial").read_bytes() == BODY[:1000]


def test_a_range_beyond_the_end_starts_again(server, tmp_path):
    url = server.add("/a", BODY, cuts=[5000], if_range=False)

    def shrink(what, done, total):
        server.pages["/a"].body = BODY[:4000]

    assert (
        get(url, tmp_path, checksum=f"sha256:{hashlib.sha256(BODY[:4000]).hexdigest()}", progress=shrink).size == 4000
    )
    assert ranges(server) == [None, "bytes=5000-", None]


def test_wrong_size(server, tmp_path):
    url = server.add("/a", BODY)
    refused(lambda: get(url, tmp_path, size=8), "/a has 1,048,576 bytes, but 8 were expected of sub/data.npy")
    assert leftovers(tmp_path) == []


def test_a_server_that_sends_more_than_it_should(server, tmp_path):
    url = server.add("/a", BODY, length=False)
    refused(lambda: get(url, tmp_path, size=1000), "has 1,048,576 bytes, but 1,000 were expected", "was removed")
    assert leftovers(tmp_path) == []


def test_corrupted_content_is_removed(server, tmp_path):
    url = server.add("/a", BODY[:-1] + b"x")
    refused(lambda: get(url, tmp_path, size=len(BODY), checksum=SHA256), "sub/data.npy is damaged: its sha256 is",
            f"the publisher says {SHA256[7:19]}…", "was removed, so run the same command again")  # fmt: skip
    assert leftovers(tmp_path) == []
    assert len(server.asked) == 1


def test_a_corrupted_beginning_on_the_disk_is_fetched_again_once(server, tmp_path):
    url = server.add("/a", BODY, cuts=[4000] + [0] * 50)
    refused(lambda: get(url, tmp_path, checksum=SHA256))
    partial = tmp_path / "sub/.data.npy.partial"
    partial.write_bytes(b"x" * 4000)
    server.pages["/a"].cuts.clear()
    assert get(url, tmp_path, checksum=SHA256).path.read_bytes() == BODY


def test_what_another_address_left_is_not_continued(server, tmp_path):
    refused(lambda: get(server.add("/a", BODY, cuts=[4000] + [0] * 50), tmp_path, size=len(BODY)))
    server.asked.clear()
    assert get(server.add("/b", BODY[::-1]), tmp_path, size=len(BODY)).path.read_bytes() == BODY[::-1]
    assert ranges(server) == [None]


@pytest.mark.parametrize("kind", ["sha256", "md5", "git-sha1"])
def test_checksums_are_those_of_other_tools(tmp_path, kind):
    file = tmp_path / "x"
    file.write_bytes(BODY)
    tool = ["git", "hash-object", "--no-filters"] if kind == "git-sha1" else [f"{kind}sum"]
    expected = subprocess.run([*tool, str(file)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert checksum(file, kind) == expected
    refused(lambda: checksum(file, "crc"), "of kind 'crc', but sha256, md5, git-sha1 are known")


def test_status_codes(server, tmp_path):
    refused(lambda: get(f"{server.url}/none", tmp_path), "There is nothing at", "/none any more (404 Not Found)")
    refused(
        lambda: get(server.add("/a", status=403), tmp_path), "wants a login or a licence accepted", "(403 Forbidden)"
    )
    refused(lambda: get(server.add("/b", status=418), tmp_path), "answers 418")
    refused(lambda: get(server.add("/c", status=204), tmp_path), "answers 204")
    assert len(server.asked) == 4
    assert leftovers(tmp_path) == []


def test_a_busy_server_is_asked_again_and_given_up(server, tmp_path):
    assert get(server.add("/a", BODY, failures=[503, 429, 500]), tmp_path).path.read_bytes() == BODY
    url = server.add("/b", BODY, failures=[503] * 50)
    refused(
        lambda: get(url, tmp_path, path="b"), "b could not be downloaded (127.0.0.1 answers 503 Service Unavailable, 5"
    )


def test_pauses_double_and_heed_the_server(monkeypatch):
    pauses, left = [], [0.0, 0.0, 7.0, 500.0]
    monkeypatch.setattr(web.time, "sleep", pauses.append)

    def work():
        if left:
            raise web.Passing("busy", pause=left.pop(0))
        return "done"

    assert web.again(work, "it") == "done"
    assert pauses == [1.0, 2.0, 7.0, 60.0]


def test_redirects_are_followed_with_the_range(server, tmp_path):
    server.add("/there", BODY, cuts=[1000])
    url = server.add("/a", status=302, headers={"Location": "/there"}, etag=None)
    assert get(url, tmp_path, size=len(BODY)).path.read_bytes() == BODY
    assert server.asked == [("/a", None), ("/there", None), ("/a", "bytes=1000-"), ("/there", "bytes=1000-")]


def test_redirects_to_other_places_are_not(server, tmp_path):
    url = server.add("/a", status=302, headers={"Location": "file:///etc/passwd"})
    refused(lambda: get(url, tmp_path), "answers 302 Found")
    url = server.add("/b", status=302, headers={"Location": "ftp://127.0.0.1/x"})
    refused(lambda: get(url, tmp_path), "redirects from http to ftp", "is not followed")
    request = web.urllib.request.Request("https://example.org/x")
    refused(
        lambda: web._Redirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://example.org/x"),
        "redirects from https to http",
    )
    refused(lambda: get(server.add("/c", status=302, headers={"Location": "/c"}), tmp_path), "answers 302 Found")


def test_no_web_address(tmp_path):
    refused(lambda: get("file:///etc/passwd", tmp_path), "'file:///etc/passwd' is no http or https address")


def test_nobody_answers_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1,nowhere.invalid")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(
        Unreachable, match=r"127\.0\.0\.1 cannot be reached .*, so sub/data\.npy was not downloaded: check"
    ):
        fetch(Remote("sub/data.npy", f"http://127.0.0.1:{port}/a"), tmp_path)
    with pytest.raises(Unreachable, match=r"nowhere\.invalid cannot be reached"):
        fetch(Remote("sub/data.npy", "http://nowhere.invalid/a"), tmp_path)
    assert time.monotonic() - start < 5
    assert leftovers(tmp_path) == []


def test_a_network_lost_half_way_is_waited_for(server, tmp_path, monkeypatch):
    url, real, broken = server.add("/a", BODY, cuts=[5000]), web.open_url, [2]

    def sometimes(*args):
        if server.asked and broken[0]:
            broken[0] -= 1
            raise web.Passing("no name", contact=False) from socket.gaierror(-2, "no")
        return real(*args)

    monkeypatch.setattr(fetching, "open_url", sometimes)
    assert get(url, tmp_path, size=len(BODY)).path.read_bytes() == BODY
    assert broken == [0]


def test_the_disk_is_asked_first(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage(0, 0, 10**8))
    monkeypatch.setattr(fetching, "SPARE", 10**8)
    refused(
        lambda: get(server.add("/a", BODY), tmp_path), "sub/data.npy needs 0.00 GB more, but only 0.10 GB are free at"
    )
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("number", "why"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "cannot be written")])
def test_a_disk_that_fills_up_keeps_what_is_there(server, tmp_path, monkeypatch, number, why):
    url, real = server.add("/a", BODY), fetching._write

    class Full(io.BytesIO):
        def write(self, block):
            raise OSError(number, "no")

    def sometimes(file, block, name):
        real(file if file.tell() < 10_000 else Full(), block, name)

    monkeypatch.setattr(fetching, "_write", sometimes)
    monkeypatch.setattr(fetching, "BLOCK", 4096)
    refused(lambda: get(url, tmp_path, size=len(BODY)), "sub/data.npy was not finished, because", why)
    assert leftovers(tmp_path) == [".data.npy.partial", ".data.npy.partial.json"]
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert get(url, tmp_path, size=len(BODY)).path.read_bytes() == BODY
    assert int(ranges(server)[-1].removeprefix("bytes=").rstrip("-")) >= 10_000


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "sub").write_text("a file")
    refused(lambda: get(server.add("/a", BODY), tmp_path), "sub cannot be made (", "give another --out")


def test_what_is_there_is_verified_and_never_overwritten(server, tmp_path):
    url = server.add("/a", BODY)
    get(url, tmp_path, size=len(BODY))
    server.asked.clear()
    again = get(url, tmp_path, size=len(BODY), checksum=SHA256)
    assert (again.was_there, again.verified, server.asked) == (True, ("size", "sha256"), [])
    assert get(url, tmp_path).was_there  # the server tells the size
    again.path.write_bytes(BODY[:-1] + b"x")
    refused(lambda: get(url, tmp_path, checksum=SHA256), "is damaged: its sha256", "it was there before: move it away")
    again.path.write_bytes(b"mine")
    refused(lambda: get(url, tmp_path), "sub/data.npy has 4 bytes, but 1,048,576 were expected; it was there before")
    assert again.path.read_bytes() == b"mine"
    server.pages["/a"].length = False
    refused(
        lambda: get(url, tmp_path), "Nobody says how large sub/data.npy is, so it could not be verified; it was there"
    )
    refused(lambda: get(url, tmp_path, path="sub"), "is a folder, but sub is a file")


def zipped():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("ses-01/raw.npy", b"x" * 10_000)
    return packed.getvalue()


def test_without_any_size_only_an_archive_that_verifies_itself_is_taken(server, tmp_path):
    refused(lambda: get(server.add("/a", BODY, length=False), tmp_path), "Nobody says how large sub/data.npy is")
    packed = zipped()
    done = get(server.add("/b", packed, length=False, ranges=False, cuts=[100]), tmp_path, path="b.zip")
    assert (done.path.read_bytes(), done.verified) == (packed, ("archive",))
    assert get(f"{server.url}/b", tmp_path, path="b.zip").was_there
    refused(lambda: get(server.add("/c", packed[:-5], length=False), tmp_path, path="c.zip"), "no complete zip archive")
    broken = bytearray(packed)
    broken[5000] ^= 1
    url = server.add("/d", bytes(broken), length=False)
    refused(lambda: get(url, tmp_path, path="d.zip"), "d.zip is damaged: 'ses-01/raw.npy' in it has another checksum")
    assert leftovers(tmp_path) == ["b.zip"]


def test_two_downloads_of_one_file_do_not_mix(server, tmp_path):
    url, told = server.add("/a", BODY), []

    def second(what, done, total):
        if not told:
            told.append(refused(lambda: get(url, tmp_path), "Another process is downloading data.npy to"))

    assert get(url, tmp_path, progress=second).path.read_bytes() == BODY
    assert told


@pytest.mark.parametrize(
    "path", ["../up", "/etc/x", "a/../../b", "a//b", "", ".", "a\\b", "c:/x", "a/\n", "a/..", "a\0b", "~/x/.."]
)
def test_paths_that_would_leave_the_folder(tmp_path, path):
    refused(lambda: place(tmp_path, path), "which is no path below")


def test_paths_that_stay(tmp_path):
    assert place(tmp_path, "a b/ü/c.npy") == tmp_path / "a b" / "ü" / "c.npy"
