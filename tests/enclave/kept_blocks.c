/* What happens to large aligned blocks that are freed: says "CASE" and, where something is not as it should be, why.
 *
 * Each case begins with nothing kept. Memory that was given back is told by mincore(2), which refuses addresses where
 * nothing is mapped; nothing else in this program maps memory.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

enum { MIB = 1 << 20 };
static const char *wrong;
static void expect(int so, const char *what)
{
    if (!so && wrong == NULL) wrong = what;
}

static char *filled(size_t size)
{
    char *block = aligned_alloc(64, size);
    expect(block != NULL && (size_t)block % 64 == 0, "an aligned block");
    memset(block, 0x5a, size);
    return block;
}

static int is_all(const char *block, size_t size, char what)
{
    for (size_t at = 0; at < size; at++) {
        if (block[at] != what) return 0;
    }
    return 1;
}

static int is_mapped(void *block)
{
    unsigned char pages;
    return mincore((void *)((size_t)block & ~4095ul), 1, &pages) == 0;
}

static void comes_again_as_zeros(void)
{
    char *block = filled(MIB);
    free(block);
    expect(is_all(block, MIB, 0), "zeros after free");
    char *next = aligned_alloc(64, MIB - 4096);
    expect(next == block, "the same block for a request that is a little smaller");
    free(next);
}

static void a_much_larger_one_stays(void)
{
    char *large = filled(4 * MIB);
    free(large);
    char *small = filled(MIB);
    expect(small != large, "another block for a quarter of it");
    free(small);
}

static void the_smallest_that_fits(void)
{
    char *larger = filled(10 * MIB), *fitting = filled(9 * MIB);
    free(larger);
    free(fitting);
    char *next = aligned_alloc(64, 9 * MIB);
    expect(next == fitting, "the block of 9 MiB, not that of 10");
    free(next);
}

static size_t mapped_mib(void)
{
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    expect(file != NULL && fscanf(file, "%lu", &pages) == 1, "statm");
    fclose(file);
    return pages * 4096 / MIB;
}

static void bounded_by_what_was_in_use(void)
{
    static const size_t sizes[] = {5, 7, 10, 14, 2, 3};
    size_t before = mapped_mib();
    for (int b = 0; b < 6; b++) free(filled(sizes[b] * MIB));
    size_t more = mapped_mib() - before;
    expect(more >= 19 && more <= 21, "14, 2 and 3 MiB kept: at most one and a half times 14");
}

/* Blocks of glibc's own that begin at a page, as these do, are not counted. */
static void glibcs_own_are_not_counted(void)
{
    void *volatile by_alignment = aligned_alloc(2 * MIB, 16 * MIB), *volatile by_page = valloc(16 * MIB);
    memset(by_alignment, 1, 16 * MIB);
    free(by_alignment);
    free(by_page);
    bounded_by_what_was_in_use();
}

static void no_more_than_places(void)
{
    char *blocks[70];
    int there = 0;
    for (int b = 0; b < 70; b++) blocks[b] = filled(MIB);
    for (int b = 0; b < 70; b++) free(blocks[b]);
    for (int b = 0; b < 70; b++) there += is_mapped(blocks[b]);
    expect(there == 64, "64 of 70 blocks kept");
    expect(is_mapped(blocks[69]) && !is_mapped(blocks[0]), "the last of them kept, not the first");
}

static void resized(void)
{
    static const size_t sizes[] = {100, MIB / 2, 3 * MIB};
    for (int s = 0; s < 3; s++) {
        char *block = filled(MIB), *moved = realloc(block, sizes[s]);
        expect(is_all(moved, sizes[s] < MIB ? sizes[s] : MIB, 0x5a), "what was written, after realloc");
        expect(moved != block && is_all(block, MIB, 0), "zeros where realloc moved away from");
        free(moved);
    }
    char *block = filled(MIB);
    expect(malloc_usable_size(block) >= MIB && realloc(block, 1ul << 60) == NULL, "no block of an exbibyte");
    expect(is_all(block, MIB, 0x5a), "the block as it was where realloc failed");
    free(block);
}

/* All that may be mapped is kept, in blocks that do not fit: they are given back for one that does. */
static void no_more_memory(void)
{
    char *blocks[] = {filled(64 * MIB), filled(64 * MIB)};
    free(blocks[0]);
    free(blocks[1]);
    struct rlimit before, now;
    getrlimit(RLIMIT_AS, &before);
    now = before;
    now.rlim_cur = (mapped_mib() + 8) * MIB;
    setrlimit(RLIMIT_AS, &now);
    char *block = aligned_alloc(64, 40 * MIB);
    expect(block != NULL, "a block in place of one that was kept");
    volatile size_t too_much = PTRDIFF_MAX; /* volatile: the compiler would say so */
    errno = 0;
    expect(aligned_alloc(64, too_much + 1) == NULL && errno == ENOMEM, "no block of half of all addresses");
    expect(aligned_alloc(64, 1ul << 50) == NULL, "no block of a pebibyte");
    setrlimit(RLIMIT_AS, &before);
    free(block);
}

static void given_back(void)
{
    char *blocks[3];
    for (int b = 0; b < 3; b++) blocks[b] = filled(MIB);
    for (int b = 0; b < 3; b++) free(blocks[b]);
    expect(is_mapped(blocks[0]) && is_mapped(blocks[2]), "kept blocks");
    ((void (*)(void))dlsym(RTLD_DEFAULT, "hermetic_give_kept_blocks_back"))();
    for (int b = 0; b < 3; b++) expect(!is_mapped(blocks[b]), "nothing where blocks were given back");
}

static void freed_twice(void)
{
    char *volatile block = filled(MIB);
    free(block);
    free(block);
}

static const struct { const char *name; void (*run)(void); } cases[] = {
    {"comes-again-as-zeros", comes_again_as_zeros}, {"a-much-larger-one-stays", a_much_larger_one_stays},
    {"the-smallest-that-fits", the_smallest_that_fits}, {"bounded-by-what-was-in-use", bounded_by_what_was_in_use},
    {"glibcs-own-are-not-counted", glibcs_own_are_not_counted}, {"no-more-than-places", no_more_than_places},
    {"resized", resized}, {"no-more-memory", no_more_memory},
    {"given-back", given_back}, {"freed-twice", freed_twice},
};

int main(int count, char **names)
{
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        if (count > 1 && strcmp(names[1], cases[c].name) == 0) {
            cases[c].run();
            if (wrong != NULL) printf("expected %s\n", wrong);
            return wrong != NULL;
        }
    }
    return 2;
}
