/* Seek points: see pmwal/storage/seek_points.py, which has the rules and their reasons. */
#ifndef PMWAL_SEEK_POINTS_H
#define PMWAL_SEEK_POINTS_H

#include "store.h"

/* Whether some record of a stored batch, which ends at `end`, is to have a seek point. */
static inline bool seek_point_is_due(const Core *core, struct place end)
{
    return end.position >= core->seek_next;
}

/* Stores the seek points of a stored batch, before the head moves past it. A fault is left to the next store of the bounds, which
 * are on the same page. With a seam it may set an exception. */
void note_seek_points(const struct batch *batch);

#endif
