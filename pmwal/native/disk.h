/* Storing batches by write(2), into the page cache of a disk. */
#ifndef PMWAL_DISK_H
#define PMWAL_DISK_H

#include "store.h"

/* Requests read-ahead of the pages that the writer reaches next: a cold page costs a read before its first store. */
void prefetch(Core *core);

/* Stores a batch of `total` bytes by pwrite(2), in pieces that are contiguous in the ring. 0; -1 with an exception set; 1 when the
 * kernel refuses such writes. */
int store_written(struct batch *batch, uint64_t total);

/* Stores the only record of a batch and waits until it is on the disk, in one pwritev2(2). `staged` has room for the record. 0; an
 * errno, which is final; -1 when the call was refused, with nothing stored; -2 when it was cut short. */
int store_synced(struct batch *batch, unsigned char *staged);

#endif
