/* The extension module: its types, and what it keeps for each interpreter. */
#ifndef PMWAL_MODULE_H
#define PMWAL_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <structmember.h>

#define HELD_MAX (64 * 1024) /* bytes that are copied and summed while the interpreter is held */

/* One for each interpreter. */
struct module_state {
    PyTypeObject *lock_type, *core_type, *handle_type, *record_type, *iterator_type, *scanner_type, *search_type, *retained_type,
        *emitter_type, *index_type, *mark_type, *follower_type;
    PyObject *name_kind, *name_commit;
};

extern struct PyModuleDef pmwal_module;

static inline struct module_state *state_of(PyTypeObject *type)
{
    return PyModule_GetState(PyType_GetModuleByDef(type, &pmwal_module));
}

/* Forks between the first process and this one. An object that noted another number belongs to the parent. */
extern volatile unsigned long fork_count;

/* Sets the OSError for an access to a mapping that faulted: EIO. */
void raise_unreadable(void);

extern PyType_Spec lock_spec, core_spec, handle_spec, record_spec, iterator_spec, scanner_spec, search_spec, retained_spec,
    emitter_spec, index_spec, mark_spec, follower_spec;

#endif
