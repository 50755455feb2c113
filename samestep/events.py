"""What replicas tell the engine and what stands in the journal: one JSON object an event, named by `event`.

started     a replica is ready: rank, pid, host, lanes, kernels
step        a step is committed: step (from 1), loss, gradient_norm, learning_rate, tokens, epoch, rows, seconds,
            bytes_sent; digest and tensors when taken
repeated    the repeat test of verify: tensors whose gradient did not repeat
evaluated   step (0: before the first), loss, tokens, best (whether it is the lowest so far); bits_per_byte and
            zlib_bits_per_byte of text; accuracy and pairs of preferences
best        the model folder best/ is written: step, loss, digest
stopped_early  the held-out loss did not get lower for `waited` evaluations: step, best
sample      prompt, text; step where it was asked at an evaluation
saved       the model folder is written: digest
failed      a replica gave up: kind, message, traceback, exit_code
"""

from typing import Any

Event = dict[str, Any]
