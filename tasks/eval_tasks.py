"""The multiple-choice items that will be scored, made before selection so that contamination is measured against these very items."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from contract.errors import InputError
from contract.ledger import Ledger
from engine.parts import Part, PartWriter, map_parts
from engine.stage import Output, stage
from evaluation.config import CONTINUATION, ItemsConfig, NamedTask
from evaluation.items import candidates, continuation_items, merge_candidates, named_items
from sources.config import IngestConfig
from sources.lines import LineFile
from sources.streams import compression_of
from store.artifact import Artifact
from store.digests import digest_of_file
from store.root import open_file
from store.storage import Storage

MOST_ITEM_BYTES, MOST_BYTES = 2**20, 24 * 2**20  # of JSON, which takes up to 30 times as much memory


def _task_files(config: ItemsConfig, storage: Storage) -> dict[str, str]:
    """The digest of each named task's file."""
    return {task.name: _digest(task, storage) for task in config.tasks}


@stage(version=2, config=lambda c: c.evaluate.items, external=_task_files)
def eval_tasks(documents: Artifact, duplicates: Artifact, splits: Artifact, config: ItemsConfig, out: Output) -> Ledger:
    """items.parquet: continuations of kept test documents, and the named tasks of the config.

    Each part gives its candidates (bounded: as many documents a domain as items are wanted), the items are made of all of them, so
    they depend neither on parts nor on workers. Warns where there are fewer items than asked.
    """
    inputs = {"documents": documents, "duplicates": duplicates, "splits": splits, "config": config}
    parts = [Part(f"candidates-{name[5:-8]}", {**inputs, "name": name}) for name in documents.names()]
    map_parts(out, _candidates, parts)
    found = [out.reader.table(name) for name in out.reader.names("candidates-")]
    local = continuation_items(merge_candidates(found, config), config)
    if len(local) < config.items - config.items % config.choices:
        short = f"{len(local):,} local items instead of {config.items:,} (evaluate.items.items)"
        out.warn(f"{short}: too few long documents, or groups of them, on the test side")
    named = [named_items(task, _lines(task, out.attempt.storage)) for task in config.tasks]
    out.table("items.parquet", pa.concat_tables([local, *named]))
    out.figures["items"] = {CONTINUATION: len(local), **{task.name: len(table) for task, table in zip(config.tasks, named, strict=True)}}
    out.figures["documents"] = len(set(local["document"].to_pylist()))
    out.figures["domains"] = _counts(local["domain"].to_pylist())
    return Ledger()


def _candidates(spec: dict[str, Any], write: PartWriter) -> dict[str, Any]:
    name, config = spec["name"], spec["config"]
    table = candidates(
        spec["documents"].table(name, ["id", "text", "domain"]),
        spec["duplicates"].table(name, ["kept"]),
        spec["splits"].table(name, ["split", "group"]),
        config,
    )
    write.table(f"candidates-{name[5:]}", table, content=False)
    return {"documents": len(table)}


def _counts(names: list[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}


def _place(task: NamedTask, storage: Storage) -> tuple[Storage, str]:
    """The storage and the path in it of a named task's file; S3 is reached as the root is."""
    return open_file(task.uri, getattr(storage, "endpoint_url", None))


def _digest(task: NamedTask, storage: Storage) -> str:
    root, name = _place(task, storage)
    local = root.local(name)
    try:
        return digest_of_file(local) if local is not None else root.digest(name)
    except OSError as error:
        raise InputError(f"{task.uri} of the task {task.name}: {error.strerror or error}; correct evaluate.items.tasks") from error


def _lines(task: NamedTask, storage: Storage) -> Iterator[bytes]:
    """The file's lines. Raises InputError where the rest cannot be read, a line is longer than any item, or all are too long together."""
    root, name = _place(task, storage)
    file = LineFile(compression_of(task.uri), None, MOST_ITEM_BYTES, IngestConfig().max_expansion)
    taken = 0
    with root.open(name) as raw:
        for _, line in file.lines(raw, 0, None):
            if line.fault is not None:
                raise InputError(f"{task.uri} of the task {task.name}, at byte {line.offset:,}: {line.fault}; correct the file")
            taken += len(line.data)
            if taken > MOST_BYTES:
                raise InputError(f"{task.uri} of the task {task.name} has more than {MOST_BYTES:,} bytes of items; give the task a limit")
            yield line.data
