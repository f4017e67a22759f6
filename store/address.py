"""What an address names. In one place, so that #, ?, %41 and ~ mean the same for a root, a source, a file of items and one of settings.

A plain path is taken as it is, but for a ~ at its beginning. In a file:// address %41 is a byte, and nothing else has a meaning. The key
of a bucket is taken as it is.
"""

import os
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote_to_bytes

KNOWN = "a path, file:// and s3:// are known"


class Address(NamedTuple):
    kind: Literal["file", "s3"]
    bucket: str
    path: str
    """Absolute on this machine, or a key without slashes around it."""


def address(uri: str) -> Address:
    """Raises ValueError, with a sentence, for another scheme, a host, a missing bucket, or a ~ of a user that nobody knows."""
    scheme, found, rest = uri.partition("://")
    if not found and uri.startswith("file:/"):
        scheme, found, rest = "file", "://", uri.removeprefix("file:")
    if not found:
        path = Path(os.path.expanduser(uri))  # noqa: PTH111 (Path's raises where no such user is)
        return Address("file", "", str(path.absolute()))
    host, _, path_or_key = rest.partition("/")
    match scheme.lower():
        case "file":
            if host not in ("", "localhost"):
                raise ValueError(f"{uri} names a host; write file:///absolute/path, with three slashes")
            return Address("file", "", str(Path(os.fsdecode(unquote_to_bytes(f"/{path_or_key}"))).absolute()))
        case "s3":
            if len(host) < 3:
                raise ValueError(f"{uri} names no bucket; write s3://bucket/prefix")
            return Address("s3", host, path_or_key.strip("/"))
    raise ValueError(f"{uri} has the scheme {scheme}; {KNOWN}")
