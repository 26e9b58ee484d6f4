/* Storage that fails on demand: loaded before libc (LD_PRELOAD), it stands between a process and one folder.

   faultio_folder(root)      only calls on paths beneath `root` (absolute, without links) are looked at
   faultio_record(file)      each call is written to `file`, with its data; NULL ends that
   faultio_mark(text)        a line of its own in the record
   faultio_arm(...)          the call with that index among those of the classes in `mask` is spoilt; see ACTION
   faultio_disarm()          returns how many calls of these classes there were; nothing is spoilt any more
   faultio_hurry()           from now on sleeps end at once

   A process with threads has one order of calls: they pass one after the other. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Classes of calls; faultio.py has the same. */
enum { WRITE = 1, CREATE = 2, REMOVE = 4, GROW = 8, SHRINK = 16, SYNC = 32, READ = 64, RENAME = 128 };
enum ACTION { FAIL = 1, SHORT = 2, KILL = 3, KILL_HALF = 4 };
/* What a record says was done. `LOST`: something that the record cannot describe. */
enum OP { MARK, OP_OPEN, OP_CREATE, OP_WRITE, OP_TRUNCATE, OP_SYNC, OP_RENAME, OP_LINK, OP_UNLINK, OP_MKDIR, OP_RMDIR,
          OP_READ, OP_LOST };

struct record { /* then path, second path, data */
    uint32_t op, class;
    int32_t error;      /* errno; 0: it was done */
    uint32_t path_bytes, second_bytes;
    uint64_t inode, offset, data_bytes;
} __attribute__((packed));

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_bytes;
static int out = -1, hurry;
static struct { int armed, mask, action, error, after; long index, seen; } plan;
static struct { int on, mask, error; } broken; /* after the planned fault: these classes go on failing */

#define EXPORT __attribute__((visibility("default")))

EXPORT void faultio_folder(const char *path) {
    snprintf(root, sizeof root, "%s", path);
    root_bytes = strlen(root);
}
EXPORT int faultio_record(const char *file) {
    if (out >= 0) syscall(SYS_close, out);
    out = -1;
    if (!file) return 0;
    int fd = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return -1;
    out = fcntl(fd, F_DUPFD_CLOEXEC, 900); /* away from the numbers that others get */
    syscall(SYS_close, fd);
    return out < 0 ? -1 : 0;
}
EXPORT void faultio_arm(int mask, long index, int action, int error, int after_mask) {
    memset(&broken, 0, sizeof broken);
    plan.armed = 1, plan.mask = mask, plan.index = index, plan.seen = 0;
    plan.action = action, plan.error = error, plan.after = after_mask;
}
EXPORT long faultio_disarm(void) {
    memset(&broken, 0, sizeof broken);
    plan.armed = 0;
    return plan.seen;
}
EXPORT void faultio_hurry(void) { hurry = 1; }

static void put(const void *data, size_t bytes) {
    while (bytes) {
        ssize_t done = syscall(SYS_write, out, data, bytes);
        if (done <= 0) _exit(99);
        data = (const char *)data + done, bytes -= done;
    }
}
static void note(int op, int class, int error, uint64_t inode, const char *path, const char *second, uint64_t offset,
                 const void *data, size_t bytes) {
    if (out < 0) return;
    struct record r = {op, class, error, path ? strlen(path) : 0, second ? strlen(second) : 0, inode, offset, bytes};
    put(&r, sizeof r);
    if (path) put(path, r.path_bytes);
    if (second) put(second, r.second_bytes);
    put(data, bytes);
}
EXPORT void faultio_mark(const char *text) {
    pthread_mutex_lock(&lock);
    note(MARK, 0, 0, 0, text, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
}

/* The path beneath root, "" for root itself; NULL: elsewhere. */
static const char *beneath(const char *path) {
    if (!root_bytes || strncmp(path, root, root_bytes)) return NULL;
    if (!path[root_bytes]) return path + root_bytes;
    return path[root_bytes] == '/' ? path + root_bytes + 1 : NULL;
}
static const char *of_descriptor(int fd, char *buffer) {
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t n = fd == out || !root_bytes ? -1 : syscall(SYS_readlinkat, AT_FDCWD, name, buffer, PATH_MAX - 1);
    if (n < 0) return NULL;
    buffer[n] = 0;
    if (n > 10 && !strcmp(buffer + n - 10, " (deleted)")) buffer[n - 10] = 0;
    return beneath(buffer);
}
static const char *of_path(int dir, const char *path, char *buffer) {
    if (!path || !root_bytes) return NULL;
    if (path[0] == '/') {
        snprintf(buffer, PATH_MAX, "%s", path);
    } else {
        char base[PATH_MAX] = "";
        if (dir == AT_FDCWD) {
            if (syscall(SYS_getcwd, base, sizeof base) < 0) return NULL;
        } else {
            const char *within = of_descriptor(dir, base);
            if (!within) return NULL;
        }
        size_t n = strlen(base);
        if (n + strlen(path) + 2 > PATH_MAX) return NULL;
        memcpy(buffer, base, n), buffer[n] = '/', strcpy(buffer + n + 1, path);
    }
    size_t n = strlen(buffer);
    while (n > 1 && buffer[n - 1] == '/') buffer[--n] = 0;
    return beneath(buffer);
}
static uint64_t inode_of(int fd) {
    struct stat s;
    return syscall(SYS_fstat, fd, &s) ? 0 : s.st_ino;
}
static uint64_t inode_at(int dir, const char *path) {
    struct stat s;
    return syscall(SYS_newfstatat, dir, path, &s, AT_SYMLINK_NOFOLLOW) ? 0 : s.st_ino;
}

/* What befalls a call of this class: 0, or an ACTION with errno set for FAIL. */
static int fate(int class) {
    if (broken.on && (class & broken.mask)) return errno = broken.error, FAIL;
    if (!plan.armed || !(class & plan.mask) || plan.seen++ != plan.index) return 0;
    if (plan.after) broken.on = 1, broken.mask = plan.after, broken.error = plan.error;
    if (plan.action == KILL) syscall(SYS_kill, getpid(), SIGKILL);
    errno = plan.error;
    return plan.action;
}

/* ---- opening ----------------------------------------------------------------------------------------------- */
static int open_any(int dir, const char *path, int flags, mode_t mode) {
    char buffer[PATH_MAX];
    const char *name = of_path(dir, path, buffer);
    if (!name) return syscall(SYS_openat, dir, path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat s;
    int there = !syscall(SYS_newfstatat, dir, path, &s, 0);
    int create = (flags & O_CREAT) && !there;
    int class = create ? CREATE : (flags & O_TRUNC) && there && s.st_size ? SHRINK : READ;
    int fd = fate(class) == FAIL ? -1 : (int)syscall(SYS_openat, dir, path, flags, mode);
    int error = fd < 0 ? errno : 0;
    uint64_t inode = fd < 0 ? 0 : inode_of(fd);
    note(create ? OP_CREATE : class == SHRINK ? OP_TRUNCATE : OP_OPEN, class, error, inode, name, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}
#define MODE mode_t mode = 0; if (flags & (O_CREAT | __O_TMPFILE)) { \
    va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); }
EXPORT int open(const char *path, int flags, ...) { MODE return open_any(AT_FDCWD, path, flags, mode); }
EXPORT int open64(const char *path, int flags, ...) { MODE return open_any(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
EXPORT int openat(int dir, const char *path, int flags, ...) { MODE return open_any(dir, path, flags, mode); }
EXPORT int openat64(int dir, const char *path, int flags, ...) {
    MODE return open_any(dir, path, flags | O_LARGEFILE, mode);
}
EXPORT int creat(const char *path, mode_t mode) {
    return open_any(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
EXPORT int creat64(const char *path, mode_t mode) { return creat(path, mode); }

/* ---- writing ----------------------------------------------------------------------------------------------- */
/* offset −1: where the descriptor stands */
static ssize_t write_any(int fd, const void *data, size_t bytes, off_t offset) {
    char buffer[PATH_MAX];
    const char *name = of_descriptor(fd, buffer);
#define RAW(n) (offset < 0 ? syscall(SYS_write, fd, data, n) : syscall(SYS_pwrite64, fd, data, n, offset))
    if (!name) return RAW(bytes);
    pthread_mutex_lock(&lock);
    off_t start = offset >= 0 ? offset : syscall(SYS_lseek, fd, 0, SEEK_CUR);
    if (fcntl(fd, F_GETFL) & O_APPEND) start = syscall(SYS_lseek, fd, 0, SEEK_END);
    int what = fate(WRITE);
    ssize_t done = -1;
    if (what != FAIL) done = RAW(what ? (bytes + 1) / 2 : bytes);
    int error = done < 0 ? errno : 0;
    note(OP_WRITE, WRITE, error, inode_of(fd), name, NULL, start, data, done < 0 ? 0 : done);
    if (what == KILL_HALF) syscall(SYS_kill, getpid(), SIGKILL);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}
static ssize_t writev_any(int fd, const struct iovec *parts, int count, off_t offset) {
    size_t bytes = 0, at = 0;
    for (int i = 0; i < count; i++) bytes += parts[i].iov_len;
    char *whole = malloc(bytes ? bytes : 1);
    for (int i = 0; i < count; at += parts[i++].iov_len) memcpy(whole + at, parts[i].iov_base, parts[i].iov_len);
    ssize_t done = write_any(fd, whole, bytes, offset);
    int error = errno;
    free(whole);
    errno = error;
    return done;
}
EXPORT ssize_t write(int fd, const void *data, size_t bytes) { return write_any(fd, data, bytes, -1); }
EXPORT ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) { return write_any(fd, data, n, offset); }
EXPORT ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset) { return write_any(fd, data, n, offset); }
EXPORT ssize_t writev(int fd, const struct iovec *v, int n) { return writev_any(fd, v, n, -1); }
EXPORT ssize_t pwritev(int fd, const struct iovec *v, int n, off_t offset) { return writev_any(fd, v, n, offset); }
EXPORT ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t offset) { return writev_any(fd, v, n, offset); }
EXPORT ssize_t pwritev2(int fd, const struct iovec *v, int n, off_t offset, int f) {
    (void)f;
    return writev_any(fd, v, n, offset);
}
EXPORT ssize_t pwritev64v2(int fd, const struct iovec *v, int n, off64_t offset, int f) {
    return pwritev2(fd, v, n, offset, f);
}

/* ---- one call on one descriptor, one path, or two ------------------------------------------------------------ */
#define ON_DESCRIPTOR(op, class, offset, call)                                                                        \
    do {                                                                                                              \
        char buffer[PATH_MAX];                                                                                        \
        const char *name = of_descriptor(fd, buffer);                                                                 \
        if (!name) return call;                                                                                       \
        pthread_mutex_lock(&lock);                                                                                    \
        int class_ = class;                                                                                           \
        int failed = fate(class_) == FAIL ? -1 : (int)(call);                                                         \
        int error = failed ? errno : 0;                                                                               \
        note(op, class_, error, inode_of(fd), name, NULL, offset, NULL, 0);                                           \
        pthread_mutex_unlock(&lock);                                                                                  \
        errno = error;                                                                                                \
        return failed;                                                                                                \
    } while (0)

static int longer(int fd, off_t length) {
    struct stat s;
    return !syscall(SYS_fstat, fd, &s) && length > s.st_size ? GROW : SHRINK;
}
EXPORT int fsync(int fd) { ON_DESCRIPTOR(OP_SYNC, SYNC, 0, syscall(SYS_fsync, fd)); }
EXPORT int fdatasync(int fd) { ON_DESCRIPTOR(OP_SYNC, SYNC, 0, syscall(SYS_fdatasync, fd)); }
EXPORT int syncfs(int fd) { ON_DESCRIPTOR(OP_LOST, SYNC, 0, syscall(SYS_syncfs, fd)); }
EXPORT int ftruncate(int fd, off_t length) {
    ON_DESCRIPTOR(OP_TRUNCATE, longer(fd, length), length, syscall(SYS_ftruncate, fd, length));
}
EXPORT int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }
EXPORT int fallocate(int fd, int mode, off_t start, off_t length) {
    ON_DESCRIPTOR(OP_LOST, GROW, 0, syscall(SYS_fallocate, fd, mode, start, length));
}
EXPORT int fallocate64(int fd, int mode, off64_t start, off64_t length) { return fallocate(fd, mode, start, length); }
EXPORT int posix_fallocate(int fd, off_t start, off_t length) { return fallocate(fd, 0, start, length) ? errno : 0; }
EXPORT int posix_fallocate64(int fd, off64_t start, off64_t length) { return posix_fallocate(fd, start, length); }

#define ON_PATH(op, class, two, from, path, to, other, call)                                                          \
    do {                                                                                                              \
        char buffer[PATH_MAX], buffer2[PATH_MAX];                                                                     \
        const char *name = of_path(from, path, buffer), *second = of_path(to, other, buffer2);                         \
        if (!name && !second) return call;                                                                            \
        pthread_mutex_lock(&lock);                                                                                    \
        uint64_t inode = inode_at(from, path);                                                                        \
        int failed = fate(class) == FAIL ? -1 : (int)(call);                                                          \
        int error = failed ? errno : 0;                                                                               \
        if (!inode && !failed) inode = inode_at(from, path);                                                          \
        /* to or from elsewhere: nothing that the record can describe */                                              \
        note(name && (second || two == 0) ? op : OP_LOST, class, error, inode, name, second, 0, NULL, 0);             \
        pthread_mutex_unlock(&lock);                                                                                  \
        errno = error;                                                                                                \
        return failed;                                                                                                \
    } while (0)
#define HERE AT_FDCWD

EXPORT int mkdirat(int dir, const char *path, mode_t mode) {
    ON_PATH(OP_MKDIR, CREATE, 0, dir, path, HERE, NULL, syscall(SYS_mkdirat, dir, path, mode));
}
EXPORT int mkdir(const char *path, mode_t mode) { return mkdirat(HERE, path, mode); }
EXPORT int unlinkat(int dir, const char *path, int flags) {
    ON_PATH(flags & AT_REMOVEDIR ? OP_RMDIR : OP_UNLINK, REMOVE, 0, dir, path, HERE, NULL,
            syscall(SYS_unlinkat, dir, path, flags));
}
EXPORT int unlink(const char *path) { return unlinkat(HERE, path, 0); }
EXPORT int rmdir(const char *path) { return unlinkat(HERE, path, AT_REMOVEDIR); }
EXPORT int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    ON_PATH(flags & RENAME_EXCHANGE ? OP_LOST : OP_RENAME, RENAME, 1, a, from, b, to,
            syscall(SYS_renameat2, a, from, b, to, flags));
}
EXPORT int renameat(int a, const char *from, int b, const char *to) { return renameat2(a, from, b, to, 0); }
EXPORT int rename(const char *from, const char *to) { return renameat2(HERE, from, HERE, to, 0); }
EXPORT int linkat(int a, const char *from, int b, const char *to, int flags) {
    ON_PATH(OP_LINK, CREATE, 1, a, from, b, to, syscall(SYS_linkat, a, from, b, to, flags));
}
EXPORT int link(const char *from, const char *to) { return linkat(HERE, from, HERE, to, 0); }
EXPORT int symlink(const char *to, const char *path) {
    ON_PATH(OP_LOST, CREATE, 0, HERE, path, HERE, NULL, syscall(SYS_symlinkat, to, AT_FDCWD, path));
}
EXPORT int truncate(const char *path, off_t length) {
    ON_PATH(OP_LOST, SHRINK, 0, HERE, path, HERE, NULL, syscall(SYS_truncate, path, length));
}
EXPORT int truncate64(const char *path, off64_t length) { return truncate(path, length); }

/* ---- copies within the system: refused, so that callers read and write instead ------------------------------- */
EXPORT ssize_t sendfile(int to, int from, off_t *offset, size_t n) {
    char buffer[PATH_MAX];
    return of_descriptor(to, buffer) ? (errno = ENOTSOCK, -1) : syscall(SYS_sendfile, to, from, offset, n);
}
EXPORT ssize_t sendfile64(int to, int from, off64_t *offset, size_t n) { return sendfile(to, from, offset, n); }
EXPORT ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t n, unsigned flags) {
    char buffer[PATH_MAX];
    return of_descriptor(to, buffer) ? (errno = EXDEV, -1)
                                     : syscall(SYS_copy_file_range, from, a, to, b, n, flags);
}

/* ---- reading ------------------------------------------------------------------------------------------------- */
#define READING(type, call, bad)                                                                                      \
    do {                                                                                                              \
        char buffer[PATH_MAX];                                                                                        \
        const char *name = of_descriptor(fd, buffer);                                                                 \
        if (!name) return call;                                                                                       \
        pthread_mutex_lock(&lock);                                                                                    \
        int failed = fate(READ) == FAIL, error = errno;                                                               \
        type result = failed ? bad : call;                                                                            \
        if (!failed) error = result == bad ? errno : 0;                                                               \
        note(OP_READ, READ, error, inode_of(fd), name, NULL, 0, NULL, 0);                                             \
        pthread_mutex_unlock(&lock);                                                                                  \
        errno = error;                                                                                                \
        return result;                                                                                                \
    } while (0)
EXPORT ssize_t read(int fd, void *to, size_t n) { READING(ssize_t, syscall(SYS_read, fd, to, n), (ssize_t)-1); }
EXPORT ssize_t pread(int fd, void *to, size_t n, off_t offset) {
    READING(ssize_t, syscall(SYS_pread64, fd, to, n, offset), (ssize_t)-1);
}
EXPORT ssize_t pread64(int fd, void *to, size_t n, off64_t offset) { return pread(fd, to, n, offset); }
EXPORT ssize_t readv(int fd, const struct iovec *v, int n) {
    READING(ssize_t, syscall(SYS_readv, fd, v, n), (ssize_t)-1);
}
EXPORT ssize_t preadv(int fd, const struct iovec *v, int n, off_t offset) {
    READING(ssize_t, syscall(SYS_preadv, fd, v, n, offset, 0), (ssize_t)-1);
}
EXPORT ssize_t preadv64(int fd, const struct iovec *v, int n, off64_t offset) { return preadv(fd, v, n, offset); }
EXPORT void *mmap(void *where, size_t bytes, int protection, int flags, int fd, off_t offset) {
#define MAP (void *)syscall(SYS_mmap, where, bytes, protection, flags, fd, offset)
    if (fd < 0 || (flags & MAP_ANONYMOUS)) return MAP;
    char path[PATH_MAX];
    const char *file = of_descriptor(fd, path);
    if (file && (protection & PROT_WRITE) && (flags & MAP_TYPE) != MAP_PRIVATE && !strstr(file, "-shm")) {
        pthread_mutex_lock(&lock);
        note(OP_LOST, WRITE, 0, inode_of(fd), file, NULL, 0, NULL, 0); /* writes that nobody sees */
        pthread_mutex_unlock(&lock);
    }
    READING(void *, MAP, MAP_FAILED);
}
EXPORT void *mmap64(void *where, size_t bytes, int protection, int flags, int fd, off64_t offset) {
    return mmap(where, bytes, protection, flags, fd, offset);
}

/* ---- sleeping ------------------------------------------------------------------------------------------------ */
EXPORT int clock_nanosleep(clockid_t clock, int flags, const struct timespec *wish, struct timespec *rest) {
    return hurry || !syscall(SYS_clock_nanosleep, clock, flags, wish, rest) ? 0 : errno;
}
EXPORT int nanosleep(const struct timespec *wish, struct timespec *rest) {
    return hurry ? 0 : (int)syscall(SYS_nanosleep, wish, rest);
}
EXPORT int usleep(useconds_t us) {
    struct timespec wish = {us / 1000000, us % 1000000 * 1000};
    return nanosleep(&wish, NULL);
}
