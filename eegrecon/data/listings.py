"""What a publisher lists at this moment: names, sizes, checksums. Hugging Face, OpenNeuro (its S3 bucket), OSF."""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from eegrecon.data.catalogue import Entry, PublishedFile
from eegrecon.data.fetch import Remote
from eegrecon.data.web import read_small
from eegrecon.errors import DataError

# HF_ENDPOINT is huggingface_hub's own variable, for mirrors where the site itself is blocked.
ENDPOINTS = {
    "huggingface": os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/"),
    "openneuro": "https://s3.amazonaws.com/openneuro.org",
    "osf": "https://api.osf.io/v2",
}
MOST_PAGES = 10_000
REVISION = "main"
SUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def remotes_of(entry: Entry, subjects: tuple[int, ...] = (), *, pause: float = 1.0) -> list[Remote]:
    """The files of an entry, with the publisher's sizes and checksums.

    Args:
        entry: What is wanted.
        subjects: Whose files; all when none is named.
        pause: Seconds before the first retry.

    Raises:
        Unreachable: There is no way to the publisher.
        DataError: Something the catalogue knows is not listed, or has another size there.
    """
    if entry.kind == "link":
        # The catalogue's links are all there is to know.
        return [Remote(path_of(entry, file.path), str(file.link), file.size) for file in entry.wanted(subjects)]
    listed: dict[str, dict[str, Remote]] = {}
    found: dict[str, Remote] = {}
    for file in entry.wanted(subjects):
        key = f"{file.folder}{'/*' if file.is_pattern else ''}"
        if key not in listed:
            pages = _LISTERS[entry.kind](entry, file.folder, deep=file.is_pattern, pause=pause)
            listed[key] = {remote.path: remote for remote in pages}
        match = [remote for path, remote in listed[key].items() if fnmatchcase(path, _pattern(file))]
        if not match:
            there = ", ".join(sorted(listed[key])[:5]) or "nothing"
            raise DataError(
                f"{entry.page} does not list {file.path} any more; there is: {there}: look at the page, and fetch by "
                "hand what has replaced it."
            )
        for remote in match:
            if file.size is not None and remote.size != file.size:
                raise DataError(
                    f"{entry.page} lists {remote.path} with {remote.size or 0:,} bytes, but the published file has "
                    f"{file.size:,}: the publisher has changed it, so eegrecon cannot know that it still fits."
                )
            found[remote.path] = remote
    if entry.sums:
        found = _with_sums(entry, found, pause)
    return [Remote(path_of(entry, remote.path), remote.url, remote.size, remote.checksum) for remote in found.values()]


def _pattern(file: PublishedFile) -> str:
    return file.path.replace("[", "[[]").replace("?", "[?]")


def path_of(entry: Entry, path: str) -> str:
    """Where a file of an entry goes, below the chosen folder."""
    return f"{entry.into}/{path}" if entry.into else path


def link_of(entry: Entry, file: PublishedFile) -> str | None:
    """The address of one file, where it is known without asking the publisher."""
    if file.link is not None or file.is_pattern:
        return file.link
    return _file_url(entry, file.path) if entry.kind == "huggingface" else None


def _file_url(entry: Entry, path: str) -> str:
    return f"{ENDPOINTS['huggingface']}/datasets/{quote(entry.where)}/resolve/{REVISION}/{quote(path)}"


def _json(url: str, pause: float) -> tuple[Any, str | None]:
    """A page of a listing, and the address of the next one where a Link header names it."""
    body, headers = read_small(url, pause=pause)
    try:
        page = json.loads(body)
    except ValueError as error:
        raise DataError(f"{url} should be a listing in JSON, but is not ({error}): try again later.") from error
    follows = re.search(r'<([^>]+)>;\s*rel="next"', headers.get("Link", ""))
    return page, follows[1] if follows else None


def _pages(url: str, pause: float) -> Iterator[Any]:
    """All pages of a listing; the next one is named by a Link header (Hugging Face) or in `links` (OSF)."""
    following: str | None = url
    for _ in range(MOST_PAGES):
        if following is None:
            return
        if urlsplit(following)[:2] != urlsplit(url)[:2]:
            raise DataError(f"{url} continues at another server ({following}), which is not followed: report this.")
        page, after = _json(following, pause)
        yield page
        links = page.get("links") if isinstance(page, dict) else None
        following = after or (links.get("next") if isinstance(links, dict) else None)
    raise DataError(f"{url} lists more than {MOST_PAGES} pages: report this.")


def _huggingface(entry: Entry, folder: str, *, deep: bool, pause: float) -> Iterator[Remote]:
    """A folder of a dataset repository (huggingface_hub 1.x, HfApi.list_repo_tree)."""
    home = f"{ENDPOINTS['huggingface']}/api/datasets/{quote(entry.where)}/tree/{REVISION}"
    url = f"{home}/{quote(folder)}" if folder else home
    for page in _pages(f"{url}?{urlencode({'recursive': str(deep).lower(), 'expand': 'false'})}", pause):
        for item in _items(page, url):
            if item.get("type") != "file":
                continue
            path = str(item.get("path"))
            lfs = item.get("lfs")  # a large file's content hash; a small one has git's
            sum_of = f"sha256:{lfs['oid']}" if isinstance(lfs, dict) else f"git-sha1:{item.get('oid')}"
            yield Remote(path, _file_url(entry, path), _size(item.get("size"), path, url), sum_of)


def _openneuro(entry: Entry, folder: str, *, deep: bool, pause: float) -> Iterator[Remote]:
    """A folder of a dataset in OpenNeuro's public bucket (Amazon S3, ListObjectsV2); it holds the newest version."""
    home, prefix = ENDPOINTS["openneuro"], f"{entry.where}/{folder}/" if folder else f"{entry.where}/"
    query = {"list-type": "2", "prefix": prefix}
    for _ in range(MOST_PAGES):
        url = f"{home}?{urlencode(query)}"
        body, _ = read_small(url, pause=pause)
        try:
            if b"<!DOCTYPE" in body:  # entities could make it grow
                raise ValueError("it declares entities")
            tree = ElementTree.fromstring(body)
        except (ElementTree.ParseError, ValueError) as error:
            raise DataError(f"{url} should be a listing in XML, but is not ({error}): try again later.") from error
        for item in tree.iterfind("{*}Contents"):
            key, etag = item.findtext("{*}Key", ""), item.findtext("{*}ETag", "").strip('"')
            path = key.removeprefix(f"{entry.where}/")
            if key.endswith("/") or not (deep or "/" not in key.removeprefix(prefix)):
                continue
            # The ETag is the md5 of what was uploaded in one piece; of what came in parts ("…-12") it is no checksum.
            sum_of = f"md5:{etag}" if re.fullmatch(r"[0-9a-f]{32}", etag) else None
            yield Remote(path, f"{home}/{quote(key)}", _size(item.findtext("{*}Size"), key, url), sum_of)
        query["continuation-token"] = tree.findtext("{*}NextContinuationToken", "")
        if not query["continuation-token"]:
            return
    raise DataError(f"{home} lists more than {MOST_PAGES} pages of {prefix}: report this.")


def _osf(entry: Entry, folder: str, *, deep: bool, pause: float) -> Iterator[Remote]:
    """All files of a project, over its storages and their folders (OSF API v2, as osfclient 0.0.5 walks it)."""
    del folder, deep  # an OSF project is always walked whole: folders have ids there, not paths
    todo = [f"{ENDPOINTS['osf']}/nodes/{entry.where}/files/"]
    seen: set[str] = set()
    while todo:
        url = todo.pop(0)
        if url in seen:
            continue
        seen.add(url)
        if urlsplit(url)[:2] != urlsplit(ENDPOINTS["osf"])[:2]:
            raise DataError(f"{entry.page} continues at another server ({url}), which is not followed: report this.")
        for page in _pages(url, pause):
            for item in _items(page.get("data") if isinstance(page, dict) else None, url):
                about = item.get("attributes", {})
                if about.get("kind") != "file":
                    todo += _links(item)
                    continue
                path = str(about.get("materialized_path") or about.get("name")).lstrip("/")
                hashes = (about.get("extra") or {}).get("hashes") or {}
                sums = [f"{kind}:{hashes[kind]}" for kind in ("sha256", "md5") if hashes.get(kind)]
                links = item.get("links", {})
                # Files that a project links from another service may have no size.
                size = None if about.get("size") is None else _size(about["size"], path, url)
                yield Remote(path, str(links.get("download") or links.get("upload")), size, sums[0] if sums else None)


def _links(folder: dict[str, Any]) -> list[str]:
    """Where an OSF folder's or storage's files are listed."""
    try:
        return [str(folder["relationships"]["files"]["links"]["related"]["href"])]
    except (KeyError, TypeError):
        return []


_LISTERS = {"huggingface": _huggingface, "openneuro": _openneuro, "osf": _osf}


def _items(page: Any, url: str) -> list[dict[str, Any]]:
    if not isinstance(page, list) or not all(isinstance(item, dict) for item in page):
        raise DataError(f"{url} should list files, but has another form than eegrecon knows: try again later.")
    return page


def _size(text: Any, path: str, url: str) -> int:
    if not str(text).isdigit():
        raise DataError(f"{url} gives {text!r} as the size of {path}, which is no number of bytes: report this.")
    return int(text)


def _with_sums(entry: Entry, found: dict[str, Remote], pause: float) -> dict[str, Remote]:
    """Put the publisher's own list of sha256 sums to its files; a listing that says otherwise is an error."""
    if entry.sums not in found:
        raise DataError(f"{entry.page} does not list {entry.sums} any more, so its files cannot be verified by it.")
    body, _ = read_small(found[entry.sums].url, pause=pause)
    summed = dict(found)
    for line in body.decode("utf-8", "replace").splitlines():
        match = SUM_LINE.fullmatch(line.strip())
        path = match[2].removeprefix("./") if match else ""
        if match is None or path not in found:
            continue
        remote, sha256 = found[path], f"sha256:{match[1].lower()}"
        if remote.checksum is not None and remote.checksum.startswith("sha256:") and remote.checksum != sha256:
            raise DataError(
                f"{entry.sums} of {entry.page} gives {path} another sha256 than the listing: the mirror is in "
                "disorder; take the files from their first publisher."
            )
        summed[path] = Remote(path, remote.url, remote.size, sha256)
    return summed
