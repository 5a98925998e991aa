/* Checksums by every way that this processor has, against the definition: a program for tools/releasing/cross.py. No Python.
 *
 * It compares bytes of all lengths and alignments, slots, headers with payloads, and the linear map with its portable version.
 */
#include "crc32c.h"
#include "linear.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BYTES 4200
#define WORDS 16

static unsigned char bytes[BYTES + 64];
static uint64_t state = 1;

static uint64_t draw(void)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * UINT64_C(2685821657736338717);
}

/* As RFC 3720 defines it, one bit at a time. */
static uint32_t defined(uint32_t crc, const void *data, size_t length)
{
    const unsigned char *at = data;
    for (crc = ~crc; length--; at++) {
        crc ^= *at;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0x82F63B78) : 0);
    }
    return ~crc;
}

static uint32_t defined_words(uint32_t crc, uint64_t place, const uint64_t *words, size_t count)
{
    crc = defined(crc, &place, sizeof place);
    return defined(crc, (const unsigned char *)words + 4, 8 * count - 4);
}

static void expect(bool same, const char *way, const char *what, size_t length)
{
    if (same)
        return;
    printf("wrong: %s, %s of length %zu\n", way, what, length);
    exit(1);
}

static void check_way(const struct crc32c_way *way)
{
    uint64_t words[WORDS];
    for (size_t i = 0; i < WORDS; i++)
        words[i] = draw();
    for (size_t length = 0; length <= BYTES; length += length < 600 ? 1 : 37)
        for (size_t start = 0; start < 64; start += length < 300 ? 1 : 13) {
            uint32_t seed = (uint32_t)draw();
            uint32_t expected = defined(seed, bytes + start, length);
            expect(way->bytes(seed, bytes + start, length) == expected, way->name, "bytes", length);
        }
    for (size_t count = 1; count <= WORDS; count++) {
        uint64_t place = draw();
        expect(way->words(7, place, words, count) == defined_words(7, place, words, count), way->name, "words", count);
    }
    for (size_t length = 0; length <= BYTES; length += length < 600 ? 1 : 37) {
        struct crc32c_header header = {draw(), words};
        uint32_t expected = defined(defined_words(7, header.place, words, 6), bytes, length);
        expect(way->record(7, header, bytes, length) == expected, way->name, "record", length);
    }
}

static void check_linear(void)
{
    static uint32_t one[BYTES / 8 + 1], other[BYTES / 8 + 1];
    linear.registers(5, bytes, BYTES / 8, one);
    linear_portable.registers(5, bytes, BYTES / 8, other);
    for (size_t word = 0; word <= BYTES / 8; word++) {
        expect(one[word] == other[word], "linear", "registers", word);
        expect(one[word] == ~defined(~UINT32_C(5), bytes, 8 * word), "linear", "register", word);
    }
    for (uint64_t distance = 1; distance < LINEAR_MAX; distance *= 3)
        expect(linear.shift(9, distance) == linear_portable.shift(9, distance), "linear", "shift", (size_t)distance);
}

int main(void)
{
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (unsigned char)draw();
    crc32c_setup();
    linear_setup();
    const struct crc32c_way *way;
    for (size_t i = 0; (way = crc32c_way(i)); i++) {
        check_way(way);
        printf("%s ", way->name);
    }
    check_linear();
    printf("right\n");
    return 0;
}
