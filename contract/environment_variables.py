"""Sets environment variables that libraries read at import: they make them quiet and offline, with caches in folders of ours."""

import getpass
import os
from pathlib import Path

from contract.own_folders import CLONE, at_home, cache_folder, home, in_clone

IN_THE_CLONE = {"NUMBA_CACHE_DIR": ".cache/numba", "TORCHINDUCTOR_CACHE_DIR": ".cache/inductor"}
AT_HOME = {"XDG_CACHE_HOME": ".cache", "PREFECT_HOME": ".prefect", "MPLCONFIGDIR": ".config/matplotlib", "TRITON_HOME": ".triton"}
"""What libraries keep in the user's home. The variable is set where the home cannot take it: most of them end in a traceback there."""


def prepare_environment() -> None:
    """Set what is not set yet. Every program of ours calls this first. Raises InputError where there is no folder for caches."""
    for name, value in {
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
    _name_the_user()
    os.environ["BESSEMER_CACHE"] = str(cache_folder())  # decided once: the lines below change what it would be for our children
    for name, below in IN_THE_CLONE.items():
        if name not in os.environ:
            os.environ[name] = str(in_clone(CLONE, below))
    if home() is None:
        os.environ["HOME"] = str(at_home(""))
    for name, below in AT_HOME.items():
        if name not in os.environ and (folder := at_home(below)) != Path.home() / below:
            os.environ[name] = str(folder)


def _name_the_user() -> None:
    """A user id without an entry in passwd has no name, and libraries ask for one."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = os.environ["USER"] = f"uid-{os.getuid()}"
