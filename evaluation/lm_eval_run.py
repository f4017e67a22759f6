"""Multiple choice by lm-eval, from files on this machine alone.

Each task becomes a YAML beside a JSON Lines file that lm-eval loads as it loads any task; what it scores is an `LM` of its own kind,
made by the caller (evaluation/adapter.py). Its answers are taken item by item, so that the standard errors can be clustered
by document: lm-eval's own treats every item as independent. `quiet()` must be called before lm_eval or datasets is first imported.
"""

import logging
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from contract.errors import StageFailed
from evaluation.intervals import Interval, share_interval
from evaluation.items import delimiter

if TYPE_CHECKING:
    from lm_eval.api.model import LM

METRICS = ("acc", "acc_norm")
"""acc: the choice of the highest log probability is the right one. acc_norm: of the highest log probability a character."""


def quiet(cache: Path) -> None:
    """No network, no bars, and no cache outside `cache`: set for this process, before the libraries read it at import."""
    settings = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_CACHE": str(cache / "datasets"),
        "HF_HOME": str(cache / "home"),
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "LMEVAL_LOG_LEVEL": "ERROR",
    }
    os.environ.update(settings)
    for name in ("lm_eval", "datasets", "urllib3", "fsspec"):
        logging.getLogger(name).setLevel(logging.ERROR)


def write_tasks(items: pa.Table, folder: Path) -> list[str]:
    """A YAML and a JSON Lines file for each task of `items`; returns lm-eval's names of the tasks, sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for task in sorted(set(items["task"].to_pylist())):
        rows = items.filter(pc.equal(items["task"], task)).select(["item", "context", "choices", "gold"]).to_pylist()
        data = folder / f"{task}.jsonl"
        data.write_bytes(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))
        names.append(f"bessemer_{task}")
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(_task(names[-1], data, delimiter(task)), sort_keys=False))
    return names


def _task(name: str, data: Path, target_delimiter: str) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",  # columns by name: a template would read braces in a text as code
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": target_delimiter,
        "num_fewshot": 0,
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in METRICS],
        "metadata": {"version": 1.0},
    }


def run(model: "LM", items: pa.Table, folder: Path) -> pa.Table:
    """Score every item with `model`; returns (task, item, acc, acc_norm), in the order of `items`. `folder` takes the task files."""
    import lm_eval  # here, since `quiet` must come before; and it takes a second
    from lm_eval.tasks import TaskManager

    names = write_tasks(items, folder)
    tasks = TaskManager(include_path=str(folder), include_defaults=False).load(names)
    # evaluate() is what simple_evaluate() ends in; the latter also runs git, pip and lscpu to describe the machine, for each model
    results = lm_eval.evaluate(model, task_dict=tasks, bootstrap_iters=0, log_samples=True)
    found = {}
    for name in names:
        for sample in results["samples"][name]:
            found[name.removeprefix("bessemer_"), sample["doc"]["item"]] = sample
    keys = list(zip(items["task"].to_pylist(), items["item"].to_pylist(), strict=True))
    missing = [key for key in keys if key not in found]
    if missing or len(found) != len(keys):
        raise StageFailed(
            f"lm-eval answered {len(found):,} of {len(keys):,} items, {missing[:1]} is missing; item names of a task must differ"
        )
    columns = {metric: [float(found[key][metric]) for key in keys] for metric in METRICS}
    return pa.table({"task": items["task"], "item": items["item"], **columns})


def summarise(answers: pa.Table, items: pa.Table) -> dict[str, dict[str, Any]]:
    """By task, and for the local task by domain: both metrics with their intervals clustered by document, items and chance."""
    table = items.append_column("acc", answers["acc"]).append_column("acc_norm", answers["acc_norm"])
    summary = {}
    for task in sorted(set(table["task"].to_pylist())):
        rows = table.filter(pc.equal(table["task"], task))
        summary[task] = _figures(rows)
        domains = sorted(set(rows["domain"].to_pylist()))
        if domains != [task]:
            summary[task]["domains"] = {domain: _figures(rows.filter(pc.equal(rows["domain"], domain))) for domain in domains}
    return summary


def _figures(rows: pa.Table) -> dict[str, Any]:
    documents = rows["document"].to_pylist()
    clusters = [document or item for document, item in zip(documents, rows["item"].to_pylist(), strict=True)]
    intervals: dict[str, Interval] = {metric: share_interval(rows[metric].to_pylist(), clusters) for metric in METRICS}
    chance = sum(1 / len(choices) for choices in rows["choices"].to_pylist()) / len(rows)
    best = intervals["acc_norm"]
    return {
        "items": len(rows),
        "documents": len(set(clusters)),
        "chance": chance,
        **{metric: interval.to_json() for metric, interval in intervals.items()},
        "standard_errors_above_chance": (best.mean - chance) / best.se if best.se and math.isfinite(best.se) else None,
    }
