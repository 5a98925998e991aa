/* CRC-32C.
 *
 * One CRC instruction takes 3 cycles, but a new one can start in each, so three independent streams over adjacent blocks keep the
 * unit busy. Two of them are then combined with the third by carry-less multiplications with x^n mod P, which a CRC instruction
 * reduces (Gopal et al., "Fast CRC computation for iSCSI polynomial using CRC32 instruction", Intel, 2011).
 */
#include "crc32c.h"

#include <string.h>

#include "check.h"

#define HEADER_WORDS 6
#define POLYNOMIAL UINT32_C(0x82f63b78) /* bit-reflected */

static uint32_t table[8][256];
static const char *chosen = "table";

static void fill_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? (crc >> 1) ^ POLYNOMIAL : crc >> 1;
        table[0][byte] = crc;
    }
    for (int row = 1; row < 8; row++)
        for (uint32_t byte = 0; byte < 256; byte++)
            table[row][byte] = (table[row - 1][byte] >> 8) ^ table[0][table[row - 1][byte] & 0xff];
}

uint32_t crc32c_table(uint32_t crc, const void *data, size_t length)
{
    const unsigned char *at = data;
    PMWAL_CHECK(table[0][1]); /* crc32c_setup() came first */
    crc = ~crc;
    for (; length >= 8; at += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        word ^= crc;
        crc = 0;
        for (int byte = 0; byte < 8; byte++)
            crc ^= table[7 - byte][(word >> (8 * byte)) & 0xff];
    }
    for (; length; at++, length--)
        crc = (crc >> 8) ^ table[0][(crc ^ *at) & 0xff];
    return ~crc;
}

uint32_t (*crc32c)(uint32_t crc, const void *data, size_t length) = crc32c_table;

static uint32_t words_in_turn(uint32_t crc, uint64_t place, const uint64_t *words, size_t count)
{
    crc = crc32c(crc, &place, sizeof place);
    return crc32c(crc, (const unsigned char *)words + 4, 8 * count - 4);
}

uint32_t (*crc32c_words)(uint32_t crc, uint64_t place, const uint64_t *words, size_t count) = words_in_turn;

static uint32_t record_in_turn(uint32_t crc, struct crc32c_header header, const void *payload, size_t length)
{
    return crc32c(crc32c_words(crc, header.place, header.words, HEADER_WORDS), payload, length);
}

uint32_t (*crc32c_record)(uint32_t crc, struct crc32c_header header, const void *payload, size_t length) = record_in_turn;

#if defined(__x86_64__)
#include <immintrin.h>

#define HARDWARE __attribute__((target("sse4.2,pclmul")))
#define WORDS_MAX 512 /* words in each of three streams */
#define WORDS_MIN 4   /* below it one stream is as fast */
#define SHORT_MIN 32  /* payloads from this length on are two streams beside the header's */
#define SHORT_MAX 512 /* payloads from this length on are faster in three streams */
#define PREFETCH_MIN 64 /* words in a stream from which prefetching pays */

static uint32_t by_one[WORDS_MAX + 1], by_two[WORDS_MAX + 1]; /* factors that move a checksum over n words, and over 2n */

/* Multiplies with x^n mod P, bit-reflected. */
static uint32_t times_x(uint32_t value, unsigned n)
{
    for (; n; n--)
        value = value & 1 ? (value >> 1) ^ POLYNOMIAL : value >> 1;
    return value;
}

static void fill_powers(void)
{
    const uint32_t one = UINT32_C(1) << 31;
    by_one[1] = times_x(one, 64 - 33); /* the reducing instruction itself moves the product by 33 bits */
    by_two[1] = times_x(one, 128 - 33);
    for (unsigned words = 2; words <= WORDS_MAX; words++) {
        by_one[words] = times_x(by_one[words - 1], 64);
        by_two[words] = times_x(by_two[words - 1], 128);
    }
}

HARDWARE static inline uint64_t moved(uint64_t crc, uint32_t by)
{
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((long long)crc), _mm_cvtsi32_si128((int)by), 0);
    return (uint64_t)_mm_cvtsi128_si64(product);
}

static inline uint64_t load64(const unsigned char *at)
{
    uint64_t word;
    memcpy(&word, at, 8);
    return word;
}

HARDWARE static inline uint64_t three_streams(uint64_t crc, const unsigned char *at, size_t words)
{
    uint64_t second = 0, third = 0;
    PMWAL_CHECK(words && words <= WORDS_MAX);
    size_t each = 8 * words, i = 0;
    for (; i < each - 8; i += 8) {
        if (i % 64 == 0 && words >= PREFETCH_MIN) { /* the hardware prefetcher stops at the end of a page */
            _mm_prefetch((const char *)at + 3 * each + 3 * i, _MM_HINT_T0);
            _mm_prefetch((const char *)at + 3 * each + 3 * i + 64, _MM_HINT_T0);
            _mm_prefetch((const char *)at + 3 * each + 3 * i + 128, _MM_HINT_T0);
        }
        crc = _mm_crc32_u64(crc, load64(at + i));
        second = _mm_crc32_u64(second, load64(at + each + i));
        third = _mm_crc32_u64(third, load64(at + 2 * each + i));
    }
    crc = _mm_crc32_u64(crc, load64(at + i));
    second = _mm_crc32_u64(second, load64(at + each + i));
    return _mm_crc32_u64(third, load64(at + 2 * each + i) ^ moved(crc, by_two[words]) ^ moved(second, by_one[words]));
}

HARDWARE static inline uint32_t last_bytes(uint64_t crc, const unsigned char *at, size_t length)
{
    uint32_t rest = (uint32_t)crc;
    if (length & 4) {
        uint32_t word;
        memcpy(&word, at, 4);
        rest = _mm_crc32_u32(rest, word);
        at += 4;
    }
    for (length &= 3; length; at++, length--)
        rest = _mm_crc32_u8(rest, *at);
    return ~rest;
}

HARDWARE static uint32_t crc32c_sse42(uint32_t start, const void *data, size_t length)
{
    const unsigned char *at = data;
    uint64_t crc = (uint32_t)~start;
    while (length >= 24 * WORDS_MIN) {
        size_t words = length / 24 < WORDS_MAX ? length / 24 : WORDS_MAX;
        crc = three_streams(crc, at, words);
        at += 24 * words;
        length -= 24 * words;
    }
    for (; length >= 8; at += 8, length -= 8)
        crc = _mm_crc32_u64(crc, load64(at));
    return last_bytes(crc, at, length);
}

HARDWARE static inline uint64_t words_stream(uint32_t start, uint64_t place, const uint64_t *words, size_t count)
{
    uint64_t crc = _mm_crc32_u64((uint32_t)~start, place);
    crc = _mm_crc32_u32((uint32_t)crc, (uint32_t)(words[0] >> 32));
    for (size_t i = 1; i < count; i++)
        crc = _mm_crc32_u64(crc, words[i]);
    return crc;
}

HARDWARE static uint32_t words_sse42(uint32_t start, uint64_t place, const uint64_t *words, size_t count)
{
    return ~(uint32_t)words_stream(start, place, words, count);
}

HARDWARE static inline uint64_t header_stream(uint32_t start, struct crc32c_header header)
{
    return words_stream(start, header.place, header.words, HEADER_WORDS);
}

/* A header and a short payload at once: the header's stream, and one for each half of the payload. */
HARDWARE static inline uint32_t short_record(uint32_t start, struct crc32c_header header, const unsigned char *payload,
                                             size_t length)
{
    size_t words = length / 16, each = 8 * words, at = 0;
    uint64_t first = 0, second = 0;
    for (; at < each - 8; at += 8) {
        first = _mm_crc32_u64(first, load64(payload + at));
        second = _mm_crc32_u64(second, load64(payload + each + at));
    }
    first = _mm_crc32_u64(first, load64(payload + at));
    uint64_t before = moved(header_stream(start, header), by_two[words]) ^ moved(first, by_one[words]);
    uint64_t crc = _mm_crc32_u64(second, load64(payload + each + at) ^ before);
    if (length & 8)
        crc = _mm_crc32_u64(crc, load64(payload + 2 * each));
    return last_bytes(crc, payload + (length & ~(size_t)7), length & 7);
}

HARDWARE static uint32_t record_sse42(uint32_t start, struct crc32c_header header, const void *payload, size_t length)
{
    if (length >= SHORT_MIN && length < SHORT_MAX)
        return short_record(start, header, payload, length);
    return crc32c_sse42(~(uint32_t)header_stream(start, header), payload, length);
}

void crc32c_setup(void)
{
    fill_table();
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul")) {
        fill_powers();
        crc32c = crc32c_sse42;
        crc32c_words = words_sse42;
        crc32c_record = record_sse42;
        chosen = "sse4.2";
    }
}

#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>

#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif

__attribute__((target("+crc"))) static uint32_t crc32c_armv8(uint32_t start, const void *data, size_t length)
{
    const unsigned char *at = data;
    uint32_t crc = ~start;
    for (; length >= 8; at += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, at, 8);
        crc = __crc32cd(crc, word);
    }
    for (; length; at++, length--)
        crc = __crc32cb(crc, *at);
    return ~crc;
}

__attribute__((target("+crc"))) static uint32_t record_armv8(uint32_t start, struct crc32c_header header, const void *payload,
                                                             size_t length)
{
    uint32_t crc = __crc32cd(~start, header.place);
    crc = __crc32cw(crc, (uint32_t)(header.words[0] >> 32));
    for (int i = 1; i < 6; i++)
        crc = __crc32cd(crc, header.words[i]);
    return crc32c_armv8(~crc, payload, length);
}

void crc32c_setup(void)
{
    fill_table();
    if (getauxval(AT_HWCAP) & HWCAP_CRC32) {
        crc32c = crc32c_armv8;
        crc32c_record = record_armv8;
        chosen = "armv8";
    }
}

#else

void crc32c_setup(void)
{
    fill_table();
}

#endif

const char *crc32c_name(void)
{
    return chosen;
}
