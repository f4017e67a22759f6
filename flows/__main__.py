"""The command `bessemer`: the command line of `bessemer/cli.py`, given the flows that it runs. Only this file imports both."""

import sys
from collections.abc import Sequence

from bessemer import cli

NAMES = ("pretrain", "curate", "train", "align", "evaluate", "export")


def body_of(flow: str) -> cli.Body:
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
    """The entry point of the console script; returns its exit code."""
    return cli.main(NAMES, body_of, argv)


if __name__ == "__main__":
    sys.exit(main())
