/* How long commits took, in counters of the layout that pmwal/latency.py describes. No Python, no I/O. */
#ifndef PMWAL_LATENCY_H
#define PMWAL_LATENCY_H

#include "format.h"

struct latency {
    uint64_t step; /* one commit of so many is timed; a power of two */
    uint64_t total_ns, max_ns;
    uint64_t counters[PMWAL_LATENCY_COUNTERS];
};

static inline void latency_add(struct latency *latency, int64_t duration_ns)
{
    uint64_t ns = duration_ns > 0 ? (uint64_t)duration_ns : 0;
    uint64_t kept = ns < PMWAL_LATENCY_NS_MAX ? ns : PMWAL_LATENCY_NS_MAX;
    int shift = __builtin_clzll(2 * PMWAL_LATENCY_HALF - 1) - __builtin_clzll(kept | (2 * PMWAL_LATENCY_HALF - 1));
    latency->counters[(uint64_t)shift * PMWAL_LATENCY_HALF + (kept >> shift)]++;
    latency->total_ns += ns;
    if (ns > latency->max_ns)
        latency->max_ns = ns;
}

#endif
