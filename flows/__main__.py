"""The command `bessemer`: the command line of `bessemer/cli.py`, given the flows that it runs. Only this file imports both."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bessemer import doctor

if TYPE_CHECKING:
    from bessemer.cli import Body

NAMES = ("pretrain", "curate", "train", "align", "evaluate", "export")


def body_of(flow: str) -> "Body":
    """A flow's body, loaded when a command needs it: importing Prefect takes a second, and `bessemer gc` does without it."""
    from flows import align, curate, evaluate, export, pretrain, train

    bodies = {
        "pretrain": pretrain.body,
        "curate": curate.body,
        "train": train.body,
        "align": align.body,
        "evaluate": evaluate.body,
        "export": export.body,
    }
    return bodies[flow]


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point of the console script; returns its exit code. `--version` and `doctor` answer where our own code does not load."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        print(doctor.version())
        return 0
    try:
        from bessemer import cli
    except Exception as error:
        if words[:1] == ["doctor"]:
            return doctor.report(None, f"{type(error).__name__}: {error}")
        raise
    return cli.main(NAMES, body_of, argv)


if __name__ == "__main__":
    sys.exit(main())
