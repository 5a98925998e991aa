/* The struct behind the type Core: one log that is open for writing.
 *
 * These files change it, each of which calls only those before it: outside.c reaches what is around it, interpreter.c lets other
 * threads run, store.c builds records and
 * stores them in memory, disk.c on disks, batch.c chooses between them; barrier.c has barriers and slots, live_page.c what readers
 * see; at_once.c stores and commits in one step, commit.c commits, core.c is the type that Python sees.
 */
#ifndef PMWAL_CORE_H
#define PMWAL_CORE_H

#include <pthread.h>

#include "lock.h"
#include "module.h"

#include "check.h"
#include "index.h"
#include "latency.h"
#include "ring.h"

struct log_state {
    struct bound tail, head, durable;
    uint64_t epoch, epoch_first_seq;
};

/* Whole pages of the file. */
struct pages {
    uint64_t first, end;
};

enum barrier {
    BARRIER_NONE,  /* memory: the kernel keeps the pages when the process dies */
    BARRIER_LINES, /* cache lines and a fence */
    BARRIER_MSYNC,
};

/* A thread that came from a barrier with the interpreter, when, and for how long the other threads had computed by then. */
struct turn {
    unsigned long thread;
    int64_t left_ns, others_computed_ns;
};

#define FOLIO_MAX (UINT64_C(1) << 20) /* see disk.c */

#define CORE_ALONE 64 /* commits of one thread after which no other is expected */

typedef struct core {
    PyObject_HEAD
    Py_buffer map;
    unsigned char *base; /* NULL once detached */
    size_t size;
    int fd;
    struct geometry geometry;
    uint64_t ring_offset, control_pages;
    enum barrier barrier;
    bool pipelined, on_disk;
    bool streams;           /* all slots are stored past the cache */
    uint64_t stream_min;    /* records and appends from this size on are, too */
    PyObject *mapping;      /* the buffer's owner; passed to the seam */
    PyObject *seam;         /* NULL: the real system */
    Lock *writing, *guard;
    Index *index;
    PyObject *name_kind, *name_commit;

    struct log_state state;
    uint64_t head_offset; /* of state.head in the ring */
    uint64_t generation, pointer; /* of the newest slot: its generation, and its commit position */
    bool stray_records, stray_slot, halted;
    unsigned watched; /* Python threads that wait to be told of a change */
    unsigned long forks;

    struct live_writer writer;
    uint64_t live_version;
    uint64_t seek_next;  /* no record that ends before this position has a seek point */
    uint64_t prefetched;
    unsigned long long headroom; /* bytes of the ring that calls leave free */

    unsigned long long appends, stored_bytes, commits, barriers, slots_written;

    long long upkept_ns;  /* wall clock at the last upkeep: see pmwal/writing/upkeep.py */
    bool upkeep_due;      /* the fast path found that a second has passed since, and left its call to Python */

    bool yields;          /* every barrier releases the interpreter: see interpreter.c */
    bool synced_writes;   /* pwritev2(2) with RWF_DSYNC is a barrier here, and was not refused */
    bool cached_writes;   /* write(2) and the mapping use the same pages, and it was not refused */
    bool flushing;        /* a commit holds `guard`, and its barrier is under way: others may store meanwhile */
    int failed;           /* errno of a barrier that failed */
    int64_t barrier_ns;   /* duration of the last barriers during which others could store */
    unsigned gather_pause, gather_rest; /* commits that do not wait for others to join them: in all, and still to come */

    /* Under `flush_mutex`, and changed only while `flushing`, or by a thread that holds `guard` and the interpreter: */
    uint64_t flushes;     /* completed, successful or not */
    unsigned waiting;     /* threads that came since the last one */
    unsigned expected;    /* threads that come before the next one, if they are as many as before */
    struct bound wanted;  /* the end of what those that came have stored */
    pthread_mutex_t flush_mutex;
    pthread_cond_t flush_done, gathered;
    unsigned long last_thread;
    unsigned alone;       /* commits since another thread's */
    int64_t hold_until_ns; /* until this time of the monotonic clock barriers keep the interpreter; 0: they do not */
    bool slow_return;     /* the last return to the interpreter was slow */
    struct turn turn;     /* of the last barrier, while they keep the interpreter */
    struct pages ready;   /* see disk.c */
    int64_t ready_tick;
    unsigned char *stage; /* memory in which records are built that go to the disk by write(2) */
    uint64_t stage_size;
    unsigned char *folios; /* for each MiB of the file, whether it may have large folios in the page cache */
    struct latency latency;
} Core;

/* Whether a thread that no other precedes at `writing` may store here and now, without the Python side. */
static inline bool core_accepts(const Core *core)
{
    return core->base && !core->halted && !core->seam && core->forks == fork_count && !core->stray_records &&
           !core->stray_slot && !core->watched && (core->guard->count == 0 || core->flushing);
}

/* Whether a call may store here and now, without the locks that the Python side takes. */
static inline bool core_is_free(const Core *core)
{
    return core->writing->count == 0 && core_accepts(core);
}

/* What holds between any two calls. */
static inline void check_core(const Core *core)
{
    const struct log_state *s = &core->state;
    PMWAL_CHECK(s->tail.position <= s->durable.position && s->durable.position <= s->head.position);
    PMWAL_CHECK(s->tail.seq <= s->durable.seq && s->durable.seq <= s->head.seq);
    PMWAL_CHECK((s->tail.position == s->durable.position) == (s->tail.seq == s->durable.seq));
    PMWAL_CHECK((s->durable.position == s->head.position) == (s->durable.seq == s->head.seq));
    PMWAL_CHECK(s->head.position - s->tail.position <= core->geometry.capacity);
    PMWAL_CHECK(((s->tail.position | s->durable.position | s->head.position) & (core->geometry.alignment - 1)) == 0);
    PMWAL_CHECK(core->head_offset == s->head.position % core->geometry.capacity);
    PMWAL_CHECK(core->pointer <= s->durable.position);
    PMWAL_CHECK(core->commits <= core->appends);
    PMWAL_CHECK(core->commits <= core->barriers && core->slots_written <= core->barriers);
}

/* The caller is the only one that changes what `guard` protects. */
static inline void check_guarded(const Core *core)
{
    PMWAL_CHECK(lock_admits(core->guard) && !core->flushing);
}

#define UPKEEP_NS UINT64_C(1000000000)

/* Whether a call at this time of the wall clock is to be left to Python, which first does its upkeep. So it is if the clock was set
 * back. */
static inline bool upkeep_is_due(Core *core, int64_t time_ns)
{
    if (__builtin_expect((uint64_t)time_ns - (uint64_t)core->upkept_ns < UPKEEP_NS, 1))
        return false;
    core->upkeep_due = true;
    return true;
}

static inline uint64_t page_start(uint64_t offset)
{
    return offset & ~(PMWAL_PAGE - 1);
}

static inline uint64_t page_end(uint64_t offset)
{
    return page_start(offset + PMWAL_PAGE - 1);
}

static inline struct place core_head(const Core *core)
{
    return (struct place){core->state.head.position, core->head_offset};
}

#endif
