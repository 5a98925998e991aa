/* Cache line flushes, which make stores durable on persistent memory that is mapped with MAP_SYNC.
 *
 * Sources: Intel SDM vol. 1 section 10.4.6 and vol. 2 (CLWB, CLFLUSHOPT, CLFLUSH, MOVNTI, SFENCE); Arm ARM D7.5 (DC CVAP, DSB, CTR_EL0);
 * Linux Documentation/ABI/testing/sysfs-bus-nd (region persistence_domain).
 */
#ifndef PMWAL_PERSIST_H
#define PMWAL_PERSIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Chooses the instruction for this processor; `cached_is_durable` where the caches are in the persistence domain (eADR). */
void persist_setup(bool cached_is_durable);

/* "clwb", "clflushopt", "clflush", "dc cvap", "eadr", or NULL if there is no such instruction. */
const char *persist_name(void);

/* The processor's maker as CPUID gives it; empty where there is no CPUID. */
const char *persist_vendor(void);

/* Whether stream() bypasses the cache here. */
bool persist_can_stream(void);

/* Whether it pays for large records, where lines are written back. */
bool persist_streams(void);

/* Times of making a few lines durable by either way. */
struct persist_times {
    int64_t streamed_ns, written_back_ns;
};

/* Measures them on private memory, in some 30 us: medians of turns. Zeros where stream() bypasses nothing. */
struct persist_times persist_measure(void);

/* Starts writing back every line that the bytes touch; durable after the next fence(). */
void write_back(const void *start, size_t length);

/* Copies `length` bytes past the cache, and zeros after them up to `size`; durable after the next fence(). It stores whole lines, or
 * a part of one at a multiple of 16; the caller fills the line, because one that is stored in part takes as long as several. */
void stream(void *to, const void *from, size_t length, size_t size);

/* The same for words that were just stored one by one: a wider load would have to wait for them. */
void stream_words(void *to, const uint64_t *words, size_t count);

/* Waits until what was written back and streamed before is in the persistence domain. */
void fence(void);

#endif
