/* The on-media format, version 1. Made by tools/make_format_header.py from pmwal/format/layout.py; do not edit. */
#ifndef PMWAL_FORMAT_H
#define PMWAL_FORMAT_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

#define PMWAL_PAGE UINT64_C(4096)
#define PMWAL_LINE UINT64_C(64)
#define PMWAL_HEADER UINT64_C(48)
#define PMWAL_LIVE_OFFSET UINT64_C(4096)
#define PMWAL_LIVE_WRITER_OFFSET UINT64_C(4160)
#define PMWAL_LIVE_FOLLOWERS_OFFSET UINT64_C(4224)
#define PMWAL_LIVE_LATENCY_OFFSET UINT64_C(4288)
#define PMWAL_LIVE_SECOND_OFFSET UINT64_C(5440)
#define PMWAL_LIVE_OPEN_OFFSET UINT64_C(5504)
#define PMWAL_LIVE_SEEK_OFFSET UINT64_C(5568)
#define PMWAL_SEEK_POINTS UINT64_C(109)
#define PMWAL_SEEK_STEP_MIN UINT64_C(4096)
#define PMWAL_CONTROL_OFFSET UINT64_C(8192)
#define PMWAL_SLOTS_PER_PAGE UINT64_C(64)
#define PMWAL_SLOT_FLAGS UINT64_C(3)
#define PMWAL_SLOT_PIPELINED UINT64_C(2)
#define PMWAL_POINTER_LAG_MAX UINT64_C(1048576)
#define PMWAL_SEQ_MAX UINT64_C(18446744073709551614)
#define PMWAL_LARGE_RECORD UINT64_C(67108864)
#define PMWAL_POSITION_MAX UINT64_C(9223372036854775807)
#define PMWAL_EPOCH_MAX UINT64_C(4294967294)
#define PMWAL_GENERATION_MAX UINT64_C(18446744073709551614)
#define PMWAL_KIND_MAX UINT64_C(65535)
#define PMWAL_LENGTH_MAX UINT64_C(4294967295)
#define PMWAL_ALIGN_MAX UINT64_C(4096)
#define PMWAL_INDEX_STEP UINT64_C(32768)
#define PMWAL_FRAME_ENTRY UINT64_C(14)
#define PMWAL_FRAME_KIND_OFFSET UINT64_C(4)
#define PMWAL_FRAME_TIME_OFFSET UINT64_C(6)
#define PMWAL_LATENCY_NS_MAX UINT64_C(137438953471)
#define PMWAL_LATENCY_HALF UINT64_C(128)
#define PMWAL_LATENCY_COUNTERS UINT64_C(3968)
#define PMWAL_LIVE_LATENCY_HALF UINT64_C(8)
#define PMWAL_LIVE_LATENCY_COUNTERS UINT64_C(280)

/* commit slot */
struct slot {
    uint32_t crc; /* CRC32C over (uuid, slot index) and all bytes after this field */
    uint32_t epoch; /* the epoch of the records from epoch_first_seq on */
    uint64_t generation; /* +1 for each slot; the valid slot with the highest one has the commit pointer */
    uint64_t epoch_first_seq; /* the first sequence number of that epoch */
    uint64_t commit_position; /* every record before it is durable */
    uint64_t commit_seq; /* number of the last record before commit_position */
    uint64_t tail_position; /* where the oldest kept record starts; equal to commit_position when empty */
    uint64_t tail_seq; /* its number; commit_seq + 1 when empty */
    uint32_t flags; /* 1: clean close, 2: pipelined */
    uint32_t reserved; /* zero */
};

static_assert(offsetof(struct slot, crc) == 0, "slot.crc");
static_assert(offsetof(struct slot, epoch) == 4, "slot.epoch");
static_assert(offsetof(struct slot, generation) == 8, "slot.generation");
static_assert(offsetof(struct slot, epoch_first_seq) == 16, "slot.epoch_first_seq");
static_assert(offsetof(struct slot, commit_position) == 24, "slot.commit_position");
static_assert(offsetof(struct slot, commit_seq) == 32, "slot.commit_seq");
static_assert(offsetof(struct slot, tail_position) == 40, "slot.tail_position");
static_assert(offsetof(struct slot, tail_seq) == 48, "slot.tail_seq");
static_assert(offsetof(struct slot, flags) == 56, "slot.flags");
static_assert(offsetof(struct slot, reserved) == 60, "slot.reserved");
static_assert(sizeof(struct slot) == 64, "slot");

/* record header */
struct record {
    uint32_t crc; /* CRC32C over (uuid, position), the rest of this header and the payload */
    uint32_t length; /* payload bytes; the record is padded with zeros to the alignment */
    uint64_t seq; /* sequence number, +1 for each record, the first is 1 */
    uint64_t durable; /* the position up to which the log was durable when this was stored */
    int64_t time_ns; /* wall clock, ns since 1970; information only, never used for order */
    uint32_t epoch; /* epoch in which it was stored */
    uint16_t kind; /* the application's */
    uint16_t flags; /* zero */
    uint32_t batch_index; /* index in its batch, from 0 */
    uint32_t batch_count; /* records in its batch, 1 for a record of its own */
};

static_assert(offsetof(struct record, crc) == 0, "record.crc");
static_assert(offsetof(struct record, length) == 4, "record.length");
static_assert(offsetof(struct record, seq) == 8, "record.seq");
static_assert(offsetof(struct record, durable) == 16, "record.durable");
static_assert(offsetof(struct record, time_ns) == 24, "record.time_ns");
static_assert(offsetof(struct record, epoch) == 32, "record.epoch");
static_assert(offsetof(struct record, kind) == 36, "record.kind");
static_assert(offsetof(struct record, flags) == 38, "record.flags");
static_assert(offsetof(struct record, batch_index) == 40, "record.batch_index");
static_assert(offsetof(struct record, batch_count) == 44, "record.batch_count");
static_assert(sizeof(struct record) == 48, "record");

/* live page: bounds */
struct live_bounds {
    uint64_t version_begin; /* equal to version_end when the line is whole */
    uint64_t tail_position; /* where the oldest kept record starts */
    uint64_t tail_seq; /* its number */
    uint64_t durable_position; /* other processes may read up to here */
    uint64_t durable_seq; /* number of the last record before durable_position */
    uint64_t epoch; /* the writer's epoch */
    uint64_t epoch_first_seq; /* the first sequence number of that epoch */
    uint64_t version_end; /* +1 for each store of the line */
};

static_assert(offsetof(struct live_bounds, version_begin) == 0, "live_bounds.version_begin");
static_assert(offsetof(struct live_bounds, tail_position) == 8, "live_bounds.tail_position");
static_assert(offsetof(struct live_bounds, tail_seq) == 16, "live_bounds.tail_seq");
static_assert(offsetof(struct live_bounds, durable_position) == 24, "live_bounds.durable_position");
static_assert(offsetof(struct live_bounds, durable_seq) == 32, "live_bounds.durable_seq");
static_assert(offsetof(struct live_bounds, epoch) == 40, "live_bounds.epoch");
static_assert(offsetof(struct live_bounds, epoch_first_seq) == 48, "live_bounds.epoch_first_seq");
static_assert(offsetof(struct live_bounds, version_end) == 56, "live_bounds.version_end");
static_assert(sizeof(struct live_bounds) == 64, "live_bounds");

/* live page: writer */
struct live_writer {
    uint64_t pid; /* the writer's process id, 0 when there is none */
    uint64_t start_time; /* its start, clock ticks since boot (field 22 of /proc/PID/stat) */
    unsigned char boot_id[16]; /* of /proc/sys/kernel/random/boot_id */
    int64_t heartbeat_ns; /* wall clock of the newest store, or of the open */
    uint64_t published_position; /* stored so far, durable or not */
    uint64_t published_seq; /* number of the last record stored */
    uint64_t inode; /* of the file it writes: a copy of the file has another one */
};

static_assert(offsetof(struct live_writer, pid) == 0, "live_writer.pid");
static_assert(offsetof(struct live_writer, start_time) == 8, "live_writer.start_time");
static_assert(offsetof(struct live_writer, boot_id) == 16, "live_writer.boot_id");
static_assert(offsetof(struct live_writer, heartbeat_ns) == 32, "live_writer.heartbeat_ns");
static_assert(offsetof(struct live_writer, published_position) == 40, "live_writer.published_position");
static_assert(offsetof(struct live_writer, published_seq) == 48, "live_writer.published_seq");
static_assert(offsetof(struct live_writer, inode) == 56, "live_writer.inode");
static_assert(sizeof(struct live_writer) == 64, "live_writer");

/* live page: followers */
struct live_followers {
    uint32_t waiting; /* not 0: readers may be asleep until version_begin changes (futex(2) on its low half) */
};

static_assert(offsetof(struct live_followers, waiting) == 0, "live_followers.waiting");
static_assert(sizeof(struct live_followers) == 4, "live_followers");

/* live page: latency */
struct live_latency {
    uint64_t step; /* one commit in this many is timed, a power of two; 0 when the writer shows no latency */
    uint32_t counters[280]; /* commits timed since the open, by duration; each wraps at 2^32 */
};

static_assert(offsetof(struct live_latency, step) == 0, "live_latency.step");
static_assert(offsetof(struct live_latency, counters) == 8, "live_latency.counters");
static_assert(sizeof(struct live_latency) == 1128, "live_latency");

/* live page: open */
struct live_open {
    unsigned char id[16]; /* random, another one for each open; since 0.2 */
    uint64_t pid; /* as in the writer's line, or this is of an earlier open */
    uint64_t start_time; /* as in the writer's line */
    unsigned char boot_id[16]; /* as in the writer's line */
    uint64_t locked; /* 1: the writer keeps byte 2^62 of the file locked while the log is open; 0: it cannot */
};

static_assert(offsetof(struct live_open, id) == 0, "live_open.id");
static_assert(offsetof(struct live_open, pid) == 16, "live_open.pid");
static_assert(offsetof(struct live_open, start_time) == 24, "live_open.start_time");
static_assert(offsetof(struct live_open, boot_id) == 32, "live_open.boot_id");
static_assert(offsetof(struct live_open, locked) == 48, "live_open.locked");
static_assert(sizeof(struct live_open) == 56, "live_open");

/* live page: seek point */
struct live_seek_point {
    uint32_t crc; /* CRC32C over (uuid, index of the seek point), the id of the open, and all bytes after this field */
    uint32_t reserved; /* zero */
    uint64_t position; /* where a record starts */
    uint64_t seq; /* its number */
};

static_assert(offsetof(struct live_seek_point, crc) == 0, "live_seek_point.crc");
static_assert(offsetof(struct live_seek_point, reserved) == 4, "live_seek_point.reserved");
static_assert(offsetof(struct live_seek_point, position) == 8, "live_seek_point.position");
static_assert(offsetof(struct live_seek_point, seq) == 16, "live_seek_point.seq");
static_assert(sizeof(struct live_seek_point) == 24, "live_seek_point");

#endif
