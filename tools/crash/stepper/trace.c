/* Runs a program that maps a file, single-steps the calls that it marks, and reports what each instruction did to the file's bytes.
 *
 *     trace FILE PROGRAM [ARGUMENT ...]
 *
 * The program raises SIGUSR1 before a call and SIGUSR2 after it; neither signal is delivered. Between the two, each instruction is
 * decoded and stepped, and the whole file, which is mapped here too, is compared with its previous contents. A program that has
 * loaded the C engine is stepped from each entry into the engine until it returns, and runs at full speed in between: the
 * interpreter, nine tenths of a call, stores nothing into the file, which is checked. Events go to standard output, the program's
 * own output to standard error. Exit status: that of the program; 100 if the program or the kernel did something that cannot be
 * traced (explained on standard error); 101 if this machine forbids tracing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "decode.h"

#define LINE 64
#define LOST 100
#define REFUSED 101
#define BEGINS SIGUSR1
#define RETURNS SIGUSR2
#define ENGINE "/pmwal/native/_native."
#define BREAKPOINT 0xcc /* int3 */

enum what { CALL_BEGINS, CALL_RETURNS, STORED, STREAMED, WRITTEN_BACK, FENCED };

/* One event, read by trace.py. A store that changes two lines makes two events. */
struct event {
    uint32_t what;
    uint32_t unordered; /* of a string instruction or system call: may become durable in any order */
    uint64_t count;     /* instructions stepped before this one */
    uint64_t rip;
    uint64_t offset;    /* of the line in the file */
    unsigned char mask[LINE], data[LINE]; /* the stored bytes, and the new contents of the line */
};

static pid_t child;
static const char *path;
static const unsigned char *file; /* the file's current bytes */
static unsigned char *before;     /* those before the last step */
static size_t size;
static struct stat status;
static uint64_t base;  /* where the program maps the file */
static uint64_t count;
static struct { /* the code of the engine: where it is, its bytes, and as many breakpoints; no size: the program has not loaded it */
    uint64_t start;
    size_t size;
    unsigned char *bytes, *breakpoints;
    int memory; /* of the program */
} engine;

__attribute__((noreturn, format(printf, 2, 3))) static void end(int code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("stepper: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    fflush(stdout);
    exit(code); /* PTRACE_O_EXITKILL ends the program */
}

static void check(long answer, const char *what)
{
    if (answer < 0)
        end(LOST, "%s: %s", what, strerror(errno));
}

static void tell(enum what what, const struct user_regs_struct *regs, uint64_t offset, const unsigned char *mask, bool unordered)
{
    struct event event = {.what = what, .unordered = unordered, .count = count, .rip = regs->rip, .offset = offset};
    if (mask) {
        memcpy(event.mask, mask, LINE);
        memcpy(event.data, file + offset, LINE);
        memcpy(before + offset, file + offset, LINE);
    }
    if (fwrite(&event, sizeof event, 1, stdout) != 1)
        end(LOST, "standard output: %s", strerror(errno));
}

/* A mask of the bytes of a line that changed in the last step. */
static bool changed_bytes(uint64_t offset, unsigned char mask[LINE])
{
    bool any = false;
    for (int i = 0; i < LINE; i++) {
        mask[i] = file[offset + i] != before[offset + i] ? 0xff : 0;
        any |= mask[i];
    }
    return any;
}

/* Reports the stores of a step that was not a streaming store. */
static void tell_stores(const struct effect *effect, const struct user_regs_struct *regs)
{
    unsigned char mask[LINE];
    if (!memcmp(file, before, size))
        return;
    for (uint64_t offset = 0; offset < size; offset += LINE)
        if (changed_bytes(offset, mask))
            tell(STORED, regs, offset, mask, effect->kind == STRING || effect->kind == SYSCALL);
}

/* A streaming store: reports all its bytes, also those whose value did not change. */
static void tell_stream(const struct effect *effect, const struct user_regs_struct *regs)
{
    uint64_t first = effect->address - base, last = first + effect->size;
    if (effect->address >= base && last <= size)
        for (uint64_t offset = first & ~(uint64_t)(LINE - 1); offset < last; offset += LINE) {
            unsigned char mask[LINE] = {0};
            for (uint64_t at = offset < first ? first : offset; at < last && at < offset + LINE; at++)
                mask[at - offset] = 0xff;
            tell(STREAMED, regs, offset, mask, true);
        }
    if (memcmp(file, before, size))
        end(LOST, "instruction %#llx streamed %u bytes to %#llx and changed others", regs->rip, effect->size,
            (unsigned long long)effect->address);
}

static void tell_effect(const struct effect *effect, const struct user_regs_struct *regs)
{
    if (effect->kind == FENCE)
        tell(FENCED, regs, 0, NULL, false); /* a locked instruction fences before its own store */
    if (effect->kind == STREAM)
        tell_stream(effect, regs);
    else
        tell_stores(effect, regs);
    uint64_t offset = (effect->address - base) & ~(uint64_t)(LINE - 1);
    if (effect->kind == FLUSH && offset < size)
        tell(WRITTEN_BACK, regs, offset, NULL, false);
}

/* Waits for the program to stop; the signal that stopped it. */
static int wait_for_stop(void)
{
    int state;
    while (waitpid(child, &state, __WALL) < 0)
        if (errno != EINTR)
            end(LOST, "waitpid: %s", strerror(errno));
    if (WIFEXITED(state)) {
        fflush(stdout);
        exit(WEXITSTATUS(state));
    }
    if (WIFSIGNALED(state))
        end(LOST, "the program died of signal %d", WTERMSIG(state));
    if (state >> 16)
        end(LOST, "the program started a thread or a process, which cannot be stepped");
    return WSTOPSIG(state);
}

/* Keeps the code of the engine, which lies in one mapping and stays there. */
static void find_engine(uint64_t begin, uint64_t stop)
{
    char name[64];
    if (engine.size && (engine.start != begin || engine.size != stop - begin))
        end(LOST, "the engine is mapped twice");
    if (engine.size)
        return;
    snprintf(name, sizeof name, "/proc/%d/mem", (int)child);
    engine.memory = open(name, O_RDWR | O_CLOEXEC);
    check(engine.memory, name);
    engine.start = begin;
    engine.size = stop - begin;
    engine.bytes = malloc(engine.size);
    engine.breakpoints = malloc(engine.size);
    if (!engine.bytes || !engine.breakpoints)
        end(LOST, "no memory");
    check(pread(engine.memory, engine.bytes, engine.size, (off_t)begin) - (ssize_t)engine.size, "the code of the engine");
    memset(engine.breakpoints, BREAKPOINT, engine.size);
}

static void find_mappings(void)
{
    char name[64], line[4096], access[8];
    unsigned long start, stop, offset, inode;
    unsigned major_number, minor_number;
    snprintf(name, sizeof name, "/proc/%d/maps", (int)child);
    FILE *maps = fopen(name, "r");
    if (!maps)
        end(LOST, "%s: %s", name, strerror(errno));
    base = 0;
    while (fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx %7s %lx %x:%x %lu", &start, &stop, access, &offset, &major_number, &minor_number, &inode) == 7) {
            if (!strcmp(access, "r-xp") && strstr(line, ENGINE))
                find_engine(start, stop);
            if (inode == status.st_ino && major_number == major(status.st_dev) && minor_number == minor(status.st_dev) &&
                !strcmp(access, "rw-s") && offset == 0) {
                if (base)
                    end(LOST, "%s is mapped twice", path);
                base = start;
            }
        }
    fclose(maps);
    if (!base)
        end(LOST, "%s is not mapped for writing", path);
}

static void map_file(void)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) || status.st_size % LINE || !status.st_size)
        end(LOST, "%s: it must be a file of whole lines", path);
    size = (size_t)status.st_size;
    file = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    before = malloc(size);
    if (file == MAP_FAILED || !before)
        end(LOST, "%s: %s", path, strerror(errno));
    memcpy(before, file, size);
    close(fd);
    check(ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK),
          "PTRACE_SETOPTIONS");
}

static void set_code(const unsigned char *bytes)
{
    check(pwrite(engine.memory, bytes, engine.size, (off_t)engine.start) - (ssize_t)engine.size, "the code of the engine");
}

/* Lets the program run until it enters the engine, at `regs`, or gets another signal; the signal. */
static int run_to_engine(struct user_regs_struct *regs)
{
    set_code(engine.breakpoints);
    check(ptrace(PTRACE_CONT, child, 0, 0), "PTRACE_CONT");
    int number = wait_for_stop();
    set_code(engine.bytes);
    check(ptrace(PTRACE_GETREGS, child, 0, regs), "PTRACE_GETREGS");
    if (memcmp(file, before, size))
        end(LOST, "%s was stored to outside of the engine", path);
    if (number == SIGTRAP) {
        regs->rip--; /* the breakpoint was executed, and is the first instruction of a function */
        if (regs->rip - engine.start >= engine.size)
            end(LOST, "a breakpoint at %#llx, outside of the engine", regs->rip);
        check(ptrace(PTRACE_SETREGS, child, 0, regs), "PTRACE_SETREGS");
    }
    return number;
}

/* Steps one call, from its first marker to its second. */
static void step_call(void)
{
    struct user_regs_struct regs;
    uint8_t code[CODE_MAX];
    struct iovec here = {code, sizeof code};
    uint64_t entered = 0; /* the stack pointer at the entry into the engine: a return moves it past the address that it takes */
    int number = SIGTRAP;
    if (memcmp(file, before, size))
        end(LOST, "%s was stored to between two calls", path);
    find_mappings();
    check(ptrace(PTRACE_GETREGS, child, 0, &regs), "PTRACE_GETREGS");
    tell(CALL_BEGINS, &regs, 0, NULL, false);
    while (number != RETURNS) {
        if (engine.size && regs.rsp > entered) {
            number = run_to_engine(&regs);
            entered = regs.rsp;
            if (number == RETURNS)
                break;
            if (number != SIGTRAP)
                end(LOST, "signal %d during a call", number);
        }
        struct iovec there = {(void *)regs.rip, sizeof code};
        ssize_t length = process_vm_readv(child, &here, 1, &there, 1, 0);
        if (length <= 0) { /* the read fails entirely if the next page is not mapped */
            there.iov_len = 4096 - regs.rip % 4096;
            length = process_vm_readv(child, &here, 1, &there, 1, 0);
            check(length - 1, "process_vm_readv");
        }
        struct effect effect = decode(code, (size_t)length, &regs);
        check(ptrace(PTRACE_SINGLESTEP, child, 0, 0), "PTRACE_SINGLESTEP");
        number = wait_for_stop();
        if (number == SIGTRAP) {
            tell_effect(&effect, &regs);
            count++;
        } else if (number != RETURNS) /* a signal stops the program before the instruction */
            end(LOST, "signal %d during a call", number);
        check(ptrace(PTRACE_GETREGS, child, 0, &regs), "PTRACE_GETREGS");
    }
    tell(CALL_RETURNS, &regs, 0, NULL, false);
    fflush(stdout);
}

static void start(char **command)
{
    child = fork();
    check(child, "fork");
    if (child)
        return;
    dup2(STDERR_FILENO, STDOUT_FILENO);
    personality(ADDR_NO_RANDOMIZE); /* the same addresses in each run, if this is allowed */
    if (ptrace(PTRACE_TRACEME, 0, 0, 0))
        end(REFUSED, "PTRACE_TRACEME: %s", strerror(errno));
    execvp(*command, command);
    end(LOST, "%s: %s", *command, strerror(errno));
}

int main(int argc, char **argv)
{
    static char buffer[1 << 16];
    cpu_set_t here;
    if (argc < 3)
        end(LOST, "usage: trace FILE PROGRAM [ARGUMENT ...]");
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    path = argv[1];
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    sched_setaffinity(0, sizeof here, &here); /* switching between tracer and program is fastest on one processor */
    start(argv + 2);
    int number = wait_for_stop(); /* the exec */
    check(ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_EXITKILL), "PTRACE_SETOPTIONS");
    for (;; number = wait_for_stop()) {
        if (number == BEGINS) {
            if (!file)
                map_file();
            step_call();
        } else if (number != SIGTRAP && number != SIGCHLD)
            end(LOST, "signal %d between two calls", number);
        check(ptrace(PTRACE_CONT, child, 0, 0), "PTRACE_CONT");
    }
}
