"""The recipe as frozen, typed data. Unknown keys are refused; every number has its unit.

Everything here but `run` is part of the mathematics: it may change the bits of the model.
`run` is about machines only and may not.
"""

import ipaddress
import math
import re
import shlex
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]

FLOAT16_REFUSED = (
    "float16 needs a loss scale that follows overflows, so skipped steps would depend on the run; "
    "use bfloat16 or float32"
)


def conflict(message: str, *keys: str) -> PydanticCustomError:
    """An error between `keys`, named from the section that finds it; load.py points at one that is written."""
    return PydanticCustomError("conflict", "{message}", {"message": message, "keys": keys})


def _sources(value: object) -> object:
    """A source, or sources with their weights; said in one sentence, where pydantic would list both kinds."""
    if isinstance(value, dict) and value:
        wrong = [key for key, weight in value.items() if type(weight) not in (int, float) or not 0 < weight < math.inf]
        if wrong:
            raise ValueError(f"must give every source a weight above 0, as in {wrong[0]}: 1; it is {value[wrong[0]]!r}")
    elif not isinstance(value, str):
        raise ValueError("must be a path, or a section of paths with weights")
    return value


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Lora(Section):
    """Low-rank adapters (Hu et al., arXiv 2106.09685): they alone are trained, exchanged and saved."""

    rank: Count = 16
    alpha: Count = 32  # the adapter's output is scaled by alpha / rank
    targets: list[str] | None = None  # ends of the names of linear layers; null: all of them but the output embedding
    dropout: Fraction = 0.0
    dora: bool = False  # weight-decomposed (Liu et al., arXiv 2402.09353)
    rslora: bool = False  # scaled by alpha / sqrt(rank) (Kalajdzievski, arXiv 2312.03732)


class Model(Section):
    """What is trained: the built-in `family`, or one of `config`, `path`, `name` through transformers."""

    family: Literal["llama"] = "llama"
    layers: Count = 6
    width: Count = 384
    heads: Count | None = None  # default: width / 64, at least 1
    vocabulary: Annotated[int, Field(ge=257)] = 4096  # tokens; of the tokenizer trained on the corpus
    tied: bool = True  # input and output embedding are one tensor
    dropout: Fraction = 0.0
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

    source: Annotated[str | dict[str, float], BeforeValidator(_sources)] = "python-stdlib"
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
    micro_batch: Count = 4  # rows
    accumulate: Count = 1  # micro-batches a lane and step


class Causal(Section):
    """Every token of a stream of text is predicted from those before it."""

    kind: Literal["causal"] = "causal"


class Sft(Section):
    """Supervised fine-tuning: samples are kept apart; of chats the assistant's turns are trained, of pairs the
    completion, of text everything.
    """

    kind: Literal["sft"]
    train_on: Literal["answers", "all"] = "answers"  # all: prompts and other turns too


class Dpo(Section):
    """Direct preference optimization (Rafailov et al., arXiv 2305.18290)."""

    kind: Literal["dpo"]
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    beta: Annotated[float, Field(gt=0)] = 0.1
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

    kind: Literal["reward"]


Objective = Annotated[Causal | Sft | Dpo | Reward, Field(discriminator="kind")]


class Optimizer(Section):
    kind: Literal["adamw", "sgd"] = "adamw"
    learning_rate: NonNegative = 1e-3
    warmup: Annotated[int, Field(ge=0)] = 0  # steps
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final: Annotated[float, Field(ge=0, le=1)] = 0.1  # share of the learning rate that is left at the end
    weight_decay: NonNegative = 0.1  # on matrices; never on vectors (norms, biases)
    clip: Annotated[float, Field(gt=0)] | None = 1.0  # global gradient norm; null: none
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    momentum: Fraction = 0.9  # sgd


class Sync(Section):
    strategy: Literal["exact", "fast"] = "exact"
    # Replicas that hold each moment: sharded 1, mirrored 2, replicated all; auto: as memory allows. No number changes.
    state: Literal["auto", "sharded", "mirrored", "replicated"] = "auto"


class Recover(Section):
    checkpoint_every: Annotated[int, Field(ge=0)] = 100  # steps between checkpoints; 0: none
    keep: Count = 3  # checkpoints; older ones are deleted once a newer one is verified
    scrub_every: Annotated[int, Field(ge=0)] = 1  # steps in which all of memory is looked at for flipped bits; 0: never
    recompute_every: Annotated[int, Field(ge=0)] = 0  # steps between lanes that two replicas compute; 0: never
    digest_every: Annotated[int, Field(ge=0)] = 0  # steps between digests of all parameters in the journal; 0: never


class Compute(Section):
    threads: Count = 1  # a replica
    compile: bool = False
    checkpointing: Literal["none", "full"] = "none"  # full: activations of a layer are computed again in backward


class Evaluate(Section):
    """Held-out loss while the run goes on, the same at any number of replicas."""

    every: Annotated[int, Field(ge=0)] = 0  # steps; 0: at the end only
    best: bool = False  # keep the model with the lowest held-out loss in best/
    patience: Count | None = None  # evaluations in a row without a lower loss after which the run ends
    prompts: list[str] = []  # answered at each evaluation, into the journal; see sample

    @model_validator(mode="after")
    def _often(self) -> "Evaluate":
        if not self.every and (self.best or self.patience):
            raise conflict("best and patience need evaluations in between; set evaluate.every", "best", "patience")
        return self


class Sample(Section):
    """The text that the trained model is asked to go on with at the end of a run."""

    prompt: str | None = None  # null: no sample
    tokens: Count = 64
    temperature: NonNegative = 0.8  # 0: always the likeliest token


def _reachable(value: object) -> object:
    """The address of one host, as text."""
    try:
        found = ipaddress.ip_address(value) if isinstance(value, str) else None
    except ValueError:
        found = None
    if found is None or found.is_unspecified or found.is_multicast or found.is_link_local:
        raise ValueError("must be the IP address at which the other hosts reach it, such as 10.77.0.1")
    return str(found)


def _split(value: object) -> object:
    """Checked here, so that a shell's quotes that do not match have a place in the file."""
    try:
        shlex.split(str(value))
    except ValueError:
        raise ValueError("must be words as in a shell; close the quote") from None
    return value


class Host(Section):
    """A machine, or what looks like one to its processes, that shares this machine's kernel."""

    start: Annotated[str, BeforeValidator(_split)] = ""  # stands before a replica's command, and executes it there
    address: Annotated[str, BeforeValidator(_reachable)]  # replicas of other hosts connect to it, at free ports
    replicas: Count = 1  # places


class Run(Section):
    """Machines only. Nothing here may change a number."""

    replicas: Count = 1  # default: the places of all hosts, where there are any
    hosts: dict[str, Host] | None = None  # by name, filled in this order; null: all replicas run here
    replace: bool = True  # start a replica for one that is lost; the others go on in the meantime
    silent: Literal["end", "wait"] = "end"  # a replica that hangs: end it as if it had died, or only tell of it
    cache: str | None = None  # folder of tokenized data; default: ~/.cache/samestep
    log_every: Count = 10  # steps between plain lines when the output is no terminal

    @model_validator(mode="before")
    @classmethod
    def _all_places(cls, data: Any) -> Any:
        """As many replicas as places, where none is asked for. What is no host is told of later."""
        hosts = data.get("hosts") if isinstance(data, dict) else None
        if not isinstance(hosts, dict) or data.get("replicas") is not None:
            return data
        counts = [host.get("replicas", 1) for host in hosts.values() if isinstance(host, dict)]
        known = [count for count in counts if type(count) is int and count > 0]
        return data | ({"replicas": sum(known)} if known else {})

    @model_validator(mode="after")
    def _hosted(self) -> "Run":
        if self.hosts is None:
            return self
        odd = [name for name in self.hosts if not re.fullmatch(r"[A-Za-z0-9._-]{1,63}", name)]
        if odd or not self.hosts:
            what = f"{odd[0]!r} is no name of a host; use letters, digits and . _ -" if odd else "hosts names no host"
            raise conflict(f"{what}, as in hosts: {{h0: {{address: 10.77.0.1}}}}", "hosts")
        self._check_places(self.hosts)
        return self

    def _check_places(self, hosts: dict[str, Host]) -> None:
        places, taken = sum(host.replicas for host in hosts.values()), dict[str, str]()
        for name, host in hosts.items():
            if other := taken.get(host.address):
                says = f"hosts {other} and {name} have one address, {host.address}; give each its own, or keep one"
                raise conflict(says, f"hosts.{name}.address")
            taken[host.address] = name
        if self.replicas > places:
            says = f"replicas is {self.replicas}, but the hosts have room for {places}; lower it, or raise theirs"
            raise conflict(says, "replicas", "hosts")


class Recipe(Section):
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    steps: Count | None = None
    tokens: Count | None = None  # row positions to read, masked ones too
    epochs: Count | None = None
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
        if self.recover.recompute_every and self.sync.strategy == "fast":
            raise conflict(
                "recompute_every compares bits, which sync.strategy fast lets kernels change; use exact",
                "recover.recompute_every",
                "sync.strategy",
            )
        if self.run.hosts and self.sync.strategy == "fast":
            raise conflict(
                "run.hosts joins replicas by sockets, which sync.strategy fast does not use; use exact",
                "run.hosts",
                "sync.strategy",
            )
        if self.run.replicas > self.lanes:
            raise conflict(
                f"run.replicas is {self.run.replicas} but lanes is {self.lanes}, the most replicas that can share "
                f"a step; lower replicas or raise lanes (lanes change the model)",
                "lanes",
                "run.replicas",
                "run.hosts",
            )
        return self

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

    @property
    def rows_per_step(self) -> int:
        """The global batch, in rows of `data.context` tokens."""
        return self.lanes * self.batch.accumulate * self.batch.micro_batch
