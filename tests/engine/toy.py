"""A small pipeline of real stages for the engine's tests: numbers -> squares (by parts) -> total. Also a program that is killed."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa

from contract.config import Frozen, RunOptions
from contract.ledger import Count, Ledger
from engine.launch import run_child
from engine.parts import Part, PartWriter, map_parts
from engine.stage import Engine, Output, stage
from store.artifact import Artifact
from store.root import open_root
from store.storage import Storage

ASIDE: list[str] = []


class Config(Frozen):
    count: int = 12
    power: int = 2
    note: str = ""


class Power(Frozen):
    power: int


class Amount(Frozen):
    count: int


class Silent:
    """A journal that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str]] = []

    def started(self, stage: str, fingerprint: str, why: str) -> None: ...
    def progress(self, stage: str, done: float, total: float, unit: str, note: str) -> None: ...
    def warn(self, stage: str, text: str) -> None:
        self.lines.append((stage, "warn", text))

    def finished(self, artifact: Artifact, state: str, why: str, seconds: float) -> None:
        self.lines.append((artifact.stage, state, why))


@stage(version=1, config=lambda c: Amount(count=c.count), rows="out")
def numbers(config: Amount, out: Output) -> Ledger:
    for i in range(0, config.count, 3):
        rows = list(range(i, min(i + 3, config.count)))
        out.table(f"part-{i // 3:05d}.parquet", pa.table({"n": pa.array(rows, pa.int64())}))
    return Ledger(documents=Count(came_in=config.count, out=config.count))


def square_part(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    rows = spec["numbers"].table(spec["name"])["n"].to_pylist()
    flag = Path(os.environ.get("TOY_KILL", "/nonexistent"))
    if flag.exists() and spec["name"] == flag.read_text():
        flag.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    calls = os.environ.get("TOY_CALLS")
    if calls:
        with open(calls, "a") as file:
            file.write(spec["name"] + "\n")
    broken = Path(os.environ.get("TOY_BREAK", "/nonexistent"))
    if broken.exists():
        if broken.read_text() == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError(broken.read_text())
    kept = rows[:-1] if os.environ.get("TOY_LOSE") == spec["name"] else rows
    write.table(spec["name"], pa.table({"n": pa.array([n ** spec["power"] for n in kept], pa.int64())}))
    write.bytes(spec["name"] + ".inner", b"for a later step", content=False)
    if spec["name"] == os.environ.get("TOY_SAY"):
        print("half of this is guessed", file=sys.stderr, flush=True)
    return {"sum": sum(n ** spec["power"] for n in rows)}


@stage(version=1, config=lambda c: Power(power=c.power), counts="numbers", rows="in")
def squares(numbers: Artifact, config: Power, out: Output) -> Ledger:
    parts = [Part(name.removesuffix(".parquet"), {"numbers": numbers, "name": name, "power": config.power}) for name in numbers.names()]
    results = map_parts(out, square_part, parts, meanwhile=lambda: ASIDE.append("while Ray starts"))
    assert out.reader.read("part-00000.parquet.inner") == b"for a later step"
    out.figures["sum"] = sum(result["sum"] for result in results)
    documents = numbers.ledger.documents
    assert documents is not None
    return Ledger(documents=Count(came_in=documents.out, out=documents.out))


@stage(version=1, config=lambda c: Amount(count=1))
def total(squares: Artifact, config: Amount, out: Output) -> Ledger:
    out.json("total.json", squares.figures["sum"])
    out.attach("log.txt", os.urandom(8))
    return Ledger()


@stage(version=1, config=lambda c: Amount(count=1))
def ranks(config: Amount, out: Output) -> Ledger:
    """Two that say `mind this`."""
    run_child("tests.engine.children", {"how": "finish", "out": str(out.scratch / "result")}, out, ranks=2)
    return Ledger()


def engine(storage: Storage, config: Config | None = None, workers: int = 1, force: str = "") -> Engine:
    return Engine(storage, config or Config(), RunOptions(workers=workers), Silent(), "toy", lambda stage: stage == force)


def pipeline(engine: Engine) -> list[Artifact]:
    made: list[Artifact] = []
    for one, inputs in ((numbers, {}), (squares, {"numbers": 0}), (total, {"squares": 1})):
        made.append(engine.run(engine.plan(one, {role: made[i] for role, i in inputs.items()})))
    return made


if __name__ == "__main__":
    root, endpoint = sys.argv[1], sys.argv[2] or None
    print([artifact.digest for artifact in pipeline(engine(open_root(root, endpoint)))])
