/* CRC-32C.
 *
 * One CRC instruction takes 3 cycles, but a new one can start in each, so three independent streams over adjacent blocks keep the
 * unit busy. Two of them are then combined with the third by carry-less multiplications with x^n mod P, which a CRC instruction
 * reduces (Gopal et al., "Fast CRC computation for iSCSI polynomial using CRC32 instruction", Intel, 2011).
 *
 * Longer data is folded where the processor multiplies several words at once: 128 bits of it are congruent to the product of their
 * halves with two powers of x, added to the 128 bits further on (Gopal et al., "Fast CRC computation for generic polynomials using
 * PCLMULQDQ instruction", Intel, 2009). A CRC instruction reduces what is left.
 */
#include "crc32c.h"

#include <string.h>

#include "check.h"

#define HEADER_WORDS 6
#define POLYNOMIAL UINT32_C(0x82f63b78) /* bit-reflected */

static uint32_t table[8][256];

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

static uint32_t words_table(uint32_t crc, uint64_t place, const uint64_t *words, size_t count)
{
    crc = crc32c_table(crc, &place, sizeof place);
    return crc32c_table(crc, (const unsigned char *)words + 4, 8 * count - 4);
}

static uint32_t record_table(uint32_t crc, struct crc32c_header header, const void *payload, size_t length)
{
    return crc32c_table(words_table(crc, header.place, header.words, HEADER_WORDS), payload, length);
}

static struct crc32c_way ways[3] = {{"table", crc32c_table, words_table, record_table}};
static size_t way_count = 1;

uint32_t (*crc32c)(uint32_t crc, const void *data, size_t length) = crc32c_table;
uint32_t (*crc32c_words)(uint32_t crc, uint64_t place, const uint64_t *words, size_t count) = words_table;
uint32_t (*crc32c_record)(uint32_t crc, struct crc32c_header header, const void *payload, size_t length) = record_table;

const struct crc32c_way *crc32c_way(size_t index)
{
    return index < way_count ? &ways[index] : NULL;
}

#if defined(__x86_64__) || defined(__aarch64__)

static void add_way(struct crc32c_way way)
{
    crc32c = way.bytes;
    crc32c_words = way.words;
    crc32c_record = way.record;
    ways[way_count++] = way;
}

/* Multiplies with x^n mod P, bit-reflected. */
static uint32_t times_x(uint32_t value, unsigned n)
{
    for (; n; n--)
        value = value & 1 ? (value >> 1) ^ POLYNOMIAL : value >> 1;
    return value;
}

/* Factors that move the halves of 128 bits over a number of bits. */
struct fold {
    uint64_t low, high;
};

/* The product of two reflected halves is shifted by one bit, and the low half is 64 bits further away. */
static struct fold fold_over(unsigned bits)
{
    const uint32_t one = UINT32_C(1) << 31;
    return (struct fold){(uint64_t)times_x(one, bits + 32) << 1, (uint64_t)times_x(one, bits - 32) << 1};
}

static struct fold over_2048, over_1024, over_512, over_256, over_128;

static void fill_folds(void)
{
    over_2048 = fold_over(2048);
    over_1024 = fold_over(1024);
    over_512 = fold_over(512);
    over_256 = fold_over(256);
    over_128 = fold_over(128);
}

#endif

#if defined(__x86_64__)
#include <immintrin.h>

#define HARDWARE __attribute__((target("sse4.2,pclmul")))
#define WORDS_MAX 512 /* words in each of three streams */
#define WORDS_MIN 4   /* below it one stream is as fast */
#define SHORT_MIN 32  /* payloads from this length on are two streams beside the header's */
#define SHORT_MAX 512 /* payloads from this length on are faster in three streams */
#define PREFETCH_MIN 64 /* words in a stream from which prefetching pays */

static uint32_t by_one[WORDS_MAX + 1], by_two[WORDS_MAX + 1]; /* factors that move a checksum over n words, and over 2n */

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

#define FOLDING __attribute__((target("sse4.2,pclmul,avx2,vpclmulqdq")))
#define FOLD_MIN 1024 /* bytes from which folding is faster, also in a rare call */
#define FOLD_BLOCK 256 /* bytes in eight registers */
#define AHEAD 2048 /* bytes that are prefetched ahead */

FOLDING static inline __m256i factors(const struct fold *by)
{
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)by));
}

FOLDING static inline __m256i fold(__m256i value, __m256i by, __m256i onto)
{
    __m256i low = _mm256_clmulepi64_epi128(value, by, 0x00), high = _mm256_clmulepi64_epi128(value, by, 0x11);
    return _mm256_xor_si256(_mm256_xor_si256(low, onto), high);
}

/* The register after all that eight registers contain. */
FOLDING static inline uint64_t folded(__m256i *block)
{
    __m256i by = factors(&over_1024);
    for (int i = 0; i < 4; i++)
        block[i + 4] = fold(block[i], by, block[i + 4]);
    by = factors(&over_512);
    block[6] = fold(block[4], by, block[6]);
    block[7] = fold(block[5], by, block[7]);
    __m256i both = fold(block[6], factors(&over_256), block[7]);
    __m128i last = _mm_loadu_si128((const __m128i *)&over_128), first = _mm256_castsi256_si128(both);
    __m128i sum = _mm_xor_si128(_mm_clmulepi64_si128(first, last, 0x00), _mm_clmulepi64_si128(first, last, 0x11));
    sum = _mm_xor_si128(sum, _mm256_extracti128_si256(both, 1));
    return _mm_crc32_u64(_mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(sum)), (uint64_t)_mm_extract_epi64(sum, 1));
}

/* Whole blocks, at least one. The compiler clears the upper halves of the registers at the end; a signal handler that jumps out of
 * here began with them cleared. */
FOLDING static uint32_t fold_blocks(uint32_t start, const unsigned char *at, size_t length)
{
    __m256i block[8];
    PMWAL_CHECK(length && length % FOLD_BLOCK == 0);
    for (int i = 0; i < 8; i++)
        block[i] = _mm256_loadu_si256((const __m256i *)at + i);
    block[0] = _mm256_xor_si256(block[0], _mm256_zextsi128_si256(_mm_cvtsi32_si128((int)~start)));
    __m256i by = factors(&over_2048);
    for (size_t done = FOLD_BLOCK; done < length; done += FOLD_BLOCK) {
        const unsigned char *next = at + done;
        for (int line = 0; line < FOLD_BLOCK; line += 64) /* the hardware prefetcher stops at the end of a page */
            _mm_prefetch((const char *)next + AHEAD + line, _MM_HINT_T0);
        for (int i = 0; i < 8; i++)
            block[i] = fold(block[i], by, _mm256_loadu_si256((const __m256i *)next + i));
    }
    return ~(uint32_t)folded(block);
}

static uint32_t crc32c_fold(uint32_t start, const void *data, size_t length)
{
    if (length < FOLD_MIN)
        return crc32c_sse42(start, data, length);
    size_t blocks = length / FOLD_BLOCK * FOLD_BLOCK;
    return crc32c_sse42(fold_blocks(start, data, blocks), (const unsigned char *)data + blocks, length - blocks);
}

static uint32_t record_fold(uint32_t start, struct crc32c_header header, const void *payload, size_t length)
{
    if (length < FOLD_MIN)
        return record_sse42(start, header, payload, length);
    return crc32c_fold(words_sse42(start, header.place, header.words, HEADER_WORDS), payload, length);
}

void crc32c_setup(void)
{
    fill_table();
    if (!__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("pclmul"))
        return;
    fill_powers();
    add_way((struct crc32c_way){"sse4.2", crc32c_sse42, words_sse42, record_sse42});
    /* "avx2" also means that the operating system keeps the wide registers (XGETBV). */
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("vpclmulqdq"))
        return;
    fill_folds();
    add_way((struct crc32c_way){"vpclmulqdq", crc32c_fold, words_sse42, record_fold});
}

#elif defined(__aarch64__)
#include <arm_acle.h>
#include <arm_neon.h>
#include <sys/auxv.h>

#ifndef HWCAP_PMULL
#define HWCAP_PMULL (1 << 4)
#endif
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif

#define HARDWARE __attribute__((target("+crc")))

HARDWARE static uint32_t crc32c_armv8(uint32_t start, const void *data, size_t length)
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

HARDWARE static uint32_t words_armv8(uint32_t start, uint64_t place, const uint64_t *words, size_t count)
{
    uint32_t crc = __crc32cd(~start, place);
    crc = __crc32cw(crc, (uint32_t)(words[0] >> 32));
    for (size_t i = 1; i < count; i++)
        crc = __crc32cd(crc, words[i]);
    return ~crc;
}

HARDWARE static uint32_t record_armv8(uint32_t start, struct crc32c_header header, const void *payload, size_t length)
{
    return crc32c_armv8(words_armv8(start, header.place, header.words, HEADER_WORDS), payload, length);
}

#define FOLDING __attribute__((target("+crc+crypto")))
#define FOLD_MIN 512 /* bytes from which folding is worth its end */
#define FOLD_BLOCK 128 /* bytes in eight registers */

FOLDING static inline uint64x2_t load128(const unsigned char *at)
{
    return vreinterpretq_u64_u8(vld1q_u8(at));
}

FOLDING static inline uint64x2_t fold(uint64x2_t value, const struct fold *by, uint64x2_t onto)
{
    poly128_t low = vmull_p64((poly64_t)vgetq_lane_u64(value, 0), (poly64_t)by->low);
    poly128_t high = vmull_p64((poly64_t)vgetq_lane_u64(value, 1), (poly64_t)by->high);
    return veorq_u64(veorq_u64(vreinterpretq_u64_p128(low), onto), vreinterpretq_u64_p128(high));
}

/* Whole blocks, at least one. */
FOLDING static uint32_t fold_blocks(uint32_t start, const unsigned char *at, size_t length)
{
    uint64x2_t block[8];
    for (int i = 0; i < 8; i++)
        block[i] = load128(at + 16 * i);
    block[0] = veorq_u64(block[0], vsetq_lane_u64((uint32_t)~start, vdupq_n_u64(0), 0));
    for (size_t done = FOLD_BLOCK; done < length; done += FOLD_BLOCK)
        for (int i = 0; i < 8; i++)
            block[i] = fold(block[i], &over_1024, load128(at + done + 16 * i));
    for (int i = 0; i < 4; i++)
        block[i + 4] = fold(block[i], &over_512, block[i + 4]);
    block[6] = fold(block[4], &over_256, block[6]);
    block[7] = fold(block[5], &over_256, block[7]);
    block[7] = fold(block[6], &over_128, block[7]);
    return ~__crc32cd(__crc32cd(0, vgetq_lane_u64(block[7], 0)), vgetq_lane_u64(block[7], 1));
}

static uint32_t crc32c_pmull(uint32_t start, const void *data, size_t length)
{
    if (length < FOLD_MIN)
        return crc32c_armv8(start, data, length);
    size_t blocks = length / FOLD_BLOCK * FOLD_BLOCK;
    return crc32c_armv8(fold_blocks(start, data, blocks), (const unsigned char *)data + blocks, length - blocks);
}

static uint32_t record_pmull(uint32_t start, struct crc32c_header header, const void *payload, size_t length)
{
    return crc32c_pmull(words_armv8(start, header.place, header.words, HEADER_WORDS), payload, length);
}

void crc32c_setup(void)
{
    fill_table();
    if (!(getauxval(AT_HWCAP) & HWCAP_CRC32))
        return;
    add_way((struct crc32c_way){"armv8", crc32c_armv8, words_armv8, record_armv8});
    if (!(getauxval(AT_HWCAP) & HWCAP_PMULL))
        return;
    fill_folds();
    add_way((struct crc32c_way){"pmull", crc32c_pmull, words_armv8, record_pmull});
}

#else

void crc32c_setup(void)
{
    fill_table();
}

#endif
