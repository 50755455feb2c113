"""What replicas tell the engine and what stands in the journal: one JSON object an event, named by `event`.

started     a replica is ready: rank, pid, host, lanes, kernels
step        a step is committed: step (from 1), loss, gradient_norm, learning_rate, tokens, epoch, rows, seconds,
            bytes_sent; digest and tensors when taken
repeated    the repeat test of verify: tensors whose gradient did not repeat
evaluated   bits_per_byte, loss, tokens
sample      prompt, text
saved       the model folder is written: digest
failed      a replica gave up: kind, message, traceback, exit_code
"""

from typing import Any

Event = dict[str, Any]
