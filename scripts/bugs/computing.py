"""Bugs in the numbers: order, random numbers, weights of the loss, additions, updates."""

from bug import Bug

ORACLE = "same/test_step_equals_oracle.py::"
STRATEGIES = "contracts/test_strategies.py::"
SEVERAL = ORACLE + "test_several_steps_give_all_replicas_the_weights_and_sums_of_one"
TRAIN = "replica/test_train.py"

BUGS = [
    Bug(
        "every epoch has one order",
        "data/order.py",
        "_stream(mix(seed, epoch), n)",
        "_stream(mix(seed), n)",
        "data/test_order.py::test_seeds_and_epochs_have_orders_of_their_own",
    ),
    Bug(
        "the rows that a short step lacks are repeated",
        "data/order.py",
        "padded = np.full(size, MISSING, np.int64)",
        "padded = np.resize(rows, size)",
        "data/test_order.py::test_every_row_is_read_exactly_once_an_epoch",
    ),
    Bug(
        "half a source is the same half in every epoch",
        "data/order.py",
        "parts, place, stop = [], epoch * count, (epoch + 1) * count",
        "parts, place, stop = [], 0, count",
        "data/test_order.py::test_a_weight_of_a_half_reads_all_rows_in_two_epochs",
    ),
    Bug(
        "each step draws the same random numbers",
        "replica/train.py",
        "mix(recipe.seed, n, lane, micro)",
        "mix(recipe.seed, lane, micro)",
        TRAIN,
    ),
    Bug(
        "random numbers follow the rank",
        "replica/train.py",
        "mix(recipe.seed, n, lane, micro)",
        "mix(recipe.seed, n, run.wire.rank, micro)",
        TRAIN,
    ),
    Bug(
        "micro-batches follow the rank",
        "replica/train.py",
        "run.feed.micro_batch(plan, lane, micro)",
        "run.feed.micro_batch(plan, lane - step.lanes.start, micro)",
        TRAIN,
    ),
    Bug(
        "each micro-batch's loss is a mean of its own tokens",
        "replica/train.py",
        "task.terms(plan.targets, plan.pieces)",
        "task.terms(int((batch.targets >= 0).sum()), plan.pieces) / recipe.lanes",
        TRAIN,
    ),
    Bug(
        "the tokens of a step are guessed from its first lane",
        "data/feed.py",
        "there = rows[rows != MISSING]",
        "there = np.tile(rows[0][rows[0] != MISSING], len(rows))",
        "data/test_feed.py::test_a_step_counts_its_targets_and_pieces",
    ),
    Bug(
        "lanes are added one after the other",
        "sync/tree.py",
        "middle = self.start + (1 << ((width - 1).bit_length() - 1))",
        "middle = self.start + width - 1",
        "sync/test_tree.py::test_seven_lanes_are_added_as_the_docstring_says",
    ),
    Bug(
        "an owner adds up in the order of the replicas",
        "sync/exact.py",
        "    total = tree.fold(\n"
        "        Node(0, lanes), sums, lambda left, right: right.add_(left) if right is target else left.add_(right)\n"
        "    )\n",
        "    total = target\n"
        "    for part in sums.values():\n"
        "        if part is not target:\n"
        "            total.add_(part)\n",
        ORACLE + "test_one_step_has_the_bits_of_the_oracle_at_any_number_of_replicas[7]",
    ),
    Bug(
        "a parameter without a gradient keeps that of the step before",
        "sync/accumulate.py",
        "value.zero_() if gradient is None else _put(value, gradient)",
        "value if gradient is None else _put(value, gradient)",
        ORACLE + "test_several_steps_give_all_replicas_the_weights_and_sums_of_one",
    ),
    Bug(
        "both gradients of a parameter that is used twice are written to one place",
        "model/destination.py",
        "place: Tensor | None = parameter.__dict__.pop(NAME, None)",
        "place: Tensor | None = parameter.__dict__.get(NAME)",
        "model/test_destination.py::test_a_parameter_that_is_used_twice_gets_the_sum",
    ),
    Bug(
        "each replica clips by the norm of what it owns",
        "replica/step.py",
        "norm_of(squares)",
        "float(self.state.norms(self._gradients.buffers[0]).sum().sqrt())",
        STRATEGIES + "test_all_replicas_hold_the_same_model_and_curve",
    ),
    Bug(
        "a replica updates only what it has seen a gradient of",
        "replica/step.py",
        "self._present, self.sums = numbers.present,",
        "self._present, self.sums = self._gradients.present.any(0).tolist(),",
        SEVERAL,
    ),
    Bug(
        "a lane's loss is booked on another lane",
        "replica/step.py",
        "losses[self.span[index // self._micros]]",
        "losses[index // self._micros]",
        STRATEGIES + "test_a_loss_that_is_not_finite_is_not_applied_and_names_its_lane",
    ),
    Bug(
        "a loss that is NaN is applied",
        "replica/step.py",
        "if not math.isfinite(loss + norm):",
        "if not math.isfinite(norm) and math.isfinite(loss):",
        STRATEGIES + "test_a_loss_that_is_not_finite_is_not_applied_and_names_its_lane",
    ),
    Bug(
        "a gradient that is NaN is applied",
        "replica/step.py",
        "if not math.isfinite(loss + norm):",
        "if not math.isfinite(loss):",
        "replica/test_notfinite.py::test_a_gradient_alone_is_led_back_too",
    ),
    Bug(
        "a NaN is blamed on the lane after it",
        "replica/agreement.py",
        "for lane, loss in enumerate(losses) if",
        "for lane, loss in enumerate(losses, 1) if",
        STRATEGIES + "test_a_loss_that_is_not_finite_is_not_applied_and_names_its_lane",
    ),
    Bug(
        "layers that keep statistics are let pass",
        "replica/step.py",
        "        self._buffers.check()\n",
        "",
        STRATEGIES + "test_layers_that_write_buffers_are_refused_with_the_reason",
    ),
    Bug(
        "Adam's bias correction stands still",
        "replica/state.py",
        "[count + there for count, there in zip(self.updates, present, strict=True)]",
        "list(self.updates)",
        ORACLE + "test_the_weights_are_close_to_those_of_torch_with_the_same_optimizer",
    ),
    Bug(
        "vectors decay",
        "model/optim.py",
        "parameter.dim() >= 2",
        "parameter.dim() >= 1",
        "contracts/test_rules.py",
    ),
    Bug(
        "slices are cut by the number of replicas",
        "sync/slices.py",
        "(start + self.slice * (slices * o // owners) for",
        "(start + (stop - start) * o // owners for",
        "sync/test_slices.py",
    ),
    Bug(
        "parameters begin anywhere",
        "sync/slices.py",
        "end += -(-size // ALIGNMENT) * ALIGNMENT",
        "end += size",
        "sync/test_slices.py",
    ),
]
