/* What the files of the Core have in common; nobody else includes it. outside.c, store.c, commit.c and core.c build on one another
 * in this order. */
#ifndef PMWAL_CORE_H
#define PMWAL_CORE_H

#include "module.h"

#define PUBLISHED (PMWAL_LIVE_WRITER_OFFSET + offsetof(struct live_writer, published_position))

/* -- outside.c */

/* The wall clock. 0, or -1 with an exception set when a test's clock raised. */
int now_ns(Core *core, int64_t *time_ns);

/* A clock that only goes forward; only differences mean something. As now_ns(). */
int ticks_ns(Core *core, int64_t *ns);

/* Set an OSError; always -1. The last two are final: whoever calls next gets the error too, even before the handle is poisoned. */
int raise_errno(int number);
int raise_final(Core *core, int number);
int raise_fault(Core *core);

/* 0, or -1 with an exception set when the medium has failed before. */
int check_failed(Core *core);

/* 0, or -1 with an exception set when the mapping is closed. */
int check_mapped(Core *core);

/* 0, or the errno that says what is wrong with the file. */
int check_size(Core *core);

/* Calls a method of the seam. 0, or -1 with an exception set. */
int call_seam(Core *core, const char *method, const char *format, ...);

/* Stores plain bytes; with a seam, through it. 0, or -1 with an exception set. */
int put(Core *core, uint64_t offset, const void *data, size_t length);

/* -- store.c */

/* A batch on its way into the ring. */
struct batch {
    Core *core;
    const struct piece *pieces;
    size_t count;
    bool rows; /* there is one piece, the first row of an array; the others stand behind it */
    int64_t time_ns;
    struct place end; /* where it ends, once it is stored */
    bool names;       /* of a durable one: its commit wrote a slot */
    union commit_slot slot;
};

static inline void batch_of(struct batch *batch, Core *core, const struct piece *pieces, size_t count)
{
    batch->core = core;
    batch->pieces = pieces;
    batch->count = count;
    batch->rows = false;
}

static inline struct piece piece_at(const struct batch *batch, size_t place)
{
    if (!batch->rows)
        return batch->pieces[place];
    struct piece piece = *batch->pieces;
    piece.bytes += place * piece.length;
    return piece;
}

/* Notes who uses the log, for the commits. */
void note_thread(Core *core);

/* Stores the only record of a batch into the page cache and waits until it is on the disk, in one pwritev2(2). `staged` has room
 * for the record. 0, an errno, or -1 when this kernel or file system cannot, and nothing was stored. */
int store_synced(struct batch *batch, unsigned char *staged);

/* Asks for the pages ahead of the writer. */
void prefetch(Core *core);

/* Stores the records of a batch straight into the mapping, and says in it where they end. Under a fault guard. */
void store_records(struct batch *batch);

/* Makes a stored batch part of the log: notes in the index where its records start, and moves the head behind it. */
void take_in(const struct batch *batch);

/* -- commit.c; the caller holds `guard` */

/* Shows the bounds on the live page: for readers in other processes. 0, or -1 with an exception set, like all the next. */
int core_show(Core *core);

/* Barrier over all that is published and not yet durable. */
int core_flush(Core *core);

/* Makes all that is published durable, and wakes who waits for it. */
int core_commit(Core *core);

/* Stores the next slot, which says this state, and waits for its barrier. */
int core_write_slot(Core *core, const struct log_state *state, uint32_t flags);

#endif
