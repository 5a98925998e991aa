/* Search: what search.c finds, for pmwal/recovery/search.py, which loads the bytes. A call may run beside other Python threads. */
#include <stdlib.h>

#include <string.h>

#include "scan.h"

#include "parallel.h"
#include "search.h"

#define PIECE_MAX (UINT64_C(1) << 30)
#define CANDIDATES_MIN 4096 /* in one call, from which a thread is worth its start in the next */

typedef struct {
    PyObject_HEAD
    struct search search, second; /* the second takes part where there are many candidates */
    uint64_t candidates;          /* of the last call */
    bool busy;                    /* a call runs without the interpreter */
} Search;

/* The spans as an array of malloc(); NULL with an exception set. They are adjacent, begin at words and are not empty. */
static struct search_span *parse_spans(PyObject *spans, size_t *count)
{
    PyObject *items = PySequence_Fast(spans, "spans is a sequence");
    if (!items)
        return NULL;
    *count = (size_t)PySequence_Fast_GET_SIZE(items);
    struct search_span *parsed = calloc(*count ? *count : 1, sizeof *parsed);
    if (!parsed)
        PyErr_NoMemory();
    else if (!*count)
        PyErr_SetString(PyExc_ValueError, "no spans");
    for (size_t i = 0; !PyErr_Occurred() && i < *count; i++) {
        unsigned long long start, end;
        int data;
        if (!PyArg_ParseTuple(PySequence_Fast_GET_ITEM(items, (Py_ssize_t)i), "KKp;a span has three fields", &start, &end, &data))
            break;
        parsed[i] = (struct search_span){.start = start, .end = end, .data = data};
        if (start >= end || (start | end) % 8 || (i && start != parsed[i - 1].end))
            PyErr_SetString(PyExc_ValueError, "spans that are not adjacent");
    }
    Py_DECREF(items);
    if (!PyErr_Occurred())
        return parsed;
    free(parsed);
    return NULL;
}

static bool parse_limits(PyObject *object, struct search_limits *limits)
{
    unsigned long long base, epoch, seq_min, newer_seq_min;
    int placed;
    if (!PyArg_ParseTuple(object, "pKKKK;limits have five fields", &placed, &base, &epoch, &seq_min, &newer_seq_min))
        return false;
    if (!seq_min || !newer_seq_min || epoch > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "no record has such limits");
        return false;
    }
    *limits = (struct search_limits){placed, base, (uint32_t)epoch, seq_min, newer_seq_min};
    return true;
}

static PyObject *search_create(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"capacity", "alignment", "payload_max", "uuid_crc", "limits", "spans", "piece", "portable", NULL};
    unsigned long long capacity, alignment, payload_max, piece;
    unsigned int uuid_crc;
    PyObject *limits, *spans;
    int portable = 0;
    size_t count = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "KKKIO!OK|p:Search", names, &capacity, &alignment, &payload_max, &uuid_crc,
                                     &PyTuple_Type, &limits, &spans, &piece, &portable))
        return NULL;
    if (!geometry_possible(capacity, alignment, payload_max) || piece < PMWAL_ALIGN_MAX || piece > PIECE_MAX || piece & (piece - 1))
        return PyErr_Format(PyExc_ValueError, "no log has this geometry");
    Search *self = (Search *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    struct search *search = &self->search;
    struct search_span *parsed;
    search->geometry = (struct geometry){capacity, alignment, payload_max, 0, uuid_crc};
    search->linear = portable ? &linear_portable : &linear;
    search->piece_shift = (unsigned)__builtin_ctzll(piece);
    if (!parse_limits(limits, &search->limits) || !(parsed = parse_spans(spans, &count))) {
        Py_DECREF(self);
        return NULL;
    }
    struct search_span *copied = malloc(count * sizeof *copied);
    if (copied)
        memcpy(copied, parsed, count * sizeof *copied);
    self->second = *search;
    self->second.share = SECOND_HALVES;
    enum search_end end = search_begin(search, parsed, count);
    if (end == SEARCH_OK)
        end = copied ? search_begin(&self->second, copied, count) : SEARCH_NO_MEMORY;
    else
        free(copied);
    if (end == SEARCH_OK && parsed[count - 1].end == capacity && parsed[0].start % alignment == 0)
        return (PyObject *)self;
    Py_DECREF(self);
    return end == SEARCH_OK ? PyErr_Format(PyExc_ValueError, "spans that do not end with the ring") : PyErr_NoMemory();
}

static void search_dealloc(Search *self)
{
    PyTypeObject *type = Py_TYPE(self);
    search_free(&self->search);
    search_free(&self->second);
    type->tp_free(self);
    Py_DECREF(type);
}

/* The ring offsets of the whole records found since the last call, as 64-bit words. */
static PyObject *take_found(struct search *first, struct search *second)
{
    size_t size = first->hit_count * sizeof *first->hits, more = second->hit_count * sizeof *second->hits;
    PyObject *found = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(size + more));
    if (!found)
        return NULL;
    if (size)
        memcpy(PyBytes_AS_STRING(found), first->hits, size);
    if (more)
        memcpy(PyBytes_AS_STRING(found) + size, second->hits, more);
    first->hit_count = second->hit_count = 0;
    return found;
}

static PyObject *settled(Search *self, enum search_end end)
{
    self->busy = false;
    if (end == SEARCH_NO_MEMORY)
        return PyErr_NoMemory();
    if (end == SEARCH_FAULT) {
        raise_unreadable();
        return NULL;
    }
    return take_found(&self->search, &self->second);
}

/* By two threads if the last bytes had many candidates. Otherwise the second search only settles what waits in it. */
static enum search_end search_due(Search *self, const unsigned char *bytes, uint64_t length, uint64_t starts, uint64_t held)
{
    struct search *first = &self->search, *second = &self->second;
    uint64_t before = first->candidates + second->candidates;
    enum search_end end;
    if (self->candidates < CANDIDATES_MIN || !search_halves(first, second, bytes, length, starts, held, &end)) {
        end = search_bytes(first, bytes, length, starts, held);
        if (end == SEARCH_OK && second->pending)
            end = search_bytes(second, bytes, length, 0, held);
        second->at = first->at;
    }
    self->candidates = first->candidates + second->candidates - before;
    return end;
}

/* The span that is due, if it is of this kind. */
static const struct search_span *due_span(const Search *self, bool data)
{
    const struct search_span *span = search_span_at(&self->search, self->search.at);
    if (!self->busy && span && span->data == data)
        return span;
    PyErr_SetString(PyExc_ValueError, "not the span that is due");
    return NULL;
}

static PyObject *search_data_method(Search *self, PyObject *args)
{
    Py_buffer buffer;
    unsigned long long length, starts;
    if (!PyArg_ParseTuple(args, "y*KK:data", &buffer, &length, &starts))
        return NULL;
    PyObject *answer = NULL;
    const struct search_span *span = due_span(self, true);
    uint64_t rest = span ? span->end - self->search.at : 0, piece = span ? UINT64_C(1) << span->shift : 1;
    if (span && (length > (unsigned long long)buffer.len || starts > length || length > rest || !length ||
                 (length != rest && length % piece) || (self->search.at - span->start) % piece))
        PyErr_SetString(PyExc_ValueError, "not whole pieces");
    else if (span) {
        enum search_end end;
        self->busy = true;
        Py_BEGIN_ALLOW_THREADS
        end = search_due(self, buffer.buf, length, starts, (uint64_t)buffer.len);
        Py_END_ALLOW_THREADS
        answer = settled(self, end);
    }
    PyBuffer_Release(&buffer);
    return answer;
}

static PyObject *search_hole_method(Search *self, PyObject *Py_UNUSED(ignored))
{
    const struct search_span *span = due_span(self, false);
    enum search_end end = span ? search_hole(&self->search, span) : SEARCH_OK;
    if (span && end == SEARCH_OK)
        end = search_hole(&self->second, span);
    return span ? settled(self, end) : NULL;
}

/* Back to where the search was. Nothing is pending, so registers may begin with any value again. */
static PyObject *search_rewind(Search *self, PyObject *at)
{
    unsigned long long offset = PyLong_AsUnsignedLongLong(at);
    if (PyErr_Occurred())
        return NULL;
    if (self->busy || self->search.pending || self->second.pending)
        return PyErr_Format(PyExc_ValueError, "candidates wait for later pieces");
    self->search.at = self->second.at = offset;
    Py_RETURN_NONE;
}

static PyMethodDef search_methods[] = {
    {"data", (PyCFunction)search_data_method, METH_VARARGS, NULL},
    {"hole", (PyCFunction)search_hole_method, METH_NOARGS, NULL},
    {"rewind", (PyCFunction)search_rewind, METH_O, NULL},
    {0},
};

static PyMemberDef search_members[] = {
    {"at", T_ULONGLONG, offsetof(Search, search.at), READONLY, NULL},
    {"shared", T_ULONGLONG, offsetof(Search, second.candidates), READONLY, NULL},
    {0},
};

/* The sum of this field, which lies at `offset` in both searches. */
static PyObject *search_sum(PyObject *self, void *offset)
{
    uint64_t first, second;
    memcpy(&first, (const char *)&((Search *)self)->search + (size_t)offset, sizeof first);
    memcpy(&second, (const char *)&((Search *)self)->second + (size_t)offset, sizeof second);
    return PyLong_FromUnsignedLongLong(first + second);
}

static PyGetSetDef search_sums[] = {
    {"pending", search_sum, NULL, NULL, (void *)offsetof(struct search, pending)},
    {"candidates", search_sum, NULL, NULL, (void *)offsetof(struct search, candidates)},
    {"summed", search_sum, NULL, NULL, (void *)offsetof(struct search, summed)},
    {0},
};

static PyType_Slot search_slots[] = {
    {Py_tp_doc, "Finds whole records in a part of a ring, wherever they start."},
    {Py_tp_new, search_create},
    {Py_tp_dealloc, search_dealloc},
    {Py_tp_methods, search_methods},
    {Py_tp_members, search_members},
    {Py_tp_getset, search_sums},
    {0},
};

PyType_Spec search_spec = {"pmwal.native._native.Search", sizeof(Search), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
                           search_slots};
