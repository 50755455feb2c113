import os
from pathlib import Path

from samestep.replica import board
from samestep.replica.board import Board, Phase


def test_a_line_a_replica_is_read_back_by_another_mapping():
    descriptor = board.create(3)
    writer, reader = Board(descriptor, 3), Board(descriptor, 3)
    try:
        assert reader.read(2) == (0, Phase.START)
        writer.write(1, 2**40, Phase.EXCHANGE)
        writer.write(2, 7, Phase.SAVE)
        assert [reader.read(rank) for rank in range(3)] == [
            (0, Phase.START),
            (2**40, Phase.EXCHANGE),
            (7, Phase.SAVE),
        ]
    finally:
        writer.close()
        reader.close()
        os.close(descriptor)


def test_the_memory_has_no_name():
    descriptor = board.create(1)
    try:
        assert "(deleted)" in str(Path(f"/proc/self/fd/{descriptor}").readlink())
    finally:
        os.close(descriptor)
