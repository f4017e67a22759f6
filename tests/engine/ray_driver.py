"""The flow's side of a launch over a Ray cluster, as a process: `python ray_driver.py spec.json ROOT OUT NODES ADDRESS`."""

import json
import shutil
import sys
from pathlib import Path

from contract.config import RunOptions
from contract.errors import ComeAgain, PipelineError
from engine.launch import run_child
from engine.stage import Output
from store.artifact import Artifact
from store.attempt import Attempt
from store.root import open_root


class Printed:
    """A journal that prints."""

    def started(self, stage: str, fingerprint: str, why: str) -> None: ...
    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None: ...
    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None:
        print(f"step {done:.0f}", flush=True)

    def warn(self, stage: str, text: str) -> None:
        print(f"warning {text}", flush=True)


def main(spec: str, root: str, out: str, nodes: str, address: str) -> int:
    options = RunOptions(ranks=2, nodes=int(nodes), ray_address=address)
    output = Output(Attempt.new(open_root(Path(root).as_uri()), "pretrain", "f" * 64, "basis"), options, Printed(), adopt=False)
    what = json.loads(Path(spec).read_text()) | {"checkpoints": output.checkpoints.to_json(), "out": str(output.scratch / "result")}
    what["place"] |= {"ranks": 2, "nodes": int(nodes)}
    try:
        run_child("training.child", what, output, ranks=2)
        shutil.copytree(output.scratch / "result", out)
    except ComeAgain:
        return 75
    except PipelineError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return error.exit_code
    finally:
        shutil.rmtree(output.scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
