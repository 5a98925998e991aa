/* Reading: the iterator behind Wal.read, and runs of whole records for recovery, verify and Reader.
 *
 * Invariants
 * - Walk hands out a record from a private copy of its payload, and the checksum is taken over that copy.
 * - Walk, Scanner and what a follower is handed take only the ordinary case: a whole record right where the one before ended. At a
 *   gap, at damage, and where two records may have the same number, the Python side decides.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "core.h"
#include "record.h"

#include "crc32c.h"
#include "fault.h"
#include "parallel.h"

/* -- Walk */

typedef struct {
    PyObject_HEAD
    Core *core;
    PyTypeObject *record_type;
    PyObject *step; /* step(position, seq) -> (record, its end), or raises: what the Python side makes of it */
    uint64_t position, seq;
    uint64_t stop_seq, limit, epoch, epoch_first_seq;
} Walk;

/* Whether the next record may be taken right here: nothing says that it may stand elsewhere, or that it is gone. */
static bool walk_is_plain(const Walk *walk)
{
    const Core *core = walk->core;
    return core->base && core->forks == fork_count && walk->seq >= core->state.tail.seq && core->state.epoch == walk->epoch;
}

/* Reads the header at the walk's position into `header`; false when the Python side has to look. */
static bool walk_header(const Walk *walk, union header *copied, uint64_t *end, uint64_t *offset)
{
    const Core *core = walk->core;
    const struct geometry *g = &core->geometry;
    const unsigned char *ring = core->base + core->ring_offset;
    const struct record *header = &copied->record;
    struct record first = {0};
    *offset = walk->position % g->capacity;
    uint64_t room = g->capacity - *offset;
    if (room < PMWAL_HEADER || !fault_copy(core->base, core->size, copied, ring + *offset, sizeof *copied))
        return false;
    if (room < g->size_max && !fault_copy(core->base, core->size, &first, ring, sizeof first))
        return false;
    if (first.seq == walk->seq || header->seq != walk->seq || !header_possible(g, header, walk->position, room))
        return false;
    *end = walk->position + record_size(g, header->length);
    return *end <= walk->limit &&
           (walk->seq >= walk->epoch_first_seq ? header->epoch == walk->epoch : header->epoch < walk->epoch);
}

static bool copy_payload(const Core *core, uint64_t offset, void *to, size_t length)
{
    return fault_copy(core->base, core->size, to, core->base + core->ring_offset + offset + PMWAL_HEADER, length);
}

static PyObject *walk_slowly(Walk *walk)
{
    PyObject *record, *answer = PyObject_CallFunction(walk->step, "KK", (unsigned long long)walk->position,
                                                      (unsigned long long)walk->seq);
    unsigned long long end;
    if (!answer)
        return NULL;
    if (!PyArg_ParseTuple(answer, "OK;a record and its end", &record, &end))
        record = NULL;
    else {
        Py_INCREF(record);
        walk->position = end;
        walk->seq++;
    }
    Py_DECREF(answer);
    return record;
}

static PyObject *walk_next(Walk *walk)
{
    union header header;
    uint64_t end, offset;
    if (walk->seq >= walk->stop_seq)
        return NULL;
    if (!walk_is_plain(walk) || !walk_header(walk, &header, &end, &offset))
        return walk_slowly(walk);
    PyObject *data = PyBytes_FromStringAndSize(NULL, header.record.length);
    if (!data)
        return NULL;
    char *to = PyBytes_AS_STRING(data);
    if (copy_payload(walk->core, offset, to, header.record.length)) {
        if (record_crc(walk->core->geometry.uuid_crc, walk->position, &header, to) == header.record.crc) {
            PyObject *record = record_new(walk->record_type, &header.record, data);
            if (record) {
                walk->position = end;
                walk->seq++;
            }
            return record;
        }
    }
    Py_DECREF(data);
    return walk_slowly(walk);
}

static PyObject *walk_create(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"core", "record_type", "step", "position", "seq", "stop_seq", "limit", "epoch", "epoch_first_seq", NULL};
    struct module_state *module = state_of(type);
    PyObject *core, *record_type, *step;
    unsigned long long position, seq, stop_seq, limit, epoch, epoch_first_seq;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!O!OKKKKKK:Walk", names, module->core_type, &core, &PyType_Type,
                                     &record_type, &step, &position, &seq, &stop_seq, &limit, &epoch, &epoch_first_seq))
        return NULL;
    if (!PyType_IsSubtype((PyTypeObject *)record_type, module->record_type)) {
        PyErr_SetString(PyExc_TypeError, "record_type is a kind of Record");
        return NULL;
    }
    Walk *walk = (Walk *)type->tp_alloc(type, 0);
    if (!walk)
        return NULL;
    walk->core = (Core *)Py_NewRef(core);
    walk->record_type = (PyTypeObject *)Py_NewRef(record_type);
    walk->step = Py_NewRef(step);
    walk->position = position;
    walk->seq = seq;
    walk->stop_seq = stop_seq;
    walk->limit = limit;
    walk->epoch = epoch;
    walk->epoch_first_seq = epoch_first_seq;
    return (PyObject *)walk;
}

static int walk_traverse(Walk *walk, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(walk));
    Py_VISIT(walk->core);
    Py_VISIT(walk->record_type);
    Py_VISIT(walk->step);
    return 0;
}

static void walk_dealloc(Walk *walk)
{
    PyTypeObject *type = Py_TYPE(walk);
    PyObject_GC_UnTrack(walk);
    Py_XDECREF(walk->core);
    Py_XDECREF(walk->record_type);
    Py_XDECREF(walk->step);
    type->tp_free(walk);
    Py_DECREF(type);
}

static PyType_Slot walk_slots[] = {
    {Py_tp_doc, "The records of a log opened for writing, one after the other."},
    {Py_tp_new, walk_create},
    {Py_tp_traverse, walk_traverse},
    {Py_tp_dealloc, walk_dealloc},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, walk_next},
    {0},
};

PyType_Spec walk_spec = {"pmwal.native._native.Walk", sizeof(Walk), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, walk_slots};

/* -- Scanner */

typedef struct {
    PyObject_HEAD
    struct geometry geometry;
    PyTypeObject *bound_type;
} Scanner;

/* An access to a window faulted. */
static void raise_unreadable(void)
{
    PyObject *error = PyObject_CallFunction(PyExc_OSError, "is", EIO, "the file was shortened while it was mapped, or the medium failed");
    if (error)
        PyErr_SetObject(PyExc_OSError, error);
    Py_XDECREF(error);
}

static PyObject *scanner_run(Scanner *scanner, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"window", "start", "position", "seq", "stop_seq", "limit", "epoch", "epoch_first_seq", "lap_seq",
                            "batches", "bytes_max", "epoch_min", "mark", "index_last", NULL};
    Py_buffer buffer;
    unsigned long long start, position, seq, stop_seq, limit, epoch, epoch_first_seq, lap_seq, bytes_max, epoch_min, mark;
    PyObject *index_last;
    int batches;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "y*KKKKKKKKpKKKO:run", names, &buffer, &start, &position, &seq, &stop_seq,
                                     &limit, &epoch, &epoch_first_seq, &lap_seq, &batches, &bytes_max, &epoch_min, &mark,
                                     &index_last))
        return NULL;
    struct window window = {buffer.buf, start, (uint64_t)buffer.len};
    struct run_rules rules = {stop_seq, limit, (uint32_t)epoch, epoch_first_seq, lap_seq, batches, bytes_max};
    struct run run = {.position = position, .seq = seq, .epoch_min = (uint32_t)epoch_min, .mark = mark};
    struct starts starts = {.room = starts_room(bytes_max < (uint64_t)buffer.len ? bytes_max : (uint64_t)buffer.len)};
    PyObject *list = NULL, *answer = NULL;
    if (index_last != Py_None) {
        run.index_any = true;
        run.index_last = PyLong_AsUnsignedLongLong(index_last);
        if (PyErr_Occurred())
            goto done;
    }
    starts.pairs = PyMem_New(uint64_t, 2 * starts.room);
    if (!starts.pairs) {
        PyErr_NoMemory();
        goto done;
    }
    if (!run_parts(&scanner->geometry, &window, &rules, &run, &starts)) {
        raise_unreadable();
        goto done;
    }
    list = PyList_New(0);
    for (size_t i = 0; list && i < starts.count; i++) {
        if (starts.pairs[2 * i] >= run.position)
            break; /* part of a batch that was not whole */
        PyObject *pair = bound_new(scanner->bound_type, starts.pairs[2 * i], starts.pairs[2 * i + 1]);
        if (!pair || PyList_Append(list, pair))
            Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    if (list)
        answer = Py_BuildValue("(KKKKOO)", (unsigned long long)run.position, (unsigned long long)run.seq,
                               (unsigned long long)run.epoch_min, (unsigned long long)run.mark,
                               run.outside ? Py_True : Py_False, list);
done:
    Py_XDECREF(list);
    PyMem_Free(starts.pairs);
    PyBuffer_Release(&buffer);
    return answer;
}

/* A list of (record, position, end, checksum): the records from this position on that the window holds and the rules take. */
static PyObject *list_records(const Scanner *scanner, PyTypeObject *record_type, const struct window *window,
                              const struct run_rules *rules, uint64_t position, uint64_t seq, uint64_t count_max)
{
    const struct geometry *g = &scanner->geometry;
    PyObject *list = PyList_New(0);
    while (list && seq < rules->stop_seq && (uint64_t)PyList_GET_SIZE(list) < count_max) {
        union header copied;
        const struct record *header = &copied.record;
        if ((seq == rules->lap_seq && g->capacity - position % g->capacity < g->size_max) ||
            record_at(g, window, position, &copied) != WHOLE || header->seq != seq)
            break;
        uint64_t end = position + record_size(g, header->length);
        if (end > rules->limit || (seq >= rules->epoch_first_seq ? header->epoch != rules->epoch : header->epoch >= rules->epoch))
            break;
        PyObject *data = PyBytes_FromStringAndSize(
            (const char *)window->bytes + (position % g->capacity - window->start) + PMWAL_HEADER, header->length);
        PyObject *record = data ? record_new(record_type, header, data) : NULL;
        PyObject *item = record ? Py_BuildValue("(NKKI)", record, (unsigned long long)position, (unsigned long long)end, header->crc)
                                : NULL;
        if (!item || PyList_Append(list, item))
            Py_CLEAR(list);
        Py_XDECREF(item);
        position = end;
        seq++;
    }
    return list;
}

static PyObject *scanner_records(Scanner *scanner, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"record_type", "window", "start", "position", "seq", "stop_seq", "limit", "epoch", "epoch_first_seq",
                            "lap_seq", "count_max", NULL};
    Py_buffer buffer;
    PyObject *record_type;
    unsigned long long start, position, seq, stop_seq, limit, epoch, epoch_first_seq, lap_seq, count_max;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!y*KKKKKKKKK:records", names, &PyType_Type, &record_type, &buffer, &start,
                                     &position, &seq, &stop_seq, &limit, &epoch, &epoch_first_seq, &lap_seq, &count_max))
        return NULL;
    struct window window = {buffer.buf, start, (uint64_t)buffer.len};
    struct run_rules rules = {.stop_seq = stop_seq, .limit = limit, .epoch = (uint32_t)epoch, .epoch_first_seq = epoch_first_seq,
                              .lap_seq = lap_seq};
    PyObject *list = NULL;
    if (PyType_IsSubtype((PyTypeObject *)record_type, state_of(Py_TYPE(scanner))->record_type))
        list = list_records(scanner, (PyTypeObject *)record_type, &window, &rules, position, seq, count_max);
    else
        PyErr_SetString(PyExc_TypeError, "record_type is a kind of Record");
    PyBuffer_Release(&buffer);
    return list;
}

/* The two lines of the live page that a writer stores at each commit. */
struct shown {
    struct live_bounds bounds;
    struct live_writer writer;
};

static_assert(offsetof(struct shown, writer) == PMWAL_LIVE_WRITER_OFFSET - PMWAL_LIVE_OFFSET, "live page");

static bool load(int fd, void *to, size_t length, uint64_t offset)
{
    ssize_t count;
    Py_BEGIN_ALLOW_THREADS
    count = pread(fd, to, length, (off_t)offset);
    Py_END_ALLOW_THREADS
    return count == (ssize_t)length;
}

/* Whether the writer that a follower has met shows records from `seq` on in the epoch that the follower knows. The bounds have to be
 * the same twice running; the writer's line comes with the first, so it is no newer than they are. */
static bool load_news(int fd, const struct live_writer *met, uint64_t seq, uint64_t epoch, struct shown *shown)
{
    struct live_bounds again;
    const struct live_bounds *bounds = &shown->bounds;
    const struct live_writer *writer = &shown->writer;
    if (!load(fd, shown, sizeof *shown, PMWAL_LIVE_OFFSET) || !load(fd, &again, sizeof again, PMWAL_LIVE_OFFSET))
        return false;
    if (memcmp(bounds, &again, sizeof again) || bounds->version_begin != bounds->version_end)
        return false;
    return memcmp(writer, met, sizeof *met) && writer->pid == met->pid && writer->start_time == met->start_time &&
           !memcmp(writer->boot_id, met->boot_id, sizeof met->boot_id) && writer->inode == met->inode && bounds->epoch == epoch &&
           bounds->tail_seq <= seq && seq <= bounds->durable_seq;
}

static PyObject *scanner_follow(Scanner *scanner, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"record_type", "fd", "ring_offset", "writer", "position", "seq", "epoch", "bytes_max", "count_max", NULL};
    const struct geometry *g = &scanner->geometry;
    Py_buffer writer;
    PyObject *record_type;
    int fd;
    unsigned long long ring_offset, position, seq, epoch, bytes_max, count_max;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!iKy*KKKKK:follow", names, &PyType_Type, &record_type, &fd, &ring_offset,
                                     &writer, &position, &seq, &epoch, &bytes_max, &count_max))
        return NULL;
    struct live_writer met;
    bool is_line = writer.len == sizeof met;
    if (is_line)
        memcpy(&met, writer.buf, sizeof met);
    PyBuffer_Release(&writer);
    if (!is_line || !PyType_IsSubtype((PyTypeObject *)record_type, state_of(Py_TYPE(scanner))->record_type)) {
        PyErr_SetString(PyExc_TypeError, "record_type is a kind of Record, and writer a line of the live page");
        return NULL;
    }
    struct shown shown;
    if (!load_news(fd, &met, seq, epoch, &shown) || shown.bounds.durable_position <= position)
        Py_RETURN_NONE;
    uint64_t start = position % g->capacity, room = g->capacity - start, length = shown.bounds.durable_position - position;
    length = length < room ? length : room;
    length = length < bytes_max ? length : bytes_max;
    struct record lap = {0};
    PyObject *list = NULL, *copy = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (!copy)
        return NULL;
    bool may_wrap = room - length < g->size_max; /* else no record in this window may stand at the ring's start instead */
    if (load(fd, PyBytes_AS_STRING(copy), length, ring_offset + start) && (!may_wrap || load(fd, &lap, sizeof lap, ring_offset))) {
        struct window window = {(const unsigned char *)PyBytes_AS_STRING(copy), start, length};
        struct run_rules rules = {.stop_seq = shown.bounds.durable_seq + 1, .limit = shown.bounds.durable_position,
                                  .epoch = (uint32_t)epoch, .epoch_first_seq = shown.bounds.epoch_first_seq, .lap_seq = lap.seq};
        list = list_records(scanner, (PyTypeObject *)record_type, &window, &rules, position, seq, count_max);
    } else
        list = PyList_New(0);
    Py_DECREF(copy);
    if (!list)
        return NULL;
    if (!PyList_GET_SIZE(list)) {
        Py_DECREF(list);
        Py_RETURN_NONE;
    }
    return Py_BuildValue("(y#KN)", (const char *)&shown.writer, (Py_ssize_t)sizeof shown.writer,
                         (unsigned long long)shown.bounds.tail_seq, list);
}

static PyObject *scanner_rows(Scanner *scanner, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"window", "start", "position", "seq", "count", "limit", "epoch", "epoch_first_seq", "lap_seq",
                            "rows", "first", "length", NULL};
    Py_buffer buffer, rows;
    unsigned long long start, position, seq, count, limit, epoch, epoch_first_seq, lap_seq, first, length;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "y*KKKKKKKKw*KK:rows", names, &buffer, &start, &position, &seq, &count, &limit,
                                     &epoch, &epoch_first_seq, &lap_seq, &rows, &first, &length))
        return NULL;
    const struct geometry *g = &scanner->geometry;
    struct window window = {buffer.buf, start, (uint64_t)buffer.len};
    struct row_rules rules = {limit, (uint32_t)epoch, epoch_first_seq, lap_seq, length};
    uint64_t taken = 0, room = (uint64_t)rows.len;
    PyObject *answer = NULL;
    count = rows_within(g, &window, &rules, position, seq, count);
    if (length && (first > room / length || count > room / length - first))
        PyErr_SetString(PyExc_ValueError, "the rows do not fit");
    else if (!take_rows_in_parts(g, &window, &rules, position, seq, count, (unsigned char *)rows.buf + first * length, &taken))
        raise_unreadable();
    else
        answer = PyLong_FromUnsignedLongLong(taken);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&buffer);
    return answer;
}

/* Which commit slots of a control region have the checksum that their place calls for: a byte for each. */
static PyObject *scanner_slots_method(Scanner *scanner, PyObject *control)
{
    Py_buffer buffer;
    if (PyObject_GetBuffer(control, &buffer, PyBUF_SIMPLE))
        return NULL;
    Py_ssize_t count = buffer.len / (Py_ssize_t)sizeof(struct slot);
    PyObject *answer = PyBytes_FromStringAndSize(NULL, count);
    for (Py_ssize_t i = 0; answer && i < count; i++) {
        const unsigned char *bytes = (const unsigned char *)buffer.buf + i * (Py_ssize_t)sizeof(struct slot);
        uint32_t stored, crc = seed_crc(scanner->geometry.uuid_crc, (uint64_t)i);
        memcpy(&stored, bytes, sizeof stored);
        crc = crc32c(crc, bytes + sizeof stored, sizeof(struct slot) - sizeof stored);
        PyBytes_AS_STRING(answer)[i] = crc == stored;
    }
    PyBuffer_Release(&buffer);
    return answer;
}

static PyObject *scanner_candidates(Scanner *scanner, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"window", "position", "count", "epoch", "seq_min", "newer_seq_min", NULL};
    Py_buffer buffer;
    unsigned long long position, count, epoch, seq_min, newer_seq_min;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "y*KKKKK:candidates", names, &buffer, &position, &count, &epoch, &seq_min,
                                     &newer_seq_min))
        return NULL;
    const uint64_t step = scanner->geometry.alignment;
    const unsigned char *bytes = buffer.buf;
    PyObject *list = PyList_New(0);
    for (uint64_t at = 0; list && at < count && at + PMWAL_HEADER <= (uint64_t)buffer.len; at += step) {
        struct record header;
        memcpy(&header.seq, bytes + at + offsetof(struct record, seq), sizeof header.seq);
        memcpy(&header.durable, bytes + at + offsetof(struct record, durable), sizeof header.durable);
        /* Zeros, and nearly all payloads, end here. */
        if (header.seq == 0 || header.durable > position + at)
            continue;
        memcpy(&header.epoch, bytes + at + offsetof(struct record, epoch), sizeof header.epoch);
        if (!(header.epoch == epoch && header.seq >= seq_min) && !(header.epoch > epoch && header.seq >= newer_seq_min))
            continue;
        PyObject *item = PyLong_FromUnsignedLongLong(position + at);
        if (!item || PyList_Append(list, item))
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    PyBuffer_Release(&buffer);
    return list;
}

static PyObject *scanner_create(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"capacity", "alignment", "payload_max", "uuid_crc", "bound_type", NULL};
    unsigned long long capacity, alignment, payload_max;
    unsigned int uuid_crc;
    PyObject *bound_type;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "KKKIO!:Scanner", names, &capacity, &alignment, &payload_max, &uuid_crc,
                                     &PyType_Type, &bound_type))
        return NULL;
    if (!PyType_IsSubtype((PyTypeObject *)bound_type, &PyTuple_Type) || !capacity || alignment < 8 ||
        alignment > PMWAL_ALIGN_MAX || alignment & (alignment - 1)) {
        PyErr_SetString(PyExc_ValueError, "no log has this geometry");
        return NULL;
    }
    Scanner *scanner = (Scanner *)type->tp_alloc(type, 0);
    if (scanner) {
        scanner->geometry = (struct geometry){capacity, alignment, payload_max, 0, uuid_crc};
        scanner->geometry.size_max = record_size(&scanner->geometry, payload_max);
        scanner->bound_type = (PyTypeObject *)Py_NewRef(bound_type);
    }
    return (PyObject *)scanner;
}

static int scanner_traverse(Scanner *scanner, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(scanner));
    Py_VISIT(scanner->bound_type);
    return 0;
}

static void scanner_dealloc(Scanner *scanner)
{
    PyTypeObject *type = Py_TYPE(scanner);
    PyObject_GC_UnTrack(scanner);
    Py_XDECREF(scanner->bound_type);
    type->tp_free(scanner);
    Py_DECREF(type);
}

static PyMethodDef scanner_methods[] = {
    {"run", (PyCFunction)(void (*)(void))scanner_run, METH_VARARGS | METH_KEYWORDS, NULL},
    {"records", (PyCFunction)(void (*)(void))scanner_records, METH_VARARGS | METH_KEYWORDS, NULL},
    {"follow", (PyCFunction)(void (*)(void))scanner_follow, METH_VARARGS | METH_KEYWORDS, NULL},
    {"rows", (PyCFunction)(void (*)(void))scanner_rows, METH_VARARGS | METH_KEYWORDS, NULL},
    {"slots", (PyCFunction)scanner_slots_method, METH_O, NULL},
    {"candidates", (PyCFunction)(void (*)(void))scanner_candidates, METH_VARARGS | METH_KEYWORDS, NULL},
    {0},
};

static PyType_Slot scanner_slots[] = {
    {Py_tp_doc, "Looks at bytes of a ring with this geometry."},
    {Py_tp_new, scanner_create},
    {Py_tp_traverse, scanner_traverse},
    {Py_tp_dealloc, scanner_dealloc},
    {Py_tp_methods, scanner_methods},
    {0},
};

PyType_Spec scanner_spec = {"pmwal.native._native.Scanner", sizeof(Scanner), 0,
                            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, scanner_slots};
