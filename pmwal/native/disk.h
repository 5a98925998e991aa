/* Storing batches by write(2), into the page cache of a disk, and which pages are there. */
#ifndef PMWAL_DISK_H
#define PMWAL_DISK_H

#include "store.h"

#define LARGE_STORE (32 * 1024)   /* a batch from here on goes into the page cache by write(2), which takes no fault for each page */
#define SYNCED_MAX (1024 * 1024)  /* the longest that is stored and made durable by one call */
#define PIECE (256 * 1024)        /* bytes of a longer one on which the disk starts while the next are built */

/* Requests read-ahead of the pages that the writer reaches next, as single ones: a cold page costs a read before its first store. */
void prefetch(Core *core);

/* Provides memory to build this many bytes in. False when there is none. */
bool make_stage(Core *core, uint64_t size);

/* Stores a batch by pwrite(2), in pieces that are contiguous in the ring. There is a stage of PIECE bytes. 0; an errno, which is
 * final; -1 when the kernel refuses such writes. */
int store_written(const struct batch *batch);

/* Stores a batch that is contiguous in the ring, and waits until it is on the disk, in one pwritev2(2). There is a stage for it. 0; an errno, which is final; -1 when the call was refused, with nothing stored; -2 when it was cut short. */
int store_synced(const struct batch *batch);

/* Pages that are about to take stores. */
struct readying {
    unsigned char *base;
    size_t size;
    struct pages pages, wrapped; /* up to the ring's end, and from its start */
    int64_t tick;
};

/* Whether pages for a batch of `size` bytes at the head, whose first record takes `first`, took a store a moment ago. The first store
 * into a page that was written back waits for the disk; and a file system that is frozen lets it wait until it is thawed. */
bool pages_are_ready(const Core *core, uint64_t first, uint64_t size, struct readying *readying);

/* Waits until they take stores. It needs no lock, only the mapping. */
void ready_pages(struct readying *readying);

#endif
