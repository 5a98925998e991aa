/* Handlers of SIGBUS around pmwal's: a program for tests/test_fault_chains.py. Its arguments say what is installed, in this order:
 *
 *   stack       an alternate signal stack
 *   jump, once  a guard of another library that leaves its handler by a jump; a crash reporter that runs once and returns
 *   setup       pmwal's handler
 *   chain, full a handler that calls the one before it; the same with all signals blocked meanwhile
 *   nodefer     the next handler does not block its own signal
 *   unused      nothing is set up: the first guarded access does it
 *
 * Then it faults in a guard of pmwal and, after "jump", in one of the other library, several times, at several depths of the stack.
 * At the end: threads, two guards at once ("threads"), or a fault in no guard ("foreign").
 */
#define _GNU_SOURCE
#include "fault.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static sigjmp_buf place;
static char *map, *own;
static __thread int nested;
static struct sigaction before;

static void jump(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info, (void)context;
    siglongjmp(place, 1);
}

static void report(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info, (void)context;
    (void)!write(1, "reported ", 9);
}

static void chain(int number, siginfo_t *info, void *context)
{
    if (++nested > 2)
        _exit(9); /* called in a circle */
    if (before.sa_flags & SA_SIGINFO)
        before.sa_sigaction(number, info, context);
    else
        signal(number, SIG_DFL);
    nested--;
}

static void install(void (*handler)(int, siginfo_t *, void *), int flags, int full, struct sigaction *old)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    if (full)
        sigfillset(&action.sa_mask);
    sigaction(SIGBUS, &action, old);
}

static int __attribute__((noinline)) theirs(int depth)
{
    volatile char pad[300];
    pad[0] = (char)depth;
    if (depth)
        return theirs(depth - 1) + 0 * pad[0];
    if (sigsetjmp(place, 1))
        return 0;
    return own[4096] != 2;
}

static void *many(void *unused)
{
    char copy[64];
    int missed = 0;
    (void)unused;
    for (int i = 0; i < 500; i++) {
        nested = 0; /* a fault that is caught leaves the handlers by a jump */
        missed += fault_copy(map, 8192, copy, map + 4096, sizeof copy) || !fault_copy(map, 8192, copy, map, sizeof copy);
    }
    return missed ? map : NULL;
}

static char *shortened(void)
{
    FILE *file = tmpfile();
    if (!file || ftruncate(fileno(file), 8192))
        exit(2);
    char *mapped = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
    if (mapped == MAP_FAILED || ftruncate(fileno(file), 4096))
        exit(2);
    return mapped;
}

static int run_threads(void)
{
    pthread_t threads[4];
    void *answer;
    int wrong = 0;
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, many, NULL);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], &answer);
        wrong += answer != NULL;
    }
    return wrong;
}

int main(int count, char **words)
{
    static char stack[1 << 16];
    int flags = 0, jumps = 0, foreign = 0, threads = 0;
    map = shortened();
    own = shortened();
    for (int i = 1; i < count; i++) {
        const char *word = words[i];
        if (!strcmp(word, "stack")) {
            stack_t other = {.ss_sp = stack, .ss_size = sizeof stack};
            sigaltstack(&other, NULL);
            flags |= SA_ONSTACK;
        } else if (!strcmp(word, "nodefer"))
            flags |= SA_NODEFER;
        else if (!strcmp(word, "jump")) {
            install(jump, flags, 0, NULL);
            jumps = 1;
        } else if (!strcmp(word, "once"))
            install(report, flags | (int)SA_RESETHAND, 0, NULL);
        else if (!strcmp(word, "ignore"))
            signal(SIGBUS, SIG_IGN);
        else if (!strcmp(word, "setup") && fault_setup())
            return 2;
        else if (!strcmp(word, "chain") || !strcmp(word, "full"))
            install(chain, flags, *word == 'f', &before);
        else if (!strcmp(word, "foreign"))
            foreign = 1;
        else if (!strcmp(word, "threads"))
            threads = 1;
    }
    int wrong = threads ? run_threads() : 0;
    for (int i = 0; i < 6; i++) {
        char copy[64];
        nested = 0;
        wrong += fault_copy(map, 8192, copy, map + 4096, sizeof copy);
        wrong += !fault_copy(map, 8192, copy, map, sizeof copy);
        nested = 0;
        if (jumps)
            wrong += theirs(i % 3 * 4);
    }
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    for (int number = 1; number < 32; number++)
        wrong += sigismember(&blocked, number);
    printf("wrong: %d\n", wrong);
    fflush(stdout);
    nested = 0;
    if (foreign)
        printf("survived %d\n", own[4096]);
    return wrong != 0;
}
