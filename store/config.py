"""Where artifacts lie. A place, so it never enters a fingerprint."""

from urllib.parse import urlsplit

from pydantic import field_validator

from contract.config import Frozen


class StorageConfig(Frozen):
    root: str | None = None
    """file:///folder or s3://bucket/prefix; when unset, the machine's BESSEMER_STORAGE_ROOT, else the project's `runs/` folder."""
    endpoint_url: str | None = None
    """Another S3 server than Amazon's; credentials and region as boto3 finds them."""

    @field_validator("root", "endpoint_url")
    @classmethod
    def _holds_no_credentials(cls, value: str | None) -> str | None:
        return None if value is None else without_credentials(value)


def without_credentials(uri: str) -> str:
    """`uri`, when nobody wrote user and password into it: configuration is recorded, shown and sent to other processes."""
    if "@" in urlsplit(uri).netloc:
        raise ValueError("credentials do not belong in a URI; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile")
    return uri
