/* A main() for ring_fuzz.c where there is no libFuzzer: it replays files, and then mutates them blindly. */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "input.h"

#define INPUT_MAX (sizeof(struct parameters) + 16384)
#define POOL 256

void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

struct input {
    uint8_t bytes[INPUT_MAX];
    size_t size;
};

static struct input pool[POOL], trial;
static const struct input *current;
static const char *keep = "ring-fuzz-crash";
static size_t pool_size;
static uint64_t random_state;

/* Asked by AddressSanitizer: abort(3), too, ends in the callback that keeps the input. */
const char *__asan_default_options(void)
{
    return "handle_abort=1";
}

static void save(void)
{
    FILE *file = fopen(keep, "wb");
    if (!file || fwrite(current->bytes, 1, current->size, file) != current->size)
        perror(keep);
    if (file)
        fclose(file);
    fprintf(stderr, "the input is kept as %s\n", keep);
}

static void look_at(const struct input *input)
{
    current = input;
    LLVMFuzzerTestOneInput(input->bytes, input->size);
}

/* xorshift64*: libc's generator differs between machines, and a seed must give the same inputs everywhere. */
static uint64_t draw(uint64_t below)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return below ? (random_state * UINT64_C(2685821657736338717) >> 11) % below : 0;
}

static void mutate_once(struct input *input)
{
    static const uint64_t words[] = {0, 1, 2, 8, 47, 48, 49, 64, 4095, 4096, UINT32_MAX, INT64_MAX, UINT64_MAX - 1, UINT64_MAX};
    size_t at = draw(draw(3) ? input->size : sizeof(struct parameters)); /* the parameters more often than the rest */
    uint64_t word;
    switch (draw(8)) {
    case 0:
        input->bytes[at] ^= (uint8_t)(1u << draw(8));
        break;
    case 1:
        input->bytes[at] = (uint8_t)draw(256);
        break;
    case 2:
        word = words[draw(sizeof words / sizeof *words)];
        at -= at % 8;
        memcpy(input->bytes + at, &word, sizeof word);
        break;
    case 3:
        at -= at % 8;
        memcpy(&word, input->bytes + at, sizeof word);
        word += draw(2) ? draw(70) : -draw(70);
        memcpy(input->bytes + at, &word, sizeof word);
        break;
    case 4: {
        const struct input *other = &pool[draw(pool_size)];
        size_t from = draw(other->size), length = draw(200);
        if (length > other->size - from)
            length = other->size - from;
        if (length > input->size - at)
            length = input->size - at;
        memcpy(input->bytes + at, other->bytes + from, length);
        break;
    }
    case 5: {
        size_t length = draw(300), grown = input->size + length < INPUT_MAX ? input->size + length : INPUT_MAX;
        while (input->size < grown)
            input->bytes[input->size++] = (uint8_t)draw(256);
        break;
    }
    case 6:
        if (input->size > sizeof(struct parameters))
            input->size -= draw(input->size - sizeof(struct parameters));
        break;
    default:
        input->bytes[3] = (uint8_t)draw(32);
    }
}

/* Whole records are rare in mutated bytes, so one input in four gets a new random ring from which CHAIN makes some. */
static void draw_ring(struct input *input)
{
    input->size = sizeof(struct parameters) + draw(8) * draw(512);
    for (size_t at = sizeof(struct parameters); at < input->size; at++)
        input->bytes[at] = (uint8_t)draw(256);
    input->bytes[0] = (uint8_t)draw(10);
    input->bytes[1] = (uint8_t)draw(256);
    input->bytes[3] = (uint8_t)(CHAIN | (draw(4) ? 0 : draw(32) & ~(unsigned)RAW));
    for (size_t at = 8; at < sizeof(struct parameters); at++)
        input->bytes[at] = (uint8_t)(draw(3) ? 0 : draw(256));
}

static void take(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(2);
    }
    struct input *input = &pool[pool_size < POOL ? pool_size++ : POOL - 1];
    input->size = fread(input->bytes, 1, INPUT_MAX, file);
    fclose(file);
    look_at(input);
    if (input->size < sizeof(struct parameters))
        pool_size--;
}

static int by_name(const void *one, const void *two)
{
    return strcmp(*(char *const *)one, *(char *const *)two);
}

/* In the order of their names, not the file system's: the inputs of a seed depend on it. */
static void take_directory(const char *path)
{
    char *names[POOL], full[4096];
    size_t count = 0;
    DIR *directory = opendir(path);
    for (struct dirent *entry; directory && count < POOL && (entry = readdir(directory));)
        if (entry->d_name[0] != '.')
            names[count++] = strdup(entry->d_name);
    if (directory)
        closedir(directory);
    qsort(names, count, sizeof *names, by_name);
    for (size_t i = 0; i < count; i++) {
        snprintf(full, sizeof full, "%s/%s", path, names[i]);
        take(full);
        free(names[i]);
    }
}

int main(int argc, char **argv)
{
    double seconds = 0;
    uint64_t runs = 0, seed = (uint64_t)time(NULL), done = 0;
    struct timespec start, now;
    int option;
    while ((option = getopt(argc, argv, "s:n:r:k:")) != -1)
        if (option == 's')
            seconds = atof(optarg);
        else if (option == 'n')
            runs = strtoull(optarg, NULL, 10);
        else if (option == 'r')
            seed = strtoull(optarg, NULL, 10);
        else if (option == 'k')
            keep = optarg;
        else
            return fprintf(stderr, "ring_fuzz [-s SECONDS | -n RUNS] [-r SEED] [-k FILE] FILE_OR_DIRECTORY ...\n"), 2;
    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(save);
    printf("seed %" PRIu64 "\n", seed);
    fflush(stdout);
    random_state = seed * 2 + 1;
    for (; optind < argc; optind++) {
        DIR *directory = opendir(argv[optind]);
        if (directory) {
            closedir(directory);
            take_directory(argv[optind]);
        } else
            take(argv[optind]);
    }
    if (!pool_size)
        pool[pool_size++].size = sizeof(struct parameters);
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (;; done++) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        double passed = (double)(now.tv_sec - start.tv_sec) + (double)(now.tv_nsec - start.tv_nsec) / 1e9;
        if (runs ? done >= runs : passed >= seconds)
            break;
        trial = pool[draw(pool_size)];
        if (!draw(4))
            draw_ring(&trial);
        for (uint64_t left = draw(6); left; left--)
            mutate_once(&trial);
        look_at(&trial);
        if (!draw(64))
            pool[pool_size < POOL ? pool_size++ : draw(POOL)] = trial;
    }
    printf("%" PRIu64 " executions\n", done);
    return 0;
}
