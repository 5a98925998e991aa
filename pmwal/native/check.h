/* Checks of invariants at run time. A check that fails is a bug in this code, never a property of a medium or of a caller's data.
 *
 * Builds with PMWAL_CHECKS (setup.py: PMWAL_CHECK=1; the fuzzer and the sanitizers always) print which one failed, and abort. All
 * others compile a check and leave nothing of it. A check never reads the mapping outside a fault guard: see fault.h.
 */
#ifndef PMWAL_CHECK_H
#define PMWAL_CHECK_H

#ifdef PMWAL_CHECKS
#include <stdio.h>
#include <stdlib.h>

__attribute__((noreturn, cold, unused)) static void check_failure(const char *condition, const char *file, int line)
{
    fprintf(stderr, "pmwal: check failed: %s, %s:%d\n", condition, file, line);
    abort();
}

#define PMWAL_CHECK(condition) ((condition) ? (void)0 : check_failure(#condition, __FILE__, __LINE__))
#else
#define PMWAL_CHECK(condition) ((void)sizeof((condition) ? 1 : 0))
#endif

#endif
