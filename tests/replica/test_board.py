import os
import subprocess
import sys
import time
from pathlib import Path

from samestep.replica import board
from samestep.replica.board import Board, Phase, Wish


def test_a_line_a_replica_is_read_back_by_another_mapping():
    descriptor = board.create(3)
    writer, reader = Board(descriptor, 3), Board(descriptor, 3)
    try:
        assert reader.read(2) == (0, Phase.START, 0.0)
        writer.write(1, 2**40, Phase.EXCHANGE)
        writer.write(2, 7, Phase.SAVE)
        assert [reader.read(rank)[:2] for rank in range(3)] == [
            (0, Phase.START),
            (2**40, Phase.EXCHANGE),
            (7, Phase.SAVE),
        ]
    finally:
        writer.close()
        reader.close()
        os.close(descriptor)


def test_another_board_takes_all_wishes_as_they_are():
    descriptors = board.create(1), board.create(3)
    here, there = Board(descriptors[0], 1), Board(descriptors[1], 3)
    try:
        here.ask_to_gather(5)
        here.end(4)
        there.take(here.wishes())
        assert (there.wish(5), there.wish(6), there.is_over(4), there.is_over(5)) == (
            Wish.GATHER,
            Wish.NONE,
            True,
            False,
        )
        here.ask_to_stop()
        there.take(here.wishes())
        assert there.wish(6) is Wish.STOP and there.read(0).step == 0
    finally:
        for mapped, descriptor in zip((here, there), descriptors, strict=True):
            mapped.close()
            os.close(descriptor)


def test_a_line_that_is_told_of_has_the_time_that_was_told():
    descriptor = board.create(1)
    mapped = Board(descriptor, 1)
    try:
        mapped.write(0, 3, Phase.DATA, 12.5)
        assert mapped.read(0) == (3, Phase.DATA, 12.5)
    finally:
        mapped.close()
        os.close(descriptor)


def test_the_memory_has_no_name():
    descriptor = board.create(1)
    try:
        assert "(deleted)" in str(Path(f"/proc/self/fd/{descriptor}").readlink())
    finally:
        os.close(descriptor)


def test_a_line_tells_since_when_it_stands_by_the_clock_of_all_processes():
    descriptor = board.create(1)
    reader = Board(descriptor, 1)
    script = f"from samestep.replica.board import Board, Phase, Wish; Board({descriptor}, 1).write(0, 3, Phase.DATA)"
    try:
        before = time.monotonic()
        subprocess.run([sys.executable, "-c", script], pass_fds=[descriptor], check=True)
        line = reader.read(0)
        assert before < line.since < time.monotonic()
        assert (line.step, line.phase) == (3, Phase.DATA)
    finally:
        reader.close()
        os.close(descriptor)


def test_wishes_are_no_line_of_a_replica_and_to_stop_is_the_strongest():
    descriptor = board.create(2)
    asking, asked = Board(descriptor, 2), Board(descriptor, 2)
    try:
        asked.write(1, 5, Phase.DATA)
        assert asked.wish(3) is Wish.NONE
        asking.ask_to_gather(3)
        assert [asked.wish(generation) for generation in (2, 3, 4)] == [Wish.NONE, Wish.GATHER, Wish.NONE]
        asking.ask_to_stop()
        assert [asked.wish(generation) for generation in (2, 3, 4)] == [Wish.STOP] * 3
        assert asking.read(1)[:2] == (5, Phase.DATA)
    finally:
        asking.close()
        asked.close()
        os.close(descriptor)
