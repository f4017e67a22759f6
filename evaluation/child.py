"""The evaluation of a run, as a process of its own with plain paths: `python -m evaluation.child spec.json`.

Reads what the stage laid out (tasks/evaluate.py), scores every model that is there, and writes into spec["out"]:
evaluation.json, answers.parquet (a row a model and item) and responses.parquet (a row a model and prompt). JSON lines on stdout tell
the parent of progress and errors. All in fp32, whatever the models were trained in: the figures are of the weights that are exported.
"""

import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # read with torch: spinning threads cost 10 to 20 times under load (2 cores, 2026-11-21)

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer

from contract.child_processes import die_with_parent
from contract.errors import InputError
from evaluation.alignment import Responses, gain_figures, preference_figures, respond, response_figures, rewards
from evaluation.bits_per_byte import Nats, document_nats, score_by_domain
from evaluation.config import EvaluateConfig
from evaluation.passes import Each, passes
from models.conversion import load_folder
from models.losses import IGNORED, token_log_probs
from models.transformer import ScalarModel, Transformer

END_ID, PAD_ID = 0, 1
BITS_METHOD = (
    "Total nats / (ln 2 x UTF-8 bytes of the curated text). Every token is scored once, the end token of each document too; each document "
    "starts with an end token as its only context, and long ones go through windows that overlap as context only. Models and baselines "
    "are scored on the same documents and bytes."
)
ALIGNMENT_METHOD = (
    "One response a prompt of the test side, sampled with the same random numbers for every model; intervals are 95 %, clustered by the "
    "prompt's group, gains paired by prompt. KL is from SFT, exact over the vocabulary at every position, averaged over all tokens. The "
    "gold reward is a documented function that no reward model saw; shorter answers may score higher, so length stands beside it."
)


class Steps:
    """Progress over all the parts of the work, as lines to the parent."""

    def __init__(self, total: int, say: Callable[["Line"], None]) -> None:
        self.total, self.done, self.shown, self.tell = total, 0, -1, say

    def begin(self, name: str) -> Callable[[int, int], None]:
        self.name = name
        self._say(0.0)
        return lambda done, total: self._say(done / max(total, 1))

    def end(self) -> None:
        self.done += 1
        self._say(0.0)

    def _say(self, share: float) -> None:
        percent = int(100 * (self.done + share) / self.total)
        if percent != self.shown:
            self.shown = percent
            self.tell({"progress": [percent, 100, "%"], "note": self.name})


Line = dict[str, Any]


def main(path: str) -> int:
    """Run the spec; 0, or 1 with the reason in the last line."""
    die_with_parent(int(os.environ.get("BESSEMER_PARENT", os.getppid())))
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr, not between our lines

    def say(line: Line) -> None:
        stream.write(json.dumps(line) + "\n")
        stream.flush()

    try:
        evaluate(json.loads(Path(path).read_bytes()), say)
    except Exception as error:
        say({"error": str(error), "kind": type(error).__name__})
        traceback.print_exc()
        return 1
    return 0


@dataclass(frozen=True)
class Work:
    """What every part of the evaluation is given."""

    spec: dict[str, Any]
    config: EvaluateConfig
    tokenizer: Tokenizer
    steps: Steps
    each: Each
    batch_tokens: int
    """Tokens of a forward pass: what the configuration allows, shared out among those that go side by side."""

    @property
    def out(self) -> Path:
        return Path(self.spec["out"])


def evaluate(spec: dict[str, Any], say: Callable[[Line], None]) -> None:
    config = EvaluateConfig.model_validate(spec["config"])
    models = {name: load_model(folder, spec["device"]) for name, folder in spec["models"].items()}
    tokenizer = Tokenizer.from_file(spec["tokenizer"])
    tokenizer.encode_special_tokens = True  # a literal special token in a text is text
    has_items = bool(pq.read_metadata(spec["items"]).num_rows)
    aligned = [name for name in models if name != "base"] if spec.get("prompts") else []
    asked = Asked.read(tokenizer, spec, config, models["sft"].shape.context) if aligned else None  # refused before any work is done
    scored = {name: model for name, model in models.items() if config.scored is None or name in config.scored}
    parts = len(scored) * (1 + has_items) + len(aligned) + bool(spec.get("reward")) + bool(spec.get("blocks"))

    with passes(spec["threads"], spec["device"]) as (each, side_by_side):
        work = Work(spec, config, tokenizer, Steps(parts, say), each, max(1, config.batch_tokens // side_by_side))
        work.out.mkdir(parents=True, exist_ok=True)
        result: dict[str, Any] = {"bits_per_byte": bits_per_byte(scored, work)}
        result["tasks"] = tasks(scored, work) if has_items else {}
        if asked is not None:
            result["alignment"] = alignment({name: models[name] for name in aligned}, asked, work)
        if spec.get("reward"):
            result["reward_model"] = reward_model(work)
    (work.out / "evaluation.json").write_bytes(orjson.dumps(result, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2))


def load_model(folder: str, device: str) -> Transformer:
    model = load_folder(Path(folder)).to(device).eval()
    assert isinstance(model, Transformer), f"{folder} holds no language model"
    return model


def nats_by(model: Transformer) -> Nats:
    def nats(tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        counts = targets_BT != IGNORED
        return -token_log_probs(model.hidden(tokens_BT)[counts], model.head_VD, targets_BT[counts])[0]

    return nats


def bits_per_byte(models: dict[str, Transformer], work: Work) -> dict[str, Any]:
    """Every model over the same validation documents; baselines beside them."""
    table = pq.read_table(work.spec["validation"])
    documents = ids_of(table)
    sizes, domains = table["text_bytes"].to_pylist(), table["domain"].to_pylist()
    scored = {}
    for name, model in models.items():
        progress = work.steps.begin(f"bits per byte of {name}")
        settings = (END_ID, model.shape.context, work.config.overlap, work.batch_tokens, work.spec["device"])
        nats = document_nats(nats_by(model), documents, *settings, progress, work.each)
        scored[name] = {domain: score.to_json() for domain, score in score_by_domain(nats, documents, sizes, domains).items()}
        work.steps.end()
    found: dict[str, Any] = {"models": scored, "method": BITS_METHOD}
    if work.spec.get("blocks"):
        work.steps.begin("baselines")
        found |= baselines(documents, sizes, domains, work)
        work.steps.end()
    return found


def baselines(documents: list[np.ndarray], sizes: list[int], domains: list[str], work: Work) -> dict[str, Any]:
    """Bigram and KenLM of blocks that the base model was trained on, and gzip -9 of the validation text itself."""
    from evaluation.baselines import bigram, block_pairs, gzip_bits_per_byte, kenlm_document_nats, train_kenlm
    from evaluation.baselines import document_nats as bigram_nats

    spec, tokenizer = work.spec, work.tokenizer
    blocks, vocab_size = np.load(spec["blocks"], allow_pickle=False), spec["vocab_size"]
    folder = work.out.parent / "kenlm"
    folder.mkdir(exist_ok=True)
    binary = train_kenlm(blocks, work.config.baseline_order, Path(spec["lmplz"]), Path(spec["build_binary"]), folder)
    nats = {
        "bigram": bigram_nats(bigram(*block_pairs(blocks), vocab_size), documents, END_ID),
        "kenlm": kenlm_document_nats(binary, documents, END_ID, vocab_size),
    }
    scored: dict[str, Any] = {
        name: {domain: score.to_json() for domain, score in score_by_domain(values, documents, sizes, domains).items()}
        for name, values in nats.items()
    }
    texts = tokenizer.decode_batch([ids[:-1].tolist() for ids in documents], skip_special_tokens=False)
    if [len(text.encode()) for text in texts] != sizes:
        raise ValueError("validation ids do not decode to texts of the recorded bytes; tokens and tokenizer are not of one run")
    by_domain = {domain: [text for text, of in zip(texts, domains, strict=True) if of == domain] for domain in sorted(set(domains))}
    scored["gzip"] = {name: {"bits_per_byte": gzip_bits_per_byte(group)} for name, group in {**by_domain, "all": texts}.items()}
    return {"baselines": scored, "baseline_tokens": int(blocks[:, 1:].size)}


def ids_of(table: pa.Table) -> list[np.ndarray]:
    """The token ids of each row, views into the table's buffer."""
    column = table["tokens"].combine_chunks()
    values, offsets = column.flatten().to_numpy(), np.append(0, np.cumsum(pc.list_value_length(column).to_numpy()))
    return [values[start:end] for start, end in itertools.pairwise(offsets)]


def tasks(models: dict[str, Transformer], work: Work) -> dict[str, Any]:
    """lm-eval's scores of every model over the same items."""
    from evaluation.lm_eval_run import quiet, run, summarise

    scratch = work.out.parent
    quiet(scratch / "lm_eval_cache")
    from evaluation.adapter import Adapter  # imports lm_eval, so after `quiet`

    items, answers, found = pq.read_table(work.spec["items"]), [], {}
    for name, model in models.items():
        work.steps.begin(f"multiple choice of {name}")
        adapter = Adapter(model, work.tokenizer, END_ID, PAD_ID, work.batch_tokens, work.config.seed, work.each)
        answered = run(adapter, items, scratch / "lm_eval_tasks")
        found[name] = summarise(answered, items)
        answers.append(answered.add_column(0, "model", pa.array([name] * len(answered), pa.string())))
        work.steps.end()
    pq.write_table(pa.concat_tables(answers), work.out / "answers.parquet", compression="zstd")
    return found


@dataclass(frozen=True)
class Asked:
    """The test prompts that are put to the models, and how many were too long for them."""

    rows: list[dict[str, Any]]
    ids: list[list[int]]
    too_long: int

    @classmethod
    def read(cls, tokenizer: Tokenizer, spec: dict[str, Any], config: EvaluateConfig, context: int) -> "Asked":
        rows = pq.read_table(spec["prompts"]).to_pylist()
        encoded = [tokenizer.encode(row["prompt"]).ids for row in rows]
        room = context - config.max_new_tokens
        fits = [i for i, ids in enumerate(encoded) if 0 < len(ids) <= room]
        if not fits:
            raise InputError(
                f"no test prompt fits {room} tokens, which evaluate.max_new_tokens ({config.max_new_tokens}) leaves of the context "
                f"({context}); lower it, or give shorter prompts"
            )
        kept = fits[: config.gold_prompts]
        return cls([rows[i] for i in kept], [encoded[i] for i in kept], len(rows) - len(fits))


def alignment(models: dict[str, Transformer], asked: Asked, work: Work) -> dict[str, Any]:
    """Responses of SFT and of what alignment made of it, judged by the gold reward."""
    from evaluation.gold import Gold

    gold, before, rows = Gold.load(Path(work.spec["gold"])), models["sft"], asked.rows
    texts_asked, groups, names = ([row[key] for row in rows] for key in ("prompt", "group", "names"))
    made: dict[str, Responses] = {}
    texts: dict[str, list[str]] = {}
    scores: dict[str, list[float]] = {}
    gold_parts: dict[str, dict[str, float]] = {}
    for name, model in models.items():
        progress = work.steps.begin(f"responses of {name}")
        made[name] = respond(model, before, asked.ids, work.config, END_ID, PAD_ID, progress, work.each)
        texts[name] = [work.tokenizer.decode(ids) for ids in made[name].tokens]
        scores[name] = [float(value) for value in gold.score(texts_asked, texts[name], names, made[name].ended)]
        parts = gold.parts(texts_asked, texts[name], names, made[name].ended)
        gold_parts[name] = {part: float(np.nanmean(values)) for part, values in parts.items() if not np.isnan(values).all()}
        work.steps.end()
    _write_responses(work.out / "responses.parquet", rows, texts, scores, made)
    return {
        "method": ALIGNMENT_METHOD,
        "prompts": len(rows),
        "prompts_too_long": asked.too_long,
        "models": {name: response_figures(made[name], scores[name], groups) | {"gold_parts": gold_parts[name]} for name in models},
        "gains": {name: gain_figures(made["sft"], made[name], scores["sft"], scores[name], groups) for name in models if name != "sft"},
        "samples": [
            {
                "prompt": texts_asked[i],
                "responses": {name: {"text": texts[name][i], "gold": scores[name][i]} for name in models},
            }
            for i in range(min(work.config.samples, len(rows)))
        ],
    }


def _write_responses(
    path: Path, rows: list[dict[str, Any]], texts: dict[str, list[str]], scores: dict[str, list[float]], made: dict[str, Responses]
) -> None:
    tables = [
        pa.table(
            {
                "model": pa.array([name] * len(rows), pa.string()),
                "prompt": pa.array([row["prompt"] for row in rows], pa.string()),
                "group": pa.array([row["group"] for row in rows], pa.string()),
                "response": pa.array(texts[name], pa.string()),
                "gold": scores[name],
                "num_tokens": pa.array([len(ids) for ids in made[name].tokens], pa.int32()),
                "ended": made[name].ended,
                "kl_nats": made[name].kl_nats,
            }
        )
        for name in texts
    ]
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


def reward_model(work: Work) -> dict[str, Any]:
    """Accuracy on the test pairs by kind of negative. Pairs that do not fit the context are left out and counted."""
    progress, spec, tokenizer = work.steps.begin("reward model"), work.spec, work.tokenizer
    model = load_folder(Path(spec["reward"])).to(spec["device"]).eval()
    assert isinstance(model, ScalarModel), f"{spec['reward']} holds no reward model"
    rows = pq.read_table(spec["preferences"]).to_pylist()
    pairs = [
        [[*tokenizer.encode(row["prompt"]).ids, *tokenizer.encode(row[side]).ids, END_ID] for side in ("chosen", "rejected")]
        for row in rows
    ]
    kept = [i for i, pair in enumerate(pairs) if max(map(len, pair)) <= model.shape.context]
    flat = [sequence for i in kept for sequence in pairs[i]]
    values = rewards(model, flat, PAD_ID, work.batch_tokens, progress, work.each).reshape(-1, 2)
    lengths = np.array([[len(sequence) for sequence in pairs[i]] for i in kept]).reshape(-1, 2)
    kinds, prompts = [rows[i]["kind"] for i in kept], [rows[i]["prompt"] for i in kept]
    figures = preference_figures(values[:, 0], values[:, 1], lengths, kinds, prompts)
    figures["all"]["pairs_too_long"] = len(rows) - len(kept)
    work.steps.end()
    return figures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
