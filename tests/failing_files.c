/* Makes the Nth file operation of some kinds below one folder fail, and with `sticky` all that follow. Loaded with LD_PRELOAD;
 * steered by faults_arm and faults_disarm. With `is_short` a write takes half of its bytes first and says so, as a disk does when it
 * fills up. With `forgets` a sync that fails takes away what was written to the file since the one before, as a kernel may
 * that drops the pages it could not write and says so but once; the next sync succeeds.
 *
 * Or, for a process that nobody steers: below the folder FAULTS_FOLDER the disk is full while the file FAULTS_WHILE exists; and below
 * FAULTS_NO_ROOM the system says meanwhile that nothing is free.
 *
 * The kinds: CHANGES (open to write, write, pwrite, writev, fwrite, sync_file_range, ftruncate, fallocate, rename, unlink, mkdir), SYNCS
 * (fsync, fdatasync), READS (open to read, read, pread, fread), MAPS (mmap of a file). A sync that is not to fail does nothing:
 * what is tested is what the program does about errors, and no power cut comes in a test.
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
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); real; })

enum { CHANGES = 1, SYNCS = 2, READS = 4, MAPS = 8 };

static char root[PATH_MAX], gate[PATH_MAX], cramped[PATH_MAX];
static long count, fail_at;
static int fail_errno, fail_short, fail_sticky, fail_kinds = CHANGES | SYNCS, fail_forgets;

enum { SYNCED_MAX = 4096 };
static struct { dev_t device; ino_t inode; off_t size; } synced[SYNCED_MAX];
static int synced_count;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void from_environment(void) {
  const char *folder = getenv("FAULTS_FOLDER"), *file = getenv("FAULTS_WHILE"), *no_room = getenv("FAULTS_NO_ROOM");
  if (!folder || !file) return;
  strncpy(root, folder, sizeof root - 1);
  strncpy(gate, file, sizeof gate - 1);
  if (no_room) strncpy(cramped, no_room, sizeof cramped - 1);
}

void faults_arm(const char *folder, long at, int error, int is_short, int sticky, int kinds, int forgets) {
  pthread_mutex_lock(&mutex);
  strncpy(root, folder, sizeof root - 1);
  count = 0; fail_at = at; fail_errno = error; fail_short = is_short; fail_sticky = sticky; fail_kinds = kinds;
  fail_forgets = forgets; synced_count = 0;
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
static int meets(const char *path, int kind) {
  int error = 0;
  pthread_mutex_lock(&mutex);
  if (kind & fail_kinds && root[0] && path && strncmp(path, root, strlen(root)) == 0) {
    count++;
    if (gate[0] && access(gate, F_OK) == 0) error = ENOSPC;
    if (count == fail_at || (fail_sticky && count > fail_at)) error = fail_errno;
  }
  pthread_mutex_unlock(&mutex);
  return error;
}

static int fd_meets(int fd, int kind) {
  char link[64], path[PATH_MAX];
  if (!root[0] || !(kind & fail_kinds)) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size <= 0) return 0;
  path[size] = 0;
  return meets(path, kind);
}

static int in_root(int fd) {
  char link[64], path[PATH_MAX];
  if (!root[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  return size > 0 && strncmp(path, root, strlen(root)) == 0;
}

#define FAIL(error) do { int e_ = (error); if (e_) { errno = e_; return -1; } } while (0)

/* Notes up to where a file is synced; or, where that fails, takes back what was written since. */
static void note_sync(int fd, int failed) {
  struct stat about;
  if (!fail_forgets || fstat(fd, &about) || !S_ISREG(about.st_mode)) return;
  pthread_mutex_lock(&mutex);
  int at = 0;
  while (at < synced_count && (synced[at].device != about.st_dev || synced[at].inode != about.st_ino)) at++;
  if (at == synced_count) {
    if (at == SYNCED_MAX) abort();
    synced[at].device = about.st_dev; synced[at].inode = about.st_ino; synced[at].size = 0;
    synced_count++;
  }
  if (!failed) synced[at].size = about.st_size;
  off_t size = synced[at].size;
  pthread_mutex_unlock(&mutex);
  if (failed && REAL(ftruncate)(fd, size)) abort();
}

static int sync_meets(int fd) {
  int error = fd_meets(fd, SYNCS);
  if (error || in_root(fd)) note_sync(fd, error);
  return error;
}

#define OPEN(name)                                                        \
  int name(const char *path, int flags, ...) {                            \
    mode_t mode = 0;                                                      \
    if (flags & (O_CREAT | O_TMPFILE)) {                                  \
      va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); \
    }                                                                     \
    FAIL(meets(path, (flags & O_ACCMODE) != O_RDONLY ? CHANGES : READS)); \
    return REAL(name)(path, flags, mode);                          \
  }
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *data, size_t size) {
  int error = fd_meets(fd, CHANGES);
  if (error && fail_short && count == fail_at && size > 1) return REAL(write)(fd, data, size / 2);
  FAIL(error);
  return REAL(write)(fd, data, size);
}

#define PWRITE(name, offset_t_)                                           \
  ssize_t name(int fd, const void *data, size_t size, offset_t_ offset) { \
    int error = fd_meets(fd, CHANGES);                                             \
    if (error && fail_short && count == fail_at && size > 1) return REAL(name)(fd, data, size / 2, offset); \
    FAIL(error);                                                          \
    return REAL(name)(fd, data, size, offset);                            \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int n) { FAIL(fd_meets(fd, CHANGES)); return REAL(writev)(fd, parts, n); }

size_t fwrite(const void *data, size_t size, size_t n, FILE *file) {
  int error = file == stderr || file == stdout ? 0 : fd_meets(fileno(file), CHANGES);
  if (error) { errno = error; return 0; }
  return REAL(fwrite)(data, size, n, file);
}

#define STATVFS(name)                                                     \
  int name(const char *path, struct name *found) {                        \
    int failed = REAL(name)(path, found);                                 \
    if (!failed && cramped[0] && strncmp(path, cramped, strlen(cramped)) == 0 && access(gate, F_OK) == 0) \
      found->f_bfree = found->f_bavail = 0;                               \
    return failed;                                                        \
  }
STATVFS(statvfs)
STATVFS(statvfs64)

int fsync(int fd) { FAIL(sync_meets(fd)); return in_root(fd) ? 0 : REAL(fsync)(fd); }
int fdatasync(int fd) { FAIL(sync_meets(fd)); return in_root(fd) ? 0 : REAL(fdatasync)(fd); }
int sync_file_range(int fd, off64_t a, off64_t b, unsigned int flags) { FAIL(fd_meets(fd, CHANGES)); return REAL(sync_file_range)(fd, a, b, flags); }
int ftruncate(int fd, off_t size) { FAIL(fd_meets(fd, CHANGES)); return REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { FAIL(fd_meets(fd, CHANGES)); return REAL(ftruncate64)(fd, size); }
int fallocate(int fd, int mode, off_t a, off_t b) { FAIL(fd_meets(fd, CHANGES)); return REAL(fallocate)(fd, mode, a, b); }
int fallocate64(int fd, int mode, off64_t a, off64_t b) { FAIL(fd_meets(fd, CHANGES)); return REAL(fallocate64)(fd, mode, a, b); }
int posix_fallocate(int fd, off_t a, off_t b) { int error = fd_meets(fd, CHANGES); return error ? error : REAL(posix_fallocate)(fd, a, b); }
int posix_fallocate64(int fd, off64_t a, off64_t b) { int error = fd_meets(fd, CHANGES); return error ? error : REAL(posix_fallocate64)(fd, a, b); }
int rename(const char *from, const char *to) { FAIL(meets(to, CHANGES)); return REAL(rename)(from, to); }
int unlink(const char *path) { FAIL(meets(path, CHANGES)); return REAL(unlink)(path); }
int mkdir(const char *path, mode_t mode) { FAIL(meets(path, CHANGES)); return REAL(mkdir)(path, mode); }

ssize_t read(int fd, void *data, size_t size) { FAIL(fd_meets(fd, READS)); return REAL(read)(fd, data, size); }
ssize_t pread(int fd, void *data, size_t size, off_t at) { FAIL(fd_meets(fd, READS)); return REAL(pread)(fd, data, size, at); }
ssize_t pread64(int fd, void *data, size_t size, off64_t at) { FAIL(fd_meets(fd, READS)); return REAL(pread64)(fd, data, size, at); }

#define FREAD(name)                                              \
  size_t name(void *data, size_t size, size_t n, FILE *file) {   \
    int error = fd_meets(fileno(file), READS);                   \
    if (error) { errno = error; return 0; }                      \
    return REAL(name)(data, size, n, file);                      \
  }
#undef fread_unlocked
FREAD(fread)
FREAD(fread_unlocked)

#define MMAP(name, offset_t_)                                                                \
  void *name(void *address, size_t size, int protection, int flags, int fd, offset_t_ at) {  \
    int error = fd < 0 ? 0 : fd_meets(fd, MAPS);                                             \
    if (error) { errno = error; return MAP_FAILED; }                                         \
    return REAL(name)(address, size, protection, flags, fd, at);                             \
  }
MMAP(mmap, off_t)
MMAP(mmap64, off64_t)
