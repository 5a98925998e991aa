/* Waiting for the next records of a log that another process writes. */
#ifndef PMWAL_FOLLOWER_H
#define PMWAL_FOLLOWER_H

#include "scan.h"

/* Scanner.follower of a scanner of this geometry: see follower.c. */
PyObject *follower_new(const struct module_state *state, const struct geometry *g, PyObject *args, PyObject *keywords);

#endif
