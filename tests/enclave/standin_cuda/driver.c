/* A driver that behaves towards the kernel as CUDA's does, over main memory: libcuda.so.1 of tests without a GPU.

   When its context is made it opens device nodes, asks them by ioctl, reads /proc, loads a library by name and starts
   threads, which stay. One of them does what it is told (standin_try), as a hostile library's would. Signatures: CUDA
   Driver API 13.0. HERMETIC_TEST_STANDIN is the folder of the library that it loads; "outside:" before it has a thread
   put itself under a filter of its own. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { THREADS = 3, RM_CONTROL = 0xC020462A, UVM_FREE = 34 };
enum { NO_DEVICE = 100, NOT_FOUND = 500, INVALID = 1, OUT_OF_MEMORY = 2 };

static int control = -1, memory = -1, wake = -1;
static struct { int what; const char *path; int error; sem_t go, done; } order;
static size_t given;

static int ask_driver(int node, unsigned long request) {
    /* The stand-in node knows no such request: what counts is that the kernel, and not a filter, says so. */
    return ioctl(node, request, NULL) == -1 && errno == ENOTTY ? 0 : INVALID;
}

static int attempt(int what, const char *path) {
    switch (what) {
    case 'r': { int file = open(path, O_RDONLY); if (file < 0) return errno; close(file); return 0; }
    case 'w': { int file = open(path, O_RDWR); if (file < 0) return errno; close(file); return 0; }
    case 's': { int end = socket(AF_INET, SOCK_STREAM, 0); if (end < 0) return errno; close(end); return 0; }
    case 'i': return ask_driver(control, strtoul(path, NULL, 0)) ? errno : 0;
    case 'l': return dlopen(path, RTLD_NOW | RTLD_LOCAL) ? 0 : ENOENT;
    case 'n': { /* a node anew, and a mapping of it, as for each piece of memory */
        int node = open(path, O_RDWR);
        if (node < 0) return errno;
        void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, node, 0);
        int error = page == MAP_FAILED ? errno : 0;
        if (!error) munmap(page, 4096);
        close(node);
        return error; }
    case 'f': return (int)syscall(SYS_fork) == -1 ? errno : 0;
    }
    return EINVAL;
}

static void *handle_events(void *name) {
    struct pollfd event = {.fd = wake, .events = POLLIN};
    prctl(PR_SET_NAME, name, 0, 0, 0);
    for (;;) poll(&event, 1, -1);
}

static void *obey(void *name) {
    prctl(PR_SET_NAME, name, 0, 0, 0);
    for (;;) {
        sem_wait(&order.go);
        order.error = attempt(order.what, order.path);
        sem_post(&order.done);
    }
}

static void *hide(void *ready) {
    struct sock_filter all[] = {{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
    struct sock_fprog program = {1, all};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
    sem_post(ready);
    return handle_events("cuda-hiding");
}

static int start(void *(*run)(void *), void *argument) {
    pthread_t thread;
    return pthread_create(&thread, NULL, run, argument) ? INVALID : 0;
}

/* What a thread of the library is refused: an errno, 0 where it succeeds. */
int standin_try(int what, const char *path) {
    order.what = what;
    order.path = path;
    sem_post(&order.go);
    sem_wait(&order.done);
    return order.error;
}

int standin_try_here(int what, const char *path) { return attempt(what, path); }

int cuInit(unsigned flags) {
    control = open("/dev/null", O_RDWR | O_CLOEXEC); /* the stand-in for /dev/nvidiactl */
    memory = open("/dev/zero", O_RDWR | O_CLOEXEC);  /* the stand-in for /dev/nvidia-uvm */
    int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC), cpus = open("/proc/cpuinfo", O_RDONLY | O_CLOEXEC);
    char text[64];
    if (control < 0 || memory < 0) return 1000 + errno;
    if (maps < 0 || cpus < 0 || read(maps, text, sizeof text) < 1 || read(cpus, text, sizeof text) < 1) return NOT_FOUND;
    close(maps);
    close(cpus);
    return flags || ask_driver(control, RM_CONTROL) || ask_driver(memory, UVM_FREE) ? INVALID : 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    const char *folder = getenv("HERMETIC_TEST_STANDIN");
    char library[512];
    int own = open("/dev/full", O_RDWR | O_CLOEXEC); /* the stand-in for /dev/nvidia0 */
    (void)device;
    if (own < 0 || !folder) return NO_DEVICE;
    int outside = !strncmp(folder, "outside:", 8);
    snprintf(library, sizeof library, "%s/libnvstandin-compiler.so", folder + (outside ? 8 : 0));
    if (!dlopen(library, RTLD_NOW)) return NOT_FOUND;
    if ((wake = eventfd(0, EFD_CLOEXEC)) < 0) return INVALID;
    sem_init(&order.go, 0, 0);
    sem_init(&order.done, 0, 0);
    for (int index = 0; index < THREADS - 1; index++)
        if (start(handle_events, "cuda-EvtHandlr")) return INVALID;
    if (start(obey, "cuda-obeying")) return INVALID;
    if (outside) {
        sem_t ready;
        sem_init(&ready, 0, 0);
        if (start(hide, &ready)) return INVALID;
        sem_wait(&ready);
    }
    *context = (void *)0xC0;
    return 0;
}

int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *handle, int index) { *handle = 70 + index; return 0; }
int cuDeviceGetName(char *name, int length, int handle) { (void)handle; snprintf(name, length, "stand-in"); return 0; }
int cuCtxSetCurrent(void *context) { return context == (void *)0xC0 ? 0 : INVALID; }
int cuCtxSynchronize(void) { return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *total = 64u << 20; *free = *total - given; return 0; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
    if (attempt('n', "/dev/zero") || ask_driver(control, RM_CONTROL)) return INVALID;
    if (given + size > 64u << 20) return OUT_OF_MEMORY;
    size_t *block = aligned_alloc(4096, (size + 8191) & ~(size_t)4095);
    *block = size;
    given += size;
    *address = (uint64_t)block + 4096;
    return 0;
}
int cuMemFree_v2(uint64_t address) {
    size_t *block = (size_t *)(address - 4096);
    given -= *block;
    free(block);
    return 0;
}
int cuMemHostRegister_v2(void *address, size_t size, unsigned flags) {
    (void)address; (void)size; (void)flags;
    return ask_driver(control, RM_CONTROL);
}
int cuMemHostUnregister(void *address) { (void)address; return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) { (void)stream; memcpy((void *)to, from, size); return 0; }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) { (void)stream; memcpy(to, (void *)from, size); return 0; }
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t size, void *stream) { (void)stream; memset((void *)to, value, size); return 0; }
int cuStreamCreate(void **stream, unsigned flags) { static uintptr_t last = 0x5000; *stream = (void *)++last; return flags == 1 ? 0 : INVALID; }
int cuStreamDestroy_v2(void *stream) { (void)stream; return 0; }
int cuStreamSynchronize(void *stream) { (void)stream; return 0; }
