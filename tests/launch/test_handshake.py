"""Only who knows the token is let in, on either side, and an old call is worth nothing."""

import socket
import threading

import pytest

from samestep.launch import handshake

TOKEN, OTHER = b"t" * 32, b"o" * 32


def test_a_call_with_the_token_is_answered():
    asked, own = handshake.challenge(), handshake.challenge()
    assert handshake.answer(TOKEN, asked, handshake.call(TOKEN, asked, own)) is not None


def test_a_call_without_the_token_or_to_another_challenge_is_not_answered():
    asked, own = handshake.challenge(), handshake.challenge()
    assert handshake.answer(TOKEN, asked, handshake.call(OTHER, asked, own)) is None
    assert handshake.answer(TOKEN, handshake.challenge(), handshake.call(TOKEN, asked, own)) is None


def test_neither_proof_can_be_used_as_the_other():
    asked, own = handshake.challenge(), handshake.challenge()
    call = handshake.call(TOKEN, asked, own)
    assert call[handshake.CHALLENGE :] != handshake.answer(TOKEN, asked, call)


def greeted(engine):
    """What a nurse makes of an engine. engine: called with the other end of its line."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=engine, args=(theirs,))
        thread.start()
        try:
            handshake.greet(ours, TOKEN)
        finally:
            thread.join()


def engine(token):
    def speak(line):
        asked = handshake.challenge()
        line.sendall(asked)
        said = line.recv(handshake.CALL)
        line.sendall(handshake.answer(token, asked, said) or handshake.challenge())

    return speak


def test_a_nurse_believes_an_engine_that_knows_the_token():
    greeted(engine(TOKEN))


def test_a_nurse_hangs_up_on_an_engine_that_does_not():
    with pytest.raises(ConnectionError, match="a stranger answers"):
        greeted(engine(OTHER))


def test_a_nurse_hangs_up_on_one_that_hangs_up():
    with pytest.raises(ConnectionError, match="hung up"):
        greeted(lambda line: line.shutdown(socket.SHUT_RDWR))
