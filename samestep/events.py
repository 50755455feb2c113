"""What replicas tell the engine and what stands in the journal: one JSON object an event, named by `event`.

started     a replica takes part in a generation: rank, pid, host (its name in run.hosts where it has one), lanes,
            kernels, device, generation
formed      a generation begins, the life of one set of replicas: generation, replicas, step (-1 where all set
            themselves up), restored (whether from the disk), reason
silent      a replica hangs or holds the others up: replica (null: all), kind, step, phase, reason, ended
unreachable a host is cut off from others, told once a cut: host, replicas (on it), by (replicas that do not reach it),
            seconds, reason. The engine makes it of what replicas tell it: peer, seconds, generation; not journalled
reachable   it is reached again before it was given up: host, seconds, reason. From a replica: peer, generation
left        a replica is gone: replica, step, phase, reason
joined, waiting  what the engine needs to form generations: recover/protocol.py; joined with the port where replicas of
            other hosts call; not journalled
step        a step is committed: step (from 1), loss, gradient_norm, learning_rate, tokens, epoch, rows, seconds,
            bytes_sent; digest and tensors when taken
piloted     sync.strategy auto: what was measured, predicted and chosen, with the reason (verbs/pilot.py)
measured    what a pilot has measured: replicas, forward, backward, update, pass_, coding, exchange
            (plan/timing.py), sizes of the parameters
repeated    the repeat test of verify: tensors whose gradient did not repeat
spent       where a replica's time went: step (the last one), steps (up to it), seconds by phase of these, bytes_sent
            (since its start), memory and peak (bytes, of the process), device_memory and device_peak (of a GPU's, where
            it computes on one); every two seconds, less often in a long run
evaluated   step (0: before the first), loss, tokens, best (whether it is the lowest so far); bits_per_byte and
            zlib_bits_per_byte of text; accuracy and pairs of preferences
best        the model folder best/ is written: step, loss, digest
stopped_early  the held-out loss did not get lower for `waited` evaluations: step, best
sample      prompt, text; step where it was asked at an evaluation
saved       the model folder is written: digest
shard       a replica's part of a checkpoint is on the disk: step, file (None where it was given up), shard (size and
            digests), folder, and of replica 0 manifest; not journalled
checkpoint  all parts are, and were read back: step, digest of the model, bytes, folder, seconds; refused where it is in
            the alternate: why it is not in the run folder
save_failed        a part could not be written: step, attempt, reason
checkpoint_failed  the parts were not made a checkpoint: step, reason; the one before it stays
shared_memory_failed  a replica's messages go through sockets in this generation, which is slower: reason
devices_shared     several replicas compute on one GPU: reason
rotation_failed    an older checkpoint could not be deleted after that of step: step, reason
journal_failed     the journal's disk refuses its lines: reason, bytes (of the journal then); they are kept for later
journal_written    it takes lines again: lines (those that were kept, all of them are there)
best_failed        the model folder best/ could not be written: step, reason; the one before it stays
resumed     the run goes on: step (0: from the start), last (the last step in the journal), replicas, refused
            (checkpoints that were passed over, with the reason), alternate (as in the recipe, absolute), time
not_finite  a loss or a gradient is NaN or infinite and the run ends: step, lane, micro, samples (file:line), layer
            (null: the loss), backward (whether only a gradient is); lane and micro are null where no micro-batch is at
            fault but the sum of the gradients, micro also where the lane was finite when it was computed again
ended       the run ended otherwise than with its last step: reason, exit_code, time
failed      a replica gave up: kind, message, traceback, exit_code
"""

from typing import Any

Event = dict[str, Any]
