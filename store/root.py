"""Opens the storage behind an address. A new kind is a class with the methods of `store/storage.py`, and a branch here for its scheme."""

from pathlib import Path
from urllib.parse import unquote, urlparse

from contract.errors import ConfigError
from store.config import NO_CREDENTIALS
from store.local_disk import LocalStorage
from store.storage import Storage


def open_root(uri: str, endpoint_url: str | None = None) -> Storage:
    """The storage under file:///folder, s3://bucket/prefix or a plain folder. Raises ConfigError for any other scheme."""
    parts = urlparse(uri)
    if "@" in parts.netloc:  # checked here too: the address may come from the environment
        raise ConfigError(f"storage.root: {NO_CREDENTIALS}")
    if parts.scheme in ("", "file"):
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(f"storage.root {uri} names a host; write file:///absolute/folder, with three slashes")
        return LocalStorage(str(Path(unquote(parts.path)).absolute()))
    if parts.scheme == "s3":
        from store.s3 import S3Storage

        if len(parts.netloc) < 3:
            raise ConfigError(f"storage.root {uri} names no bucket; write s3://bucket/prefix")
        return S3Storage(parts.netloc, parts.path.strip("/"), endpoint_url)
    raise ConfigError(f"storage.root {uri} has the scheme {parts.scheme}; file:///folder and s3://bucket/prefix are known")
