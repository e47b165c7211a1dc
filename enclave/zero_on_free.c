/* Memory is overwritten when it is freed: a library that is preloaded into every process of ours (ADR 0161).
 *
 * It stands in front of glibc's free and realloc and hands everything on to glibc, whose per-thread cache stays in use.
 * Every other door leads here: operator delete, free_sized and Python's own frees (under PYTHONMALLOC=malloc) call free,
 * reallocarray calls realloc. What malloc, calloc, aligned_alloc, posix_memalign and memalign gave is freed by free too.
 * munmap is left alone: memory that a program mapped by itself is its own to wipe.
 *
 * No state but the two words below, which are written once before main; no lock, no allocation, no system call. So it
 * is as safe in threads, after a fork and before its own constructor as glibc's own functions are.
 *
 * Deliberately not here: what no free passes (stacks, registers, kernel buffers), and glibc's own moves of a mapped
 * block, where the kernel moves the pages and leaves no copy.
 */
#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef SOURCE_SHA256
#error "compile with -DSOURCE_SHA256=\"...\", the digest of this file (hatch_build.py)"
#endif

#define DOOR __attribute__((visibility("default")))

/* Exported by glibc for those who stand in front of it, and used before any constructor has run: no dlsym. */
extern void *__libc_malloc(size_t size);
extern void *__libc_realloc(void *block, size_t size);
extern void __libc_free(void *block);

/* Says which source this was made of; zero_on_free.py compares it with the source beside it. */
DOOR extern const char hermetic_zero_on_free_source[];
const char hermetic_zero_on_free_source[] = SOURCE_SHA256;

enum { MAPPED = 2 };          /* glibc's IS_MMAPPED, in the word in front of a block */
enum { SMALLEST_BLOCK = 24 }; /* bytes that the smallest block of glibc's has */
enum { LINKS = 2 * sizeof(uintptr_t) }; /* bytes at the start of a block in the cache: the next one, and the mark */

/* What glibc writes into the second word of a block in its per-thread cache: a random number, the same for the whole
 * process, by which it knows a double free. 0 until it is learned, or where the cache is off. */
static uintptr_t mark_of_freed;

static void wipe(void *block, size_t size)
{
    memset(block, 0, size);
    __asm__ volatile("" : : "r"(block) : "memory"); /* somebody may read it: it cannot be left out */
}

static uintptr_t second_word(const void *block)
{
    uintptr_t word;
    memcpy(&word, (const char *)block + sizeof word, sizeof word);
    return word;
}

static int mapped(const void *block)
{
    size_t word;
    memcpy(&word, (const char *)block - sizeof word, sizeof word);
    return (word & MAPPED) != 0;
}

DOOR void free(void *block)
{
    if (block == NULL) {
        return;
    }
    /* Wiping a block that was freed before would also wipe the mark by which glibc is about to refuse it. A block that
     * only inherited the mark loses nothing by this: glibc writes its own links over the first word now. */
    size_t size = malloc_usable_size(block);
    size_t kept = mark_of_freed != 0 && second_word(block) == mark_of_freed ? LINKS : 0;
    if (size > kept) {
        wipe((char *)block + kept, size - kept);
    }
    __libc_free(block);
}

DOOR void *realloc(void *block, size_t size)
{
    if (block == NULL) {
        return __libc_malloc(size);
    }
    if (size == 0) { /* as glibc has it */
        free(block);
        return NULL;
    }
    size_t had = malloc_usable_size(block);
    if (size <= had) { /* stays where it is; glibc may cut the end off */
        wipe((char *)block + size, had - size);
        return __libc_realloc(block, size);
    }
    if (mapped(block)) { /* the kernel moves the pages */
        return __libc_realloc(block, size);
    }
    void *moved = __libc_malloc(size);
    if (moved == NULL) {
        return NULL;
    }
    memcpy(moved, block, had);
    free(block);
    return moved;
}

/* C23 and the oldest glibc: other names of free, which glibc would not send here. */
DOOR void free_sized(void *block, size_t size)
{
    (void)size;
    free(block);
}

DOOR void free_aligned_sized(void *block, size_t alignment, size_t size)
{
    (void)alignment;
    (void)size;
    free(block);
}

DOOR void cfree(void *block)
{
    free(block);
}

/* Read the mark from a block that lies in the cache now. */
__attribute__((constructor)) static void learn_mark_of_freed(void)
{
    void *block = __libc_malloc(SMALLEST_BLOCK);
    if (block == NULL) {
        return;
    }
    wipe(block, SMALLEST_BLOCK);
    __libc_free(block);
    mark_of_freed = second_word(block);
}
