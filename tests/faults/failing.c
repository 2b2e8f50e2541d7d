/* Preloaded into a process, makes the N-th of some calls of the system fail, once or from then on.

   Counted are only calls on files under the directory that `fault_arm` was given. `fault_count` tells how often a call
   was made since, `fault_fired` how often one was made to fail. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { WRITE, FSYNC, FDATASYNC, OPEN, RENAME, MMAP, READ, CALLS };

static char root[PATH_MAX];
static atomic_int armed, wanted = -1, which, forever, code, fired;
static atomic_int counts[CALLS];

void fault_arm(const char *directory, int call, int n, int error, int from_then_on) {
    snprintf(root, sizeof root, "%s", directory);
    for (int i = 0; i < CALLS; i++) counts[i] = 0;
    wanted = call, which = n, code = error, forever = from_then_on, fired = 0, armed = 1;
}
void fault_disarm(void) { armed = 0; }
int fault_fired(void) { return fired; }
int fault_count(int call) { return counts[call]; }

static int inside(const char *path) { return path && strncmp(path, root, strlen(root)) == 0; }

static int inside_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return inside(path);
}

/* Whether this call fails; `here` says whether it is about a file of ours. */
static int fails(int call, int here) {
    if (!armed || !here) return 0;
    int n = ++counts[call];
    if (call != wanted || (forever ? n < which : n != which)) return 0;
    fired++;
    errno = code;
    return 1;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) { REAL(write); return fails(WRITE, armed && inside_fd(fd)) ? -1 : real(fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { REAL(pwrite); return fails(WRITE, armed && inside_fd(fd)) ? -1 : real(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { REAL(pwrite64); return fails(WRITE, armed && inside_fd(fd)) ? -1 : real(fd, data, size, at); }
ssize_t read(int fd, void *data, size_t size) { REAL(read); return fails(READ, armed && inside_fd(fd)) ? -1 : real(fd, data, size); }
ssize_t pread(int fd, void *data, size_t size, off_t at) { REAL(pread); return fails(READ, armed && inside_fd(fd)) ? -1 : real(fd, data, size, at); }
ssize_t pread64(int fd, void *data, size_t size, off64_t at) { REAL(pread64); return fails(READ, armed && inside_fd(fd)) ? -1 : real(fd, data, size, at); }
int fsync(int fd) { REAL(fsync); return fails(FSYNC, armed && inside_fd(fd)) ? -1 : real(fd); }
int fdatasync(int fd) { REAL(fdatasync); return fails(FDATASYNC, armed && inside_fd(fd)) ? -1 : real(fd); }
int rename(const char *from, const char *to) { REAL(rename); return fails(RENAME, inside(from)) ? -1 : real(from, to); }
int renameat(int at, const char *from, int to_at, const char *to) { REAL(renameat); return fails(RENAME, inside(from)) ? -1 : real(at, from, to_at, to); }

#define MODE(flags) mode_t mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }

int open(const char *path, int flags, ...) { MODE(flags) REAL(open); return fails(OPEN, inside(path)) ? -1 : real(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) REAL(open64); return fails(OPEN, inside(path)) ? -1 : real(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) REAL(openat); return fails(OPEN, inside(path)) ? -1 : real(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) REAL(openat64); return fails(OPEN, inside(path)) ? -1 : real(at, path, flags, mode); }

void *mmap(void *at, size_t size, int how, int flags, int fd, off_t from) { REAL(mmap); return fails(MMAP, armed && fd >= 0 && inside_fd(fd)) ? MAP_FAILED : real(at, size, how, flags, fd, from); }
void *mmap64(void *at, size_t size, int how, int flags, int fd, off64_t from) { REAL(mmap64); return fails(MMAP, armed && fd >= 0 && inside_fd(fd)) ? MAP_FAILED : real(at, size, how, flags, fd, from); }
