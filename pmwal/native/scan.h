/* What Python passes to a scan: where it begins, which records it takes, and bytes of the ring. */
#ifndef PMWAL_SCAN_H
#define PMWAL_SCAN_H

#include "core.h"
#include "record.h"
#include "ring.h"

/* Converters for "O&" in PyArg_ParseTuple(): 1, or 0 with an exception set. */

/* pmwal.records.Bound to struct bound. */
int parse_bound(PyObject *object, void *bound);

/* pmwal.format.ring.Rules to struct run_rules, which is valid for as long as the object is; its lap_seq and bytes_max are 0. */
int parse_rules(PyObject *object, void *rules);

/* pmwal.format.ring.Window. Zero it before; PyBuffer_Release() of its buffer after a successful parse. */
struct scan_window {
    Py_buffer buffer;
    struct window bytes;
    uint64_t lap_seq; /* the number in the header at the ring's start */
};

int parse_window(PyObject *object, void *window);

/* Whether `type` is a subclass of this module's Record; false with an exception set. `ours` is any type of the module. */
bool check_record_type(PyTypeObject *ours, PyObject *type);

#endif
