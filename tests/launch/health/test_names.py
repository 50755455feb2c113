"""Hosts files and name servers that lead astray, and hosts that do not answer."""

import sys

import pytest
from lab import lab

from tests.launch.health.sick import doctor, one, shell


@pytest.fixture
def hosts_file(tmp_path):
    """What to put before a command so that it sees these lines, and that this machine is called `me`."""

    def made(*lines, name="me"):
        (tmp_path / "hosts").write_text("\n".join([*lines, ""]))
        (tmp_path / "resolv").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        binds = [
            f"mount --bind {tmp_path}/{file} /etc/{at}" for file, at in (("hosts", "hosts"), ("resolv", "resolv.conf"))
        ]
        command = shell(*binds, f"hostname {name}")
        return [command[0], "-u", *command[1:]]

    return made


def test_an_own_name_that_leads_nowhere(tmp_path, hosts_file):
    found = doctor(tmp_path, under=hosts_file("127.0.0.1 localhost"), code=0)
    one(found, "names", "warning", "this machine's own name me leads nowhere")


def test_an_own_name_that_leads_to_another_machine(tmp_path, hosts_file):
    found = doctor(tmp_path, under=hosts_file("127.0.0.1 localhost", "192.0.2.9 me"), code=0)
    one(found, "names", "warning", "own name me leads to 192.0.2.9, another machine")


def test_a_localhost_that_is_not_here(tmp_path, hosts_file):
    found = doctor(tmp_path, under=hosts_file("192.0.2.9 localhost", "127.0.0.1 me"), code=0)
    one(found, "names", "warning", "localhost leads to 192.0.2.9")


DEAF = """
import os, socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
os.set_inheritable(server.fileno(), True)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_a_name_server_that_does_not_answer(tmp_path, hosts_file):
    under = hosts_file("127.0.0.1 localhost")
    (tmp_path / "resolv").write_text("nameserver 127.0.0.1\noptions timeout:30\n")
    deaf = ["unshare", "-n", "sh", "-ec", 'ip link set lo up\nexec "$@"', "sh", sys.executable, "-c", DEAF]
    found = doctor(tmp_path, under=[*deaf, *under], code=0)
    one(found, "names", "warning", "looking up me takes more than 8 s")


def test_a_host_whose_name_is_not_known(tmp_path, hosts_file):
    under = hosts_file("127.0.0.1 localhost me")
    one(doctor(tmp_path, "--hosts", "gpu7", under=under, code=4), "hosts", "failure", "gpu7 leads nowhere")


def test_a_host_whose_name_leads_to_the_loopback(tmp_path, hosts_file):
    under = hosts_file("127.0.0.1 localhost me", "127.0.1.1 gpu1")
    found = doctor(tmp_path, "--hosts", "gpu1", under=under, code=4)
    one(found, "hosts", "failure", "gpu1 leads to 127.0.1.1, the loopback")


@pytest.mark.slow
def test_a_host_that_is_down_and_one_that_answers(tmp_path):
    with lab(3) as hosts:
        hosts.cut("h2")
        under = hosts.hosts["h0"]["start"].split()
        found = doctor(tmp_path, "--hosts", "10.77.0.2,10.77.0.3", under=under, code=4)
    told = [each for each in found if each["check"] == "hosts"]
    assert len(told) == 1 and "10.77.0.3 (10.77.0.3) does not answer" in told[0]["what"]
