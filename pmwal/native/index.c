#include "index.h"

#include "record.h"

/* What follows from the newest entry. */
static void set_next(Index *index)
{
    index->next = index->count ? index_at(index, index->count - 1)->position + PMWAL_INDEX_STEP : 0;
}

void index_take(Index *index, size_t pending)
{
    index->count += pending;
    PMWAL_CHECK(index->count <= index->room);
    set_next(index);
}

/* How many entries are of records before this number. */
static size_t count_before(const Index *index, uint64_t seq)
{
    size_t low = 0, high = index->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (index_at(index, middle)->seq < seq)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* A number as callers give it, which may be any integer, as one that compares with every record's as it does. */
static int parse_number(PyObject *value, uint64_t *seq)
{
    int overflow;
    *seq = PyLong_AsUnsignedLongLong(value);
    if (!PyErr_Occurred())
        return 0;
    if (!PyErr_ExceptionMatches(PyExc_OverflowError))
        return -1;
    PyErr_Clear();
    (void)PyLong_AsLongLongAndOverflow(value, &overflow);
    *seq = overflow > 0 ? PMWAL_SEQ_MAX : 0;
    return 0;
}

static PyObject *new_bound(const Index *index, struct bound bound)
{
    return bound_new(index->bound_type, bound.position, bound.seq);
}

static PyObject *index_floor(Index *index, PyObject *args)
{
    PyObject *number, *tail;
    unsigned long long position, tail_seq;
    uint64_t seq;
    if (!PyArg_ParseTuple(args, "OO!:floor", &number, &PyTuple_Type, &tail) || parse_number(number, &seq) ||
        !PyArg_ParseTuple(tail, "KK:floor", &position, &tail_seq))
        return NULL;
    size_t before = count_before(index, seq + 1);
    if (!before || index_at(index, before - 1)->seq < tail_seq)
        return Py_NewRef(tail);
    return new_bound(index, *index_at(index, before - 1));
}

static PyObject *index_drop_before(Index *index, PyObject *value)
{
    uint64_t seq;
    if (parse_number(value, &seq))
        return NULL;
    size_t dropped = count_before(index, seq);
    index->first += dropped;
    index->count -= dropped;
    set_next(index);
    Py_RETURN_NONE;
}

static PyObject *index_drop_from(Index *index, PyObject *value)
{
    uint64_t seq;
    if (parse_number(value, &seq))
        return NULL;
    index->count = count_before(index, seq);
    set_next(index);
    Py_RETURN_NONE;
}

static PyObject *index_entries(Index *index, void *Py_UNUSED(closure))
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < index->count; i++) {
        PyObject *entry = new_bound(index, *index_at(index, i));
        if (!entry || PyList_Append(list, entry))
            Py_CLEAR(list);
        Py_XDECREF(entry);
    }
    return list;
}

/* Takes over what recovery found; false with an exception set if that is no index of such a log. */
static bool take_entries(Index *index, PyObject *entries)
{
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(entries); i++) {
        unsigned long long position, seq;
        PyObject *entry = PySequence_Fast_GET_ITEM(entries, i);
        if (!PyTuple_Check(entry) || !PyArg_ParseTuple(entry, "KK", &position, &seq))
            PyErr_SetString(PyExc_TypeError, "the entries of an index are bounds");
        else if ((uint64_t)i == index->room || position < index->next ||
                 (i && seq <= index_at(index, index->count - 1)->seq))
            PyErr_SetString(PyExc_ValueError, "the entries of an index are in order, a step apart, and fit into the ring");
        else {
            index_put(index, 0, (struct bound){position, seq});
            index_take(index, 1);
            continue;
        }
        return false;
    }
    return true;
}

static PyObject *index_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"entries", "capacity", "bound_type", NULL};
    PyObject *entries, *bound_type;
    unsigned long long capacity;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OKO!:Index", names, &entries, &capacity, &PyType_Type, &bound_type))
        return NULL;
    if (!PyType_IsSubtype((PyTypeObject *)bound_type, &PyTuple_Type) || capacity > PMWAL_POSITION_MAX) {
        PyErr_SetString(PyExc_ValueError, "capacity is that of a ring, bound_type a named tuple");
        return NULL;
    }
    entries = PySequence_Fast(entries, "entries are a sequence");
    Index *index = entries ? (Index *)type->tp_alloc(type, 0) : NULL;
    if (index) {
        index->bound_type = (PyTypeObject *)Py_NewRef(bound_type);
        for (index->room = 2; index->room < capacity / PMWAL_INDEX_STEP + 2;)
            index->room *= 2;
        index->entries = PyMem_RawCalloc(index->room, sizeof *index->entries);
        if (!index->entries)
            PyErr_NoMemory();
        if (!index->entries || !take_entries(index, entries))
            Py_CLEAR(index);
    }
    Py_XDECREF(entries);
    return (PyObject *)index;
}

static void index_dealloc(Index *index)
{
    PyTypeObject *type = Py_TYPE(index);
    PyMem_RawFree(index->entries);
    Py_XDECREF(index->bound_type);
    type->tp_free(index);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"floor", (PyCFunction)index_floor, METH_VARARGS, NULL},
    {"drop_before", (PyCFunction)index_drop_before, METH_O, NULL},
    {"drop_from", (PyCFunction)index_drop_from, METH_O, NULL},
    {0},
};

static PyGetSetDef getset[] = {
    {"entries", (getter)index_entries, NULL, NULL, NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "The sparse index of a log over the native engine: pmwal.format.index.SparseIndex in C."},
    {Py_tp_new, index_new},
    {Py_tp_dealloc, index_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {0},
};

PyType_Spec index_spec = {"pmwal.native._native.Index", sizeof(Index), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, slots};
