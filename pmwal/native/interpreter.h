/* Letting other threads run Python while the disk works, or while many bytes are copied. */
#ifndef PMWAL_INTERPRETER_H
#define PMWAL_INTERPRETER_H

#include "core.h"

/* A time without the interpreter, or one in which it was held after all. */
struct absence {
    PyThreadState *thread; /* NULL while it is held */
    int64_t begun_ns, done_ns;
};

/* Before a barrier, which may keep the interpreter: see interpreter.c. */
void leave_for_barrier(Core *core, struct absence *absence);

/* Before other work, for which it is always released. */
void leave(struct absence *absence);

/* After either. */
void come_back(Core *core, struct absence *absence);

/* For work that needs the mapping and holds no lock: it is not unmapped before let_mapping_go(), even if the log is closed. False with
 * an exception set. */
bool keep_mapping(const Core *core, Py_buffer *kept);
void let_mapping_go(Py_buffer *kept);

/* Takes `writing` and `guard` for this thread, or neither: false when another thread holds one of them or waits for it. */
bool take_both(Core *core);
void release_both(Core *core);

#endif
