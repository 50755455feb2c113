import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import RecipeError
from samestep.sync import tree
from samestep.sync.tree import Node

LANES = st.integers(1, 200)


def written_out(values):
    """The tree of DESIGN section 2, level by level: an odd one out passes up."""
    while len(values) > 1:
        pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
        values = [f"({'+'.join(pair)})" if len(pair) == 2 else pair[0] for pair in pairs]
    return values[0]


def test_seven_lanes_are_added_as_the_docstring_says():
    known = {Node(i, i + 1): f"g{i}" for i in range(7)}
    assert tree.fold(Node(0, 7), known, lambda a, b: f"({a} + {b})") == "(((g0 + g1) + (g2 + g3)) + ((g4 + g5) + g6))"


@given(LANES)
def test_the_tree_adds_neighbours_level_by_level(lanes):
    known = {Node(i, i + 1): str(i) for i in range(lanes)}
    assert tree.fold(Node(0, lanes), known, lambda a, b: f"({a}+{b})") == written_out([str(i) for i in range(lanes)])


@given(LANES, st.data())
def test_partial_sums_of_any_replicas_fold_to_the_same_tree(lanes, data):
    replicas = data.draw(st.integers(1, lanes))
    leaves = {Node(i, i + 1): str(i) for i in range(lanes)}

    def join(a, b):
        return f"({a}+{b})"

    nodes = [part for span in tree.spans(lanes, replicas) for part in tree.parts(lanes, span)]
    partial = {node: tree.fold(node, leaves, join) for node in nodes}
    assert tree.fold(Node(0, lanes), partial, join) == tree.fold(Node(0, lanes), leaves, join)


@given(LANES, st.data())
def test_spans_cover_every_lane_once_and_leave_no_replica_idle(lanes, data):
    replicas = data.draw(st.integers(1, lanes))
    spans = tree.spans(lanes, replicas)
    assert [lane for span in spans for lane in span] == list(range(lanes))
    assert all(len(span) > 0 for span in spans)
    assert max(map(len, spans)) <= -(-lanes // replicas) * (1 + tree.IDLE_FOR_WHOLE_SUBTREES)


@given(LANES, st.data())
def test_parts_are_the_fewest_subtrees_that_make_up_a_span(lanes, data):
    replicas = data.draw(st.integers(1, lanes))
    for span in tree.spans(lanes, replicas):
        parts = tree.parts(lanes, span)
        assert [lane for part in parts for lane in range(*part)] == list(span)
        siblings = {node.children() for node in nodes_of(Node(0, lanes)) if node.stop - node.start > 1}
        assert not any((a, b) in siblings for a, b in itertools.pairwise(parts))


def nodes_of(node):
    if node.stop - node.start == 1:
        return [node]
    left, right = node.children()
    return [node, *nodes_of(left), *nodes_of(right)]


@given(LANES)
def test_merges_build_the_tree_on_a_stack_of_logarithmic_depth(lanes):
    stack, deepest = [], 0
    for lane, count in enumerate(tree.merges(Node(0, lanes))):
        stack.append(str(lane))
        deepest = max(deepest, len(stack))
        for _ in range(count):
            right = stack.pop()
            stack.append(f"({stack.pop()}+{right})")
    assert stack == [written_out([str(i) for i in range(lanes)])]
    assert deepest <= lanes.bit_length() + 1


def test_whole_subtrees_are_preferred_where_they_idle_nobody_for_long():
    assert [len(span) for span in tree.spans(100, 3)] == [32, 32, 36]  # 2 lanes over the longest even span
    assert [len(tree.parts(100, span)) for span in tree.spans(100, 3)] == [1, 1, 1]
    assert [len(span) for span in tree.spans(8, 3)] == [2, 3, 3]  # a fourth lane would idle the others


def test_more_replicas_than_lanes_are_refused():
    with pytest.raises(RecipeError, match="5 replicas cannot share 4 lanes"):
        tree.spans(4, 5)


def test_totals_add_in_the_order_of_the_tree():
    values = [1e16, 1.0, -1e16, 1.0]
    assert tree.total(values) == (1e16 + 1.0) + (-1e16 + 1.0) != sum(values)
