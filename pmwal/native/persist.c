#include "persist.h"

#include <stdint.h>
#include <string.h>

#include "check.h"

#define LINE 64

static bool caches_durable = false;

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

static enum { CLFLUSH, CLFLUSHOPT, CLWB } instruction = CLFLUSH;

void persist_setup(bool cached_is_durable)
{
    unsigned a, b, c, d;
    caches_durable = cached_is_durable;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d))
        instruction = b & (1u << 24) ? CLWB : b & (1u << 23) ? CLFLUSHOPT : CLFLUSH;
}

const char *persist_name(void)
{
    static const char *const names[] = {"clflush", "clflushopt", "clwb"};
    return caches_durable ? "eadr" : names[instruction];
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

void stream(void *to, const void *from, size_t length)
{
    PMWAL_CHECK(((uintptr_t)to | length) % LINE == 0);
    for (size_t at = 0; at < length; at += sizeof(__m128i))
        _mm_stream_si128((__m128i *)((char *)to + at), _mm_loadu_si128((const __m128i *)((const char *)from + at)));
}

void fence(void)
{
    _mm_sfence();
}

#elif defined(__aarch64__)
#include <sys/auxv.h>

#ifndef HWCAP_DCPOP
#define HWCAP_DCPOP (1 << 16)
#endif

static bool has_cvap = false;

void persist_setup(bool cached_is_durable)
{
    caches_durable = cached_is_durable;
    has_cvap = getauxval(AT_HWCAP) & HWCAP_DCPOP;
}

const char *persist_name(void)
{
    return caches_durable ? "eadr" : has_cvap ? "dc cvap" : NULL;
}

bool persist_streams(void)
{
    return false;
}

void write_back(const void *start, size_t length)
{
    uintptr_t line = (uintptr_t)start & ~(uintptr_t)(LINE - 1), end = (uintptr_t)start + length;
    if (caches_durable || !has_cvap)
        return;
    for (; line < end; line += LINE)
        __asm__ volatile("sys #3, c7, c12, #1, %0" : : "r"(line) : "memory"); /* dc cvap */
}

void stream(void *to, const void *from, size_t length)
{
    memcpy(to, from, length);
    write_back(to, length);
}

void fence(void)
{
    __asm__ volatile("dsb ish" : : : "memory");
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

bool persist_streams(void)
{
    return false;
}

void write_back(const void *start, size_t length)
{
    (void)start;
    (void)length;
}

void stream(void *to, const void *from, size_t length)
{
    memcpy(to, from, length);
}

void fence(void)
{
    __sync_synchronize();
}

#endif
