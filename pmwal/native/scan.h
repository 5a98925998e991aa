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

/* A walk over whole records of a window, and where each one begins. */
struct found_records {
    struct bound at;
    size_t passed; /* of the starts of epochs */
    uint64_t count, count_max, *positions;
};

/* Continues the walk over whole records that the rules take, as long as they have `bytes_max` bytes in all; false where it ends. */
bool find_records(const struct geometry *g, const struct window *window, const struct run_rules *rules, struct found_records *found,
                  uint64_t bytes_max);

/* A copy of the whole record at this position of a window, and its header. NULL with an exception set. */
PyObject *record_in(const struct geometry *g, PyTypeObject *record_type, const struct window *window, uint64_t position,
                    struct record *header);

#endif
