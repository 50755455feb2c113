"""Bugs between hosts that have several replicas: who waits on what, who adds and passes on what."""

from bug import Bug

JOINED, HIERARCHICAL, RELAYS = "wire/joined.py", "sync/hierarchical.py", "sync/relays.py"
ENDS, BITS, PURE = "wire/test_joined.py::", "sync/test_hierarchical.py::", "sync/test_relays.py::"
EACH_BIT = BITS + "test_each_bit_is_that_of_the_plain_exchange"
ENGINE = "launch/test_local_hosts.py::test_replicas_of_one_host_share_a_file_and_know_who_is_where"
PLACE = "replica/test_place.py::test_the_transport_follows_from_who_is_where"

BUGS = [
    Bug(
        "a far replica that is lost does not end the wait for a near one",
        "wire/sockets.py",
        "            self._waiter.end(error)\n",
        "            pass\n",
        ENDS + "test_a_far_one_that_goes_away_ends_the_wait_for_what_was_lent_to_a_near_one",
    ),
    Bug(
        "what a far replica did wrong is told as a loss",
        "wire/sockets.py",
        "            self._waiter.end(error)\n",
        "            self._waiter.end(PeerLost(str(error)))\n",
        ENDS + "test_what_a_far_one_says_wrongly_is_told_as_such",
    ),
    Bug(
        "nobody is woken by work of the far part",
        "wire/sockets.py",
        "                self._waiter.wake()\n",
        "                pass\n",
        ENDS + "test_near_ones_are_served_while_a_far_one_is_waited_for",
    ),
    Bug(
        "whoever waits for a far replica does not see the end of near ones",
        JOINED,
        "        while not far.done():\n            self.near.move()\n",
        "",
        ENDS + "test_a_near_one_that_goes_away_ends_the_wait_for_a_far_one_where_something_is_due_from_it",
    ),
    Bug(
        "cancel does not reach the far part",
        JOINED,
        "        self.far.cancel(reason)\n",
        "",
        ENDS + "test_cancel_ends_work_of_the_far_part_that_nobody_waits_for",
    ),
    Bug(
        "a cancel that comes late is an error",
        "wire/shared_memory.py",
        "            if not self._closed:  # cancelled",
        "            if self._closed:  # cancelled",
        ENDS + "test_cancel_after_the_end_is_of_no_consequence",
    ),
    Bug(
        "joined work is done before the far part is",
        JOINED,
        "        return far.done() or self.near.look()\n",
        "        return True\n",
        ENDS + "test_work_is_done_once_both_parts_are",
    ),
    Bug(
        "a host adds up in the order of its replicas",
        HIERARCHICAL,
        "[tree.fold(n, known, _added) for n in self._own_nodes]",
        "[sum(known.values()), *[torch.zeros_like(next(iter(known.values())))] * (len(self._own_nodes) - 1)]",
        EACH_BIT,
    ),
    Bug(
        "what a host folds is what one replica of it has",
        HIERARCHICAL,
        "    return left.add_(right)\n",
        "    return left\n",
        EACH_BIT,
    ),
    Bug(
        "a mirror on another host gets new weights",
        HIERARCHICAL,
        "[gradient if r in self._holders else new]",
        "[new]",
        EACH_BIT,
    ),
    Bug(
        "a mirror passes its gradient on to those that want weights",
        RELAYS,
        "(rank in holders) == keep]",
        "keep]",
        PURE + "test_everybody_hears_of_each_owner_once_and_from_one_that_got_the_same" + " " + EACH_BIT,
    ),
    Bug(
        "one replica of a host does the work of all",
        RELAYS,
        "    return ranks[elsewhere(hosts, host).index(owner) % len(ranks)]\n",
        "    return ranks[0]\n",
        PURE + "test_no_replica_of_a_host_collects_for_two_owners_more_than_another",
    ),
    Bug(
        "neighbours on a host do not add up to larger subtrees",
        RELAYS,
        "runs[-1].stop == span.start",
        "False",
        PURE + "test_neighbours_of_a_host_add_up_to_larger_subtrees",
    ),
    Bug(
        "each replica sends to other hosts for itself",
        "replica/agreement.py",
        "relays.several(wire.hosts)",
        "False",
        "contracts/test_strategies.py::test_hosts_change_no_bit_and_the_sums_of_each_cross_together"
        + " plan/test_traffic.py::test_of_steps_on_several_hosts",
    ),
    Bug(
        "rounded numbers are predicted as if they were passed on",
        "plan/traffic.py",
        "self.formats == EXACT and ",
        "",
        "plan/test_traffic.py::test_of_steps_on_several_hosts",
    ),
    Bug(
        "all hosts get one file",
        "launch/hosts.py",
        "    return [order.index(name) for name in names]\n",
        "    return [0 for name in names]\n",
        ENGINE + " launch/test_hosts.py::test_hosts_are_numbered_as_their_members_appear",
    ),
    Bug(
        "replicas of one host speak through sockets where there are others",
        "replica/place.py",
        '        chosen = "joined"\n',
        '        chosen = "sockets"\n',
        PLACE,
    ),
    Bug(
        "a meeting that fails leaves the memory of the host open",
        "replica/place.py",
        "            until_all_are_there.callback(os.close, formation.memory)\n",
        "            pass\n",
        "replica/test_place.py::test_a_meeting_that_ends_too_early_leaves_nothing_open",
    ),
]
