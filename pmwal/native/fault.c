#define _GNU_SOURCE
#include "fault.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "check.h"

/* No signal mask is saved, and the compiler's builtins save few registers: a guard is entered at every append. */
#if defined(__x86_64__) || !defined(__clang__)
typedef void *jump[5];
#define SET_JUMP(jump) __builtin_setjmp(jump)
#define JUMP(jump) __builtin_longjmp(jump, 1)
#else
#include <setjmp.h>
typedef jmp_buf jump;
#define SET_JUMP(jump) _setjmp(jump)
#define JUMP(jump) longjmp(jump, 1)
#endif

struct guard {
    jump back;
    uintptr_t start, end;
};

static __thread struct guard *volatile active __attribute__((tls_model("initial-exec")));

/* Inside the previous handler, which may pass the fault back. */
static __thread bool passing __attribute__((tls_model("initial-exec")));

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction previous;

/* A handler installed over this one may pass a fault on by raise(3), as faulthandler does. Inside a guard nothing else does. */
static bool from_this_thread(const siginfo_t *info)
{
    return info->si_code == SI_TKILL && info->si_pid == getpid();
}

static void handle(int number, siginfo_t *info, void *context)
{
    struct guard *guard = active;
    uintptr_t address = (uintptr_t)info->si_addr;
    bool sent = info->si_code <= 0; /* by kill(2) or raise(3), not by an access */
    if (guard && (sent ? from_this_thread(info) : address >= guard->start && address < guard->end))
        JUMP(guard->back); /* SA_NODEFER: the signal is not blocked, so there is no mask to restore */
    bool is_function = previous.sa_flags & SA_SIGINFO || (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN);
    if (is_function && !passing) {
        passing = true;
        if (previous.sa_flags & SA_SIGINFO)
            previous.sa_sigaction(number, info, context);
        else
            previous.sa_handler(number);
        passing = false;
    } else if (is_function || previous.sa_handler == SIG_DFL || !sent) {
        signal(number, SIG_DFL); /* the access faults again, as if this handler had never been installed */
        if (sent)
            raise(number);
    }
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
    struct guard guard; /* field by field: an initializer would zero the whole of `back` at every store */
    guard.start = (uintptr_t)base;
    guard.end = (uintptr_t)base + size;
    PMWAL_CHECK(!active);
    bool whole = SET_JUMP(guard.back) == 0;
    if (whole) {
        active = &guard;
        body(context);
    }
    active = NULL;
    return whole;
}

#ifdef PMWAL_CHECKS
bool fault_inside(void)
{
    return active;
}
#endif

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
