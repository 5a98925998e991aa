/* The base of pmwal.Record. Numbers stay C integers until they are read: scans create millions of records a second. */
#include "record.h"

#include "check.h"

typedef struct {
    PyObject_HEAD
    unsigned long long seq;
    long long time_ns;
    PyObject *data; /* exactly bytes, so a record can be part of no reference cycle */
    unsigned short kind;
} Record;

static Record *make(PyTypeObject *type, unsigned long long seq, unsigned short kind, long long time_ns, PyObject *data)
{
    PMWAL_CHECK(PyBytes_CheckExact(data));
    Record *record = (Record *)type->tp_alloc(type, 0);
    if (!record) {
        Py_DECREF(data);
        return NULL;
    }
    record->seq = seq;
    record->kind = kind;
    record->time_ns = time_ns;
    record->data = data;
    return record;
}

PyObject *bound_new(PyTypeObject *type, uint64_t position, uint64_t seq)
{
    PyObject *bound = type->tp_alloc(type, 2);
    if (!bound)
        return NULL;
    PyTuple_SET_ITEM(bound, 0, PyLong_FromUnsignedLongLong(position));
    PyTuple_SET_ITEM(bound, 1, PyLong_FromUnsignedLongLong(seq));
    if (!PyTuple_GET_ITEM(bound, 0) || !PyTuple_GET_ITEM(bound, 1))
        Py_CLEAR(bound);
    return bound;
}

PyObject *record_new(PyTypeObject *type, const struct record *header, PyObject *data)
{
    return (PyObject *)make(type, header->seq, header->kind, header->time_ns, data);
}

static PyObject *record_create(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"seq", "kind", "time_ns", "data", NULL};
    PyObject *seq, *data;
    int kind;
    long long time_ns;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!iLS:Record", names, &PyLong_Type, &seq, &kind, &time_ns, &data))
        return NULL;
    unsigned long long number = PyLong_AsUnsignedLongLong(seq);
    if (PyErr_Occurred())
        return NULL;
    if (kind < 0 || kind > (int)PMWAL_KIND_MAX) {
        PyErr_Format(PyExc_ValueError, "kind must be from 0 to %d, not %d", (int)PMWAL_KIND_MAX, kind);
        return NULL;
    }
    data = PyBytes_CheckExact(data) ? Py_NewRef(data) : PyBytes_FromObject(data);
    return data ? (PyObject *)make(type, number, (unsigned short)kind, time_ns, data) : NULL;
}

static void record_dealloc(Record *record)
{
    PyTypeObject *type = Py_TYPE(record);
    Py_XDECREF(record->data);
    type->tp_free(record);
    Py_DECREF(type);
}

static PyObject *record_compare(Record *one, PyObject *other, int operation)
{
    if ((operation != Py_EQ && operation != Py_NE) || Py_TYPE(one) != Py_TYPE(other))
        Py_RETURN_NOTIMPLEMENTED;
    Record *two = (Record *)other;
    int equal = one->seq == two->seq && one->kind == two->kind && one->time_ns == two->time_ns;
    if (equal)
        equal = PyObject_RichCompareBool(one->data, two->data, Py_EQ);
    if (equal < 0)
        return NULL;
    return PyBool_FromLong(operation == Py_EQ ? equal : !equal);
}

static PyObject *as_tuple(Record *record)
{
    return Py_BuildValue("(KHLO)", record->seq, record->kind, record->time_ns, record->data);
}

static Py_hash_t record_hash(Record *record)
{
    PyObject *tuple = as_tuple(record);
    Py_hash_t hash = tuple ? PyObject_Hash(tuple) : -1;
    Py_XDECREF(tuple);
    return hash;
}

static PyObject *record_reduce(Record *record, PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("(ON)", Py_TYPE(record), as_tuple(record));
}

static PyMethodDef methods[] = {
    {"__reduce__", (PyCFunction)record_reduce, METH_NOARGS, NULL},
    {0},
};

static PyMemberDef members[] = {
    {"seq", T_ULONGLONG, offsetof(Record, seq), READONLY, NULL},
    {"kind", T_USHORT, offsetof(Record, kind), READONLY, NULL},
    {"time_ns", T_LONGLONG, offsetof(Record, time_ns), READONLY, NULL},
    {"data", T_OBJECT_EX, offsetof(Record, data), READONLY, NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "The base of pmwal.Record."},
    {Py_tp_new, record_create},
    {Py_tp_dealloc, record_dealloc},
    {Py_tp_richcompare, record_compare},
    {Py_tp_hash, record_hash},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {0},
};

PyType_Spec record_spec = {"pmwal.native._native.Record", sizeof(Record), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};
