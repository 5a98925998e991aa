/* Storing records at the head, in memory or through a seam, and making them part of the log.
 *
 * Invariants
 * - `stray_records` is set from before the first store until the head has moved.
 * - A record's header is stored after its payload, and the checksum is taken over the payload as it was stored.
 * - Nothing of Python is called inside a fault guard, and nothing that may run a finalizer while `stray_records` is set.
 */
#include <string.h>

#include "store.h"

#include "outside.h"
#include "record.h"

#include "crc32c.h"
#include "fault.h"
#include "persist.h"

#define PUBLISHED (PMWAL_LIVE_WRITER_OFFSET + offsetof(struct live_writer, published_position))

#define STREAM_MIN 1024 /* a larger record bypasses the cache; a smaller one is written back faster */
#define CHUNK 4096      /* bytes that are streamed at a time */

void note_thread(Core *core)
{
    unsigned long thread = PyThread_get_thread_ident();
    if (thread == core->last_thread)
        return;
    core->alone = core->last_thread ? 0 : CORE_ALONE;
    core->last_thread = thread;
}

/* Where a record is about to be stored: in one piece, not before the head, and over nothing that the log still keeps. */
inline void check_start(const Core *core, struct place start, uint64_t size)
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
inline void fill_header(const struct batch *batch, union header *header, const struct piece *piece, size_t place)
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
void build(const Core *core, unsigned char *to, union header *header, const struct piece *piece, uint64_t position,
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

int publish_recorded(Core *core)
{
    uint64_t published[2] = {core->state.head.position, core->state.head.seq - 1};
    return put(core, PUBLISHED, published, sizeof published);
}

int store_recorded(const struct batch *batch)
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

bool store_mapped(struct batch *batch)
{
    return fault_run(batch->core->base, batch->core->size, store_body, batch);
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
    core->appends += batch->count;
    core->writer.heartbeat_ns = batch->time_ns;
    core->state.head.position = end.position;
    core->state.head.seq += batch->count;
    core->head_offset = end.offset;
    core->stray_records = false;
    check_core(core);
}
