"""CRC-32C as a linear map, for whole arrays at once: what pmwal/native/linear.c does for the native engine.

A register is the state of a checksum between two bytes: the checksum inverted. Without the inversions a checksum is linear, so that
of any range follows from the registers at its ends: see pmwal/native/linear.h.
"""

from __future__ import annotations

from functools import cache

from pmwal.format.numerics import np, npt
from pmwal.native.checksum import crc32c

Words = npt.NDArray[np.uint64]
Registers = npt.NDArray[np.uint32]

_POLYNOMIAL = 0x82F63B78  # bit-reflected
_ONES = 0xFFFFFFFF
_DIGIT_BITS = 11
_RADIX = 1 << _DIGIT_BITS
_LINE = 8  # words between two registers that the crc32c package computes
_BLOCK = 1 << 15  # elements of an operation that stay in the processor's cache
_ORDER = (1 << 31) - 1  # that of x, and of x^8: P is x + 1 times a primitive polynomial of degree 31


def registers(start: int, raw: memoryview | bytes) -> Registers:
    """The register before each word of ``raw``, begun with ``start``, and the one after the last."""
    words = np.frombuffer(raw, "<u8")
    lines = -(-len(words) // _LINE)
    table = np.empty((lines + 1, _LINE), np.uint32)
    inverted, view = start ^ _ONES, memoryview(raw)
    firsts = [inverted]
    for line in range(lines):
        inverted = crc32c(view[8 * _LINE * line : 8 * _LINE * (line + 1)], inverted)
        firsts.append(inverted)
    table[:, 0] = np.array(firsts, np.uint32) ^ np.uint32(_ONES)
    padded = np.zeros(lines * _LINE, np.uint64)
    padded[: len(words)] = words
    columns = padded.reshape(lines, _LINE)
    for column in range(_LINE - 1):
        table[:lines, column + 1] = _step_words(table[:lines, column], columns[:, column])
    flat = table.reshape(-1)
    flat[len(words)] = table[lines, 0]  # what follows zeros that pad the last line is not what follows its last word
    return flat[: len(words) + 1]


def step(start: Registers, words: Words, counts: npt.NDArray[np.integer]) -> Registers:
    """The registers after the low ``counts`` bytes (0 to 8) of these words."""
    bits = counts.astype(np.uint64) * np.uint64(8)
    # The bytes are moved to the word's top: zeros before them leave a register of 0 as it is.
    full = bits == 64
    shifted = np.where(full, np.uint64(0), np.uint64(56) - np.minimum(bits, np.uint64(56)))
    placed = (words ^ start) << shifted
    placed = np.where(full, placed, placed << np.uint64(8))
    rest = np.where(bits < 32, start.astype(np.uint64) >> bits, np.uint64(0))
    return _step_words(np.zeros(len(words), np.uint32), placed) ^ rest.astype(np.uint32)


def crc_after_zeros(crc: int, count: int) -> int:
    """The checksum after ``count`` more bytes, all of them zeros."""
    if not count:
        return crc
    moved = shift(np.array([crc ^ _ONES], np.uint32), np.array([count], np.uint64))
    return int(moved[0]) ^ _ONES


def shift(start: Registers, distances: Words) -> Registers:
    """The registers after ``distances`` bytes of zeros."""
    moved = np.empty(len(start), np.uint32)
    for first in range(0, len(start), _BLOCK):
        block = slice(first, first + _BLOCK)
        part, rest = start[block], distances[block] % np.uint64(_ORDER)
        for factors in _factors():
            digits = rest & np.uint64(_RADIX - 1)
            if digits.any():
                part = _multiply(part, factors[digits])
            rest = rest >> np.uint64(_DIGIT_BITS)
        moved[block] = part
    return moved


def _step_words(start: Registers, words: Words) -> Registers:
    tables = _tables()
    columns = (words ^ start).view(np.uint8).reshape(-1, 8)
    result: Registers = tables[7][columns[:, 0]]
    for column in range(1, 8):
        result ^= tables[7 - column][columns[:, column]]
    return result


def _multiply(values: Registers, factors: Registers) -> Registers:
    """The products; the reducing step multiplies by x^33, which the factors make up for."""
    wide, product = values.astype(np.uint64), np.zeros(len(values), np.uint64)
    for bit in range(32):
        product ^= np.where(factors & np.uint32(1 << bit), wide, np.uint64(0))
        wide <<= np.uint64(1)
    return _step_words(np.zeros(len(values), np.uint32), product)


@cache
def _tables() -> Registers:
    table = np.empty((8, 256), np.uint32)
    row = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        row = np.where(row & 1, (row >> np.uint32(1)) ^ np.uint32(_POLYNOMIAL), row >> np.uint32(1)).astype(np.uint32)
    table[0] = row
    for index in range(1, 8):
        table[index] = (table[index - 1] >> np.uint32(8)) ^ row[table[index - 1] & np.uint32(0xFF)]
    return table


@cache
def _factors() -> tuple[Registers, ...]:
    """For each digit of a distance and each value of it, the factor that moves a register so far: x^(8 value RADIX^digit - 33)."""
    one = 1 << 31
    for _ in range(33):  # divide by x
        one = (((one ^ _POLYNOMIAL) << 1) | 1) & _ONES if one >> 31 else one << 1
    unit = one
    for _ in range(8):
        unit = (unit >> 1) ^ _POLYNOMIAL if unit & 1 else unit >> 1
    digits = []
    step_of = np.array([unit], np.uint32)
    for _ in range(3):
        factors = np.array([one], np.uint32)
        while len(factors) < _RADIX:
            factors = np.concatenate([factors, _multiply(factors, np.repeat(step_of, len(factors)))])
            step_of = _multiply(step_of, step_of)
        digits.append(factors)
    return tuple(digits)
