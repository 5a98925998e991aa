#define _GNU_SOURCE
#include "fault.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>

struct guard {
    sigjmp_buf back;
    uintptr_t start, end;
    struct guard *outer;
};

static __thread struct guard *volatile active __attribute__((tls_model("initial-exec")));

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction previous;

static void handle(int number, siginfo_t *info, void *context)
{
    struct guard *guard = active;
    uintptr_t address = (uintptr_t)info->si_addr;
    if (guard && address >= guard->start && address < guard->end)
        siglongjmp(guard->back, 1); /* SA_NODEFER: the signal is not blocked, so there is no mask to restore */
    if (previous.sa_flags & SA_SIGINFO)
        previous.sa_sigaction(number, info, context);
    else if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN)
        sigaction(number, &previous, NULL); /* the access faults again, now as if this handler had never been */
    else
        previous.sa_handler(number);
}

int fault_setup(void)
{
    struct sigaction now, ours = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    int status = 0;
    sigemptyset(&ours.sa_mask);
    pthread_mutex_lock(&mutex);
    if (sigaction(SIGBUS, NULL, &now))
        status = errno;
    else if (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != handle) {
        previous = now;
        if (sigaction(SIGBUS, &ours, NULL))
            status = errno;
    }
    pthread_mutex_unlock(&mutex);
    return status;
}

bool fault_run(const void *base, size_t size, void (*body)(void *context), void *context)
{
    struct guard guard = {.start = (uintptr_t)base, .end = (uintptr_t)base + size, .outer = active};
    bool whole = sigsetjmp(guard.back, 0) == 0;
    if (whole) {
        active = &guard;
        body(context);
    }
    active = guard.outer;
    return whole;
}

struct copy {
    void *to;
    const void *from;
    size_t length;
};

static void copy_body(void *context)
{
    const struct copy *copy = context;
    memcpy(copy->to, copy->from, copy->length);
}

bool fault_copy(const void *base, size_t size, void *to, const void *from, size_t length)
{
    struct copy copy = {to, from, length};
    return fault_run(base, size, copy_body, &copy);
}
