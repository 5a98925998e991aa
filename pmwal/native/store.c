/* Storing records at the head, and making them part of the log.
 *
 * Invariants
 * - `stray_records` is set from before the first store until the head has moved.
 * - A record's header is stored after its payload, and the checksum is taken over the payload as it was stored.
 * - Nothing of Python is called inside a fault guard, and nothing that may run a finalizer while `stray_records` is set.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

#include "store.h"

#include "outside.h"
#include "record.h"
#include "seek_points.h"

#include "crc32c.h"
#include "fault.h"
#include "persist.h"

#define PUBLISHED (PMWAL_LIVE_WRITER_OFFSET + offsetof(struct live_writer, published_position))

#define LARGE_STORE (32 * 1024)      /* a larger batch goes into the page cache by pwrite(2), which takes no fault for each page */
#define WRITE_BEHIND (64 * 1024)     /* bytes of such a batch after which the disk starts on them, while the rest is built */
#define PREFETCH (UINT64_C(1) << 20) /* bytes that are read ahead of the writer */
#define STREAM_MIN 1024              /* a larger record bypasses the cache; a smaller one is written back faster */
#define CHUNK 4096                   /* bytes that are streamed at a time */

void note_thread(Core *core)
{
    unsigned long thread = PyThread_get_thread_ident();
    if (thread == core->last_thread)
        return;
    core->alone = core->last_thread ? 0 : CORE_ALONE;
    core->last_thread = thread;
}

/* Where a record is about to be stored: in one piece, not before the head, and over nothing that the log still keeps. */
static inline void check_start(const Core *core, struct place start, uint64_t size)
{
    const struct geometry *g = &core->geometry;
    PMWAL_CHECK(start.position % g->alignment == 0 && size % g->alignment == 0);
    PMWAL_CHECK(start.offset == start.position % g->capacity);
    PMWAL_CHECK(start.offset + size <= g->capacity);
    PMWAL_CHECK(start.position >= core->state.head.position);
    PMWAL_CHECK(start.position + size <= PMWAL_POSITION_MAX);
    PMWAL_CHECK(start.position + size - core->state.tail.position <= g->capacity);
}

/* Fills a header except for its checksum, word by word: see union header. */
static inline void fill_header(const struct batch *batch, union header *header, const struct piece *piece, size_t place)
{
    const struct log_state *state = &batch->core->state;
    PMWAL_CHECK(piece->length <= batch->core->geometry.payload_max);
    PMWAL_CHECK(place < batch->count && batch->count <= UINT32_MAX);
    header->words[0] = piece->length << 32;
    header->words[1] = state->head.seq + place;
    header->words[2] = state->durable.position;
    header->words[3] = (uint64_t)batch->time_ns;
    header->words[4] = state->epoch | (uint64_t)piece->kind << 32;
    header->words[5] = (uint64_t)place | (uint64_t)batch->count << 32;
}

/* Shows on the live page how far the log is stored, durable or not. Under a fault guard. */
static void show_published(const Core *core, uint64_t position, uint64_t seq)
{
    uint64_t published[2] = {position, seq};
    memcpy(core->base + PUBLISHED, published, sizeof published);
}

/* Whether a record of this size bypasses the cache: it has its cache lines to itself, and enough of them. */
static inline bool streams(const Core *core, uint64_t size)
{
    return size >= STREAM_MIN && core->streams;
}

/* Stores a record at `to`: payload and padding first, the checksum over them as they were stored, the header last. */
static void build(const Core *core, unsigned char *to, union header *header, const struct piece *piece, uint64_t position,
                  uint64_t size)
{
    unsigned char *payload = to + PMWAL_HEADER;
    uint64_t padding = size - PMWAL_HEADER - piece->length;
    PMWAL_CHECK(header->record.durable <= core->state.durable.position && header->record.durable <= position);
    PMWAL_CHECK(header_possible(&core->geometry, &header->record, position, size));
    memcpy(payload, piece->bytes, piece->length);
    if (padding)
        memset(payload + piece->length, 0, padding);
    header->words[0] |= record_crc(core->geometry.uuid_crc, position, header, payload);
    for (int i = 0; i < 6; i++)
        memcpy(to + 8 * i, &header->words[i], 8);
}

/* The same past the cache, in chunks. The first chunk, with the header, is streamed last. */
static void build_streaming(const Core *core, unsigned char *to, union header *header, const struct piece *piece,
                            uint64_t position, uint64_t size)
{
    unsigned char first[CHUNK] __attribute__((aligned(64)));
    if (size <= CHUNK) {
        build(core, first, header, piece, position, size);
        stream(to, first, size);
        return;
    }
    unsigned char chunk[CHUNK] __attribute__((aligned(64)));
    uint64_t done = CHUNK - PMWAL_HEADER;
    memcpy(first + PMWAL_HEADER, piece->bytes, done);
    struct crc32c_header words = {position, header->words};
    uint32_t crc = crc32c_record(core->geometry.uuid_crc, words, first + PMWAL_HEADER, done);
    for (uint64_t at = CHUNK; at < size; at += CHUNK) {
        uint64_t length = size - at < CHUNK ? size - at : CHUNK;
        uint64_t payload = piece->length - done < length ? piece->length - done : length;
        memcpy(chunk, piece->bytes + done, payload);
        memset(chunk + payload, 0, length - payload);
        crc = crc32c(crc, chunk, payload);
        stream(to + at, chunk, length);
        done += payload;
    }
    header->words[0] |= crc;
    memcpy(first, header, sizeof *header);
    stream(to, first, CHUNK);
}

/* The same through put(); the caller has moved the head. -1 also if the seam has raised at a seek point. */
static int publish_recorded(Core *core)
{
    if (PyErr_Occurred())
        return -1;
    uint64_t published[2] = {core->state.head.position, core->state.head.seq - 1};
    return put(core, PUBLISHED, published, sizeof published);
}

/* Through the seam, one step for each record. */
static int store_recorded(const struct batch *batch)
{
    Core *core = batch->core;
    struct place end = core_head(core);
    for (size_t i = 0; i < batch->count; i++) {
        const struct piece piece = piece_at(batch, i);
        union header header;
        uint64_t size = record_size(&core->geometry, piece.length);
        struct place start = place_record(&core->geometry, end, size);
        check_start(core, start, size);
        fill_header(batch, &header, &piece, i);
        PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
        if (!bytes)
            return -1;
        build(core, (unsigned char *)PyBytes_AS_STRING(bytes), &header, &piece, start.position, size);
        unsigned long long offset = core->ring_offset + start.offset;
        int status = call_seam(core, streams(core, size) ? "stream" : "store", "(OKO)", core->mapping, offset, bytes);
        Py_DECREF(bytes);
        if (!status && core->barrier == BARRIER_LINES && !streams(core, size))
            status = call_seam(core, "write_back", "(OKK)", core->mapping, offset, (unsigned long long)size);
        if (status)
            return -1;
        end = end_record(&core->geometry, start, size);
    }
    return 0;
}

void store_records(struct batch *batch)
{
    const Core *core = batch->core;
    struct place end = core_head(core);
    for (size_t i = 0; i < batch->count; i++) {
        const struct piece piece = piece_at(batch, i);
        union header header;
        uint64_t size = record_size(&core->geometry, piece.length);
        struct place start = place_record(&core->geometry, end, size);
        unsigned char *to = core->base + core->ring_offset + start.offset;
        check_start(core, start, size);
        fill_header(batch, &header, &piece, i);
        if (streams(core, size))
            build_streaming(core, to, &header, &piece, start.position, size);
        else {
            build(core, to, &header, &piece, start.position, size);
            if (core->barrier == BARRIER_LINES)
                write_back(to, size);
        }
        end = end_record(&core->geometry, start, size);
    }
    batch->end = end;
}

static void store_body(void *context)
{
    struct batch *batch = context;
    store_records(batch);
    show_published(batch->core, batch->end.position, batch->core->state.head.seq + batch->count - 1);
}

static int store_mapped(struct batch *batch)
{
    return fault_run(batch->core->base, batch->core->size, store_body, batch) ? 0 : raise_fault(batch->core);
}

/* Bytes of the mapping. */
struct touched {
    const volatile unsigned char *start, *end;
};

static struct touched touched_by(const Core *core, uint64_t offset, uint64_t length)
{
    return (struct touched){core->base + (offset & ~(PMWAL_PAGE - 1)), core->base + offset + length};
}

static void touch_body(void *context)
{
    const struct touched *touched = context;
    for (const volatile unsigned char *at = touched->start; at < touched->end; at += PMWAL_PAGE)
        (void)*at;
}

/* Reads one byte of each page, so that pwrite(2) finds single pages in the cache and makes no large folios there. */
static int touch(Core *core, uint64_t offset, uint64_t length)
{
    struct touched touched = touched_by(core, offset, length);
    return fault_run(core->base, core->size, touch_body, &touched) ? 0 : raise_fault(core);
}

/* Whether the process may write up to this offset. Past RLIMIT_FSIZE, SIGXFSZ would end a program that does not ignore it. */
static bool may_write(uint64_t end)
{
    struct rlimit limit;
    return getrlimit(RLIMIT_FSIZE, &limit) || limit.rlim_cur == RLIM_INFINITY || end <= limit.rlim_cur;
}

/* Whether this errno of a write(2) comes from a rule for the call (a limit, a seal, a filter, an old kernel) and says nothing about
 * the medium. A store into the mapping may work all the same. */
static bool is_refusal(int number)
{
    return number == EPERM || number == EINVAL || number == EFBIG || number == ENOSYS || number == EOPNOTSUPP;
}

/* 0; -1 with an exception set; 1 when the kernel refuses such writes. */
static int write_file(Core *core, uint64_t offset, const unsigned char *bytes, uint64_t length)
{
    PMWAL_CHECK(offset >= core->ring_offset && offset + length <= core->ring_offset + core->geometry.capacity);
    if (!may_write(offset + length))
        return 1;
    if (touch(core, offset, length))
        return -1;
    while (length) {
        ssize_t written = pwrite(core->fd, bytes, length, (off_t)offset);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return !written || is_refusal(errno) ? 1 : raise_final(core, errno);
        bytes += written;
        offset += (uint64_t)written;
        length -= (uint64_t)written;
    }
    return 0;
}

/* Starts writing the whole pages of what was just stored, so that the disk works while the next piece is built and the barrier has
 * less to do. It promises nothing, and loses no error: msync(2) reports those of these pages too. */
static void begin_writing(const Core *core, uint64_t offset, uint64_t length)
{
    uint64_t first = offset & ~(PMWAL_PAGE - 1), end = (offset + length) & ~(PMWAL_PAGE - 1);
    if (end > first)
        sync_file_range(core->fd, (off_t)first, (off_t)(end - first), SYNC_FILE_RANGE_WRITE);
}

/* Into the page cache by pwrite(2), in pieces that are contiguous in the ring. As write_file(). */
static int store_written(struct batch *batch, uint64_t total)
{
    Core *core = batch->core;
    struct place end = core_head(core), from = end;
    uint64_t filled = 0;
    unsigned char *staged = PyMem_Malloc(total);
    if (!staged) {
        PyErr_NoMemory();
        return -1;
    }
    int status = 0;
    for (size_t i = 0; i < batch->count && !status; i++) {
        const struct piece piece = piece_at(batch, i);
        union header header;
        uint64_t size = record_size(&core->geometry, piece.length);
        struct place start = place_record(&core->geometry, end, size);
        if (filled && (start.offset == 0 || filled >= WRITE_BEHIND)) {
            status = write_file(core, core->ring_offset + from.offset, staged, filled);
            begin_writing(core, core->ring_offset + from.offset, filled);
            filled = 0;
        }
        if (!filled)
            from = start;
        check_start(core, start, size);
        fill_header(batch, &header, &piece, i);
        PMWAL_CHECK(filled + size <= total);
        build(core, staged + filled, &header, &piece, start.position, size);
        filled += size;
        end = end_record(&core->geometry, start, size);
    }
    if (!status)
        status = write_file(core, core->ring_offset + from.offset, staged, filled);
    PyMem_Free(staged);
    return status;
}

/* A header in the mapping, and what it may be. */
struct comparison {
    const unsigned char *mapped, *expected;
    bool equal;
};

static void compare_body(void *context)
{
    struct comparison *comparison = context;
    comparison->equal = memcmp(comparison->mapped, comparison->expected, PMWAL_HEADER) == 0;
}

/* A kernel that refuses a call has written nothing. If the header is there, the errno is of the sync, which reported, and so used
 * up, an error of the write-back: it is final. */
static int refused(Core *core, uint64_t offset, const unsigned char *staged, int number)
{
    struct comparison comparison = {core->base + offset, staged, false};
    bool whole = fault_run(core->base, core->size, compare_body, &comparison);
    return whole && !comparison.equal ? -1 : number;
}

int store_synced(struct batch *batch, unsigned char *staged)
{
    Core *core = batch->core;
    union header header;
    uint64_t size = record_size(&core->geometry, batch->pieces->length);
    struct place start = place_record(&core->geometry, core_head(core), size);
    struct touched touched = touched_by(core, core->ring_offset + start.offset, size);
    check_start(core, start, size);
    if (size > PMWAL_PAGE && !fault_run(core->base, core->size, touch_body, &touched))
        return EIO;
    struct iovec piece = {staged, size};
    fill_header(batch, &header, batch->pieces, 0);
    build(core, staged, &header, batch->pieces, start.position, size);
    uint64_t offset = core->ring_offset + start.offset;
    if (!may_write(offset + size))
        return -1;
    ssize_t written;
    do
        written = pwritev2(core->fd, &piece, 1, (off_t)offset, RWF_DSYNC);
    while (written < 0 && errno == EINTR);
    if (written == (ssize_t)size)
        return 0;
    if (written >= 0) /* a part of it, which is synced, so no error was consumed */
        return -2;
    return is_refusal(errno) ? refused(core, offset, staged, errno) : errno;
}

/* Keeps the pages ahead of the writer resident: a cold page costs a read before its first store. */
void prefetch(Core *core)
{
    uint64_t position = core->state.head.position, capacity = core->geometry.capacity, offset = core->head_offset;
    if (!core->on_disk || position + PREFETCH / 2 < core->prefetched)
        return;
    uint64_t length = PREFETCH < capacity - offset ? PREFETCH : capacity - offset;
    uint64_t first = (core->ring_offset + offset) & ~(PMWAL_PAGE - 1);
    posix_fadvise(core->fd, (off_t)first, (off_t)(core->ring_offset + offset + length - first), POSIX_FADV_WILLNEED);
    if (length < PREFETCH)
        posix_fadvise(core->fd, (off_t)core->ring_offset, (off_t)(PREFETCH - length), POSIX_FADV_WILLNEED);
    core->prefetched = position + PREFETCH;
}

/* Adds a record to the sparse index if the newest entry is far enough back. A lost entry only makes a look-up longer. */
static void note_start_of(Core *core, uint64_t position, uint64_t seq)
{
    Py_ssize_t length = PyList_GET_SIZE(core->index);
    PMWAL_CHECK(!fault_inside());
    if (length) {
        uint64_t last = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(PyList_GET_ITEM(core->index, length - 1), 0));
        PMWAL_CHECK(last < position);
        if (position - last < PMWAL_INDEX_STEP) {
            core->index_next = last + PMWAL_INDEX_STEP;
            return;
        }
    }
    int collects = PyGC_Disable(); /* a collection runs finalizers, which may use or close this very log */
    PyObject *entry = bound_new(core->bound_type, position, seq);
    if (collects)
        PyGC_Enable();
    if (entry)
        PyList_Append(core->index, entry);
    Py_XDECREF(entry);
    if (PyErr_ExceptionMatches(PyExc_MemoryError))
        PyErr_Clear(); /* the record is stored */
    core->index_next = position + PMWAL_INDEX_STEP;
}

void take_in(const struct batch *batch)
{
    Core *core = batch->core;
    const struct geometry *g = &core->geometry;
    struct place end = core_head(core);
    PMWAL_CHECK(core->stray_records);
    for (size_t i = 0; i < batch->count; i++) {
        uint64_t length = piece_at(batch, i).length, size = record_size(g, length);
        struct place start = place_record(g, end, size);
        if (start.position >= core->index_next)
            note_start_of(core, start.position, core->state.head.seq + i);
        core->stored_bytes += length;
        end = end_record(g, start, size);
    }
    if (seek_point_is_due(core, end))
        note_seek_points(batch);
    core->appends += batch->count;
    core->writer.heartbeat_ns = batch->time_ns;
    core->state.head.position = end.position;
    core->state.head.seq += batch->count;
    core->head_offset = end.offset;
    core->stray_records = false;
    check_core(core);
}

static int store_batch(struct batch *batch)
{
    Core *core = batch->core;
    uint64_t total = 0;
    PMWAL_CHECK(lock_admits(core->writing));
    PMWAL_CHECK(lock_admits(core->guard) || core->flushing);
    PMWAL_CHECK(!core->stray_records && !core->stray_slot);
    if (check_mapped(core) || check_failed(core) || now_ns(core, &batch->time_ns))
        return -1;
    if (batch->defers && upkeep_is_due(core, batch->time_ns))
        return 1;
    if (core->barrier == BARRIER_MSYNC) {
        note_thread(core);
        prefetch(core);
        for (size_t i = 0; i < batch->count; i++)
            total += record_size(&core->geometry, piece_at(batch, i).length);
    }
    core->stray_records = true;
    int status = 1;
    if (core->seam)
        status = store_recorded(batch);
    else if (total >= LARGE_STORE && core->cached_writes) {
        status = store_written(batch, total);
        core->cached_writes = status <= 0;
    }
    bool mapped = status > 0;
    if (mapped)
        status = store_mapped(batch);
    if (status)
        return -1;
    take_in(batch);
    return mapped ? 0 : publish_recorded(core);
}

int core_store(Core *core, const struct piece *pieces, size_t count, bool defers)
{
    struct batch batch;
    batch_of(&batch, core, pieces, count);
    batch.defers = defers;
    return store_batch(&batch);
}

int core_store_rows(Core *core, const struct piece *first, size_t count)
{
    struct batch batch;
    batch_of(&batch, core, first, count);
    batch.rows = true;
    return store_batch(&batch);
}
