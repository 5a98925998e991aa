/* The part of an engine that is in C: stores, barriers, slots, the live page, and commits that threads share.
 *
 * Invariants
 * - The interpreter's lock guards every field. It is let go only around msync(2) and while a thread waits for another one's, and
 *   nothing in between relies on what it read before, except what `guard` protects.
 * - Whoever makes something durable holds `guard`. While `flushing` is set, the holder has only a barrier under way whose end it
 *   fixed before, so others may store behind the head; they may change nothing else.
 * - At most one msync(2) is under way, so no other can take away its error.
 * - `durable`, `pointer` and `generation` move only after the barrier that makes it true.
 * - Nothing of Python is called inside a fault guard.
 * - A record's header is stored after its payload, and the checksum is taken over the payload as it was stored.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "module.h"

#include "crc32c.h"
#include "fault.h"
#include "persist.h"

#define LARGE_STORE (32 * 1024)      /* from here on a batch goes into the page cache by pwrite(2): no fault for each page */
#define PREFETCH (UINT64_C(1) << 20) /* bytes ahead of the writer whose pages are asked for */
#define CHUNK 4096                   /* bytes that are streamed at a time */
#define SLOW_RETURN_NS 1000000       /* longer than that to get the interpreter back: somebody else computes */
#define HOLD 512                     /* commits that keep the interpreter after that */
#define ALONE 64                     /* commits of one thread after which no other is expected */

/* -- small things */

static int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The wall clock; -1 with an exception set when a test's clock raised. */
static int now_ns(Core *core, int64_t *time_ns)
{
    if (!core->seam) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        *time_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
        return 0;
    }
    PyObject *answer = PyObject_CallMethod(core->seam, "now_ns", NULL);
    if (!answer)
        return -1;
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(answer, &overflow);
    Py_DECREF(answer);
    if (value == -1 && !overflow && PyErr_Occurred())
        return -1;
    *time_ns = overflow > 0 ? INT64_MAX : overflow < 0 ? INT64_MIN : value;
    return 0;
}

static int raise_errno(int number)
{
    errno = number;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

static int raise_fault(void)
{
    PyObject *error = PyObject_CallFunction(PyExc_OSError, "is", EIO, "the file was shortened while it was mapped, or the medium failed");
    if (error) {
        PyErr_SetObject(PyExc_OSError, error);
        Py_DECREF(error);
    }
    return -1;
}

static int check_mapped(Core *core)
{
    if (core->base)
        return 0;
    PyErr_SetString(PyExc_ValueError, "the mapping is closed");
    return -1;
}

/* A file that was shortened faults where nobody catches it, and msync(2) does not say. By lseek(2): see medium.py. */
static int check_size(Core *core)
{
    off_t size = lseek(core->fd, 0, SEEK_END);
    return size < 0 ? errno : (uint64_t)size < core->size ? EIO : 0;
}

static int call_seam(Core *core, const char *method, const char *format, ...)
{
    va_list arguments;
    if (check_size(core))
        return raise_fault();
    va_start(arguments, format);
    PyObject *callable = PyObject_GetAttrString(core->seam, method), *values = NULL, *answer = NULL;
    if (callable)
        values = Py_VaBuildValue(format, arguments);
    va_end(arguments);
    if (values)
        answer = PyObject_CallObject(callable, values);
    Py_XDECREF(callable);
    Py_XDECREF(values);
    if (!answer)
        return -1;
    Py_DECREF(answer);
    return 0;
}

/* -- storing */

/* Notes who uses the log, for lets_go(). */
static void note_thread(Core *core)
{
    unsigned long thread = PyThread_get_thread_ident();
    if (thread == core->last_thread)
        return;
    core->alone = core->last_thread ? 0 : ALONE;
    core->last_thread = thread;
}

/* Stores plain bytes; with a seam, through it. 0, or -1 with an exception set. */
static int put(Core *core, uint64_t offset, const void *data, size_t length)
{
    if (core->seam)
        return call_seam(core, "store", "(OKy#)", core->mapping, (unsigned long long)offset, data, (Py_ssize_t)length);
    return fault_copy(core->base, core->size, core->base + offset, data, length) ? 0 : raise_fault();
}

/* Fills the 48 bytes of a header but for its checksum. */
static void fill_header(const Core *core, struct record *header, const struct piece *piece, uint64_t seq, int64_t time_ns,
                        size_t place, size_t count)
{
    header->length = (uint32_t)piece->length;
    header->seq = seq;
    header->durable = core->state.durable.position;
    header->time_ns = time_ns;
    header->epoch = (uint32_t)core->state.epoch;
    header->kind = piece->kind;
    header->flags = 0;
    header->batch_index = (uint32_t)place;
    header->batch_count = (uint32_t)count;
}

static uint32_t header_crc(const Core *core, const struct record *header, uint64_t position)
{
    return crc32c(seed_crc(core->geometry.uuid_crc, position), (const unsigned char *)header + sizeof header->crc,
                  sizeof *header - sizeof header->crc);
}

/* Stores a record at `to`: payload and padding first, the checksum over them as they were stored, the header last. */
static void build(const Core *core, unsigned char *to, struct record *header, const struct piece *piece, uint64_t position,
                  uint64_t size)
{
    unsigned char *payload = to + PMWAL_HEADER;
    memcpy(payload, piece->bytes, piece->length);
    memset(payload + piece->length, 0, size - PMWAL_HEADER - piece->length);
    header->crc = crc32c(header_crc(core, header, position), payload, piece->length);
    memcpy(to, header, sizeof *header);
}

/* The same past the cache. The first chunk, which holds the header, is streamed last. */
static void build_streaming(const Core *core, unsigned char *to, struct record *header, const struct piece *piece,
                            uint64_t position, uint64_t size)
{
    unsigned char first[CHUNK] __attribute__((aligned(64))), chunk[CHUNK] __attribute__((aligned(64)));
    uint64_t head = size < CHUNK ? size : CHUNK, inside = piece->length < head - PMWAL_HEADER ? piece->length : head - PMWAL_HEADER;
    memcpy(first + PMWAL_HEADER, piece->bytes, inside);
    memset(first + PMWAL_HEADER + inside, 0, head - PMWAL_HEADER - inside);
    uint32_t crc = crc32c(header_crc(core, header, position), first + PMWAL_HEADER, inside);
    for (uint64_t at = head; at < size; at += CHUNK) {
        uint64_t length = size - at < CHUNK ? size - at : CHUNK, done = at - PMWAL_HEADER;
        uint64_t from_payload = piece->length - done < length ? piece->length - done : length;
        memcpy(chunk, piece->bytes + done, from_payload);
        memset(chunk + from_payload, 0, length - from_payload);
        crc = crc32c(crc, chunk, from_payload);
        stream(to + at, chunk, length);
    }
    header->crc = crc;
    memcpy(first, header, sizeof *header);
    stream(to, first, head);
}

uint64_t core_end_after(const Core *core, const struct piece *pieces, size_t count)
{
    uint64_t position = core->state.head.position;
    for (size_t i = 0; i < count; i++) {
        uint64_t size = record_size(&core->geometry, pieces[i].length);
        position = place_record(&core->geometry, position, size) + size;
    }
    return position;
}

/* Through the seam, one step for each record. */
static int store_recorded(Core *core, const struct piece *pieces, size_t count, int64_t time_ns)
{
    uint64_t position = core->state.head.position, seq = core->state.head.seq;
    for (size_t i = 0; i < count; i++, seq++) {
        struct record header;
        uint64_t size = record_size(&core->geometry, pieces[i].length);
        position = place_record(&core->geometry, position, size);
        fill_header(core, &header, &pieces[i], seq, time_ns, i, count);
        PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
        if (!bytes)
            return -1;
        build(core, (unsigned char *)PyBytes_AS_STRING(bytes), &header, &pieces[i], position, size);
        int status = call_seam(core, core->streams ? "stream" : "store", "(OKO)", core->mapping,
                               (unsigned long long)(core->ring_offset + position % core->geometry.capacity), bytes);
        Py_DECREF(bytes);
        if (status)
            return -1;
        position += size;
    }
    return 0;
}

/* A batch on its way into the mapping. */
struct batch {
    const Core *core;
    const struct piece *pieces;
    size_t count;
    int64_t time_ns;
};

static void store_body(void *context)
{
    const struct batch *batch = context;
    const Core *core = batch->core;
    uint64_t position = core->state.head.position, seq = core->state.head.seq;
    for (size_t i = 0; i < batch->count; i++, seq++) {
        const struct piece *piece = &batch->pieces[i];
        struct record header;
        uint64_t size = record_size(&core->geometry, piece->length);
        position = place_record(&core->geometry, position, size);
        fill_header(core, &header, piece, seq, batch->time_ns, i, batch->count);
        unsigned char *to = core->base + core->ring_offset + position % core->geometry.capacity;
        if (core->streams)
            build_streaming(core, to, &header, piece, position, size);
        else
            build(core, to, &header, piece, position, size);
        position += size;
    }
}

/* Straight into the mapping. */
static int store_mapped(Core *core, const struct piece *pieces, size_t count, int64_t time_ns)
{
    struct batch batch = {core, pieces, count, time_ns};
    return fault_run(core->base, core->size, store_body, &batch) ? 0 : raise_fault();
}

struct range {
    uint64_t offset, length;
};

/* Bytes of the mapping. */
struct touched {
    const volatile unsigned char *start, *end;
};

static void touch_body(void *context)
{
    const struct touched *touched = context;
    for (const volatile unsigned char *at = touched->start; at < touched->end; at += PMWAL_PAGE)
        (void)*at;
}

/* Reads one byte of each page, so that pwrite(2) finds single pages in the cache and makes no large folios there. */
static int touch(Core *core, uint64_t offset, uint64_t length)
{
    struct touched touched = {core->base + (offset & ~(PMWAL_PAGE - 1)), core->base + offset + length};
    return fault_run(core->base, core->size, touch_body, &touched) ? 0 : raise_fault();
}

static int write_file(Core *core, uint64_t offset, const unsigned char *bytes, uint64_t length)
{
    if (touch(core, offset, length))
        return -1;
    while (length) {
        ssize_t written = pwrite(core->fd, bytes, length, (off_t)offset);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return raise_errno(errno);
        bytes += written;
        offset += (uint64_t)written;
        length -= (uint64_t)written;
    }
    return 0;
}

/* Into the page cache by pwrite(2): each run of bytes that the ring holds in one piece at once. */
static int store_written(Core *core, const struct piece *pieces, size_t count, int64_t time_ns, uint64_t total)
{
    uint64_t position = core->state.head.position, seq = core->state.head.seq, start = 0, filled = 0;
    unsigned char *staged = PyMem_Malloc(total);
    if (!staged) {
        PyErr_NoMemory();
        return -1;
    }
    int status = 0;
    for (size_t i = 0; i < count && !status; i++, seq++) {
        struct record header;
        uint64_t size = record_size(&core->geometry, pieces[i].length), place = place_record(&core->geometry, position, size);
        if (filled && (place != position || place % core->geometry.capacity == 0)) {
            status = write_file(core, core->ring_offset + start % core->geometry.capacity, staged, filled);
            filled = 0;
        }
        if (!filled)
            start = place;
        fill_header(core, &header, &pieces[i], seq, time_ns, i, count);
        build(core, staged + filled, &header, &pieces[i], place, size);
        filled += size;
        position = place + size;
    }
    if (!status)
        status = write_file(core, core->ring_offset + start % core->geometry.capacity, staged, filled);
    PyMem_Free(staged);
    return status;
}

/* Keeps the pages ahead of the writer resident: a cold page costs a read before its first store. */
static void prefetch(Core *core)
{
    uint64_t position = core->state.head.position, capacity = core->geometry.capacity;
    if (!core->on_disk || position + PREFETCH / 2 < core->prefetched)
        return;
    uint64_t offset = position % capacity, length = PREFETCH < capacity - offset ? PREFETCH : capacity - offset;
    uint64_t first = (core->ring_offset + offset) & ~(PMWAL_PAGE - 1);
    posix_fadvise(core->fd, (off_t)first, (off_t)(core->ring_offset + offset + length - first), POSIX_FADV_WILLNEED);
    if (length < PREFETCH)
        posix_fadvise(core->fd, (off_t)core->ring_offset, (off_t)(PREFETCH - length), POSIX_FADV_WILLNEED);
    core->prefetched = position + PREFETCH;
}

/* Notes a record in the sparse index, when the newest note is far enough behind. Losing a note only makes a look-up longer. */
static void note_start_of(Core *core, uint64_t position, uint64_t seq)
{
    Py_ssize_t length = PyList_GET_SIZE(core->index);
    if (length) {
        uint64_t last = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(PyList_GET_ITEM(core->index, length - 1), 0));
        if (position - last < PMWAL_INDEX_STEP) {
            core->index_next = last + PMWAL_INDEX_STEP;
            return;
        }
    }
    PyObject *entry = core->bound_type->tp_alloc(core->bound_type, 2);
    if (entry) {
        PyTuple_SET_ITEM(entry, 0, PyLong_FromUnsignedLongLong(position));
        PyTuple_SET_ITEM(entry, 1, PyLong_FromUnsignedLongLong(seq));
        if (PyTuple_GET_ITEM(entry, 0) && PyTuple_GET_ITEM(entry, 1))
            PyList_Append(core->index, entry);
        Py_DECREF(entry);
    }
    PyErr_Clear();
    core->index_next = position + PMWAL_INDEX_STEP;
}

/* Shows how far the log is stored, durable or not. */
static int publish(Core *core)
{
    uint64_t published[2] = {core->state.head.position, core->state.head.seq - 1};
    core->writer.published_position = published[0];
    core->writer.published_seq = published[1];
    return put(core, PMWAL_LIVE_WRITER_OFFSET + offsetof(struct live_writer, published_position), published, sizeof published);
}

int core_store(Core *core, const struct piece *pieces, size_t count)
{
    const struct geometry *g = &core->geometry;
    uint64_t position = core->state.head.position, seq = core->state.head.seq, total = 0;
    int64_t time_ns;
    if (check_mapped(core) || now_ns(core, &time_ns))
        return -1;
    note_thread(core);
    prefetch(core);
    for (size_t i = 0; i < count; i++)
        total += record_size(g, pieces[i].length);
    core->stray_records = true;
    int status;
    if (core->seam)
        status = store_recorded(core, pieces, count, time_ns);
    else if (core->barrier == BARRIER_MSYNC && total >= LARGE_STORE)
        status = store_written(core, pieces, count, time_ns, total);
    else
        status = store_mapped(core, pieces, count, time_ns);
    if (status)
        return -1;
    for (size_t i = 0; i < count; i++, seq++) {
        uint64_t size = record_size(g, pieces[i].length);
        position = place_record(g, position, size);
        if (position >= core->index_next)
            note_start_of(core, position, seq);
        position += size;
        core->bytes += pieces[i].length;
    }
    core->appends += count;
    core->writer.heartbeat_ns = time_ns;
    core->state.head = (struct bound){position, seq};
    core->stray_records = false;
    return publish(core);
}

/* -- durability */

/* Whether to let the interpreter go during an msync.
 *
 * Letting go costs up to a switch interval (5 ms) when another thread computes; holding on keeps other threads from storing what
 * the next msync could carry. So: hold on while one thread commits alone, and for a while after it took long to get back.
 */
static bool lets_go(Core *core)
{
    note_thread(core);
    if (core->alone < ALONE)
        core->alone++;
    if (core->hold) {
        core->hold--;
        return false;
    }
    return core->alone < ALONE;
}

static int sync_pages(Core *core, uint64_t offset, uint64_t length)
{
    uint64_t first = offset & ~(PMWAL_PAGE - 1), end = (offset + length + PMWAL_PAGE - 1) & ~(PMWAL_PAGE - 1);
    while (msync(core->base + first, end - first, MS_SYNC))
        if (errno != EINTR)
            return errno;
    return 0;
}

/* What a barrier takes on this medium. Without a seam it calls nothing of Python, so the interpreter may be let go around it;
 * it returns an errno then. With one, -1 says that an exception is set. */
static int barrier_over(Core *core, const struct range *ranges, size_t count)
{
    int status = 0;
    if (core->barrier == BARRIER_LINES) {
        for (size_t i = 0; i < count && !core->streams && !status; i++)
            if (core->seam)
                status = call_seam(core, "write_back", "(OKK)", core->mapping, (unsigned long long)ranges[i].offset,
                                   (unsigned long long)ranges[i].length);
            else
                write_back(core->base + ranges[i].offset, ranges[i].length);
        if (status)
            return -1;
        if (core->seam)
            return call_seam(core, "fence", "()");
        fence();
    } else if (core->barrier == BARRIER_MSYNC) {
        status = core->seam ? 0 : check_size(core);
        for (size_t i = 0; i < count && !status; i++) {
            uint64_t first = ranges[i].offset & ~(PMWAL_PAGE - 1);
            uint64_t end = (ranges[i].offset + ranges[i].length + PMWAL_PAGE - 1) & ~(PMWAL_PAGE - 1);
            while (core->seam && (status = call_seam(core, "flush", "(OKK)", core->mapping, (unsigned long long)first,
                                                     (unsigned long long)(end - first)))) {
                if (!PyErr_ExceptionMatches(PyExc_InterruptedError))
                    return -1;
                PyErr_Clear();
            }
            if (!core->seam)
                status = sync_pages(core, ranges[i].offset, ranges[i].length);
        }
    } else
        __atomic_thread_fence(__ATOMIC_RELEASE);
    return status;
}

static size_t ranges_between(const Core *core, uint64_t start, uint64_t end, struct range ranges[2])
{
    uint64_t capacity = core->geometry.capacity, first = start % capacity, length = end - start;
    if (start == end)
        return 0;
    if (first + length <= capacity) {
        ranges[0] = (struct range){core->ring_offset + first, length};
        return 1;
    }
    ranges[0] = (struct range){core->ring_offset + first, capacity - first};
    ranges[1] = (struct range){core->ring_offset, first + length - capacity};
    return 2;
}

/* The slot that says `state`, for the next generation; its place in the file is returned. */
static uint64_t build_slot(const Core *core, struct slot *slot, const struct log_state *state, uint32_t flags)
{
    uint64_t generation = core->generation + 1;
    uint64_t index = generation % core->control_pages * PMWAL_SLOTS_PER_PAGE +
                     generation / core->control_pages % PMWAL_SLOTS_PER_PAGE;
    *slot = (struct slot){
        .epoch = (uint32_t)state->epoch,
        .generation = generation,
        .epoch_first_seq = state->epoch_first_seq,
        .commit_position = state->durable.position,
        .commit_seq = state->durable.seq - 1,
        .tail_position = state->tail.position,
        .tail_seq = state->tail.seq,
        .flags = flags | (core->pipelined ? (uint32_t)PMWAL_SLOT_PIPELINED : 0),
    };
    slot->crc = crc32c(seed_crc(core->geometry.uuid_crc, index), (const unsigned char *)slot + sizeof slot->crc,
                       sizeof *slot - sizeof slot->crc);
    return PMWAL_CONTROL_OFFSET + index * sizeof *slot;
}

struct slot_store {
    unsigned char *to;
    const struct slot *slot;
    bool streams;
};

static void slot_body(void *context)
{
    const struct slot_store *store = context;
    if (store->streams)
        stream(store->to, store->slot, sizeof *store->slot);
    else
        memcpy(store->to, store->slot, sizeof *store->slot);
}

/* Stores a slot and waits for its barrier. Like barrier_over() it calls nothing of Python without a seam. */
static int persist_slot(Core *core, const struct slot *slot, uint64_t offset)
{
    struct range range = {offset, sizeof *slot};
    if (core->seam) {
        if (call_seam(core, core->streams ? "stream" : "store", "(OKy#)", core->mapping, (unsigned long long)offset,
                      (const char *)slot, (Py_ssize_t)sizeof *slot))
            return -1;
    } else {
        struct slot_store store = {core->base + offset, slot, core->streams};
        if (!fault_run(core->base, core->size, slot_body, &store))
            return EIO;
    }
    return barrier_over(core, &range, 1);
}

/* Shows the bounds on the live page: for readers in other processes. */
static int show(Core *core)
{
    const struct log_state *state = &core->state;
    struct {
        struct live_bounds bounds;
        struct live_writer writer;
    } page;
    static_assert(offsetof(__typeof__(page), writer) == PMWAL_LIVE_WRITER_OFFSET - PMWAL_LIVE_OFFSET, "live page");
    core->live_version++;
    core->writer.published_position = state->head.position;
    core->writer.published_seq = state->head.seq - 1;
    page.bounds = (struct live_bounds){
        .version_begin = core->live_version,
        .tail_position = state->tail.position,
        .tail_seq = state->tail.seq,
        .durable_position = state->durable.position,
        .durable_seq = state->durable.seq - 1,
        .epoch = state->epoch,
        .epoch_first_seq = state->epoch_first_seq,
        .version_end = core->live_version,
    };
    page.writer = core->writer;
    return put(core, PMWAL_LIVE_OFFSET, &page, sizeof page);
}

/* What a flush came to: 0; an errno, raised here and final; or -1 with an exception already set. */
static int settle_flush(Core *core, int status)
{
    if (status > 0) {
        core->failed = status;
        core->halted = true;
        if (check_size(core) == EIO)
            return raise_fault();
        return raise_errno(status);
    }
    return status;
}

/* One commit by whoever holds `guard`: all that is published now becomes durable, and others may store meanwhile. */
static int commit_published(Core *core)
{
    struct bound target = core->state.head;
    struct log_state durable = core->state;
    struct range ranges[2];
    struct slot slot;
    uint64_t slot_offset = 0;
    if (target.position == core->state.durable.position)
        return 0;
    if (core->generation >= PMWAL_GENERATION_MAX) {
        PyErr_SetString(PyExc_OverflowError, "the log has used up its slot generations");
        return -1;
    }
    bool names = !core->pipelined || target.position - core->pointer > PMWAL_POINTER_LAG_MAX;
    size_t count = ranges_between(core, core->state.durable.position, target.position, ranges);
    durable.durable = target;
    if (names)
        slot_offset = build_slot(core, &slot, &durable, 0);

    int status;
    if (core->barrier == BARRIER_MSYNC && !core->seam && lets_go(core)) {
        int64_t done;
        core->flushing = true;
        Py_BEGIN_ALLOW_THREADS
        status = barrier_over(core, ranges, count);
        if (!status && names)
            status = persist_slot(core, &slot, slot_offset);
        done = monotonic_ns();
        Py_END_ALLOW_THREADS
        core->flushing = false;
        if (monotonic_ns() - done > SLOW_RETURN_NS)
            core->hold = HOLD;
    } else {
        status = barrier_over(core, ranges, count);
        if (!status && names)
            status = persist_slot(core, &slot, slot_offset);
    }
    core->barriers += 1 + (names && !status);
    if (status)
        return settle_flush(core, status);
    if (names) {
        core->generation = slot.generation;
        core->pointer = slot.commit_position;
        core->slots_written++;
    }
    core->state.durable = target;
    core->commits++;
    return show(core);
}

/* Wakes all who wait for a flush. */
static void wake(Core *core)
{
    pthread_mutex_lock(&core->flush_mutex);
    core->flushes++;
    pthread_cond_broadcast(&core->flush_done);
    pthread_mutex_unlock(&core->flush_mutex);
}

int core_commit_through(Core *core, uint64_t seq)
{
    while (core->state.durable.seq <= seq) {
        if (core->failed)
            return raise_errno(core->failed);
        if (!core->base || core->halted || core->forks != fork_count || core->stray_records || core->stray_slot)
            return 1;
        if (core->barrier != BARRIER_MSYNC && !core->seam) {
            if (core->guard->count)
                return 1;
            return commit_published(core); /* nothing lets the interpreter go */
        }
        if (core->flushing) {
            uint64_t before = core->flushes;
            Py_BEGIN_ALLOW_THREADS
            pthread_mutex_lock(&core->flush_mutex);
            while (core->flushes == before)
                pthread_cond_wait(&core->flush_done, &core->flush_mutex);
            pthread_mutex_unlock(&core->flush_mutex);
            Py_END_ALLOW_THREADS
            if (core->state.durable.seq <= seq && PyErr_CheckSignals())
                return -1;
        } else {
            /* Who waits for the lock to change tail or epoch must not wait for ever behind commits. */
            if (core->guard->waiters || !lock_try(core->guard))
                return 1;
            int status = commit_published(core);
            lock_release(core->guard);
            wake(core);
            if (status)
                return -1;
        }
    }
    return 0;
}

/* -- what the Python side of the engine calls; it holds the locks */

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

static PyObject *core_become(Core *core, PyObject *value)
{
    struct log_state state;
    if (check_mapped(core) || parse_state(value, &state))
        return NULL;
    core->state = state;
    core->index_next = 0;
    if (show(core))
        return NULL;
    Py_RETURN_NONE;
}

/* `payloads`: a list or tuple of bytes; `kinds`: as many integers. The pieces are to be freed. NULL with an exception set. */
static struct piece *pieces_of(PyObject *payloads, PyObject *kinds)
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
        if (!PyBytes_CheckExact(payload) || kind < 0 || kind > (long)PMWAL_KIND_MAX) {
            PyErr_SetString(PyExc_TypeError, "payloads are bytes, kinds integers of 16 bits");
            PyMem_Free(pieces);
            return NULL;
        }
        pieces[i] = (struct piece){(const unsigned char *)PyBytes_AS_STRING(payload), (uint64_t)PyBytes_GET_SIZE(payload),
                                   (uint16_t)kind};
    }
    return pieces;
}

static PyObject *core_store_method(Core *core, PyObject *args)
{
    PyObject *payloads, *kinds;
    if (!PyArg_ParseTuple(args, "OO:store", &payloads, &kinds))
        return NULL;
    payloads = PySequence_Fast(payloads, "payloads are a list or a tuple");
    kinds = payloads ? PySequence_Fast(kinds, "kinds are a list or a tuple") : NULL;
    PyObject *answer = NULL;
    if (kinds && PySequence_Fast_GET_SIZE(payloads) == PySequence_Fast_GET_SIZE(kinds)) {
        struct piece *pieces = pieces_of(payloads, kinds);
        if (pieces && !core_store(core, pieces, (size_t)PySequence_Fast_GET_SIZE(payloads)))
            answer = Py_NewRef(Py_None);
        PyMem_Free(pieces);
    } else if (kinds)
        PyErr_SetString(PyExc_ValueError, "as many kinds as payloads");
    Py_XDECREF(kinds);
    Py_XDECREF(payloads);
    return answer;
}

static PyObject *core_flush(Core *core, PyObject *Py_UNUSED(ignored))
{
    struct range ranges[2];
    if (check_mapped(core))
        return NULL;
    size_t count = ranges_between(core, core->state.durable.position, core->state.head.position, ranges);
    if (count) {
        core->barriers++;
        if (settle_flush(core, barrier_over(core, ranges, count)))
            return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *core_commit(Core *core, PyObject *Py_UNUSED(ignored))
{
    if (check_mapped(core))
        return NULL;
    int status = commit_published(core);
    wake(core);
    if (status)
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

static PyObject *core_write_slot(Core *core, PyObject *args)
{
    PyObject *value;
    unsigned int flags;
    struct log_state state;
    struct slot slot;
    if (!PyArg_ParseTuple(args, "OI:write_slot", &value, &flags) || parse_state(value, &state) || check_mapped(core))
        return NULL;
    uint64_t offset = build_slot(core, &slot, &state, flags);
    core->barriers++;
    if (settle_flush(core, persist_slot(core, &slot, offset)))
        return NULL;
    core->generation = slot.generation;
    core->pointer = slot.commit_position;
    core->slots_written++;
    Py_RETURN_NONE;
}

static PyObject *core_halt(Core *core, PyObject *Py_UNUSED(ignored))
{
    core->halted = true;
    Py_RETURN_NONE;
}

static PyObject *core_detach(Core *core, PyObject *Py_UNUSED(ignored))
{
    core->base = NULL;
    if (core->map.obj)
        PyBuffer_Release(&core->map);
    Py_RETURN_NONE;
}

static PyObject *core_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"mapping", "fd", "capacity", "alignment", "payload_max", "ring_offset", "control_pages", "uuid_crc",
                            "barrier", "pipelined", "on_disk", "seam", "writing", "guard", "index", "bound_type", "writer",
                            "state", "generation", "pointer", NULL};
    struct module_state *module = state_of(type);
    PyObject *mapping, *seam, *writing, *guard, *index, *bound_type, *state;
    unsigned long long capacity, alignment, payload_max, ring_offset, control_pages, generation, pointer;
    unsigned int uuid_crc;
    int fd, barrier, pipelined, on_disk;
    const char *writer;
    Py_ssize_t writer_length;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OiKKKKKIippOO!O!O!O!y#OKK:Core", names, &mapping, &fd, &capacity,
                                     &alignment, &payload_max, &ring_offset, &control_pages, &uuid_crc, &barrier, &pipelined,
                                     &on_disk, &seam, module->lock_type, &writing, module->lock_type, &guard, &PyList_Type,
                                     &index, &PyType_Type, &bound_type, &writer, &writer_length, &state, &generation, &pointer))
        return NULL;
    if (writer_length != (Py_ssize_t)sizeof(struct live_writer) || !PyType_IsSubtype((PyTypeObject *)bound_type, &PyTuple_Type)) {
        PyErr_SetString(PyExc_ValueError, "writer is a line of the live page, bound_type a named tuple");
        return NULL;
    }
    if (!capacity || !control_pages || alignment < 8 || alignment > PMWAL_ALIGN_MAX || alignment & (alignment - 1)) {
        PyErr_SetString(PyExc_ValueError, "no log has this geometry");
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
    pthread_mutex_init(&core->flush_mutex, NULL);
    pthread_cond_init(&core->flush_done, NULL);
    if (parse_state(state, &core->state) || PyObject_GetBuffer(mapping, &core->map, PyBUF_WRITABLE)) {
        Py_DECREF(core);
        return NULL;
    }
    core->size = (size_t)core->map.len;
    if (ring_offset > core->size || capacity > core->size - ring_offset ||
        PMWAL_CONTROL_OFFSET + control_pages * PMWAL_PAGE > ring_offset) {
        PyErr_SetString(PyExc_ValueError, "the mapping does not hold the log");
        Py_DECREF(core);
        return NULL;
    }
    core->base = core->map.buf;
    core->fd = fd;
    core->geometry = (struct geometry){capacity, alignment, payload_max, 0, uuid_crc};
    core->geometry.size_max = record_size(&core->geometry, payload_max);
    core->ring_offset = ring_offset;
    core->control_pages = control_pages;
    core->barrier = (enum barrier)barrier;
    core->pipelined = pipelined;
    core->on_disk = on_disk;
    core->streams = barrier == BARRIER_LINES && persist_streams() && alignment >= PMWAL_LINE;
    core->mapping = Py_NewRef(mapping);
    core->seam = seam == Py_None ? NULL : Py_NewRef(seam);
    core->writing = (Lock *)Py_NewRef(writing);
    core->guard = (Lock *)Py_NewRef(guard);
    core->index = Py_NewRef(index);
    core->bound_type = (PyTypeObject *)Py_NewRef(bound_type);
    core->name_kind = Py_NewRef(module->name_kind);
    core->name_commit = Py_NewRef(module->name_commit);
    core->generation = generation;
    core->pointer = pointer;
    core->forks = fork_count;
    memcpy(&core->writer, writer, sizeof core->writer);
    core->prefetched = core->state.head.position;
    return (PyObject *)core;
}

static int core_traverse(Core *core, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(core));
    Py_VISIT(core->mapping);
    Py_VISIT(core->map.obj);
    Py_VISIT(core->seam);
    Py_VISIT(core->index);
    Py_VISIT(core->bound_type);
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
    Py_XDECREF(core->bound_type);
    Py_XDECREF(core->name_kind);
    Py_XDECREF(core->name_commit);
    pthread_cond_destroy(&core->flush_done);
    pthread_mutex_destroy(&core->flush_mutex);
    type->tp_free(core);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"become", (PyCFunction)core_become, METH_O, NULL},
    {"store", (PyCFunction)core_store_method, METH_VARARGS, NULL},
    {"flush", (PyCFunction)core_flush, METH_NOARGS, NULL},
    {"commit", (PyCFunction)core_commit, METH_NOARGS, NULL},
    {"commit_through", (PyCFunction)core_commit_through_method, METH_O, NULL},
    {"write_slot", (PyCFunction)core_write_slot, METH_VARARGS, NULL},
    {"halt", (PyCFunction)core_halt, METH_NOARGS, NULL},
    {"detach", (PyCFunction)core_detach, METH_NOARGS, NULL},
    {0},
};

static PyGetSetDef getset[] = {
    {"state", (getter)core_get_state, NULL, NULL, NULL},
    {0},
};

static PyMemberDef members[] = {
    {"generation", T_ULONGLONG, offsetof(Core, generation), READONLY, NULL},
    {"pointer", T_ULONGLONG, offsetof(Core, pointer), READONLY, NULL},
    {"stray_records", T_BOOL, offsetof(Core, stray_records), 0, NULL},
    {"stray_slot", T_BOOL, offsetof(Core, stray_slot), 0, NULL},
    {"watched", T_UINT, offsetof(Core, watched), 0, NULL},
    {"streams", T_BOOL, offsetof(Core, streams), READONLY, NULL},
    {"appends", T_ULONGLONG, offsetof(Core, appends), READONLY, NULL},
    {"stored_bytes", T_ULONGLONG, offsetof(Core, bytes), READONLY, NULL},
    {"commits", T_ULONGLONG, offsetof(Core, commits), READONLY, NULL},
    {"barriers", T_ULONGLONG, offsetof(Core, barriers), READONLY, NULL},
    {"slots_written", T_ULONGLONG, offsetof(Core, slots_written), READONLY, NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "The part of an engine that is in C. pmwal.native drives it; the caller holds the locks."},
    {Py_tp_new, core_new},
    {Py_tp_traverse, core_traverse},
    {Py_tp_clear, core_clear},
    {Py_tp_dealloc, core_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {Py_tp_members, members},
    {0},
};

PyType_Spec core_spec = {"pmwal._native.Core", sizeof(Core), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, slots};
