/* Storing batches of records by write(2), into the page cache of a disk, and which pages are there.
 *
 * Invariants
 * - write(2) and the mapping use the same pages (Medium.cached_writes), so a call that is refused leaves the store to the mapping.
 * - A write with RWF_DSYNC is a barrier. Its errno is final unless the kernel refused the call and wrote nothing.
 * - Nothing here calls Python, so it runs without the interpreter, with `writing` and `guard` held: see interpreter.c.
 * - Write-back works by folio: one line that is stored into a large one costs all of it. So pages for small records are single ones.
 *   No write is longer than FOLIO_MAX, so no folio is, and none crosses a multiple of it. `folios` notes where there may be some.
 * - Only what is clean is dropped from the cache, and the kernel takes care of that: a dirty page stays.
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

#define PREFETCH (UINT64_C(1) << 20) /* bytes that are read ahead of the writer */
#define PREFETCH_FIRST (64 * 1024)   /* and the first time in the place of large folios */

static_assert(SYNCED_MAX <= FOLIO_MAX && PIECE <= FOLIO_MAX, "no write makes a folio longer than FOLIO_MAX");

static void drop_pages(Core *core, uint64_t first, uint64_t end)
{
    PMWAL_CHECK((first | end) % PMWAL_PAGE == 0 && first < end);
    madvise(core->base + first, end - first, MADV_DONTNEED);
    posix_fadvise(core->fd, (off_t)first, (off_t)(end - first), POSIX_FADV_DONTNEED);
}

/* Drops the pages that a write is about to fill, so that it makes large folios and reads none of them. */
static void make_way(Core *core, uint64_t offset, uint64_t length)
{
    uint64_t first = page_end(offset), end = page_start(offset + length);
    if (!core->on_disk || end <= first)
        return;
    drop_pages(core, first, end);
    memset(core->folios + first / FOLIO_MAX, 1, (end - 1) / FOLIO_MAX - first / FOLIO_MAX + 1);
}

/* Drops the large folios around these bytes of the ring. */
static void drop_folios(Core *core, uint64_t offset, uint64_t length)
{
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

/* 0; an errno, which is final; -1 when the kernel refuses such writes. */
static int write_file(Core *core, uint64_t offset, const unsigned char *bytes, uint64_t length)
{
    PMWAL_CHECK(offset >= core->ring_offset && offset + length <= core->ring_offset + core->geometry.capacity);
    if (!may_write(offset + length))
        return -1;
    make_way(core, offset, length);
    while (length) {
        ssize_t written = pwrite(core->fd, bytes, length, (off_t)offset);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return !written || is_refusal(errno) ? -1 : errno;
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

bool make_stage(Core *core, uint64_t size)
{
    if (size <= core->stage_size)
        return true;
    PyMem_RawFree(core->stage);
    core->stage = PyMem_RawMalloc(size);
    core->stage_size = core->stage ? size : 0;
    return core->stage;
}

/* Bytes in the stage that go to one place. */
struct staged {
    uint64_t offset, length;
};

static int write_staged(Core *core, struct staged *staged)
{
    int status = staged->length ? write_file(core, staged->offset, core->stage, staged->length) : 0;
    begin_writing(core, staged->offset, staged->length);
    staged->offset += staged->length;
    staged->length = 0;
    return status;
}

/* A record that is longer than the stage. The pages with its first bytes, the header among them, are written last. */
static int write_long(Core *core, uint64_t offset, union header *header, const struct piece *piece, struct place start, uint64_t size)
{
    unsigned char first[2 * PMWAL_PAGE];
    struct crc32c_header words = {start.position, header->words};
    uint64_t begun = page_end(offset + PMWAL_HEADER) - offset, done = begun - PMWAL_HEADER;
    PMWAL_CHECK(begun <= sizeof first && done <= piece->length);
    memcpy(first + PMWAL_HEADER, piece->bytes, done);
    uint32_t crc = crc32c_record(core->geometry.uuid_crc, words, first + PMWAL_HEADER, done);
    int status = 0;
    for (struct staged staged = {offset + begun, 0}; staged.offset < offset + size && !status;) {
        uint64_t left = offset + size - staged.offset, payload = piece->length - done;
        staged.length = left < PIECE ? left : PIECE;
        payload = payload < staged.length ? payload : staged.length;
        memcpy(core->stage, piece->bytes + done, payload);
        memset(core->stage + payload, 0, staged.length - payload);
        crc = crc32c(crc, core->stage, payload);
        done += payload;
        status = write_staged(core, &staged);
    }
    header->words[0] |= crc;
    memcpy(first, header, sizeof *header);
    return status ? status : write_file(core, offset, first, begun);
}

int store_written(const struct batch *batch)
{
    Core *core = batch->core;
    struct place end = core_head(core);
    struct staged staged = {0};
    int status = 0;
    PMWAL_CHECK(core->stage_size >= PIECE);
    for (size_t i = 0; i < batch->count && !status; i++) {
        const struct piece piece = piece_at(batch, i);
        union header header;
        uint64_t size = record_size(&core->geometry, piece.length);
        struct place start = place_record(&core->geometry, end, size);
        if (start.offset == 0 || staged.length + size > PIECE)
            status = write_staged(core, &staged);
        if (!staged.length)
            staged.offset = core->ring_offset + start.offset;
        check_start(core, start, size);
        fill_header(batch, &header, &piece, i);
        if (status)
            break;
        if (size > PIECE)
            status = write_long(core, staged.offset, &header, &piece, start, size);
        else {
            PMWAL_CHECK(staged.length + size <= core->stage_size);
            build(core, core->stage + staged.length, &header, &piece, start.position, size);
            staged.length += size;
        }
        end = end_record(&core->geometry, start, size);
    }
    return status ? status : write_staged(core, &staged);
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

/* Builds the records of a batch in the stage. */
static void build_all(const struct batch *batch)
{
    const Core *core = batch->core;
    struct place end = core_head(core);
    uint64_t built = 0;
    for (size_t i = 0; i < batch->count; i++) {
        const struct piece piece = piece_at(batch, i);
        union header header;
        uint64_t size = record_size(&core->geometry, piece.length);
        struct place start = place_record(&core->geometry, end, size);
        check_start(core, start, size);
        fill_header(batch, &header, &piece, i);
        PMWAL_CHECK(built + size <= core->stage_size);
        build(core, core->stage + built, &header, &piece, start.position, size);
        end = end_record(&core->geometry, start, size);
        built += size;
    }
}

int store_synced(const struct batch *batch)
{
    Core *core = batch->core;
    uint64_t size = batch->size, offset = core->ring_offset + batch_start(batch).offset;
    PMWAL_CHECK(is_contiguous(batch));
    if (!may_write(offset + size))
        return -1;
    if (size < LARGE_STORE) {
        prefetch(core);
        if (size > PMWAL_PAGE && !touch(core, offset, size))
            return EIO;
    } else
        make_way(core, offset, size);
    build_all(batch);
    struct iovec piece = {core->stage, size};
    ssize_t written;
    do
        written = pwritev2(core->fd, &piece, 1, (off_t)offset, RWF_DSYNC);
    while (written < 0 && errno == EINTR);
    if (written == (ssize_t)size)
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
