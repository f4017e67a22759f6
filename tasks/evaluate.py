"""Every model that is there, scored on text, items, prompts and pairs that none was trained on."""

from importlib.metadata import version
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contract.config import Frozen
from contract.errors import InputError, StageFailed
from contract.ledger import Ledger
from contract.schemas import TOKENS
from engine.installed_tools import tool
from engine.launch import run_child
from engine.stage import Output, stage
from evaluation.claims import claims
from evaluation.config import EvaluateConfig
from store.artifact import Artifact
from tasks.calibrate import place
from training.config import METHODS
from training.loader import global_batch


class Scoring(Frozen):
    """What the figures depend on: the evaluation's settings, and the seed by which the baselines find the blocks that were trained on."""

    evaluate: EvaluateConfig
    train_seed: int


@stage(version=3, config=lambda c: Scoring(evaluate=c.evaluate, train_seed=c.train.seed))
def evaluate(
    tokens: Artifact,
    items: Artifact,
    tokenizer: Artifact,
    base: Artifact,
    blocks: Artifact,
    config: Scoring,
    out: Output,
    pairs: Artifact | None = None,
    sft: Artifact | None = None,
    reward: Artifact | None = None,
    calibration: Artifact | None = None,
    **aligned: Artifact,
) -> Ledger:
    """evaluation.json; answers.parquet (by model and item); responses.parquet (by model and prompt).

    `aligned`: what METHODS made of SFT's model, by name. The work is done by a child process (evaluation/child.py). Figures: the
    headlines and the claims that hold.
    """
    if unknown := set(aligned) - set(METHODS):
        raise StageFailed(f"evaluate has no input {', '.join(sorted(unknown))}; what can be aligned is {', '.join(METHODS)}")
    later = sorted(aligned, key=[*METHODS].index)  # their order is that of the rows in responses.parquet
    models = {"base": base} | ({"sft": sft} if sft is not None else {}) | {name: aligned[name] for name in later}
    vocab_size = int(orjson.loads((base.folder("model") / "config.json").read_bytes())["vocab_size"])
    where = place(out.run, calibration)
    threads = where.threads * where.ranks  # the ranks of training are over
    spec: dict[str, Any] = {
        "out": str(out.scratch / "result"),
        "config": config.evaluate.model_dump(mode="json"),
        "device": out.run.device,
        "threads": threads,
        "vocab_size": vocab_size,
        "models": {name: str(artifact.folder("model")) for name, artifact in models.items()},
        "tokenizer": str(tokenizer.path("tokenizer.json")),
        "items": str(items.path("items.parquet")),
        "validation": _validation(tokens, config.evaluate, out),
    }
    if config.evaluate.baselines:
        spec |= {"lmplz": str(tool("lmplz")), "build_binary": str(tool("build_binary"))}
        spec["blocks"] = _blocks(blocks, base, config, out)
    spec |= _pairs(pairs, sft, reward, out)
    run_child("evaluation.child", spec, out, threads=threads)
    return _publish(out, threads)


def _validation(tokens: Artifact, config: EvaluateConfig, out: Output) -> str:
    """A file of the validation documents to score: of each domain those with the smallest ids until there are enough tokens."""
    rows = []
    for name in tokens.names():
        light = tokens.table(name, ["id", "domain", "num_tokens", "split"])
        held = light.filter(pc.equal(light["split"], "validation"))
        columns = (held[column].to_pylist() for column in ("domain", "id", "num_tokens"))
        rows += [(*row, name) for row in zip(*columns, strict=True)]
    chosen: dict[str, list[bytes]] = {}
    spent: dict[str, int] = {}
    for domain, document, count, name in sorted(rows):
        if config.validation_tokens is None or spent.get(domain, 0) < config.validation_tokens:
            chosen.setdefault(name, []).append(document)
            spent[domain] = spent.get(domain, 0) + count
    if not chosen:
        raise InputError("there are no validation documents to score: raise split.validation, or give more text")
    found = []
    for name, documents in sorted(chosen.items()):  # ids are read of the parts that hold some of them only
        table = tokens.table(name)
        found.append(table.filter(pc.is_in(table["id"], value_set=pa.array(documents, TOKENS.field("id").type))))
    path = out.scratch / "validation.parquet"
    pq.write_table(pa.concat_tables(found).sort_by([("domain", "ascending"), ("id", "ascending")]), path)
    return str(path)


def _blocks(blocks: Artifact, base: Artifact, config: Scoring, out: Output) -> str:
    """The blocks that training saw, each once, as an array of ids: what the baselines may learn from."""
    names = blocks.names()
    sizes = [blocks.rows(name) for name in names]
    context = int(blocks.figures["context"])
    seen = min(int(base.figures["tokens"]) // context, sum(sizes), max(1, config.evaluate.baseline_tokens // context))
    rows = np.sort(global_batch(config.train_seed, 0, sum(sizes), seen))
    pieces, start = [], 0
    for name, size in zip(names, sizes, strict=True):
        inside = rows[(rows >= start) & (rows < start + size)] - start
        if len(inside):
            ids = blocks.table(name, ["tokens"])["tokens"].combine_chunks()
            pieces.append(ids.flatten().to_numpy().reshape(-1, context + 1)[inside])
        start += size
    path = out.scratch / "blocks.npy"
    np.save(path, np.concatenate(pieces))
    return str(path)


def _pairs(pairs: Artifact | None, sft: Artifact | None, reward: Artifact | None, out: Output) -> dict[str, str]:
    """Files of the test prompts, the gold judge and the test pairs, as far as there is a model to judge by them."""
    if pairs is None:
        return {}
    found: dict[str, str] = {}
    if sft is not None:
        prompts = _test_rows(pairs, "prompts.parquet")
        if not pairs.names("gold/"):
            out.warn("the pairs have no gold judge: responses before and after alignment are not compared")
        elif len(prompts):
            found |= {"prompts": _written(prompts, "prompts.parquet", out), "gold": str(pairs.folder("gold"))}
        else:
            out.warn("there are no test prompts: responses before and after alignment are not compared")
    if reward is not None:
        preferences = _test_rows(pairs, "preferences.parquet")
        if len(preferences):
            found |= {"preferences": _written(preferences, "preferences.parquet", out), "reward": str(reward.folder("model"))}
        else:
            out.warn("there are no test pairs: the reward model's accuracy is not measured")
    return found


def _test_rows(pairs: Artifact, name: str) -> pa.Table:
    table = pairs.table(name)
    return table.filter(pc.equal(table["split"], "test"))


def _written(table: pa.Table, name: str, out: Output) -> str:
    pq.write_table(table, out.scratch / name)
    return str(out.scratch / name)


def _publish(out: Output, threads: int) -> Ledger:
    result = out.scratch / "result"
    found = orjson.loads((result / "evaluation.json").read_bytes())
    found["claims"] = claims(found)
    out.json("evaluation.json", found)
    for path in sorted(result.glob("*.parquet")):
        out.file(path.name, path)
    out.figures |= headlines(found)
    out.execution |= {"device": out.run.device, "dtype": "float32", "threads": threads, "torch": version("torch")}
    return Ledger()


def headlines(found: dict[str, Any]) -> dict[str, Any]:
    """The few figures that a run ends with."""
    bits = found["bits_per_byte"]
    figures: dict[str, Any] = {}
    for name, domains in bits["models"].items():
        figures[f"{name}_bits_per_byte"] = round(domains["all"]["bits_per_byte"], 4)
    for name, domains in bits.get("baselines", {}).items():
        figures[f"{name}_bits_per_byte"] = round(domains["all"]["bits_per_byte"], 4)
    for name, tasks in found["tasks"].items():
        figures |= {f"{name}_{task}_acc_norm": round(row["acc_norm"]["mean"], 4) for task, row in tasks.items()}
    for kind, row in found.get("reward_model", {}).items():
        figures[f"reward_accuracy_{kind}"] = round(row["accuracy"]["mean"], 4)
    aligned = found.get("alignment", {})
    for name, row in aligned.get("models", {}).items():
        figures[f"{name}_gold"] = round(row["gold"]["mean"], 4)
    for name in aligned.get("gains", {}):
        figures[f"{name}_kl_per_token"] = round(aligned["models"][name]["kl_per_token"], 4)
    return figures | {"claims_held": sum(claim["holds"] for claim in found["claims"]), "claims": len(found["claims"])}
