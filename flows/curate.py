"""curate: raw text -> deduplicated, filtered, tokenized, mixed training blocks, and the pairs that alignment learns from."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from bessemer.config import Config, Preset
from engine.runner import Runner
from flows.in_prefect import in_prefect
from flows.this_run import chosen_name
from tasks.align_data import align_data
from tasks.deduplicate import deduplicate
from tasks.eval_tasks import eval_tasks
from tasks.gate_ingest import gate_ingest
from tasks.gate_mix import gate_mix
from tasks.gate_select import gate_select
from tasks.ingest import ingest
from tasks.mix import mix
from tasks.score_contamination import score_contamination
from tasks.score_language import score_language
from tasks.score_perplexity import score_perplexity
from tasks.score_pii import score_pii
from tasks.score_rules import score_rules
from tasks.score_signal import OWN, signal_stages
from tasks.score_toxicity import score_toxicity
from tasks.select import select
from tasks.split import split
from tasks.tokenize import tokenize
from tasks.train_tokenizer import train_tokenizer


def body(run: Runner, config: Config) -> dict[str, Any]:
    documents = run(ingest)
    run(gate_ingest, documents=documents)
    duplicates = run(deduplicate, documents=documents)
    splits = run(split, documents=documents, duplicates=duplicates)
    items = run(eval_tasks, documents=documents, duplicates=duplicates, splits=splits)
    # Read here, with all other text: too few pairs are noticed before a model trains for hours, and no GPU waits for the reading.
    pairs = run(align_data, splits=splits) if config.align.methods else None

    signals = {
        "rules": run(score_rules, documents=documents, duplicates=duplicates),
        "language": run(score_language, documents=documents, duplicates=duplicates),
        "toxicity": run(score_toxicity, documents=documents, duplicates=duplicates),
        "pii": run(score_pii, documents=documents, duplicates=duplicates),
        "contamination": run(score_contamination, documents=documents, duplicates=duplicates, splits=splits, items=items),
    }
    if config.split.trusted_sources or config.split.trusted_domains:
        signals["perplexity"] = run(score_perplexity, documents=documents, duplicates=duplicates, splits=splits)
    # The user's own signals (filters.signals).
    own = {f"{OWN}{name}": run(one, documents=documents, duplicates=duplicates) for name, one in signal_stages(config.filters).items()}
    selection = run(select, documents=documents, duplicates=duplicates, splits=splits, **signals, **own)
    run(gate_select, documents=documents, splits=splits, selection=selection, **signals)

    kept = {"documents": documents, "selection": selection, "splits": splits}
    cuts = {"pii": signals["pii"], "contamination": signals["contamination"]}
    tokenizer = run(train_tokenizer, **kept, **cuts)
    tokens = run(tokenize, tokenizer=tokenizer, **kept, **cuts)
    blocks = run(mix, tokens=tokens, **kept, **cuts)
    run(gate_mix, blocks=blocks)
    return {
        "documents": documents,
        "duplicates": duplicates,
        "splits": splits,
        "items": items,
        **signals,
        **own,
        "selection": selection,
        "tokenizer": tokenizer,
        "tokens": tokens,
        "blocks": blocks,
        "pairs": pairs,
    }


@flow(name="curate", flow_run_name=chosen_name)
def curate(preset: Preset = Preset.laptop, config: str | None = None, overrides: dict[str, Any] | None = None) -> State | None:
    """Turn raw text into training blocks, and pairs for alignment.

    Args:
        preset: A file of deployments/presets. Without effect beside a config, which names its own base.
        config: A file of your own settings: a whole path on the worker's machine, or s3://BUCKET/my.yaml.
        overrides: Dotted settings, such as {"dedup.threshold": 0.85}.
    """
    return in_prefect("curate", body, preset, config, overrides)
