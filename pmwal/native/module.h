/* What the parts of the extension module know of one another. */
#ifndef PMWAL_MODULE_H
#define PMWAL_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pthread.h>
#include <stdbool.h>
#include <structmember.h>

#include "latency.h"
#include "ring.h"

/* Of one interpreter. */
struct module_state {
    PyTypeObject *lock_type, *core_type, *handle_type, *record_type, *iterator_type, *scanner_type, *retained_type, *emitter_type;
    PyObject *name_kind, *name_commit;
};

extern struct PyModuleDef pmwal_module;

static inline struct module_state *state_of(PyTypeObject *type)
{
    return PyModule_GetState(PyType_GetModuleByDef(type, &pmwal_module));
}

/* How often this process was forked off: whoever noted another number belongs to the parent. */
extern volatile unsigned long fork_count;

/* A reentrant lock, like threading.RLock, whose state the C engine can look at. The interpreter's lock guards the fields. */
typedef struct {
    PyObject_HEAD
    PyThread_type_lock block;
    unsigned long owner; /* thread that holds it, meaningful while count > 0 */
    unsigned long count;
    unsigned long waiters; /* threads that wait for it */
} Lock;

/* Takes a free lock for this thread, or returns false. The caller holds the interpreter. */
bool lock_try(Lock *lock);
void lock_release(Lock *lock);

extern PyType_Spec lock_spec, core_spec, handle_spec, record_spec, iterator_spec, scanner_spec, retained_spec, emitter_spec;

struct bound {
    uint64_t position, seq; /* the number of the first record at or after the position */
};

struct log_state {
    struct bound tail, head, durable;
    uint64_t epoch, epoch_first_seq;
};

enum barrier {
    BARRIER_NONE,  /* memory: the kernel keeps the pages when the process dies */
    BARRIER_LINES, /* cache lines and a fence */
    BARRIER_MSYNC,
};

#define CORE_ALONE 64 /* commits of one thread after which no other is expected */

/* The part of an engine that is in C; core.h says in which files. */
typedef struct core {
    PyObject_HEAD
    Py_buffer map;
    unsigned char *base; /* NULL once detached */
    size_t size;
    int fd;
    struct geometry geometry;
    uint64_t ring_offset, control_pages;
    enum barrier barrier;
    bool pipelined, on_disk, streams;
    PyObject *mapping;      /* what the buffer belongs to; handed to the seam */
    PyObject *seam;         /* NULL: the real outside */
    Lock *writing, *guard;
    PyObject *index;        /* a list of bound_type */
    PyTypeObject *bound_type;
    PyObject *name_kind, *name_commit;

    struct log_state state;
    uint64_t head_offset; /* of state.head in the ring */
    uint64_t generation, pointer; /* of the newest slot: its generation, and its commit position */
    bool stray_records, stray_slot, halted;
    unsigned watched; /* Python threads that wait to be told of a change */
    unsigned long forks;

    struct live_writer writer;
    uint64_t live_version;
    uint64_t index_next; /* no record before this position goes into the index */
    uint64_t prefetched;
    unsigned long long headroom; /* bytes of the ring that calls leave free */

    unsigned long long appends, stored_bytes, commits, barriers, slots_written;

    bool yields;          /* every msync(2) lets the interpreter go: see lets_go() */
    bool no_dsync;        /* pwritev2(2) with RWF_DSYNC was refused */
    bool flushing;        /* a commit holds `guard`, and its barrier is under way: storing goes on */
    int failed;           /* errno of a barrier that failed */
    int64_t barrier_ns;   /* what the barriers of the last commit took beside which others stored */
    unsigned gather_pause, gather_rest; /* commits that do not wait for others to join them: in all, and still to come */

    /* Under `flush_mutex`, and changed only while `flushing`, or by who holds `guard` and the interpreter: */
    uint64_t flushes;     /* completed, whatever came of them */
    unsigned waiting;     /* threads that came since the last one */
    unsigned expected;    /* and those that are to come, if they are as many as before */
    struct bound wanted;  /* what those that came have stored */
    pthread_mutex_t flush_mutex;
    pthread_cond_t flush_done, gathered;
    unsigned long last_thread;
    unsigned alone;       /* commits since another thread's */
    unsigned hold;        /* commits for which the interpreter is not let go */
    struct latency latency;
} Core;

struct piece {
    const unsigned char *bytes;
    uint64_t length;
    uint16_t kind;
};

/* Whether a call may store here and now, without the locks that the Python side takes. */
static inline bool core_is_free(const Core *core)
{
    return core->base && !core->halted && !core->seam && core->forks == fork_count && !core->stray_records &&
           !core->stray_slot && !core->watched && core->writing->count == 0 && (core->guard->count == 0 || core->flushing);
}

static inline struct place core_head(const Core *core)
{
    return (struct place){core->state.head.position, core->head_offset};
}

/* Stores one batch behind the head and publishes it. There must be room for it. 0, or -1 with an exception set. */
int core_store(Core *core, const struct piece *pieces, size_t count);

/* The same for rows of an array, of which `first` is the first. */
int core_store_rows(Core *core, const struct piece *first, size_t count);

/* Stores one batch and makes it durable; only where core_commits_at_once(). 0, or -1 with an exception set. */
int core_store_durable(Core *core, const struct piece *pieces, size_t count);

/* Whether a record of this length is stored and made durable by one system call: on a disk, when one thread commits alone and has
 * nothing older to carry. core_store_synced() may still find that it cannot be, and return 1: nothing was stored then. */
#define SYNCED_MAX (128 * 1024)

int core_store_synced(Core *core, const struct piece *piece);

static inline bool core_syncs_at_once(const Core *core, uint64_t length)
{
    return core->on_disk && core->pipelined && core->guard->count == 0 && !core->no_dsync &&
           (core->alone >= CORE_ALONE || core->hold) && core->state.head.position == core->state.durable.position &&
           record_size(&core->geometry, length) <= SYNCED_MAX;
}

/* Whether a barrier here is no system call, and the next one has nothing older to carry. */
static inline bool core_commits_at_once(const Core *core)
{
    return core->barrier != BARRIER_MSYNC && core->guard->count == 0 &&
           core->state.head.position == core->state.durable.position && core->generation < PMWAL_GENERATION_MAX;
}

/* Makes everything up to this number durable, together with other threads. 0; -1 with an exception set; 1 when the caller has to
 * go the slow way, because the Python side holds the locks. */
int core_commit_through(Core *core, uint64_t seq);

/* What a Wal over the native engine is in C. */
typedef struct {
    PyObject_HEAD
    Core *core;
    char commits_each;
} Handle;

/* Stores one record the short way. 0: stored, and `*commit` says whether it is still to be made durable; -1 with an exception set;
 * 1 when the slow way has to look at it, and nothing was stored. */
int handle_store(Handle *handle, const struct piece *piece, bool *commit);

/* What a call returns whose record handle_store() has stored, or has failed to: the record's number, once it is durable if it is to
 * be. NULL with an exception set. */
PyObject *handle_stored(Handle *handle, int status, uint64_t seq, bool commit);

/* A pmwal.records.Bound, which is a named tuple of two. */
PyObject *bound_new(PyTypeObject *type, uint64_t position, uint64_t seq);

/* A record as Python sees it: steals the reference to `data`. */
PyObject *record_new(PyTypeObject *type, const struct record *header, PyObject *data);

#endif
