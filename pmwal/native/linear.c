#include "linear.h"

#include <assert.h>
#include <string.h>

#include "check.h"
#include "crc32c.h"

#define POLYNOMIAL UINT32_C(0x82f63b78) /* bit-reflected */
#define DIGIT_BITS 11
#define DIGITS 3
#define RADIX (1u << DIGIT_BITS)
#define MASK (RADIX - 1)

static_assert((UINT64_C(1) << DIGIT_BITS * DIGITS) == LINEAR_MAX, "the digits of a distance");

/* factors[k][d] moves a register over d * RADIX^k bytes: x^(8 d RADIX^k - 33). The reducing step itself multiplies by x^33. */
static uint32_t factors[DIGITS][RADIX];

static uint32_t step(uint32_t start, uint64_t word, unsigned bytes)
{
    return ~crc32c(~start, &word, bytes);
}

/* The product of two polynomials, by four bits of `by` at a time. */
static uint64_t product(uint32_t value, uint32_t by)
{
    uint64_t multiples[16] = {0, value}, sum = 0;
    for (int i = 2; i < 16; i += 2) {
        multiples[i] = multiples[i / 2] << 1;
        multiples[i + 1] = multiples[i] ^ value;
    }
    for (int shift = 28; shift >= 0; shift -= 4)
        sum = sum << 4 ^ multiples[by >> shift & 15];
    return sum;
}

static uint32_t moved(uint32_t value, uint32_t factor)
{
    return step(0, product(value, factor), 8);
}

static uint32_t shift(uint32_t start, uint64_t bytes)
{
    PMWAL_CHECK(bytes < LINEAR_MAX);
    for (int digit = 0; bytes; digit++, bytes >>= DIGIT_BITS)
        start = moved(start, factors[digit][bytes & MASK]);
    return start;
}

static void registers(uint32_t start, const void *bytes, size_t count, uint32_t *to)
{
    const unsigned char *at = bytes;
    to[0] = start;
    for (size_t i = 0; i < count; i++)
        to[i + 1] = ~crc32c(~to[i], at + 8 * i, 8);
}

static void join(uint32_t seed, const struct linear_join *joins, size_t count, uint32_t *wanted)
{
    for (size_t i = 0; i < count; i++) {
        const struct linear_join *join = &joins[i];
        uint32_t difference = step(seed, join->place, 8) ^ step(join->before, join->crc, 4);
        wanted[i] = shift(difference, join->length) ^ ~join->crc;
    }
}

static size_t match(const uint32_t *registers, const void *bytes, struct linear_end *ends, size_t count)
{
    size_t matching = 0;
    for (size_t i = 0; i < count; i++) {
        struct linear_end end = ends[i];
        if (~crc32c(~registers[end.end / 8], (const unsigned char *)bytes + end.end / 8 * 8, end.end % 8) == end.wanted)
            ends[matching++] = end;
    }
    return matching;
}

static void fill_factors(void)
{
    uint32_t one = UINT32_C(1) << 31;
    for (int i = 0; i < 33; i++) /* divide by x */
        one = one >> 31 ? (one ^ POLYNOMIAL) << 1 | 1 : one << 1;
    for (int digit = 0; digit < DIGITS; digit++) {
        uint32_t unit;
        if (digit)
            unit = moved(factors[digit - 1][RADIX - 1], factors[digit - 1][1]);
        else {
            unit = one;
            for (int bit = 0; bit < 8; bit++)
                unit = unit & 1 ? unit >> 1 ^ POLYNOMIAL : unit >> 1;
        }
        factors[digit][0] = one;
        for (unsigned value = 1; value < RADIX; value++)
            factors[digit][value] = moved(factors[digit][value - 1], unit);
    }
}

const struct linear linear_portable = {registers, shift, join, match};
struct linear linear = {registers, shift, join, match};

#if defined(__x86_64__)
#include <immintrin.h>

#define HARDWARE __attribute__((target("sse4.2,pclmul")))

HARDWARE static inline uint32_t moved_sse42(uint32_t value, uint32_t factor)
{
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi32_si128((int)value), _mm_cvtsi32_si128((int)factor), 0);
    return (uint32_t)_mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

HARDWARE static inline uint32_t shift_inline(uint32_t start, uint64_t bytes)
{
    start = moved_sse42(start, factors[0][bytes & MASK]);
    if (bytes >> DIGIT_BITS) {
        start = moved_sse42(start, factors[1][bytes >> DIGIT_BITS & MASK]);
        start = moved_sse42(start, factors[2][bytes >> 2 * DIGIT_BITS]);
    }
    return start;
}

HARDWARE static uint32_t shift_sse42(uint32_t start, uint64_t bytes)
{
    return shift_inline(start, bytes);
}

HARDWARE static void registers_sse42(uint32_t start, const void *bytes, size_t count, uint32_t *to)
{
    const unsigned char *at = bytes;
    uint64_t crc = start, word;
    to[0] = start;
    for (size_t i = 0; i < count; i++) {
        memcpy(&word, at + 8 * i, 8);
        crc = _mm_crc32_u64(crc, word);
        to[i + 1] = (uint32_t)crc;
    }
}

HARDWARE static void join_sse42(uint32_t seed, const struct linear_join *joins, size_t count, uint32_t *wanted)
{
    for (size_t i = 0; i < count; i++) {
        const struct linear_join *join = &joins[i];
        uint32_t seeded = (uint32_t)_mm_crc32_u64(seed, join->place), before = _mm_crc32_u32(join->before, join->crc);
        wanted[i] = shift_inline(seeded ^ before, join->length) ^ ~join->crc;
    }
}

/* Without a branch on the length: the bytes after the last whole word are moved to a word's top, because zeros before them leave a
 * register of 0 as it is; and what they do not reach of the old register is added afterwards. */
HARDWARE static size_t match_sse42(const uint32_t *registers, const void *bytes, struct linear_end *ends, size_t count)
{
    size_t matching = 0;
    for (size_t i = 0; i < count; i++) {
        struct linear_end end = ends[i];
        uint64_t word, before = registers[end.end / 8], bits = end.end % 8 * 8;
        memcpy(&word, (const unsigned char *)bytes + (end.end - 1) / 8 * 8, 8);
        uint64_t last = _mm_crc32_u64(0, (word ^ before) << (56 - bits) << 8) ^ before >> bits;
        if ((uint32_t)last == end.wanted)
            ends[matching++] = end;
    }
    return matching;
}

void linear_setup(void)
{
    fill_factors();
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul"))
        linear = (struct linear){registers_sse42, shift_sse42, join_sse42, match_sse42};
}

#else

void linear_setup(void)
{
    fill_factors();
}

#endif
