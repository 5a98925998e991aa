/* The type Handle: the fast path through a Wal over the native engine. */
#ifndef PMWAL_HANDLE_H
#define PMWAL_HANDLE_H

#include "store.h"

typedef struct {
    PyObject_HEAD
    Core *core;
    char commits_each;
} Handle;

void handle_prepare_disk(Handle *handle, const struct piece *pieces, size_t count, bool commit);

/* Before anything is read of the log's state: lets the store of these pieces not wait for the disk. It may release the interpreter. */
static inline void handle_prepare(Handle *handle, const struct piece *pieces, size_t count, bool commit)
{
    if (handle->core && handle->core->on_disk)
        handle_prepare_disk(handle, pieces, count, commit);
}

/* Stores one record on the fast path. 0: stored, and `*commit` says whether it is still to be made durable; -1 with an exception
 * set; 1 when the slow path has to take it, and nothing was stored. */
int handle_store(Handle *handle, const struct piece *piece, bool *commit);

/* What a call returns after handle_store() came to `status` (0 or -1): the record's number, once it is durable if it is to be.
 * NULL with an exception set. */
PyObject *handle_stored(Handle *handle, int status, uint64_t seq, bool commit);

#endif
