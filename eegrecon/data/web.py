"""HTTP(S) with the standard library: one request, its failures as sentences, and which of them pass by waiting."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from eegrecon import __version__
from eegrecon.errors import DataError

Result = TypeVar("Result")

TIMEOUT = 30.0  # seconds without a byte
TRIES = 5  # in a row without a byte gained
LONGEST_PAUSE = 60.0
PASSING = {408, 425, 429, 500, 502, 503, 504}
MOST_LISTING = 64 << 20  # a listing larger than this is no listing


class Unreachable(DataError):
    """The publisher cannot be reached from here: no network, a firewall, a proxy that refuses, a wrong certificate."""


class Passing(Exception):
    """Something that may pass by itself: a broken connection, a busy server.

    Args:
        what: What happened.
        pause: How long the server asks to wait, in seconds.
        contact: Whether a server had answered.
        reached: How many bytes of the file were there when it happened.
    """

    def __init__(self, what: str, *, pause: float = 0.0, contact: bool = True, reached: int = 0) -> None:
        super().__init__(what)
        self.what, self.pause, self.contact, self.reached = what, pause, contact, reached


class RangeRefused(Exception):
    """The server has no bytes where the download wanted to continue (416)."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to anything that can be changed on its way."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, *args: Any) -> urllib.request.Request | None:
        target = str(args[-1])
        schemes = urlsplit(req.full_url).scheme, urlsplit(target).scheme
        if schemes[1] not in {"http", "https"} or schemes == ("https", "http"):
            fp.close()
            raise DataError(
                f"{req.full_url} redirects from {schemes[0]} to {schemes[1]} ({target}), which is not followed: fetch "
                "the file by hand if you trust that address."
            )
        return super().redirect_request(req, fp, *args)


def open_url(url: str, headers: Mapping[str, str] | None = None) -> Any:
    """Open one address, following redirects.

    Args:
        url: An http or https address.
        headers: Sent beside the usual ones.

    Returns:
        The response, a context manager with `status`, `headers` and `read`.

    Raises:
        DataError: The address is none, is not there, or needs a login.
        Passing: It may work later.
        RangeRefused: A range was asked for, and there is none.
    """
    if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).netloc:
        raise DataError(f"{url!r} is no http or https address: report this, the catalogue or the listing is wrong.")
    sent = {"User-Agent": f"eegrecon/{__version__}", "Accept-Encoding": "identity", **(headers or {})}
    try:
        return urllib.request.build_opener(_Redirects).open(urllib.request.Request(url, headers=sent), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and "Range" in sent:
                raise RangeRefused from error
            raise _http_error(url, error) from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        raise Passing(f"{urlsplit(url).hostname} cannot be reached ({reason})", contact=False) from error


def _http_error(url: str, error: urllib.error.HTTPError) -> Exception:
    # The standard's phrase: what urllib says of a loop of redirects has several lines.
    what = f"{error.code} {http.client.responses.get(error.code, '')}".strip()
    if error.code in PASSING:
        wait = error.headers.get("Retry-After", "")
        return Passing(f"{urlsplit(url).hostname} answers {what}", pause=float(wait) if wait.isdigit() else 0)
    if error.code in {404, 410}:
        return DataError(
            f"There is nothing at {url} any more ({what}): look for it at the publisher's page, "
            "which eegrecon download --list NAME gives."
        )
    if error.code in {401, 403, 407, 451}:
        return DataError(
            f"{url} wants a login or a licence accepted in a browser, or is gone ({what}): fetch "
            "it by hand, as eegrecon download --list NAME says."
        )
    return DataError(f"{url} answers {what}, where the file was expected: try again later.")


def is_final(error: BaseException | None) -> bool:
    """Whether waiting is no use: no such name, no way there, nobody who listens, no trust."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        reason = getattr(error, "reason", None)
        error = reason if isinstance(reason, BaseException) else error.__cause__
    no_way = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED}
    return any(
        isinstance(cause, socket.gaierror | ssl.SSLCertVerificationError)
        or (isinstance(cause, OSError) and cause.errno in no_way)
        for cause in causes
    )


def again(work: Callable[[], Result], what: str, *, pause: float = 1.0) -> Result:
    """Do `work` until it succeeds, waiting twice as long after every failure that gained nothing.

    Args:
        work: Raises `Passing` for what may pass.
        what: What was being fetched, for the message.
        pause: The first pause in seconds.

    Raises:
        Unreachable: No server ever answered.
        DataError: It failed too often, or for good.
    """
    failures, contact, best = 0, False, 0
    while True:
        try:
            return work()
        except Passing as error:
            contact = contact or error.contact
            # A server that cannot continue starts again and again: only what was never reached before is a gain.
            failures = 1 if error.reached > best else failures + 1
            best = max(best, error.reached)
            if not contact and (is_final(error.__cause__) or failures >= TRIES):
                raise Unreachable(
                    f"{error.what}, so {what} was not downloaded: check the network, or fetch it by hand as eegrecon "
                    "download --list NAME says."
                ) from error
            if failures >= TRIES:
                raise DataError(
                    f"{what} could not be downloaded ({error.what}, {failures} times in a row): the same command "
                    "continues where it stopped."
                ) from error
            time.sleep(min(max(pause * 2 ** (failures - 1), error.pause), LONGEST_PAUSE))


def read_small(url: str, *, pause: float = 1.0) -> tuple[bytes, Mapping[str, str]]:
    """Read a listing into memory.

    Returns:
        Its bytes and the response's headers.

    Raises:
        Unreachable: No server ever answered.
        DataError: It is not there, breaks off, or is far too large.
    """

    def once() -> tuple[bytes, Mapping[str, str]]:
        with open_url(url) as response:
            headers = response.headers
            try:
                body = response.read(MOST_LISTING + 1)
            except (OSError, http.client.HTTPException) as error:
                raise Passing(f"{urlsplit(url).hostname} broke off") from error
        if len(body) > MOST_LISTING:
            raise DataError(f"{url} should be a listing, but is larger than {MOST_LISTING} bytes: report this.")
        length = headers.get("Content-Length")
        if length is not None and length.isdigit() and len(body) < int(length):
            raise Passing(f"{urlsplit(url).hostname} broke off")
        return body, headers

    return again(once, f"the listing {url}", pause=pause)
