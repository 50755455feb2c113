"""The rows of a corpus for an objective: which packing, which samples, and whether any is too long."""

import numpy as np
from numpy.typing import NDArray

from samestep.data import pack
from samestep.data.corpus import Corpus, Tokens
from samestep.data.pack import Fit, Rows
from samestep.errors import DataError
from samestep.recipe.schema import Data

TOGETHER = {"causal": 1, "sft": 1, "dpo": 2, "reward": 2}  # sequences a sample


def rows_of(tokens: Tokens, data: Data, objective: str) -> Rows:
    """objective: its kind. Under `too_long: fail` the long samples are left out here; see `refuse_long`."""
    if objective == "causal":
        return pack.stream(tokens.ends, data.context, data.packing)
    found = fit_of(tokens, data, objective)
    return pack.apart(tokens.ends, found, data.context, together=TOGETHER[objective], packing=data.packing)


def fit_of(tokens: Tokens, data: Data, objective: str) -> Fit:
    """Which samples fit into rows, for an objective that keeps samples apart."""
    together = TOGETHER[objective]
    score, long = objective == "reward", data.too_long
    return pack.fit(tokens.ends, tokens.trained, data.context, together=together, score=score, too_long=long)


def refuse_long(corpus: Corpus, data: Data, objective: str) -> None:
    """Raises DataError that names the first sample of more than `context` positions, under `too_long: fail`."""
    if objective == "causal" or data.too_long != "fail":
        return
    for tokens in (corpus.train, corpus.held_out):
        long = fit_of(tokens, data, objective).long.nonzero()[0]
        if len(long):
            raise _too_long(corpus, tokens, long * TOGETHER[objective], TOGETHER[objective], data.context)


def _too_long(corpus: Corpus, tokens: Tokens, sequences: NDArray[np.int64], together: int, context: int) -> DataError:
    """sequences: the first one of each long sample."""
    first = int(sequences[0])
    size = int(tokens.ends[first + together - 1]) - (int(tokens.ends[first - 1]) if first else 0)
    return DataError(
        f"{corpus.place(tokens.places[first])}: a sample of {size:,} tokens, but data.context is {context} "
        f"(too long: {len(sequences):,} of {len(tokens.ends) // together:,} samples); "
        "raise it, or set data.too_long to skip or truncate"
    )
