/* A histogram of commit latencies, in the layout that pmwal/latency.py describes. No Python, no I/O. */
#ifndef PMWAL_LATENCY_H
#define PMWAL_LATENCY_H

#include "check.h"
#include "format.h"

struct latency {
    uint64_t step; /* one commit in `step` is timed; a power of two */
    uint64_t total_ns, max_ns;
    uint64_t counters[PMWAL_LATENCY_COUNTERS];
    uint32_t live_counters[PMWAL_LIVE_LATENCY_COUNTERS]; /* what the live page shows */
};

/* The index of the counter for a duration of at most PMWAL_LATENCY_NS_MAX, with `half` counters for each doubling. */
static inline uint64_t latency_counter(uint64_t ns, uint64_t half)
{
    int shift = __builtin_clzll(2 * half - 1) - __builtin_clzll(ns | (2 * half - 1));
    return (uint64_t)shift * half + (ns >> shift);
}

/* Counts one commit. Returns the index of the live counter. */
static inline uint64_t latency_add(struct latency *latency, int64_t duration_ns)
{
    uint64_t ns = duration_ns > 0 ? (uint64_t)duration_ns : 0;
    uint64_t kept = ns < PMWAL_LATENCY_NS_MAX ? ns : PMWAL_LATENCY_NS_MAX;
    uint64_t live = latency_counter(kept, PMWAL_LIVE_LATENCY_HALF);
    PMWAL_CHECK(live < PMWAL_LIVE_LATENCY_COUNTERS);
    latency->counters[latency_counter(kept, PMWAL_LATENCY_HALF)]++;
    latency->live_counters[live]++;
    latency->total_ns += ns;
    if (ns > latency->max_ns)
        latency->max_ns = ns;
    return live;
}

#endif
