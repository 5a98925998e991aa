/* The reentrant lock of an engine.
 *
 * threading.RLock would do, but the fields of this one tell C code that holds the interpreter, within a nanosecond, that nobody is
 * inside. threading.Condition works on it through _release_save, _acquire_restore and _is_owned.
 */
#include "lock.h"

#include "check.h"

bool lock_try(Lock *lock)
{
    if (lock->count || PyThread_acquire_lock(lock->block, NOWAIT_LOCK) != PY_LOCK_ACQUIRED)
        return false;
    lock->owner = PyThread_get_thread_ident();
    lock->count = 1;
    return true;
}

void lock_release(Lock *lock)
{
    PMWAL_CHECK(lock_is_mine(lock));
    if (--lock->count == 0) {
        lock->owner = 0;
        PyThread_release_lock(lock->block);
    }
}

/* Waits for the lock and takes it once; false with an exception set if a signal handler raised. */
static bool lock_wait(Lock *lock)
{
    PyLockStatus status = PyThread_acquire_lock_timed(lock->block, 0, 0);
    while (status != PY_LOCK_ACQUIRED) {
        lock->waiters++;
        Py_BEGIN_ALLOW_THREADS
        status = PyThread_acquire_lock_timed(lock->block, -1, 1);
        Py_END_ALLOW_THREADS
        PMWAL_CHECK(lock->waiters > 0);
        lock->waiters--;
        if (status == PY_LOCK_INTR && Py_MakePendingCalls() < 0)
            return false;
    }
    PMWAL_CHECK(lock->count == 0);
    lock->owner = PyThread_get_thread_ident();
    lock->count = 1;
    return true;
}

static PyObject *lock_acquire(Lock *lock, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"blocking", NULL};
    int blocking = 1;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|p:acquire", names, &blocking))
        return NULL;
    if (lock_is_mine(lock)) {
        lock->count++;
        Py_RETURN_TRUE;
    }
    if (!blocking)
        return PyBool_FromLong(lock_try(lock));
    if (!lock_wait(lock))
        return NULL;
    Py_RETURN_TRUE;
}

static PyObject *lock_release_method(Lock *lock, PyObject *Py_UNUSED(ignored))
{
    if (!lock_is_mine(lock)) {
        PyErr_SetString(PyExc_RuntimeError, "cannot release a lock that this thread does not hold");
        return NULL;
    }
    lock_release(lock);
    Py_RETURN_NONE;
}

static PyObject *lock_enter(Lock *lock, PyObject *Py_UNUSED(ignored))
{
    if (lock_is_mine(lock))
        lock->count++;
    else if (!lock_wait(lock))
        return NULL;
    Py_RETURN_TRUE;
}

static PyObject *lock_exit(Lock *lock, PyObject *Py_UNUSED(args))
{
    return lock_release_method(lock, NULL);
}

static PyObject *lock_is_owned(Lock *lock, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(lock_is_mine(lock));
}

/* For threading.Condition: releases it entirely; the count to restore. */
static PyObject *lock_release_save(Lock *lock, PyObject *Py_UNUSED(ignored))
{
    if (!lock_is_mine(lock)) {
        PyErr_SetString(PyExc_RuntimeError, "cannot release a lock that this thread does not hold");
        return NULL;
    }
    PyObject *count = PyLong_FromUnsignedLong(lock->count);
    if (count) {
        lock->count = 1;
        lock_release(lock);
    }
    return count;
}

static PyObject *lock_acquire_restore(Lock *lock, PyObject *saved)
{
    unsigned long count = PyLong_AsUnsignedLong(saved);
    if (PyErr_Occurred())
        return NULL;
    /* A condition must hold its lock when it returns, so what a signal handler raises is raised once the lock is held. */
    PyObject *type = NULL, *value = NULL, *trace = NULL;
    while (!lock_wait(lock)) {
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(trace);
        PyErr_Fetch(&type, &value, &trace);
    }
    lock->count = count;
    if (type) {
        PyErr_Restore(type, value, trace);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *lock_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, keywords, ":Lock", names))
        return NULL;
    Lock *lock = (Lock *)type->tp_alloc(type, 0);
    if (!lock)
        return NULL;
    lock->block = PyThread_allocate_lock();
    if (!lock->block) {
        Py_DECREF(lock);
        return PyErr_NoMemory();
    }
    return (PyObject *)lock;
}

static void lock_dealloc(Lock *lock)
{
    PyTypeObject *type = Py_TYPE(lock);
    if (lock->block) {
        if (lock->count)
            PyThread_release_lock(lock->block);
        PyThread_free_lock(lock->block);
    }
    type->tp_free(lock);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"acquire", (PyCFunction)(void (*)(void))lock_acquire, METH_VARARGS | METH_KEYWORDS, NULL},
    {"release", (PyCFunction)lock_release_method, METH_NOARGS, NULL},
    {"__enter__", (PyCFunction)lock_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)lock_exit, METH_VARARGS, NULL},
    {"_is_owned", (PyCFunction)lock_is_owned, METH_NOARGS, NULL},
    {"_release_save", (PyCFunction)lock_release_save, METH_NOARGS, NULL},
    {"_acquire_restore", (PyCFunction)lock_acquire_restore, METH_O, NULL},
    {0},
};

static PyMemberDef members[] = {
    {"waiters", T_ULONG, offsetof(Lock, waiters), READONLY, "Threads that wait for it."},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "A reentrant lock that the C engine can look at; otherwise like threading.RLock."},
    {Py_tp_new, lock_new},
    {Py_tp_dealloc, lock_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_members, members},
    {0},
};

PyType_Spec lock_spec = {"pmwal.native._native.Lock", sizeof(Lock), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, slots};
