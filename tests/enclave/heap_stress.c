/* Several threads allocate, resize and free at random, also each other's blocks, and check that what they wrote is there.
 *
 * Every block begins with its size and a seed, and is full of what follows from the seed: a byte that a wipe took from a
 * live block, or that realloc lost, ends the program with 1. Some blocks come from fork's children, some are aligned.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 6, PLACES = 256, HEAD = 16 };
static _Atomic(unsigned char *) places[PLACES];
static int steps;

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static size_t some_size(uint64_t *state)
{
    uint64_t kind = next(state) % 100;
    size_t most = kind < 60 ? 200 : kind < 90 ? 4000 : kind < 98 ? 100000 : 1000000;
    return HEAD + next(state) % most;
}

static void fill(unsigned char *block, size_t size, uint64_t seed)
{
    memcpy(block, &size, 8);
    memcpy(block + 8, &seed, 8);
    for (size_t at = HEAD; at < size; at++) block[at] = (unsigned char)(seed + at * 167);
}

static void check(const unsigned char *block, size_t upto)
{
    size_t size;
    uint64_t seed;
    memcpy(&size, block, 8);
    memcpy(&seed, block + 8, 8);
    for (size_t at = HEAD; at < size && at < upto; at++) {
        if (block[at] != (unsigned char)(seed + at * 167)) {
            fprintf(stderr, "block of %zu bytes: byte %zu is not what was written\n", size, at);
            _exit(1);
        }
    }
}

static unsigned char *some_block(uint64_t *state, size_t size)
{
    void *block = NULL;
    switch (next(state) % 5) {
    case 0: block = calloc(size, 1); break;
    case 1: block = memalign(64 << next(state) % 4, size); break;
    case 2: if (posix_memalign(&block, 4096, size) != 0) block = NULL; break;
    default: block = malloc(size);
    }
    if (block == NULL) _exit(2);
    fill(block, size, next(state));
    return block;
}

static void *work(void *number)
{
    uint64_t state = 88172645463325252u ^ ((uint64_t)(uintptr_t)number << 32);
    for (int step = 0; step < steps; step++) {
        unsigned char *block = atomic_exchange(&places[next(&state) % PLACES], NULL);
        size_t size = some_size(&state);
        if (block == NULL) {
            block = some_block(&state, size);
        } else if (next(&state) % 2 == 0) {
            check(block, SIZE_MAX);
            free(block);
            block = NULL;
        } else {
            check(block, SIZE_MAX);
            block = realloc(block, size);
            if (block == NULL) _exit(2);
            check(block, size);
            fill(block, size, next(&state));
        }
        free(atomic_exchange(&places[next(&state) % PLACES], block));
    }
    return NULL;
}

static void in_threads(void)
{
    pthread_t threads[THREADS];
    for (uintptr_t t = 0; t < THREADS; t++) pthread_create(&threads[t], NULL, work, (void *)(t + 1));
    for (int t = 0; t < THREADS; t++) pthread_join(threads[t], NULL);
}

int main(int count, char **arguments)
{
    steps = count > 1 ? atoi(arguments[1]) : 4000;
    in_threads();
    pid_t child = fork(); /* with what the threads left in arenas and caches */
    in_threads();
    if (child == 0) _exit(0);
    int status;
    waitpid(child, &status, 0);
    for (int place = 0; place < PLACES; place++) free(places[place]);
    return status != 0;
}
