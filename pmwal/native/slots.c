#include "slots.h"

#include <string.h>

#include "crc32c.h"

#define CRC_SIZE sizeof(((struct slot *)0)->crc)

enum { TELLS_NOTHING, TELLS_EPOCH, TELLS_FAULT };

static struct slot slot_at(const unsigned char *region, uint64_t index)
{
    struct slot slot;
    memcpy(&slot, region + index * sizeof slot, sizeof slot);
    return slot;
}

/* The generation of the first turn that is stored at this index. */
static uint64_t first_generation(uint64_t index, uint64_t pages)
{
    return index % PMWAL_SLOTS_PER_PAGE * pages + index / PMWAL_SLOTS_PER_PAGE;
}

/* The index of a generation. */
static uint64_t index_of(uint64_t generation, uint64_t pages)
{
    return generation % pages * PMWAL_SLOTS_PER_PAGE + generation / pages % PMWAL_SLOTS_PER_PAGE;
}

bool slot_possible(const struct geometry *g, const struct slot *slot, uint64_t index, uint64_t turn)
{
    uint64_t used = slot->commit_position - slot->tail_position; /* only if it is not negative */
    if (slot->generation > PMWAL_GENERATION_MAX || slot->epoch > PMWAL_EPOCH_MAX || slot->commit_seq > PMWAL_SEQ_MAX ||
        slot->flags & ~PMWAL_SLOT_FLAGS || (slot->epoch == 0) != (slot->generation == 0))
        return false;
    if (slot->commit_position > PMWAL_POSITION_MAX || slot->commit_position % g->alignment ||
        slot->tail_position > slot->commit_position || slot->tail_position % g->alignment || used > g->capacity)
        return false;
    if (slot->tail_seq < 1 || slot->tail_seq > slot->commit_seq + 1 || slot->epoch_first_seq < 1 ||
        slot->epoch_first_seq > slot->commit_seq + 1)
        return false;
    uint64_t records = slot->commit_seq + 1 - slot->tail_seq;
    if ((records == 0) != (used == 0) || records > used / record_size(g, 0))
        return false;
    return !slot->generation || slot->generation % turn == first_generation(index, turn / PMWAL_SLOTS_PER_PAGE);
}

/* The generation that is due at this index when `newest` is the newest one; 0 if the index is not used yet. */
static uint64_t due_at(uint64_t index, uint64_t newest, uint64_t turn)
{
    uint64_t first = first_generation(index, turn / PMWAL_SLOTS_PER_PAGE);
    return newest < first ? 0 : newest - (newest - first) % turn;
}

void read_slots(const struct geometry *g, const unsigned char *region, uint64_t turn, unsigned char *whole, unsigned char *telling)
{
    uint64_t newest = 0, unused = turn;
    for (uint64_t i = 0; i < turn; i++) {
        struct slot slot = slot_at(region, i);
        uint32_t crc = crc32c(seed_crc(g->uuid_crc, i), region + i * sizeof slot + CRC_SIZE, sizeof slot - CRC_SIZE);
        whole[i] = crc == slot.crc;
        if (whole[i] && slot.tail_seq && !slot.reserved && slot.generation > newest)
            newest = slot.generation;
    }
    for (uint64_t i = 0; i < turn; i++) {
        struct slot slot = slot_at(region, i);
        bool sound = whole[i] && !slot.reserved && slot_possible(g, &slot, i, turn) && slot.generation == due_at(i, newest, turn);
        telling[i] = sound ? TELLS_NOTHING : TELLS_FAULT;
    }
    for (uint64_t i = 0; i < turn; i++) {
        struct slot slot = slot_at(region, i), other;
        if (telling[i] == TELLS_FAULT)
            continue;
        uint64_t like = slot.generation ? index_of(slot.generation + 1, turn / PMWAL_SLOTS_PER_PAGE) : unused;
        if (!slot.generation && unused == turn)
            unused = i;
        if (unused == i || (slot.generation && slot.generation == newest)) {
            telling[i] = TELLS_EPOCH;
            continue;
        }
        other = slot_at(region, like);
        if (telling[like] == TELLS_FAULT || slot.epoch != other.epoch || slot.epoch_first_seq != other.epoch_first_seq)
            telling[i] = TELLS_EPOCH;
    }
}
