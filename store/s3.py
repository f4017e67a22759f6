"""The storage on S3, by boto3. Transport faults are retried by boto3's standard mode; what it gives up on is said in one sentence."""

import contextlib
import email.utils
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    IncompleteReadError,
    LoginError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    RefreshWithMFAUnsupportedError,
    ResponseStreamingError,
    SSOError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from contract.errors import InputError, PipelineError, StorageError, TransientError
from store.storage import Entry

# Below 1 GiB an object goes up in one request, so that its ETag and its presence appear together.
TRANSFER = TransferConfig(multipart_threshold=2**30, multipart_chunksize=2**28, max_concurrency=4)
REFUSED = {
    "AuthorizationHeaderMalformed",
    "CredentialsNotSupported",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidIdentityToken",
    "InvalidToken",
    "MissingSecurityHeader",
    "PermanentRedirect",
    "RequestExpired",
    "TokenRefreshRequired",
    "301",
    "400",
}
"""Beside every answer 401 and 403: what S3 and STS say of credentials, clock and region with another status, and what is left of
it where a HEAD is answered (its number)."""
UNUSABLE = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    LoginError,
    ProfileNotFound,
    RefreshWithMFAUnsupportedError,
    SSOError,
    TokenRetrievalError,
)
"""Credentials or settings that botocore could not use: no request was made."""
CONNECT_TIMEOUT_S, READ_TIMEOUT_S, RETRIES = 10.0, 60.0, 8
BROKEN = (HTTPError, IncompleteReadError, ResponseStreamingError, ResponseParserError, FlexibleChecksumError)
"""A body that broke off, stood still, or failed its checksum; boto3 lets urllib3's own errors through."""
READS = 6
"""Answers whose body broke off, or was not what its checksum says, before a read is given up."""
Taken = TypeVar("Taken")


@lru_cache(maxsize=8)
def _client(endpoint_url: str | None) -> Any:
    config = Config(
        retries={"mode": "standard", "max_attempts": RETRIES},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        s3={"addressing_style": "path"} if endpoint_url else {},
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint_url, config=config)


@dataclass(frozen=True)
class S3Storage:
    bucket: str
    prefix: str
    endpoint_url: str | None = None

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def local(self, path: str) -> None:
        return None

    def free_bytes(self) -> None:
        return None

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{path}" if self.prefix else path

    @contextlib.contextmanager
    def _calls(self, path: str) -> Iterator[Any]:
        try:
            yield _client(self.endpoint_url)
        except (ClientError, BotoCoreError, HTTPError) as error:
            raise _said(error, f"{self.uri}/{path}") from error
        except Boto3Error as error:  # a transfer's, with the fault that ended it inside
            raise _said(error.__context__ if isinstance(error.__context__, ClientError) else error, f"{self.uri}/{path}") from error

    def _again(self, path: str, call: Callable[[Any], Taken]) -> Taken:
        """`call`, again while the body of its answer breaks off: boto3 itself retries only up to the headers."""
        fault: Exception | None = None
        for attempt in range(READS):
            with self._calls(path) as client:
                try:
                    return call(client)
                except BROKEN as error:
                    fault = error
            time.sleep(0.1 * 2**attempt)
        raise TransientError(f"{self.uri}/{path}: {READS} answers in a row broke off ({fault}); run again")

    def _get(self, path: str, take: Callable[[Any], Taken]) -> Taken:
        """What `take` makes of an object's body, the whole of it."""

        def whole(client: Any) -> Taken:
            body = client.get_object(Bucket=self.bucket, Key=self._key(path))["Body"]
            try:
                return take(body)
            except (BotoCoreError, OSError) as error:
                raise HTTPError(error) from error

        return self._again(path, whole)

    def read(self, path: str) -> bytes:
        return self._get(path, lambda body: bytes(body.read()))

    def digest(self, path: str) -> str:
        """SHA-256 of the stored bytes, every one of them read."""

        def take(body: Any) -> str:
            digest = hashlib.sha256()
            for chunk in body.iter_chunks(1 << 20):
                digest.update(chunk)
            return digest.hexdigest()

        return self._get(path, take)

    def open(self, path: str) -> BinaryIO:
        with self._calls(path) as client:
            return client.get_object(Bucket=self.bucket, Key=self._key(path))["Body"]

    def write(self, path: str, data: bytes) -> Entry:
        with self._calls(path) as client:
            answer = client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data)
            return Entry(path, len(data), answer["ETag"])

    def put(self, path: str, local: Path) -> Entry:
        with self._calls(path) as client:
            client.upload_file(str(local), self.bucket, self._key(path), Config=TRANSFER)
        entry = self.stat(path)
        if entry is None or entry.size != local.stat().st_size:
            raise StorageError(f"{self.uri}/{path} was uploaded and is not there whole; run again")
        return entry

    def create(self, path: str, data: bytes) -> bool:
        """Put if absent. Our own success whose answer was lost shows as 412 with our bytes (manifests and locks hold a nonce)."""
        for attempt in range(6):
            with self._calls(path) as client:
                try:
                    client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    if _code(error) in ("412", "PreconditionFailed"):
                        return self.read(path) == data
                    if _code(error) in ("501", "NotImplemented"):
                        raise InputError(
                            f"the store behind {self.uri} does not implement a write with If-None-Match ({_code(error)}), so two runs "
                            "could publish over each other. Use a store with conditional writes."
                        ) from error
                    if _code(error) not in ("409", "ConditionalRequestConflict"):
                        raise
            time.sleep(0.1 * 2**attempt)
        raise TransientError(f"{self.uri}/{path}: the store answered 409 six times; run again")

    def fetch(self, path: str, to: Path) -> None:
        def whole(client: Any) -> None:
            client.download_file(self.bucket, self._key(path), str(to), Config=TRANSFER)
            size = client.head_object(Bucket=self.bucket, Key=self._key(path))["ContentLength"]
            if to.stat().st_size != size:
                raise IncompleteReadError(actual_bytes=to.stat().st_size, expected_bytes=size)

        self._again(path, whole)

    def halves(self, prefix: str, before: float, delete: bool = False) -> list[Entry]:
        """Uploads in parts that a killed process left unfinished, older than `before`; aborted when asked to. Their size is not told."""
        cut, found = len(self._key("")), []
        with self._calls(prefix) as client:
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self._key(prefix))
            for upload in [upload for page in pages for upload in page.get("Uploads", [])]:
                if upload["Initiated"].timestamp() < before:
                    found.append(Entry(upload["Key"][cut:], 0, None, upload["Initiated"].timestamp()))
                    if delete:
                        client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        return found

    def list(self, prefix: str) -> list[Entry]:
        cut = len(self._key(""))

        def whole(client: Any) -> list[dict[str, Any]]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(prefix))
            return [item for page in pages for item in page.get("Contents", [])]

        items = self._again(prefix, whole)
        return [Entry(item["Key"][cut:], item["Size"], item["ETag"], item["LastModified"].timestamp()) for item in items]

    def stat(self, path: str) -> Entry | None:
        with self._calls(path) as client:
            try:
                answer = client.head_object(Bucket=self.bucket, Key=self._key(path))
            except ClientError as error:
                if _code(error) in ("404", "NoSuchKey"):
                    return None
                raise
            return Entry(path, answer["ContentLength"], answer["ETag"], answer["LastModified"].timestamp())

    def delete(self, path: str) -> None:
        with self._calls(path) as client:
            client.delete_object(Bucket=self.bucket, Key=self._key(path))

    def drop_empty_folder(self, path: str) -> None:
        """S3 has no folders."""

    def now(self) -> float:
        """The server's clock, from the Date header: locks of several machines are judged by one clock."""
        answer = self._again("", lambda client: client.list_objects_v2(Bucket=self.bucket, MaxKeys=1))
        return email.utils.parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()

    def probe(self) -> None:
        """Refuse, before any work, a bucket that is not there, is not ours, or whose server ignores If-None-Match."""
        path = f".probe-{secrets.token_hex(6)}"
        try:
            honours = self.create(path, b"1") and not self.create(path, b"2")
        finally:
            with contextlib.suppress(PipelineError):
                self.delete(path)
        if not honours:
            raise InputError(
                f"the store behind {self.uri} ignores If-None-Match, so two runs could publish over each other. "
                "Use a store with conditional writes."
            )


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) or str(error.response["ResponseMetadata"]["HTTPStatusCode"])


def _said(error: Exception, uri: str) -> Exception:
    """The one-sentence form of a boto3 error; a missing key stays FileNotFoundError."""
    if isinstance(error, UNUSABLE):
        return InputError(f"no S3 credentials for {uri} ({error}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile.")
    if isinstance(error, ClientError):
        code = _code(error)
        if code in ("NoSuchKey", "404"):
            return FileNotFoundError(uri)
        if code == "NoSuchBucket":
            return InputError(f"there is no bucket for {uri}: make it, or correct storage.root.")
        if code in REFUSED or error.response["ResponseMetadata"]["HTTPStatusCode"] in (401, 403):
            return InputError(
                f"S3 refused {uri}: {code}. Check the credentials, their expiry, the bucket's policy and region, and this machine's clock."
            )
        return TransientError(f"S3 answered {code} for {uri}, after retries: {error}. Run again.")
    said = re.sub(r"//[^/\s\"]*@", "//", str(error))  # AWS_ENDPOINT_URL, or a proxy's address, may hold a password
    return TransientError(f"no good answer from the store for {uri}: {said}. Check storage.endpoint_url and the network, then run again.")
