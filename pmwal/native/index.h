/* The type Index: a sparse index from sequence numbers to positions. pmwal/format/index.py is the same in Python.
 *
 * Invariants
 * - Positions and numbers grow from entry to entry, and two entries are at least PMWAL_INDEX_STEP bytes apart. So what fits into the
 *   log's ring has no more entries than were allocated at first: adding one neither allocates nor moves anything.
 * - An entry counts only after index_take(). Those put down before are of records that are not part of the log yet.
 */
#ifndef PMWAL_INDEX_H
#define PMWAL_INDEX_H

#include "module.h"

#include "check.h"
#include "format.h"

struct bound {
    uint64_t position, seq; /* the number of the first record at or after the position */
};

typedef struct {
    PyObject_HEAD
    PyTypeObject *bound_type;
    struct bound *entries;      /* a ring of a power of two */
    size_t room, first, count;
    uint64_t next; /* no record before this position gets an entry */
} Index;

static inline struct bound *index_at(const Index *index, size_t place)
{
    return &index->entries[(index->first + place) & (index->room - 1)];
}

/* Puts an entry down after `pending` others that do not count yet; those of a batch longer than the ring are lost. */
static inline void index_put(Index *index, size_t pending, struct bound start)
{
    size_t place = index->count + pending;
    PMWAL_CHECK(!place || place > index->room || index_at(index, place - 1)->position + PMWAL_INDEX_STEP <= start.position);
    if (place < index->room)
        *index_at(index, place) = start;
}

/* Lets the first `pending` of them count. */
void index_take(Index *index, size_t pending);

#endif
