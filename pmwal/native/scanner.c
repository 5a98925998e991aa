/* Scanner: runs of whole records for recovery, verify and Reader.
 *
 * Invariants
 * - It takes only the ordinary case: a whole record exactly where the one before ended. At a gap, at damage, and where two
 *   records may have the same number, the Python side decides.
 * - run(), records(), selected() and relocate() need bytes that do not change: a private copy, or a mapping that nobody writes. rows() and
 *   frame() take each checksum over their own copy, so their bytes may change.
 */
#include <string.h>

#include "scan.h"

#include "fault.h"
#include "follower.h"
#include "parallel.h"
#include "slots.h"

typedef struct {
    PyObject_HEAD
    struct geometry geometry;
    PyTypeObject *bound_type;
} Scanner;

/* The starts before `end` as a list of bound_type; what lies further on is part of a batch that was not whole. */
static PyObject *list_starts(const Scanner *scanner, const struct starts *starts, uint64_t end)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < starts->count && starts->pairs[2 * i] < end; i++) {
        PyObject *start = bound_new(scanner->bound_type, starts->pairs[2 * i], starts->pairs[2 * i + 1]);
        if (!start || PyList_Append(list, start))
            Py_CLEAR(list);
        Py_XDECREF(start);
    }
    return list;
}

static PyObject *run_in(const Scanner *scanner, const struct window *window, const struct run_rules *rules, struct run *run)
{
    struct starts starts = {.room = starts_room(rules->bytes_max < window->length ? rules->bytes_max : window->length)};
    PyObject *list = NULL;
    starts.pairs = PyMem_New(uint64_t, 2 * starts.room);
    if (!starts.pairs)
        return PyErr_NoMemory();
    PyThreadState *released = window->length > HELD_MAX ? PyEval_SaveThread() : NULL;
    bool readable = run_parts(&scanner->geometry, window, rules, run, &starts);
    if (released)
        PyEval_RestoreThread(released);
    if (readable)
        list = list_starts(scanner, &starts, run->position);
    else
        raise_unreadable();
    PyMem_Free(starts.pairs);
    if (!list)
        return NULL;
    return Py_BuildValue("(KKKKON)", (unsigned long long)run->position, (unsigned long long)run->seq,
                         (unsigned long long)run->epoch_min, (unsigned long long)run->mark, run->outside ? Py_True : Py_False,
                         list);
}

static PyObject *scanner_run(Scanner *scanner, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"window", "at", "rules", "epoch_min", "mark", "last_start", "bytes_max", NULL};
    struct scan_window window = {0};
    struct bound at;
    struct run_rules rules;
    unsigned long long epoch_min, mark, index_last = 0, bytes_max;
    PyObject *last_start, *answer = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&KKOK:run", names, parse_window, &window, parse_bound, &at, parse_rules,
                                     &rules, &epoch_min, &mark, &last_start, &bytes_max))
        return NULL;
    rules.lap_seq = window.lap_seq;
    rules.bytes_max = bytes_max;
    if (last_start != Py_None)
        index_last = PyLong_AsUnsignedLongLong(last_start);
    if (!PyErr_Occurred()) {
        struct run run = {.position = at.position, .seq = at.seq, .epoch_min = (uint32_t)epoch_min, .mark = mark,
                          .index_last = index_last, .index_any = last_start != Py_None};
        answer = run_in(scanner, &window.bytes, &rules, &run);
    }
    PyBuffer_Release(&window.buffer);
    return answer;
}

bool find_records(const struct geometry *g, const struct window *window, const struct run_rules *rules, struct found_records *found,
                  uint64_t bytes_max)
{
    while (found->at.seq < rules->stop_seq && found->count < found->count_max) {
        struct bound at = found->at;
        union header header;
        uint64_t size;
        enum advance next = next_record_in(g, window, rules, at.position, at.seq, &found->passed, bytes_max, &header, &size);
        if (next != ADVANCES)
            return next == TOO_LONG;
        bytes_max -= size;
        found->positions[found->count++] = at.position;
        found->at = (struct bound){at.position + size, at.seq + 1};
    }
    return false;
}

PyObject *record_in(const struct geometry *g, PyTypeObject *record_type, const struct window *window, uint64_t position,
                    struct record *header)
{
    const unsigned char *stored = window->bytes + (position % g->capacity - window->start);
    memcpy(header, stored, sizeof *header);
    PyObject *data = PyBytes_FromStringAndSize((const char *)stored + PMWAL_HEADER, header->length);
    return data ? record_new(record_type, header, data) : NULL;
}

static PyObject *make_record(const struct geometry *g, PyTypeObject *record_type, const struct window *window, uint64_t position)
{
    struct record header;
    PyObject *record = record_in(g, record_type, window, position, &header);
    if (!record)
        return NULL;
    return Py_BuildValue("(NKKI)", record, (unsigned long long)position,
                         (unsigned long long)(position + record_size(g, header.length)), header.crc);
}

/* A list of (record, position, end, checksum): the records from `at` on that the window contains and the rules take. */
static PyObject *list_records(const Scanner *scanner, PyTypeObject *record_type, const struct window *window,
                              const struct run_rules *rules, struct bound at, uint64_t count_max)
{
    const struct geometry *g = &scanner->geometry;
    count_max = count_max < window->length / PMWAL_HEADER ? count_max : window->length / PMWAL_HEADER;
    struct found_records found = {.at = at, .count_max = count_max, .positions = PyMem_New(uint64_t, count_max + 1)};
    if (!found.positions)
        return PyErr_NoMemory();
    if (find_records(g, window, rules, &found, HELD_MAX)) {
        PyThreadState *thread = PyEval_SaveThread(); /* the caller keeps the window */
        find_records(g, window, rules, &found, UINT64_MAX);
        PyEval_RestoreThread(thread);
    }
    PyObject *list = PyList_New((Py_ssize_t)found.count);
    for (uint64_t i = 0; list && i < found.count; i++) {
        PyObject *item = make_record(g, record_type, window, found.positions[i]);
        if (item)
            PyList_SET_ITEM(list, (Py_ssize_t)i, item);
        else
            Py_CLEAR(list);
    }
    PyMem_Free(found.positions);
    return list;
}

static PyObject *scanner_records(Scanner *scanner, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"record_type", "window", "at", "rules", "count_max", NULL};
    struct scan_window window = {0};
    struct bound at;
    struct run_rules rules;
    PyObject *record_type, *list = NULL;
    unsigned long long count_max;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO&O&O&K:records", names, &record_type, parse_window, &window, parse_bound,
                                     &at, parse_rules, &rules, &count_max))
        return NULL;
    rules.lap_seq = window.lap_seq;
    if (check_record_type(Py_TYPE(scanner), record_type))
        list = list_records(scanner, (PyTypeObject *)record_type, &window.bytes, &rules, at, count_max);
    PyBuffer_Release(&window.buffer);
    return list;
}

static PyObject *scanner_follower(Scanner *scanner, PyObject *args, PyObject *keywords)
{
    return follower_new(state_of(Py_TYPE(scanner)), &scanner->geometry, args, keywords);
}

static PyObject *scanner_rows(Scanner *scanner, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"window", "at", "rules", "rows", "first", "length", NULL};
    struct scan_window window = {0};
    struct bound at;
    struct run_rules rules;
    Py_buffer rows;
    unsigned long long first, length;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&w*KK:rows", names, parse_window, &window, parse_bound, &at, parse_rules,
                                     &rules, &rows, &first, &length))
        return NULL;
    const struct geometry *g = &scanner->geometry;
    struct row_rules row_rules = {rules.limit, rules.epochs, window.lap_seq, length};
    uint64_t taken = 0, room = (uint64_t)rows.len, count = rules.stop_seq > at.seq ? rules.stop_seq - at.seq : 0;
    PyObject *answer = NULL;
    count = rows_within(g, &window.bytes, &row_rules, at.position, at.seq, count);
    if (length && (first > room / length || count > room / length - first))
        PyErr_SetString(PyExc_ValueError, "the rows do not fit");
    else {
        PyThreadState *released = window.bytes.length > HELD_MAX ? PyEval_SaveThread() : NULL;
        bool readable = take_rows_in_parts(g, &window.bytes, &row_rules, at.position, at.seq, count,
                                           (unsigned char *)rows.buf + first * length, &taken);
        if (released)
            PyEval_RestoreThread(released);
        if (readable)
            answer = PyLong_FromUnsignedLongLong(taken);
        else
            raise_unreadable();
    }
    PyBuffer_Release(&rows);
    PyBuffer_Release(&window.buffer);
    return answer;
}

struct relocating {
    const struct geometry *from, *to;
    const struct window *window;
    const struct run_rules *rules;
    struct relocation *relocation;
};

static void relocate_body(void *context)
{
    struct relocating *work = context;
    relocate(work->from, work->window, work->rules, work->to, work->relocation);
}

/* (position, number, position in the other ring, start of the batch there, longest payload, whether there is no room for more) */
static PyObject *scanner_relocate(Scanner *scanner, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"window", "at", "rules", "other", "bytes", "used", "to", "batch", "longest", NULL};
    struct scan_window window = {0};
    struct bound at;
    struct run_rules rules;
    Scanner *other;
    Py_buffer bytes;
    unsigned long long used, to, batch, longest;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&O!w*KKKK:relocate", names, parse_window, &window, parse_bound, &at,
                                     parse_rules, &rules, Py_TYPE(scanner), &other, &bytes, &used, &to, &batch, &longest))
        return NULL;
    rules.lap_seq = window.lap_seq;
    PyObject *answer = NULL;
    if (used > (uint64_t)bytes.len)
        PyErr_SetString(PyExc_ValueError, "more bytes are used than there are");
    else {
        struct relocation done = {.position = at.position, .seq = at.seq, .to = to, .batch = batch, .longest = longest,
                                  .bytes = (unsigned char *)bytes.buf + used, .room = (uint64_t)bytes.len - used};
        struct relocating work = {&scanner->geometry, &other->geometry, &window.bytes, &rules, &done};
        PyThreadState *thread = PyEval_SaveThread();
        bool readable = fault_run(window.bytes.bytes, window.bytes.length, relocate_body, &work);
        PyEval_RestoreThread(thread);
        if (readable)
            answer = Py_BuildValue("(KKKKKO)", (unsigned long long)done.position, (unsigned long long)done.seq,
                                   (unsigned long long)done.to, (unsigned long long)done.batch,
                                   (unsigned long long)done.longest, done.full ? Py_True : Py_False);
        else
            raise_unreadable();
    }
    PyBuffer_Release(&bytes);
    PyBuffer_Release(&window.buffer);
    return answer;
}

struct packing {
    const struct geometry *g;
    const struct window *window;
    const struct run_rules *rules;
    struct framing *framing;
};

static void pack_body(void *context)
{
    struct packing *work = context;
    pack_frame(work->g, work->window, work->rules, work->framing);
}

/* (body, its last entry, where that record starts and its checksum, where the next one starts and its number, whether there is no
 * room for it); the body is empty if no record was packed. */
static PyObject *frame_in(const Scanner *scanner, const struct window *window, const struct run_rules *rules, struct bound at,
                          uint64_t room)
{
    room = room < window->length ? room : window->length; /* the entries of records are shorter than these */
    PyObject *body = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)room);
    if (!body)
        return NULL;
    struct framing framing = {.position = at.position, .seq = at.seq, .body = (unsigned char *)PyBytes_AS_STRING(body), .room = room};
    struct packing work = {&scanner->geometry, window, rules, &framing};
    PyThreadState *released = window->length > HELD_MAX ? PyEval_SaveThread() : NULL;
    bool readable = fault_run(window->bytes, window->length, pack_body, &work);
    if (released)
        PyEval_RestoreThread(released);
    if (!readable) {
        Py_DECREF(body);
        raise_unreadable();
        return NULL;
    }
    if (_PyBytes_Resize(&body, (Py_ssize_t)framing.used))
        return NULL;
    return Py_BuildValue("(NKKIKKO)", body, (unsigned long long)framing.entry, (unsigned long long)framing.last, framing.crc,
                         (unsigned long long)framing.position, (unsigned long long)framing.seq, framing.full ? Py_True : Py_False);
}

static PyObject *scanner_frame(Scanner *scanner, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"window", "at", "rules", "room", NULL};
    struct scan_window window = {0};
    struct bound at;
    struct run_rules rules;
    unsigned long long room;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&K:frame", names, parse_window, &window, parse_bound, &at, parse_rules,
                                     &rules, &room))
        return NULL;
    rules.lap_seq = window.lap_seq;
    PyObject *answer = frame_in(scanner, &window.bytes, &rules, at, room);
    PyBuffer_Release(&window.buffer);
    return answer;
}

/* Which records a selection takes, and what it knows of the effective time, which begins anew with each epoch. */
struct selection {
    const unsigned char *kinds; /* a bit for each; NULL for all */
    int64_t since, until;       /* stamps, both included */
    int64_t now;                /* a later stamp counts as this */
    int64_t latest;             /* effective time of the last record, of `epoch`; 0 for none yet */
    uint32_t epoch;
};

/* A walk over records of one epoch: where those begin that the selection takes, and their effective times. */
struct selected {
    struct bound at;
    size_t passed; /* of the starts of epochs */
    uint64_t count, count_max, *positions;
    int64_t *times;
    uint64_t last; /* where the last record begins, taken or not */
    uint32_t crc;  /* and its checksum */
};

static bool selects(const struct selection *selection, const struct record *header)
{
    bool kind = !selection->kinds || (selection->kinds[header->kind >> 3] >> (header->kind & 7) & 1);
    return kind && header->time_ns >= selection->since && header->time_ns <= selection->until;
}

/* As find_records(), for a selection; it also ends before another epoch than that of its first record. */
static bool select_records(const struct geometry *g, const struct window *window, const struct run_rules *rules,
                           struct selection *selection, struct selected *found, struct bound start, uint64_t bytes_max)
{
    while (found->at.seq < rules->stop_seq && found->count < found->count_max) {
        struct bound at = found->at;
        union header copied;
        const struct record *header = &copied.record;
        uint64_t size;
        enum advance next = next_record_in(g, window, rules, at.position, at.seq, &found->passed, bytes_max, &copied, &size);
        if (next != ADVANCES)
            return next == TOO_LONG;
        if (header->epoch != selection->epoch) {
            if (at.seq != start.seq)
                return false;
            selection->epoch = header->epoch;
            selection->latest = INT64_MIN;
        }
        int64_t time = header->time_ns < selection->now ? header->time_ns : selection->now;
        selection->latest = time > selection->latest ? time : selection->latest;
        if (selects(selection, header)) {
            found->positions[found->count] = at.position;
            found->times[found->count++] = selection->latest;
        }
        bytes_max -= size;
        found->last = at.position;
        found->crc = header->crc;
        found->at = (struct bound){at.position + size, at.seq + 1};
    }
    return false;
}

/* (records as records() has them, their effective times, position, end, number and checksum of the last record that was passed, its
 * epoch and effective time); None if there is none. */
static PyObject *answer_selected(const Scanner *scanner, PyTypeObject *record_type, const struct window *window,
                                 const struct selection *selection, const struct selected *found, struct bound start)
{
    if (found->at.seq == start.seq)
        Py_RETURN_NONE;
    PyObject *records = PyList_New((Py_ssize_t)found->count), *times = PyList_New((Py_ssize_t)found->count);
    for (uint64_t i = 0; records && times && i < found->count; i++) {
        PyObject *item = make_record(&scanner->geometry, record_type, window, found->positions[i]);
        PyObject *time = PyLong_FromLongLong(found->times[i]);
        if (item)
            PyList_SET_ITEM(records, (Py_ssize_t)i, item);
        if (time)
            PyList_SET_ITEM(times, (Py_ssize_t)i, time);
        if (!item || !time)
            Py_CLEAR(records);
    }
    if (records && times)
        return Py_BuildValue("(NNKKKIIL)", records, times, (unsigned long long)found->last, (unsigned long long)found->at.position,
                             (unsigned long long)(found->at.seq - 1), found->crc, selection->epoch, (long long)selection->latest);
    Py_XDECREF(records);
    Py_XDECREF(times);
    return NULL;
}

static PyObject *scanner_selected(Scanner *scanner, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"record_type", "window", "at", "rules", "count_max", "kinds", "since", "until",
                            "now",         "epoch",  "latest", NULL};
    struct scan_window window = {0};
    struct bound at;
    struct run_rules rules;
    PyObject *record_type, *answer = NULL;
    unsigned long long count_max;
    const char *kinds;
    Py_ssize_t kinds_size;
    long long since, until, now, latest;
    unsigned int epoch;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO&O&O&Kz#LLLIL:selected", names, &record_type, parse_window, &window,
                                     parse_bound, &at, parse_rules, &rules, &count_max, &kinds, &kinds_size, &since, &until, &now,
                                     &epoch, &latest))
        return NULL;
    rules.lap_seq = window.lap_seq;
    count_max = count_max < window.bytes.length / PMWAL_HEADER ? count_max : window.bytes.length / PMWAL_HEADER;
    struct selection selection = {(const unsigned char *)kinds, since, until, now, latest, epoch};
    struct selected found = {.at = at, .count_max = count_max, .positions = PyMem_New(uint64_t, count_max + 1)};
    found.times = PyMem_New(int64_t, count_max + 1);
    if (!found.positions || !found.times)
        PyErr_NoMemory();
    else if (kinds && kinds_size != (PMWAL_KIND_MAX + 1) / 8)
        PyErr_SetString(PyExc_ValueError, "kinds has a bit for each kind");
    else if (check_record_type(Py_TYPE(scanner), record_type)) {
        if (select_records(&scanner->geometry, &window.bytes, &rules, &selection, &found, at, HELD_MAX)) {
            PyThreadState *thread = PyEval_SaveThread(); /* the caller keeps the window */
            select_records(&scanner->geometry, &window.bytes, &rules, &selection, &found, at, UINT64_MAX);
            PyEval_RestoreThread(thread);
        }
        answer = answer_selected(scanner, (PyTypeObject *)record_type, &window.bytes, &selection, &found, at);
    }
    PyMem_Free(found.positions);
    PyMem_Free(found.times);
    PyBuffer_Release(&window.buffer);
    return answer;
}

/* Which commit slots of a control region are whole, one byte for each; and the indexes of those that Python has to look at. */
static PyObject *scanner_slots_method(Scanner *scanner, PyObject *control)
{
    Py_buffer buffer;
    if (PyObject_GetBuffer(control, &buffer, PyBUF_SIMPLE))
        return NULL;
    uint64_t turn = (uint64_t)buffer.len / PMWAL_PAGE * PMWAL_SLOTS_PER_PAGE, count = 0;
    PyObject *whole = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)turn), *indexes = NULL;
    unsigned char *telling = PyMem_Malloc(turn + 1);
    if (!telling)
        PyErr_NoMemory();
    if (whole && telling) {
        read_slots(&scanner->geometry, buffer.buf, turn, (unsigned char *)PyBytes_AS_STRING(whole), telling);
        for (uint64_t i = 0; i < turn; i++)
            count += telling[i] != 0;
        indexes = PyTuple_New((Py_ssize_t)count);
        count = 0;
    }
    for (uint64_t i = 0; indexes && i < turn; i++) {
        PyObject *index = telling[i] ? PyLong_FromUnsignedLongLong(i) : NULL;
        if (index)
            PyTuple_SET_ITEM(indexes, (Py_ssize_t)count++, index);
        else if (telling[i])
            Py_CLEAR(indexes);
    }
    PyMem_Free(telling);
    PyBuffer_Release(&buffer);
    if (indexes)
        return Py_BuildValue("(NN)", whole, indexes);
    Py_XDECREF(whole);
    return NULL;
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
    if (!PyType_IsSubtype((PyTypeObject *)bound_type, &PyTuple_Type) || !geometry_possible(capacity, alignment, payload_max)) {
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
    {"selected", (PyCFunction)(void (*)(void))scanner_selected, METH_VARARGS | METH_KEYWORDS, NULL},
    {"follower", (PyCFunction)(void (*)(void))scanner_follower, METH_VARARGS | METH_KEYWORDS, NULL},
    {"rows", (PyCFunction)(void (*)(void))scanner_rows, METH_VARARGS | METH_KEYWORDS, NULL},
    {"frame", (PyCFunction)(void (*)(void))scanner_frame, METH_VARARGS | METH_KEYWORDS, NULL},
    {"relocate", (PyCFunction)(void (*)(void))scanner_relocate, METH_VARARGS | METH_KEYWORDS, NULL},
    {"slots", (PyCFunction)scanner_slots_method, METH_O, NULL},
    {0},
};

static PyType_Slot scanner_slots[] = {
    {Py_tp_doc, "Finds records in bytes of a ring of this geometry."},
    {Py_tp_new, scanner_create},
    {Py_tp_traverse, scanner_traverse},
    {Py_tp_dealloc, scanner_dealloc},
    {Py_tp_methods, scanner_methods},
    {0},
};

PyType_Spec scanner_spec = {"pmwal.native._native.Scanner", sizeof(Scanner), 0,
                            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, scanner_slots};
