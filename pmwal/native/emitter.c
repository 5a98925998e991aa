/* One event of pmwal.events, as a call: packs its arguments on the stack and stores them on the fast path of append.
 *
 * Like handle.c it takes the ordinary case: as many arguments as parameters, small and of exactly the plain types; a copy of the
 * definition in the log; a log that is free to store to. All else goes to pmwal.events.logger.Emitter before anything is stored.
 * Both pack the same bytes: see pmwal/events/arguments.py, and tests/test_events.py, which compares them.
 */
#include <string.h>

#include "handle.h"

#include <datetime.h> /* wants Python.h before it */

#define STACK_PAYLOAD 1024
#define PARAMETERS_MAX 64

enum tag { TAG_NONE, TAG_FALSE, TAG_TRUE, TAG_INT, TAG_LARGE_INT, TAG_FLOAT, TAG_STR, TAG_BYTES, TAG_DATETIME, TAG_DATETIME_ZONE };

/* The base of pmwal.writing.retained.RetainedRecord. */
typedef struct {
    PyObject_HEAD
    unsigned long long seq;       /* of the newest copy in the log, or 0 */
    unsigned long long last_used; /* no newer record needs one */
} Retained;

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    Handle *handle; /* NULL once the garbage collector has cleared it */
    Retained *retained;
    PyObject *slow;
    PyObject *names; /* a tuple: the parameters after the positional-only ones */
    PyObject *datetime_type, *utc;
    uint64_t number;
    Py_ssize_t positional;
    uint16_t kind;
} Emitter;

/* Where the next packed bytes go, and the end of the buffer. */
struct packed {
    unsigned char *at, *end;
};

static bool put_tag(struct packed *packed, enum tag tag, size_t more)
{
    if ((size_t)(packed->end - packed->at) < 1 + more)
        return false;
    *packed->at++ = (unsigned char)tag;
    PMWAL_CHECK((size_t)(packed->end - packed->at) >= more);
    return true;
}

static bool put_word(struct packed *packed, enum tag tag, const void *word)
{
    if (!put_tag(packed, tag, 8))
        return false;
    memcpy(packed->at, word, 8);
    packed->at += 8;
    return true;
}

static bool put_run(struct packed *packed, enum tag tag, const char *bytes, Py_ssize_t length)
{
    if (length > STACK_PAYLOAD || !put_tag(packed, tag, 4 + (size_t)length))
        return false;
    uint32_t size = (uint32_t)length;
    memcpy(packed->at, &size, 4);
    memcpy(packed->at + 4, bytes, (size_t)length);
    packed->at += 4 + length;
    return true;
}

static bool put_text(struct packed *packed, PyObject *text)
{
    if (PyUnicode_IS_COMPACT_ASCII(text))
        return put_run(packed, TAG_STR, (const char *)PyUnicode_1BYTE_DATA(text), PyUnicode_GET_LENGTH(text));
    if (PyUnicode_GET_LENGTH(text) > STACK_PAYLOAD)
        return false; /* tested first, because a string caches its encoded copy */
    Py_ssize_t length;
    const char *bytes = PyUnicode_AsUTF8AndSize(text, &length);
    if (!bytes && PyErr_ExceptionMatches(PyExc_UnicodeEncodeError))
        PyErr_Clear(); /* a lone surrogate */
    return bytes && put_run(packed, TAG_STR, bytes, length);
}

/* Days from 1970-01-01 in the proleptic Gregorian calendar. Years begin in March here, so that the leap day is the last. */
static int64_t days_since_1970(int year, int month, int day)
{
    int64_t y = month > 2 ? year : year - 1;
    int64_t day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    return 365 * y + y / 4 - y / 100 + y / 400 + day_of_year - 719468;
}

static bool put_datetime(struct packed *packed, PyObject *value, PyObject *utc)
{
    int64_t days = days_since_1970(PyDateTime_GET_YEAR(value), PyDateTime_GET_MONTH(value), PyDateTime_GET_DAY(value));
    int64_t seconds = days * 86400 + PyDateTime_DATE_GET_HOUR(value) * 3600 + PyDateTime_DATE_GET_MINUTE(value) * 60 +
                      PyDateTime_DATE_GET_SECOND(value);
    int64_t microseconds = seconds * 1000000 + PyDateTime_DATE_GET_MICROSECOND(value), offset = 0;
    PyObject *zone = PyDateTime_DATE_GET_TZINFO(value);
    if (zone == Py_None)
        return put_word(packed, TAG_DATETIME, &microseconds);
    if (zone != utc || packed->end - packed->at < 17)
        return false;
    put_word(packed, TAG_DATETIME_ZONE, &microseconds);
    memcpy(packed->at, &offset, 8);
    packed->at += 8;
    return true;
}

/* Packs one argument; false if the slow path must, or with an exception set. Runs no Python code. */
static bool put_argument(const Emitter *self, struct packed *packed, PyObject *value)
{
    if (PyLong_CheckExact(value)) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        return !overflow && put_word(packed, TAG_INT, &number);
    }
    if (PyFloat_CheckExact(value)) {
        double number = PyFloat_AS_DOUBLE(value);
        return put_word(packed, TAG_FLOAT, &number);
    }
    if (PyUnicode_CheckExact(value))
        return put_text(packed, value);
    if (value == Py_None)
        return put_tag(packed, TAG_NONE, 0);
    if (value == Py_True || value == Py_False)
        return put_tag(packed, value == Py_True ? TAG_TRUE : TAG_FALSE, 0);
    if (PyBytes_CheckExact(value))
        return put_run(packed, TAG_BYTES, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value));
    if ((PyObject *)Py_TYPE(value) == self->datetime_type)
        return put_datetime(packed, value, self->utc);
    return false;
}

/* Orders the arguments by parameter. Names in a call are interned, so they are compared by address. */
static bool bind(const Emitter *self, PyObject *const *args, Py_ssize_t given, PyObject *names, PyObject **values)
{
    Py_ssize_t named = PyTuple_GET_SIZE(names), known = PyTuple_GET_SIZE(self->names);
    if (given < self->positional || given + named != self->positional + known)
        return false;
    memcpy(values, args, (size_t)given * sizeof *values);
    memset(values + given, 0, (size_t)named * sizeof *values);
    for (Py_ssize_t i = 0; i < named; i++) {
        Py_ssize_t at = given - self->positional;
        while (at < known && PyTuple_GET_ITEM(self->names, at) != PyTuple_GET_ITEM(names, i))
            at++;
        if (at == known)
            return false; /* unknown, given twice, or not interned */
        values[self->positional + at] = args[given + i];
    }
    for (Py_ssize_t i = given; i < given + named; i++)
        if (!values[i])
            return false;
    return true;
}

static PyObject *emitter_call(Emitter *self, PyObject *const *args, size_t flags, PyObject *names)
{
    unsigned char payload[STACK_PAYLOAD];
    struct packed packed = {payload + sizeof self->number, payload + sizeof payload};
    PyObject *values[PARAMETERS_MAX], *const *given = args;
    Py_ssize_t count = self->positional + PyTuple_GET_SIZE(self->names);
    bool plain = self->handle && self->handle->core;
    if (plain && names && PyTuple_GET_SIZE(names)) {
        plain = bind(self, args, PyVectorcall_NARGS(flags), names, values);
        given = values;
    } else
        plain = plain && PyVectorcall_NARGS(flags) == count;
    memcpy(payload, &self->number, sizeof self->number);
    for (Py_ssize_t i = 0; plain && i < count; i++)
        plain = put_argument(self, &packed, given[i]);
    if (!plain && PyErr_Occurred())
        return NULL;
    Handle *handle = self->handle;
    struct piece piece = {payload, (uint64_t)(packed.at - payload), self->kind, true};
    bool commit = handle->commits_each;
    if (plain)
        handle_prepare(handle, &piece, 1, commit);
    /* The definition's copy stays in the log while this thread has the interpreter, or holds both locks: see
     * pmwal/writing/retained.py. */
    if (plain && self->retained->seq) {
        uint64_t seq = handle->core->state.head.seq;
        unsigned long long before = self->retained->last_used;
        self->retained->last_used = seq;
        int status = handle_store(handle, &piece, &commit);
        if (status <= 0) {
            PMWAL_CHECK(self->retained->seq < seq);
            Py_INCREF(handle);
            PyObject *answer = handle_stored(handle, status, seq, commit);
            Py_DECREF(handle);
            return answer;
        }
        self->retained->last_used = before;
    }
    return PyObject_Vectorcall(self->slow, args, flags, names);
}

static PyObject *emitter_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *words[] = {"handle", "retained", "slow", "number", "kind", "positional", "names", "datetime_type", "utc", NULL};
    struct module_state *module = state_of(type);
    PyObject *handle, *retained, *slow, *names, *datetime_type, *utc;
    unsigned long long number;
    unsigned short kind;
    Py_ssize_t positional;
    (void)PyDateTimeAPI; /* unused: the fields of exact datetimes are read by macros */
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!O!OKHnO!O!O:Emitter", words, module->handle_type, &handle,
                                     module->retained_type, &retained, &slow, &number, &kind, &positional, &PyTuple_Type, &names,
                                     &PyType_Type, &datetime_type, &utc))
        return NULL;
    if (positional < 0 || positional > PARAMETERS_MAX - PyTuple_GET_SIZE(names)) {
        PyErr_Format(PyExc_ValueError, "an event has at most %d parameters", PARAMETERS_MAX);
        return NULL;
    }
    PyObject *interned = PyTuple_New(PyTuple_GET_SIZE(names));
    for (Py_ssize_t i = 0; interned && i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        if (!PyUnicode_CheckExact(name)) {
            PyErr_SetString(PyExc_TypeError, "names are strings");
            Py_CLEAR(interned);
        } else {
            Py_INCREF(name);
            PyUnicode_InternInPlace(&name);
            PyTuple_SET_ITEM(interned, i, name);
        }
    }
    Emitter *emitter = interned ? (Emitter *)type->tp_alloc(type, 0) : NULL;
    if (!emitter) {
        Py_XDECREF(interned);
        return NULL;
    }
    emitter->call = (vectorcallfunc)(void (*)(void))emitter_call;
    emitter->handle = (Handle *)Py_NewRef(handle);
    emitter->retained = (Retained *)Py_NewRef(retained);
    emitter->slow = Py_NewRef(slow);
    emitter->names = interned;
    emitter->datetime_type = Py_NewRef(datetime_type);
    emitter->utc = Py_NewRef(utc);
    emitter->number = number;
    emitter->positional = positional;
    emitter->kind = kind;
    return (PyObject *)emitter;
}

static int emitter_traverse(Emitter *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->handle);
    Py_VISIT(self->retained);
    Py_VISIT(self->slow);
    Py_VISIT(self->names);
    Py_VISIT(self->datetime_type);
    Py_VISIT(self->utc);
    return 0;
}

static int emitter_clear(Emitter *self)
{
    Py_CLEAR(self->handle); /* the only member that can be part of a cycle */
    return 0;
}

static void emitter_dealloc(Emitter *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->handle);
    Py_XDECREF(self->retained);
    Py_XDECREF(self->slow);
    Py_XDECREF(self->names);
    Py_XDECREF(self->datetime_type);
    Py_XDECREF(self->utc);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *emitter_repr(Emitter *self)
{
    return PyObject_Repr(self->slow);
}

static PyMemberDef retained_members[] = {
    {"seq", T_ULONGLONG, offsetof(Retained, seq), 0, NULL},
    {"last_used", T_ULONGLONG, offsetof(Retained, last_used), 0, NULL},
    {0},
};

static PyType_Slot retained_slots[] = {
    {Py_tp_doc, "The base of pmwal.writing.retained.RetainedRecord."},
    {Py_tp_members, retained_members},
    {0},
};

PyType_Spec retained_spec = {"pmwal.native._native.Retained", sizeof(Retained), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
                             retained_slots};

static PyMemberDef emitter_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Emitter, call), READONLY, NULL},
    {0},
};

static PyType_Slot emitter_slots[] = {
    {Py_tp_doc, "An event as a call; see pmwal.events."},
    {Py_tp_new, emitter_new},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_repr, emitter_repr},
    {Py_tp_traverse, emitter_traverse},
    {Py_tp_clear, emitter_clear},
    {Py_tp_dealloc, emitter_dealloc},
    {Py_tp_members, emitter_members},
    {0},
};

PyType_Spec emitter_spec = {"pmwal.native._native.Emitter", sizeof(Emitter), 0,
                            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_IMMUTABLETYPE,
                            emitter_slots};
