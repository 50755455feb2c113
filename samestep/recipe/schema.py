"""The recipe as frozen, typed data. Unknown keys are refused; every number has its unit.

Everything here but `run` is part of the mathematics: it may change the bits of the model.
`run` is about machines only and may not.
"""

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from samestep.errors import RecipeError
from samestep.recipe.machines import Run
from samestep.recipe.section import Count, Fraction, NonNegative, Section, conflict

FLOAT16_REFUSED = (
    "float16 needs a loss scale that follows overflows, so skipped steps would depend on the run; "
    "use bfloat16 or float32"
)


def _sources(value: object) -> object:
    """A source, or sources with their weights; said in one sentence, where pydantic would list both kinds."""
    if isinstance(value, dict) and value:
        wrong = [key for key, weight in value.items() if type(weight) not in (int, float) or not 0 < weight < math.inf]
        if wrong:
            raise ValueError(f"must give every source a weight above 0, as in {wrong[0]}: 1; it is {value[wrong[0]]!r}")
    elif not isinstance(value, str):
        raise ValueError("must be a path, or a section of paths with weights")
    return value


class Lora(Section):
    """Low-rank adapters (Hu et al., arXiv 2106.09685): they alone are trained, exchanged and saved."""

    rank: Count = 16  # columns of an adapter's first matrix, rows of its second
    alpha: Count = 32  # the adapter's output is scaled by alpha / rank
    targets: list[str] | None = None  # ends of the names of linear layers; null: all of them but the output embedding
    dropout: Fraction = 0.0  # share of an adapter's input that is dropped
    dora: bool = False  # weight-decomposed (Liu et al., arXiv 2402.09353)
    rslora: bool = False  # scaled by alpha / sqrt(rank) (Kalajdzievski, arXiv 2312.03732)


class Model(Section):
    """What is trained: the built-in `family`, or one of `config`, `path`, `name` through transformers."""

    family: Literal["llama"] = "llama"  # the built-in model, new weights
    layers: Count = 6  # of the built-in model, as are the next five
    width: Count = 384  # numbers a token (the hidden size)
    heads: Count | None = None  # default: width / 64, at least 1
    vocabulary: Annotated[int, Field(ge=257)] = 4096  # tokens; of the tokenizer trained on the corpus
    tied: bool = True  # input and output embedding are one tensor
    dropout: Fraction = 0.0  # share of activations
    config: str | None = None  # a transformers config.json: that architecture, new weights
    path: str | None = None  # a local Hugging Face folder: its weights and tokenizer
    name: str | None = None  # a hub name: the same, from the local hub cache or the hub
    lora: Lora | None = None  # null: all weights are trained
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the matrix products; weights and sums stay float32

    @field_validator("dtype", mode="before")
    @classmethod
    def _no_float16(cls, value: object) -> object:
        if value in ("float16", "fp16", "half"):
            raise ValueError(FLOAT16_REFUSED)
        return value

    @model_validator(mode="after")
    def _shape(self) -> "Model":
        if sum(x is not None for x in (self.config, self.path, self.name)) > 1:
            raise conflict("config, path and name exclude each other; keep one", "config", "path", "name")
        if self.family_used:
            heads = self.heads or max(1, self.width // 64)
            if self.width % (2 * heads):
                says = f"width {self.width} does not split into {heads} heads of even size; change width or heads"
                raise conflict(says, "heads", "width")
        return self

    @property
    def family_used(self) -> bool:
        """Whether the built-in model is meant, not one from transformers."""
        return self.config is None and self.path is None and self.name is None


class Data(Section):
    """What is read. `source` is `python-stdlib[/package]`, a file or a folder (text, JSONL, Parquet, Arrow, a folder
    saved by `datasets`), or an fsspec address such as s3://bucket/folder; or several of them, each with the number of
    times that an epoch reads it (0.5: the half, another one each time).
    """

    source: Annotated[str | dict[str, float], BeforeValidator(_sources)] = "python-stdlib"  # see above
    format: Literal["auto", "text", "jsonl", "parquet", "arrow"] = "auto"  # of the files
    text_field: str = "text"  # of rows that are plain text
    tokenizer: str | None = None  # a folder or tokenizer.json; default: the model's own, or one trained on the corpus
    context: Annotated[int, Field(ge=2)] = 256  # tokens a row
    packing: bool = True  # several samples a row; false: a sample starts a row, which is padded
    held_out: Fraction = 0.02  # share of documents, chosen by a hash of their names
    invalid: Literal["fail", "skip"] = "fail"  # samples that cannot be used
    too_long: Literal["fail", "skip", "truncate"] = "fail"  # samples of more tokens than context

    @property
    def weights(self) -> dict[str, float]:
        """Every source with the number of times that an epoch reads it."""
        return {self.source: 1.0} if isinstance(self.source, str) else self.source


class Batch(Section):
    micro_batch: Count = 4  # rows of one forward and backward pass
    accumulate: Count = 1  # micro-batches a lane and step


class Causal(Section):
    """Every token of a stream of text is predicted from those before it."""

    kind: Literal["causal"] = "causal"  # every token of a stream of text


class Sft(Section):
    """Supervised fine-tuning: samples are kept apart; of chats the assistant's turns are trained, of pairs the
    completion, of text everything.
    """

    kind: Literal["sft"]  # supervised fine-tuning
    train_on: Literal["answers", "all"] = "answers"  # all: prompts and other turns too


class Dpo(Section):
    """Direct preference optimization (Rafailov et al., arXiv 2305.18290)."""

    kind: Literal["dpo"]  # preferences
    loss: Literal["sigmoid", "ipo"] = "sigmoid"  # ipo: Azar et al., arXiv 2310.12036
    beta: Annotated[float, Field(gt=0)] = 0.1  # how strongly the model is held to its reference
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # the share of pairs thought to be labelled wrongly
    length_normalised: bool = False  # log-probabilities a token instead of summed
    reference: Literal["start", "base"] = "start"  # start: computed once and kept; base: the model without its adapters

    @model_validator(mode="after")
    def _known(self) -> "Dpo":
        if self.loss == "ipo" and self.label_smoothing:
            raise conflict("label_smoothing is of the sigmoid loss; ipo has none", "label_smoothing", "loss")
        if self.loss == "ipo" and self.length_normalised:
            raise conflict("ipo is normalised by length in any case; remove length_normalised", "length_normalised")
        return self


class Reward(Section):
    """A reward model from preferences (Bradley and Terry 1952; Ouyang et al., arXiv 2203.02155, equation 1)."""

    kind: Literal["reward"]  # a reward model


Objective = Annotated[Causal | Sft | Dpo | Reward, Field(discriminator="kind")]


class Optimizer(Section):
    kind: Literal["adamw", "sgd"] = "adamw"  # sgd has momentum
    learning_rate: NonNegative = 1e-3  # at its highest, after the warm-up
    warmup: Annotated[int, Field(ge=0)] = 0  # steps in which the learning rate rises from 0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # how the learning rate falls after the warm-up
    final: Annotated[float, Field(ge=0, le=1)] = 0.1  # share of the learning rate that is left at the end
    weight_decay: NonNegative = 0.1  # on matrices; never on vectors (norms, biases)
    clip: Annotated[float, Field(gt=0)] | None = 1.0  # global gradient norm; null: none
    beta1: Fraction = 0.9  # adamw: what is kept of the first moment in a step
    beta2: Fraction = 0.95  # adamw: of the second
    epsilon: Annotated[float, Field(gt=0)] = 1e-8  # adamw: added to the root of the second moment
    momentum: Fraction = 0.9  # sgd: what is kept of it in a step


class Diloco(Section):
    """Islands that train by themselves and meet now and then (arXiv 2311.08105; fragments, overlap: 2501.18512)."""

    islands: Count = 4  # fixed sets of lanes; the most replicas, each of which carries whole islands
    every: Count = 20  # steps between two meetings about the same weights
    fragments: Count = 1  # parts of the weights that meet in turn
    overlap: Annotated[int, Field(ge=0)] = 0  # steps that training goes on while what meets is on its way
    together: Annotated[int, Field(ge=0)] = 0  # steps at the start after each of which all meet and take the mean
    mix: Fraction = 0.0  # share of its own weights that an island keeps at a meeting
    rate: Annotated[float, Field(gt=0)] = 0.7  # learning rate of the outer step
    momentum: Fraction = 0.9  # of the outer step

    @model_validator(mode="after")
    def _legs(self) -> "Diloco":
        if self.every % self.fragments:
            says = f"every is {self.every}, which does not split into {self.fragments} fragments; change one"
            raise conflict(says, "every", "fragments")
        if self.overlap >= self.every // self.fragments:
            says = (
                f"overlap is {self.overlap}, but a fragment meets every {self.every // self.fragments} steps; lower it"
            )
            raise conflict(says, "overlap")
        return self


Wire = Literal["float32", "bfloat16", "int8", "int4"]


class Sync(Section):
    """What is not sent in float32 is rounded, the same at any number of replicas. What was rounded off a lane (or an
    island) is added in the next step, and is with one replica only, which cannot be lost without a checkpoint.
    """

    strategy: Literal["exact", "fast", "diloco", "auto"] = "exact"  # auto: what `samestep pilot` finds at the start
    diloco: Diloco = Diloco()  # of the strategy diloco
    wire: Wire = "float32"  # of what is added up: gradients of lanes, or what islands have learnt
    weights: Wire | None = None  # of new weights; null: as wire
    # Replicas that hold each moment: sharded 1, mirrored 2, replicated all; auto: as memory allows. No number changes.
    state: Literal["auto", "sharded", "mirrored", "replicated"] = "auto"

    @property
    def told(self) -> Wire:
        """The format of new weights."""
        return self.weights or self.wire

    @property
    def alone(self) -> bool:
        """Whether a part of the state is with one replica only, whatever `state` says."""
        return self.strategy == "diloco" or self.wire != "float32"

    @model_validator(mode="after")
    def _rounded(self) -> "Sync":
        if self.strategy == "fast" and {self.wire, self.told} != {"float32"}:
            says = f"fast adds up in float32, but wire is {self.wire} and weights are {self.told}; use exact"
            raise conflict(says, "wire" if self.wire != "float32" else "weights", "strategy")
        return self


class Recover(Section):
    checkpoint_every: Annotated[int, Field(ge=0)] = 100  # steps between checkpoints; 0: none
    keep: Count = 3  # checkpoints; older ones are deleted once a newer one is verified
    scrub_every: Annotated[int, Field(ge=0)] = 1  # steps in which all of memory is looked at for flipped bits; 0: never
    recompute_every: Annotated[int, Field(ge=0)] = 0  # steps between lanes that two replicas compute; 0: never
    digest_every: Annotated[int, Field(ge=0)] = 0  # steps between digests of all parameters in the journal; 0: never


class Compute(Section):
    device: Literal["cpu", "cuda"] = "cpu"  # cuda: a GPU each, or one for several replicas of a host
    threads: Count = 1  # of a replica, on processors
    compile: bool = False  # the model goes through torch.compile
    checkpointing: Literal["none", "full"] = "none"  # full: activations of a layer are computed again in backward
    # Of the model over the processes of a replica: full gathers a layer when it is computed (FSDP), tensor splits it.
    shard: Literal["none", "full", "tensor"] = "none"
    shards: Count = 1  # processes of a replica


class Evaluate(Section):
    """Held-out loss while the run goes on, the same at any number of replicas."""

    every: Annotated[int, Field(ge=0)] = 0  # steps; 0: at the end only
    best: bool = False  # keep the model with the lowest held-out loss in best/
    patience: Count | None = None  # evaluations in a row without a lower loss after which the run ends
    prompts: list[str] = Field(default=[])  # answered at each evaluation, into the journal; see sample

    @model_validator(mode="after")
    def _often(self) -> "Evaluate":
        if not self.every and (self.best or self.patience):
            raise conflict("best and patience need evaluations in between; set evaluate.every", "best", "patience")
        return self


class Sample(Section):
    """The text that the trained model is asked to go on with at the end of a run."""

    prompt: str | None = None  # null: no sample
    tokens: Count = 64  # at most
    temperature: NonNegative = 0.8  # 0: always the likeliest token


class Recipe(Section):
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1  # what order, new weights and dropout follow from
    steps: Count | None = None  # updates of the weights
    tokens: Count | None = None  # row positions to read, masked ones too
    epochs: Count | None = None  # times that the corpus is read
    lanes: Count = 8  # the most replicas that can share a step
    model: Model = Model()
    data: Data = Data()
    batch: Batch = Batch()
    objective: Objective = Causal()
    optimizer: Optimizer = Optimizer()
    sync: Sync = Sync()
    recover: Recover = Recover()
    compute: Compute = Compute()
    evaluate: Evaluate = Evaluate()
    sample: Sample = Sample()
    run: Run = Run()

    @model_validator(mode="after")
    def _whole(self) -> "Recipe":
        lengths = [key for key in ("steps", "tokens", "epochs") if getattr(self, key) is not None]
        if len(lengths) != 1:
            given = f"{' and '.join(lengths)} are set; keep one" if lengths else "none is set; add steps: 300, say"
            raise conflict(f"the run needs exactly one of steps, tokens and epochs, but {given}", *lengths)
        self._check_objective()
        if self.recover.recompute_every and self.sync.strategy != "exact":
            raise conflict(
                "recompute_every compares the gradients of lanes bit for bit, as only sync.strategy exact can; use it",
                "recover.recompute_every",
                "sync.strategy",
            )
        self._check_islands()
        self._check_transport()
        self._check_shards()
        if self.run.replicas > self.lanes:
            raise conflict(
                f"run.replicas is {self.run.replicas} but lanes is {self.lanes}, the most replicas that can share "
                f"a step; lower replicas or raise lanes (lanes change the model)",
                "lanes",
                "run.replicas",
                "run.hosts",
            )
        return self

    def _check_transport(self) -> None:
        """The strategy fast brings its own."""
        if self.sync.strategy == "fast" and self.run.transport != "auto":
            raise conflict(
                "sync.strategy fast has a transport of its own; remove run.transport or use exact",
                "run.transport",
                "sync.strategy",
            )
        if self.sync.strategy == "fast" and self.run.hosts:
            raise conflict(
                "run.hosts joins replicas by sockets, which sync.strategy fast does not use; use exact",
                "run.hosts",
                "sync.strategy",
            )

    def _check_shards(self) -> None:
        """What a model over several processes goes together with."""
        how, count = self.compute.shard, self.compute.shards
        if (how == "none") != (count == 1):
            says = f"compute.shard is {how} and compute.shards is {count}; set both, or neither"
            raise conflict(says, "compute.shard", "compute.shards")
        if how == "none":
            return
        if how == "full" and self.batch.micro_batch % count:
            says = (
                f"batch.micro_batch is {self.batch.micro_batch} rows, which compute.shards {count} cannot share evenly"
            )
            raise conflict(f"{says}; change one", "compute.shards", "batch.micro_batch")
        others = {
            "sync.strategy": self.sync.strategy != "exact",
            "sync.wire": {self.sync.wire, self.sync.told} != {"float32"},
            "objective.kind": self.objective.kind not in ("causal", "sft"),
            "model.lora": self.model.lora is not None,
            "compute.compile": self.compute.compile,
            "compute.device": self.compute.device != "cpu",
            "recover.recompute_every": self.recover.recompute_every > 0,
            "run.hosts": self.run.hosts is not None,
        }
        for key, there in others.items():
            if there:
                says = f"compute.shard {how} does not go together with this {key}; leave one of them at its default"
                raise conflict(says, "compute.shard", key)

    def _check_islands(self) -> None:
        islands = self.sync.diloco.islands
        if self.sync.strategy != "diloco":
            return
        if self.lanes % islands:
            says = f"lanes is {self.lanes}, which does not split into {islands} islands of one size; change one"
            raise conflict(says, "sync.diloco.islands", "lanes")
        if self.run.replicas > islands:
            raise conflict(
                f"run.replicas is {self.run.replicas} but there are {islands} islands, which are carried whole; lower "
                f"replicas or raise sync.diloco.islands (islands change the model)",
                "sync.diloco.islands",
                "run.replicas",
            )

    def _check_objective(self) -> None:
        """What goes together only under some objectives."""
        if isinstance(self.objective, Reward) and (self.sample.prompt is not None or self.evaluate.prompts):
            raise conflict("a reward model writes no text; remove the prompts", "sample.prompt", "evaluate.prompts")
        if isinstance(self.objective, Reward) and self.model.family_used:
            raise conflict("a reward model starts from trained weights; set model.path or model.name", "model")
        if isinstance(self.objective, Dpo) and self.objective.reference == "base" and self.model.lora is None:
            raise conflict("reference base is the model without its adapters; set model.lora", "objective.reference")
        if self.model.lora is not None and self.model.path is None and self.model.name is None:
            raise conflict("adapters need trained weights; set model.path or model.name", "model.lora")

    def refuse_shards(self, what: str) -> None:
        """RecipeError where replicas are split. what: cannot have them, as in the message."""
        if self.compute.shards > 1:
            raise RecipeError(
                f"{what} is for replicas of one process, but compute.shard is {self.compute.shard}; leave it out"
            )

    @property
    def most_replicas(self) -> int:
        """That can share the run."""
        return self.sync.diloco.islands if self.sync.strategy == "diloco" else self.lanes

    @property
    def rows_per_step(self) -> int:
        """The global batch, in rows of `data.context` tokens."""
        return self.lanes * self.batch.accumulate * self.batch.micro_batch
