/* Letting other threads run Python while the disk works, or while many bytes are copied.
 *
 * Invariants
 * - Who stores without the interpreter holds `writing` and `guard`. With `guard` alone another thread could enter batch() and be
 *   told numbers that the store under way then takes.
 * - A barrier needs `guard` only: what it makes durable has its numbers. If others may store meanwhile, `flushing` says so.
 * - Without the interpreter, code calls nothing of Python and reads only what changes under these locks. Afterwards it relies on
 *   nothing that it read before, except what they protect.
 * - The process may fork meanwhile. The child refuses every call before it looks at a lock, because the thread that holds it is not
 *   there.
 */
#include "interpreter.h"

#include "outside.h"

/* To get the interpreter back from a thread that computes takes up to a switch interval (5 ms), many times as long as a barrier. So
 * after two such returns in a row it is held for a while; one more after that renews it. On a busy machine any thread may have to wait
 * for a processor, so a late return counts only if this process computed meanwhile.
 *
 * While barriers keep it, the other thread has its turns between the calls of this one, which then comes late to its next barrier.
 * That renews it too: to find out by a return would cost a whole turn. */
#define SLOW_RETURN_NS 1000000
#define FAST_BARRIER_NS 2000000 /* after a slower one it is held no more: the disk is in trouble */
#define HOLD_NS (50000000 - FAST_BARRIER_NS)

/* The processor time of all threads of this process, and of all but this one. */
static int64_t computed_ns(void)
{
    return clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

static int64_t others_computed_ns(void)
{
    return computed_ns() - clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

/* Whether another thread computed between the last barrier and this one. */
static bool was_interrupted(const struct turn *turn, int64_t now)
{
    return now - turn->left_ns > SLOW_RETURN_NS && turn->thread == PyThread_get_thread_ident() &&
           others_computed_ns() - turn->others_computed_ns > SLOW_RETURN_NS;
}

static bool holds(Core *core)
{
    if (!core->hold_until_ns || core->yields) /* the other thread is an event loop, and may not wait */
        return false;
    int64_t now = monotonic_ns();
    if (was_interrupted(&core->turn, now))
        core->hold_until_ns = now + HOLD_NS;
    else if (now >= core->hold_until_ns)
        core->hold_until_ns = 0;
    return core->hold_until_ns;
}

void leave(struct absence *absence)
{
    absence->begun_ns = monotonic_ns();
    absence->thread = PyEval_SaveThread();
}

void leave_for_barrier(Core *core, struct absence *absence)
{
    if (holds(core))
        *absence = (struct absence){.begun_ns = monotonic_ns()};
    else
        leave(absence);
}

void come_back(Core *core, struct absence *absence)
{
    int64_t now = absence->done_ns = monotonic_ns();
    bool fast = absence->done_ns - absence->begun_ns <= FAST_BARRIER_NS;
    if (absence->thread) {
        int64_t before = core->slow_return ? computed_ns() : 0; /* a system call, so only after a slow return */
        PyEval_RestoreThread(absence->thread);
        now = monotonic_ns();
        bool slow = now - absence->done_ns > SLOW_RETURN_NS;
        if (slow && core->slow_return && fast && computed_ns() - before > SLOW_RETURN_NS)
            core->hold_until_ns = now + HOLD_NS;
        core->slow_return = slow;
    } else if (!fast)
        core->hold_until_ns = 0;
    if (core->hold_until_ns)
        core->turn = (struct turn){PyThread_get_thread_ident(), now, others_computed_ns()};
}

bool keep_mapping(const Core *core, Py_buffer *kept)
{
    return PyObject_GetBuffer(core->mapping, kept, PyBUF_SIMPLE) == 0; /* mmap.close() raises BufferError meanwhile */
}

void let_mapping_go(Py_buffer *kept)
{
    PyBuffer_Release(kept);
}

bool take_both(Core *core)
{
    if (core->writing->waiters || core->guard->waiters || !lock_try(core->writing))
        return false;
    if (lock_try(core->guard))
        return true;
    lock_release(core->writing);
    return false;
}

void release_both(Core *core)
{
    lock_release(core->guard);
    lock_release(core->writing);
}
