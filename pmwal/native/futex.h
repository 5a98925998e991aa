/* Waiting, across processes, until a word of the live page changes. */
#ifndef PMWAL_FUTEX_H
#define PMWAL_FUTEX_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Wakes every thread, in any process, that waits for this word of a shared mapping. */
void futex_wake(const void *word);

/* Waits while the word of a shared mapping has this value, at most this long, without the interpreter. 0 when it was woken, else an
 * errno: EAGAIN if the word has another value. */
int futex_wait(const void *word, uint32_t expected, double seconds);

/* futex_wait(buffer, offset, expected, seconds): returns when the word may have changed, or after that time. */
PyObject *futex_wait_method(PyObject *module, PyObject *args);

/* futex_wake(buffer, offset) */
PyObject *futex_wake_method(PyObject *module, PyObject *args);

#endif
