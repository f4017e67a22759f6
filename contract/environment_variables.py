"""Sets environment variables that libraries read at import: they make them quiet and offline, with caches in a folder of ours."""

import os
from pathlib import Path


def prepare_environment() -> None:
    """Set what is not set yet. Every program of ours calls this first."""
    for name, value in {
        "NUMBA_CACHE_DIR": str(Path(__file__).parents[1] / ".cache" / "numba"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GX_ANALYTICS_ENABLED": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TRANSFORMERS_VERBOSITY": "error",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        **({} if Path("/dev/nvidiactl").exists() else {"DS_ACCELERATOR": "cpu"}),  # else it looks for a GPU's compiler and warns
    }.items():
        os.environ.setdefault(name, value)
