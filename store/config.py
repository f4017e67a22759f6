"""Where artifacts lie. A place, so it never enters a fingerprint."""

from contract.config import Frozen


class StorageConfig(Frozen):
    root: str | None = None
    """file:///folder or s3://bucket/prefix; the project's `runs/` folder when unset."""
    endpoint_url: str | None = None
    """Another S3 server than Amazon's; credentials and region as boto3 finds them."""
