/* Follower: what Reader.follow returns with the native engine.
 *
 * Invariants
 * - It wraps a generator, which has the policy. A record that the generator yields is passed on. A tuple asks for a watch; while that
 *   shows records, they are delivered without the generator, which then gets what became of it.
 * - All requests of a generator are for watches of one file.
 * - A watch takes only the ordinary case (see watch.c): whole records exactly where the one before ended, checked in a private copy.
 * - The mark says what was delivered last, before the caller has it, and nothing is delivered once the mark is closed.
 */
#include "follower.h"

#include <errno.h>

#include "watch.h"

/* What identifies a record that was delivered. */
struct delivered {
    struct bound at;
    uint64_t end;
    uint32_t crc;
};

/* What a reader shares with its followers. */
typedef struct {
    PyObject_HEAD
    PyObject *view; /* of the last record that a follower delivered; NULL when that was taken */
    struct delivered last;
    char closed;
} Mark;

typedef struct {
    PyObject_HEAD
    PyTypeObject *record_type;
    PyObject *source; /* the generator */
    Mark *mark;
    PyObject *view; /* that the watch is of; NULL without one */
    Py_buffer page;
    struct watch watch;
    struct run_rules rules;
    uint64_t count; /* of records delivered since the watch began */
    struct delivered last;
    bool running;
} Follower;

static PyObject *numbers_of(const struct delivered *last)
{
    return Py_BuildValue("(KKKI)", (unsigned long long)last->at.position, (unsigned long long)last->end,
                         (unsigned long long)last->at.seq, last->crc);
}

/* (view, (position, end, number, checksum)) of the last record that a follower delivered, once; None if there was none since. */
static PyObject *take_mark(Mark *mark, PyObject *Py_UNUSED(ignored))
{
    if (!mark->view)
        Py_RETURN_NONE;
    PyObject *view = mark->view;
    mark->view = NULL;
    return Py_BuildValue("(NN)", view, numbers_of(&mark->last));
}

/* -- a watch */

static void end_watch(Follower *f)
{
    if (f->view) {
        Py_CLEAR(f->view);
        PyBuffer_Release(&f->page);
    }
}

/* Begins the watch that the generator asks for. */
static bool begin_watch(Follower *f, PyObject *request, PyObject **announce, double *pause, double *seconds)
{
    struct watch *watch = &f->watch;
    unsigned long long ring_offset, epoch;
    Py_buffer writer;
    PyObject *view;
    if (!PyArg_ParseTuple(request, "y*iKy*O&KOOdd;a request for a watch", &f->page, &watch->fd, &ring_offset, &writer, parse_bound,
                          &watch->at, &epoch, &view, announce, pause, seconds))
        return false;
    f->view = Py_NewRef(view);
    f->count = 0;
    watch->file = f->page.buf;
    watch->ring_offset = ring_offset;
    watch->epoch = epoch;
    bool fits = writer.len == sizeof watch->known && f->page.len >= (Py_ssize_t)(PMWAL_LIVE_OFFSET + PMWAL_PAGE);
    if (fits)
        memcpy(&watch->known, writer.buf, sizeof watch->known);
    PyBuffer_Release(&writer);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "a watch needs the live page, and a writer's line with the id of its open");
        end_watch(f);
    }
    return fits;
}

/* Sleeps until there is something to do; false with an exception set. */
static bool wait_for_news(Follower *f, PyObject *announce, double pause, double seconds, enum sight *sight)
{
    int error = 0;
    *sight = watch_look(&f->watch);
    if (*sight != NOTHING || seconds <= 0)
        return true;
    PyObject *answer = PyObject_CallNoArgs(announce);
    if (!answer)
        return false;
    Py_DECREF(answer);
    Py_BEGIN_ALLOW_THREADS
    *sight = watch_look(&f->watch);
    if (*sight == NOTHING)
        *sight = watch_wait(&f->watch, pause, seconds, &error);
    Py_END_ALLOW_THREADS
    return error != EINTR || !PyErr_CheckSignals();
}

static void set_rules(Follower *f)
{
    const struct live_bounds *bounds = &f->watch.bounds;
    f->rules = (struct run_rules){
        .stop_seq = bounds->durable_seq + 1,
        .limit = bounds->durable_position,
        .epochs = {.newest = (uint32_t)bounds->epoch, .newest_first_seq = bounds->epoch_first_seq},
        .lap_seq = f->watch.lap_seq,
    };
}

/* The next record of the window; NULL if there is none, or with an exception set. */
static PyObject *take_record(Follower *f)
{
    struct watch *watch = &f->watch;
    const struct geometry *g = &watch->geometry;
    uint64_t position;
    struct found_records found = {.at = watch->at, .count_max = 1, .positions = &position};
    struct record header;
    if (find_records(g, &watch->window, &f->rules, &found, HELD_MAX)) {
        Py_BEGIN_ALLOW_THREADS
        find_records(g, &watch->window, &f->rules, &found, UINT64_MAX);
        Py_END_ALLOW_THREADS
    }
    if (!found.count || f->mark->closed)
        return NULL;
    PyObject *record = record_in(g, f->record_type, &watch->window, position, &header);
    if (!record)
        return NULL;
    f->last = f->mark->last = (struct delivered){{position, header.seq}, found.at.position, header.crc};
    Py_XSETREF(f->mark->view, Py_NewRef(f->view));
    watch->at = found.at;
    f->count++;
    return record;
}

/* What the generator gets once the window has no further record; NULL with an exception set. */
static PyObject *say_outcome(Follower *f)
{
    const struct watch *watch = &f->watch;
    if (!f->count)
        Py_RETURN_FALSE;
    return Py_BuildValue("(y#KN)", (const char *)&watch->writer, (Py_ssize_t)sizeof watch->writer,
                         (unsigned long long)watch->bounds.tail_seq, numbers_of(&f->last));
}

/* Answers a request: a record in `*record`; or else returns what the generator gets, NULL with an exception set. */
static PyObject *watch_for(Follower *f, PyObject *request, PyObject **record)
{
    PyObject *announce, *outcome = NULL;
    double pause, seconds;
    enum sight sight;
    if (!begin_watch(f, request, &announce, &pause, &seconds))
        return NULL;
    if (wait_for_news(f, announce, pause, seconds, &sight)) {
        if (sight == NEWS) {
            set_rules(f);
            *record = take_record(f);
            if (*record)
                return NULL;
        }
        if (!PyErr_Occurred())
            outcome = PyBool_FromLong(sight == NOTHING);
    }
    end_watch(f);
    return outcome;
}

/* -- the iterator */

/* Raises the exception that is set in the generator, so that it ends there. */
static PyObject *throw_in(Follower *f)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace)
        PyException_SetTraceback(value, trace);
    PyObject *answer = PyObject_CallMethod(f->source, "throw", "O", value);
    Py_XDECREF(answer);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return NULL;
}

static PyObject *advance(Follower *f)
{
    PyObject *record = NULL, *outcome, *item;
    if (!f->source) /* the collector has cleared it */
        return NULL;
    outcome = Py_NewRef(Py_None);
    if (f->view) {
        record = take_record(f);
        Py_SETREF(outcome, record || PyErr_Occurred() ? NULL : say_outcome(f));
        if (!record)
            end_watch(f);
    }
    while (outcome) {
        PySendResult result = PyIter_Send(f->source, outcome, &item);
        Py_CLEAR(outcome);
        if (result != PYGEN_NEXT) {
            Py_XDECREF(item);
            watch_unmap(&f->watch);
            return NULL;
        }
        if (!PyTuple_CheckExact(item))
            return item;
        outcome = watch_for(f, item, &record);
        Py_DECREF(item);
    }
    return record ? record : throw_in(f);
}

/* As a generator: two threads cannot advance it at once. */
static bool enter(Follower *f)
{
    if (f->running)
        PyErr_SetString(PyExc_ValueError, "this follow() is already running in another thread");
    return !f->running && (f->running = true);
}

static PyObject *follower_next(Follower *f)
{
    if (!enter(f))
        return NULL;
    PyObject *record = advance(f);
    f->running = false;
    return record;
}

static PyObject *follower_close(Follower *f, PyObject *Py_UNUSED(ignored))
{
    if (!enter(f))
        return NULL;
    end_watch(f);
    watch_unmap(&f->watch);
    PyObject *answer = f->source ? PyObject_CallMethod(f->source, "close", NULL) : Py_NewRef(Py_None);
    f->running = false;
    return answer;
}

PyObject *follower_new(const struct module_state *state, const struct geometry *g, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"record_type", "mark", "source", NULL};
    PyObject *record_type, *mark, *source;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO!O:follower", names, &record_type, state->mark_type, &mark, &source) ||
        !check_record_type(state->follower_type, record_type))
        return NULL;
    Follower *f = (Follower *)state->follower_type->tp_alloc(state->follower_type, 0);
    if (f) {
        f->record_type = (PyTypeObject *)Py_NewRef(record_type);
        f->mark = (Mark *)Py_NewRef(mark);
        f->source = Py_NewRef(source);
        f->watch.geometry = *g;
    }
    return (PyObject *)f;
}

static int follower_traverse(Follower *f, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(f));
    Py_VISIT(f->record_type);
    Py_VISIT(f->source);
    Py_VISIT(f->mark);
    Py_VISIT(f->view);
    return 0;
}

static int follower_clear(Follower *f)
{
    end_watch(f); /* the collector may have ended the generator already, which then left the page mapped */
    watch_unmap(&f->watch);
    Py_CLEAR(f->source);
    return 0;
}

static void follower_dealloc(Follower *f)
{
    PyTypeObject *type = Py_TYPE(f);
    PyObject_GC_UnTrack(f);
    follower_clear(f);
    Py_XDECREF(f->record_type);
    Py_XDECREF(f->mark);
    free(f->watch.far);
    type->tp_free(f);
    Py_DECREF(type);
}

static void mark_dealloc(Mark *mark)
{
    PyTypeObject *type = Py_TYPE(mark);
    Py_XDECREF(mark->view);
    type->tp_free(mark);
    Py_DECREF(type);
}

static PyMethodDef mark_methods[] = {{"take", (PyCFunction)take_mark, METH_NOARGS, NULL}, {0}};
static PyMemberDef mark_members[] = {{"closed", T_BOOL, offsetof(Mark, closed), 0, NULL}, {0}};
static PyMethodDef follower_methods[] = {{"close", (PyCFunction)follower_close, METH_NOARGS, NULL}, {0}};

static PyType_Slot mark_slots[] = {
    {Py_tp_doc, "What a reader shares with its followers: the last record that they delivered, and whether it is closed."},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, mark_dealloc},
    {Py_tp_methods, mark_methods},
    {Py_tp_members, mark_members},
    {0},
};

static PyType_Slot follower_slots[] = {
    {Py_tp_doc, "The records of a log that another process writes, as they become durable."},
    {Py_tp_traverse, follower_traverse},
    {Py_tp_clear, follower_clear},
    {Py_tp_dealloc, follower_dealloc},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, follower_next},
    {Py_tp_methods, follower_methods},
    {0},
};

PyType_Spec mark_spec = {"pmwal.native._native.Mark", sizeof(Mark), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, mark_slots};
PyType_Spec follower_spec = {"pmwal.native._native.Follower", sizeof(Follower), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
                                 Py_TPFLAGS_DISALLOW_INSTANTIATION,
                             follower_slots};
