"""Opens the storage behind an address. A new kind is a class with the methods of `store/storage.py`, and a branch in `_opened`."""

from pathlib import Path

from contract.errors import ConfigError
from store.address import Address, address
from store.config import usable_uri
from store.local_disk import LocalStorage
from store.storage import Storage


def open_root(uri: str, endpoint_url: str | None = None) -> Storage:
    """The storage under a folder or s3://bucket/prefix (store/address.py). Raises ConfigError for what names none."""
    try:
        usable_uri(uri)  # checked here too: the address may come from the environment
    except ValueError as error:
        raise ConfigError(f"storage.root: {error}") from error
    try:
        return _opened(address(uri), endpoint_url)
    except ValueError as error:
        raise ConfigError(f"storage.root {error}") from error


def open_file(uri: str, endpoint_url: str | None = None) -> tuple[Storage, str]:
    """The storage that holds a file, and the file's path in it. Raises ValueError, with a sentence, for what names none."""
    found = address(usable_uri(uri))
    folder, _, name = found.path.rpartition("/")
    if not name or uri.endswith("/"):
        raise ValueError(f"{uri} names no file")
    return _opened(found._replace(path=folder or ("/" if found.kind == "file" else "")), endpoint_url), name


def _opened(place: Address, endpoint_url: str | None) -> Storage:
    if place.kind == "file":
        return LocalStorage(str(Path(place.path)))
    from store.s3 import S3Storage

    return S3Storage(place.bucket, place.path, endpoint_url)
