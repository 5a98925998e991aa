/* Waiting for a word of the live page to change, across processes. */
#ifndef PMWAL_FUTEX_H
#define PMWAL_FUTEX_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Wakes every thread, of whatever process, that waits for this word of a shared mapping. A wrong address does nothing. */
void futex_wake(const void *word);

/* futex_wait(buffer, offset, expected, seconds): return when the word may be another, or after that time. */
PyObject *futex_wait_method(PyObject *module, PyObject *args);

/* futex_wake(buffer, offset) */
PyObject *futex_wake_method(PyObject *module, PyObject *args);

#endif
