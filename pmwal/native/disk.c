/* Storing batches of records by write(2), into the page cache of a disk, and which pages are there.
 *
 * Invariants
 * - write(2) and the mapping use the same pages (Medium.cached_writes), so a call that is refused leaves the store to the mapping.
 * - A write with RWF_DSYNC is a barrier. Its errno is final unless the kernel refused the call and wrote nothing.
 * - Nothing here calls Python, so it runs without the interpreter, with `writing` and `guard` held: see interpreter.c.
 * - Write-back works by folio: one line that is stored into a large one costs all of it. So pages for small records are single ones.
 *   No write is twice as long as FOLIO_MAX, so no folio is longer than that, and none crosses a multiple of it. `folios` notes where
 *   there may be some.
 * - Only what is clean is dropped from the cache, and the kernel takes care of that: a dirty page stays.
 * - Long payloads that nobody can change are summed and written where they lie. All others are copied into the stage, and summed there.
 * - A large write fills its last page up with zeros, or the kernel would read that page first. It does so only where the space is free,
 *   that is, where the next record may be stored: nothing there counts any more.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "disk.h"

#include "outside.h"

#include "crc32c.h"
#include "fault.h"

#ifndef __GLIBC__ /* musl declares it from 1.2.5 on, and its wheels run with older versions, too */
#include <sys/syscall.h>
#undef RWF_DSYNC
#define RWF_DSYNC 2
#define pwritev2(fd, parts, count, offset, flags) \
    (ssize_t) syscall(SYS_pwritev2, fd, parts, (long)(count), (long)(offset), (long)((uint64_t)(offset) >> 32), flags)
#endif

#define PREFETCH (UINT64_C(1) << 20) /* bytes that are read ahead of the writer */
#define PREFETCH_FIRST (64 * 1024)   /* and the first time in the place of large folios */
#define DIRECT_MIN (16 * 1024)       /* payloads from here on are not copied into the stage */
#define PARTS (2 * (SYNCED_MAX / DIRECT_MIN) + 2)

static_assert(SYNCED_MAX + PMWAL_PAGE < 2 * FOLIO_MAX, "no write makes a folio longer than FOLIO_MAX");
static_assert(PIECE <= SYNCED_MAX && PIECE % PMWAL_PAGE == 0, "the parts of a piece are not more than those of a synced write");

static void drop_pages(Core *core, uint64_t first, uint64_t end)
{
    PMWAL_CHECK((first | end) % PMWAL_PAGE == 0 && first < end);
    madvise(core->base + first, end - first, MADV_DONTNEED);
    posix_fadvise(core->fd, (off_t)first, (off_t)(end - first), POSIX_FADV_DONTNEED);
}

/* Drops the single pages that a write is about to fill, so that it makes large folios and reads none of them. Those that follow, to
 * the end of what `folios` notes as one, go with them: the next writes fill them, and see only the note. */
static void make_way(Core *core, uint64_t offset, uint64_t length)
{
    uint64_t first = page_end(offset), end = page_start(offset + length);
    if (!core->on_disk || end <= first)
        return;
    unsigned char *folios = core->folios + first / FOLIO_MAX;
    size_t count = (end - 1) / FOLIO_MAX - first / FOLIO_MAX + 1;
    if (memchr(folios, 0, count)) {
        uint64_t noted = (end + FOLIO_MAX - 1) / FOLIO_MAX * FOLIO_MAX;
        uint64_t ring = page_start(core->ring_offset + core->geometry.capacity);
        drop_pages(core, first, noted < ring ? noted : ring);
    }
    memset(folios, 1, count);
}

/* Drops the large folios around these bytes of the ring, once they are clean: until then the notes of them stay. */
static void drop_folios(Core *core, uint64_t offset, uint64_t length)
{
    if (core->state.head.position != core->state.durable.position)
        return;
    for (uint64_t i = offset / FOLIO_MAX; i <= (offset + length - 1) / FOLIO_MAX; i++) {
        if (!core->folios[i])
            continue;
        uint64_t first = i * FOLIO_MAX, end = page_start(core->ring_offset + core->geometry.capacity);
        core->folios[i] = 0;
        drop_pages(core, first < core->ring_offset ? core->ring_offset : first, end < first + FOLIO_MAX ? end : first + FOLIO_MAX);
    }
}

static void read_ahead(Core *core, uint64_t offset, uint64_t length)
{
    uint64_t first = page_start(offset);
    drop_folios(core, first, offset + length - first);
    posix_fadvise(core->fd, (off_t)first, (off_t)(offset + length - first), POSIX_FADV_WILLNEED);
}

void prefetch(Core *core)
{
    uint64_t position = core->state.head.position, capacity = core->geometry.capacity, offset = core->head_offset;
    if (!core->on_disk)
        return;
    bool large = core->folios[(core->ring_offset + offset) / FOLIO_MAX] && position == core->state.durable.position;
    if (!large && position + PREFETCH / 2 < core->prefetched)
        return;
    uint64_t window = large ? PREFETCH_FIRST : PREFETCH, length = window < capacity - offset ? window : capacity - offset;
    read_ahead(core, core->ring_offset + offset, length);
    if (length < window)
        read_ahead(core, core->ring_offset, window - length < capacity ? window - length : capacity);
    core->prefetched = position + window;
}

/* Bytes of the mapping. */
struct touched {
    unsigned char *start, *end;
};

static void touch_body(void *context)
{
    const struct touched *touched = context;
    for (const volatile unsigned char *at = touched->start; at < touched->end; at += PMWAL_PAGE)
        (void)*at;
}

/* Reads one byte of each page, so that write(2) finds single pages in the cache and makes no large folios there. */
static bool touch(Core *core, uint64_t offset, uint64_t length)
{
    struct touched touched = {core->base + page_start(offset), core->base + offset + length};
    return fault_run(core->base, core->size, touch_body, &touched);
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

bool make_stage(Core *core, uint64_t size)
{
    if (size <= core->stage_size)
        return true;
    PyMem_RawFree(core->stage);
    core->stage = PyMem_RawMalloc(size);
    core->stage_size = core->stage ? size : 0;
    return core->stage;
}

/* Bytes on their way to one place of the file: parts of the stage, and payloads where they lie. */
struct output {
    Core *core;
    struct place start; /* in the ring */
    uint64_t length, staged;
    size_t count;
    struct iovec parts[PARTS];
};

static void begin_output(struct output *out, Core *core, struct place start)
{
    out->core = core;
    out->start = start;
    out->length = out->staged = out->count = 0;
}

static uint64_t output_offset(const struct output *out)
{
    return out->core->ring_offset + out->start.offset;
}

static void add_part(struct output *out, const void *bytes, uint64_t length)
{
    PMWAL_CHECK(out->count < PARTS);
    out->parts[out->count++] = (struct iovec){(void *)bytes, length};
    out->length += length;
}

/* Adds bytes of the stage, which the caller fills. */
static unsigned char *add_staged(struct output *out, uint64_t length)
{
    unsigned char *at = out->core->stage + out->staged;
    struct iovec *last = out->count ? &out->parts[out->count - 1] : NULL;
    PMWAL_CHECK(out->staged + length <= out->core->stage_size);
    if (last && (unsigned char *)last->iov_base + last->iov_len == at) {
        last->iov_len += length;
        out->length += length;
    } else
        add_part(out, at, length);
    out->staged += length;
    return at;
}

static bool goes_direct(const struct piece *piece)
{
    return piece->constant && piece->length >= DIRECT_MIN;
}

static void add_record(struct output *out, union header *header, const struct piece *piece, uint64_t position, uint64_t size)
{
    const Core *core = out->core;
    if (!goes_direct(piece)) {
        build(core, add_staged(out, size), header, piece, position, size);
        return;
    }
    uint64_t padding = size - PMWAL_HEADER - piece->length;
    header->words[0] |= record_crc(core->geometry.uuid_crc, position, header, piece->bytes);
    memcpy(add_staged(out, PMWAL_HEADER), header, PMWAL_HEADER);
    add_part(out, piece->bytes, piece->length);
    if (padding)
        memset(add_staged(out, padding), 0, padding);
}

/* Fills the last page up with zeros, if the rest of it is free. */
static void fill_page(struct output *out)
{
    static const unsigned char zeros[PMWAL_PAGE];
    const Core *core = out->core;
    uint64_t end = output_offset(out) + out->length, rest = page_end(end) - end;
    if (rest && core->on_disk && out->start.offset + out->length + rest <= core->geometry.capacity &&
        out->start.position + out->length + rest - core->state.tail.position <= core->geometry.capacity)
        add_part(out, zeros, rest);
}

/* Writes it to the page cache. 0; an errno, which is final; -1 when the kernel refuses such writes. */
static int write_parts(struct output *out)
{
    Core *core = out->core;
    struct iovec *part = out->parts, *end = part + out->count;
    uint64_t offset = output_offset(out);
    PMWAL_CHECK(out->start.offset + out->length <= core->geometry.capacity);
    if (!may_write(offset + out->length))
        return -1;
    make_way(core, offset, out->length);
    while (part < end) {
        ssize_t written = pwritev(core->fd, part, (int)(end - part), (off_t)offset);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return !written || is_refusal(errno) ? -1 : errno;
        offset += (uint64_t)written;
        for (; part < end && (size_t)written >= part->iov_len; part++)
            written -= (ssize_t)part->iov_len;
        if (written)
            *part = (struct iovec){(char *)part->iov_base + written, part->iov_len - (size_t)written};
    }
    return 0;
}

/* Writes it, and starts writing its whole pages to the disk, which then works while the next bytes are summed and copied, and the
 * barrier has less to do. That promises nothing, and loses no error: msync(2) reports those of these pages too. */
static int write_output(struct output *out)
{
    Core *core = out->core;
    uint64_t first = page_start(output_offset(out)), end = page_start(output_offset(out) + out->length);
    if (!out->length)
        return 0;
    fill_page(out);
    int status = write_parts(out);
    if (!status && end > first)
        sync_file_range(core->fd, (off_t)first, (off_t)(end - first), SYNC_FILE_RANGE_WRITE);
    return status;
}

/* A record that is longer than a piece. The pages with its first bytes, the header among them, are written last. */
static int write_long(struct output *out, union header *header, const struct piece *piece, struct place start, uint64_t size)
{
    unsigned char first[2 * PMWAL_PAGE];
    Core *core = out->core;
    struct crc32c_header words = {start.position, header->words};
    uint64_t offset = core->ring_offset + start.offset, begun = page_end(offset + PMWAL_HEADER) - offset;
    uint64_t done = begun - PMWAL_HEADER;
    PMWAL_CHECK(begun <= sizeof first && done <= piece->length);
    memcpy(first + PMWAL_HEADER, piece->bytes, done);
    uint32_t crc = crc32c_record(core->geometry.uuid_crc, words, first + PMWAL_HEADER, done);
    int status = 0;
    for (uint64_t at = begun; at < size && !status; at += PIECE) {
        uint64_t left = piece->length - done, count = left < PIECE ? left : PIECE, rest = size - at;
        const unsigned char *bytes = piece->bytes + done;
        begin_output(out, core, (struct place){start.position + at, start.offset + at});
        if (goes_direct(piece))
            add_part(out, bytes, count);
        else
            bytes = memcpy(add_staged(out, count), bytes, count);
        uint64_t padding = (rest < PIECE ? rest : PIECE) - count;
        if (padding)
            memset(add_staged(out, padding), 0, padding);
        status = write_output(out);
        crc = crc32c(crc, bytes, count);
        done += count;
    }
    if (status)
        return status;
    header->words[0] |= crc;
    memcpy(first, header, sizeof *header);
    begin_output(out, core, start);
    add_part(out, first, begun);
    return write_parts(out);
}

int store_written(const struct batch *batch)
{
    Core *core = batch->core;
    struct place end = core_head(core);
    struct output out;
    int status = 0;
    PMWAL_CHECK(core->stage_size >= PIECE);
    begin_output(&out, core, end);
    for (size_t i = 0; i < batch->count && !status; i++) {
        const struct piece piece = piece_at(batch, i);
        union header header;
        uint64_t size = record_size(&core->geometry, piece.length);
        struct place start = place_record(&core->geometry, end, size);
        check_start(core, start, size);
        fill_header(batch, &header, &piece, i);
        if (start.offset == 0 || out.length + size > PIECE) {
            status = write_output(&out);
            begin_output(&out, core, start);
        }
        if (status)
            break;
        end = end_record(&core->geometry, start, size);
        if (size > PIECE) {
            status = write_long(&out, &header, &piece, start, size);
            begin_output(&out, core, end);
        } else
            add_record(&out, &header, &piece, start.position, size);
    }
    return status ? status : write_output(&out);
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

/* Adds all records of a batch that is contiguous in the ring. */
static void add_all(struct output *out, const struct batch *batch)
{
    const Core *core = batch->core;
    struct place end = batch_start(batch);
    for (size_t i = 0; i < batch->count; i++) {
        const struct piece piece = piece_at(batch, i);
        union header header;
        uint64_t size = record_size(&core->geometry, piece.length);
        struct place start = place_record(&core->geometry, end, size);
        check_start(core, start, size);
        fill_header(batch, &header, &piece, i);
        add_record(out, &header, &piece, start.position, size);
        end = end_record(&core->geometry, start, size);
    }
}

int store_synced(const struct batch *batch)
{
    Core *core = batch->core;
    struct output out;
    PMWAL_CHECK(is_contiguous(batch));
    begin_output(&out, core, batch_start(batch));
    uint64_t offset = output_offset(&out);
    if (batch->size < LARGE_STORE) {
        prefetch(core);
        if (batch->size > PMWAL_PAGE && !touch(core, offset, batch->size))
            return EIO;
    } else
        make_way(core, offset, batch->size);
    add_all(&out, batch);
    if (batch->size >= LARGE_STORE)
        fill_page(&out);
    if (!may_write(offset + out.length))
        return -1;
    ssize_t written;
    do
        written = pwritev2(core->fd, out.parts, (int)out.count, (off_t)offset, RWF_DSYNC);
    while (written < 0 && errno == EINTR);
    if (written == (ssize_t)out.length)
        return 0;
    if (written >= 0) /* a part of it, which is synced, so no error was consumed */
        return -2;
    return is_refusal(errno) ? refused(core, offset, core->stage, errno) : errno;
}

/* The time in steps of some milliseconds, as long as pages that took a store are taken to take another. */
static int64_t coarse_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

bool pages_are_ready(const Core *core, uint64_t first, uint64_t size, struct readying *readying)
{
    const struct geometry *g = &core->geometry;
    struct place start = place_record(g, core_head(core), first);
    uint64_t before_end = g->capacity - start.offset < size ? g->capacity - start.offset : size;
    uint64_t offset = core->ring_offset + start.offset, ring = core->ring_offset;
    struct pages pages = {page_start(offset), page_end(offset + before_end)};
    *readying = (struct readying){core->base, core->size, pages, {ring, page_end(ring + size - before_end)}, coarse_ns()};
    return core->ready.first <= pages.first && pages.end <= core->ready.end && core->ready_tick == readying->tick;
}

/* Changes nothing: an exchange of a byte for itself, which is atomic, so that it undoes no store of another thread. ThreadSanitizer
 * knows no such thing. */
__attribute__((no_sanitize_thread)) static void dirty_page(unsigned char *byte)
{
    unsigned char same = *(volatile unsigned char *)byte;
    __atomic_compare_exchange_n(byte, &same, same, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

static void ready_body(void *context)
{
    const struct readying *readying = context;
    for (uint64_t at = readying->pages.first; at < readying->pages.end; at += PMWAL_PAGE)
        dirty_page(readying->base + at);
    for (uint64_t at = readying->wrapped.first; at < readying->wrapped.end; at += PMWAL_PAGE)
        dirty_page(readying->base + at);
    dirty_page(readying->base + PMWAL_LIVE_OFFSET + PMWAL_PAGE - 1); /* a byte that nothing uses */
}

void ready_pages(struct readying *readying)
{
    fault_run(readying->base, readying->size, ready_body, readying); /* the store meets a fault again, and reports it */
}
