"""The adapter in lm-eval itself, offline, against lm-eval's own `hf` model on the exported folder.

At batch 1, as scores of `hf` move with its batch size (lm-evaluation-harness, issues 1625 and 2583).
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer

from models.conversion import save_folder, save_tokenizer
from models.shapes import Shape
from models.transformer import Transformer, initialise
from tests.rounding import in_float64
from tokens.config import TokenizerConfig
from tokens.trainer import train

CONTEXT = 64
EXACT = 1e-10
"""In float64: thousands of roundings, and a few digits that a layer may magnify them by."""
CORPUS = [path.read_text() for path in sorted(Path(__file__).parents[2].glob("contract/*.py"))]


@pytest.fixture(scope="module", autouse=True)
def wide() -> Iterator[None]:
    """Here two ways to one score are compared, and rounding is to turn no choice."""
    with in_float64():
        yield


@pytest.fixture(scope="module")
def tokenizer_json() -> bytes:
    return train(CORPUS, TokenizerConfig(vocab_size=500))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_json: bytes) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json.decode())


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    """Weights large enough that the choices' scores lie nats apart."""
    model = Transformer(Shape(tokenizer.get_vocab_size(), 32, 64, 2, 4, 2, CONTEXT))
    initialise(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model.double()


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    yield
    os.environ.clear()
    os.environ.update(before)


def adapter(model: Transformer, tokenizer: Tokenizer, **options: int) -> Any:
    from evaluation.adapter import Adapter

    return Adapter(model, tokenizer, **options)


def instances(kind: str, arguments: list[tuple]) -> list:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, pair, i) for i, pair in enumerate(arguments)]


def words(seed: int, count: int) -> str:
    text = " ".join(CORPUS).split()
    start = seed * 37 % (len(text) - count)
    return " ".join(text[start : start + count])


PAIRS = [(words(i, 4 + i % 9), " " + words(100 + i + j, 1 + (i + j) % 5)) for i in range(8) for j in range(3)] + [
    ("", "a text with no context"),
    ("ends in spaces  ", "and goes on"),
    (words(3, 90), " a context that must be cut"),
    ("literal <|endoftext|> in", " the <|pad|> text"),
]


def write_tasks(folder: Path) -> None:
    """A multiple-choice, a perplexity and a generation task on local JSON Lines."""
    rows = [{"q": words(i, 6), "choices": [" " + words(50 + 4 * i + j, 3) for j in range(4)], "gold": i % 4} for i in range(6)]
    texts = [{"text": words(i, 10 + 40 * (i % 2))} for i in range(4)]  # every other one is longer than the context
    for name, lines in (("rows", rows), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks: list[dict] = [
        {"output_type": "multiple_choice", "doc_to_text": "q", "doc_to_choice": "choices", "doc_to_target": "gold", "target_delimiter": "",
         "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]},
        {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text", "metric_list": [{"metric": "bits_per_byte"}]},
        {"output_type": "generate_until", "doc_to_text": "q", "doc_to_target": "{{choices[0]}}", "metric_list": [{"metric": "exact_match"}],
         "generation_kwargs": {"until": [" the", "\n", "e"], "max_gen_toks": 24, "do_sample": False}},
    ]  # fmt: skip
    for name, data, task in zip(("choose", "roll", "write"), ("rows", "texts", "rows"), tasks, strict=True):
        files = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{data}.jsonl")}}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | files | task))


def evaluate(lm: Any, folder: Path) -> dict:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return lm_eval.simple_evaluate(lm, tasks=["choose", "roll", "write"], task_manager=manager, bootstrap_iters=0, log_samples=True)


def responses(results: dict, task: str) -> list:
    return [sample["filtered_resps"] for sample in sorted(results["samples"][task], key=lambda sample: sample["doc_id"])]


@pytest.mark.slow
def test_simple_evaluate_agrees_with_hf_at_batch_1_on_the_exported_folder(
    model: Transformer, tokenizer: Tokenizer, tokenizer_json: bytes, offline: None, tmp_path: Path
) -> None:
    from lm_eval.models.huggingface import HFLM

    save_folder(model, tmp_path / "export")
    save_tokenizer(tokenizer_json, tmp_path / "export", CONTEXT)
    write_tasks(tmp_path)
    ours = evaluate(adapter(model, tokenizer), tmp_path)
    theirs = evaluate(HFLM(pretrained=str(tmp_path / "export"), batch_size=1, device="cpu", dtype="float64"), tmp_path)

    assert ours["results"]["roll"]["bits_per_byte,none"] == pytest.approx(theirs["results"]["roll"]["bits_per_byte,none"], rel=EXACT)
    for metric in ("acc,none", "acc_norm,none"):
        assert ours["results"]["choose"][metric] == theirs["results"]["choose"][metric]
    for mine, hf in zip(responses(ours, "choose"), responses(theirs, "choose"), strict=True):
        assert [score for score, _ in mine] == pytest.approx([score for score, _ in hf], rel=EXACT)
        assert [greedy for _, greedy in mine] == [greedy for _, greedy in hf]
        assert max(score for score, _ in mine) - min(score for score, _ in mine) > 0.1
    assert responses(ours, "write") == responses(theirs, "write")
    assert any(text for [text] in responses(ours, "write"))


def test_scores_do_not_depend_on_the_batch_or_the_order(model: Transformer, tokenizer: Tokenizer) -> None:
    requests = instances("loglikelihood", PAIRS)
    one_by_one = [adapter(model, tokenizer, batch_tokens=1).loglikelihood([request])[0] for request in requests]
    assert len({round(score, 6) for score, _ in one_by_one}) == len(PAIRS)
    for batch_tokens in (1, 300, 100_000):
        scores = adapter(model, tokenizer, batch_tokens=batch_tokens).loglikelihood(requests[::-1])[::-1]
        assert [score for score, _ in scores] == pytest.approx([score for score, _ in one_by_one], rel=EXACT)
        assert [greedy for _, greedy in scores] == [greedy for _, greedy in one_by_one]


def test_loglikelihood_is_the_sum_over_the_continuation(model: Transformer, tokenizer: Tokenizer) -> None:
    """By the definition, one forward pass over the whole."""
    context, continuation = "def _stable(value: object", ", where: str) -> object:"
    tokenizer_ids = [tokenizer.encode(text).ids for text in (context, context + continuation)]
    ids = torch.tensor(tokenizer_ids[1])
    with torch.no_grad():
        log_p = model(ids[None])[0].log_softmax(-1)
    at = range(len(tokenizer_ids[0]), len(ids))
    [(score, is_greedy)] = adapter(model, tokenizer).loglikelihood(instances("loglikelihood", [(context, continuation)]))
    assert score == pytest.approx(sum(float(log_p[i - 1, ids[i]]) for i in at), rel=EXACT)
    assert is_greedy == all(int(log_p[i - 1].argmax()) == int(ids[i]) for i in at)


def test_greedy_flag_is_true_for_what_the_model_writes(model: Transformer, tokenizer: Tokenizer) -> None:
    lm = adapter(model, tokenizer)
    prompts = [words(i, 5) for i in range(4)]
    written = lm.generate_until(instances("generate_until", [(prompt, {"max_gen_toks": 1}) for prompt in prompts]))
    pairs = [(p, w) for p, w in zip(prompts, written, strict=True) if tokenizer.encode(p + w).ids[:-1] == tokenizer.encode(p).ids]
    assert pairs
    assert all(is_greedy for _, is_greedy in lm.loglikelihood(instances("loglikelihood", pairs)))


def test_rolling_predicts_every_token_of_a_long_text_once(model: Transformer, tokenizer: Tokenizer) -> None:
    """Of two windows by hand: the second sees a whole context, and scores only what the first did not."""
    text = words(1, 22)
    ids = tokenizer.encode(text).ids
    assert CONTEXT < len(ids) < 2 * CONTEXT
    inputs = torch.tensor([0, *ids])
    with torch.no_grad():
        first = model(inputs[None, :CONTEXT])[0].log_softmax(-1)
        second = model(inputs[None, -CONTEXT - 1 : -1])[0].log_softmax(-1)
    rest = len(ids) - CONTEXT
    want = first.gather(1, inputs[1 : CONTEXT + 1, None]).sum() + second[-rest:].gather(1, inputs[-rest:, None]).sum()
    assert adapter(model, tokenizer).loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)])) == [
        pytest.approx(float(want), rel=EXACT)
    ]


def test_continuation_longer_than_the_context_is_scored_whole(model: Transformer, tokenizer: Tokenizer) -> None:
    lm, text = adapter(model, tokenizer), words(5, 80)
    [(score, _)] = lm.loglikelihood(instances("loglikelihood", [("", text)]))
    assert score == pytest.approx(lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)]))[0], rel=EXACT)


def test_literal_control_token_is_text(model: Transformer, tokenizer: Tokenizer) -> None:
    lm = adapter(model, tokenizer)
    assert 0 not in lm._encode(["a<|endoftext|>b"])[0]
    assert tokenizer.encode("a<|endoftext|>b").ids.count(0) == 1  # the caller's tokenizer keeps its setting


def test_generation_settings_that_are_not_computed_are_refused(model: Transformer, tokenizer: Tokenizer) -> None:
    lm = adapter(model, tokenizer)
    for settings, said in (({"num_beams": 4}, "num_beams"), ({"max_gen_toks": CONTEXT}, "no room")):
        with pytest.raises(ValueError, match=said):
            lm.generate_until(instances("generate_until", [("a", settings)]))


def test_sampling_follows_the_seed(model: Transformer, tokenizer: Tokenizer) -> None:
    requests = instances("generate_until", [("def", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12})])
    first, again, other = (adapter(model, tokenizer, seed=seed).generate_until(requests) for seed in (1, 1, 2))
    assert first == again != other
