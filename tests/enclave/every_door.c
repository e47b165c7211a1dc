/* Frees memory through every door there is, then looks for what was in it: in every writable region of this process.
 *
 * For each door: so many blocks of each size are filled with a canary and freed, as an attacker's library would do it;
 * then all of /proc/self/maps is searched. Says "DOOR COUNT" for each. The canary is written and looked for byte by byte:
 * it is never in a register, nor on the stack.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCKS = 24, THREADS = 6 };
static const size_t sizes[] = {24, 25, 32, 40, 56, 72, 104, 120, 136, 200, 1000, 1032, 1048, 4096, 5000, 60000, 140000, 300000};
enum { SIZES = sizeof sizes / sizeof *sizes };
static const uint8_t masked[16] = "EveryDoorIsTried";
static const uint8_t mask = 0xa5;

static void *(*cpp_new)(size_t), *(*cpp_new_array)(size_t), *(*cpp_new_aligned)(size_t, size_t);
static void (*cpp_delete)(void *), (*cpp_delete_sized)(void *, size_t), (*cpp_delete_array)(void *);
static void (*cpp_delete_aligned)(void *, size_t, size_t);

static void fill(void *block, size_t size)
{
    volatile uint8_t *byte = block;
    for (size_t at = 0; at < size; at++) byte[at] = masked[at % sizeof masked] ^ mask;
}

static void *filled(void *block, size_t size)
{
    fill(block, size);
    return block;
}

#define FOR_ALL(allocate, release)                                          \
    for (int s = 0; s < SIZES; s++) {                                       \
        size_t size = sizes[s];                                             \
        void *block[BLOCKS];                                                \
        for (int i = 0; i < BLOCKS; i++) block[i] = filled(allocate, size); \
        for (int i = 0; i < BLOCKS; i++) { release; }                       \
        (void)size;                                                         \
    }

static void by_free(void) { FOR_ALL(malloc(size), free(block[i])) }
static void by_calloc(void) { FOR_ALL(calloc(1, size), free(block[i])) }
static void by_memalign(void) { FOR_ALL(memalign(256, size), free(block[i])) }
static void by_aligned_alloc(void) { FOR_ALL(aligned_alloc(64, (size + 63) / 64 * 64), free(block[i])) }
static void by_valloc(void) { FOR_ALL(valloc(size), free(block[i])) }
static void by_realloc_to_nothing(void) { FOR_ALL(malloc(size), free(realloc(block[i], 0))) }
static void by_shrinking(void) { FOR_ALL(malloc(size), void *now = realloc(block[i], 16); memset(now, 0, 16); free(now)) }
static void by_growing(void)
{
    FOR_ALL(malloc(size), void *now = realloc(block[i], 3 * size); memset(now, 0, 3 * size); free(now))
}
static void by_growing_an_array(void)
{
    FOR_ALL(malloc(size), void *now = reallocarray(block[i], 5, size); memset(now, 0, 5 * size); free(now))
}
static void *posix(size_t size)
{
    void *block = NULL;
    return posix_memalign(&block, 128, size) == 0 ? block : NULL;
}
static void by_posix_memalign(void) { FOR_ALL(posix(size), free(block[i])) }
static void by_delete(void) { FOR_ALL(cpp_new(size), cpp_delete(block[i])) }
static void by_sized_delete(void) { FOR_ALL(cpp_new(size), cpp_delete_sized(block[i], size)) }
static void by_array_delete(void) { FOR_ALL(cpp_new_array(size), cpp_delete_array(block[i])) }
static void by_aligned_delete(void) { FOR_ALL(cpp_new_aligned(size, 64), cpp_delete_aligned(block[i], size, 64)) }
/* Names that old glibcs and new C have for free: whatever the process finds under them. */
static void by_cfree(void)
{
    void (*release)(void *) = (void (*)(void *))dlsym(RTLD_DEFAULT, "cfree");
    if (release != NULL) { FOR_ALL(malloc(size), release(block[i])) }
}
static void by_free_sized(void)
{
    void (*release)(void *, size_t) = (void (*)(void *, size_t))dlsym(RTLD_DEFAULT, "free_sized");
    if (release != NULL) { FOR_ALL(malloc(size), release(block[i], size)) }
}

/* Threads that end with a full cache; what they freed then lies in arenas that others use. Then blocks that carry what
 * the cache left in them are taken without being written from the start, and freed once more. */
static void *thread(void *unused)
{
    FOR_ALL(malloc(size), free(block[i]))
    return unused;
}
static void by_ending_threads(void)
{
    pthread_t threads[THREADS];
    for (int t = 0; t < THREADS; t++) pthread_create(&threads[t], NULL, thread, NULL);
    for (int t = 0; t < THREADS; t++) pthread_join(threads[t], NULL);
}
static void *half_written(void *unused)
{
    for (int s = 0; s < SIZES; s++) {
        void *block[BLOCKS];
        for (int i = 0; i < BLOCKS; i++) {
            block[i] = malloc(sizes[s]);
            if (sizes[s] >= 48) fill((char *)block[i] + 16, sizes[s] - 16);
        }
        for (int i = 0; i < BLOCKS; i++) free(block[i]);
    }
    return unused;
}
static void by_inherited_marks(void)
{
    by_ending_threads();
    half_written(NULL);
    pthread_t one;
    pthread_create(&one, NULL, half_written, NULL);
    pthread_join(one, NULL);
    half_written(NULL);
}
/* One thread allocates, another frees. */
static void *given[BLOCKS * SIZES];
static void *free_given(void *unused)
{
    for (int i = 0; i < BLOCKS * SIZES; i++) free(given[i]);
    return unused;
}
static void by_another_thread(void)
{
    for (int i = 0; i < BLOCKS * SIZES; i++) given[i] = filled(malloc(sizes[i % SIZES]), sizes[i % SIZES]);
    pthread_t one;
    pthread_create(&one, NULL, free_given, NULL);
    pthread_join(one, NULL);
    memset(given, 0, sizeof given);
}

static int found(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512], permissions[8];
    unsigned long from, to;
    int count = 0;
    while (fgets(line, sizeof line, maps) != NULL) {
        if (sscanf(line, "%lx-%lx %7s", &from, &to, permissions) != 3 || strncmp(permissions, "rw", 2) != 0) continue;
        for (const volatile uint8_t *byte = (const uint8_t *)from; byte + sizeof masked <= (const uint8_t *)to; byte += 8) {
            size_t same = 0;
            while (same < sizeof masked && (byte[same] ^ mask) == masked[same]) same++;
            count += same == sizeof masked;
        }
    }
    fclose(maps);
    return count;
}

static const struct door { const char *name; void (*use)(void); int cpp; } doors[] = {
    {"free", by_free, 0}, {"calloc", by_calloc, 0}, {"memalign", by_memalign, 0},
    {"aligned_alloc", by_aligned_alloc, 0}, {"posix_memalign", by_posix_memalign, 0}, {"valloc", by_valloc, 0},
    {"realloc-to-nothing", by_realloc_to_nothing, 0}, {"realloc-shrink", by_shrinking, 0},
    {"realloc-grow", by_growing, 0}, {"reallocarray", by_growing_an_array, 0}, {"cfree", by_cfree, 0},
    {"free_sized", by_free_sized, 0}, {"ending-threads", by_ending_threads, 0},
    {"inherited-marks", by_inherited_marks, 0}, {"another-thread", by_another_thread, 0},
    {"delete", by_delete, 1}, {"sized-delete", by_sized_delete, 1}, {"array-delete", by_array_delete, 1},
    {"aligned-delete", by_aligned_delete, 1},
};

int main(int count, char **names)
{
    void *cpp = dlopen("libstdc++.so.6", RTLD_NOW);
    if (cpp != NULL) {
        *(void **)&cpp_new = dlsym(cpp, "_Znwm");
        *(void **)&cpp_new_array = dlsym(cpp, "_Znam");
        *(void **)&cpp_new_aligned = dlsym(cpp, "_ZnwmSt11align_val_t");
        *(void **)&cpp_delete = dlsym(cpp, "_ZdlPv");
        *(void **)&cpp_delete_sized = dlsym(cpp, "_ZdlPvm");
        *(void **)&cpp_delete_array = dlsym(cpp, "_ZdaPv");
        *(void **)&cpp_delete_aligned = dlsym(cpp, "_ZdlPvmSt11align_val_t");
    }
    for (size_t d = 0; d < sizeof doors / sizeof *doors; d++) {
        if ((doors[d].cpp && cpp == NULL) || (count > 1 && strcmp(names[1], doors[d].name) != 0)) continue;
        doors[d].use();
        printf("%s %d\n", doors[d].name, found());
    }
    return 0;
}
