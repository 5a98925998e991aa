/* Loads a library of the engine's plain C objects into a process that already has threads: for tools/releasing/cross.py.
 *
 * Where a C library has no space for static thread-locals in a library that is loaded later (musl), dlopen() would refuse it, or a
 * thread that was there before would have none.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static sem_t loaded;
static bool (*fault_copy)(const void *base, size_t size, void *to, const void *from, size_t length);
static char *map;

static void *fault(void *wrong)
{
    char copy[64];
    sem_wait(&loaded);
    for (int i = 0; i < 3; i++) {
        *(int *)wrong += fault_copy(map, 8192, copy, map + 4096, sizeof copy);
        *(int *)wrong += !fault_copy(map, 8192, copy, map, sizeof copy);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t thread;
    int wrong = 0, fd = memfd_create("map", 0);
    sem_init(&loaded, 0, 0);
    if (argc != 2 || fd < 0 || ftruncate(fd, 4096))
        return 2;
    map = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    pthread_create(&thread, NULL, fault, &wrong);
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) {
        printf("%s\n", dlerror());
        return 1;
    }
    void (*setup)(void);
    uint32_t (**crc32c)(uint32_t, const void *, size_t) = dlsym(library, "crc32c");
    *(void **)&setup = dlsym(library, "crc32c_setup");
    *(void **)&fault_copy = dlsym(library, "fault_copy");
    if (!setup || !crc32c || !fault_copy)
        return 3;
    setup();
    wrong += (*crc32c)(0, "123456789", 9) != 0xE3069283;
    sem_post(&loaded);
    pthread_join(thread, NULL);
    sem_post(&loaded);
    fault(&wrong);
    printf("wrong: %d\n", wrong);
    return wrong != 0;
}
