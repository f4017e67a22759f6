"""Where artifacts lie. A place, so it never enters a fingerprint."""

from urllib.parse import unquote, urlsplit

from pydantic import field_validator

from contract.config import Frozen

NO_CREDENTIALS = "credentials do not belong in a URI; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"


class StorageConfig(Frozen):
    root: str | None = None
    """file:///folder or s3://bucket/prefix; when unset, the machine's BESSEMER_STORAGE_ROOT, else the project's `runs/` folder."""
    endpoint_url: str | None = None
    """Another S3 server than Amazon's; credentials and region as boto3 finds them."""

    @field_validator("root", "endpoint_url")
    @classmethod
    def _usable(cls, value: str | None) -> str | None:
        return None if value is None else usable_uri(value)


def usable_uri(uri: str) -> str:
    """`uri`, when it can be opened and nobody wrote user and password into it: configuration is recorded, shown and sent on."""
    if "\0" in unquote(uri):
        raise ValueError("it holds a NUL character, which no path has; take it out")
    if "@" in urlsplit(uri).netloc:
        raise ValueError(NO_CREDENTIALS)
    return uri
