/* Waiting until the live page shows the next records of a log, and loading them: no Python. */
#ifndef PMWAL_WATCH_H
#define PMWAL_WATCH_H

#include "index.h"
#include "ring.h"

/* What identifies a writer: its line, and the id of its open. */
struct known_writer {
    struct live_writer line;
    unsigned char open_id[sizeof((struct live_open *)0)->id];
};

static_assert(offsetof(struct live_open, id) == 0 && sizeof(struct known_writer) == 80, "live page");

#define WATCH_NEAR 4096              /* bytes of records for which there is always memory */
#define WATCH_FAR (UINT64_C(1) << 18) /* bytes of records that are loaded at most */

struct watch {
    struct geometry geometry;
    const unsigned char *file; /* up to the end of the live page, mapped */
    int fd;
    uint64_t ring_offset, epoch;
    struct bound at; /* where the next record starts, and its number */
    struct known_writer known;
    struct live_bounds bounds;       /* as seen last */
    struct known_writer writer;      /* as seen with them */
    bool is_whole;                   /* of `bounds` */
    const unsigned char *page;       /* of the ring, mapped, that begins at page_offset in the file; NULL if none is */
    uint64_t page_offset;
    uint64_t waited_at;              /* the position of the last sleep */
    struct window window;            /* of records from `at` on, in `near` or in `far` */
    uint64_t lap_seq;                /* the number in the header at the ring's start, if a record of the window may be there */
    unsigned char *far, near[WATCH_NEAR];
};

/* NOTHING: the page shows what it has shown before. OTHER: something that Python has to look at. */
enum sight { NEWS, NOTHING, OTHER };

/* What the page shows now. After NEWS the window has the records. */
enum sight watch_look(struct watch *watch);

/* Sleeps after NOTHING until the page shows something else, at most for this long; it looks after `pause` seconds at first, and then after
 * twice as long each time, as a wake-up may be missed. An errno of futex(2) in `*error`, 0 if it was woken. */
enum sight watch_wait(struct watch *watch, double pause, double seconds, int *error);

/* Unmaps what was mapped for a wait. */
void watch_unmap(struct watch *watch);

#endif
