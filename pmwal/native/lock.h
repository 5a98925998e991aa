/* The type Lock: reentrant, like threading.RLock, and its state is open to C code that holds the interpreter. */
#ifndef PMWAL_LOCK_H
#define PMWAL_LOCK_H

#include "module.h"

/* The interpreter's lock guards the fields. */
typedef struct {
    PyObject_HEAD
    PyThread_type_lock block;
    unsigned long owner; /* thread that holds it, meaningful while count > 0 */
    unsigned long count;
    unsigned long waiters; /* threads that wait for it */
} Lock;

static inline bool lock_is_mine(const Lock *lock)
{
    return lock->count && lock->owner == PyThread_get_thread_ident();
}

/* Whether no other thread holds it. */
static inline bool lock_admits(const Lock *lock)
{
    return !lock->count || lock_is_mine(lock);
}

/* Takes a free lock for this thread, or returns false. The caller holds the interpreter. */
bool lock_try(Lock *lock);
void lock_release(Lock *lock);

#endif
