/* A fault at the n-th file operation of a process, whichever library makes it.
 *
 * Preloaded (LD_PRELOAD), it stands before libc's functions that change files. Python, Arrow, torch and Rust's standard
 * library all call them, so one counter sees every write. Operations under one folder count; at the n-th one:
 *
 *   kill   SIGKILL before it                       torn   half of a write's bytes, then SIGKILL
 *   cut    it, then the file written last loses    lost   SIGKILL before it, and as after a power failure all files
 *          half of its last write, then SIGKILL           lose what no fsync has brought to disk
 *   full   ENOSPC, for good: a write still takes   eio    EIO, this once
 *          half of its bytes, then nothing fits
 *
 * Armed by fault_arm(), or by FAULT_FOLDER, FAULT_AT, FAULT_MODE and FAULT_TRACE in the environment of a process (not of
 * its children). Every operation is a line of the trace file: "kind path bytes".
 *
 * The real operations are system calls, so nothing here comes back to itself. What glibc's own stdio writes is not seen
 * (it does not call write() by name); fault_bytes() against "wchar" of /proc/self/io tells whether there was any.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { COUNT, KILL, TORN, CUT, LOST, FULL, EIO_ONCE };
static const char *const MODES[] = {"count", "kill", "torn", "cut", "lost", "full", "eio"};

/* What becomes of one operation: as it is, not at all (errno is set), half of it, or all of it; the last two may be the
 * process's last. */
enum fate { PASS, FAIL, HALF, LAST };

/* A file that was written: a descriptor of our own, how much of it is on disk for certain, and its last write. */
struct written {
    dev_t device;
    ino_t inode;
    int fd;
    off_t synced;
    size_t last;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char folder[PATH_MAX];
static size_t folder_length; /* 0: not armed */
static enum mode mode;
static long at, count;
static long long bytes; /* handed to write calls, wherever to */
static int trace = -1;
static struct written files[1024];
static int num_files, last_written = -1;

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

static void lose(void) {
    struct stat now;
    if (mode == CUT && last_written >= 0 && fstat(files[last_written].fd, &now) == 0)
        syscall(SYS_ftruncate, files[last_written].fd, now.st_size - (off_t)(files[last_written].last + 1) / 2);
    if (mode == LOST)
        for (int i = 0; i < num_files; i++)
            if (fstat(files[i].fd, &now) == 0 && now.st_size > files[i].synced)
                syscall(SYS_ftruncate, files[i].fd, files[i].synced);
}

/* Place of a descriptor's file in `files`, taken up if it is new there; -1 if it cannot be. */
static int find(int fd) {
    struct stat now;
    if (fstat(fd, &now) != 0 || !S_ISREG(now.st_mode)) return -1;
    for (int i = 0; i < num_files; i++)
        if (files[i].device == now.st_dev && files[i].inode == now.st_ino) return i;
    if (num_files == sizeof files / sizeof *files) return -1;
    files[num_files] = (struct written){now.st_dev, now.st_ino, fcntl(fd, F_DUPFD_CLOEXEC, 256), now.st_size, 0};
    return num_files++;
}

/* The path below our folder, in `place`; NULL if it is elsewhere. A path of NULL is the descriptor's own. */
static const char *below(int fd, const char *path, char *place) {
    place[0] = 0;
    if (path == NULL || path[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, fd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, place, PATH_MAX - 1);
        if (length < 0) return NULL;
        place[length] = 0;
    }
    if (path != NULL) {
        size_t length = strlen(place);
        snprintf(place + length, PATH_MAX - length, length ? "/%s" : "%s", path);
    }
    if (strncmp(place, folder, folder_length) != 0) return NULL;
    if (place[folder_length] == 0) return ".";
    return place[folder_length] == '/' ? place + folder_length + 1 : NULL;
}

/* Count an operation and decide on it. */
static enum fate begin(const char *kind, int fd, const char *path, size_t size, int needs_space) {
    char place[PATH_MAX], line[PATH_MAX + 64];
    const char *name;
    if (folder_length == 0 || (name = below(fd, path, place)) == NULL) return PASS;
    enum fate fate = PASS;
    int is_write = strcmp(kind, "write") == 0, error = 0;
    pthread_mutex_lock(&lock);
    long number = ++count;
    if (trace >= 0) {
        int length = snprintf(line, sizeof line, "%s %s %zu\n", kind, name, size);
        bytes += syscall(SYS_write, trace, line, length);
    }
    if (number == at && (mode == KILL || mode == LOST)) {
        lose();
        die();
    }
    if (is_write && (last_written = find(fd)) >= 0) files[last_written].last = size;
    if (number == at && mode == EIO_ONCE) error = EIO;
    if (mode == FULL && (number == at || (number > at && needs_space))) error = ENOSPC;
    if (number == at && mode == FULL && is_write && size > 1) error = 0, fate = HALF;
    if (number == at && mode == TORN) fate = HALF;
    if (number == at && mode == CUT) fate = LAST;
    pthread_mutex_unlock(&lock);
    if (error) {
        errno = error;
        return FAIL;
    }
    return fate;
}

static long end(enum fate fate, long result) {
    if (fate == LAST || (fate == HALF && mode == TORN)) {
        lose();
        die();
    }
    return result;
}

#define OPERATION(kind, fd, path, size, needs_space, call)                 \
    do {                                                                   \
        enum fate fate = begin(kind, fd, path, size, needs_space);         \
        return fate == FAIL ? -1 : end(fate, call);                        \
    } while (0)

/* -- files that are opened to be written --------------------------------------------------------------------------- */

static int open_it(int at_fd, const char *path, int flags, mode_t permissions) {
    int writes = (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) != 0;
    if (!writes) return syscall(SYS_openat, at_fd, path, flags, permissions);
    OPERATION("open", at_fd, path, 0, (flags & O_CREAT) != 0, syscall(SYS_openat, at_fd, path, flags, permissions));
}

static mode_t permissions_of(int flags, va_list rest) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t permissions = permissions_of(flags, rest);
    va_end(rest);
    return open_it(AT_FDCWD, path, flags, permissions);
}

int openat(int fd, const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t permissions = permissions_of(flags, rest);
    va_end(rest);
    return open_it(fd, path, flags, permissions);
}

int open64(const char *, int, ...) __attribute__((alias("open")));
int openat64(int, const char *, int, ...) __attribute__((alias("openat")));

int __open_2(const char *path, int flags) { return open_it(AT_FDCWD, path, flags, 0); }
int __openat_2(int fd, const char *path, int flags) { return open_it(fd, path, flags, 0); }
int __open64_2(const char *, int) __attribute__((alias("__open_2")));
int __openat64_2(int, const char *, int) __attribute__((alias("__openat_2")));

int creat(const char *path, mode_t permissions) {
    return open_it(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, permissions);
}
int creat64(const char *, mode_t) __attribute__((alias("creat")));

static FILE *fopen_it(const char *name, const char *path, const char *how) {
    FILE *(*real)(const char *, const char *) = (FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, name);
    enum fate fate = strpbrk(how, "wa+") ? begin("open", AT_FDCWD, path, 0, strpbrk(how, "wa") != NULL) : PASS;
    if (fate == FAIL) return NULL;
    FILE *file = real(path, how);
    end(fate, 0);
    return file;
}
FILE *fopen(const char *path, const char *how) { return fopen_it("fopen", path, how); }
FILE *fopen64(const char *path, const char *how) { return fopen_it("fopen64", path, how); }

/* -- bytes --------------------------------------------------------------------------------------------------------- */

static ssize_t counted(ssize_t done) {
    if (done > 0) __atomic_add_fetch(&bytes, done, __ATOMIC_RELAXED);
    return done;
}

static size_t part(enum fate fate, size_t size) { return fate == HALF ? size / 2 : size; }

#define WRITE(fd, size, call) OPERATION("write", fd, NULL, size, 1, counted(call))

ssize_t write(int fd, const void *data, size_t size) {
    WRITE(fd, size, syscall(SYS_write, fd, data, part(fate, size)));
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    WRITE(fd, size, syscall(SYS_pwrite64, fd, data, part(fate, size), offset));
}
ssize_t pwrite64(int, const void *, size_t, off64_t) __attribute__((alias("pwrite")));

/* Half of several pieces is half of the first one. */
static size_t total(const struct iovec *pieces, int num) {
    size_t size = 0;
    for (int i = 0; i < num; i++) size += pieces[i].iov_len;
    return size;
}

ssize_t writev(int fd, const struct iovec *pieces, int num) {
    WRITE(fd, total(pieces, num),
          fate == HALF ? syscall(SYS_write, fd, pieces[0].iov_base, pieces[0].iov_len / 2)
                       : syscall(SYS_writev, fd, pieces, num));
}

ssize_t pwritev(int fd, const struct iovec *pieces, int num, off_t offset) {
    WRITE(fd, total(pieces, num),
          fate == HALF ? syscall(SYS_pwrite64, fd, pieces[0].iov_base, pieces[0].iov_len / 2, offset)
                       : syscall(SYS_pwritev, fd, pieces, num, offset, offset >> 32));
}
ssize_t pwritev64(int, const struct iovec *, int, off64_t) __attribute__((alias("pwritev")));

ssize_t sendfile(int to, int from, off_t *offset, size_t size) {
    WRITE(to, size, syscall(SYS_sendfile, to, from, offset, part(fate, size)));
}
ssize_t sendfile64(int, int, off64_t *, size_t) __attribute__((alias("sendfile")));

ssize_t copy_file_range(int from, off64_t *offset_from, int to, off64_t *offset_to, size_t size, unsigned flags) {
    WRITE(to, size, syscall(SYS_copy_file_range, from, offset_from, to, offset_to, part(fate, size), flags));
}

int fallocate(int fd, int how, off_t offset, off_t size) {
    OPERATION("allocate", fd, NULL, size, 1, syscall(SYS_fallocate, fd, how, offset, size));
}
int fallocate64(int, int, off64_t, off64_t) __attribute__((alias("fallocate")));

int ftruncate(int fd, off_t size) {
    OPERATION("truncate", fd, NULL, size, 0, syscall(SYS_ftruncate, fd, size));
}
int ftruncate64(int, off64_t) __attribute__((alias("ftruncate")));

int truncate(const char *path, off_t size) {
    OPERATION("truncate", AT_FDCWD, path, size, 0, syscall(SYS_truncate, path, size));
}
int truncate64(const char *, off64_t) __attribute__((alias("truncate")));

/* -- what brings bytes to disk ------------------------------------------------------------------------------------- */

static int synced(int fd, int result) {
    struct stat now;
    if (result == 0 && folder_length) {
        pthread_mutex_lock(&lock);
        if (fstat(fd, &now) == 0)
            for (int i = 0; i < num_files; i++)
                if (files[i].device == now.st_dev && files[i].inode == now.st_ino) files[i].synced = now.st_size;
        pthread_mutex_unlock(&lock);
    }
    return result;
}

int fsync(int fd) { OPERATION("fsync", fd, NULL, 0, 0, synced(fd, syscall(SYS_fsync, fd))); }
int fdatasync(int fd) { OPERATION("fsync", fd, NULL, 0, 0, synced(fd, syscall(SYS_fdatasync, fd))); }

/* -- names --------------------------------------------------------------------------------------------------------- */

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    OPERATION("rename", to_fd, to, 0, 0, syscall(SYS_renameat2, from_fd, from, to_fd, to, flags));
}
int renameat(int from_fd, const char *from, int to_fd, const char *to) {
    return renameat2(from_fd, from, to_fd, to, 0);
}
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    OPERATION("link", to_fd, to, 0, 1, syscall(SYS_linkat, from_fd, from, to_fd, to, flags));
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int symlinkat(const char *target, int fd, const char *path) {
    OPERATION("link", fd, path, 0, 1, syscall(SYS_symlinkat, target, fd, path));
}
int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

int mkdirat(int fd, const char *path, mode_t permissions) {
    OPERATION("mkdir", fd, path, 0, 1, syscall(SYS_mkdirat, fd, path, permissions));
}
int mkdir(const char *path, mode_t permissions) { return mkdirat(AT_FDCWD, path, permissions); }

int unlinkat(int fd, const char *path, int flags) {
    OPERATION(flags & AT_REMOVEDIR ? "rmdir" : "unlink", fd, path, 0, 0, syscall(SYS_unlinkat, fd, path, flags));
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    int failed = unlink(path);
    return failed && errno == EISDIR ? rmdir(path) : failed;
}

/* -- arming -------------------------------------------------------------------------------------------------------- */

long fault_count(void) { return count; }
long long fault_bytes(void) { return bytes; }

void fault_arm(const char *where, long number, const char *what, const char *trace_file) {
    for (size_t i = 0; i < sizeof MODES / sizeof *MODES; i++)
        if (strcmp(MODES[i], what) == 0) mode = i;
    at = number;
    trace = syscall(SYS_openat, AT_FDCWD, trace_file, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0644);
    snprintf(folder, sizeof folder, "%s", where);
    folder_length = strlen(folder);
}

__attribute__((constructor)) static void arm_from_environment(void) {
    const char *where = getenv("FAULT_FOLDER");
    if (where == NULL) return;
    fault_arm(where, atol(getenv("FAULT_AT")), getenv("FAULT_MODE"), getenv("FAULT_TRACE"));
    unsetenv("FAULT_FOLDER"); /* children of this process are not meant */
}
