"""What the user sets for training. The loop and the engines see plain values (training/options.py), never these classes."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from contract.config import Decay, Fraction, Frozen, Seed, one_of
from training.options import Recipe, Schedule, Skipping

LearningRate = Annotated[float, Field(gt=0, le=10)]
WeightDecay = Annotated[float, Field(ge=0, le=10)]
EngineName = Literal["deepspeed", "plain"]


class Optimisation(Frozen):
    """How weights move: the part that all training stages share."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon orthogonalises the update of every hidden matrix (Jordan 2024) and leaves embeddings, norms and heads to AdamW."""
    learning_rate: LearningRate = 3e-3
    """Peak rate; under muon that of the matrices. 3e-3 is the laptop trial's for 2M parameters; 124M wants 6e-4 (GPT-3)."""
    embedding_learning_rate: LearningRate | None = None
    """AdamW's rate for embeddings, norms and heads under muon; learning_rate when unset."""
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    """0.95 as in GPT-3: 0.999 remembers more steps than short runs have."""
    epsilon: float = Field(default=1e-8, gt=0, le=1)
    momentum: Decay = 0.95
    """Muon's (Jordan 2024)."""
    weight_decay: WeightDecay = 0.1
    """Decoupled, on matrices only (GPT-3)."""
    grad_clip: NonNegativeFloat = 1.0
    """Largest global norm of the gradient (GPT-3); 0 turns it off."""
    warmup_steps: NonNegativeInt = 20
    decay: Literal["cosine", "linear"] = "cosine"
    decay_fraction: Fraction = 1.0
    """Share of the steps over which the rate falls, at the end; before that it is constant. The laptop trial decays linearly over 0.7."""
    final_fraction: Fraction = 0.1
    """Where the rate ends, as a share of its peak (Chinchilla: 0.1)."""
    skip_limit: PositiveInt = 10
    """Bad steps in a row (NaN, or a loss spike) after which training goes back to its last checkpoint and past that data."""
    spike_sigmas: NonNegativeFloat = 8.0
    """A loss this many standard deviations above the mean of the last 64 is a spike, and its step is skipped; 0 skips NaN alone."""
    most_rollbacks: NonNegativeInt = 3
    """Going back more often than this ends the stage: something other than the data is wrong."""

    @model_validator(mode="after")
    def _fractions(self) -> "Optimisation":
        if self.embedding_learning_rate is not None and self.optimizer != "muon":
            raise ValueError("embedding_learning_rate has an effect under optimizer: muon only; leave it out")
        return self

    def recipe(self) -> Recipe:
        names = ("optimizer", "learning_rate", "beta1", "beta2", "epsilon", "momentum", "weight_decay", "grad_clip")
        values = {name: getattr(self, name) for name in names}
        return Recipe(embedding_learning_rate=self.embedding_learning_rate or self.learning_rate, **values)

    def schedule(self, max_steps: int) -> Schedule:
        return Schedule(max_steps, self.warmup_steps, self.decay, self.decay_fraction, self.final_fraction)

    def skipping(self) -> Skipping:
        return Skipping(self.skip_limit, self.spike_sigmas, self.most_rollbacks)


def check_engine(where: str, engine: str, zero_stage: int, optimisation: Optimisation) -> None:
    """Raise ValueError for what DeepSpeed does not do as the plain engine does."""
    if engine == "deepspeed" and optimisation.optimizer == "muon" and (zero_stage or optimisation.grad_clip):
        raise ValueError(
            f"{where}: optimizer muon under DeepSpeed needs zero_stage 0 and grad_clip 0 (it would clip the orthogonalised update); "
            f"found zero_stage {zero_stage} and grad_clip {optimisation.grad_clip}. Set them so, or use engine: plain"
        )


class TrainConfig(Optimisation):
    """Pretraining, or continued pretraining when `init_from` is set."""

    engine: EngineName = "deepspeed"
    """deepspeed, or plain (torch alone: the oracle, and what runs where DeepSpeed is not)."""
    zero_stage: int = Field(default=1, ge=0, le=3)
    """What DeepSpeed spreads over the ranks: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too."""
    seed: Seed = 1
    """Draws the initial weights and the order of the blocks."""
    max_steps: PositiveInt | None = 600
    """Unset: as many as fit into `seconds` on this machine, by what calibrate measured."""
    seconds: PositiveFloat = 165
    """Time for the steps where max_steps is unset; a third of the laptop's eight minutes."""
    global_batch_tokens: PositiveInt = 4096
    """Tokens a step over all ranks (laptop trial: small steps are better at this size); a multiple of the model's context."""
    init_from: str | None = Field(default=None, min_length=1)
    """A folder with config.json and model.safetensors to start from: continued pretraining."""
    validation_every: PositiveInt = 100
    """Steps between two looks at the validation blocks."""
    validation_blocks: NonNegativeInt = 64
    """At most so many are looked at."""

    @model_validator(mode="after")
    def _engine_can(self) -> "TrainConfig":
        check_engine("train", self.engine, self.zero_stage, self)
        return self


class FineTuneConfig(Optimisation):
    """SFT, the reward model and the direct methods: passes over pairs."""

    learning_rate: LearningRate = 1e-3
    weight_decay: WeightDecay = 0.0
    warmup_steps: NonNegativeInt = 10
    seed: Seed = 1
    max_steps: PositiveInt | None = 100
    """Unset: as many as fit into `seconds`, by what calibrate measured."""
    seconds: PositiveFloat = 30
    """Time for the steps where max_steps is unset."""
    batch_size: int = Field(default=32, ge=1, le=2**20)
    """Pairs a step over all ranks."""
    validation_every: PositiveInt = 50
    validation_pairs: NonNegativeInt = 256
    """At most so many are looked at while training."""


class DpoConfig(FineTuneConfig):
    learning_rate: LearningRate = 2e-4
    """The laptop trial's."""
    beta: PositiveFloat = 0.1
    """Strength of the tie to the reference (Rafailov et al. 2023)."""


class PpoConfig(Optimisation):
    """PPO with a value head on the policy's trunk (Schulman et al. 2017; Stiennon et al. 2020)."""

    learning_rate: LearningRate = 1.5e-4
    """The laptop trial's: 3e-4 let the KL run away."""
    weight_decay: WeightDecay = 0.0
    warmup_steps: NonNegativeInt = 0
    decay_fraction: Fraction = 0.0
    seed: Seed = 1
    iterations: PositiveInt | None = 12
    """Unset: as many as fit into `seconds`, by what calibrate measured."""
    seconds: PositiveFloat = 60
    """Time for the iterations where their number is unset."""
    batch_size: int = Field(default=64, ge=1, le=2**20)
    """Prompts an iteration over all ranks, one answer each."""
    minibatches: PositiveInt = 1
    """Updates an epoch: the batch is cut into so many."""
    epochs: int = Field(default=4, ge=2, le=4)
    """Passes over each batch of answers."""
    max_new_tokens: PositiveInt = 48
    temperature: float = Field(default=1.0, gt=0, le=100)
    clip: float = Field(default=0.2, gt=0, lt=1)
    """Of the probability ratio (Schulman et al. 2017)."""
    value_clip: PositiveFloat = 0.2
    value_coefficient: PositiveFloat = 0.1
    """Of the value loss; small, since the trunk is shared (Ziegler et al. 2019)."""
    kl_coefficient: NonNegativeFloat = 0.02
    """Penalty a token for leaving the reference; the laptop trial held with 0.05."""
    gamma: Fraction = 1.0
    gae_lambda: Fraction = 0.95
    """Both as in Ziegler et al. 2019."""
    value_iterations: NonNegativeInt = 1
    """First iterations that train the value head alone, so that advantages mean something."""
    validation_every: PositiveInt = 4
    """Iterations between two looks at the validation prompts, by which the model is chosen."""
    validation_prompts: PositiveInt = 64
    max_kl_per_token: PositiveFloat = 0.5
    """A model farther than this from the reference (nats a token, validation prompts) is not chosen."""
    patience: NonNegativeInt = 0
    """Looks without a better model after which training stops; 0 goes to the end."""

    @property
    def max_steps(self) -> int | None:
        """What the other stages call it."""
        return self.iterations


@dataclass(frozen=True)
class Method:
    """What the flows, the evaluation and the report know of a way to align."""

    title: str
    """What the report calls its model."""
    learned: str | None
    """How its model was made, for the model card. None: it is no language model, so it is neither scored nor exported."""
    needs_reward: bool = False
    """Its stage reads the reward model."""
    direct: bool = False
    """It learns from the preference pairs without a reward model. Its stage is then dpo's under its name (tasks/dpo.py), and its loss
    is in DIRECT (training/objectives.py)."""
    passes: float = 1.0
    """What a token costs beside one of pretraining. A frozen reference adds a third: tokens go through it, but nothing comes back."""
    version: int = 1
    """Of a direct method's stage; another stage has its version where it is declared."""


METHODS = {
    "sft": Method("SFT", "pretrained, then fine-tuned on prompts and responses (SFT)"),
    "reward": Method("reward model", None),
    "ppo": Method(
        "PPO",
        "pretrained, fine-tuned on prompts and responses, then optimised against a learned reward (PPO)",
        needs_reward=True,
    ),
    "dpo": Method(
        "DPO",
        "pretrained, fine-tuned on prompts and responses, then optimised on preference pairs (DPO)",
        direct=True,
        passes=4 / 3,
    ),
}
"""By name, in the order of training. The name is that of the settings under `align`, of the stage, and of its artifact as an input."""
POLICIES = tuple(name for name, method in METHODS.items() if method.learned)
"""Those that make a language model."""
MethodName = Annotated[str, one_of(METHODS)]
ModelName = Annotated[str, one_of(("base", *POLICIES))]


class AlignConfig(Frozen):
    """What follows pretraining."""

    methods: tuple[MethodName, ...] = ("ppo",)
    """What is made beyond SFT and the reward model, which ppo needs."""
    export: Annotated[str, one_of(("pretrain", *POLICIES))] = "ppo"
    """Whose model is exported."""
    engine: EngineName = "deepspeed"
    zero_stage: int = Field(default=1, ge=0, le=2)
    """At most 2: answers are sampled from whole weights."""
    sft: FineTuneConfig = FineTuneConfig()
    reward: FineTuneConfig = FineTuneConfig()
    ppo: PpoConfig = PpoConfig()
    dpo: DpoConfig = DpoConfig()

    @model_validator(mode="after")
    def _fits(self) -> "AlignConfig":
        made = {"pretrain", *self.methods} | ({"sft"} if self.methods else set())
        if self.export not in made:
            raise ValueError(
                f"align.export is {self.export}, align.methods make {', '.join(sorted(made))}; add it to methods or export another"
            )
        for name in METHODS:
            check_engine(f"align.{name}", self.engine, self.zero_stage, getattr(self, name))
        return self

    def stages(self) -> list[str]:
        """What runs, in order: `methods`, before them SFT, and the reward model where one of them reads it."""
        made = {*self.methods, *(["sft"] if self.methods else [])}
        if any(METHODS[name].needs_reward for name in self.methods):
            made.add("reward")
        return [name for name in METHODS if name in made]


def settings_of(stage: str) -> type[Optimisation]:
    """The class of a training stage's settings."""
    found = TrainConfig if stage == "pretrain" else AlignConfig.model_fields[stage].annotation
    assert isinstance(found, type) and issubclass(found, Optimisation)
    return found
