"""Bugs in memory that replicas share: who may read and write it, and when."""

from bug import Bug

SHARED = "wire/shared_memory.py"
CLOSED = "contracts/test_wire.py::test_what_came_before_a_peer_closed_can_still_be_used"
WOKEN = "contracts/test_wire.py::test_cancel_wakes_a_replica_at_once_that_waits_for_what_it_lent"
OWN = "wire/test_shared_memory.py::"

BUGS = [
    Bug(
        "what was lent is written before it is returned",
        SHARED,
        "        while self._account.out:\n",
        "        while False:\n",
        OWN + "test_a_loan_is_not_returned_before_the_borrower_has_released_it",
    ),
    Bug(
        "what a peer said before it closed is thrown away",
        SHARED,
        "if peer.gone and peer.owes()]",
        "if peer.gone]",
        CLOSED,
    ),
    Bug(
        "what comes before it is due is lost",
        SHARED,
        "            peer.early.append(arrival)\n",
        "            return\n",
        OWN + "test_what_comes_before_it_is_due_is_kept",
    ),
    Bug(
        "errors of shared memory name ranks",
        SHARED,
        "members[r] if members else r",
        "r",
        OWN + "test_a_message_of_another_generation_is_refused_and_lands_nowhere",
    ),
    Bug(
        "a copy in shared memory is never used again",
        "wire/segments.py",
        "        self._idle.append(segment)\n",
        "        return\n",
        OWN + "test_what_lies_elsewhere_is_copied_to_memory_that_is_used_again",
    ),
    Bug(
        "nobody that waits for shared memory is woken",
        SHARED,
        '            self._wake_write.send(b"x")\n',
        "            return\n",
        WOKEN,
    ),
    Bug(
        "a sender is not told that what came early is copied",
        SHARED,
        "        self._wire.flush()  # where all had come",
        "        # where all had come",
        OWN + "test_a_sender_hears_at_once_that_what_came_early_is_copied",
    ),
    Bug(
        "a replica that finds no memory to share ends",
        SHARED,
        "            except OSError as error:\n                self._short(error)\n",
        "            except ValueError as error:\n                raise error\n",
        OWN + "test_where_no_memory_can_be_had_all_is_as_before_and_it_is_said_once",
    ),
]
