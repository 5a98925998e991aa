/* Converters of what Python passes to a scan: see scan.h. */
#include "scan.h"

static bool check_tuple(PyObject *object, const char *what)
{
    if (PyTuple_Check(object))
        return true;
    PyErr_Format(PyExc_TypeError, "%s expected, not %.100s", what, Py_TYPE(object)->tp_name);
    return false;
}

int parse_bound(PyObject *object, void *bound)
{
    unsigned long long position, seq;
    if (!check_tuple(object, "a Bound") || !PyArg_ParseTuple(object, "KK;a Bound has two numbers", &position, &seq))
        return 0;
    *(struct bound *)bound = (struct bound){position, seq};
    return 1;
}

int parse_rules(PyObject *object, void *rules)
{
    unsigned long long stop_seq, limit, newest, newest_first_seq;
    int batches;
    PyObject *starts;
    if (!check_tuple(object, "Rules") || !PyArg_ParseTuple(object, "KKKKpS;Rules have six fields", &stop_seq, &limit, &newest,
                                                           &newest_first_seq, &batches, &starts))
        return 0;
    struct epochs epochs = {(uint32_t)newest, newest_first_seq, (const unsigned char *)PyBytes_AS_STRING(starts),
                            (size_t)PyBytes_GET_SIZE(starts) / sizeof(struct epoch_start)};
    *(struct run_rules *)rules = (struct run_rules){.stop_seq = stop_seq, .limit = limit, .epochs = epochs, .batches = batches};
    return 1;
}

int parse_window(PyObject *object, void *to)
{
    struct scan_window *window = to;
    unsigned long long start, lap_seq;
    if (!object) { /* a later argument was refused */
        PyBuffer_Release(&window->buffer);
        return 0;
    }
    if (!check_tuple(object, "a Window") ||
        !PyArg_ParseTuple(object, "y*KK;a Window has three fields", &window->buffer, &start, &lap_seq))
        return 0;
    window->bytes = (struct window){window->buffer.buf, start, (uint64_t)window->buffer.len};
    window->lap_seq = lap_seq;
    return Py_CLEANUP_SUPPORTED;
}

bool check_record_type(PyTypeObject *ours, PyObject *type)
{
    if (PyType_Check(type) && PyType_IsSubtype((PyTypeObject *)type, state_of(ours)->record_type))
        return true;
    PyErr_SetString(PyExc_TypeError, "record_type is a subclass of Record");
    return false;
}
