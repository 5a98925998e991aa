/* The type Core, which pmwal.writing.native_engine drives. The caller holds the locks of the engine.
 *
 * Invariants
 * - The interpreter's lock guards every field.
 * - `base` is NULL once the mapping is released; nothing touches the mapping then.
 */
#include <errno.h>
#include <string.h>

#include "batch.h"
#include "commit.h"
#include "live_page.h"
#include "outside.h"

#include "fault.h"
#include "persist.h"

static int parse_state(PyObject *value, struct log_state *state)
{
    unsigned long long v[8];
    if (!PyArg_ParseTuple(value, "KKKKKKKK;eight numbers", v, v + 1, v + 2, v + 3, v + 4, v + 5, v + 6, v + 7))
        return -1;
    *state = (struct log_state){{v[0], v[1]}, {v[2], v[3]}, {v[4], v[5]}, v[6], v[7]};
    return 0;
}

static PyObject *core_get_state(Core *core, void *Py_UNUSED(closure))
{
    const struct log_state *s = &core->state;
    return Py_BuildValue("(KKKKKKKK)", (unsigned long long)s->tail.position, (unsigned long long)s->tail.seq,
                         (unsigned long long)s->head.position, (unsigned long long)s->head.seq,
                         (unsigned long long)s->durable.position, (unsigned long long)s->durable.seq,
                         (unsigned long long)s->epoch, (unsigned long long)s->epoch_first_seq);
}

static PyObject *core_get_latency(Core *core, void *Py_UNUSED(closure))
{
    const struct latency *latency = &core->latency;
    return Py_BuildValue("(y#KK)", (const char *)latency->counters, (Py_ssize_t)sizeof latency->counters,
                         (unsigned long long)latency->total_ns, (unsigned long long)latency->max_ns);
}

/* Within an epoch bounds only grow; the tail does in any case. */
static void check_growth(const struct log_state *before, const struct log_state *after)
{
    PMWAL_CHECK(before->epoch <= after->epoch);
    PMWAL_CHECK(before->tail.position <= after->tail.position && before->tail.seq <= after->tail.seq);
    PMWAL_CHECK(before->epoch < after->epoch || before->durable.position <= after->durable.position);
    PMWAL_CHECK(before->epoch < after->epoch || before->head.position == after->head.position);
}

static PyObject *core_become(Core *core, PyObject *value)
{
    struct log_state state;
    if (check_mapped(core) || parse_state(value, &state))
        return NULL;
    check_guarded(core);
    check_growth(&core->state, &state);
    core->state = state;
    core->head_offset = state.head.position % core->geometry.capacity;
    core->seek_next = 0;
    check_core(core);
    if (core_show(core))
        return NULL;
    Py_RETURN_NONE;
}

/* `payloads`: a list or tuple of bytes; `kinds`: as many integers. The caller frees the pieces. NULL with an exception set. */
static struct piece *pieces_of(const Core *core, PyObject *payloads, PyObject *kinds)
{
    Py_ssize_t count = PySequence_Fast_GET_SIZE(payloads);
    struct piece *pieces = PyMem_New(struct piece, count ? count : 1);
    if (!pieces) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *payload = PySequence_Fast_GET_ITEM(payloads, i);
        long kind = PyLong_AsLong(PySequence_Fast_GET_ITEM(kinds, i));
        if (!PyBytes_CheckExact(payload) || (uint64_t)PyBytes_GET_SIZE(payload) > core->geometry.payload_max || kind < 0 ||
            kind > (long)PMWAL_KIND_MAX) {
            PyErr_SetString(PyExc_TypeError, "payloads are bytes that fit into a record, kinds integers of 16 bits");
            PyMem_Free(pieces);
            return NULL;
        }
        pieces[i] = (struct piece){(const unsigned char *)PyBytes_AS_STRING(payload), (uint64_t)PyBytes_GET_SIZE(payload),
                                   (uint16_t)kind, true};
    }
    return pieces;
}

/* Whether it stored: `beside` as in core_store_beside(). NULL with an exception set. */
static PyObject *store_batch(struct batch *batch, bool beside)
{
    int status = beside ? core_store_beside(batch) : core_store(batch);
    return status < 0 ? NULL : PyBool_FromLong(!status);
}

/* Whether each of the payloads, which are bytes, may be a record. They were checked against the ring that the log had before, if it
 * was resized while the caller waited. */
static bool may_be_records(const Core *core, PyObject *payloads)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(payloads); i++) {
        PyObject *payload = PyTuple_GET_ITEM(payloads, i);
        if (!PyBytes_CheckExact(payload) || (uint64_t)PyBytes_GET_SIZE(payload) > core->geometry.payload_max)
            return false;
    }
    return true;
}

static PyObject *core_store_method(Core *core, PyObject *args)
{
    PyObject *payloads, *kinds;
    int beside;
    if (!PyArg_ParseTuple(args, "OOp:store", &payloads, &kinds, &beside))
        return NULL;
    payloads = PySequence_Tuple(payloads); /* the interpreter may be released while they are stored */
    kinds = payloads ? PySequence_Fast(kinds, "kinds are a list or a tuple") : NULL;
    PyObject *answer = NULL;
    if (kinds && beside && !may_be_records(core, payloads))
        answer = Py_NewRef(Py_False);
    else if (kinds && PySequence_Fast_GET_SIZE(payloads) == PySequence_Fast_GET_SIZE(kinds)) {
        struct piece *pieces = pieces_of(core, payloads, kinds);
        if (pieces) {
            struct batch batch;
            batch_of(&batch, core, pieces, (size_t)PySequence_Fast_GET_SIZE(payloads));
            answer = store_batch(&batch, beside);
        }
        PyMem_Free(pieces);
    } else if (kinds)
        PyErr_SetString(PyExc_ValueError, "as many kinds as payloads");
    Py_XDECREF(kinds);
    Py_XDECREF(payloads);
    return answer;
}

/* One batch of `count` rows of `length` bytes each, contiguous in memory. */
static PyObject *core_store_rows_method(Core *core, PyObject *args)
{
    Py_buffer rows;
    Py_ssize_t count;
    unsigned long long length;
    unsigned short kind;
    int beside;
    if (!PyArg_ParseTuple(args, "y*nKHp:store_rows", &rows, &count, &length, &kind, &beside))
        return NULL;
    struct piece first = {rows.buf, length, kind, false};
    PyObject *answer = NULL;
    if (beside && length > core->geometry.payload_max)
        answer = Py_NewRef(Py_False);
    else if (count < 1 || (uint64_t)count > UINT32_MAX || length > core->geometry.payload_max ||
        (uint64_t)count * length != (uint64_t)rows.len)
        PyErr_SetString(PyExc_ValueError, "no rows of this length");
    else {
        struct batch batch;
        batch_of_rows(&batch, core, &first, (size_t)count);
        answer = store_batch(&batch, beside);
    }
    PyBuffer_Release(&rows);
    return answer;
}

static PyObject *core_flush_method(Core *core, PyObject *Py_UNUSED(ignored))
{
    if (check_mapped(core) || core_flush(core))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *core_commit_method(Core *core, PyObject *Py_UNUSED(ignored))
{
    if (check_mapped(core) || core_commit(core))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *core_commit_through_method(Core *core, PyObject *value)
{
    unsigned long long seq = PyLong_AsUnsignedLongLong(value);
    if (PyErr_Occurred())
        return NULL;
    int status = core_commit_through(core, seq);
    if (status < 0)
        return NULL;
    return PyBool_FromLong(status == 0);
}

static PyObject *core_write_slot_method(Core *core, PyObject *args)
{
    PyObject *value;
    unsigned int flags;
    struct log_state state;
    if (!PyArg_ParseTuple(args, "OI:write_slot", &value, &flags) || parse_state(value, &state) || check_mapped(core) ||
        core_write_slot(core, &state, flags))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *core_halt(Core *core, PyObject *Py_UNUSED(ignored))
{
    core->halted = true;
    Py_RETURN_NONE;
}

/* Continues for another core of the same locks, whose log moves to the file of this one. What it counted goes on, and what the handle has
 * set; what was measured of the old file is not. */
static PyObject *core_continue_from(Core *core, PyObject *value)
{
    if (!PyObject_TypeCheck(value, Py_TYPE(core)) || ((Core *)value)->guard != core->guard) {
        PyErr_SetString(PyExc_TypeError, "a core continues from one with the same locks");
        return NULL;
    }
    const Core *before = (const Core *)value;
    core->appends = before->appends;
    core->stored_bytes = before->stored_bytes;
    core->commits = before->commits;
    core->barriers = before->barriers;
    core->slots_written = before->slots_written;
    core->latency = before->latency;
    core->headroom = before->headroom;
    core->watched = before->watched;
    core->yields = before->yields;
    core->upkept_ns = before->upkept_ns;
    check_core(core);
    Py_RETURN_NONE;
}

static PyObject *core_detach(Core *core, PyObject *Py_UNUSED(ignored))
{
    core->base = NULL;
    if (core->map.obj)
        PyBuffer_Release(&core->map);
    Py_RETURN_NONE;
}

/* The arguments of Core(); the references are borrowed. */
struct arguments {
    PyObject *mapping, *seam, *writing, *guard, *index, *state;
    unsigned long long capacity, alignment, payload_max, ring_offset, control_pages, generation, pointer, timing_step;
    unsigned int uuid_crc;
    int fd, barrier, streams, pipelined, on_disk, synced_writes, cached_writes;
    const char *writer;
    Py_ssize_t writer_length;
};

static int parse_arguments(struct module_state *module, PyObject *args, PyObject *keywords, struct arguments *a)
{
    static char *names[] = {"mapping", "fd", "capacity", "alignment", "payload_max", "ring_offset", "control_pages", "uuid_crc",
                            "barrier", "streams", "pipelined", "on_disk", "synced_writes", "cached_writes", "seam", "writing",
                            "guard", "index", "writer", "state", "generation", "pointer", "timing_step", NULL};
    return PyArg_ParseTupleAndKeywords(args, keywords, "OiKKKKKIipppppOO!O!O!y#OKKK:Core", names, &a->mapping, &a->fd,
                                       &a->capacity, &a->alignment, &a->payload_max, &a->ring_offset, &a->control_pages,
                                       &a->uuid_crc, &a->barrier, &a->streams, &a->pipelined, &a->on_disk, &a->synced_writes,
                                       &a->cached_writes, &a->seam, module->lock_type, &a->writing, module->lock_type, &a->guard,
                                       module->index_type, &a->index, &a->writer, &a->writer_length, &a->state, &a->generation,
                                       &a->pointer, &a->timing_step)
               ? 0
               : -1;
}

/* Whether a log with this geometry and this newest slot can be in this state: see check_core(). */
static bool state_possible(const struct log_state *s, const struct arguments *a)
{
    return s->tail.position <= s->durable.position && s->durable.position <= s->head.position && s->tail.seq <= s->durable.seq &&
           s->durable.seq <= s->head.seq && s->head.position <= PMWAL_POSITION_MAX && s->tail.seq >= 1 &&
           s->head.seq - 1 <= PMWAL_SEQ_MAX && s->epoch <= UINT32_MAX && a->pointer <= s->durable.position &&
           (s->tail.position == s->durable.position) == (s->tail.seq == s->durable.seq) &&
           (s->durable.position == s->head.position) == (s->durable.seq == s->head.seq) &&
           s->head.position - s->tail.position <= a->capacity &&
           ((s->tail.position | s->durable.position | s->head.position) & (a->alignment - 1)) == 0;
}

/* What is wrong with the arguments, or NULL. */
static const char *problem_with(const struct arguments *a, const struct log_state *state)
{
    if (a->writer_length != (Py_ssize_t)sizeof(struct live_writer))
        return "writer is a line of the live page";
    if (!a->timing_step || a->timing_step & (a->timing_step - 1))
        return "timing_step is a power of two";
    if (!geometry_possible(a->capacity, a->alignment, a->payload_max) || !a->control_pages || a->ring_offset % PMWAL_PAGE)
        return "no log has this geometry";
    if (a->barrier != BARRIER_NONE && a->barrier != BARRIER_LINES && a->barrier != BARRIER_MSYNC)
        return "there is no such barrier";
    if (a->streams && a->barrier != BARRIER_LINES)
        return "only cache lines are stored past the cache";
    const Index *index = (const Index *)a->index;
    if (index->count && index_at(index, index->count - 1)->position >= state->head.position)
        return "the index is of records before the head";
    if (index->room < a->capacity / PMWAL_INDEX_STEP + 2)
        return "the index is too small for the ring";
    return state_possible(state, a) ? NULL : "no log is in this state";
}

/* Takes the mapping, which must be large enough for the log. 0, or -1 with an exception set. */
static int attach(Core *core, const struct arguments *a)
{
    if (PyObject_GetBuffer(a->mapping, &core->map, PyBUF_WRITABLE))
        return -1;
    core->size = (size_t)core->map.len;
    if (a->ring_offset > core->size || a->capacity > core->size - a->ring_offset || a->ring_offset < PMWAL_CONTROL_OFFSET ||
        a->control_pages > (a->ring_offset - PMWAL_CONTROL_OFFSET) / PMWAL_PAGE || (uintptr_t)core->map.buf % PMWAL_PAGE) {
        PyErr_SetString(PyExc_ValueError, "the mapping is too small for the log, or does not begin with a page");
        return -1;
    }
    core->folios = PyMem_RawCalloc(core->size / FOLIO_MAX + 1, 1);
    if (!core->folios) {
        PyErr_NoMemory();
        return -1;
    }
    core->base = core->map.buf;
    return 0;
}

static void init_conditions(Core *core)
{
    pthread_condattr_t monotonic;
    pthread_mutex_init(&core->flush_mutex, NULL);
    pthread_cond_init(&core->flush_done, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&core->gathered, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

/* From which size on records are stored past the cache. Only a record that has its cache lines to itself can be: a neighbour in one
 * of them would be stored again, while a reader or the medium takes it. */
static uint64_t stream_min(const Core *core)
{
    if (core->barrier != BARRIER_LINES || core->geometry.alignment < PMWAL_LINE)
        return UINT64_MAX;
    return core->streams ? PMWAL_LINE : persist_streams() ? STREAM_MIN : UINT64_MAX;
}

static void fill(Core *core, const struct module_state *module, const struct arguments *a)
{
    core->fd = a->fd;
    core->geometry = (struct geometry){a->capacity, a->alignment, a->payload_max, 0, a->uuid_crc};
    core->geometry.size_max = record_size(&core->geometry, a->payload_max);
    core->ring_offset = a->ring_offset;
    core->control_pages = a->control_pages;
    core->barrier = (enum barrier)a->barrier;
    core->pipelined = a->pipelined;
    core->on_disk = a->on_disk;
    core->synced_writes = a->synced_writes;
    core->cached_writes = a->cached_writes;
    core->streams = a->streams;
    core->stream_min = stream_min(core);
    core->mapping = Py_NewRef(a->mapping);
    core->seam = a->seam == Py_None ? NULL : Py_NewRef(a->seam);
    core->writing = (Lock *)Py_NewRef(a->writing);
    core->guard = (Lock *)Py_NewRef(a->guard);
    core->index = (Index *)Py_NewRef(a->index);
    core->name_kind = Py_NewRef(module->name_kind);
    core->name_commit = Py_NewRef(module->name_commit);
    core->generation = a->generation;
    core->pointer = a->pointer;
    core->latency.step = a->timing_step;
    core->forks = fork_count;
    memcpy(&core->writer, a->writer, sizeof core->writer);
    core->prefetched = core->state.head.position;
    core->head_offset = core->state.head.position % a->capacity;
    check_core(core);
}

static PyObject *core_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    struct module_state *module = state_of(type);
    struct arguments arguments;
    struct log_state state;
    if (parse_arguments(module, args, keywords, &arguments) || parse_state(arguments.state, &state))
        return NULL;
    const char *problem = problem_with(&arguments, &state);
    if (problem) {
        PyErr_SetString(PyExc_ValueError, problem);
        return NULL;
    }
    int status = fault_setup();
    if (status) {
        raise_errno(status);
        return NULL;
    }
    Core *core = (Core *)type->tp_alloc(type, 0);
    if (!core)
        return NULL;
    init_conditions(core);
    core->state = state;
    if (attach(core, &arguments)) {
        Py_DECREF(core);
        return NULL;
    }
    fill(core, module, &arguments);
    return (PyObject *)core;
}

static int core_traverse(Core *core, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(core));
    Py_VISIT(core->mapping);
    Py_VISIT(core->map.obj);
    Py_VISIT(core->seam);
    return 0;
}

static int core_clear(Core *core)
{
    core->base = NULL;
    if (core->map.obj)
        PyBuffer_Release(&core->map);
    core->halted = true;
    Py_CLEAR(core->mapping);
    Py_CLEAR(core->seam);
    return 0;
}

static void core_dealloc(Core *core)
{
    PyTypeObject *type = Py_TYPE(core);
    PyObject_GC_UnTrack(core);
    core_clear(core);
    Py_XDECREF(core->writing);
    Py_XDECREF(core->guard);
    Py_XDECREF(core->index);
    Py_XDECREF(core->name_kind);
    Py_XDECREF(core->name_commit);
    PyMem_RawFree(core->stage);
    PyMem_RawFree(core->folios);
    pthread_cond_destroy(&core->flush_done);
    pthread_cond_destroy(&core->gathered);
    pthread_mutex_destroy(&core->flush_mutex);
    type->tp_free(core);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"become", (PyCFunction)core_become, METH_O, NULL},
    {"store", (PyCFunction)core_store_method, METH_VARARGS, NULL},
    {"store_rows", (PyCFunction)core_store_rows_method, METH_VARARGS, NULL},
    {"flush", (PyCFunction)core_flush_method, METH_NOARGS, NULL},
    {"commit", (PyCFunction)core_commit_method, METH_NOARGS, NULL},
    {"commit_through", (PyCFunction)core_commit_through_method, METH_O, NULL},
    {"write_slot", (PyCFunction)core_write_slot_method, METH_VARARGS, NULL},
    {"halt", (PyCFunction)core_halt, METH_NOARGS, NULL},
    {"continue_from", (PyCFunction)core_continue_from, METH_O, NULL},
    {"detach", (PyCFunction)core_detach, METH_NOARGS, NULL},
    {0},
};

static PyGetSetDef getset[] = {
    {"state", (getter)core_get_state, NULL, NULL, NULL},
    {"latency", (getter)core_get_latency, NULL, NULL, NULL},
    {0},
};

static PyMemberDef members[] = {
    {"generation", T_ULONGLONG, offsetof(Core, generation), READONLY, NULL},
    {"pointer", T_ULONGLONG, offsetof(Core, pointer), READONLY, NULL},
    {"failed", T_INT, offsetof(Core, failed), READONLY, NULL},
    {"stray_records", T_BOOL, offsetof(Core, stray_records), 0, NULL},
    {"stray_slot", T_BOOL, offsetof(Core, stray_slot), 0, NULL},
    {"watched", T_UINT, offsetof(Core, watched), 0, NULL},
    {"yields", T_BOOL, offsetof(Core, yields), 0, NULL},
    {"hold_until_ns", T_LONGLONG, offsetof(Core, hold_until_ns), READONLY, NULL},
    {"upkept_ns", T_LONGLONG, offsetof(Core, upkept_ns), 0, NULL},
    {"upkeep_due", T_BOOL, offsetof(Core, upkeep_due), 0, NULL},
    {"headroom", T_ULONGLONG, offsetof(Core, headroom), 0, NULL},
    {"appends", T_ULONGLONG, offsetof(Core, appends), READONLY, NULL},
    {"stored_bytes", T_ULONGLONG, offsetof(Core, stored_bytes), READONLY, NULL},
    {"commits", T_ULONGLONG, offsetof(Core, commits), READONLY, NULL},
    {"barriers", T_ULONGLONG, offsetof(Core, barriers), READONLY, NULL},
    {"slots_written", T_ULONGLONG, offsetof(Core, slots_written), READONLY, NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "The part of an engine that is in C, driven by pmwal.writing.native_engine; the caller holds the locks."},
    {Py_tp_new, core_new},
    {Py_tp_traverse, core_traverse},
    {Py_tp_clear, core_clear},
    {Py_tp_dealloc, core_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {Py_tp_members, members},
    {0},
};

PyType_Spec core_spec = {"pmwal.native._native.Core", sizeof(Core), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, slots};
