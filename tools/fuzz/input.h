/* An input of the fuzzer: a struct parameters, and then the ring's bytes (zeros where they end early).
 *
 * Random bytes never have a right checksum, so two bits of the mode put some in: SEAL gives one to every header that is possible,
 * CHAIN turns the bytes at each record's place into a header that mostly follows from the one before.
 */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

enum mode {
    SEAL = 1,
    CHAIN = 2,
    RAW = 4,     /* the rules are taken as they are; without it they are near what a log would ask for */
    ODD = 8,     /* positions need not be aligned */
    BATCHES = 16,
};

struct parameters {
    uint8_t alignment, capacity, payload, mode;
    uint32_t uuid_crc;
    uint64_t position, seq, stop_seq, limit, epoch_first_seq, lap_seq, bytes_max, mark, index_last, window_start, window_length;
    uint32_t epoch, epoch_min;
};

static_assert(sizeof(struct parameters) == 104, "tools/fuzz/make_corpus.py writes it");

/* Looks at one input. It aborts when something is wrong. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
