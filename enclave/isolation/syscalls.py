"""System call numbers of the two architectures we run on, for seccomp filters and for calls without a wrapper.

Source: Linux 6.18, arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h. From 424 on the
numbers are the same everywhere. A name that an architecture lacks (`poll` on aarch64) is absent from its table.
"""

import platform
from typing import Final

AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_X86_64: Final = """
read 0 write 1 open 2 close 3 stat 4 fstat 5 lstat 6 poll 7 lseek 8 mmap 9 mprotect 10 munmap 11 brk 12 rt_sigaction 13
rt_sigprocmask 14 rt_sigreturn 15 ioctl 16 pread64 17 pwrite64 18 readv 19 writev 20 access 21 pipe 22 select 23
sched_yield 24 mremap 25 mincore 27 madvise 28 shmget 29 shmat 30 shmctl 31 dup 32 dup2 33 nanosleep 35 getitimer 36
setitimer 38 getpid 39 sendfile 40 socket 41 connect 42 accept 43 sendto 44 recvfrom 45 sendmsg 46 recvmsg 47
shutdown 48 bind 49 listen 50 getsockname 51 getpeername 52 socketpair 53 setsockopt 54 getsockopt 55 clone 56 fork 57
vfork 58 execve 59 exit 60 wait4 61 kill 62 uname 63 fcntl 72 ftruncate 77 getcwd 79 chdir 80 readlink 89
gettimeofday 96 getrlimit 97 getrusage 98 sysinfo 99 times 100 ptrace 101 getuid 102 getgid 104 geteuid 107 getegid 108
getppid 110 capset 126 rt_sigqueueinfo 129 sigaltstack 131 personality 135 getpriority 140 sched_setparam 142
sched_getparam 143 sched_setscheduler 144 sched_getscheduler 145 sched_get_priority_max 146 sched_get_priority_min 147
mlock 149 munlock 150 pivot_root 155 prctl 157 chroot 161 mount 165 umount2 166 gettid 186 tkill 200 time 201 futex 202
sched_setaffinity 203 sched_getaffinity 204 getdents64 217 set_tid_address 218 restart_syscall 219 fadvise64 221
timer_settime 223 clock_gettime 228 clock_getres 229 clock_nanosleep 230 exit_group 231 epoll_wait 232 epoll_ctl 233
tgkill 234 mbind 237 set_mempolicy 238 get_mempolicy 239 waitid 247 add_key 248 request_key 249 keyctl 250 openat 257
newfstatat 262 readlinkat 267 faccessat 269 pselect6 270 ppoll 271 unshare 272 set_robust_list 273 epoll_pwait 281
timerfd_create 283 timerfd_settime 286 accept4 288 eventfd2 290 epoll_create1 291 dup3 292 pipe2 293 preadv 295
pwritev 296 perf_event_open 298 prlimit64 302 setns 308 getcpu 309 process_vm_readv 310 process_vm_writev 311 kcmp 312
seccomp 317 getrandom 318 memfd_create 319 bpf 321 execveat 322 userfaultfd 323 membarrier 324 mlock2 325 preadv2 327
pwritev2 328 pkey_mprotect 329 statx 332 rseq 334
"""

_AARCH64: Final = """
getcwd 17 eventfd2 19 epoll_create1 20 epoll_ctl 21 epoll_pwait 22 dup 23 dup3 24 fcntl 25 ioctl 29 umount2 39
mount 40 pivot_root 41 ftruncate 46 faccessat 48 chdir 49 chroot 51 openat 56 close 57 pipe2 59 getdents64 61 lseek 62
read 63 write 64 readv 65 writev 66 pread64 67 pwrite64 68 preadv 69 pwritev 70 sendfile 71 pselect6 72 ppoll 73
readlinkat 78 newfstatat 79 fstat 80 timerfd_create 85 timerfd_settime 86 capset 91 personality 92 exit 93
exit_group 94 waitid 95 set_tid_address 96 unshare 97 futex 98 set_robust_list 99 nanosleep 101 getitimer 102
setitimer 103 timer_settime 110 clock_gettime 113 clock_getres 114 clock_nanosleep 115 ptrace 117 sched_setparam 118
sched_setscheduler 119 sched_getscheduler 120 sched_getparam 121 sched_setaffinity 122 sched_getaffinity 123
sched_yield 124 sched_get_priority_max 125 sched_get_priority_min 126 restart_syscall 128 kill 129 tkill 130
tgkill 131 sigaltstack 132 rt_sigaction 134 rt_sigprocmask 135 rt_sigqueueinfo 138 rt_sigreturn 139 getpriority 141
times 153 uname 160 getrlimit 163 getrusage 165 prctl 167 getcpu 168 gettimeofday 169 getpid 172 getppid 173
getuid 174 geteuid 175 getgid 176 getegid 177 gettid 178 sysinfo 179 shmget 194 shmctl 195 shmat 196 socket 198
socketpair 199 bind 200 listen 201 accept 202 connect 203 getsockname 204 getpeername 205 sendto 206 recvfrom 207
setsockopt 208 getsockopt 209 shutdown 210 sendmsg 211 recvmsg 212 brk 214 munmap 215 mremap 216 add_key 217
request_key 218 keyctl 219 clone 220 execve 221 mmap 222 fadvise64 223 mprotect 226 mlock 228 munlock 229 mincore 232
madvise 233 mbind 235 get_mempolicy 236 set_mempolicy 237 perf_event_open 241 accept4 242 wait4 260 prlimit64 261
setns 268 process_vm_readv 270 process_vm_writev 271 kcmp 272 seccomp 277 getrandom 278 memfd_create 279 bpf 280
execveat 281 userfaultfd 282 membarrier 283 mlock2 284 preadv2 286 pwritev2 287 pkey_mprotect 288 statx 291 rseq 293
"""

_EVERYWHERE: Final = """
pidfd_send_signal 424 io_uring_setup 425 io_uring_enter 426 pidfd_open 434 clone3 435 close_range 436 openat2 437
pidfd_getfd 438 faccessat2 439 epoll_pwait2 441 mount_setattr 442 landlock_create_ruleset 444 landlock_add_rule 445
landlock_restrict_self 446 memfd_secret 447
"""


def _table(text: str) -> dict[str, int]:
    words = text.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True))


NUMBERS: Final = {"x86_64": _table(_X86_64 + _EVERYWHERE), "aarch64": _table(_AARCH64 + _EVERYWHERE)}


def machine() -> str:
    """Return this machine's architecture; `OSError` where it has no table here."""
    name = platform.machine()
    if name not in NUMBERS:
        raise OSError(f"system call numbers: wanted one of {sorted(NUMBERS)}, got {name}")
    return name


def number(name: str) -> int:
    """Return the number of the system call `name` on this machine."""
    return NUMBERS[machine()][name]
