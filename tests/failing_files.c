/* Makes the Nth file operation below one folder fail, and with `sticky` all that follow. Loaded with LD_PRELOAD; steered by
 * faults_arm and faults_disarm. With `is_short` a write takes half of its bytes first and says so, as a disk does when it fills up.
 *
 * Or, for a process that nobody steers: below the folder FAULTS_FOLDER the disk is full while the file FAULTS_WHILE exists.
 *
 * Counts what changes files: open to write, write, pwrite, writev, fwrite, fsync, fdatasync, sync_file_range, ftruncate, fallocate, rename,
 * unlink, mkdir. A sync that is not to fail does nothing: what is tested is what the program does about errors, and no power cut
 * comes in a test.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); real; })

static char root[PATH_MAX], gate[PATH_MAX];
static long count, fail_at;
static int fail_errno, fail_short, fail_sticky;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void from_environment(void) {
  const char *folder = getenv("FAULTS_FOLDER"), *file = getenv("FAULTS_WHILE");
  if (!folder || !file) return;
  strncpy(root, folder, sizeof root - 1);
  strncpy(gate, file, sizeof gate - 1);
}

void faults_arm(const char *folder, long at, int error, int is_short, int sticky) {
  pthread_mutex_lock(&mutex);
  strncpy(root, folder, sizeof root - 1);
  count = 0; fail_at = at; fail_errno = error; fail_short = is_short; fail_sticky = sticky;
  pthread_mutex_unlock(&mutex);
}

long faults_disarm(void) {
  pthread_mutex_lock(&mutex);
  long seen = count;
  root[0] = 0;
  pthread_mutex_unlock(&mutex);
  return seen;
}

/* Counts an operation on a path; returns the error that it is to meet, or 0. */
static int meets(const char *path) {
  int error = 0;
  pthread_mutex_lock(&mutex);
  if (root[0] && path && strncmp(path, root, strlen(root)) == 0) {
    count++;
    if (gate[0] && access(gate, F_OK) == 0) error = ENOSPC;
    if (count == fail_at || (fail_sticky && count > fail_at)) error = fail_errno;
  }
  pthread_mutex_unlock(&mutex);
  return error;
}

static int fd_meets(int fd) {
  char link[64], path[PATH_MAX];
  if (!root[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size <= 0) return 0;
  path[size] = 0;
  return meets(path);
}

static int in_root(int fd) {
  char link[64], path[PATH_MAX];
  if (!root[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  return size > 0 && strncmp(path, root, strlen(root)) == 0;
}

#define FAIL(error) do { int e_ = (error); if (e_) { errno = e_; return -1; } } while (0)


#define OPEN(name)                                                        \
  int name(const char *path, int flags, ...) {                            \
    mode_t mode = 0;                                                      \
    if (flags & (O_CREAT | O_TMPFILE)) {                                  \
      va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); \
    }                                                                     \
    if ((flags & O_ACCMODE) != O_RDONLY) FAIL(meets(path));               \
    return REAL(name)(path, flags, mode);                          \
  }
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *data, size_t size) {
  int error = fd_meets(fd);
  if (error && fail_short && count == fail_at && size > 1) return REAL(write)(fd, data, size / 2);
  FAIL(error);
  return REAL(write)(fd, data, size);
}

#define PWRITE(name, offset_t_)                                           \
  ssize_t name(int fd, const void *data, size_t size, offset_t_ offset) { \
    int error = fd_meets(fd);                                             \
    if (error && fail_short && count == fail_at && size > 1) return REAL(name)(fd, data, size / 2, offset); \
    FAIL(error);                                                          \
    return REAL(name)(fd, data, size, offset);                            \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int n) { FAIL(fd_meets(fd)); return REAL(writev)(fd, parts, n); }

size_t fwrite(const void *data, size_t size, size_t n, FILE *file) {
  int error = file == stderr || file == stdout ? 0 : fd_meets(fileno(file));
  if (error) { errno = error; return 0; }
  return REAL(fwrite)(data, size, n, file);
}

int fsync(int fd) { FAIL(fd_meets(fd)); return in_root(fd) ? 0 : REAL(fsync)(fd); }
int fdatasync(int fd) { FAIL(fd_meets(fd)); return in_root(fd) ? 0 : REAL(fdatasync)(fd); }
int sync_file_range(int fd, off64_t a, off64_t b, unsigned int flags) { FAIL(fd_meets(fd)); return REAL(sync_file_range)(fd, a, b, flags); }
int ftruncate(int fd, off_t size) { FAIL(fd_meets(fd)); return REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { FAIL(fd_meets(fd)); return REAL(ftruncate64)(fd, size); }
int fallocate(int fd, int mode, off_t a, off_t b) { FAIL(fd_meets(fd)); return REAL(fallocate)(fd, mode, a, b); }
int fallocate64(int fd, int mode, off64_t a, off64_t b) { FAIL(fd_meets(fd)); return REAL(fallocate64)(fd, mode, a, b); }
int posix_fallocate(int fd, off_t a, off_t b) { int error = fd_meets(fd); return error ? error : REAL(posix_fallocate)(fd, a, b); }
int posix_fallocate64(int fd, off64_t a, off64_t b) { int error = fd_meets(fd); return error ? error : REAL(posix_fallocate64)(fd, a, b); }
int rename(const char *from, const char *to) { FAIL(meets(to)); return REAL(rename)(from, to); }
int unlink(const char *path) { FAIL(meets(path)); return REAL(unlink)(path); }
int mkdir(const char *path, mode_t mode) { FAIL(meets(path)); return REAL(mkdir)(path, mode); }
