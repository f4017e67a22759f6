import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.intervals import share_interval
from evaluation.items import ITEMS
from evaluation.lm_eval_run import quiet, run, summarise


def rows() -> list[dict[str, Any]]:
    """Local items of two domains, two a document, and a named task; texts that a template or a split on lines would spoil."""
    made = []
    for i in range(24):
        choices = [f"\n  {{{{ choice {i} {k} }}}}{'x' * (k * (i % 3))}\u2028" for k in range(4)]
        item = {
            "task": "continuation",
            "item": f"c{i}",
            "document": bytes([i // 2] * 16),
            "group": "g",
            "domain": "web" if i % 4 < 2 else "code",
        }
        made.append({**item, "context": f"{{% if %}} {{{{context}}}} {i}\t", "choices": choices, "gold": i % 4})
    for i in range(10):
        item = {"task": "sums", "item": f"s{i}", "document": None, "group": f"s{i}", "domain": "sums"}
        made.append({**item, "context": f"{i} and {i} make", "choices": [str(2 * i), str(2 * i + 1)], "gold": 0})
    return made


def log_probability(context: str, continuation: str) -> float:
    """A model that is a hash: what it was asked is what it answers by."""
    digest = hashlib.sha256(f"{context}|{continuation}".encode()).digest()
    return -(int.from_bytes(digest[:4]) / 2**32) * len(continuation)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pa.Table.from_pylist(rows(), ITEMS)


@pytest.fixture(scope="module")
def answers(table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = tmp_path_factory.mktemp("lm_eval")
    quiet(folder / "cache")
    from lm_eval.api.model import LM

    class Hash(LM):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return [(log_probability(*request.args), False) for request in requests]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            raise NotImplementedError

        def generate_until(self, requests: list[Any]) -> list[str]:
            raise NotImplementedError

    return run(Hash(), table, folder / "tasks")


def test_answers_are_the_argmax_over_the_texts_as_they_stand(answers: pa.Table) -> None:
    for row, answer in zip(rows(), answers.to_pylist(), strict=True):
        gap = "" if row["task"] == "continuation" else " "  # local choices bring their own white space
        scores = [log_probability(row["context"], gap + choice) for choice in row["choices"]]
        each = [score / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
        assert (answer["task"], answer["item"]) == (row["task"], row["item"])
        assert answer["acc"] == (int(np.argmax(scores)) == row["gold"])
        assert answer["acc_norm"] == (int(np.argmax(each)) == row["gold"])


def test_standard_errors_are_clustered_by_document(answers: pa.Table, table: pa.Table) -> None:
    summary = summarise(answers, table)
    local = [row["acc_norm"] for row in answers.to_pylist() if row["task"] == "continuation"]
    want = share_interval(local, [i // 2 for i in range(24)])
    assert summary["continuation"]["acc_norm"] == want.to_json()
    assert summary["continuation"]["documents"] == 12 and summary["sums"]["documents"] == 10
    assert (summary["continuation"]["chance"], summary["sums"]["chance"]) == (0.25, 0.5)
    assert summary["continuation"]["standard_errors_above_chance"] == pytest.approx((want.mean - 0.25) / want.se)
    domains = summary["continuation"]["domains"]
    assert [domains[name]["items"] for name in ("code", "web")] == [12, 12] and "domains" not in summary["sums"]


ZERO = """
import sys
from pathlib import Path
import pyarrow.parquet as pq
from evaluation.lm_eval_run import quiet, run
quiet(Path(sys.argv[1], "cache"))
from lm_eval.api.model import LM

class Zero(LM):
    def loglikelihood(self, requests): return [(0.0, False)] * len(requests)
    def loglikelihood_rolling(self, requests): raise NotImplementedError
    def generate_until(self, requests): raise NotImplementedError

run(Zero(), pq.read_table(sys.argv[1] + "/items.parquet"), Path(sys.argv[1], "tasks"))
"""


@pytest.mark.slow
def test_nothing_is_printed(table: pa.Table, tmp_path: Path) -> None:
    """In a process of its own, as `quiet` must come before the first import of lm_eval."""
    pq.write_table(table, tmp_path / "items.parquet")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", ZERO, str(tmp_path)], cwd=root, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
