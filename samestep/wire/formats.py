"""The formats in which numbers travel, and how many bytes they take. Pure functions of integers.

int8 and int4 are whole numbers times a scale, one scale to a *block* of 256 elements. Blocks lie at fixed places of the
flat buffer, and slices are made of whole ones, so that no scale depends on who has which part.
"""

from typing import NamedTuple

BLOCK = 256  # elements with one scale, which is a byte
LIMITS = {"int8": 127, "int4": 7}  # the largest whole number of one lane or of one new weight
BYTES = {"float32": 4, "bfloat16": 2}
WIDTHS = (4, 8, 16, 32)  # bits of a whole number on its way


class Formats(NamedTuple):
    """Of what is added up, and of the new weights that are sent round."""

    sums: str = "float32"
    weights: str = "float32"

    @property
    def rounded(self) -> bool:
        return self != EXACT


EXACT = Formats()


def blocks(count: int) -> int:
    return -(-count // BLOCK)


def bits(most: int) -> int:
    """The least width that holds whole numbers from -most to most."""
    return next(width for width in WIDTHS if most < 1 << (width - 1))


def of_sums(format: str, count: int, lanes: int) -> int:
    """Bytes of one partial sum of `count` elements over so many lanes, without its scales."""
    return BYTES[format] * count if format in BYTES else count * bits(LIMITS[format] * lanes) // 8


def of_weights(format: str, count: int) -> int:
    """Bytes of `count` new weights, with their scales."""
    return BYTES[format] * count if format in BYTES else count * bits(LIMITS[format]) // 8 + blocks(count)
