/* Storing batches of records by write(2), into the page cache of a disk.
 *
 * Invariants
 * - write(2) and the mapping use the same pages (Medium.cached_writes), so a call that is refused leaves the store to the mapping.
 * - A write with RWF_DSYNC is a barrier. Its errno is final unless the kernel refused the call and wrote nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

#include "disk.h"

#include "outside.h"

#include "fault.h"

#define WRITE_BEHIND (64 * 1024)     /* bytes of a large batch after which the disk starts on them, while the rest is built */
#define PREFETCH (UINT64_C(1) << 20) /* bytes that are read ahead of the writer */

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

int store_written(struct batch *batch, uint64_t total)
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
