/* A shared object with the doors that torch's AOTInductor runner looks for, which tries what it should not be able to.
 *
 * Its constructor runs while it is loaded, under the first filter; each batch runs under the second. What it tried is
 * told by the one output, as many floats as the input has: the first half is the constructor's, the second a batch's.
 * Source of the doors: torch 2.13, torch/csrc/inductor/aoti_runtime/interface.h and aoti_torch/c/shim.h.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef void *Handle;
extern int aoti_torch_clone(Handle, Handle *);
extern int aoti_torch_get_data_ptr(Handle, void **);
extern int aoti_torch_get_numel(Handle, int64_t *);

#define PAGE 4096
enum { ANONYMOUS, WRITTEN, CHANGED, OWN_FILE, OPENED, OUTSIDE, TO_WRITE, SOCKET, EXECUTED, ATTEMPTS };

static float early[ATTEMPTS];
static float kept;

static float done(int worked) { return worked ? 1.0f : -1.0f; }

/* Descriptors of this process that are files in memory: the program's own is closed once it is loaded. */
static int file_in_memory(void) {
    for (int fd = 0; fd < 64; fd++)
        if (fcntl(fd, F_GET_SEALS) >= 0) return fd;
    return -1;
}

static void attempt(float *got) {
    void *page = mmap(0, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    got[ANONYMOUS] = done(page != MAP_FAILED);
    page = mmap(0, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    got[WRITTEN] = done(page != MAP_FAILED);
    page = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    got[CHANGED] = done(page != MAP_FAILED && mprotect(page, PAGE, PROT_READ | PROT_EXEC) == 0);
    int fd = file_in_memory();
    page = mmap(0, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
    got[OWN_FILE] = done(fd >= 0 && page != MAP_FAILED);
    char path[] = "/fd/00";
    path[4] = '0' + fd / 10, path[5] = '0' + fd % 10;
    if (fd < 10) path[4] = path[5], path[5] = 0;
    got[OPENED] = done(open(path, O_RDONLY | O_CLOEXEC) >= 0);
    got[OUTSIDE] = done(open("/etc/passwd", O_RDONLY | O_CLOEXEC) >= 0 || open("/fd/../etc/passwd", O_RDONLY | O_CLOEXEC) >= 0);
    got[TO_WRITE] = done(open(path, O_RDWR | O_CLOEXEC) >= 0);
    got[SOCKET] = done(socket(AF_INET, SOCK_STREAM, 0) >= 0);
#ifdef EXECUTE
    got[EXECUTED] = done(execl("/bin/true", "true", (char *)0) == 0);
#endif
}

__attribute__((constructor)) static void loaded(void) { attempt(early); }

int AOTInductorModelContainerCreateWithDevice(Handle *made, size_t count, const char *device, const char *folder) {
    (void)count, (void)device, (void)folder;
    *made = &kept;
    return 0;
}
int AOTInductorModelContainerDelete(Handle h) { (void)h; return 0; }
int AOTInductorModelContainerGetNumInputs(Handle h, size_t *n) { (void)h; *n = 1; return 0; }
int AOTInductorModelContainerGetNumOutputs(Handle h, size_t *n) { (void)h; *n = 1; return 0; }
int AOTInductorModelContainerGetNumConstants(Handle h, size_t *n) { (void)h; *n = 0; return 0; }

int AOTInductorModelContainerRun(Handle h, Handle *in, size_t ins, Handle *out, size_t outs, Handle stream, Handle proxy) {
    (void)h, (void)ins, (void)outs, (void)stream, (void)proxy;
    float *got, late[ATTEMPTS] = {0};
    int64_t room;
    if (aoti_torch_clone(in[0], out) || aoti_torch_get_data_ptr(out[0], (void **)&got)) return 1;
    if (aoti_torch_get_numel(out[0], &room) || room < 2 * ATTEMPTS) return 1;
    attempt(late);
    memcpy(got, early, sizeof early);
    memcpy(got + ATTEMPTS, late, sizeof late);
    return 0;
}
int AOTInductorModelContainerRunSingleThreaded(Handle h, Handle *in, size_t ins, Handle *out, size_t outs, Handle stream, Handle proxy) {
    return AOTInductorModelContainerRun(h, in, ins, out, outs, stream, proxy);
}

#define STUB(name) int AOTInductorModelContainer##name(void) { return 0; }
STUB(GetConstantName)
STUB(GetConstantOriginalFQN)
STUB(GetConstantFromFolded)
STUB(GetConstantType)
STUB(GetConstantDtype)
STUB(GetConstantDataSize)
STUB(ExtractConstantsMap)
STUB(UpdateUserManagedConstantBuffer)
STUB(UpdateConstantBuffer)
STUB(UpdateInactiveConstantBuffer)
STUB(FreeInactiveConstantBuffer)
STUB(RunConstantFolding)
STUB(SwapConstantBuffer)
STUB(GetCallSpec)
STUB(GetConstantsBlobSize)
int AOTInductorModelUpdateConstantsFromBlob(void) { return 0; }
