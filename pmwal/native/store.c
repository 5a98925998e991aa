/* Storing records at the head, in memory or through a seam, and making them part of the log.
 *
 * Invariants
 * - `stray_records` is set from before the first store until the head has moved.
 * - In memory a record's header is stored after its payload, and its checksum last. The checksum is taken over the payload as it was
 *   stored, or over bytes that nobody can change.
 * - Past the cache only whole lines are stored, which belong to one record: see stream_min() in core.c.
 * - Nothing of Python is called inside a fault guard, and nothing that may run a finalizer while `stray_records` is set.
 */
#include <string.h>

#include "store.h"

#include "outside.h"
#include "record.h"
#include "seek_points.h"

#include "crc32c.h"
#include "fault.h"
#include "persist.h"

#define PUBLISHED (PMWAL_LIVE_WRITER_OFFSET + offsetof(struct live_writer, published_position))

#define CHUNK 4096 /* bytes that are streamed at a time */
#define AHEAD 4    /* records of a batch between the one that is stored and the one whose payload is fetched */

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

/* Whether a record of this size is stored past the cache. */
static inline bool streams(const Core *core, uint64_t size)
{
    return size >= core->stream_min;
}

/* Stores the payload and the padding of a record at `to`. With `lines`, write-backs begin as soon as they can; returns from where on it
 * began them. */
static inline unsigned char *store_payload(unsigned char *to, const struct piece *piece, uint64_t size, bool lines)
{
    unsigned char *payload = to + PMWAL_HEADER, *end = to + size;
    unsigned char *rest = (unsigned char *)(((uintptr_t)payload + PMWAL_LINE - 1) & ~(uintptr_t)(PMWAL_LINE - 1));
    uint64_t padding = size - PMWAL_HEADER - piece->length;
    memcpy(payload, piece->bytes, piece->length);
    if (padding)
        memset(payload + piece->length, 0, padding);
    if (!lines || !piece->constant || rest >= end) /* a line may leave the cache when it is written back */
        return end;
    write_back(rest, (size_t)(end - rest));
    return rest;
}

/* Its checksum, once the payload is stored. The bytes of one that nobody can change are read again, so it need not wait for the store. */
static inline uint32_t stored_crc(const Core *core, const unsigned char *to, const union header *header, const struct piece *piece,
                                  uint64_t position, uint64_t size)
{
    PMWAL_CHECK(header->record.durable <= core->state.durable.position && header->record.durable <= position);
    PMWAL_CHECK(header_possible(&core->geometry, &header->record, position, size));
    return record_crc(core->geometry.uuid_crc, position, header, piece->constant ? piece->bytes : to + PMWAL_HEADER);
}

void build(const Core *core, unsigned char *to, union header *header, const struct piece *piece, uint64_t position,
           uint64_t size)
{
    store_payload(to, piece, size, false);
    header->words[0] |= stored_crc(core, to, header, piece, position, size);
    for (int i = 0; i < 6; i++)
        memcpy(to + 8 * i, &header->words[i], 8);
}

/* The same with a header that is filled where it belongs, which costs fewer stores. */
static inline void build_in_place(const struct batch *batch, unsigned char *to, const struct piece *piece, size_t place,
                                  uint64_t position, uint64_t size)
{
    const Core *core = batch->core;
    union header *header = (union header *)to;
    bool lines = core->barrier == BARRIER_LINES;
    unsigned char *rest = store_payload(to, piece, size, lines);
    fill_header(batch, header, piece, place);
    header->words[0] |= stored_crc(core, to, header, piece, position, size);
    if (lines)
        write_back(to, (size_t)(rest - to));
}

/* The same past the cache, in chunks of whole lines; the line with the header last. Bytes that somebody may change are copied once,
 * so that the checksum is over what is stored. */
static void build_streaming(const struct batch *batch, unsigned char *to, struct piece piece, size_t place, uint64_t position,
                            uint64_t size)
{
    enum { BESIDE = PMWAL_LINE - PMWAL_HEADER }; /* bytes of the payload in the header's line */
    unsigned char staged[CHUNK], beside[BESIDE] = {0};
    union header header;
    struct crc32c_header words = {position, header.words};
    uint64_t done = 0, at = PMWAL_LINE;
    uint32_t crc = 0;
    PMWAL_CHECK(((uintptr_t)to | size) % PMWAL_LINE == 0);
    fill_header(batch, &header, &piece, place);
    do {
        uint64_t room = done ? CHUNK : CHUNK - PMWAL_HEADER, rest = piece.length - done, count = rest < room ? rest : room;
        const unsigned char *from = piece.bytes + done;
        if (!piece.constant)
            from = memcpy(staged, from, count);
        uint64_t skipped = done ? 0 : count < BESIDE ? count : BESIDE, end = rest > room ? at + count - skipped : size;
        if (!done)
            memcpy(beside, from, skipped);
        stream(to + at, from + skipped, count - skipped, end - at);
        crc = done ? crc32c(crc, from, count) : crc32c_record(batch->core->geometry.uuid_crc, words, from, count);
        done += count;
        at = end;
    } while (done < piece.length);
    header.words[0] |= crc;
    stream_words(to, header.words, PMWAL_HEADER / 8);
    stream(to + PMWAL_HEADER, beside, BESIDE, BESIDE);
}

int publish_recorded(Core *core)
{
    if (PyErr_Occurred())
        return -1;
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

void store_records(const struct batch *batch)
{
    const Core *core = batch->core;
    struct place end = core_head(core);
    for (size_t i = 0; i < batch->count; i++) {
        const struct piece piece = piece_at(batch, i);
        uint64_t size = record_size(&core->geometry, piece.length);
        struct place start = place_record(&core->geometry, end, size);
        if (i + AHEAD < batch->count) {
            const struct piece later = piece_at(batch, i + AHEAD);
            __builtin_prefetch(later.bytes);
            __builtin_prefetch(later.bytes + PMWAL_LINE);
        }
        unsigned char *to = core->base + core->ring_offset + start.offset;
        check_start(core, start, size);
        if (streams(core, size))
            build_streaming(batch, to, piece, i, start.position, size);
        else
            build_in_place(batch, to, &piece, i, start.position, size);
        end = end_record(&core->geometry, start, size);
    }
    PMWAL_CHECK(end.position == batch->end.position);
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

void take_in(const struct batch *batch)
{
    Core *core = batch->core;
    PMWAL_CHECK(core->stray_records);
    PMWAL_CHECK(!fault_inside());
    if (batch->starts)
        index_take(core->index, batch->starts);
    core->stored_bytes += batch->payload_bytes;
    if (seek_point_is_due(core, batch->end))
        note_seek_points(batch);
    core->appends += batch->count;
    core->writer.heartbeat_ns = batch->time_ns;
    core->state.head.position = batch->end.position;
    core->state.head.seq += batch->count;
    core->head_offset = batch->end.offset;
    core->stray_records = false;
    check_core(core);
}
