/* Futexes on words of the live page: see futex(2). */
#include "futex.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <math.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

void futex_wake(const void *word)
{
    PMWAL_CHECK((uintptr_t)word % 4 == 0);
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

int futex_wait(const void *word, uint32_t expected, double seconds)
{
    struct timespec limit = {.tv_sec = (time_t)seconds, .tv_nsec = (long)(fmod(seconds, 1.0) * 1e9)};
    return syscall(SYS_futex, word, FUTEX_WAIT, expected, &limit, NULL, 0) ? errno : 0;
}

/* The word at this offset; NULL with an exception set if it is outside the buffer or not aligned. */
static const void *word_of(const Py_buffer *buffer, unsigned long long offset)
{
    const char *word = (const char *)buffer->buf + offset;
    if (buffer->len >= 4 && offset <= (unsigned long long)buffer->len - 4 && (uintptr_t)word % 4 == 0)
        return word;
    PyErr_SetString(PyExc_ValueError, "outside the mapping");
    return NULL;
}

PyObject *futex_wait_method(PyObject *module, PyObject *args)
{
    Py_buffer buffer;
    unsigned long long offset;
    unsigned int expected;
    double seconds;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*KId:futex_wait", &buffer, &offset, &expected, &seconds))
        return NULL;
    const void *word = word_of(&buffer, offset);
    int error = 0;
    if (word) {
        Py_BEGIN_ALLOW_THREADS
        error = futex_wait(word, expected, seconds);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&buffer);
    if (!word || (error == EINTR && PyErr_CheckSignals()))
        return NULL;
    if (error && error != EINTR && error != EAGAIN && error != ETIMEDOUT) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

PyObject *futex_wake_method(PyObject *module, PyObject *args)
{
    Py_buffer buffer;
    unsigned long long offset;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*K:futex_wake", &buffer, &offset))
        return NULL;
    const void *word = word_of(&buffer, offset);
    if (word)
        futex_wake(word);
    PyBuffer_Release(&buffer);
    if (!word)
        return NULL;
    Py_RETURN_NONE;
}
