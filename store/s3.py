"""The storage on S3, by boto3. Transport faults are retried by boto3's standard mode; what it gives up on is said in one sentence.

Every write names a digest of its whole body, and a server that got other bytes refuses it: on Amazon's S3 a CRC32, elsewhere the SHA-256
that the signature covers, as other stores refuse headers that they do not know. There the object also carries its SHA-256 as metadata,
and a read that is not of it is made again. Above that, artifacts are held to their manifest (store/artifact.py).
"""

import contextlib
import email.utils
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

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
from store.digests import digest_of_bytes, read_digest
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
ARRIVED_CHANGED = {"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"}
"""A write whose body was not, for the server, what its digest says."""
READS = 6
"""Answers whose body broke off, or was not what its checksum says, before a read is given up; requests that arrived changed as well."""
PAUSE_S = 0.1
"""After the first of them; it doubles."""
AMAZON = re.compile(r"(^|\.)(amazonaws\.com(\.cn)?|api\.aws)$")
NOT_THERE = ("501", "NotImplemented")
MARK = "bessemer-sha256"
"""The user metadata of an object in which its writer put its SHA-256."""
CHECKSUMS = "AWS_REQUEST_CHECKSUM_CALCULATION"
Taken = TypeVar("Taken")


@lru_cache(maxsize=8)
def _client(endpoint_url: str | None) -> Any:
    """For Amazon's S3 as boto3 has it. For any other store, wherever its address was set, what all of them know.

    That is path style, unless the profile says otherwise, and no checksum beside the signature's, unless the environment asks for one.
    """
    session = boto3.session.Session()
    config = Config(retries={"mode": "standard", "max_attempts": RETRIES}, connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S)
    client = session.client("s3", endpoint_url=endpoint_url, config=config)
    if AMAZON.search(urlsplit(client.meta.endpoint_url).hostname or ""):
        return client
    chosen = {"addressing_style": "path"} | (client.meta.config.s3 or {})
    checksums = os.environ.get(CHECKSUMS) or "when_required"
    other = Config(request_checksum_calculation=checksums, s3=chosen | {"payload_signing_enabled": True})
    return session.client("s3", endpoint_url=endpoint_url, config=config.merge(other))


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
        """`call`, again while the body of its answer breaks off, or its own body arrives changed: boto3 itself does not."""
        fault: Exception | None = None
        for attempt in range(READS):
            with self._calls(path) as client:
                try:
                    return call(client)
                except BROKEN as error:
                    fault = error
                except (ClientError, Boto3Error) as error:
                    if _code(error) not in ARRIVED_CHANGED:
                        raise
                    fault = error
            time.sleep(PAUSE_S * 2**attempt)
        if isinstance(fault, ClientError | Boto3Error):
            raise TransientError(f"{self.uri}/{path}: {READS} requests in a row arrived changed ({fault}); run again")
        raise TransientError(f"{self.uri}/{path}: {READS} answers in a row broke off ({fault}); run again")

    def _get(self, path: str, take: Callable[[Iterator[bytes]], Taken]) -> Taken:
        """What `take` makes of an object's body, the whole of it."""

        def whole(client: Any) -> Taken:
            answer, digest = client.get_object(Bucket=self.bucket, Key=self._key(path)), hashlib.sha256()

            def chunks() -> Iterator[bytes]:
                for chunk in answer["Body"].iter_chunks(1 << 20):
                    digest.update(chunk)
                    yield chunk

            try:
                taken = take(chunks())
            except (BotoCoreError, OSError) as error:
                raise HTTPError(error) from error
            _refuse_changed(answer, digest.hexdigest())
            return taken

        return self._again(path, whole)

    def read(self, path: str) -> bytes:
        return self._get(path, b"".join)

    def digest(self, path: str) -> str:
        """SHA-256 of the stored bytes, every one of them read."""

        def take(chunks: Iterator[bytes]) -> str:
            digest = hashlib.sha256()
            for chunk in chunks:
                digest.update(chunk)
            return digest.hexdigest()

        return self._get(path, take)

    def open(self, path: str) -> BinaryIO:
        with self._calls(path) as client:
            return client.get_object(Bucket=self.bucket, Key=self._key(path))["Body"]

    def write(self, path: str, data: bytes) -> Entry:
        def whole(client: Any) -> Any:
            return client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data, **_marked(client, data))

        answer = self._again(path, whole)
        return Entry(path, len(data), answer["ETag"])

    def put(self, path: str, local: Path) -> Entry:
        def whole(client: Any) -> None:
            client.upload_file(str(local), self.bucket, self._key(path), _marked(client, local), Config=TRANSFER)

        self._again(path, whole)
        entry = self.stat(path)
        if entry is None or entry.size != local.stat().st_size:
            raise StorageError(f"{self.uri}/{path} was uploaded and is not there whole; run again")
        return entry

    def create(self, path: str, data: bytes) -> bool:
        """Put if absent. Our own success whose answer was lost shows as 412 with our bytes (manifests and locks hold a nonce)."""
        for attempt in range(6):
            with self._calls(path) as client:
                try:
                    marked = _marked(client, data)
                    client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data, IfNoneMatch="*", **marked)
                    return True
                except ClientError as error:
                    if _code(error) in ("412", "PreconditionFailed"):
                        return self.read(path) == data
                    if _code(error) in NOT_THERE and client.meta.config.request_checksum_calculation == "when_required":
                        raise InputError(
                            f"the store behind {self.uri} does not implement a write with If-None-Match ({_code(error)}), so two runs "
                            "could publish over each other. Use a store with conditional writes."
                        ) from error
                    if _code(error) not in {"409", "ConditionalRequestConflict"} | ARRIVED_CHANGED:
                        raise
                    said = _code(error)
            time.sleep(PAUSE_S * 2**attempt)
        raise TransientError(f"{self.uri}/{path}: the store answered {said} six times; run again")

    def fetch(self, path: str, to: Path) -> None:
        def whole(client: Any) -> None:
            client.download_file(self.bucket, self._key(path), str(to), Config=TRANSFER)
            answer = client.head_object(Bucket=self.bucket, Key=self._key(path))
            if to.stat().st_size != answer["ContentLength"]:
                raise IncompleteReadError(actual_bytes=to.stat().st_size, expected_bytes=answer["ContentLength"])
            _refuse_changed(answer, read_digest(to))

        self._again(path, whole)

    def halves(self, prefix: str, before: float, delete: bool = False) -> list[Entry]:
        """Uploads in parts that a killed process left unfinished, older than `before`; aborted when asked to. Their size is not told.

        A store that cannot list them shows none.
        """
        cut, found = len(self._key("")), []
        with self._calls(prefix) as client:
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self._key(prefix))
            try:
                uploads = [upload for page in pages for upload in page.get("Uploads", [])]
            except ClientError as error:
                if _code(error) not in NOT_THERE:
                    raise
                return []
            for upload in uploads:
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


def _marked(client: Any, body: bytes | Path) -> dict[str, Any]:
    """Arguments of a write by which a read knows its bytes: a server without the request's CRC has none to send back."""
    if client.meta.config.request_checksum_calculation != "when_required":
        return {}
    return {"Metadata": {MARK: read_digest(body) if isinstance(body, Path) else digest_of_bytes(body)}}


def _refuse_changed(answer: dict[str, Any], digest: str) -> None:
    """Raise one of BROKEN if the body is not what its writer said, in an answer to GET or HEAD; what others wrote says nothing."""
    if (said := answer.get("Metadata", {}).get(MARK, digest)) != digest:
        raise HTTPError(f"SHA-256 {digest[:12]}, and {said[:12]} was written")


def _code(error: ClientError | Boto3Error) -> str:
    """What the server said. A transfer's own error, which has no code, holds the fault that ended it."""
    if not isinstance(error, ClientError):
        return _code(error.__context__) if isinstance(error.__context__, ClientError) else ""
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
        if code in NOT_THERE:
            what = f"It may refuse the checksum that {CHECKSUMS} asks for: unset it" if CHECKSUMS in os.environ else "Use a store that does"
            return InputError(f"the store behind {uri} does not implement what it was asked: {error}. {what}.")
        return TransientError(f"S3 answered {code} for {uri}, after retries: {error}. Run again.")
    said = re.sub(r"//[^/\s\"]*@", "//", str(error))  # AWS_ENDPOINT_URL, or a proxy's address, may hold a password
    return TransientError(f"no good answer from the store for {uri}: {said}. Check storage.endpoint_url and the network, then run again.")
