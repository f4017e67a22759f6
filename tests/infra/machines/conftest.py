"""An EC2 metadata service over HTTP."""

from collections.abc import Iterator

import pytest

from tests.infra.machines.worlds import FakeMetadata, metadata_service


@pytest.fixture
def metadata() -> Iterator[FakeMetadata]:
    with metadata_service() as fake:
        yield fake
