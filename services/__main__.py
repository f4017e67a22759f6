"""Server, worker and reports in the background, on loopback: what `make up`, `make down` and `make status` call.

    python -m services up | down | status

Pid files and logs lie in .cache/services/ of the clone. The server's port is BESSEMER_PORT (4200), that of the reports
BESSEMER_REPORTS_PORT (the next one). Where PREFECT_API_URL is set, that server (or Prefect Cloud) is used and none is started.
Settings that the user has made in the environment win over ours.

`up` reuses what runs. `down` lets active runs checkpoint and become AwaitingRetry, so that the next `up` goes on with them.
"""

import sys
from collections.abc import Callable

from contract.environment_variables import prepare_environment
from contract.errors import InputError, PipelineError, exit_code_of, said
from services.down import down
from services.paths_and_ports import Clone
from services.status import print_status
from services.up import up


def main(arguments: list[str]) -> int:
    verb, *rest = arguments or [""]
    try:
        prepare_environment()
        verbs: dict[str, Callable[[], object]] = {"up": up, "down": down, "status": print_status}
        if verb not in verbs or rest:
            raise InputError("usage: python -m services up | down | status")
        home = Clone.from_environment().home
        if verb == "up" and not (home / "prefect.yaml").exists():
            raise InputError(
                f"the services need a clone of the project, and {home} is none (it has no prefect.yaml): run make up in a clone, or name "
                "one by BESSEMER_HOME. `bessemer run` needs no services"
            )
        verbs[verb]()
    except PipelineError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(said(error), file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
