/* Runs of whole records, rows of an array, and the search for records, by several threads at once. */
#ifndef PMWAL_PARALLEL_H
#define PMWAL_PARALLEL_H

#include "ring.h"
#include "search.h"

#define PARTS_MAX 4

/* Where records start: pairs of position and number. */
struct starts {
    uint64_t *pairs;
    size_t count, room;
};

/* How many starts a run of this many bytes may note: any part may run through a batch that is as long as the whole. */
static inline size_t starts_room(uint64_t bytes)
{
    return PARTS_MAX * (bytes / PMWAL_INDEX_STEP + 2);
}

/* run_on() under a fault guard, by as many threads as there are processors for them. `starts` has room for starts_room() pairs.
 * False if an access to the window faulted. */
bool run_parts(const struct geometry *g, const struct window *window, const struct run_rules *rules, struct run *run,
               struct starts *starts);

/* take_rows(), likewise; `taken` is what it returns. */
bool take_rows_in_parts(const struct geometry *g, const struct window *window, const struct row_rules *rules, uint64_t position,
                        uint64_t seq, uint64_t count, unsigned char *rows, uint64_t *taken);

/* search_bytes() of two searches that share these bytes, by two threads; false if there is one processor, and nothing was done. */
bool search_halves(struct search *first, struct search *second, const unsigned char *bytes, uint64_t length, uint64_t starts,
                   uint64_t held, enum search_end *end);

#endif
