/* The floors of `pmwal bench` and tools/bench.py: what the hardware and the kernel need for the same work without a log.
 *
 * They share no code with pmwal. Every loop fills `each`, unless it is NULL, with the nanoseconds of each call, measured with two
 * reads of CLOCK_MONOTONIC that are part of the figure (nothing is subtracted). Functions return the total nanoseconds, or a
 * negative errno. `at` is the offset of the next store: it is kept between calls, so that a floor walks through its ring like a
 * log and does not hammer one hot line.
 *
 * setup.py builds this file as a module, so that a wheel contains it; ctypes calls its functions. tools/bench.py builds it once
 * more, for the very processor that its bars are measured on.
 */
#define _GNU_SOURCE
#ifdef FLOORS_MODULE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#endif
#include <cpuid.h>
#include <errno.h>
#include <immintrin.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    uint32_t crc, length;
    uint64_t seq, durable;
    int64_t time_ns;
    uint32_t epoch;
    uint16_t kind, flags;
    uint32_t batch_index, batch_count;
} header;

_Static_assert(sizeof(header) == 48, "a header as pmwal stores it");

enum { PAGE = 4096, LINE = 64, LONG = 8192, SHORT = 512 };
enum { CLWB, CLFLUSHOPT, CLFLUSH };

static volatile uint64_t sink; /* keeps the compiler from dropping computations */

static inline int64_t now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline int64_t mono(void) { return now(CLOCK_MONOTONIC); }

/* -- CRC32C: one chain of crc32q for short data, three chains at a time for long data */

static uint32_t zeros_long[4][256], zeros_short[4][256];

static uint64_t chain(uint64_t crc, const unsigned char *p, size_t n) {
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        crc = _mm_crc32_u64(crc, word);
    }
    if (n >= 4) {
        uint32_t word;
        memcpy(&word, p, 4);
        crc = _mm_crc32_u32((uint32_t)crc, word);
        p += 4, n -= 4;
    }
    for (; n; n--) crc = _mm_crc32_u8((uint32_t)crc, *p++);
    return crc;
}

static void make_zeros(uint32_t table[4][256], size_t n) { /* the effect of n zero bytes on a CRC, by its bytes */
    for (int byte = 0; byte < 4; byte++)
        for (int value = 0; value < 256; value++) {
            uint64_t crc = (uint32_t)value << (8 * byte);
            for (size_t i = 0; i < n; i += 8) crc = _mm_crc32_u64(crc, 0);
            table[byte][value] = (uint32_t)crc;
        }
}

static inline uint32_t shift(uint32_t table[4][256], uint32_t crc) {
    return table[0][crc & 255] ^ table[1][crc >> 8 & 255] ^ table[2][crc >> 16 & 255] ^ table[3][crc >> 24];
}

static inline const unsigned char *three(uint64_t *crc, const unsigned char *p, size_t n, uint32_t table[4][256]) {
    uint64_t a = *crc, b = 0, c = 0;
    for (const unsigned char *end = p + n; p < end; p += 8) {
        uint64_t x, y, z;
        memcpy(&x, p, 8), memcpy(&y, p + n, 8), memcpy(&z, p + 2 * n, 8);
        a = _mm_crc32_u64(a, x), b = _mm_crc32_u64(b, y), c = _mm_crc32_u64(c, z);
    }
    *crc = shift(table, shift(table, (uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
    return p + 2 * n;
}

static uint32_t crc32c(uint32_t start, const void *data, size_t n) {
    const unsigned char *p = data;
    uint64_t crc = start;
    for (; n >= 3 * LONG; n -= 3 * LONG) p = three(&crc, p, LONG, zeros_long);
    for (; n >= 3 * SHORT; n -= 3 * SHORT) p = three(&crc, p, SHORT, zeros_short);
    return (uint32_t)chain(crc, p, n);
}

uint32_t fl_crc32c(const void *data, uint64_t n) { return ~crc32c(~0u, data, n); }

/* -- cache lines */

static int flush_kind = CLFLUSH;

static inline void flush_line(const void *line) {
    volatile char *p = (volatile char *)(uintptr_t)line;
    if (flush_kind == CLWB)
        __asm__ volatile(".byte 0x66; xsaveopt %0" : "+m"(*p));
    else if (flush_kind == CLFLUSHOPT)
        __asm__ volatile(".byte 0x66; clflush %0" : "+m"(*p));
    else
        __asm__ volatile("clflush %0" : "+m"(*p));
}

static inline void flush_lines(const char *p, size_t n) {
    for (size_t i = 0; i < n; i += LINE) flush_line(p + i);
}

static inline void copy_nt(char *to, const char *from, size_t n) { /* n is a multiple of 64, both are aligned */
#ifdef __AVX512F__
    for (size_t i = 0; i < n; i += 64) _mm512_stream_si512((__m512i *)(to + i), _mm512_load_si512((const void *)(from + i)));
#else
    for (size_t i = 0; i < n; i += 16) _mm_stream_si128((__m128i *)(to + i), _mm_load_si128((const __m128i *)(from + i)));
#endif
}

int fl_init(void) { /* the flush instruction: 0 CLWB, 1 CLFLUSHOPT, 2 CLFLUSH; -1: no CRC32C */
    unsigned a, b, c, d;
    if (!__builtin_cpu_supports("sse4.2")) return -1;
    make_zeros(zeros_long, LONG);
    make_zeros(zeros_short, SHORT);
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) flush_kind = b & 1u << 24 ? CLWB : b & 1u << 23 ? CLFLUSHOPT : CLFLUSH;
    return flush_kind;
}

int64_t fl_timer(uint64_t n, int64_t *each) { /* two clock reads with nothing between them */
    int64_t begin = mono();
    for (uint64_t i = 0; i < n; i++) {
        int64_t t = mono();
        each[i] = mono() - t;
    }
    return mono() - begin;
}

/* -- memory */

static inline uint64_t place(uint64_t at, uint64_t size, uint64_t capacity) { /* no record crosses the end of the ring */
    return at % capacity + size > capacity ? at + capacity - at % capacity : at;
}

static inline uint64_t put(char *ring, uint64_t capacity, uint64_t at, const void *payload, uint32_t length, uint64_t seq,
                           int64_t time_ns, uint32_t index, uint32_t count) {
    uint64_t size = (sizeof(header) + length + 7) / 8 * 8;
    at = place(at, size, capacity);
    char *to = ring + at % capacity;
    header h = {0, length, seq, at, time_ns, 1, 0, 0, index, count};
    memcpy(to, &h, sizeof h);
    memcpy(to + sizeof h, payload, length);
    memset(to + sizeof h + length, 0, size - sizeof h - length);
    uint32_t crc = (uint32_t)_mm_crc32_u64(0x12345678, at);                    /* seed: the log and the position */
    crc = (uint32_t)chain(crc, (const unsigned char *)&h + 4, sizeof h - 4);   /* the rest of the header */
    crc = ~crc32c(crc, payload, length);
    memcpy(to, &crc, 4);
    return at + size;
}

/* The work of append(commit=False): clock, header, copy, checksum, store. */
int64_t fl_append(char *ring, uint64_t capacity, uint64_t *at, const void *payload, uint32_t length, uint64_t n, int64_t *each) {
    uint64_t to = *at;
    int64_t begin = mono();
    for (uint64_t i = 0; i < n; i++) {
        int64_t t = each ? mono() : 0;
        to = put(ring, capacity, to, payload, length, i, now(CLOCK_REALTIME), 0, 1);
        if (each) each[i] = mono() - t;
    }
    *at = to;
    return mono() - begin;
}

/* The work of extend: one clock read for `batch` records, whose payloads are at the addresses in `payloads`. */
int64_t fl_extend(char *ring, uint64_t capacity, uint64_t *at, void *const *payloads, uint32_t length, uint32_t batch, uint64_t n,
                  int64_t *each) {
    uint64_t to = *at;
    int64_t begin = mono();
    for (uint64_t i = 0; i < n; i++) {
        int64_t t = each ? mono() : 0, time_ns = now(CLOCK_REALTIME);
        for (uint32_t k = 0; k < batch; k++) to = put(ring, capacity, to, payloads[k], length, i * batch + k, time_ns, k, batch);
        if (each) each[i] = mono() - t;
    }
    *at = to;
    return mono() - begin;
}

/* -- persistent memory, emulated: a raw store of header and payload, padded to lines.
 * strict: store, fence, 64-byte slot, fence. pipelined: store with a checksum, one fence. nt: by non-temporal stores. */
int64_t fl_dax(char *ring, uint64_t capacity, char *control, uint64_t control_size, uint64_t *at, const void *payload,
               uint32_t length, int strict, int nt, uint64_t n, int64_t *each) {
    uint64_t size = (sizeof(header) + length + LINE - 1) / LINE * LINE, to = *at, pages = control_size / PAGE;
    char *stage = aligned_alloc(LINE, size);
    if (!stage) return -ENOMEM;
    memset(stage, 0, size);
    int64_t begin = mono();
    for (uint64_t i = 0; i < n; i++) {
        int64_t t = each ? mono() : 0;
        to = place(to, size, capacity);
        char *p = ring + to % capacity;
        header h = {0, length, i, to, 0, 1, 0, 0, 0, 1};
        if (!strict) {
            uint32_t crc = (uint32_t)_mm_crc32_u64(0x12345678, to);
            crc = (uint32_t)chain(crc, (const unsigned char *)&h + 4, sizeof h - 4);
            h.crc = ~crc32c(crc, payload, length);
        }
        if (nt) {
            memcpy(stage, &h, sizeof h);
            memcpy(stage + sizeof h, payload, length);
            copy_nt(p, stage, size);
        } else {
            memcpy(p, &h, sizeof h);
            memcpy(p + sizeof h, payload, length);
            memset(p + sizeof h + length, 0, size - sizeof h - length);
            flush_lines(p, size);
        }
        _mm_sfence();
        to += size;
        if (strict) {
            _Alignas(LINE) uint64_t slot[8] = {1, i, 1, to, i, 0, 1, 0};
            uint64_t generation = to / size;
            char *s = control + generation % pages * PAGE + generation / pages % (PAGE / LINE) * LINE;
            if (nt) {
                copy_nt(s, (const char *)slot, LINE);
            } else {
                memcpy(s, slot, LINE);
                flush_line(s);
            }
            _mm_sfence();
        }
        if (each) each[i] = mono() - t;
    }
    int64_t total = mono() - begin;
    free(stage);
    *at = to;
    return total;
}

/* -- disk */

/* Store `length` bytes, then msync their page or pages. */
int64_t fl_msync(char *map, uint64_t region, uint64_t *at, const void *payload, uint32_t length, uint64_t n, int64_t *each) {
    int64_t begin = mono();
    for (uint64_t i = 0; i < n; i++) {
        int64_t t = mono();
        if (*at + length > region) *at = 0;
        uint64_t first = *at / PAGE * PAGE, end = (*at + length + PAGE - 1) / PAGE * PAGE;
        memcpy(map + *at, payload, length);
        if (msync(map + first, end - first, MS_SYNC)) return -errno;
        *at += length;
        if (each) each[i] = mono() - t;
    }
    return mono() - begin;
}

/* pwrite of `length` bytes, then fdatasync if `sync` is set (a descriptor with O_DSYNC needs none). */
int64_t fl_pwrite(int fd, uint64_t region, uint64_t *at, const void *data, uint64_t length, int sync, uint64_t n, int64_t *each) {
    int64_t begin = mono();
    for (uint64_t i = 0; i < n; i++) {
        int64_t t = mono();
        if (*at + length > region) *at = 0;
        for (uint64_t done = 0; done < length;) {
            ssize_t more = pwrite(fd, (const char *)data + done, length - done, (off_t)(*at + done));
            if (more < 0) return -errno;
            done += (uint64_t)more;
        }
        if (sync && fdatasync(fd)) return -errno;
        *at += length;
        if (each) each[i] = mono() - t;
    }
    return mono() - begin;
}

/* The same for one page and a descriptor with O_DSYNC, by a thread that computes every other `turn` nanoseconds. */
int64_t fl_pwrite_turns(int fd, uint64_t region, uint64_t *at, const void *page, int64_t turn, uint64_t n) {
    int64_t begin = mono(), end = begin + turn;
    for (uint64_t i = 0; i < n; i++) {
        if (*at + PAGE > region) *at = 0;
        if (pwrite(fd, page, PAGE, (off_t)*at) != PAGE) return -EIO;
        *at += PAGE;
        if (mono() < end) continue;
        for (end = mono() + turn; mono() < end;) sink++;
        end += turn;
    }
    return mono() - begin;
}

/* Read `size` bytes sequentially, in pieces. */
int64_t fl_read(int fd, uint64_t size, uint64_t piece) {
    char *buffer = aligned_alloc(PAGE, piece);
    if (!buffer) return -ENOMEM;
    memset(buffer, 0, piece);
    int64_t begin = mono(), result = 0;
    for (uint64_t at = 0; at < size;) {
        ssize_t got = pread(fd, buffer, piece, (off_t)at);
        if (got <= 0) {
            result = got ? -errno : -EIO;
            break;
        }
        at += (uint64_t)got;
    }
    if (!result) result = mono() - begin;
    free(buffer);
    return result;
}

/* -- bandwidths */

int64_t fl_memcpy(const char *data, uint64_t size) { /* into a buffer that stays in the cache */
    enum { PIECE = 1 << 18 };
    char *to = aligned_alloc(PAGE, PIECE);
    if (!to) return -ENOMEM;
    memset(to, 0, PIECE);
    int64_t begin = mono();
    for (uint64_t at = 0; at < size; at += PIECE) {
        uint64_t n = size - at < PIECE ? size - at : PIECE;
        memcpy(to, data + at, n);
        sink += (unsigned char)to[n - 1];
    }
    int64_t total = mono() - begin;
    free(to);
    return total;
}

int64_t fl_crc(const char *data, uint64_t size) {
    int64_t begin = mono();
    sink += crc32c(~0u, data, size);
    return mono() - begin;
}

/* One CRC for each payload; out-of-order execution overlaps them. */
int64_t fl_crc_each(const char *data, uint64_t size, uint64_t stride, uint64_t offset, uint32_t length) {
    uint64_t sum = 0;
    int64_t begin = mono();
    for (uint64_t at = 0; at + stride <= size; at += stride)
        sum += chain(~0u, (const unsigned char *)data + at + offset, length);
    int64_t total = mono() - begin;
    sink += sum;
    return total;
}

/* -- group commit: threads store records under a mutex; one of the waiting threads flushes what all have stored */

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    char *map;
    int fd;
    int sync_file;
    uint64_t region, end, durable, barriers, each_thread;
    const void *payload;
    uint32_t length;
    int busy, error;
} group;

static int barrier(const group *g, uint64_t from, uint64_t to) {
    if (g->sync_file) return fdatasync(g->fd) ? errno : 0;
    while (from < to) { /* a group may go over the end of the ring */
        uint64_t first = from % g->region, n = to - from < g->region - first ? to - from : g->region - first;
        uint64_t page = first / PAGE * PAGE, last = (first + n + PAGE - 1) / PAGE * PAGE;
        if (msync(g->map + page, last - page, MS_SYNC)) return errno;
        from += n;
    }
    return 0;
}

static void *group_thread(void *argument) {
    group *g = argument;
    for (uint64_t i = 0; i < g->each_thread && !g->error; i++) {
        pthread_mutex_lock(&g->lock);
        g->end = put(g->map, g->region, g->end, g->payload, g->length, i, now(CLOCK_REALTIME), 0, 1);
        uint64_t mine = g->end;
        while (g->durable < mine && !g->error) {
            if (g->busy) {
                pthread_cond_wait(&g->moved, &g->lock);
                continue;
            }
            uint64_t from = g->durable, to = g->end;
            g->busy = 1;
            pthread_mutex_unlock(&g->lock);
            int error = barrier(g, from, to);
            pthread_mutex_lock(&g->lock);
            g->busy = 0;
            g->durable = to;
            g->barriers++;
            if (error) g->error = error;
            pthread_cond_broadcast(&g->moved);
        }
        pthread_mutex_unlock(&g->lock);
    }
    return NULL;
}

int64_t fl_group(char *map, int fd, uint64_t region, uint64_t *at, const void *payload, uint32_t length, int threads,
                 uint64_t each_thread, int sync_file, uint64_t *barriers) {
    group g = {.map = map, .fd = fd, .sync_file = sync_file, .region = region, .end = *at, .durable = *at,
               .each_thread = each_thread, .payload = payload, .length = length};
    pthread_t ids[64];
    if (threads < 1 || threads > 64) return -EINVAL;
    pthread_mutex_init(&g.lock, NULL);
    pthread_cond_init(&g.moved, NULL);
    int started = 0, error = 0;
    int64_t begin = mono();
    for (; started < threads && !error; started++) error = pthread_create(&ids[started], NULL, group_thread, &g);
    if (error) g.error = error, started--;
    for (int i = 0; i < started; i++) pthread_join(ids[i], NULL);
    int64_t total = mono() - begin;
    *at = g.end;
    *barriers = g.barriers;
    return g.error ? -g.error : total;
}

/* -- processes */

/* Wakes a process that sleeps on a futex, n times, after a pause each: the time from before the wake-up to its next clock read. */
int64_t fl_wake(int64_t pause_ns, uint64_t n, int64_t *each) {
    size_t size = PAGE + n * sizeof(int64_t);
    char *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return -errno;
    uint32_t *word = (uint32_t *)shared;
    int64_t *woken = (int64_t *)(shared + PAGE);
    memset(woken, 0, n * sizeof *woken);
    int64_t begin = mono();
    pid_t child = fork();
    if (child < 0) {
        int error = errno;
        munmap(shared, size);
        return -error;
    }
    if (!child) { /* forked from a process with threads: system calls only */
        for (uint32_t i = 0; i < n; i++) {
            while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == i) syscall(SYS_futex, word, FUTEX_WAIT, i, NULL, NULL, 0);
            woken[i] = mono();
        }
        _exit(0);
    }
    struct timespec pause = {pause_ns / 1000000000, pause_ns % 1000000000};
    for (uint32_t i = 0; i < n; i++) {
        nanosleep(&pause, NULL);
        each[i] = mono();
        __atomic_store_n(word, i + 1, __ATOMIC_RELEASE);
        syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    }
    int64_t total = mono() - begin;
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR) continue;
    for (uint64_t i = 0; i < n; i++) each[i] = woken[i] - each[i];
    munmap(shared, size);
    return total;
}

/* -- onlookers */

static struct {
    pthread_t thread;
    int64_t sleep_ns, longest;
    int stop;
} ticker;

static void *ticks(void *unused) {
    (void)unused;
    struct timespec pause = {ticker.sleep_ns / 1000000000, ticker.sleep_ns % 1000000000};
    while (!__atomic_load_n(&ticker.stop, __ATOMIC_ACQUIRE)) {
        int64_t begin = mono();
        nanosleep(&pause, NULL);
        int64_t over = mono() - begin - ticker.sleep_ns;
        if (over > __atomic_load_n(&ticker.longest, __ATOMIC_RELAXED)) __atomic_store_n(&ticker.longest, over, __ATOMIC_RELAXED);
    }
    return NULL;
}

/* A thread that sleeps again and again and needs no interpreter: what makes it late is the system. One at a time. */
int64_t fl_ticker_start(int64_t sleep_ns) {
    ticker.sleep_ns = sleep_ns, ticker.longest = 0, ticker.stop = 0;
    return -pthread_create(&ticker.thread, NULL, ticks, NULL);
}

/* By how many nanoseconds its longest sleep since the last call was too long. */
int64_t fl_ticker_take(void) { return __atomic_exchange_n(&ticker.longest, 0, __ATOMIC_RELAXED); }

int64_t fl_ticker_stop(void) {
    __atomic_store_n(&ticker.stop, 1, __ATOMIC_RELEASE);
    return -pthread_join(ticker.thread, NULL);
}

#ifdef FLOORS_MODULE
/* -- the module: its functions are those above, for ctypes */

static PyModuleDef module = {PyModuleDef_HEAD_INIT, "pmwal.testing.bench._floors", NULL, 0, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__floors(void) { return PyModuleDef_Init(&module); }
#endif
