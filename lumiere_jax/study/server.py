"""The web server of a study: the page, the trials as JSON, the clips by names that tell nothing, and the votes.

GET  /              the page
GET  /trial         {"state": "new"}, {"state": "trial", "number": 7, "total": 44, "prompt": ..., "left": ..., "right":
                    ...}, or {"state": "done"}
POST /raters        makes who asks a rater, by a cookie; answers as /trial
POST /votes         {"number": 7, "quality": "left", "text": "right"}: when the answer is there, the vote is on disk;
                    answers with the next trial
GET  /clips/NAME    an mp4

Of the two methods, and of which trials are attention checks, nothing is sent.
"""

import hmac
import http.server
import json
import pathlib
import re
import sqlite3
import sys
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from lumiere_jax.study.byte_range import byte_range
from lumiere_jax.study.page import study_page
from lumiere_jax.study.shown_clips import clip_names
from lumiere_jax.study.votes import SIDES, Votes

_MOST_BYTES = 4096  # of a vote
_SECONDS_OF_COOKIE = 365 * 24 * 3600
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; media-src 'self'; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class StudyServer(http.server.ThreadingHTTPServer):
    """Serves a study; `serve_forever` does so until `shutdown`."""

    request_queue_size = 128  # raters who come at the same moment

    def __init__(self, address: tuple[str, int], votes: Votes, clips: pathlib.Path):
        """Takes the port.

        Args:
          address: host and port; port 0: a free one.
          votes: where they go.
          clips: the directory that `prepare_clips` filled.

        Raises:
          OSError: the port is in use.
        """
        self.votes = votes
        self.page = study_page().encode()
        # Browsers send cookies to all ports of a host: another study on it has another name.
        self.cookie = f"rater_{self.clip_token('cookie')[:8]}"
        self.clips = {self.clip_token(file.stem): file for file in clips.glob("[0-9]*.mp4")}
        super().__init__(address, _Handler)

    def clip_token(self, name: str) -> str:
        """What a clip is called on the page: without the secret of the study nobody can tell which one it is."""
        return hmac.digest(self.votes.secret, name.encode(), "sha256").hex()[:32]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of browsers that have gone away, as they do in the middle of a video."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _RefusedError(Exception):
    """A request that is not answered as it asks; the reason is for people."""

    def __init__(self, status: HTTPStatus, reason: str, headers: Mapping[str, str] | None = None):
        super().__init__(reason)
        self.status, self.headers = status, dict(headers or {})


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "study", ""
    timeout = 30  # seconds of silence
    server: StudyServer

    def do_GET(self) -> None:
        self._answer(self._get)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each request would hide what matters."""

    def _answer(self, method: Any) -> None:
        try:
            method(self.path.partition("?")[0])
        except _RefusedError as error:
            self._refuse(error.status, str(error), error.headers)
        except sqlite3.Error as error:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"The votes cannot be stored: {error}", {})

    def _refuse(self, status: HTTPStatus, reason: str, headers: Mapping[str, str]) -> None:
        # Its body may not be read: what follows on this connection is no request.
        self.close_connection = True
        self._send(status, "text/plain; charset=utf-8", reason.encode(), {"Connection": "close", **headers})

    # What is asked for -----------------------------------------------------------------------------------------

    def _get(self, path: str) -> None:
        if path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        elif path == "/trial":
            self._send_trial(self._rater())
        elif path.startswith("/clips/") and path[len("/clips/") :] in self.server.clips:
            self._send_clip(self.server.clips[path[len("/clips/") :]])
        else:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _post(self, path: str) -> None:
        body, rater = self._body(), self._rater()
        if path == "/raters":
            rater = rater or self.server.votes.new_rater()
            cookie = f"{self.server.cookie}={rater}; Max-Age={_SECONDS_OF_COOKIE}; Path=/; HttpOnly; SameSite=Strict"
            self._send_trial(rater, {"Set-Cookie": cookie})
        elif path == "/votes":
            if rater is None:
                raise _RefusedError(HTTPStatus.FORBIDDEN, "Nobody knows you: please load the page again.")
            self._vote(rater, body)
            self._send_trial(rater)
        else:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _vote(self, rater: str, body: Any) -> None:
        if not isinstance(body, dict) or body.keys() != {"number", "quality", "text"}:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "A vote has number, quality and text.")
        number, answers = body["number"], (body["quality"], body["text"])
        # SQLite's integers end somewhere; and true is a number to Python.
        if type(number) is not int or not 1 <= number <= 10**9 or not all(answer in SIDES for answer in answers):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "number counts from 1; quality and text are left or right.")
        try:
            self.server.votes.vote(rater, number - 1, *answers)
        except ValueError as error:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, str(error)) from None

    def _rater(self) -> str | None:
        """Who asks; None: nobody that is known."""
        found = re.search(rf"(?:^|[;\s]){self.server.cookie}=([0-9a-f]{{32}})(?:;|$)", self.headers.get("Cookie", ""))
        return found[1] if found and self.server.votes.knows(found[1]) else None

    def _body(self) -> Any:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,9}", length):
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing.")
        if int(length) > _MOST_BYTES:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"At most {_MOST_BYTES} bytes, please.")
        # Other sites' forms cannot send JSON: nobody votes by following a link.
        if self.headers.get_content_type() != "application/json":
            raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Only application/json is taken.")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "This is no JSON.") from None

    # What is sent ----------------------------------------------------------------------------------------------

    def _send_trial(self, rater: str | None, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps({"state": "new"} if rater is None else self._trial(rater)).encode()
        self._send(HTTPStatus.OK, "application/json", body, headers)

    def _trial(self, rater: str) -> dict[str, Any]:
        votes = self.server.votes
        trial = votes.trial(rater)
        if trial is None:
            return {"state": "done"}
        names = clip_names(trial.pair, trial.is_check)
        left, right = names if trial.first_left else reversed(names)
        return {
            "state": "trial",
            "number": trial.number + 1,
            "total": votes.design.judgments + votes.design.checks,
            "prompt": votes.design.prompts[trial.pair],
            "left": f"/clips/{self.server.clip_token(left)}",
            "right": f"/clips/{self.server.clip_token(right)}",
        }

    def _send_clip(self, file: pathlib.Path) -> None:
        size, headers = file.stat().st_size, {"Accept-Ranges": "bytes", "Cache-Control": "private, max-age=3600"}
        try:
            part = byte_range(self.headers.get("Range"), size)
        except ValueError as error:
            status, headers = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"}
            raise _RefusedError(status, str(error), headers) from None
        first, end = part or (0, size)
        if part:
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        with open(file, "rb") as opened:
            opened.seek(first)
            content = opened.read(end - first)
        self._send(HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK, "video/mp4", content, headers)

    def _send(
        self, status: HTTPStatus, content_type: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        own = {"Content-Type": content_type, "Content-Length": str(len(body)), "Cache-Control": "no-store"}
        for name, value in (_HEADERS | own | dict(headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
