"""How processes of one launch find process 0, and nobody else does."""

import json
import socket
import threading
import time

import pytest

from samestep.errors import ClusterError
from samestep.launch import rendezvous
from samestep.launch.rendezvous import Reception, answered, call
from samestep.launch.started import Started


def me(index=0, size=3, job="job", hint="127.0.0.1", sure=False):
    return Started("torchrun", index, size, job, hint, sure)


@pytest.fixture
def reception(tmp_path):
    made = Reception(me(), tmp_path)
    yield made
    made.close()


def in_background(work, *arguments):
    found = []
    thread = threading.Thread(target=lambda: found.append(work(*arguments)))
    thread.start()
    return thread, found


def the_file(run):
    (found,) = (run / "launch").glob("*.json")
    return found


def test_all_are_connected_once_each_has_proved_itself(tmp_path, reception):
    thread, found = in_background(reception.receive, 10.0, lambda: False)
    others = [call(me(index), tmp_path, 5.0) for index in (2, 1)]
    assert [answered(other) for other in others] == [True, True]
    thread.join()
    (lines,) = found
    for index, other in zip((2, 1), others, strict=True):
        lines[index].sendall(b"to %d" % index)
        assert other.line.recv(9) == b"to %d" % index
        assert other.address == "127.0.0.1"
        other.line.close()
        lines[index].close()


def test_process_0_may_come_last(tmp_path):
    thread, found = in_background(call, me(1, 2), tmp_path, 10.0)
    time.sleep(0.3)
    reception = Reception(me(size=2), tmp_path)
    thread.join()
    received, lines = in_background(reception.receive, 10.0, lambda: False)
    assert answered(found[0])
    received.join()
    for line in (found[0].line, *lines[0].values()):
        line.close()
    reception.close()


def test_a_file_that_an_earlier_life_left_leads_to_nobody_and_is_read_again(tmp_path):
    old = Reception(me(size=2), tmp_path)
    left = the_file(tmp_path).read_text()
    old.close()
    the_file_was = tmp_path / "launch" / (rendezvous._file(tmp_path, me()).name)
    the_file_was.write_text(left)
    thread, found = in_background(call, me(1, 2), tmp_path, 10.0)
    time.sleep(0.3)
    assert thread.is_alive()
    new = Reception(me(size=2), tmp_path)
    thread.join()
    assert found[0].line.getpeername()[1] == new.door.port
    found[0].line.close()
    new.close()


def test_one_with_another_secret_is_not_answered(tmp_path, reception):
    said = json.loads(the_file(tmp_path).read_text())
    the_file(tmp_path).write_text(json.dumps(said | {"secret": "00" * 32}))
    stranger = call(me(1), tmp_path, 5.0)
    with pytest.raises(ClusterError, match=r"processes 1, 2 did not come within 0\.5 s"):
        reception.receive(0.5, lambda: False)
    assert not answered(stranger)


def test_the_secret_is_for_its_owner_only_and_the_file_goes_with_process_0(tmp_path):
    reception = Reception(me(), tmp_path)
    assert the_file(tmp_path).stat().st_mode & 0o777 == 0o600
    reception.close()
    assert list((tmp_path / "launch").iterdir()) == []


def test_those_that_do_not_come_are_named(tmp_path, reception):
    came = call(me(1), tmp_path, 5.0)
    with pytest.raises(ClusterError, match=r"started 3 processes, but process 2 did not come within 0\.5 s"):
        reception.receive(0.5, lambda: False)
    came.line.close()


def test_a_stop_ends_the_waiting(reception):
    with pytest.raises(ClusterError, match="asked to stop before all processes had come"):
        reception.receive(60.0, lambda: True)


def test_without_process_0_the_folder_is_named(tmp_path):
    with pytest.raises(ClusterError, match=r"process 1 of 3 has waited 0\.3 s .* whether its host shares"):
        call(me(1), tmp_path, 0.3)


def test_a_process_0_that_does_not_answer_is_named_with_its_address(tmp_path, reception):
    said = json.loads(the_file(tmp_path).read_text())
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    the_file(tmp_path).write_text(json.dumps(said | {"port": port}))
    with pytest.raises(ClusterError, match=rf"127\.0\.0\.1:{port} does not answer .*refused.*let its host be reached"):
        call(me(1), tmp_path, 0.3)


def test_those_that_call_too_late_are_told_why(tmp_path, reception):
    thread, _ = in_background(reception.turn_away, b'{"do":"end"}\n')
    late = call(me(2), tmp_path, 5.0)
    assert answered(late)
    assert late.line.recv(99) == b'{"do":"end"}\n'
    late.line.close()
    thread.join()


@pytest.mark.parametrize(("hint", "says"), [("192.0.2.7", "nobody can listen"), ("no.such.host.invalid", "no address")])
def test_a_wrong_address_of_process_0_is_refused(tmp_path, hint, says):
    with pytest.raises(ClusterError, match=rf"MASTER_ADDR is {hint}.*{says}.*set it to"):
        Reception(me(hint=hint, sure=True), tmp_path)
