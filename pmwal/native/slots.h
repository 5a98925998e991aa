/* The control region: which slots are whole, and which of them a judgement has to look at. Plain C: no Python, no I/O. */
#ifndef PMWAL_SLOTS_H
#define PMWAL_SLOTS_H

#include "ring.h"

/* Whether a slot with these fields can lie at this index of `turn` slots. It verifies no checksum. The rules are those of
 * pmwal/format/control.py, which also has the words for each. */
bool slot_possible(const struct geometry *g, const struct slot *slot, uint64_t index, uint64_t turn);

/* Sets whole[i] to whether slot i has the checksum of its index, and telling[i] to other than 0 if it is to be looked at. All others
 * are whole and possible, have the generation that is due at their index, and name the same epoch as the slot of the next
 * generation does; or they are not used yet, like another one that is to be looked at. `turn`: the number of slots, full pages. */
void read_slots(const struct geometry *g, const unsigned char *region, uint64_t turn, unsigned char *whole, unsigned char *telling);

#endif
