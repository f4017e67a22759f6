"""The main of a PPO rank: training's child with the gold judge of evaluation, which training itself must not know."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.child import Run, main
from training.loader import Rows
from training.ppo_loop import Gold


def gold_of(spec: dict[str, Any]) -> Gold | None:
    """The judge of the spec's `gold` folder over decoded answers; None where there is none."""
    if spec["gold"] is None:
        return None
    from pathlib import Path

    from tokenizers import Tokenizer

    from evaluation.gold import Gold as Judge

    judge = Judge.load(Path(spec["gold"]))
    tokenizer = Tokenizer.from_file(spec["tokenizer"])

    def score(rows: Rows, responses: list[list[int]], ended: list[bool]) -> NDArray[np.float64]:
        texts = tokenizer.decode_batch(responses, skip_special_tokens=False)
        prompts, names = [spec["prompts"][row] for row in rows], [spec["names"][row] for row in rows]
        return np.asarray(judge.score(prompts, texts, names, ended), np.float64)

    return score


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], lambda spec, report: Run(spec, report, gold_of).run()))
