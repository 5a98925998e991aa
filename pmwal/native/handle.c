/* The fast path through append, extend and commit: one C call for the ordinary case.
 *
 * pmwal.writing.wal.Wal has the same methods in Python, and pmwal.writing.native_engine.NativeWal inherits from both. Everything
 * else (wrong arguments, no room, a closed or poisoned handle, a lock that another thread holds, a test's seam) goes to the Python
 * method, under its name with "_slow" in front, before anything is stored. So policy and messages are in Python alone.
 */
#include <string.h>

#include "handle.h"

#include "at_once.h"
#include "batch.h"
#include "commit.h"
#include "outside.h"

#define STACK_PIECES 64

/* What became of a payload: its bytes are in a view; only the slow path can judge it; or an exception is set. */
enum taken { TAKEN, SLOW, RAISED };

/* Poisons the handle, and replaces the OSError that is set with its PersistError. Always NULL. */
static PyObject *fail(Handle *self)
{
    PyObject *type, *value, *trace;
    if (!PyErr_ExceptionMatches(PyExc_OSError))
        return NULL;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace)
        PyException_SetTraceback(value, trace);
    PyObject *error = PyObject_CallMethod((PyObject *)self, "_fail", "O", value);
    if (error) {
        PyException_SetCause(error, Py_NewRef(value));
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return NULL;
}

static bool plain_kind(PyObject *value, uint16_t *kind)
{
    int overflow;
    long number = PyLong_CheckExact(value) ? PyLong_AsLongAndOverflow(value, &overflow) : -1;
    if (number < 0 || number > (long)PMWAL_KIND_MAX) /* -1 also if it overflows */
        return false;
    *kind = (uint16_t)number;
    return true;
}

static bool plain_commit(PyObject *value, bool *commit)
{
    if (value == Py_True || value == Py_False)
        *commit = value == Py_True;
    else if (value != Py_None)
        return false;
    return true;
}

/* The arguments `kind` and `commit` of a call; false if only the slow path can judge them. */
static inline bool plain_options(Handle *self, PyObject *const *values, PyObject *names, uint16_t *kind, bool *commit)
{
    Py_ssize_t count = names ? PyTuple_GET_SIZE(names) : 0;
    *kind = 0;
    *commit = self->commits_each;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        if (name == self->core->name_commit ? !plain_commit(values[i], commit)
                                            : name != self->core->name_kind || !plain_kind(values[i], kind))
            return false;
    }
    return true;
}

/* Makes `seq` durable as the caller asked for; false with an exception set. */
static bool commit_through(Handle *self, uint64_t seq)
{
    Core *core = (Core *)Py_NewRef(self->core);
    int status = core_commit_through(core, seq);
    Py_DECREF(core);
    if (status < 0)
        return fail(self), false;
    if (status == 0)
        return true;
    PyObject *answer = PyObject_CallMethod((PyObject *)self, "_slow_commit_through", "K", (unsigned long long)seq);
    Py_XDECREF(answer);
    return answer != NULL;
}

static PyObject *slow(Handle *self, const char *name, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *method = PyObject_GetAttrString((PyObject *)self, name);
    if (!method)
        return NULL;
    PyObject *answer = PyObject_Vectorcall(method, args, (size_t)count, names);
    Py_DECREF(method);
    return answer;
}

void handle_prepare_disk(Handle *self, const struct piece *pieces, size_t count, bool commit)
{
    note_thread(self->core);
    if (!commit || !core_syncs_at_once(self->core, 0)) /* else write(2) stores, without the interpreter */
        core_prepare(self->core, pieces, count);
}

/* Stores a batch, and makes it durable at once where that is one step: then `*commit` is cleared. 0; -1 with an exception set; 1 when
 * only the slow path can do it. */
static int store_batch(struct batch *batch, bool *commit)
{
    const Core *core = batch->core;
    int status;
    if (!batch_fits(batch))
        return 1;
    batch->defers = true;
    if (*commit && core_syncs_at_once(core, batch->size))
        status = core_store_synced(batch);
    else if (*commit && batch->size <= HELD_MAX && core_commits_at_once(core))
        status = core_store_durable(batch);
    else
        return core_store(batch);
    if (status <= 0)
        *commit = false;
    return status;
}

int handle_store(Handle *self, const struct piece *piece, bool *commit)
{
    Core *core = self->core;
    struct batch batch;
    if (!core || !core_is_free(core) || piece->length > core->geometry.payload_max)
        return 1;
    batch_of(&batch, core, piece, 1);
    return store_batch(&batch, commit);
}

PyObject *handle_stored(Handle *self, int status, uint64_t seq, bool commit)
{
    if (status)
        return fail(self);
    if (commit && !commit_through(self, seq))
        return NULL;
    return PyLong_FromUnsignedLongLong(seq);
}

/* The bytes of any other payload than exact bytes. This may run Python code.
 *
 * The exporter is asked for the same as by memoryview() in the slow path, so its errors are those that the caller would get there.
 * A TypeError is also how a type refuses to be a buffer, for which the slow path has the words. */
static enum taken take_buffer(PyObject *data, Py_buffer *view)
{
    if (PyUnicode_Check(data)) /* numpy.str_ is one that exports its characters */
        return SLOW;
    if (PyObject_GetBuffer(data, view, PyBUF_FULL_RO)) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError))
            return RAISED;
        PyErr_Clear();
        return SLOW;
    }
    if (PyBuffer_IsContiguous(view, 'C') && !(view->format && strchr(view->format, 'O')))
        return TAKEN;
    PyBuffer_Release(view);
    return SLOW;
}

/* Stores one payload; `view` is what its bytes are in, or NULL. */
static inline PyObject *append_piece(Handle *self, const struct piece *piece, bool commit, Py_buffer *view, PyObject *const *args,
                                     PyObject *names)
{
    handle_prepare(self, piece, 1, commit);
    uint64_t seq = self->core ? self->core->state.head.seq : 0;
    int status = handle_store(self, piece, &commit);
    PMWAL_CHECK(status || self->core->state.head.seq > seq);
    if (view)
        PyBuffer_Release(view); /* may run Python code, which may change the log */
    return status > 0 ? slow(self, "_slow_append", args, 1, names) : handle_stored(self, status, seq, commit);
}

static PyObject *append_buffer(Handle *self, struct piece piece, bool commit, PyObject *const *args, PyObject *names)
{
    Py_buffer view = {0};
    enum taken taken = take_buffer(args[0], &view); /* before anything is read, because it may run Python code */
    if (taken != TAKEN)
        return taken == SLOW ? slow(self, "_slow_append", args, 1, names) : NULL;
    piece.bytes = view.buf;
    piece.length = (uint64_t)view.len;
    piece.constant = false;
    return append_piece(self, &piece, commit, &view, args, names);
}

static PyObject *handle_append(Handle *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    struct piece piece;
    bool commit;
    if (!self->core || count != 1 || !plain_options(self, args + 1, names, &piece.kind, &commit))
        return slow(self, "_slow_append", args, count, names);
    if (!PyBytes_CheckExact(args[0]))
        return append_buffer(self, piece, commit, args, names);
    piece.bytes = (const unsigned char *)PyBytes_AS_STRING(args[0]);
    piece.length = (uint64_t)PyBytes_GET_SIZE(args[0]);
    piece.constant = true;
    return append_piece(self, &piece, commit, NULL, args, names);
}

/* A private copy of an item as bytes; NULL if only the slow path can judge it, or with an exception set. */
static PyObject *plain_item(PyObject *item, uint64_t payload_max)
{
    Py_buffer view;
    if (PyBytes_CheckExact(item))
        return (uint64_t)PyBytes_GET_SIZE(item) <= payload_max ? Py_NewRef(item) : NULL;
    if (take_buffer(item, &view) != TAKEN)
        return NULL;
    PyObject *copy = (uint64_t)view.len <= payload_max ? PyBytes_FromStringAndSize(view.buf, view.len) : NULL;
    PyBuffer_Release(&view);
    return copy;
}

/* A new list of private copies of the items, each made before the next item is requested, because a generator may reuse one buffer.
 * If an item needs the slow path, `*rest` is an iterable of all items: those taken, this one, and those to come. */
static PyObject *take_items(PyObject *items, uint64_t payload_max, PyObject **rest)
{
    PyObject *list = PyList_New(0), *iterator = list ? PyObject_GetIter(items) : NULL, *item = NULL;
    bool plain = iterator != NULL;
    *rest = NULL;
    while (plain && (item = PyIter_Next(iterator))) {
        PyObject *copy = plain_item(item, payload_max);
        plain = copy && PyList_Append(list, copy) == 0;
        Py_XDECREF(copy);
        if (!plain)
            break;
        Py_CLEAR(item);
    }
    if (item && !PyErr_Occurred() && PyList_Append(list, item) == 0) {
        PyObject *itertools = PyImport_ImportModule("itertools");
        *rest = itertools ? PyObject_CallMethod(itertools, "chain", "OO", list, iterator) : NULL;
        Py_XDECREF(itertools);
    }
    Py_XDECREF(item);
    Py_XDECREF(iterator);
    if (PyErr_Occurred()) {
        Py_CLEAR(*rest);
        Py_CLEAR(list);
    }
    return list;
}

/* The items of a list or tuple in a tuple, which keeps them while a store lets other threads run; NULL for all other iterables, or
 * with an exception set. */
static PyObject *hold_items(PyObject *items)
{
    return PyTuple_CheckExact(items) ? Py_NewRef(items) : PyList_CheckExact(items) ? PyList_AsTuple(items) : NULL;
}

/* Pieces of a batch, in `few` if it suffices, else in memory that the caller frees. */
struct pieces {
    struct piece few[STACK_PIECES], *at;
};

/* Turns the items of a list or tuple into pieces of this kind. 0; -1 with an exception set; 1 if one is not exact bytes, or too
 * large. */
static int take_pieces(struct pieces *pieces, PyObject *items, uint16_t kind, uint64_t payload_max)
{
    Py_ssize_t length = PySequence_Fast_GET_SIZE(items);
    PyObject *const *item = PySequence_Fast_ITEMS(items);
    pieces->at = length > STACK_PIECES ? PyMem_New(struct piece, length) : pieces->few;
    if (!pieces->at) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < length; i++) {
        if (!PyBytes_CheckExact(item[i]) || (uint64_t)PyBytes_GET_SIZE(item[i]) > payload_max)
            return 1;
        pieces->at[i] = (struct piece){(const unsigned char *)PyBytes_AS_STRING(item[i]), (uint64_t)PyBytes_GET_SIZE(item[i]),
                                       kind, true};
    }
    return 0;
}

static void free_pieces(struct pieces *pieces)
{
    if (pieces->at != pieces->few)
        PyMem_Free(pieces->at);
    pieces->at = pieces->few;
}

/* Stores the pieces, none longer than `payload_max`, as one batch, and commits it if asked to. 0 with the first and last number, or NULL
 * and an exception set, in `*answer`; 1 when only the slow path can do it. */
static int store_pieces(Handle *self, const struct pieces *pieces, size_t count, uint64_t payload_max, bool commit, PyObject **answer)
{
    Core *core = self->core;
    struct batch batch;
    if (!count || !core || !core_is_free(core) || count > UINT32_MAX || core->geometry.payload_max < payload_max)
        return 1;
    uint64_t first = core->state.head.seq, last = first + count - 1;
    batch_of(&batch, core, pieces->at, count);
    int status = store_batch(&batch, &commit);
    if (status > 0)
        return 1;
    if (status)
        *answer = fail(self);
    else if (!commit || commit_through(self, last))
        *answer = Py_BuildValue("(KK)", (unsigned long long)first, (unsigned long long)last);
    return 0;
}

static PyObject *handle_extend(Handle *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    uint16_t kind;
    bool commit;
    Py_ssize_t keywords = names ? PyTuple_GET_SIZE(names) : 0;
    if (!self->core || count != 1 || !plain_options(self, args + 1, names, &kind, &commit) || keywords > 1 ||
        (keywords && PyTuple_GET_ITEM(names, 0) != self->core->name_kind) || !core_is_free(self->core) ||
        PyUnicode_Check(args[0]) || PyBytes_Check(args[0]) || PyByteArray_Check(args[0])) /* which is refused */
        return slow(self, "_slow_extend", args, count, names);
    uint64_t payload_max = self->core->geometry.payload_max;
    struct pieces pieces = {.at = pieces.few};
    PyObject *rest = NULL, *answer = NULL, *items = hold_items(args[0]);
    int status = items ? take_pieces(&pieces, items, kind, payload_max) : 1;
    if (status > 0 && !PyErr_Occurred()) { /* all items are taken first; an iterable may run any code, and may append */
        free_pieces(&pieces);
        Py_XSETREF(items, take_items(args[0], payload_max, &rest));
        status = !items ? -1 : rest ? 1 : take_pieces(&pieces, items, kind, payload_max);
    }
    if (!status)
        handle_prepare(self, pieces.at, (size_t)PySequence_Fast_GET_SIZE(items), commit);
    if (!status)
        status = store_pieces(self, &pieces, (size_t)PySequence_Fast_GET_SIZE(items), payload_max, commit, &answer);
    if (status > 0 && items) {
        PyObject *again[2] = {rest ? rest : items, keywords ? args[1] : NULL};
        answer = slow(self, "_slow_extend", again, 1, names);
    }
    free_pieces(&pieces);
    Py_XDECREF(rest);
    Py_XDECREF(items);
    return answer;
}

static PyObject *handle_commit(Handle *self, PyObject *Py_UNUSED(ignored))
{
    Core *core = self->core;
    int64_t now;
    if (!core || !core_is_free(core) || core->state.head.position == core->state.durable.position || now_ns(core, &now) ||
        upkeep_is_due(core, now))
        return slow(self, "_slow_commit", NULL, 0, NULL);
    if (!commit_through(self, core->state.head.seq - 1))
        return NULL;
    return PyLong_FromUnsignedLongLong(self->core ? self->core->state.durable.seq - 1 : 0);
}

static int handle_traverse(Handle *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->core);
    return 0;
}

static int handle_clear(Handle *self)
{
    Py_CLEAR(self->core);
    return 0;
}

static void handle_dealloc(Handle *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->core);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *handle_set_core(Handle *self, PyObject *args)
{
    PyObject *core;
    int commits_each;
    if (!PyArg_ParseTuple(args, "O!p:_set_core", state_of(Py_TYPE(self))->core_type, &core, &commits_each))
        return NULL;
    Py_XSETREF(self->core, (Core *)Py_NewRef(core));
    self->commits_each = (char)commits_each;
    Py_RETURN_NONE;
}

/* As in pmwal/writing/wal.py, so that help() says the same with either engine; a test compares them. */
PyDoc_STRVAR(append_doc,
    "append($self, data, *, kind=0, commit=None)\n--\n\n"
    "Append one record and return its sequence number.\n"
    "\n"
    "``data`` is any contiguous buffer, but no text and no Python objects; ``kind`` is a number from 0 to 65535 for the\n"
    "application. With ``commit=True`` it returns when the record is durable, with False at once (a later commit makes it\n"
    "durable), with None as the log was opened to.\n"
    "Raises ``RecordTooLarge``, ``WalFull``, ``PersistError``.\n"
    "\n"
    ">>> import pmwal\n"
    ">>> with pmwal.open(path, size=\"64KiB\") as wal:\n"
    "...     wal.append(b\"first\"), wal.append(b\"second\", kind=2, commit=False), wal.commit()\n"
    "(1, 2, 2)");

PyDoc_STRVAR(extend_doc,
    "extend($self, items, *, kind=0)\n--\n\n"
    "Append all items or none of them, with one commit; return the first and last number.\n"
    "\n"
    "For no items it returns ``(next_seq, next_seq - 1)``. All items are taken before anything is stored, so an exception in the\n"
    "iterable leaves the log untouched. Raises what ``append`` raises.\n"
    "\n"
    ">>> import pmwal\n"
    ">>> with pmwal.open(path, size=\"64KiB\") as wal:\n"
    "...     wal.extend([b\"a\", b\"b\"]), wal.extend([])\n"
    "((1, 2), (3, 2))");

PyDoc_STRVAR(commit_doc,
    "commit($self)\n--\n\n"
    "Make everything appended so far durable; return the last durable number.\n"
    "\n"
    "With nothing pending it lets the commit pointer catch up, so that recovery has nothing to search for.\n"
    "Raises ``PersistError``.\n"
    "\n"
    ">>> import pmwal\n"
    ">>> with pmwal.open(path, size=\"64KiB\", commit=\"manual\") as wal:\n"
    "...     seq = wal.append(b\"fast\")\n"
    "...     wal.committed_seq, wal.commit()\n"
    "(0, 1)");

static PyMethodDef methods[] = {
    {"append", (PyCFunction)(void (*)(void))handle_append, METH_FASTCALL | METH_KEYWORDS,
     append_doc},
    {"extend", (PyCFunction)(void (*)(void))handle_extend, METH_FASTCALL | METH_KEYWORDS,
     extend_doc},
    {"commit", (PyCFunction)handle_commit, METH_NOARGS, commit_doc},
    {"_set_core", (PyCFunction)handle_set_core, METH_VARARGS, NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "The fast path of a Wal over the native engine."},
    {Py_tp_traverse, handle_traverse},
    {Py_tp_clear, handle_clear},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_methods, methods},
    {0},
};

PyType_Spec handle_spec = {"pmwal.native._native.Handle", sizeof(Handle), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, slots};
