/* Durability: barriers, slots, the live page, and commits that threads share.
 *
 * Invariants
 * - The thread that makes something durable holds `guard`. While `flushing` is set it only waits for a barrier, whose end it fixed
 *   beforehand, so others may store at the head; they may change nothing else.
 * - At most one msync(2) is under way, so no other can consume its error.
 * - `durable`, `pointer` and `generation` move only after the barrier that makes them true.
 * - The interpreter is released only around msync(2) and while a thread waits for another's. Code after that relies on nothing it
 *   read before, except what `guard` protects.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "commit.h"

#include "outside.h"

#include "crc32c.h"
#include "fault.h"
#include "futex.h"
#include "live.h"
#include "persist.h"

#define SLOW_RETURN_NS 1000000 /* a longer wait for the interpreter means that another thread computes */
#define HOLD 512               /* commits after that which keep the interpreter */
#define GATHER_NS_MAX 1000000  /* no commit waits longer than that for others to join it */
#define GATHER_PAUSE_MAX 64    /* commits that do not wait, after one that waited in vain */

struct range {
    uint64_t offset, length;
};

static int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Whether the next commit is to be timed. */
static inline bool is_timed(const Core *core)
{
    return !(core->commits & (core->latency.step - 1));
}

/* Whether to release the interpreter during an msync.
 *
 * Releasing it costs up to a switch interval (5 ms) when another thread computes; keeping it stops other threads from storing what
 * the next msync could carry. So: keep it while one thread commits alone, and for a while after it took long to get it back.
 */
static bool releases_interpreter(Core *core)
{
    note_thread(core);
    if (core->alone < CORE_ALONE)
        core->alone++;
    if (core->yields) /* the other thread is an event loop, and may not wait */
        return true;
    if (core->hold) {
        core->hold--;
        return false;
    }
    return core->alone < CORE_ALONE;
}

static uint64_t page_start(uint64_t offset)
{
    return offset & ~(PMWAL_PAGE - 1);
}

static uint64_t page_end(uint64_t offset)
{
    return page_start(offset + PMWAL_PAGE - 1);
}

static int sync_pages(Core *core, uint64_t first, uint64_t end)
{
    PMWAL_CHECK((first | end) % PMWAL_PAGE == 0 && first < end && end <= page_end(core->size));
    while (msync(core->base + first, end - first, MS_SYNC))
        if (errno != EINTR)
            return errno;
    return 0;
}

/* Orders earlier stores before later ones; where lines are flushed, it also makes the earlier ones durable. */
static inline void order_stores(const Core *core)
{
    if (core->barrier == BARRIER_LINES)
        fence();
    else
        __atomic_thread_fence(__ATOMIC_RELEASE);
}

/* Through the seam. 0, or -1 with an exception set. */
static int barrier_recorded(Core *core, const struct range *ranges, size_t count)
{
    if (core->barrier == BARRIER_LINES)
        return call_seam(core, "fence", "()");
    for (size_t i = 0; i < count && core->barrier == BARRIER_MSYNC; i++) {
        uint64_t first = page_start(ranges[i].offset), end = page_end(ranges[i].offset + ranges[i].length);
        while (call_seam(core, "flush", "(OKK)", core->mapping, (unsigned long long)first, (unsigned long long)(end - first))) {
            if (!PyErr_ExceptionMatches(PyExc_InterruptedError))
                return -1;
            PyErr_Clear();
        }
    }
    return 0;
}

/* The barrier of this medium; cache lines were written back or streamed when they were stored. 0, an errno, or, with a seam only,
 * -1 with an exception set. Without a seam it calls nothing of Python, so the interpreter may be released around it. */
static int barrier_over(Core *core, const struct range *ranges, size_t count)
{
    if (core->seam)
        return barrier_recorded(core, ranges, count);
    int status = check_size(core); /* bytes cut off a shortened file must not count as durable */
    order_stores(core);
    for (size_t i = 0; i < count && !status && core->barrier == BARRIER_MSYNC; i++)
        status = sync_pages(core, page_start(ranges[i].offset), page_end(ranges[i].offset + ranges[i].length));
    return status;
}

static size_t ranges_between(const Core *core, uint64_t start, uint64_t end, struct range ranges[2])
{
    uint64_t capacity = core->geometry.capacity, first = start % capacity, length = end - start;
    PMWAL_CHECK(start <= end && length <= capacity);
    if (start == end)
        return 0;
    if (first + length <= capacity) {
        ranges[0] = (struct range){core->ring_offset + first, length};
        return 1;
    }
    ranges[0] = (struct range){core->ring_offset + first, capacity - first};
    ranges[1] = (struct range){core->ring_offset, first + length - capacity};
    return 2;
}

/* Builds the slot of the next generation: `state`, except for what is durable. Returns its offset in the file. */
static uint64_t build_slot(const Core *core, union commit_slot *slot, const struct log_state *state, struct bound durable,
                           uint32_t flags)
{
    PMWAL_CHECK(core->generation < PMWAL_GENERATION_MAX);
    PMWAL_CHECK(state->tail.position <= durable.position && state->tail.seq <= durable.seq);
    PMWAL_CHECK(state->epoch >= core->state.epoch && state->epoch <= UINT32_MAX);
    /* After an interrupt between the two slots of a change, the state is written again: a stray slot may be ahead of it. */
    PMWAL_CHECK(durable.position >= core->pointer || state->epoch > core->state.epoch || core->stray_slot);
    uint64_t generation = core->generation + 1;
    uint64_t index = generation % core->control_pages * PMWAL_SLOTS_PER_PAGE +
                     generation / core->control_pages % PMWAL_SLOTS_PER_PAGE;
    slot->words[0] = state->epoch << 32;
    slot->words[1] = generation;
    slot->words[2] = state->epoch_first_seq;
    slot->words[3] = durable.position;
    slot->words[4] = durable.seq - 1;
    slot->words[5] = state->tail.position;
    slot->words[6] = state->tail.seq;
    slot->words[7] = flags | (core->pipelined ? (uint32_t)PMWAL_SLOT_PIPELINED : 0);
    slot->words[0] |= crc32c_words(core->geometry.uuid_crc, index, slot->words, 8);
    PMWAL_CHECK(slot->slot.generation == core->generation + 1 && index < core->control_pages * PMWAL_SLOTS_PER_PAGE);
    PMWAL_CHECK(slot->slot.epoch == state->epoch && slot->slot.epoch_first_seq == state->epoch_first_seq);
    PMWAL_CHECK(slot->slot.commit_position == durable.position && slot->slot.commit_seq + 1 == durable.seq);
    PMWAL_CHECK(slot->slot.tail_position == state->tail.position && slot->slot.tail_seq == state->tail.seq);
    return PMWAL_CONTROL_OFFSET + index * sizeof *slot;
}

struct slot_store {
    const Core *core;
    uint64_t offset;
    const union commit_slot *slot;
};

static void slot_body(void *context)
{
    const struct slot_store *store = context;
    unsigned char *to = store->core->base + store->offset;
    if (store->core->streams) {
        stream_words(to, store->slot->words, sizeof store->slot->words / 8);
        return;
    }
    for (size_t i = 0; i < sizeof store->slot->words / 8; i++)
        memcpy(to + 8 * i, &store->slot->words[i], 8);
    if (store->core->barrier == BARRIER_LINES)
        write_back(to, sizeof *store->slot);
}

/* Stores a slot and waits for its barrier. Like barrier_over() it calls nothing of Python without a seam. */
static int persist_slot(Core *core, const union commit_slot *slot, uint64_t offset)
{
    struct range range = {offset, sizeof *slot};
    if (core->seam) {
        if (put_slot(core, offset, slot))
            return -1;
    } else {
        struct slot_store store = {core, offset, slot};
        if (!fault_run(core->base, core->size, slot_body, &store))
            return EIO;
    }
    return barrier_over(core, &range, 1);
}

struct live_page {
    struct live_bounds bounds;
    struct live_writer writer;
    struct live_followers followers;
};

static_assert(offsetof(struct live_page, writer) == PMWAL_LIVE_WRITER_OFFSET - PMWAL_LIVE_OFFSET, "live page");
static_assert(offsetof(struct live_page, followers) == PMWAL_LIVE_FOLLOWERS_OFFSET - PMWAL_LIVE_OFFSET, "live page");

/* After new bounds. A reader that sets the flag at this moment may be missed, as there is no fence: it polls soon anyway. */
static inline void wake_followers(struct live_page *page)
{
    if (__builtin_expect(__atomic_load_n(&page->followers.waiting, __ATOMIC_RELAXED) != 0, 0)) {
        __atomic_store_n(&page->followers.waiting, 0, __ATOMIC_RELAXED);
        futex_wake(&page->bounds.version_begin);
    }
}

static void fill_live_page(const Core *core, struct live_page *page)
{
    const struct log_state *state = &core->state;
    page->bounds.version_begin = core->live_version;
    page->bounds.tail_position = state->tail.position;
    page->bounds.tail_seq = state->tail.seq;
    page->bounds.durable_position = state->durable.position;
    page->bounds.durable_seq = state->durable.seq - 1;
    page->bounds.epoch = state->epoch;
    page->bounds.epoch_first_seq = state->epoch_first_seq;
    page->bounds.version_end = core->live_version;
    page->writer.pid = core->writer.pid;
    page->writer.start_time = core->writer.start_time;
    memcpy(page->writer.boot_id, core->writer.boot_id, sizeof page->writer.boot_id);
    page->writer.heartbeat_ns = core->writer.heartbeat_ns;
    page->writer.published_position = state->head.position;
    page->writer.published_seq = state->head.seq - 1;
    page->writer.inode = core->writer.inode;
}

/* The bounds first, so that they are this writer's when the page names it. */
static void show_body(void *context)
{
    const Core *core = context;
    struct live_page page, *shown = (struct live_page *)(core->base + PMWAL_LIVE_OFFSET);
    fill_live_page(core, &page);
    live_store(live_first(core->base), &page.bounds);
    live_store(live_second(core->base), &page.bounds);
    memcpy(&shown->writer, &page.writer, sizeof page.writer);
    wake_followers(shown);
}

/* The same through the seam: a step for each group of words that a reader must see in order. */
static int show_recorded(Core *core)
{
    const size_t fields = offsetof(struct live_bounds, tail_position), end = offsetof(struct live_bounds, version_end);
    struct live_page page;
    fill_live_page(core, &page);
    const unsigned char *bounds = (const unsigned char *)&page.bounds;
    if (put(core, PMWAL_LIVE_OFFSET, bounds, fields) || put(core, PMWAL_LIVE_OFFSET + fields, bounds + fields, end - fields) ||
        put(core, PMWAL_LIVE_OFFSET + end, bounds + end, sizeof page.bounds - end) ||
        put(core, PMWAL_LIVE_SECOND_OFFSET, bounds, sizeof page.bounds))
        return -1;
    return put(core, PMWAL_LIVE_WRITER_OFFSET, &page.writer, sizeof page.writer);
}

int core_show(Core *core)
{
    core->live_version++;
    if (core->seam)
        return show_recorded(core);
    return fault_run(core->base, core->size, show_body, core) ? 0 : raise_fault(core);
}

/* Counts a commit that was timed, and shows it on the live page. As core_show(). */
static int note_latency(Core *core, int64_t duration_ns)
{
    uint64_t counter = latency_add(&core->latency, duration_ns);
    const uint32_t *count = &core->latency.live_counters[counter];
    uint64_t counters = PMWAL_LIVE_LATENCY_OFFSET + offsetof(struct live_latency, counters);
    return put(core, counters + counter * sizeof *count, count, sizeof *count);
}

/* The result of a flush: 0; an errno, raised here and final; or -1 with an exception already set. */
static int settle_flush(Core *core, int status)
{
    PMWAL_CHECK((status < 0) == (PyErr_Occurred() != NULL));
    if (status > 0)
        return check_size(core) == EIO ? raise_fault(core) : raise_final(core, status);
    if (status < 0 && PyErr_ExceptionMatches(PyExc_OSError)) {
        core->failed = EIO; /* the real errno is in the exception */
        core->halted = true;
    }
    return status;
}

/* A batch and its commit under one fault guard: a whole durable append where a barrier is a fence. Stores after a fence queue in
 * the store buffer until it completes, and the buffer is small, so there are as few as possible. */
static void durable_body(void *context)
{
    struct batch *batch = context;
    Core *core = batch->core;
    store_records(batch);
    uint64_t position = batch->end.position, seq = core->state.head.seq + batch->count;
    batch->names = !core->pipelined || position - core->pointer > PMWAL_POINTER_LAG_MAX;
    struct slot_store store = {core, 0, &batch->slot};
    if (batch->names)
        store.offset = build_slot(core, &batch->slot, &core->state, (struct bound){position, seq}, 0);
    order_stores(core);
    if (batch->names) {
        slot_body(&store);
        order_stores(core);
    }
    struct live_page *page = (struct live_page *)(core->base + PMWAL_LIVE_OFFSET);
    PMWAL_CHECK(page->bounds.version_end == core->live_version);
    live_store_durable(live_first(core->base), core->live_version + 1, position, seq - 1);
    live_store_durable(live_second(core->base), core->live_version + 1, position, seq - 1);
    page->writer.heartbeat_ns = batch->time_ns;
    page->writer.published_position = position;
    page->writer.published_seq = seq - 1;
    wake_followers(page);
}

int core_store_durable(struct batch *batch)
{
    Core *core = batch->core;
    PMWAL_CHECK(core_is_free(core));
    PMWAL_CHECK(core_commits_at_once(core));
    if (now_ns(core, &batch->time_ns))
        return -1;
    if (upkeep_is_due(core, batch->time_ns))
        return 1;
    bool timed = is_timed(core);
    int64_t start = timed ? monotonic_ns() : 0;
    core->stray_records = true;
    if (!fault_run(core->base, core->size, durable_body, batch))
        return raise_fault(core);
    int64_t took = timed ? monotonic_ns() - start : 0;
    take_in(batch);
    core->live_version++;
    core->state.durable = core->state.head;
    core->commits++;
    core->barriers++;
    if (batch->names) {
        core->generation++;
        core->pointer = core->state.head.position;
        core->slots_written++;
        core->barriers++;
    }
    check_core(core);
    return timed ? note_latency(core, took) : 0;
}

int core_store_synced(Core *core, const struct piece *piece)
{
    struct batch batch;
    batch_of(&batch, core, piece, 1);
    PMWAL_CHECK(core_syncs_at_once(core, piece->length));
    note_thread(core);
    uint64_t size = record_size(&core->geometry, piece->length);
    /* A write past the end of a shortened file would extend it, and succeed. */
    if ((core->alone < CORE_ALONE && !core->hold) || check_size(core) ||
        core->state.head.position + 2 * size - core->pointer > PMWAL_POINTER_LAG_MAX)
        return 1;
    if (now_ns(core, &batch.time_ns))
        return -1;
    if (upkeep_is_due(core, batch.time_ns))
        return 1;
    unsigned char few[PMWAL_PAGE], *staged = size > sizeof few ? PyMem_Malloc(size) : few;
    if (!staged)
        return 1;
    prefetch(core);
    int64_t start = monotonic_ns();
    core->stray_records = true;
    int status = store_synced(&batch, staged);
    if (staged != few)
        PyMem_Free(staged);
    if (status < 0) {
        core->synced_writes = false;
        core->stray_records = status == -2; /* the part that was stored may be a whole record */
        return 1;
    }
    core->barriers++;
    if (core->hold)
        core->hold--;
    if (status)
        return settle_flush(core, status);
    int64_t took = monotonic_ns() - start;
    take_in(&batch);
    core->state.durable = core->state.head;
    core->commits++;
    check_core(core);
    return core_show(core) ? -1 : note_latency(core, took);
}

/* The barriers of one commit, and the slot between them if it has one. */
struct flush {
    struct bound target;
    bool names; /* a slot must name the target */
    union commit_slot slot;
};

/* Makes durable what is published up to the target. Without a seam it calls nothing of Python, and reads only fields that change
 * under `guard`. */
static int flush_through(Core *core, struct flush *flush)
{
    struct range ranges[2];
    PMWAL_CHECK(core->state.durable.position < flush->target.position);
    size_t count = ranges_between(core, core->state.durable.position, flush->target.position, ranges);
    flush->names = !core->pipelined || flush->target.position - core->pointer > PMWAL_POINTER_LAG_MAX;
    int status = barrier_over(core, ranges, count);
    if (status || !flush->names)
        return status;
    uint64_t offset = build_slot(core, &flush->slot, &core->state, flush->target, 0);
    return persist_slot(core, &flush->slot, offset);
}

/* Waits, under `flush_mutex`, for the threads of the last commit to join this one.
 *
 * Threads that only append come soon, and one barrier then carries the records of all; otherwise half of them would arrive just
 * after it began. It waits no longer than a barrier takes, and stops waiting for a while after a thread did not come. */
static void gather(Core *core)
{
    PMWAL_CHECK(core->flushing);
    if (core->waiting + 1 >= core->expected)
        return;
    if (core->gather_rest) {
        core->gather_rest--;
        return;
    }
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_nsec += core->barrier_ns < GATHER_NS_MAX ? core->barrier_ns : GATHER_NS_MAX;
    end.tv_sec += end.tv_nsec / 1000000000;
    end.tv_nsec %= 1000000000;
    int status = 0;
    while (!status && core->waiting + 1 < core->expected)
        status = pthread_cond_timedwait(&core->gathered, &core->flush_mutex, &end);
    if (!status)
        core->gather_pause /= 2;
    else
        core->gather_pause = core->gather_pause < GATHER_PAUSE_MAX ? 2 * core->gather_pause + 1 : GATHER_PAUSE_MAX;
    core->gather_rest = core->gather_pause;
}

/* flush_through(), up to what is published when it begins, while others store more. */
static int flush_beside_others(Core *core, struct flush *flush)
{
    int64_t begin, done;
    int status;
    PMWAL_CHECK(lock_is_mine(core->guard));
    core->wanted = core->state.head;
    core->flushing = true;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&core->flush_mutex);
    gather(core);
    flush->target = core->wanted;
    pthread_mutex_unlock(&core->flush_mutex);
    begin = monotonic_ns();
    status = flush_through(core, flush);
    done = monotonic_ns();
    core->barrier_ns = done - begin;
    Py_END_ALLOW_THREADS
    core->flushing = false;
    if (monotonic_ns() - done > SLOW_RETURN_NS)
        core->hold = HOLD;
    return status;
}

/* Makes all that is published now durable; others may store meanwhile. */
static int persist_published(Core *core)
{
    struct flush flush = {.target = core->state.head};
    check_guarded(core);
    if (check_failed(core))
        return -1;
    if (flush.target.position == core->state.durable.position)
        return 0;
    bool beside = core->barrier == BARRIER_MSYNC && !core->seam && releases_interpreter(core);
    int status = beside ? flush_beside_others(core, &flush) : flush_through(core, &flush);
    core->barriers += 1 + (flush.names && !status);
    if (status)
        return settle_flush(core, status);
    if (flush.names) {
        PMWAL_CHECK(flush.slot.slot.commit_position == flush.target.position);
        core->generation = flush.slot.slot.generation;
        core->pointer = flush.slot.slot.commit_position;
        core->slots_written++;
    }
    core->state.durable = flush.target;
    core->commits++;
    check_core(core);
    return core_show(core);
}

/* One commit; the caller holds `guard`. */
static int commit_published(Core *core)
{
    int64_t start = 0, end = 0;
    if (!is_timed(core) || core->state.head.position == core->state.durable.position)
        return persist_published(core);
    if (ticks_ns(core, &start) || persist_published(core) || ticks_ns(core, &end))
        return -1;
    return note_latency(core, end - start);
}

/* Wakes the threads that wait for a flush. */
static void wake(Core *core)
{
    PMWAL_CHECK(!core->flushing);
    pthread_mutex_lock(&core->flush_mutex);
    core->expected = core->waiting + 1;
    core->waiting = 0;
    core->flushes++;
    pthread_cond_broadcast(&core->flush_done);
    pthread_mutex_unlock(&core->flush_mutex);
}

int core_flush(Core *core)
{
    struct range ranges[2];
    check_guarded(core);
    size_t count = ranges_between(core, core->state.durable.position, core->state.head.position, ranges);
    if (check_failed(core))
        return -1;
    if (!count)
        return 0;
    core->barriers++;
    return settle_flush(core, barrier_over(core, ranges, count));
}

int core_commit(Core *core)
{
    int status = commit_published(core);
    wake(core);
    return status;
}

int core_write_slot(Core *core, const struct log_state *state, uint32_t flags)
{
    union commit_slot slot;
    check_guarded(core);
    if (check_failed(core))
        return -1;
    uint64_t offset = build_slot(core, &slot, state, state->durable, flags);
    core->barriers++;
    if (settle_flush(core, persist_slot(core, &slot, offset)))
        return -1;
    core->generation = slot.slot.generation;
    core->pointer = slot.slot.commit_position;
    core->slots_written++;
    return 0;
}

int core_commit_through(Core *core, uint64_t seq)
{
    /* A number past the head was rolled back by another thread. */
    while (core->state.durable.seq <= seq && seq < core->state.head.seq) {
        if (core->failed)
            return raise_errno(core->failed);
        if (!core->base || core->halted || core->generation >= PMWAL_GENERATION_MAX || core->forks != fork_count ||
            core->stray_records || core->stray_slot)
            return 1;
        if (core->barrier != BARRIER_MSYNC && !core->seam) {
            if (core->guard->count)
                return 1;
            return commit_published(core); /* without the lock: the interpreter is never released here */
        }
        if (core->flushing) {
            uint64_t before = core->flushes;
            struct bound head = core->state.head;
            Py_BEGIN_ALLOW_THREADS
            pthread_mutex_lock(&core->flush_mutex);
            if (core->flushes == before) {
                core->waiting++;
                if (core->wanted.position < head.position)
                    core->wanted = head;
                if (core->waiting + 1 >= core->expected)
                    pthread_cond_signal(&core->gathered);
            }
            while (core->flushes == before)
                pthread_cond_wait(&core->flush_done, &core->flush_mutex);
            pthread_mutex_unlock(&core->flush_mutex);
            Py_END_ALLOW_THREADS
            if (core->state.durable.seq <= seq && PyErr_CheckSignals())
                return -1;
        } else {
            /* Let waiters for `guard` go first, or commits could starve truncate and rollback. */
            if (core->guard->waiters || !lock_try(core->guard))
                return 1;
            int status = commit_published(core);
            lock_release(core->guard);
            wake(core);
            if (status)
                return -1;
        }
    }
    PMWAL_CHECK(core->state.durable.seq > seq || core->state.head.seq <= seq);
    return 0;
}
