"""What a replica says of what it works with."""

from types import SimpleNamespace

from samestep.replica.run import Run


def test_a_lack_of_memory_to_share_is_told_once_a_generation(told):
    control = told()
    run = Run(None, control, None, None, None, None, generation=1)
    run.wire = SimpleNamespace(shortage="")
    run.tell_of_shortage()
    assert control.events == []
    run.wire.shortage = "why"
    for run.generation in (1, 1, 2, 2):
        run.tell_of_shortage()
    assert control.events == [{"event": "shared_memory_failed", "reason": "why"}] * 2
