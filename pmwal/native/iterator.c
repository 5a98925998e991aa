/* RecordIterator: what Wal.read returns with the native engine.
 *
 * Invariants
 * - A record is delivered from a private copy of its payload, and the checksum is taken over that copy.
 * - C takes only the ordinary case: a whole record exactly where the one before ended. At a gap, at damage, after a truncate or
 *   rollback, and where two records may have the same number, the Python side decides.
 */
#define _DEFAULT_SOURCE
#include "scan.h"

#include <sys/mman.h>

#include "interpreter.h"

#include "fault.h"

#define WINDOW (128 * 1024) /* bytes: the kernel's default read-ahead window */
#define AHEAD (32 * WINDOW) /* bytes that the disk is asked for ahead of the copy */

typedef struct {
    PyObject_HEAD
    Core *core;
    PyTypeObject *record_type;
    PyObject *step; /* step(position, seq) -> (record, its end), or raises: the Python side's answer for one record */
    struct bound at;
    struct run_rules rules;
    PyObject *kept_rules; /* what `rules` were parsed from */
    uint64_t end_seq;     /* the number after the last record of the view, which ends at rules.limit */
    size_t passed;        /* of the starts of epochs */
} RecordIterator;

/* Whether the next record may be taken at the iterator's position: nothing suggests that it lies elsewhere, or that it is gone. */
static bool is_ordinary(const RecordIterator *iterator)
{
    const Core *core = iterator->core;
    return core->base && core->forks == fork_count && iterator->at.seq >= core->state.tail.seq &&
           core->state.epoch == iterator->rules.epochs.newest;
}

/* Copies the header at the iterator's position; false when the Python side has to look. */
static bool copy_header(RecordIterator *iterator, union header *copied, uint64_t *end, uint64_t *offset)
{
    const Core *core = iterator->core;
    const struct geometry *g = &core->geometry;
    const struct run_rules *rules = &iterator->rules;
    const unsigned char *ring = core->base + core->ring_offset;
    const struct record *header = &copied->record;
    const uint64_t position = iterator->at.position, seq = iterator->at.seq;
    struct record first = {0};
    *offset = position % g->capacity;
    uint64_t room = g->capacity - *offset;
    if (room < PMWAL_HEADER || !fault_copy(core->base, core->size, copied, ring + *offset, sizeof *copied))
        return false;
    if (room < g->size_max && !fault_copy(core->base, core->size, &first, ring, sizeof first))
        return false;
    if (first.seq == seq || header->seq != seq || !header_possible(g, header, position, room))
        return false;
    *end = position + record_size(g, header->length);
    return *end <= rules->limit && epoch_fits(&rules->epochs, seq, header->epoch, &iterator->passed);
}

/* Copies bytes of the mapping of a file on a disk; false when they cannot be read. The mapping is MADV_RANDOM, where each fault reads
 * a single page, so the disk is told what will be needed. It reads that as single pages too: MADV_WILLNEED ignores the folio sizes of
 * read-ahead. Of one call it reads no more than a read-ahead window. */
static bool copy_from_disk(const unsigned char *base, size_t size, unsigned char *to, const unsigned char *from, size_t length)
{
    size_t asked = 0;
    for (size_t copied = 0; copied < length; copied += WINDOW) {
        size_t wanted = length - copied < AHEAD ? length : copied + AHEAD, part = length - copied < WINDOW ? length - copied : WINDOW;
        for (; asked < wanted; asked += WINDOW) {
            size_t more = length - asked < WINDOW ? length - asked : WINDOW;
            uint64_t start = page_start((uint64_t)(from + asked - base));
            madvise((void *)(base + start), (size_t)(from + asked + more - base - start), MADV_WILLNEED);
        }
        if (!fault_copy(base, size, to + copied, from + copied, part))
            return false;
    }
    return true;
}

/* Copies the payload and checks it; a long one without the interpreter. */
static bool take_payload(RecordIterator *iterator, uint64_t offset, const union header *header, void *to)
{
    const Core *core = iterator->core;
    const unsigned char *base = core->base, *from = base + core->ring_offset + offset + PMWAL_HEADER;
    size_t length = header->record.length;
    uint64_t position = iterator->at.position;
    struct absence absence;
    Py_buffer kept;
    bool leaves = length > HELD_MAX;
    if (leaves && !keep_mapping(core, &kept)) {
        PyErr_Clear();
        leaves = false;
    }
    if (leaves)
        leave(&absence);
    bool in_parts = leaves && core->on_disk;
    bool copied = in_parts ? copy_from_disk(base, core->size, to, from, length) : fault_copy(base, core->size, to, from, length);
    bool whole = copied && record_crc(core->geometry.uuid_crc, position, header, to) == header->record.crc;
    if (leaves) {
        come_back(iterator->core, &absence);
        let_mapping_go(&kept);
    }
    return whole;
}

static PyObject *next_slowly(RecordIterator *iterator)
{
    PyObject *record, *answer = PyObject_CallFunction(iterator->step, "KK", (unsigned long long)iterator->at.position,
                                                      (unsigned long long)iterator->at.seq);
    unsigned long long end;
    if (!answer)
        return NULL;
    if (!PyArg_ParseTuple(answer, "OK;a record and its end", &record, &end))
        record = NULL;
    else {
        Py_INCREF(record);
        iterator->at = (struct bound){end, iterator->at.seq + 1};
    }
    Py_DECREF(answer);
    return record;
}

static PyObject *next_record(RecordIterator *iterator)
{
    union header header;
    uint64_t end, offset;
    if (iterator->at.seq >= iterator->rules.stop_seq)
        return iterator->at.seq == iterator->end_seq && iterator->at.position != iterator->rules.limit ? next_slowly(iterator) : NULL;
    if (!is_ordinary(iterator) || !copy_header(iterator, &header, &end, &offset))
        return next_slowly(iterator);
    PyObject *data = PyBytes_FromStringAndSize(NULL, header.record.length);
    if (!data)
        return NULL;
    uint64_t seq = iterator->at.seq;
    bool whole = take_payload(iterator, offset, &header, PyBytes_AS_STRING(data));
    if (iterator->at.seq != seq) { /* another thread used the iterator meanwhile */
        Py_DECREF(data);
        return next_record(iterator);
    }
    if (whole) {
        PyObject *record = record_new(iterator->record_type, &header.record, data);
        if (record)
            iterator->at = (struct bound){end, iterator->at.seq + 1};
        return record;
    }
    Py_DECREF(data);
    return next_slowly(iterator);
}

static PyObject *create(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"core", "record_type", "step", "at", "rules", "end_seq", NULL};
    PyObject *core, *record_type, *step, *rules_object;
    struct bound at;
    struct run_rules rules;
    unsigned long long end_seq;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!OOO&OK:RecordIterator", names, state_of(type)->core_type, &core,
                                     &record_type, &step, parse_bound, &at, &rules_object, &end_seq) ||
        !parse_rules(rules_object, &rules) || !check_record_type(type, record_type))
        return NULL;
    RecordIterator *iterator = (RecordIterator *)type->tp_alloc(type, 0);
    if (!iterator)
        return NULL;
    iterator->core = (Core *)Py_NewRef(core);
    iterator->record_type = (PyTypeObject *)Py_NewRef(record_type);
    iterator->step = Py_NewRef(step);
    iterator->at = at;
    iterator->rules = rules;
    iterator->kept_rules = Py_NewRef(rules_object);
    iterator->end_seq = end_seq;
    return (PyObject *)iterator;
}

static int traverse(RecordIterator *iterator, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(iterator));
    Py_VISIT(iterator->core);
    Py_VISIT(iterator->record_type);
    Py_VISIT(iterator->step);
    Py_VISIT(iterator->kept_rules);
    return 0;
}

static void dealloc(RecordIterator *iterator)
{
    PyTypeObject *type = Py_TYPE(iterator);
    PyObject_GC_UnTrack(iterator);
    Py_XDECREF(iterator->core);
    Py_XDECREF(iterator->record_type);
    Py_XDECREF(iterator->step);
    Py_XDECREF(iterator->kept_rules);
    type->tp_free(iterator);
    Py_DECREF(type);
}

static PyType_Slot slots[] = {
    {Py_tp_doc, "The records of a log opened for writing, one after the other."},
    {Py_tp_new, create},
    {Py_tp_traverse, traverse},
    {Py_tp_dealloc, dealloc},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, next_record},
    {0},
};

PyType_Spec iterator_spec = {"pmwal.native._native.RecordIterator", sizeof(RecordIterator), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, slots};
