/* The extension module pmwal.native._native: its types, and its functions. */
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>

#include "module.h"

#include "interpreter.h"

#include "check.h"
#include "crc32c.h"
#include "fault.h"
#include "futex.h"
#include "linear.h"
#include "persist.h"

volatile unsigned long fork_count = 0;

static void forked(void)
{
    fork_count++;
}

/* Once for the process, however many interpreters import the module. */
static void set_up_process(void)
{
    crc32c_setup();
    linear_setup();
    pthread_atfork(NULL, NULL, forked);
}

void raise_unreadable(void)
{
    const char *reason = "the file was shortened while it was mapped, the medium failed, or a copy-on-write file system is full";
    PyObject *error = PyObject_CallFunction(PyExc_OSError, "is", EIO, reason);
    if (error)
        PyErr_SetObject(PyExc_OSError, error);
    Py_XDECREF(error);
}

static PyObject *setup_persistence(PyObject *module, PyObject *cached_is_durable)
{
    (void)module;
    int answer = PyObject_IsTrue(cached_is_durable);
    if (answer < 0)
        return NULL;
    persist_setup(answer);
    const char *name = persist_name();
    if (!name)
        Py_RETURN_NONE;
    return PyUnicode_FromString(name);
}

/* (streamed, written back): nanoseconds of making a record durable by either way, on private memory. */
static PyObject *time_stores(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    (void)module;
    struct persist_times times = persist_measure();
    return Py_BuildValue("(LL)", (long long)times.streamed_ns, (long long)times.written_back_ns);
}

/* Whether this range lies inside the buffer; false with an exception set. */
static bool is_inside(const Py_buffer *buffer, unsigned long long offset, unsigned long long length)
{
    if (offset <= (unsigned long long)buffer->len && length <= (unsigned long long)buffer->len - offset)
        return true;
    PyErr_SetString(PyExc_ValueError, "outside the mapping");
    return false;
}

/* Installs the handler for faults inside a mapping, again if another one has replaced it. */
static PyObject *catch_faults_method(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    (void)module;
    errno = fault_setup();
    if (errno)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *load_method(PyObject *module, PyObject *args)
{
    Py_buffer buffer;
    unsigned long long offset, length;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*KK:load", &buffer, &offset, &length))
        return NULL;
    PyObject *copy = is_inside(&buffer, offset, length) ? PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length) : NULL;
    if (copy) {
        PyThreadState *thread = length > HELD_MAX ? PyEval_SaveThread() : NULL; /* the buffer keeps the mapping */
        bool whole = fault_copy(buffer.buf, (size_t)buffer.len, PyBytes_AS_STRING(copy), (char *)buffer.buf + offset, length);
        if (thread)
            PyEval_RestoreThread(thread);
        if (!whole) {
            raise_unreadable();
            Py_CLEAR(copy);
        }
    }
    PyBuffer_Release(&buffer);
    return copy;
}

/* Bytes of a mapping that are changed or written back, and what is stored there. */
struct change {
    char *to;
    const void *from;
    size_t length;
};

static void store_body(void *context)
{
    const struct change *change = context;
    if (change->length)
        map_pages(change->to, change->length);
    memcpy(change->to, change->from, change->length);
}

static void stream_body(void *context)
{
    const struct change *change = context;
    stream(change->to, change->from, change->length, change->length);
}

static void write_back_body(void *context)
{
    const struct change *change = context;
    write_back(change->to, change->length);
}

/* Does this to `length` bytes of the buffer; false with an exception set. */
static bool change_bytes(const Py_buffer *buffer, unsigned long long offset, const void *from, unsigned long long length,
                         void (*body)(void *context))
{
    if (!is_inside(buffer, offset, length))
        return false;
    struct change change = {(char *)buffer->buf + offset, from, (size_t)length};
    bool whole;
    Py_BEGIN_ALLOW_THREADS /* on a disk a store may wait for it; both buffers are kept */
    whole = fault_run(buffer->buf, (size_t)buffer->len, body, &change);
    Py_END_ALLOW_THREADS
    if (whole)
        return true;
    raise_unreadable();
    return false;
}

static PyObject *store_method(PyObject *module, PyObject *args)
{
    Py_buffer buffer, data;
    unsigned long long offset;
    (void)module;
    if (!PyArg_ParseTuple(args, "w*Ky*:store", &buffer, &offset, &data))
        return NULL;
    bool done = change_bytes(&buffer, offset, data.buf, (unsigned long long)data.len, store_body);
    PyBuffer_Release(&data);
    PyBuffer_Release(&buffer);
    return done ? Py_NewRef(Py_None) : NULL;
}

static PyObject *write_back_method(PyObject *module, PyObject *args)
{
    Py_buffer buffer;
    unsigned long long offset, length;
    (void)module;
    if (!PyArg_ParseTuple(args, "w*KK:write_back", &buffer, &offset, &length))
        return NULL;
    bool done = change_bytes(&buffer, offset, NULL, length, write_back_body);
    PyBuffer_Release(&buffer);
    return done ? Py_NewRef(Py_None) : NULL;
}

static PyObject *stream_method(PyObject *module, PyObject *args)
{
    Py_buffer buffer, data;
    unsigned long long offset;
    (void)module;
    if (!PyArg_ParseTuple(args, "w*Ky*:stream", &buffer, &offset, &data))
        return NULL;
    bool done = !((offset | (unsigned long long)data.len) % PMWAL_LINE || (uintptr_t)buffer.buf % PMWAL_LINE);
    if (!done)
        PyErr_SetString(PyExc_ValueError, "not whole lines");
    done = done && change_bytes(&buffer, offset, data.buf, (unsigned long long)data.len, stream_body);
    PyBuffer_Release(&data);
    PyBuffer_Release(&buffer);
    return done ? Py_NewRef(Py_None) : NULL;
}

/* msync(2) of whole pages. mmap.flush() keeps the interpreter. */
static PyObject *flush_method(PyObject *module, PyObject *args)
{
    Py_buffer buffer;
    unsigned long long offset, length;
    (void)module;
    if (!PyArg_ParseTuple(args, "w*KK:flush", &buffer, &offset, &length))
        return NULL;
    bool inside = is_inside(&buffer, offset, length);
    int status = 0;
    if (inside) {
        Py_BEGIN_ALLOW_THREADS
        status = msync((char *)buffer.buf + offset, length, MS_SYNC) ? errno : 0;
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&buffer);
    if (!inside)
        return NULL;
    errno = status;
    return status ? PyErr_SetFromErrno(PyExc_OSError) : Py_NewRef(Py_None);
}

static PyObject *fence_method(PyObject *module, PyObject *Py_UNUSED(ignored))
{
    (void)module;
    fence();
    Py_RETURN_NONE;
}

/* The way of this name, the one that was chosen without; NULL with an exception set. */
static const struct crc32c_way *find_way(const char *name)
{
    const struct crc32c_way *way = NULL, *next;
    for (size_t i = 0; (next = crc32c_way(i)) && !(way && name && !strcmp(way->name, name)); i++)
        way = next;
    if (!name || !strcmp(way->name, name))
        return way;
    PyErr_Format(PyExc_ValueError, "this processor has no way %s to compute a checksum", name);
    return NULL;
}

static PyObject *crc32c_method(PyObject *module, PyObject *args)
{
    Py_buffer data;
    unsigned int crc = 0;
    const char *name = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*|Iz:crc32c", &data, &crc, &name))
        return NULL;
    const struct crc32c_way *way = find_way(name);
    if (way && data.len > HELD_MAX) {
        Py_BEGIN_ALLOW_THREADS
        crc = way->bytes(crc, data.buf, (size_t)data.len);
        Py_END_ALLOW_THREADS
    } else if (way)
        crc = way->bytes(crc, data.buf, (size_t)data.len);
    PyObject *answer = way ? PyLong_FromUnsignedLong(crc) : NULL;
    PyBuffer_Release(&data);
    return answer;
}

/* Words after a place and, if there is one, a payload after them. */
static PyObject *crc32c_words_method(PyObject *module, PyObject *args)
{
    Py_buffer words, payload = {0};
    unsigned int crc;
    unsigned long long place;
    const char *name;
    uint64_t copied[16];
    PyObject *answer = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "IKy*s|y*:crc32c_words", &crc, &place, &words, &name, &payload))
        return NULL;
    size_t length = (size_t)words.len;
    const struct crc32c_way *way = find_way(name);
    bool right = length && length % 8 == 0 && length <= sizeof copied && (!payload.obj || length == PMWAL_HEADER);
    if (way && !right)
        PyErr_SetString(PyExc_ValueError, "not the words of a slot or of a header");
    if (way && right) {
        memcpy(copied, words.buf, length);
        crc = payload.obj ? way->record(crc, (struct crc32c_header){place, copied}, payload.buf, (size_t)payload.len)
                          : way->words(crc, place, copied, length / 8);
        answer = PyLong_FromUnsignedLong(crc);
    }
    PyBuffer_Release(&payload);
    PyBuffer_Release(&words);
    return answer;
}

static PyObject *crc32c_shift_method(PyObject *module, PyObject *args)
{
    unsigned int start;
    unsigned long long distance;
    int portable = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "IK|p:crc32c_shift", &start, &distance, &portable))
        return NULL;
    if (distance >= LINEAR_MAX)
        return PyErr_Format(PyExc_ValueError, "the distance is below %llu", (unsigned long long)LINEAR_MAX);
    return PyLong_FromUnsignedLong((portable ? &linear_portable : &linear)->shift(start, distance));
}

#define UNPACKED_AT_ONCE 4096 /* records that are made before other threads may run */

/* A list of (kind, time_ns, payload): the records of a frame's body. pmwal/format/frame.py is the reference. */
static PyObject *unpack_frame_method(PyObject *module, PyObject *argument)
{
    Py_buffer body;
    (void)module;
    if (PyObject_GetBuffer(argument, &body, PyBUF_SIMPLE))
        return NULL;
    uint64_t at = 0, length = (uint64_t)body.len;
    struct frame_entry entry;
    PyObject *records = PyList_New(0);
    for (uint64_t count = 1; records && at < length; count++) {
        PyObject *record = NULL;
        if (count % UNPACKED_AT_ONCE == 0) {
            Py_BEGIN_ALLOW_THREADS
            Py_END_ALLOW_THREADS
        }
        if (next_entry(body.buf, length, &at, &entry))
            record = Py_BuildValue("(HLy#)", entry.kind, (long long)entry.time_ns, entry.payload, (Py_ssize_t)entry.length);
        else
            PyErr_Format(PyExc_ValueError,
                         "a frame's body of %llu bytes ends inside the record at byte %llu: it was cut, or something follows its last "
                         "record; fetch the message again",
                         (unsigned long long)length, (unsigned long long)at);
        if (!record || PyList_Append(records, record))
            Py_CLEAR(records);
        Py_XDECREF(record);
    }
    PyBuffer_Release(&body);
    return records;
}

static PyMethodDef functions[] = {
    {"setup_persistence", setup_persistence, METH_O, NULL},
    {"time_stores", time_stores, METH_NOARGS, NULL},
    {"catch_faults", catch_faults_method, METH_NOARGS, NULL},
    {"load", load_method, METH_VARARGS, NULL},
    {"store", store_method, METH_VARARGS, NULL},
    {"write_back", write_back_method, METH_VARARGS, NULL},
    {"stream", stream_method, METH_VARARGS, NULL},
    {"flush", flush_method, METH_VARARGS, NULL},
    {"fence", fence_method, METH_NOARGS, NULL},
    {"crc32c", crc32c_method, METH_VARARGS, NULL},
    {"crc32c_words", crc32c_words_method, METH_VARARGS, NULL},
    {"crc32c_shift", crc32c_shift_method, METH_VARARGS, NULL},
    {"unpack_frame", unpack_frame_method, METH_O, NULL},
    {"futex_wait", futex_wait_method, METH_VARARGS, NULL},
    {"futex_wake", futex_wake_method, METH_VARARGS, NULL},
    {0},
};

static bool checks_are_on(void)
{
#ifdef PMWAL_CHECKS
    return true;
#else
    return false;
#endif
}

static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type)
{
    *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *type ? PyModule_AddType(module, *type) : -1;
}

/* The names of the ways to compute a checksum, the one that was chosen last. */
static int add_ways(PyObject *module)
{
    const struct crc32c_way *way;
    PyObject *names = PyList_New(0), *tuple = NULL;
    for (size_t i = 0; names && (way = crc32c_way(i)); i++) {
        PyObject *name = PyUnicode_FromString(way->name);
        if (!name || PyList_Append(names, name))
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    if (names)
        tuple = PyList_AsTuple(names);
    Py_XDECREF(names);
    int failed = tuple ? PyModule_AddObjectRef(module, "CRC32C_WAYS", tuple) : -1;
    Py_XDECREF(tuple);
    return failed;
}

static int execute(PyObject *module)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct module_state *state = PyModule_GetState(module);
    pthread_once(&once, set_up_process);
    state->name_kind = PyUnicode_InternFromString("kind");
    state->name_commit = PyUnicode_InternFromString("commit");
    if (!state->name_kind || !state->name_commit || add_type(module, &lock_spec, &state->lock_type) ||
        add_type(module, &core_spec, &state->core_type) || add_type(module, &handle_spec, &state->handle_type) ||
        add_type(module, &record_spec, &state->record_type) || add_type(module, &iterator_spec, &state->iterator_type) ||
        add_type(module, &scanner_spec, &state->scanner_type) || add_type(module, &search_spec, &state->search_type) ||
        add_type(module, &retained_spec, &state->retained_type) || add_type(module, &emitter_spec, &state->emitter_type) ||
        add_type(module, &index_spec, &state->index_type) || add_type(module, &mark_spec, &state->mark_type) ||
        add_type(module, &follower_spec, &state->follower_type))
        return -1;
    if (PyModule_AddIntConstant(module, "BARRIER_NONE", BARRIER_NONE) ||
        PyModule_AddIntConstant(module, "BARRIER_LINES", BARRIER_LINES) ||
        PyModule_AddIntConstant(module, "BARRIER_MSYNC", BARRIER_MSYNC) ||
        PyModule_AddObjectRef(module, "can_stream", persist_can_stream() ? Py_True : Py_False) ||
        PyModule_AddStringConstant(module, "VENDOR", persist_vendor()) ||
        PyModule_AddObjectRef(module, "checks", checks_are_on() ? Py_True : Py_False))
        return -1;
    return add_ways(module);
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = PyModule_GetState(module);
    Py_VISIT(state->lock_type);
    Py_VISIT(state->core_type);
    Py_VISIT(state->handle_type);
    Py_VISIT(state->record_type);
    Py_VISIT(state->iterator_type);
    Py_VISIT(state->scanner_type);
    Py_VISIT(state->search_type);
    Py_VISIT(state->retained_type);
    Py_VISIT(state->emitter_type);
    Py_VISIT(state->index_type);
    Py_VISIT(state->mark_type);
    Py_VISIT(state->follower_type);
    return 0;
}

static int clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->lock_type);
    Py_CLEAR(state->core_type);
    Py_CLEAR(state->handle_type);
    Py_CLEAR(state->record_type);
    Py_CLEAR(state->iterator_type);
    Py_CLEAR(state->scanner_type);
    Py_CLEAR(state->search_type);
    Py_CLEAR(state->retained_type);
    Py_CLEAR(state->emitter_type);
    Py_CLEAR(state->index_type);
    Py_CLEAR(state->mark_type);
    Py_CLEAR(state->follower_type);
    Py_CLEAR(state->name_kind);
    Py_CLEAR(state->name_commit);
    return 0;
}

static void module_free(void *module)
{
    clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, execute},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030d0000
    {Py_mod_gil, Py_MOD_GIL_USED}, /* a free-threaded interpreter takes its lock back, with a warning */
#endif
    {0},
};

struct PyModuleDef pmwal_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "pmwal.native._native",
    .m_doc = "The hot path of pmwal, in C.",
    .m_size = sizeof(struct module_state),
    .m_methods = functions,
    .m_slots = module_slots,
    .m_traverse = traverse,
    .m_clear = clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&pmwal_module);
}
