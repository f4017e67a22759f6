"""The report: what the run measured as figures.json, and the page that shows it. A stage like any other, so a second run is cached."""

import os
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from contract.config import Frozen
from contract.ledger import Ledger
from engine.stage import Output, stage
from evaluation.charts import POINTS
from evaluation.claims import claims_nothing, exported
from evaluation.report_page import report as html
from filters.config import SignalBounds
from filters.decisions import PERPLEXITY, RULES, own_rules
from store.artifact import Artifact
from tasks.score_signal import OWN
from training.config import METHODS

SIGNALS = ("rules", "language", "perplexity", "toxicity", "pii", "contamination")
TITLES = {"base": "pretrained"} | {name: method.title for name, method in METHODS.items()}
"""What the page calls the trained models."""
ROLES = ["documents", "duplicates", "splits", "items", *SIGNALS, "selection", "tokenizer", "tokens", "blocks", "base", "pairs"]
ROLES += [*METHODS, "evaluation", "export", "calibration"]
"""What a whole run makes, in the order of the flow."""
BINS = 30
HISTOGRAM_ROWS = 200_000
"""Documents whose signals are drawn: parts from the first on until there are as many; the histograms are then of a part of them."""
LIMITS = (
    "Figures are of one run with one seed: a difference between two runs that is smaller than what the seed moves means nothing.",
    "Held out means that no document of the same group was trained on; near copies over groups that deduplication did not find may remain.",
    "The gold reward is a function of fluency, repetition, ending and naming. It does not judge whether an answer is true or useful.",
    "Personal data and unwanted words are found by patterns and a lexicon, which miss some; samples are shown as they came.",
    "Models of this size write plausible nonsense. Nothing here was examined for safety or bias.",
)


class Nothing(Frozen):
    """The report has no settings: it shows what is there."""


@stage(version=4, config=lambda c: Nothing())
def report(documents: Artifact, config: Nothing, out: Output, **more: Artifact) -> Ledger:
    """figures.json: content, deterministic. report.html: an attachment, as it shows times and what this run was asked for."""
    given = dict.fromkeys(ROLES) | {"documents": documents} | more
    present = {role: artifact for role, artifact in given.items() if artifact is not None}
    figures = collect(present, [role for role in given if role not in present and role != "calibration"])
    out.json("figures.json", figures)
    base = present.get("base")
    nothing = claims_nothing(base.manifest["identity"]["config"], base.figures) if base else None
    shown = figures | {"titles": TITLES, "claims_nothing": nothing, "asked": out.asked}
    out.attach("report.html", html(shown, costs(present)).encode())
    out.figures |= {"stages": len(present), "missing": figures["missing"]}
    if "evaluation" in present:
        held = [claim["holds"] for claim in figures["claims"]]
        out.figures |= present["evaluation"].figures | {"claims_held": sum(held), "claims": len(held)}
    return Ledger()


def collect(present: dict[str, Artifact], missing: Sequence[str]) -> dict[str, Any]:
    """Everything that the page shows but times, from the artifacts' manifests and tables."""
    roles = {artifact.fingerprint: role for role, artifact in present.items()}
    stages = []
    for role, artifact in _ordered(present):
        ledger = artifact.ledger.to_json()
        reads = sorted(roles[value["fingerprint"]] for value in artifact.manifest["inputs"].values() if value["fingerprint"] in roles)
        stages.append({"role": role, "stage": artifact.stage, "fingerprint": artifact.fingerprint[:12], "reads": reads, **ledger})
    figures: dict[str, Any] = {"stages": stages, "missing": list(missing), "limits": list(LIMITS)}
    figures["corpus"] = read_by_domain(present)
    if "blocks" in present:
        figures["mixture"] = {key: present["blocks"].figures[key] for key in ("asked", "got", "domains")}
        figures["mixture"]["max_epochs"] = present["blocks"].manifest["identity"]["config"].get("mix", {}).get("max_epochs")
        figures["mixture"]["trained"] = present["base"].figures.get("text_epochs", {}) if "base" in present else {}
    judges = judged(present)
    figures["signals"] = [
        row | judges.get((family, row["signal"]), {})
        for family, artifact in families(present).items()
        for row in histograms(family, artifact)
    ]
    if "calibration" in present:
        figures["calibration"] = {key: present["calibration"].figures[key] for key in ("tried", "step_s")}
    figures["curves"] = {role: found for role in TITLES if role in present and (found := curves(present[role]))}
    if "evaluation" in present:
        figures["evaluation"] = present["evaluation"].json("evaluation.json")
        figures["claims"] = figures["evaluation"].get("claims", []) + ([exported(present["export"].figures)] if "export" in present else [])
    return figures


def read_by_domain(present: dict[str, Artifact]) -> dict[str, dict[str, Any]]:
    """Documents and bytes as read, and the documents that select kept."""
    kept = present["selection"].figures.get("domains", {}) if "selection" in present else {}
    read = present["documents"].figures.get("domains", {})
    return {
        name: {"documents": row["documents"], "bytes": row["bytes"], "kept": kept.get(name, {}).get("kept")} for name, row in read.items()
    }


def families(present: dict[str, Artifact]) -> dict[str, Artifact]:
    """The signals that there are, ours before the user's own."""
    own = {role.removeprefix(OWN): artifact for role, artifact in present.items() if role.startswith(OWN)}
    return {family: present[family] for family in SIGNALS if family in present} | own


def judged(present: dict[str, Artifact]) -> dict[tuple[str, str], dict[str, Any]]:
    """By (family, signal): the reason it can drop a document for, how many were, and the bounds of the domains that there are."""
    if "selection" not in present:
        return {}
    selection = present["selection"]
    count, config = selection.ledger.documents, selection.manifest["identity"]["config"]
    dropped = count.dropped if count else {}
    there = present["documents"].figures.get("domains", {})
    found: dict[tuple[str, str], dict[str, Any]] = {}
    found[PERPLEXITY, PERPLEXITY] = {"reason": PERPLEXITY, "dropped": dropped.get(PERPLEXITY, 0), "bounds": []}
    own = {name: SignalBounds.model_validate(bounds).by_domain() for name, bounds in config.get("signals", {}).items()}
    for rule in (*RULES, *own_rules(own)):
        by_domain = own.get(rule.family, config["rules"])
        bounds = {rules.get(rule.field) for domain, rules in by_domain.items() if domain in there} if rule.field else set()
        if rule.family == "contamination":
            bounds = {config["max_overlap_fraction"]}
        row = found.setdefault((rule.family, rule.column), {"reason": rule.reason, "dropped": dropped.get(rule.reason, 0), "bounds": []})
        row["bounds"] = sorted({*row["bounds"], *(bound for bound in bounds if bound is not None)})
    return found


def _ordered(present: dict[str, Artifact]) -> list[tuple[str, Artifact]]:
    """Every stage after those that it reads, otherwise in the order of the flow."""
    known = {artifact.fingerprint for artifact in present.values()}
    left, done, ordered = list(present.items()), set[str](), []
    while left:
        for i, (role, artifact) in enumerate(left):
            if all(value["fingerprint"] in done or value["fingerprint"] not in known for value in artifact.manifest["inputs"].values()):
                ordered.append((role, artifact))
                done.add(artifact.fingerprint)
                del left[i]
                break
    return ordered


def histograms(family: str, artifact: Artifact) -> list[dict[str, Any]]:
    """Of each numeric signal, between its 0.5 and 99.5 percentiles; `beyond` counts what lies outside."""
    tables, rows = [], 0
    for name in artifact.names():
        if rows >= HISTOGRAM_ROWS:
            break
        tables.append(artifact.table(name))
        rows += len(tables[-1])
    table = pa.concat_tables(tables)
    found = []
    for field in table.schema:
        if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
            continue
        values = pc.drop_null(table[field.name]).to_numpy().astype(np.float64)
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        low, high = np.percentile(values, [0.5, 99.5])
        if low == high:
            low, high = values.min(), values.max()
        if low == high:
            continue  # one value alone: there is nothing to draw
        counts, edges = np.histogram(values, BINS, (low, high))
        found.append(
            {
                "family": family,
                "signal": field.name,
                "edges": [float(f"{edge:.6g}") for edge in edges],
                "counts": counts.tolist(),
                "beyond": len(values) - int(counts.sum()),
            }
        )
    return found


def curves(artifact: Artifact) -> dict[str, dict[str, list[float | None]]]:
    """{"training": columns, "validation": columns} of a trained model: losses.jsonl and the looks at validation rows."""
    found = {}
    if "losses.jsonl" in artifact.files:
        rows = [orjson.loads(line) for line in artifact.read("losses.jsonl").splitlines()]
        found["training"] = _columns(rows, {"step": "step", "loss": "loss", "lr": "lr", "reward": "reward", "kl": "kl_per_token"})
    looks = artifact.figures.get("validation") or []
    found["validation"] = _columns(looks, {"step": "step", "loss": "loss", "gold": "gold", "kl": "kl_per_token"})
    return {kind: columns for kind, columns in found.items() if columns}


def _columns(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> dict[str, list[float | None]]:
    """The columns that all rows have, at most POINTS long: means of equal stretches, None where a stretch has no value."""
    if not rows:
        return {}
    cuts = np.linspace(0, len(rows), min(POINTS, len(rows)) + 1).astype(int)
    found: dict[str, list[float | None]] = {}
    for name, key in names.items():
        if all(key in row for row in rows):
            groups = [[row[key] for row in rows[start:end] if row[key] is not None] for start, end in pairwise(cuts)]
            found[name] = [float(f"{np.mean(group):.6g}") if group else None for group in groups]
    return found if len(found) > 1 else {}


def costs(present: dict[str, Artifact]) -> dict[str, dict[str, Any]]:
    """What each stage took when it last ran."""
    return {
        role: {
            "seconds": artifact.seconds,
            "created": time.strftime("%Y-%m-%d %H:%M", time.gmtime(artifact.manifest["created"])),
            "execution": artifact.manifest["execution"],
            "cores": os.cpu_count(),
            "bytes": artifact.size,
        }
        for role, artifact in present.items()
    }
