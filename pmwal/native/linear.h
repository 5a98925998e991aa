/* CRC-32C as a linear map: the checksum of any range from the checksums of two prefixes.
 *
 * A register is the state of a CRC between two bytes; a checksum is the register inverted. Without the inversions it is linear: with
 * S(x) the register over the bytes before x, begun with 0, the register `r` continued over [x, y) is shift(r ^ S(x), y - x) ^ S(y),
 * where shift(r, n) multiplies by x^(8n) mod P. So a record costs the same whatever its length.
 */
#ifndef PMWAL_LINEAR_H
#define PMWAL_LINEAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LINEAR_MAX (UINT64_C(1) << 33) /* exclusive limit of the distance of a shift */

/* Bytes that follow a register which is known: `crc` is the first word's low half, `place` the seed, `length` the bytes after. */
struct linear_join {
    uint64_t place, length;
    uint32_t before; /* the register over the bytes before `crc` */
    uint32_t crc;
};

/* A candidate that ends `end` bytes after some place, if the register there is `wanted`; and where it starts, which is its owner's. */
struct linear_end {
    uint64_t start;
    uint32_t end, wanted;
};

struct linear {
    /* registers[i] is the register after i words, begun with `start`; count + 1 of them. */
    void (*registers)(uint32_t start, const void *bytes, size_t count, uint32_t *registers);

    /* shift(start, bytes), below LINEAR_MAX. */
    uint32_t (*shift)(uint32_t start, uint64_t bytes);

    /* For each join, which register there must be after its `length` bytes (the crc itself is not one of them) if they have the
     * checksum `crc`, seeded with `seed` and the place. */
    void (*join)(uint32_t seed, const struct linear_join *joins, size_t count, uint32_t *wanted);

    /* Moves to the front those whose wanted register is there, and returns how many. Each ends at least one byte after the place,
     * and at most where the registers of these bytes do. */
    size_t (*match)(const uint32_t *registers, const void *bytes, struct linear_end *ends, size_t count);
};

/* Once, after crc32c_setup(). */
void linear_setup(void);

/* The implementation for this processor, and the one in plain C. Both give the same results. */
extern struct linear linear;
extern const struct linear linear_portable;

#endif
