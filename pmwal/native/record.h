/* Records and bounds as Python sees them. */
#ifndef PMWAL_RECORD_H
#define PMWAL_RECORD_H

#include "module.h"

#include "format.h"

/* A pmwal.records.Bound, which is a named tuple of two. NULL with an exception set. */
PyObject *bound_new(PyTypeObject *type, uint64_t position, uint64_t seq);

/* A pmwal.Record: steals the reference to `data`. NULL with an exception set. */
PyObject *record_new(PyTypeObject *type, const struct record *header, PyObject *data);

#endif
