"""Real processes, forked from this one, that share models and run steps."""

import multiprocessing
import socket
import traceback
from itertools import combinations

import torch
import torch._dynamo  # FSDP imports it when it first computes; here once, not in each process
import torch.distributed.fsdp
import torch.distributed.tensor

from samestep.data.feed import MicroBatch
from samestep.model.task import build
from samestep.recipe.schema import Recipe
from samestep.wire.sockets import Sockets
from samestep.wire.torch_backend import Shards

FORK = multiprocessing.get_context("fork")
VOCABULARY, CONTEXT, ROWS = 96, 16, 4
BUILT_IN = {"layers": 2, "width": 32, "heads": 4, "dtype": "float32"}


def forked(calls):
    """What each of the calls, functions of nothing, returns in a process of its own."""
    pipes = [FORK.Pipe(duplex=False) for _ in calls]
    started = [FORK.Process(target=_call, args=(end, call)) for (_, end), call in zip(pipes, calls, strict=True)]
    for process in started:
        process.start()
    for _, end in pipes:
        end.close()
    try:
        found = [end.recv() for end, _ in pipes]
    finally:
        for process in started:
            process.kill()
            process.join()
    assert not (failed := [error for _, error in found if error]), "\n".join(failed)
    return [value for value, _ in found]


def _call(end, call):
    torch.set_num_threads(1)
    try:
        end.send((call(), ""))
    except BaseException:
        end.send((None, traceback.format_exc()))
        raise


def shards(meeting, count, work, replica=0):
    """For each shard of one replica the call of work(shards)."""

    def call(rank):
        inside = Shards(rank, count, meeting, replica)
        try:
            return work(inside)
        finally:
            inside.close()

    return [lambda rank=rank: call(rank) for rank in range(count)]


def columns(meeting, replicas, count, work):
    """What work(shards, wire) returns in each process of `replicas` of `count` shards, by replica and shard."""
    ends = [{r: {} for r in range(replicas)} for _ in range(count)]
    for column in ends:
        for left, right in combinations(range(replicas), 2):
            column[left][right], column[right][left] = socket.socketpair()

    def at(replica):
        def with_wire(inside):
            wire = Sockets(replica, replicas, ends[inside.rank][replica], 1, range(replicas), [0] * replicas)
            try:
                return work(inside, wire)
            finally:
                wire.close()

        return shards(meeting, count, with_wire, replica)

    try:
        found = forked([call for replica in range(replicas) for call in at(replica)])
    finally:
        for end in (end for column in ends for near in column.values() for end in near.values()):
            end.close()
    return [found[replica * count : (replica + 1) * count] for replica in range(replicas)]


def task_of(base, model=BUILT_IN, **sections):
    """A new model, the same at each call."""
    whole = {"steps": 1, "model": model, "data": {"context": CONTEXT}} | sections
    recipe = Recipe.model_validate(whole)
    return build(recipe, seed=5, vocabulary=VOCABULARY, eos=0, tokenizer_file=base / "tokenizer.json", base=base)


def batch(number):
    """A micro-batch with masked targets, not as many in each row."""
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(VOCABULARY, (ROWS, CONTEXT), generator=generator)
    targets = tokens.roll(-1, 1)
    for row in range(ROWS):
        targets[row, : (number + 3 * row) % 7] = -100
    return MicroBatch(tokens, targets)
