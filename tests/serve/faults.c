/* Loaded before the C library (LD_PRELOAD), this makes calls on files fail at random:

   FAULTS_BELOW   only files whose path begins with this
   FAULTS_ONE_IN  one call in so many fails: EIO, ENOSPC, EROFS, EMFILE, or a write that takes half of its bytes
   FAULTS_SEED    of the random numbers */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Atomic uint64_t state;
static unsigned long one_in;
static const char *below;

__attribute__((constructor)) static void begin(void)
{
    below = getenv("FAULTS_BELOW");
    one_in = strtoul(getenv("FAULTS_ONE_IN"), NULL, 10);
    state = strtoul(getenv("FAULTS_SEED"), NULL, 10);
}

static uint64_t next(void) /* splitmix64 */
{
    uint64_t z = atomic_fetch_add(&state, 0x9e3779b97f4a7c15) + 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static int path_fails(const char *path)
{
    return below && !strncmp(path, below, strlen(below)) && next() % one_in == 0;
}

static int file_fails(int file)
{
    char name[32], path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    long size = syscall(SYS_readlinkat, AT_FDCWD, name, path, sizeof path - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    return path_fails(path);
}

static int failure(const int *errors, int count)
{
    errno = errors[next() % count];
    return -1;
}
#define FAIL(...) failure((const int[]){__VA_ARGS__}, sizeof(int[]){__VA_ARGS__} / sizeof(int))

ssize_t write(int file, const void *data, size_t size)
{
    if (file_fails(file)) {
        if (next() % 4)
            return FAIL(EIO, ENOSPC, EROFS);
        size = (size + 1) / 2;
    }
    return syscall(SYS_write, file, data, size);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at)
{
    if (file_fails(file)) {
        if (next() % 4)
            return FAIL(EIO, ENOSPC, EROFS);
        size = (size + 1) / 2;
    }
    return syscall(SYS_pwrite64, file, data, size, at);
}
ssize_t pwrite(int file, const void *data, size_t size, off_t at) { return pwrite64(file, data, size, at); }

ssize_t read(int file, void *data, size_t size)
{
    return file_fails(file) ? FAIL(EIO) : syscall(SYS_read, file, data, size);
}

int fsync(int file) { return file_fails(file) ? FAIL(EIO, ENOSPC) : syscall(SYS_fsync, file); }

int ftruncate64(int file, off64_t size) { return file_fails(file) ? FAIL(EIO, EROFS) : syscall(SYS_ftruncate, file, size); }
int ftruncate(int file, off_t size) { return ftruncate64(file, size); }

int rename(const char *from, const char *to) { return path_fails(to) ? FAIL(EIO, ENOSPC, EROFS) : syscall(SYS_rename, from, to); }

int unlink(const char *path) { return path_fails(path) ? FAIL(EIO, EROFS) : syscall(SYS_unlink, path); }

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    if (path_fails(path))
        return flags & (O_WRONLY | O_RDWR) ? FAIL(EROFS, ENOSPC, EMFILE) : FAIL(EIO, EMFILE);
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return open64(path, flags, mode);
}

/* What only looks. Nobody is told by these that something is not there. */
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int stat64(const char *path, struct stat64 *about) { return path_fails(path) ? FAIL(EIO, ESTALE) : NEXT(stat64)(path, about); }
int lstat64(const char *path, struct stat64 *about) { return path_fails(path) ? FAIL(EIO, ESTALE) : NEXT(lstat64)(path, about); }
int fstat64(int file, struct stat64 *about) { return file_fails(file) ? FAIL(EIO, ESTALE) : NEXT(fstat64)(file, about); }
int statvfs64(const char *path, struct statvfs64 *about)
{
    return path_fails(path) ? FAIL(EIO, ESTALE) : NEXT(statvfs64)(path, about);
}
ssize_t readlink(const char *path, char *name, size_t size)
{
    return path_fails(path) ? FAIL(EIO, ESTALE) : NEXT(readlink)(path, name, size);
}
DIR *opendir(const char *path) { return path_fails(path) ? FAIL(EIO, EMFILE), NULL : NEXT(opendir)(path); }
int symlink(const char *to, const char *path) { return path_fails(path) ? FAIL(EIO, ENOSPC) : NEXT(symlink)(to, path); }
int link(const char *from, const char *to) { return path_fails(to) ? FAIL(EIO, ENOSPC) : NEXT(link)(from, to); }
int mkdir(const char *path, mode_t mode) { return path_fails(path) ? FAIL(EIO, ENOSPC) : NEXT(mkdir)(path, mode); }
int flock(int file, int how) { return file_fails(file) ? FAIL(EIO, ENOLCK) : NEXT(flock)(file, how); }
int futimens(int file, const struct timespec times[2]) { return file_fails(file) ? FAIL(EIO, EROFS) : NEXT(futimens)(file, times); }

int close(int file) /* of one that was written, so of no lock; it is closed all the same */
{
    struct stat64 about;
    int written = fcntl(file, F_GETFL) & (O_WRONLY | O_RDWR) && !NEXT(fstat64)(file, &about) && about.st_size;
    int fails = written && file_fails(file);
    int closed = NEXT(close)(file);
    return fails ? FAIL(EIO, ENOSPC) : closed;
}
