/* Numbers the system calls of this process that change what is under a folder, and kills it before one of them, or makes
 * that one fail.
 *
 * A seccomp filter turns each such call into SIGSYS, whoever makes it: safetensors renames without libc, which no
 * preloaded library sees. The handler makes the call itself, with MAGIC in the sixth argument, which none of them
 * reads. Changes through a shared mapping are not seen.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define MAGIC 0x5a3e57e9u
#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#define RESULT(context) (context)->uc_mcontext.gregs[REG_RAX]
static const int REGISTERS[] = {REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8};
#define ARGUMENT(context, i) (context)->uc_mcontext.gregs[REGISTERS[i]]
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#define RESULT(context) (context)->uc_mcontext.regs[0]
#define ARGUMENT(context, i) (context)->uc_mcontext.regs[i]
#else
#error "only for x86-64 and ARM64"
#endif

/* base: the argument with the folder that the path starts from, -1 for the working folder. path: the argument with it,
 * -1 where argument 0 is a descriptor. flags: of open. */
static const struct { int number; const char *name; int base, path, flags; } CALLS[] = {
    {SYS_openat, "open", 0, 1, 2}, {SYS_write, "write", -1, -1, -1}, {SYS_writev, "writev", -1, -1, -1},
    {SYS_pwrite64, "pwrite", -1, -1, -1}, {SYS_pwritev, "pwritev", -1, -1, -1}, {SYS_sendfile, "sendfile", -1, -1, -1},
    {SYS_fsync, "fsync", -1, -1, -1}, {SYS_fdatasync, "fdatasync", -1, -1, -1},
    {SYS_ftruncate, "ftruncate", -1, -1, -1}, {SYS_truncate, "truncate", -1, 0, -1},
    {SYS_fallocate, "fallocate", -1, -1, -1}, {SYS_fchmod, "fchmod", -1, -1, -1}, {SYS_fchmodat, "chmod", 0, 1, -1},
    {SYS_utimensat, "utimens", 0, 1, -1}, {SYS_renameat, "rename", 0, 1, -1}, {SYS_renameat2, "rename", 0, 1, -1},
    {SYS_linkat, "link", 2, 3, -1}, {SYS_symlinkat, "symlink", 1, 2, -1}, {SYS_unlinkat, "unlink", 0, 1, -1},
    {SYS_mkdirat, "mkdir", 0, 1, -1},
#ifdef SYS_open
    {SYS_open, "open", -1, 0, 1}, {SYS_creat, "creat", -1, 0, -1}, {SYS_rename, "rename", -1, 0, -1},
    {SYS_link, "link", -1, 1, -1}, {SYS_symlink, "symlink", -1, 1, -1}, {SYS_unlink, "unlink", -1, 0, -1},
    {SYS_mkdir, "mkdir", -1, 0, -1}, {SYS_rmdir, "rmdir", -1, 0, -1}, {SYS_chmod, "chmod", -1, 0, -1},
#endif
};
enum { KINDS = sizeof CALLS / sizeof *CALLS };

static char folder[4096], told[1 << 20];
static long at, count;
static int failure, stays;
static size_t length;

/* The folder below which calls count; "" for nowhere. number: of the call that is hit, from 1; 0 for none. error: 0 kills.
 * stay: calls that need room fail from there on. */
void crash_arm(const char *path, long number, int error, int stay) {
    snprintf(folder, sizeof folder, "%s", path);
    at = number, failure = error, stays = stay, count = 0, length = 0, told[0] = 0;
}

/* The calls since crash_arm, a line each: what, and the path below the folder. */
const char *crash_calls(void) { return told; }

static int needs_room(const char *name) {
    return strcmp(name, "unlink") && strcmp(name, "rmdir") && strcmp(name, "rename");
}

static void link_of(char *into, size_t size, long file) {
    char link[64] = "/proc/self/cwd";
    if (file != AT_FDCWD) snprintf(link, sizeof link, "/proc/self/fd/%ld", file);
    ssize_t found = readlink(link, into, size - 1);
    into[found < 0 ? 0 : found] = 0;
}

/* The path below the folder that a call changes, NULL where it changes nothing there. */
static const char *below(int kind, ucontext_t *context, char *into, size_t size) {
    int base = CALLS[kind].base, path = CALLS[kind].path, flags = CALLS[kind].flags;
    if (!folder[0] || (flags >= 0 && !(ARGUMENT(context, flags) & (O_CREAT | O_TRUNC)))) return NULL;
    if (path < 0) {
        link_of(into, size, (int)ARGUMENT(context, 0));
    } else {
        const char *name = (const char *)ARGUMENT(context, path);
        if (!name) return NULL;
        if (name[0] != '/') link_of(into, size / 2, base < 0 ? AT_FDCWD : (int)ARGUMENT(context, base));
        else into[0] = 0;
        size_t there = strlen(into);
        snprintf(into + there, size - there, "%s%s", there ? "/" : "", name);
    }
    size_t start = strlen(folder);
    return !strncmp(into, folder, start) && (!into[start] || into[start] == '/') ? into + start : NULL;
}

/* The error that the call gets; 0 for none. */
static int hit(int kind, const char *path) {
    long number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    if (length < sizeof told - 4200) length += sprintf(told + length, "%s %.4000s\n", CALLS[kind].name, path);
    if (!at || !(number == at || (stays && number > at && needs_room(CALLS[kind].name)))) return 0;
    if (!failure) kill(getpid(), SIGKILL), pause();
    return failure;
}

static void caught(int signal, siginfo_t *info, void *given) {
    (void)signal;
    ucontext_t *context = given;
    char into[8192];
    int kind = 0, before = errno;
    while (kind < KINDS - 1 && CALLS[kind].number != info->si_syscall) kind++;
    const char *path = below(kind, context, into, sizeof into);
    int error = path ? hit(kind, path) : 0;
    long result = error ? -1 : syscall(info->si_syscall, ARGUMENT(context, 0), ARGUMENT(context, 1),
        ARGUMENT(context, 2), ARGUMENT(context, 3), ARGUMENT(context, 4), (unsigned long)MAGIC);
    RESULT(context) = result == -1 ? -(error ? error : errno) : result;
    errno = before;
}

/* To be called once in a process, before crash_arm is of use; it cannot be undone. 0, or errno. */
int crash_watch(void) {
    struct sock_filter filter[KINDS + 12], *next = filter;
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_NODEFER};
    *next++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    *next++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0);
    *next++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    *next++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5]));
    *next++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MAGIC, KINDS + 2, 0);
    *next++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    *next++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_copy_file_range, KINDS + 2, 0);
    for (int i = 0; i < KINDS; i++)
        *next++ = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CALLS[i].number, KINDS - i, 0);
    *next++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    *next++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    *next++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS); /* it has six arguments */
    struct sock_fprog program = {.len = next - filter, .filter = filter};
    if (sigaction(SIGSYS, &action, NULL) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return errno;
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) ? errno : 0;
}
