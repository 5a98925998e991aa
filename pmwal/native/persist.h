/* Cache line flushes, which make stores durable on persistent memory that is mapped with MAP_SYNC.
 *
 * Sources: Intel SDM vol. 1 section 10.4.6 and vol. 2 (CLWB, CLFLUSHOPT, CLFLUSH, MOVNTI, SFENCE); Arm ARM D7.5 (DC CVAP, DSB);
 * Linux Documentation/ABI/testing/sysfs-bus-nd (region persistence_domain).
 */
#ifndef PMWAL_PERSIST_H
#define PMWAL_PERSIST_H

#include <stdbool.h>
#include <stddef.h>

/* Chooses the instruction for this processor; `cached_is_durable` where the caches are in the persistence domain (eADR). */
void persist_setup(bool cached_is_durable);

/* "clwb", "clflushopt", "clflush", "dc cvap", "eadr", or NULL if there is no such instruction. */
const char *persist_name(void);

/* Whether stream() bypasses the cache here, and pays. */
bool persist_streams(void);

/* Starts writing back every line that the bytes touch; durable after the next fence(). */
void write_back(const void *start, size_t length);

/* Copies whole lines past the cache; durable after the next fence(). `to` and `length` are multiples of 64. */
void stream(void *to, const void *from, size_t length);

/* Waits until what was written back and streamed before is in the persistence domain. */
void fence(void);

#endif
