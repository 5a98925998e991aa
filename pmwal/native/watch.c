/* Waiting until the live page shows the next records of a log, and loading them.
 *
 * Invariants
 * - NEWS is the ordinary case only: the writer that the follower knows shows records right after the last one, in the epoch that the
 *   follower knows.
 * - Bounds count only as one whole line, and the writer's line only if it was there while they were.
 * - It sleeps only while the page shows what it knew before: bounds that are stored after the last look have another version, with
 *   which the futex does not sleep.
 * - Records are loaded into private memory, by pread(2), or from a page that is mapped while it sleeps: the one in which the next record
 *   will start. A page of a large folio is not mapped. It would stay in the page cache when the writer drops it (disk.c), and each of
 *   its small commits would then write the whole folio.
 *
 * A process that slept finds the caches of the processor cold, where code and data cost many times what they cost in a loop. So
 * what can be done before the sleep is, and what is done after it touches few lines.
 */
#define _DEFAULT_SOURCE
#include "watch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core.h"
#include "fault.h"
#include "futex.h"

#define TRIES 3 /* a busy writer changes the bounds while they are loaded */

static void load_words(void *to, const void *from, size_t length)
{
    for (size_t i = 0; i < length / 8; i++)
        ((uint64_t *)to)[i] = __atomic_load_n((const uint64_t *)from + i, __ATOMIC_RELAXED);
}

/* The bounds must be the same twice in a row, with all else loaded in between. */
static void load_lines(void *context)
{
    struct watch *watch = context;
    struct live_bounds again;
    watch->is_whole = false;
    for (int i = 0; i < TRIES && !watch->is_whole; i++) {
        load_words(&watch->bounds, watch->file + PMWAL_LIVE_OFFSET, sizeof watch->bounds);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        load_words(&watch->writer.line, watch->file + PMWAL_LIVE_WRITER_OFFSET, sizeof watch->writer.line);
        load_words(watch->writer.open_id, watch->file + PMWAL_LIVE_OPEN_OFFSET, sizeof watch->writer.open_id);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        load_words(&again, watch->file + PMWAL_LIVE_OFFSET, sizeof again);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        watch->is_whole = !memcmp(&watch->bounds, &again, sizeof again) && again.version_begin == again.version_end;
    }
}

static bool same_writer(const struct known_writer *one, const struct known_writer *other)
{
    return one->line.pid == other->line.pid && one->line.start_time == other->line.start_time &&
           one->line.inode == other->line.inode && !memcmp(one->line.boot_id, other->line.boot_id, sizeof one->line.boot_id) &&
           !memcmp(one->open_id, other->open_id, sizeof one->open_id);
}

static bool load(int fd, void *to, size_t length, uint64_t offset)
{
    return pread(fd, to, length, (off_t)offset) == (ssize_t)length;
}

static bool load_mapped(const struct watch *watch, void *to, size_t length, uint64_t offset)
{
    uint64_t within = offset - watch->page_offset;
    return watch->page && within < PMWAL_PAGE && length <= PMWAL_PAGE - within &&
           fault_copy(watch->page, PMWAL_PAGE, to, watch->page + within, length);
}

static bool load_records(struct watch *watch)
{
    const struct geometry *g = &watch->geometry;
    struct record lap = {0};
    uint64_t start = watch->at.position % g->capacity, room = g->capacity - start;
    uint64_t length = watch->bounds.durable_position - watch->at.position, most = WATCH_NEAR;
    unsigned char *bytes = watch->near;
    length = length < room ? length : room;
    if (length > most && (watch->far || (watch->far = malloc(WATCH_FAR))))
        bytes = watch->far, most = WATCH_FAR;
    length = length < most ? length : most;
    bool may_wrap = room - length < g->size_max; /* else no record in this window can lie at the ring's start instead */
    uint64_t offset = watch->ring_offset + start;
    if (!(load_mapped(watch, bytes, length, offset) || load(watch->fd, bytes, length, offset)) ||
        (may_wrap && !load(watch->fd, &lap, sizeof lap, watch->ring_offset)))
        return false;
    watch->window = (struct window){bytes, start, length};
    watch->lap_seq = lap.seq;
    return true;
}

enum sight watch_look(struct watch *watch)
{
    const struct live_bounds *bounds = &watch->bounds;
    if (!fault_run(watch->file, PMWAL_LIVE_OFFSET + PMWAL_PAGE, load_lines, watch) || !watch->is_whole ||
        !same_writer(&watch->writer, &watch->known) || bounds->epoch != watch->epoch || bounds->tail_seq > watch->at.seq ||
        bounds->epoch_first_seq > watch->at.seq)
        return OTHER;
    if (bounds->durable_seq < watch->at.seq)
        return NOTHING;
    /* A line that did not change may be of a writer that is dead, while the next one has stored its bounds, and not its line yet. */
    if (!memcmp(&watch->writer, &watch->known, sizeof watch->known) || watch->at.position >= bounds->durable_position)
        return OTHER;
    return load_records(watch) ? NEWS : OTHER;
}

void watch_unmap(struct watch *watch)
{
    if (watch->page)
        munmap((void *)watch->page, PMWAL_PAGE);
    watch->page = NULL;
}

static void touch(void *page)
{
    (void)*(const volatile unsigned char *)page;
}

/* Maps the page of the ring in which the next record will start, if the last ones were small and lie there too: then it is in the
 * cache, as a single page (see disk.c). After the sleep a copy takes a tenth of a pread(2). */
static void map_page(struct watch *watch)
{
    uint64_t offset = watch->ring_offset + watch->at.position % watch->geometry.capacity, first = page_start(offset);
    uint64_t passed = watch->at.position - watch->waited_at; /* huge after a rollback */
    watch->waited_at = watch->at.position;
    if (passed >= PMWAL_PAGE || watch->page_offset != first)
        watch_unmap(watch);
    if (watch->page || !passed || passed >= PMWAL_PAGE || offset == first)
        return;
    unsigned char *page = mmap(NULL, PMWAL_PAGE, PROT_READ, MAP_SHARED, watch->fd, (off_t)first);
    if (page == MAP_FAILED)
        return;
    madvise(page, PMWAL_PAGE, MADV_RANDOM); /* should it have to be read after all, then alone */
    watch->page = page;
    watch->page_offset = first;
    if (!fault_run(page, PMWAL_PAGE, touch, page))
        watch_unmap(watch);
}

enum sight watch_wait(struct watch *watch, double pause, double seconds, int *error)
{
    const void *word = watch->file + PMWAL_LIVE_OFFSET;
    uint64_t version = watch->bounds.version_begin;
    enum sight sight;
    map_page(watch);
    do {
        pause = pause < seconds ? pause : seconds;
        *error = futex_wait(word, (uint32_t)version, pause);
        sight = watch_look(watch);
        seconds -= pause;
        pause *= 2;
    } while (*error == ETIMEDOUT && sight == NOTHING && watch->bounds.version_begin == version && seconds > 0);
    return sight;
}
