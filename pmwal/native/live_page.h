/* The live page: what a running writer shows to readers in other processes. */
#ifndef PMWAL_LIVE_PAGE_H
#define PMWAL_LIVE_PAGE_H

#include "core.h"

#include "futex.h"
#include "live.h"

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

/* Shows the bounds: for readers in other processes. The caller holds `guard`. 0, or -1 with an exception set. */
int core_show(Core *core);

/* Whether the next commit is to be timed. */
static inline bool is_timed(const Core *core)
{
    return !(core->commits & (core->latency.step - 1));
}

/* Counts a commit that was timed, and shows it. As core_show(). */
int note_latency(Core *core, int64_t duration_ns);

#endif
