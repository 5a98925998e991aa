/* Durability: commits, and how threads share them.
 *
 * Invariants
 * - The thread that makes something durable holds `guard`. While `flushing` is set it only waits for a barrier, whose end it fixed
 *   beforehand, so others may store at the head; they may change nothing else.
 * - `durable`, `pointer` and `generation` move only after the barrier that makes them true.
 * - The interpreter is released around barriers and while a thread waits for another's: see interpreter.c.
 */
#include "commit.h"

#include "barrier.h"
#include "interpreter.h"
#include "live_page.h"
#include "outside.h"
#include "store.h"

#define GATHER_NS_MAX 1000000  /* no commit waits longer than that for others to join it */
#define GATHER_PAUSE_MAX 64    /* commits that do not wait, after one that waited in vain */

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

/* Whether a barrier waits for a disk. */
static bool waits(const Core *core)
{
    return core->barrier == BARRIER_MSYNC && !core->seam;
}

/* flush_through(), up to what is published when it begins, while others store more. */
static int flush_beside_others(Core *core, struct flush *flush)
{
    struct absence absence;
    PMWAL_CHECK(lock_is_mine(core->guard));
    core->wanted = core->state.head;
    core->flushing = true;
    leave_for_barrier(core, &absence);
    if (absence.thread) {
        pthread_mutex_lock(&core->flush_mutex);
        gather(core);
        flush->target = core->wanted;
        pthread_mutex_unlock(&core->flush_mutex);
        absence.begun_ns = monotonic_ns();
    }
    int status = flush_through(core, flush);
    come_back(core, &absence);
    core->barrier_ns = absence.done_ns - absence.begun_ns;
    core->flushing = false;
    core->ready = (struct pages){0};
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
    note_thread(core);
    if (core->alone < CORE_ALONE)
        core->alone++;
    int status = waits(core) ? flush_beside_others(core, &flush) : flush_through(core, &flush);
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
    struct absence absence;
    if (waits(core))
        leave_for_barrier(core, &absence);
    int status = barrier_over(core, ranges, count);
    if (waits(core))
        come_back(core, &absence);
    return settle_flush(core, status);
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
    struct absence absence;
    if (waits(core))
        leave_for_barrier(core, &absence);
    int status = persist_slot(core, &slot, offset);
    if (waits(core))
        come_back(core, &absence);
    if (settle_flush(core, status))
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
