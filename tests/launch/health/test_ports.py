import socket

from tests.launch.health.sick import bound, doctor, needs_root, one


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        port, free = taken.getsockname()[1], other.getsockname()[1]
        other.close()
        found = doctor(tmp_path, "--ports", f"{port},{free}", code=4)
    told = one(found, "ports", "failure", f"port {port} is taken")
    assert f"sport = :{port}" in told["fix"] and not [each for each in found if str(free) in each["what"]]


def test_a_port_that_only_root_may_have(tmp_path):
    needs_root("setpriv")
    under = [word.replace("-dac_override", "-net_bind_service,-dac_override") for word in bound()]
    found = doctor(tmp_path, "--ports", "81", under=under, code=4)
    one(found, "ports", "failure", "nobody may listen at port 81 (EACCES)")
