/* Memory is overwritten when it is freed: a library that is preloaded into every process of ours (ADR 0161).
 *
 * It stands in front of glibc's free and realloc and hands everything on to glibc, whose per-thread cache stays in use.
 * Every other door leads here: operator delete, free_sized and Python's own frees (under PYTHONMALLOC=malloc) call free,
 * reallocarray calls realloc. What malloc, calloc, aligned_alloc, posix_memalign and memalign gave is freed by free too.
 * munmap is left alone: memory that a program mapped by itself is its own to wipe.
 *
 * Large aligned blocks, which is what runtimes compute in, are mapped here and kept when they are freed (ADR 0148): a batch
 * gets the pages of the one before, wiped, and the kernel need not clear new ones. They look to glibc like its own
 * mapped blocks, so that malloc_usable_size and realloc know them.
 *
 * No lock, and nothing is allocated for what is noted here; system calls only for large blocks. So it is as safe in threads,
 * after a fork and before its own constructor as glibc's own functions are.
 *
 * Deliberately not here: what no free passes (stacks, registers, kernel buffers), and glibc's own moves of a mapped
 * block, where the kernel moves the pages and leaves no copy.
 */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef SOURCE_SHA256
#error "compile with -DSOURCE_SHA256=\"...\", the digest of this file (hatch_build.py)"
#endif

#define DOOR __attribute__((visibility("default")))

/* Exported by glibc for those who stand in front of it, and used before any constructor has run: no dlsym. */
extern void *__libc_malloc(size_t size);
extern void *__libc_realloc(void *block, size_t size);
extern void __libc_free(void *block);
extern void *__libc_memalign(size_t alignment, size_t size);

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

static size_t word_before(const void *block)
{
    size_t word;
    memcpy(&word, (const char *)block - sizeof word, sizeof word);
    return word;
}

static int mapped(const void *block)
{
    return (word_before(block) & MAPPED) != 0;
}

enum { PAGE = 4096 };           /* bytes; the first of a large block's mapping holds nothing but glibc's two words */
enum { LARGE = 256 << 10 };     /* bytes from which an aligned block is mapped here */
enum { KEPT_BLOCKS = 64 };      /* that wait to be asked for again */
enum { OURS = MAPPED | 4 };     /* in that word: the 4 is about arenas, which a mapped block of glibc's has none of */
enum { WASTE = 4 };             /* a kept block is taken for a request that is smaller by at most this part of it */

/* A place is empty, or holds a block that is all zeros and belongs to nobody. Who exchanges the pointer has the block;
 * `size` and `order` may be those of the block before, and only help to choose. */
static struct {
    _Atomic(void *) block;
    _Atomic size_t size;
    _Atomic size_t order;
} kept[KEPT_BLOCKS];
static _Atomic size_t kept_bytes, used_bytes;
static _Atomic size_t most_used; /* bytes of large blocks in use at a time */
static _Atomic size_t frees;

static int large(const void *block)
{
    return (word_before(block) & OURS) == OURS;
}

static void unmap(void *block)
{
    size_t before; /* bytes of the mapping in front of glibc's two words */
    memcpy(&before, (const char *)block - LINKS, sizeof before);
    int errno_before = errno; /* free promises not to touch it */
    munmap((char *)block - LINKS - before, malloc_usable_size(block) + LINKS + before);
    errno = errno_before;
}

static void *map(size_t size)
{
    size_t all;
    if (__builtin_add_overflow(size, 2 * PAGE - 1, &all)) {
        return NULL;
    }
    all -= all % PAGE;
    char *start = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) {
        return NULL;
    }
    size_t words[] = {PAGE - LINKS, (all - (PAGE - LINKS)) | OURS};
    memcpy(start + PAGE - LINKS, words, sizeof words);
    return start + PAGE;
}

static void *take(int place)
{
    void *block = atomic_exchange(&kept[place].block, NULL);
    if (block != NULL) {
        atomic_fetch_sub(&kept_bytes, malloc_usable_size(block));
    }
    return block;
}

/* Puts a block of zeros where it is found again; 0 where there is no place. */
static int put(void *block)
{
    size_t size = malloc_usable_size(block);
    for (int place = 0; place < KEPT_BLOCKS; place++) {
        void *none = NULL;
        if (atomic_load(&kept[place].block) == NULL) {
            atomic_fetch_add(&kept_bytes, size);
            if (atomic_compare_exchange_strong(&kept[place].block, &none, block)) {
                atomic_store(&kept[place].size, size);
                atomic_store(&kept[place].order, atomic_fetch_add(&frees, 1));
                return 1;
            }
            atomic_fetch_sub(&kept_bytes, size);
        }
    }
    return 0;
}

/* Unmaps the block that was kept for longest; 0 where there is none. */
static int give_one_back(void)
{
    int oldest = -1;
    for (int place = 0; place < KEPT_BLOCKS; place++) {
        if (atomic_load(&kept[place].block) != NULL &&
            (oldest < 0 || atomic_load(&kept[place].order) < atomic_load(&kept[oldest].order))) {
            oldest = place;
        }
    }
    void *block = oldest < 0 ? NULL : take(oldest);
    if (block != NULL) {
        unmap(block);
    }
    return oldest >= 0;
}

/* In place of the oldest where all places are taken: its size is the one that is not asked for any more. */
static void keep(void *block)
{
    while (!put(block)) {
        give_one_back();
    }
}

static int fits(size_t has, size_t size)
{
    return has >= size && has - size <= has / WASTE;
}

/* The place of the smallest kept block that fits, or -1. */
static int best_place(size_t size)
{
    int best = -1;
    size_t least = SIZE_MAX;
    for (int place = 0; place < KEPT_BLOCKS; place++) {
        size_t has = atomic_load(&kept[place].size);
        if (atomic_load(&kept[place].block) != NULL && fits(has, size) && has < least) {
            best = place;
            least = has;
        }
    }
    return best;
}

/* A kept block of about this size, all zeros, or NULL. */
static void *again(size_t size)
{
    for (int place; (place = best_place(size)) >= 0;) {
        void *block = take(place);
        if (block != NULL && fits(malloc_usable_size(block), size)) {
            return block;
        }
        if (block != NULL) { /* another thread was quicker, and this is another block */
            keep(block);
        }
    }
    return NULL;
}

static void note_used(size_t size)
{
    size_t now = atomic_fetch_add(&used_bytes, size) + size;
    size_t most = atomic_load(&most_used);
    while (now > most && !atomic_compare_exchange_weak(&most_used, &most, now)) {
    }
}

/* Whether one more mapping of this size would make all large blocks, kept ones with them, half as much again as were ever
 * in use at a time. Less, and requests of many sizes would take turns in unmapping each other's. */
static int too_much(size_t size)
{
    size_t most = atomic_load(&most_used);
    return atomic_load(&used_bytes) + atomic_load(&kept_bytes) + size > most + most / 2;
}

static void *large_block(size_t size)
{
    void *block = again(size);
    if (block == NULL && size <= PTRDIFF_MAX) { /* more is never there: nothing is given back for it */
        while (too_much(size) && give_one_back()) {
        }
        do {
            block = map(size);
        } while (block == NULL && give_one_back());
    }
    if (block != NULL) {
        note_used(malloc_usable_size(block));
    } else {
        errno = ENOMEM;
    }
    return block;
}

static void free_large(void *block)
{
    for (int place = 0; place < KEPT_BLOCKS; place++) {
        if (atomic_load(&kept[place].block) == block) {
            abort(); /* freed twice: it would get two owners */
        }
    }
    size_t size = malloc_usable_size(block);
    wipe(block, size);
    atomic_fetch_sub(&used_bytes, size);
    keep(block);
}

/* For a process that has loaded its model, and will never again need what that took. */
DOOR void hermetic_give_kept_blocks_back(void)
{
    while (give_one_back()) {
    }
    atomic_store(&most_used, atomic_load(&used_bytes));
}

static void *aligned(size_t alignment, size_t size)
{
    return size >= LARGE && alignment <= PAGE ? large_block(size) : __libc_memalign(alignment, size);
}

DOOR void *memalign(size_t alignment, size_t size)
{
    return aligned(alignment, size);
}

DOOR void *aligned_alloc(size_t alignment, size_t size)
{
    return aligned(alignment, size);
}

DOOR int posix_memalign(void **block, size_t alignment, size_t size)
{
    if (alignment < sizeof(void *) || (alignment & (alignment - 1)) != 0) {
        return EINVAL;
    }
    int errno_before = errno; /* POSIX: it is not touched */
    void *made = aligned(alignment, size);
    errno = errno_before;
    if (made == NULL) {
        return ENOMEM;
    }
    *block = made;
    return 0;
}

DOOR void free(void *block)
{
    if (block == NULL) {
        return;
    }
    if (large(block)) {
        free_large(block);
        return;
    }
    /* Wiping a block that was freed before would also wipe the mark by which glibc is about to refuse it. A block that
     * only inherited the mark loses nothing by this: glibc writes its own links over the first word now. */
    size_t size = malloc_usable_size(block);
    size_t spared = mark_of_freed != 0 && second_word(block) == mark_of_freed ? LINKS : 0;
    if (size > spared) {
        wipe((char *)block + spared, size - spared);
    }
    __libc_free(block);
}

/* Into a block of glibc's: whoever asks for alignment and resizes has given the alignment up. */
static void *realloc_large(void *block, size_t size)
{
    void *moved = __libc_malloc(size);
    if (moved == NULL) {
        return NULL;
    }
    size_t had = malloc_usable_size(block);
    memcpy(moved, block, size < had ? size : had);
    free_large(block);
    return moved;
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
    if (large(block)) {
        return realloc_large(block, size);
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
