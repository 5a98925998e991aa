/* CRC-32C (Castagnoli, RFC 3720 appendix B.4), with the processor's instructions where it has them. */
#ifndef PMWAL_CRC32C_H
#define PMWAL_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Chooses the implementation for this processor. Call it once, before the first crc32c(). */
void crc32c_setup(void);

/* Continues the checksum `crc` over `length` more bytes; over none it is `crc`. */
extern uint32_t (*crc32c)(uint32_t crc, const void *data, size_t length);

/* A record's header as words, and its place. */
struct crc32c_header {
    uint64_t place;
    const uint64_t *words; /* six */
};

/* The same over a place, the upper half of words[0], and words[1] to [count - 1]: a slot as words. */
extern uint32_t (*crc32c_words)(uint32_t crc, uint64_t place, const uint64_t *words, size_t count);

/* The same over a header (its place, the upper half of words[0], words[1] to [5]) and the `length` bytes after it. */
extern uint32_t (*crc32c_record)(uint32_t crc, struct crc32c_header header, const void *payload, size_t length);

/* The portable implementation of crc32c(). */
uint32_t crc32c_table(uint32_t crc, const void *data, size_t length);

/* An implementation of the three; all give the same checksums, and tests compare them. */
struct crc32c_way {
    const char *name; /* "table", "sse4.2", "vpclmulqdq", "armv8" or "pmull" */
    uint32_t (*bytes)(uint32_t crc, const void *data, size_t length);
    uint32_t (*words)(uint32_t crc, uint64_t place, const uint64_t *words, size_t count);
    uint32_t (*record)(uint32_t crc, struct crc32c_header header, const void *payload, size_t length);
};

/* Those that this processor can run, the one that was chosen last; NULL after it. */
const struct crc32c_way *crc32c_way(size_t index);

#endif
