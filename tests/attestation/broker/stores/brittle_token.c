/* A PKCS #11 module before SoftHSM's that fails as the file ORDERS says: an HSM that is unplugged, hangs, breaks, or
   refuses the PIN. For tests. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ul;
typedef ul (*function)();
enum { GET_SLOT_LIST = 4, GET_TOKEN_INFO = 6, OPEN_SESSION = 12, LOGIN = 18, DECRYPT = 34, FUNCTIONS = 68 };
enum { FLAGS_OFFSET = 96 };
#define DEVICE_ERROR 0x30
#define DEVICE_REMOVED 0x32
#define PIN_INCORRECT 0xA0
#define FINAL_TRY 0x20000
#define LOCKED 0x40000

static struct { unsigned char version[2]; function call[FUNCTIONS]; } ours, *theirs;

static int ordered(const char *what) {
  char text[32] = {0};
  int file = open(ORDERS, O_RDONLY | O_CLOEXEC);
  ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  return length > 0 && !strcmp(text, what);
}

static ul get_slot_list(unsigned char present, ul *slots, ul *count) {
  ul result = theirs->call[GET_SLOT_LIST](present, slots, count);
  if (ordered("unplugged")) *count = 0;
  return result;
}

static ul get_token_info(ul slot, unsigned char *info) {
  ul result = theirs->call[GET_TOKEN_INFO](slot, info);
  if (ordered("final-try")) *(ul *)(info + FLAGS_OFFSET) |= FINAL_TRY;
  if (ordered("pin-locked")) *(ul *)(info + FLAGS_OFFSET) |= LOCKED;
  return result;
}

static ul login(ul session, ul user, unsigned char *pin, ul length) {
  if (ordered("wrong-pin")) {
    FILE *count = fopen(ORDERS ".logins", "a");
    fputc('x', count);
    fclose(count);
    return PIN_INCORRECT;
  }
  return theirs->call[LOGIN](session, user, pin, length);
}

static ul decrypt(ul session, void *in, ul in_length, void *out, ul *out_length) {
  if (ordered("unplugged")) return DEVICE_REMOVED;
  if (ordered("wrong-pin")) return DEVICE_REMOVED;
  if (ordered("broken")) return DEVICE_ERROR;
  while (ordered("hang")) usleep(2000);
  return theirs->call[DECRYPT](session, in, in_length, out, out_length);
}

ul C_GetFunctionList(void **list) {
  function get = (function)dlsym(dlopen(SOFTHSM, RTLD_NOW | RTLD_LOCAL), "C_GetFunctionList");
  ul result = get(&theirs);
  ours = *theirs;
  ours.call[GET_SLOT_LIST] = (function)get_slot_list;
  ours.call[GET_TOKEN_INFO] = (function)get_token_info;
  ours.call[LOGIN] = (function)login;
  ours.call[DECRYPT] = (function)decrypt;
  *list = &ours;
  return result;
}
