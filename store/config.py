"""Where artifacts lie. A place, so it never enters a fingerprint."""

from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationInfo, field_validator

from contract.config import Frozen
from store.address import address

NO_CREDENTIALS = "credentials do not belong in a URI; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"


class StorageConfig(Frozen):
    root: str | None = Field(default=None, min_length=1)
    """file:///folder or s3://bucket/prefix; when unset, the machine's BESSEMER_STORAGE_ROOT, else the project's `runs/` folder."""
    endpoint_url: str | None = Field(default=None, min_length=1)
    """Another S3 server than Amazon's; credentials and region as boto3 finds them."""

    @field_validator("root", "endpoint_url")
    @classmethod
    def _usable(cls, value: str | None, field: ValidationInfo) -> str | None:
        if value is None:
            return None
        if field.field_name == "root":
            _named(usable_uri(value))
        elif (scheme := urlsplit(usable_uri(value)).scheme) not in ("http", "https"):
            raise ValueError(f"storage.endpoint_url {value} has the scheme {scheme or 'of a path'}; http:// and https:// are known")
        return value


def _named(root: str) -> None:
    try:
        address(root)
    except ValueError as error:
        raise ValueError(f"storage.root {error}") from error


def usable_uri(uri: str) -> str:
    """`uri`, when it can be opened and nobody wrote user and password into it: configuration is recorded, shown and sent on."""
    if "\0" in unquote(uri):
        raise ValueError("it holds a NUL character, which no path has; take it out")
    if "@" in urlsplit(uri).netloc:
        raise ValueError(NO_CREDENTIALS)
    return uri
