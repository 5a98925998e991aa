/* Preloaded by tests/preload.py: a clock that can be stopped, and an msync(2) that keeps an image of the disk, is slow, fails, counts.
 *
 * The image of the watched mapping changes only here, and only to the contents of memory at the start of an msync that later returned 0:
 * the least that a disk may have. Pages of an msync that failed are not written, and count as clean, as on Linux: a later msync
 * writes them only when they have changed since. While the disk is frozen, msync(2) and writes wait.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096

static unsigned char *base, *image, **lost;
static size_t size;
static unsigned delay_us;
static long calls, fail_at, interrupt_at, in_flight, overlaps;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* Watch this mapping; all of it counts as durable now. */
int shim_watch(void *start, size_t length)
{
    pthread_mutex_lock(&mutex);
    image = malloc(length);
    lost = calloc(length / PAGE, sizeof *lost);
    memcpy(image, start, length);
    size = length;
    calls = overlaps = 0;
    base = start;
    pthread_mutex_unlock(&mutex);
    return 0;
}

/* Every later msync takes that long; the one with this number (from 1, counted from the watch) fails, or is interrupted. */
void shim_behave(unsigned delay, long failing, long interrupted)
{
    delay_us = delay;
    fail_at = failing;
    interrupt_at = interrupted;
}

long shim_calls(void)
{
    return __atomic_load_n(&calls, __ATOMIC_SEQ_CST);
}

long shim_in_flight(void)
{
    return __atomic_load_n(&in_flight, __ATOMIC_SEQ_CST);
}

long shim_overlaps(void)
{
    return __atomic_load_n(&overlaps, __ATOMIC_SEQ_CST);
}

/* Whether the image has the bytes that memory has there. */
int shim_holds(size_t offset, size_t length)
{
    pthread_mutex_lock(&mutex);
    int same = memcmp(image + offset, base + offset, length) == 0;
    pthread_mutex_unlock(&mutex);
    return same;
}

/* A power cut: the contents of the disk. */
void shim_copy(void *to)
{
    pthread_mutex_lock(&mutex);
    memcpy(to, image, size);
    pthread_mutex_unlock(&mutex);
}

static int answer(int number)
{
    __atomic_sub_fetch(&in_flight, 1, __ATOMIC_SEQ_CST);
    errno = number;
    return number ? -1 : 0;
}

static long long clock_ns;

/* Stop the wall clock at this time; 0 releases it. */
void shim_clock(long long time_ns)
{
    clock_ns = time_ns;
}

static long long step_ns, computed_step_ns, monotonic_ns, computed_ns;

/* From now on the monotonic clock steps so far at each look, and the processor time of the process so far; 0: they run again. */
void shim_step(long long step, long long computed)
{
    if (!step_ns)
        monotonic_ns = 1000000000000000;
    step_ns = step;
    computed_step_ns = computed;
}

int clock_gettime(clockid_t which, struct timespec *time)
{
    long long now;
    if (clock_ns && which == CLOCK_REALTIME)
        now = clock_ns;
    else if (step_ns && which == CLOCK_MONOTONIC)
        now = monotonic_ns += step_ns;
    else if (step_ns && which == CLOCK_PROCESS_CPUTIME_ID)
        now = computed_ns += computed_step_ns;
    else
        return (int)syscall(SYS_clock_gettime, which, time);
    time->tv_sec = now / 1000000000;
    time->tv_nsec = now % 1000000000;
    return 0;
}

static int frozen, fails_with, lazy;

/* From now on msync syncs nothing, so that no test waits for a busy disk. */
void shim_be_lazy(void)
{
    lazy = 1;
}
static long blocked;

/* Every later msync and write fails with this errno; 0: they do not. */
void shim_fail(int number)
{
    fails_with = number;
}

/* Freeze the disk, or thaw it. */
void shim_freeze(int on)
{
    __atomic_store_n(&frozen, on, __ATOMIC_SEQ_CST);
}

/* The number of threads that wait for it. */
long shim_blocked(void)
{
    return __atomic_load_n(&blocked, __ATOMIC_SEQ_CST);
}

static void wait_for_thaw(void)
{
    struct timespec pause = {0, 1000000};
    __atomic_add_fetch(&blocked, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&frozen, __ATOMIC_SEQ_CST))
        nanosleep(&pause, NULL);
    __atomic_sub_fetch(&blocked, 1, __ATOMIC_SEQ_CST);
}

int msync(void *address, size_t length, int flags)
{
    wait_for_thaw();
    if (fails_with) {
        errno = fails_with;
        return -1;
    }
    unsigned char *start = address;
    if (!base || start < base || start >= base + size)
        return lazy ? 0 : (int)syscall(SYS_msync, address, length, flags);
    long number = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (__atomic_add_fetch(&in_flight, 1, __ATOMIC_SEQ_CST) > 1)
        __atomic_add_fetch(&overlaps, 1, __ATOMIC_SEQ_CST);
    if (number == interrupt_at)
        return answer(EINTR);
    unsigned char *before = malloc(length);
    memcpy(before, start, length);
    if (delay_us) {
        struct timespec left = {delay_us / 1000000, delay_us % 1000000 * 1000};
        while (nanosleep(&left, &left) && errno == EINTR)
            ;
    }
    size_t first = (size_t)(start - base) / PAGE;
    pthread_mutex_lock(&mutex);
    for (size_t i = 0; i < length / PAGE; i++) {
        unsigned char *page = before + i * PAGE, **gone = &lost[first + i];
        if (number == fail_at) {
            *gone = *gone ? *gone : malloc(PAGE);
            memcpy(*gone, page, PAGE);
        } else if (!*gone || memcmp(*gone, page, PAGE)) {
            memcpy(image + (first + i) * PAGE, page, PAGE);
            free(*gone);
            *gone = NULL;
        }
    }
    pthread_mutex_unlock(&mutex);
    free(before);
    return answer(number == fail_at ? EIO : 0);
}

static long refuse_errno, cut_to = -1, dribble, synced_writes, plain_writes;
static int fails_after;

/* Later writes fail with this errno (0: they do not), the synced ones after they have written if `after`; or they stop after `cut`
 * bytes (-1: they do not), those without a sync after none when they are repeated. */
void shim_refuse(long number, int after, long cut)
{
    refuse_errno = number;
    fails_after = after;
    cut_to = cut;
}

/* Later writes without a sync take this many bytes at most (0: all), and then more when they are repeated. */
void shim_dribble(long bytes)
{
    dribble = bytes;
}

/* The number of writes with RWF_DSYNC, and of others, so far. */
long shim_synced_writes(void)
{
    return synced_writes;
}

long shim_plain_writes(void)
{
    return plain_writes;
}

static ssize_t write_all(int fd, const struct iovec *pieces, int count, off_t offset)
{
    return (ssize_t)syscall(SYS_pwritev, fd, pieces, count, offset, 0);
}

ssize_t pwritev(int fd, const struct iovec *pieces, int count, off_t offset)
{
    wait_for_thaw();
    if (fails_with) {
        errno = fails_with;
        return -1;
    }
    plain_writes++;
    if (cut_to >= 0 && pieces->iov_len > (size_t)cut_to) {
        size_t length = (size_t)cut_to;
        cut_to = 0;
        return (ssize_t)syscall(SYS_pwrite64, fd, pieces->iov_base, length, offset);
    }
    if (refuse_errno) {
        errno = (int)refuse_errno;
        return -1;
    }
    if (dribble && pieces->iov_len > (size_t)dribble)
        return (ssize_t)syscall(SYS_pwrite64, fd, pieces->iov_base, (size_t)dribble, offset);
    return dribble ? write_all(fd, pieces, 1, offset) : write_all(fd, pieces, count, offset);
}

/* Whether memory has there what the pieces have. */
static int is_written(const unsigned char *at, const struct iovec *pieces, int count)
{
    for (int i = 0; i < count; at += pieces[i++].iov_len)
        if (memcmp(at, pieces[i].iov_base, pieces[i].iov_len))
            return 0;
    return 1;
}

/* A write with RWF_DSYNC is the write, and then what an msync of its pages is. */
ssize_t pwritev2(int fd, const struct iovec *pieces, int count, off_t offset, int flags)
{
    wait_for_thaw();
    if (fails_with) {
        errno = fails_with;
        return -1;
    }
    synced_writes++;
    if (refuse_errno && fails_after)
        write_all(fd, pieces, count, offset);
    if (cut_to > 0)
        return (ssize_t)syscall(SYS_pwrite64, fd, pieces->iov_base, (size_t)cut_to, offset);
    if (refuse_errno) {
        errno = (int)refuse_errno;
        return -1;
    }
    ssize_t written = write_all(fd, pieces, count, offset);
    if (written <= 0 || !(flags & RWF_DSYNC) || !base || (size_t)offset + (size_t)written > size ||
        !is_written(base + offset, pieces, count))
        return written;
    size_t first = (size_t)offset / PAGE * PAGE, end = ((size_t)offset + (size_t)written + PAGE - 1) / PAGE * PAGE;
    return msync(base + first, end - first, MS_SYNC) ? -1 : written;
}
