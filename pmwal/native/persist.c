#include "persist.h"

#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "check.h"

#define LINE 64

static bool caches_durable = false;

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

static enum { CLFLUSH, CLFLUSHOPT, CLWB } instruction = CLFLUSH;
static bool has_avx = false;

void persist_setup(bool cached_is_durable)
{
    unsigned a, b, c, d;
    caches_durable = cached_is_durable;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d))
        instruction = b & (1u << 24) ? CLWB : b & (1u << 23) ? CLFLUSHOPT : CLFLUSH;
    has_avx = __builtin_cpu_supports("avx"); /* which the operating system has to support, too */
}

const char *persist_name(void)
{
    static const char *const names[] = {"clflush", "clflushopt", "clwb"};
    return caches_durable ? "eadr" : names[instruction];
}

const char *persist_vendor(void)
{
    static char vendor[13];
    unsigned words[4];
    if (!*vendor && __get_cpuid(0, words, words + 1, words + 3, words + 2))
        memcpy(vendor, words + 1, 12);
    return vendor;
}

bool persist_can_stream(void)
{
    return true;
}

bool persist_streams(void)
{
    return !caches_durable;
}

__attribute__((target("clwb"))) static void write_back_clwb(uintptr_t line, uintptr_t end)
{
    for (; line < end; line += LINE)
        _mm_clwb((void *)line);
}

__attribute__((target("clflushopt"))) static void write_back_clflushopt(uintptr_t line, uintptr_t end)
{
    for (; line < end; line += LINE)
        _mm_clflushopt((void *)line);
}

void write_back(const void *start, size_t length)
{
    uintptr_t line = (uintptr_t)start & ~(uintptr_t)(LINE - 1), end = (uintptr_t)start + length;
    PMWAL_CHECK(line % LINE == 0 && line + LINE > (uintptr_t)start);
    if (caches_durable)
        return;
    if (instruction == CLWB)
        write_back_clwb(line, end);
    else if (instruction == CLFLUSHOPT)
        write_back_clflushopt(line, end);
    else
        for (; line < end; line += LINE)
            _mm_clflush((void *)line);
}

/* Streams whole lines, as many as `length` has, in half as many stores: the processor's store buffer has room for about a hundred.
 * Returns their bytes. */
__attribute__((target("avx"))) static size_t stream_lines(char *to, const char *from, size_t length)
{
    size_t done = 0;
    for (; length - done >= LINE; done += LINE) {
        __m256i low = _mm256_loadu_si256((const __m256i *)(from + done));
        __m256i high = _mm256_loadu_si256((const __m256i *)(from + done + LINE / 2));
        _mm256_stream_si256((__m256i *)(to + done), low);
        _mm256_stream_si256((__m256i *)(to + done + LINE / 2), high);
    }
    return done;
}

void stream(void *to, const void *from, size_t length, size_t size)
{
    char *at = to, *end = at + size;
    const char *next = from, *last = next + length;
    PMWAL_CHECK(((uintptr_t)to | size) % (size < LINE ? sizeof(__m128i) : LINE) == 0 && length <= size);
    if (has_avx && length >= LINE) {
        size_t done = stream_lines(at, next, length);
        at += done;
        next += done;
    }
    for (; last - next >= (ptrdiff_t)sizeof(__m128i); next += sizeof(__m128i), at += sizeof(__m128i))
        _mm_stream_si128((__m128i *)at, _mm_loadu_si128((const __m128i *)next));
    if (next < last) {
        __m128i padded = _mm_setzero_si128();
        memcpy(&padded, next, (size_t)(last - next));
        _mm_stream_si128((__m128i *)at, padded);
        at += sizeof(__m128i);
    }
    for (; at < end; at += sizeof(__m128i))
        _mm_stream_si128((__m128i *)at, _mm_setzero_si128());
}

void stream_words(void *to, const uint64_t *words, size_t count)
{
    for (size_t i = 0; i < count; i++)
        _mm_stream_si64((long long *)to + i, (long long)words[i]);
}

void fence(void)
{
    _mm_sfence();
}

#define TURNS 15
#define SAMPLE (3 * LINE) /* a record of 128 bytes */
#define SAMPLES 4         /* timed together: the clock is not precise enough for one */
#define AREA (TURNS * SAMPLES * SAMPLE)

static int64_t time_samples(char *to, const char *from, bool streamed)
{
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int i = 0; i < SAMPLES; i++, to += SAMPLE) {
        if (streamed)
            stream(to, from, SAMPLE, SAMPLE);
        else {
            memcpy(to, from, SAMPLE);
            write_back(to, SAMPLE);
        }
        fence();
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    return (end.tv_sec - begin.tv_sec) * 1000000000 + end.tv_nsec - begin.tv_nsec;
}

/* Puts a time where it belongs among those before it. */
static void insert(int64_t *sorted, int count, int64_t time)
{
    for (; count && sorted[count - 1] > time; count--)
        sorted[count] = sorted[count - 1];
    sorted[count] = time;
}

struct persist_times persist_measure(void)
{
    static const char from[SAMPLE];
    int64_t streamed[TURNS], written_back[TURNS];
    char *area = mmap(NULL, 2 * AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        return (struct persist_times){0};
    memset(area, 0, 2 * AREA); /* no turn includes a page fault */
    for (int turn = 0; turn < TURNS; turn++) {
        char *to = area + turn * SAMPLES * SAMPLE;
        insert(streamed, turn, time_samples(to, from, true));
        insert(written_back, turn, time_samples(to + AREA, from, false));
    }
    munmap(area, 2 * AREA);
    return (struct persist_times){streamed[TURNS / 2] / SAMPLES, written_back[TURNS / 2] / SAMPLES};
}

#elif defined(__aarch64__)
#include <sys/auxv.h>

#ifndef HWCAP_DCPOP
#define HWCAP_DCPOP (1 << 16)
#endif

static bool has_cvap = false;
static uintptr_t line_size = LINE; /* what one DC CVAP writes back, at least */

void persist_setup(bool cached_is_durable)
{
    uint64_t type;
    caches_durable = cached_is_durable;
    has_cvap = getauxval(AT_HWCAP) & HWCAP_DCPOP;
    __asm__("mrs %0, ctr_el0" : "=r"(type));
    line_size = (uintptr_t)4 << (type >> 16 & 15);
}

const char *persist_name(void)
{
    return caches_durable ? "eadr" : has_cvap ? "dc cvap" : NULL;
}

void write_back(const void *start, size_t length)
{
    uintptr_t line = (uintptr_t)start & ~(line_size - 1), end = (uintptr_t)start + length;
    if (caches_durable || !has_cvap)
        return;
    for (; line < end; line += line_size)
        __asm__ volatile("sys #3, c7, c12, #1, %0" : : "r"(line) : "memory"); /* dc cvap */
}

void stream(void *to, const void *from, size_t length, size_t size)
{
    memcpy(to, from, length);
    memset((char *)to + length, 0, size - length);
    write_back(to, size);
}

void stream_words(void *to, const uint64_t *words, size_t count)
{
    memcpy(to, words, 8 * count);
    write_back(to, 8 * count);
}

void fence(void)
{
    __asm__ volatile("dsb sy" : : : "memory"); /* the medium is outside of the inner shareable domain */
}

#else

void persist_setup(bool cached_is_durable)
{
    caches_durable = cached_is_durable;
}

const char *persist_name(void)
{
    return caches_durable ? "eadr" : NULL;
}

void write_back(const void *start, size_t length)
{
    (void)start;
    (void)length;
}

void stream(void *to, const void *from, size_t length, size_t size)
{
    memcpy(to, from, length);
    memset((char *)to + length, 0, size - length);
}

void stream_words(void *to, const uint64_t *words, size_t count)
{
    memcpy(to, words, 8 * count);
}

void fence(void)
{
    __sync_synchronize();
}

#endif

#if !defined(__x86_64__)
const char *persist_vendor(void)
{
    return "";
}

bool persist_can_stream(void)
{
    return false;
}

bool persist_streams(void)
{
    return false;
}

struct persist_times persist_measure(void)
{
    return (struct persist_times){0};
}

#endif
