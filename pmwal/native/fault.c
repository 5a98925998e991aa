#define _GNU_SOURCE
#include "fault.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include "check.h"

/* No signal mask is saved here (the handler finds it in the interrupted context), and the compiler's builtins save few registers: a
 * guard is entered at every append. */
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

/* glibc may allocate other thread-locals at their first use, which in a signal handler could wait for a lock of malloc(3). musl has
 * no space for static ones in a library that is loaded later, and allocates all of them with the thread. */
#ifdef __GLIBC__
#define THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))
#else
#define THREAD_LOCAL __thread
#endif

struct guard {
    jump back;
    uintptr_t start, end;
};

static THREAD_LOCAL struct guard *volatile active;

/* The newest call of an earlier handler by this thread. It may be over: such a handler may jump instead of returning. */
struct call {
    const void *context;
    uintptr_t frame;
    unsigned layer;
};

static THREAD_LOCAL struct call passed;

/* The handlers over which this one was installed, oldest first: each may call the one before it. */
#define LAYERS_MAX 8
static struct sigaction layers[LAYERS_MAX];
static unsigned layer_count;
static bool is_set_up;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static bool is_function(const struct sigaction *action)
{
    return action->sa_flags & SA_SIGINFO || (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN);
}

/* Calls a handler as the kernel would: with the signals blocked that it asked for, and only once if it asked for that. */
static void call(struct sigaction *action, int number, siginfo_t *info, void *context)
{
    struct sigaction called = *action;
    sigset_t before;
    if (!(called.sa_flags & SA_NODEFER))
        sigaddset(&called.sa_mask, number);
    if (called.sa_flags & SA_RESETHAND)
        *action = (struct sigaction){.sa_handler = SIG_DFL};
    pthread_sigmask(SIG_BLOCK, &called.sa_mask, &before);
    if (called.sa_flags & SA_SIGINFO)
        called.sa_sigaction(number, info, context);
    else
        called.sa_handler(number);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

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
    if (guard && (sent ? from_this_thread(info) : address >= guard->start && address < guard->end)) {
        /* The handlers through which the fault came may have had more signals blocked than the code that faulted. */
        pthread_sigmask(SIG_SETMASK, &((ucontext_t *)context)->uc_sigmask, NULL);
        JUMP(guard->back);
    }
    /* An earlier handler that was also installed over this one passes the fault back, by a call or by raise(3): deeper in the stack.
     * After one that jumped away a new fault may have a context at the same address, but then this frame is not deeper. */
    struct call before = passed;
    uintptr_t frame = (uintptr_t)__builtin_frame_address(0);
    bool again = frame < before.frame && (before.context == context || from_this_thread(info));
    unsigned layer = again ? before.layer : __atomic_load_n(&layer_count, __ATOMIC_ACQUIRE);
    struct sigaction *action = layer ? &layers[layer - 1] : NULL;
    if (action && is_function(action)) {
        passed = (struct call){context, frame, layer - 1};
        call(action, number, info, context);
        passed = before;
    } else if (!sent || !action || action->sa_handler == SIG_DFL) {
        signal(number, SIG_DFL); /* the access faults again, as if this handler had never been installed */
        if (sent)
            raise(number);
    }
}

static bool is_same(const struct sigaction *one, const struct sigaction *other)
{
    return one->sa_flags == other->sa_flags && one->sa_sigaction == other->sa_sigaction;
}

/* Notes the handler that was found in place of ours. The default action and SIG_IGN call nothing that was there before them. */
static void add_layer(const struct sigaction *found)
{
    unsigned at = layer_count;
    if (!is_function(found))
        at = 0;
    else if (at && is_same(found, &layers[at - 1]))
        return;
    else if (at == LAYERS_MAX)
        at--;
    layers[at] = *found;
    __atomic_store_n(&layer_count, at + 1, __ATOMIC_RELEASE);
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
        add_layer(&now);
        if (sigaction(SIGBUS, &ours, NULL))
            status = errno;
    }
    __atomic_store_n(&is_set_up, !status, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&mutex);
    return status;
}

bool fault_run(const void *base, size_t size, void (*body)(void *context), void *context)
{
    struct guard guard; /* field by field: an initializer would zero the whole of `back` at every store */
    guard.start = (uintptr_t)base;
    guard.end = (uintptr_t)base + size;
    PMWAL_CHECK(!active);
    if (!__atomic_load_n(&is_set_up, __ATOMIC_ACQUIRE))
        fault_setup();
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
