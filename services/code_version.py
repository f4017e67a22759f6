"""Which code deployments were made from: a digest that `make up` gives them as their version.

It is compared where a machine starts to take runs (infra/machines/connect.py) and where each run starts (flows/in_prefect.py): a run must
not be split over two versions of the code, and its parameters were checked by the schema of the version that was deployed.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

ROOMS = (
    "bessemer", "contract", "dedup", "deployments", "engine", "evaluation", "filters", "flows", "infra", "models", "services", "sources",
    "store", "tasks", "tokens", "training",
)  # fmt: skip
"""The folders of our code. Another one in the clone, such as a plug-in's, has a version of its own."""
DIGEST = re.compile(r"[0-9a-f]{12}")


def code_digest(home: Path) -> str:
    """The digest of what deployments are made from: prefect.yaml, presets, and the code, since any of it may hold a parameter's type."""
    digest = hashlib.sha256()
    files = {home / "prefect.yaml", *home.glob("deployments/presets/*.yaml"), *home.glob("infra/machines/*.py")}
    files |= {path for room in ROOMS for path in (home / room).glob("*.py")}
    for path in sorted(files):
        digest.update(f"{path.relative_to(home)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def others(versions: Iterable[str | None], code: str) -> list[str]:
    """Those that are the digest of other code. Who deploys with a version of his own, or none, has it compared by nobody."""
    return sorted({version for version in versions if version and DIGEST.fullmatch(version)} - {code})
