/* How a Core reaches what is around it: errors, the clock, the file, a test's seam. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "outside.h"

#include "fault.h"

int seam_ns(Core *core, const char *method, int64_t *time_ns)
{
    PyObject *answer = PyObject_CallMethod(core->seam, method, NULL);
    if (!answer)
        return -1;
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(answer, &overflow);
    Py_DECREF(answer);
    if (value == -1 && !overflow && PyErr_Occurred())
        return -1;
    *time_ns = overflow > 0 ? INT64_MAX : overflow < 0 ? INT64_MIN : value;
    return 0;
}

int raise_errno(int number)
{
    errno = number;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

int raise_final(Core *core, int number)
{
    PMWAL_CHECK(number > 0);
    core->failed = number;
    core->halted = true;
    return raise_errno(number);
}

int raise_fault(Core *core)
{
    core->failed = EIO;
    core->halted = true;
    raise_unreadable();
    return -1;
}

int raise_disk(Core *core, int number)
{
    return check_size(core) == EIO ? raise_fault(core) : raise_final(core, number);
}

int raise_closed(void)
{
    PyErr_SetString(PyExc_ValueError, "the mapping is closed");
    return -1;
}

/* A mapping past the end of a shortened file faults outside of any guard, and msync(2) does not report it. Why by lseek(2): see
 * pmwal/storage/mapping.py. */
int check_size(Core *core)
{
    off_t size = lseek(core->fd, 0, SEEK_END);
    return size < 0 ? errno : (uint64_t)size < core->size ? EIO : 0;
}

int call_seam(Core *core, const char *method, const char *format, ...)
{
    va_list arguments;
    PMWAL_CHECK(!PyErr_Occurred());
    if (check_size(core))
        return raise_fault(core);
    va_start(arguments, format);
    PyObject *callable = PyObject_GetAttrString(core->seam, method), *values = NULL, *answer = NULL;
    if (callable)
        values = Py_VaBuildValue(format, arguments);
    va_end(arguments);
    if (values)
        answer = PyObject_CallObject(callable, values);
    Py_XDECREF(callable);
    Py_XDECREF(values);
    if (!answer)
        return -1;
    Py_DECREF(answer);
    return 0;
}

int put(Core *core, uint64_t offset, const void *data, size_t length)
{
    PMWAL_CHECK(offset >= PMWAL_LIVE_OFFSET && offset + length <= PMWAL_CONTROL_OFFSET + core->control_pages * PMWAL_PAGE);
    if (core->seam)
        return call_seam(core, "store", "(OKy#)", core->mapping, (unsigned long long)offset, data, (Py_ssize_t)length);
    return fault_copy(core->base, core->size, core->base + offset, data, length) ? 0 : raise_fault(core);
}

int put_slot(Core *core, uint64_t offset, const union commit_slot *slot)
{
    unsigned long long at = offset, length = sizeof *slot;
    if (core->streams)
        return call_seam(core, "stream", "(OKy#)", core->mapping, at, (const char *)slot, (Py_ssize_t)length);
    if (put(core, offset, slot, length))
        return -1;
    return core->barrier == BARRIER_LINES ? call_seam(core, "write_back", "(OKK)", core->mapping, at, length) : 0;
}
