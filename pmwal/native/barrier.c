/* Barriers and commit slots.
 *
 * Invariants
 * - At most one msync(2) is under way, because its caller holds `guard`; so no other can consume its error.
 * - Without a seam nothing here calls Python, so the interpreter may be released around it.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "barrier.h"

#include "outside.h"

#include "crc32c.h"
#include "fault.h"

static int sync_pages(Core *core, uint64_t first, uint64_t end)
{
    PMWAL_CHECK((first | end) % PMWAL_PAGE == 0 && first < end && end <= page_end(core->size));
    while (msync(core->base + first, end - first, MS_SYNC))
        if (errno != EINTR)
            return errno;
    return 0;
}

/* Through the seam. 0, or -1 with an exception set. */
static int barrier_recorded(Core *core, const struct range *ranges, size_t count)
{
    if (core->barrier == BARRIER_LINES)
        return call_seam(core, "fence", "()");
    for (size_t i = 0; i < count && core->barrier == BARRIER_MSYNC; i++) {
        uint64_t first = page_start(ranges[i].offset), end = page_end(ranges[i].offset + ranges[i].length);
        while (call_seam(core, "flush", "(OKK)", core->mapping, (unsigned long long)first, (unsigned long long)(end - first))) {
            if (!PyErr_ExceptionMatches(PyExc_InterruptedError))
                return -1;
            PyErr_Clear();
        }
    }
    return 0;
}

int barrier_over(Core *core, const struct range *ranges, size_t count)
{
    if (core->seam)
        return barrier_recorded(core, ranges, count);
    int status = check_size(core); /* bytes cut off a shortened file must not count as durable */
    order_stores(core);
    for (size_t i = 0; i < count && !status && core->barrier == BARRIER_MSYNC; i++)
        status = sync_pages(core, page_start(ranges[i].offset), page_end(ranges[i].offset + ranges[i].length));
    return status;
}

size_t ranges_between(const Core *core, uint64_t start, uint64_t end, struct range ranges[2])
{
    uint64_t capacity = core->geometry.capacity, first = start % capacity, length = end - start;
    PMWAL_CHECK(start <= end && length <= capacity);
    if (start == end)
        return 0;
    if (first + length <= capacity) {
        ranges[0] = (struct range){core->ring_offset + first, length};
        return 1;
    }
    ranges[0] = (struct range){core->ring_offset + first, capacity - first};
    ranges[1] = (struct range){core->ring_offset, first + length - capacity};
    return 2;
}

uint64_t build_slot(const Core *core, union commit_slot *slot, const struct log_state *state, struct bound durable,
                    uint32_t flags)
{
    PMWAL_CHECK(core->generation < PMWAL_GENERATION_MAX);
    PMWAL_CHECK(state->tail.position <= durable.position && state->tail.seq <= durable.seq);
    PMWAL_CHECK(state->epoch >= core->state.epoch && state->epoch <= UINT32_MAX);
    /* After an interrupt between the two slots of a change, the state is written again: a stray slot may be ahead of it. */
    PMWAL_CHECK(durable.position >= core->pointer || state->epoch > core->state.epoch || core->stray_slot);
    uint64_t generation = core->generation + 1;
    uint64_t index = generation % core->control_pages * PMWAL_SLOTS_PER_PAGE +
                     generation / core->control_pages % PMWAL_SLOTS_PER_PAGE;
    slot->words[0] = state->epoch << 32;
    slot->words[1] = generation;
    slot->words[2] = state->epoch_first_seq;
    slot->words[3] = durable.position;
    slot->words[4] = durable.seq - 1;
    slot->words[5] = state->tail.position;
    slot->words[6] = state->tail.seq;
    slot->words[7] = flags | (core->pipelined ? (uint32_t)PMWAL_SLOT_PIPELINED : 0);
    slot->words[0] |= crc32c_words(core->geometry.uuid_crc, index, slot->words, 8);
    PMWAL_CHECK(slot->slot.generation == core->generation + 1 && index < core->control_pages * PMWAL_SLOTS_PER_PAGE);
    PMWAL_CHECK(slot->slot.epoch == state->epoch && slot->slot.epoch_first_seq == state->epoch_first_seq);
    PMWAL_CHECK(slot->slot.commit_position == durable.position && slot->slot.commit_seq + 1 == durable.seq);
    PMWAL_CHECK(slot->slot.tail_position == state->tail.position && slot->slot.tail_seq == state->tail.seq);
    return PMWAL_CONTROL_OFFSET + index * sizeof *slot;
}

void slot_body(void *context)
{
    const struct slot_store *store = context;
    unsigned char *to = store->core->base + store->offset;
    if (store->core->barrier == BARRIER_MSYNC)
        map_pages(to, sizeof *store->slot);
    if (store->streams) {
        stream_words(to, store->slot->words, sizeof store->slot->words / 8);
        return;
    }
    for (size_t i = 0; i < sizeof store->slot->words / 8; i++)
        memcpy(to + 8 * i, &store->slot->words[i], 8);
    if (store->core->barrier == BARRIER_LINES)
        write_back(to, sizeof *store->slot);
}

int persist_slot(Core *core, const union commit_slot *slot, uint64_t offset)
{
    struct range range = {offset, sizeof *slot};
    if (core->seam) {
        if (put_slot(core, offset, slot))
            return -1;
    } else {
        struct slot_store store = {core, offset, slot, core->streams};
        if (!fault_run(core->base, core->size, slot_body, &store))
            return EIO;
    }
    return barrier_over(core, &range, 1);
}

int settle_flush(Core *core, int status)
{
    PMWAL_CHECK((status < 0) == (PyErr_Occurred() != NULL));
    if (status > 0)
        return raise_disk(core, status);
    if (status < 0 && PyErr_ExceptionMatches(PyExc_OSError)) {
        core->failed = EIO; /* the real errno is in the exception */
        core->halted = true;
    }
    return status;
}
