"""Asks EC2's instance metadata service, version 2: first for a token. AWS_EC2_METADATA_SERVICE_ENDPOINT names another address (tests)."""

import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

TOKEN_S = 21600  # the longest that AWS gives


class MetadataDown(Exception):
    """The service answers with a 5xx, late, or not at all."""


class Metadata:
    def __init__(self, endpoint: str | None = None, timeout_s: float = 2) -> None:
        self.endpoint = (endpoint or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254").rstrip("/")
        self.timeout_s = timeout_s
        self._token: tuple[str, float] | None = None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would answer for its own machine

    def get(self, path: str) -> str | None:
        """The text at latest/meta-data/`path`, None for 404 (no notice, not in a group). Raises MetadataDown."""
        for fresh in (False, True):
            try:
                return self._ask("GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._valid_token(fresh)})
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401 or fresh:  # 401: it no longer knows the token, as after a stop and start of the machine
                    raise MetadataDown(f"{self.endpoint} answers {error.code} to {path}") from error
            except OSError as error:
                raise MetadataDown(f"{self.endpoint} does not answer ({error})") from error
        raise AssertionError("the second attempt returns or raises")

    def document(self, path: str) -> dict[str, Any] | None:
        text = self.get(path)
        try:
            return None if text is None else json.loads(text)
        except ValueError as error:
            raise MetadataDown(f"{path} is {text!r}, JSON is expected") from error

    def _valid_token(self, fresh: bool) -> str:
        if fresh or self._token is None or time.monotonic() > self._token[1]:
            text = self._ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)})
            self._token = (text, time.monotonic() + TOKEN_S / 2)
        return self._token[0]

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(self.endpoint + path, headers=headers, method=method)
        with self._opener.open(request, timeout=self.timeout_s) as answer:
            return answer.read().decode()
