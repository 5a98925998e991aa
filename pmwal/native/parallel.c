/* Runs of whole records by several threads at once: checksums of memory that is not cached are bound by its latency, and a system
 * is down during recovery.
 *
 * Invariants
 * - The start of each part but the first is a guess: some whole record further on. Its results count only if the part before ended
 *   exactly there (join_run()), so a wrong guess costs time and nothing else. For the rows of an array the starts are known.
 * - A thread uses nothing of Python, and has ended before the function returns that began it.
 */
#define _GNU_SOURCE
#include "parallel.h"

#include <pthread.h>
#include <sched.h>

#include "fault.h"

#define PART_MIN (UINT64_C(1) << 20) /* bytes for which a thread is worth its start */

struct part {
    const struct geometry *g;
    const struct window *window;
    struct run_rules rules;
    struct run from, run;
    struct starts starts;
    bool readable; /* no access faulted */
    pthread_t thread;
} __attribute__((aligned(128))); /* no two threads share a cache line */

static int note(void *context, uint64_t position, uint64_t seq)
{
    struct starts *starts = context;
    if (starts->count == starts->room)
        return 1;
    starts->pairs[2 * starts->count] = position;
    starts->pairs[2 * starts->count + 1] = seq;
    starts->count++;
    return 0;
}

static void run_body(void *context)
{
    struct part *part = context;
    run_on(part->g, part->window, &part->rules, &part->run, note, &part->starts);
}

static void *run_part(void *context)
{
    struct part *part = context;
    part->run = part->from;
    part->readable = fault_run(part->window->bytes, part->window->length, run_body, part);
    return NULL;
}

struct guess {
    struct part *part;
    uint64_t from, until;
    bool found;
};

/* Only once the run itself is known to continue: past the end of a log there is nothing to find, and a search would read it all. */
static void guess_body(void *context)
{
    struct guess *guess = context;
    struct part *part = guess->part;
    union header first;
    if (record_at(part->g, part->window, part->from.position, &first) != WHOLE || first.record.seq != part->from.seq)
        return;
    guess->found = find_start(part->g, part->window, &part->rules, guess->from, guess->until, &part->from);
}

static unsigned processors(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? 1 : (unsigned)CPU_COUNT(&set);
}

/* How many threads are worth their start for this many bytes. */
static uint64_t parts_for(uint64_t bytes)
{
    uint64_t wanted = bytes / PART_MIN < 2 ? 1 : processors();
    wanted = wanted < bytes / PART_MIN ? wanted : bytes / PART_MIN;
    wanted = wanted < PARTS_MAX ? wanted : PARTS_MAX;
    return wanted ? wanted : 1;
}

/* A part begins to note starts where it begins itself, which may be less than a step after the last one of the part before. */
static void join_starts(struct starts *starts, const struct starts *more)
{
    for (size_t i = 0; i < more->count; i++) {
        uint64_t position = more->pairs[2 * i], seq = more->pairs[2 * i + 1];
        if (starts->count && position - starts->pairs[2 * (starts->count - 1)] < PMWAL_INDEX_STEP)
            continue;
        starts->pairs[2 * starts->count] = position;
        starts->pairs[2 * starts->count + 1] = seq;
        starts->count++;
    }
}

bool run_parts(const struct geometry *g, const struct window *window, const struct run_rules *rules, struct run *run,
               struct starts *starts)
{
    struct part parts[PARTS_MAX];
    uint64_t bytes = rules->bytes_max < window->length ? rules->bytes_max : window->length, begin = run->position;
    if (rules->limit < begin || bytes > rules->limit - begin)
        bytes = rules->limit < begin ? 0 : rules->limit - begin; /* what no record may lie in is neither searched nor read */
    uint64_t wanted = parts_for(bytes);
    unsigned count = 0;

    parts[count++] = (struct part){.g = g, .window = window, .rules = *rules, .from = *run};
    for (unsigned i = 1; i < wanted; i++) {
        struct part *before = &parts[count - 1], *part = &parts[count];
        *part = (struct part){.g = g, .window = window, .rules = *rules, .from = *run};
        uint64_t from = begin + bytes / wanted * i;
        struct guess guess = {part, from, from + PART_MIN, false};
        if (!fault_run(window->bytes, window->length, guess_body, &guess))
            return false;
        if (!guess.found || part->from.position <= before->from.position)
            continue;
        part->rules.bytes_max = begin + rules->bytes_max - part->from.position;
        before->rules.bytes_max = part->from.position - before->from.position;
        count++;
    }
    size_t room = starts->room / PARTS_MAX;
    for (unsigned i = 0; i < count; i++)
        parts[i].starts = (struct starts){.pairs = starts->pairs + 2 * room * i, .room = room};

    unsigned begun = 1;
    while (begun < count && pthread_create(&parts[begun].thread, NULL, run_part, &parts[begun]) == 0)
        begun++;
    run_part(&parts[0]);
    for (unsigned i = 1; i < begun; i++)
        pthread_join(parts[i].thread, NULL);

    bool readable = parts[0].readable;
    *run = parts[0].run;
    starts->count = parts[0].starts.count;
    for (unsigned i = 1; readable && i < begun && join_run(run, &parts[i].from, &parts[i].run); i++) {
        join_starts(starts, &parts[i].starts);
        readable = parts[i].readable;
    }
    return readable;
}

struct share {
    const struct geometry *g;
    const struct window *window;
    const struct row_rules *rules;
    uint64_t position, seq, count, taken;
    unsigned char *rows;
    bool readable; /* no access faulted */
    pthread_t thread;
} __attribute__((aligned(128)));

static void share_body(void *context)
{
    struct share *share = context;
    share->taken = take_rows(share->g, share->window, share->rules, share->position, share->seq, share->count, share->rows);
}

static void *take_share(void *context)
{
    struct share *share = context;
    share->readable = fault_run(share->window->bytes, share->window->length, share_body, share);
    return NULL;
}

bool take_rows_in_parts(const struct geometry *g, const struct window *window, const struct row_rules *rules, uint64_t position,
                        uint64_t seq, uint64_t count, unsigned char *rows, uint64_t *taken)
{
    struct share shares[PARTS_MAX];
    uint64_t size = record_size(g, rules->length), parts = parts_for(count * size), first = 0;
    unsigned begun = 1;
    for (uint64_t i = 0; i < parts; i++) {
        uint64_t end = count / parts * (i + 1) + (i + 1 == parts ? count % parts : 0);
        shares[i] = (struct share){.g = g, .window = window, .rules = rules, .position = position + first * size,
                                   .seq = seq + first, .count = end - first, .rows = rows + first * rules->length};
        first = end;
    }
    while (begun < parts && pthread_create(&shares[begun].thread, NULL, take_share, &shares[begun]) == 0)
        begun++;
    take_share(&shares[0]);
    for (unsigned i = 1; i < begun; i++)
        pthread_join(shares[i].thread, NULL);

    bool readable = true, all = true;
    *taken = 0;
    for (unsigned i = 0; readable && all && i < begun; i++) {
        readable = shares[i].readable;
        *taken += shares[i].taken;
        all = shares[i].taken == shares[i].count;
    }
    return readable;
}

struct half {
    struct search *search;
    const unsigned char *bytes;
    uint64_t length, starts, held;
    enum search_end end;
    pthread_t thread;
} __attribute__((aligned(128)));

static void *search_half(void *context)
{
    struct half *half = context;
    half->end = search_bytes(half->search, half->bytes, half->length, half->starts, half->held);
    return NULL;
}

bool search_halves(struct search *first, struct search *second, const unsigned char *bytes, uint64_t length, uint64_t starts,
                   uint64_t held, enum search_end *end)
{
    struct half halves[] = {{first, bytes, length, starts, held, SEARCH_OK, 0}, {second, bytes, length, starts, held, SEARCH_OK, 0}};
    if (processors() < 2 || pthread_create(&halves[1].thread, NULL, search_half, &halves[1]))
        return false;
    first->share = FIRST_HALVES;
    search_half(&halves[0]);
    pthread_join(halves[1].thread, NULL);
    first->share = WHOLE_PIECES;
    *end = halves[0].end != SEARCH_OK ? halves[0].end : halves[1].end;
    return true;
}
