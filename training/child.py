"""The main of a rank: `python -m training.child spec.json`. Trains one stage and leaves its files in spec["out"].

stdout carries JSON lines for the parent (metrics.py) and nothing else: what libraries print goes to stderr. Exit status: 0 done,
75 checkpointed after SIGTERM, 1 failed (the reason is in the last JSON line and on stderr).
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor, nn

from contract.child_processes import die_with_parent
from models.conversion import load_folder, save_folder
from models.transformer import ScalarModel, Shape, Transformer, initialise
from store.checkpoints import Checkpoints
from training.checkpoint_folder import Saver
from training.config import FineTuneConfig, PpoConfig, TrainConfig, settings_of
from training.engine_plain import Engine, PlainEngine
from training.loader import Blocks, Ragged
from training.loop import Loop, Plan, Progress, Stopped, cut
from training.metrics import Report, final_loss, write_history
from training.objectives import DIRECT, LanguageModelling, Objective, Pairs, RewardModelling, SupervisedFineTuning
from training.options import Place, Recipe, micro_size
from training.ppo_loop import ActorCritic, Gold, PpoLoop, PpoPlan
from training.process_group import Rank, StopSignal, join, prepare

COME_AGAIN = 75


def main(path: str, work: Callable[[dict[str, Any], Report], None]) -> int:
    """Do the work of the spec, and leave with the status that says how it went."""
    die_with_parent(int(os.environ.get("BESSEMER_PARENT", os.getppid())))
    stdout = take_stdout()
    lines = stdout if os.environ.get("RANK", "0") == "0" else None
    spec = json.loads(Path(path).read_text())
    report = Report(lines, time.monotonic, spec["steps"], spec["unit"])
    try:
        work(spec, report)
    except Stopped:
        status = COME_AGAIN
    except Exception as error:
        report.error(type(error).__name__, str(error))
        traceback.print_exc()
        status = 1
    else:
        status = 0
    sys.stderr.flush()
    # Everything that counts is written. Tearing down process groups has been seen to abort or hang; it must not decide the status.
    os._exit(status)


def take_stdout() -> TextIO:
    """The stream to the parent; file descriptor 1 becomes stderr, so that no library can write into the protocol."""
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return own


class Run:
    """One stage's training from its spec."""

    def __init__(self, spec: dict[str, Any], report: Report, gold: Callable[[dict[str, Any]], Gold | None] | None = None) -> None:
        """`gold` makes PPO's judge of validation answers from the spec, as training knows none itself."""
        self.spec, self.report, self._gold = spec, report, gold
        self.place = Place(**spec["place"])
        self.kind: str = spec["kind"]
        self.config = settings_of(self.kind).model_validate(spec["config"])
        prepare(self.place.threads, spec["config"]["seed"], self.place.device)
        self.should_stop = StopSignal()
        self.rank: Rank = join(needs_group=spec["engine"] == "deepspeed", device=self.place.device)
        self.data = Path(spec["data"])
        self.out = Path(spec["out"])
        store = Checkpoints.from_json(spec["checkpoints"])
        scratch = self.out.parent / f"rank-{self.rank.index}"
        scratch.mkdir(parents=True, exist_ok=True)
        self.saver = Saver(store, scratch, is_writer=self.rank.index == 0, keep_every=spec.get("keep_every", 0))

    def run(self) -> None:
        result = self._ppo() if self.kind == "ppo" else self._train()
        if self.rank.index == 0:
            (self.out / "result.json").write_text(json.dumps(result))

    # -- what training/loop.py trains

    def _train(self) -> dict[str, Any]:
        config, spec = self.config, self.spec
        assert isinstance(config, TrainConfig | FineTuneConfig)
        share = self._share(spec["batch_size"])
        size = micro_size(share, self.place.micro_batch_size)
        objective = self._objective(torch.device(self.place.device))
        if not len(objective.rows):
            raise ValueError(f"{self.kind} has no training rows")
        engine = self._engine(self._fresh(), share // size)
        schedule = config.schedule(spec["steps"])
        plan = Plan(
            config.seed, spec["batch_size"], size, config.learning_rate, schedule, config.skipping(), config.validation_every,
            spec["checkpoint_every"], self._identity(),
        )  # fmt: skip
        loop = Loop(engine, objective, plan, self.saver, self.report, self._fresh_weights, self.should_stop)
        progress = loop.run()
        if isinstance(objective, RewardModelling):
            self._write_margins(engine, objective, size)
        self._write_model(self._fresh(), engine.weights(), progress.history)
        return {"training_rows": len(objective.rows), **figures(progress)}

    def _objective(self, device: torch.device) -> Objective:
        config, pad_id = self.config, self.spec["pad_id"]
        if isinstance(config, TrainConfig):
            held = self.data / "validation.npy"
            blocks = Blocks(self.data / "train.npy")
            return LanguageModelling(blocks, Blocks(held) if held.exists() else None, device, config.validation_blocks)
        assert isinstance(config, FineTuneConfig)
        if self.kind == "sft":
            return SupervisedFineTuning(Pairs(self.data, ["response"]), pad_id, device, config.validation_pairs, self.place.compile)
        pairs = Pairs(self.data, ["chosen", "rejected"])
        if self.kind == "reward":
            return RewardModelling(pairs, pad_id, device, config.validation_pairs, self.place.compile)
        own = {name: getattr(config, name) for name in type(config).model_fields.keys() - FineTuneConfig.model_fields.keys()}
        reference = load_folder(Path(self.spec["init"]))
        return DIRECT[self.kind](pairs, pad_id, device, config.validation_pairs, reference=reference, **own)

    def _fresh(self) -> Transformer | ScalarModel:
        """The model that the run starts from: read from a folder, or drawn."""
        seed = self.spec["config"]["seed"]
        if self.spec["init"] is None:
            drawn = Transformer(Shape(**self.spec["shape"]))
            initialise(drawn, seed)
            return drawn
        model = load_folder(Path(self.spec["init"]))
        return ScalarModel.from_transformer(model, seed) if self.kind == "reward" and isinstance(model, Transformer) else model

    def _fresh_weights(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self._fresh().named_parameters()}

    def _write_margins(self, engine: Engine, objective: RewardModelling, size: int) -> None:
        """The margin of every test pair, by row: accuracies and their intervals are made of these."""
        rows = objective.pairs.of("test")
        margins: list[float] = []
        with engine.no_grad():
            for part in cut(rows, size):
                margins += objective.margin(engine.model, objective.batch(part, 1.0)).float().tolist()
        if self.rank.index == 0:
            (self.out / "margins.json").write_text(json.dumps({"rows": rows.tolist(), "margins": margins}))

    # -- PPO

    def _ppo(self) -> dict[str, Any]:
        config, spec = self.config, self.spec
        assert isinstance(config, PpoConfig)
        policy, reward_model = load_folder(Path(spec["init"])), load_folder(Path(spec["reward_model"]))
        reference = load_folder(Path(spec["init"]))
        assert isinstance(policy, Transformer) and isinstance(reference, Transformer) and isinstance(reward_model, ScalarModel)
        share = self._share(config.batch_size // config.minibatches)
        size = micro_size(share, self.place.micro_batch_size)
        splits = np.load(self.data / "split.npy", allow_pickle=False)
        plan = PpoPlan(
            **{name: getattr(config, name) for name in PPO_FIELDS},
            micro_size=size,
            peak=config.learning_rate,
            iterations=spec["steps"],
            schedule=config.schedule(spec["steps"]),
            skipping=config.skipping(),
            checkpoint_every=spec["checkpoint_every"],
            end_id=spec["end_id"],
            pad_id=spec["pad_id"],
            identity=self._identity(),
        )
        loop = PpoLoop(
            self._engine(ActorCritic(policy), share // size),
            reference,
            reward_model,
            Ragged(self.data, "prompt"),
            np.flatnonzero(splits == 0),
            np.flatnonzero(splits == 1),
            plan,
            self.saver,
            self.report,
            self._gold(spec) if self._gold is not None else None,
            self.should_stop,
        )
        if not len(loop.train_rows):
            raise ValueError("ppo has no training prompts")
        progress = loop.run()
        best = {name.removeprefix("policy."): value for name, value in loop.best_weights.items()}
        self._write_model(reference, best, progress.history)
        return {
            "iterations": progress.step,
            "tokens": progress.tokens,
            "chosen_iteration": (progress.best or {}).get("step"),
            "validation": progress.validation,
        }

    # -- shared

    def _share(self, batch_size: int) -> int:
        if batch_size % self.rank.ranks:
            raise ValueError(f"a batch of {batch_size} rows cannot be shared by {self.rank.ranks} ranks; make one a multiple of the other")
        return batch_size // self.rank.ranks

    def _engine(self, module: nn.Module, num_micro_batches: int) -> Engine:
        name, zero_stage = self.spec["engine"], self.spec["zero_stage"]
        return make_engine(name, module, self.config.recipe(), self.place, zero_stage, num_micro_batches, self.rank)

    def _identity(self) -> dict[str, Any]:
        return {"config_digest": self.spec["config_digest"], "execution": self.place.execution_class(torch.__version__)}

    def _write_model(self, model: Transformer | ScalarModel, weights: dict[str, Tensor], history: list[dict[str, Any]]) -> None:
        if self.rank.index == 0:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(weights[name])
            save_folder(model, self.out / "model", end_id=self.spec["end_id"], pad_id=self.spec["pad_id"])
            write_history(self.out / "losses.jsonl", history)


PPO_FIELDS = (
    "seed", "batch_size", "minibatches", "epochs", "max_new_tokens", "temperature", "clip", "value_clip", "value_coefficient",
    "kl_coefficient", "gamma", "gae_lambda", "value_iterations", "validation_every", "validation_prompts", "max_kl_per_token", "patience",
)  # fmt: skip
"""What the loop takes from the config as it stands."""


def figures(progress: Progress) -> dict[str, Any]:
    last = progress.validation[-1] if progress.validation else {}
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "final_loss": final_loss(progress.history),
        "skipped_steps": sum(record["skipped"] for record in progress.history),
        "rollbacks": progress.rollbacks,
        "validation": progress.validation,
        **{f"validation_{name}": value for name, value in last.items() if name != "step"},
    }


def make_engine(name: str, module: nn.Module, recipe: Recipe, place: Place, zero_stage: int, num_micro_batches: int, rank: Rank) -> Engine:
    if name == "plain":
        return PlainEngine(module, recipe, place, rank.index, rank.ranks)
    from training.engine_deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(module, recipe, place, zero_stage, num_micro_batches, rank.index, rank.ranks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], lambda spec, report: Run(spec, report).run()))
