/* A disk that refuses: one call that writes below a folder fails, or kills.

   Preloaded (LD_PRELOAD), it stands between a process and its C library, so it sees
   what Python writes as well as what C++ libraries do. Armed from within the process:

       faults_arm(folder, at, error, sticky)   call number `at` fails with errno `error`;
                                               -1 kills; sticky: all later ones fail, too
       faults_count()                          calls seen since
       faults_hit()                            "write /a/b", the call that was hit
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static char hit[PATH_MAX + 32];
static atomic_long seen;
static long fail_at;
static int fail_with, is_sticky;

void faults_arm(const char *path, long at, int error, int sticky) {
  atomic_store(&seen, 0);
  fail_at = at;
  fail_with = error;
  is_sticky = sticky;
  hit[0] = 0;
  snprintf(folder, sizeof folder, "%s", path);
}

long faults_count(void) { return atomic_load(&seen); }
const char *faults_hit(void) { return hit; }

/* Returns whether this call is to fail, errno set. */
static int fails(const char *call, const char *path) {
  size_t length = strlen(folder);
  if (!length || strncmp(path, folder, length)) return 0;
  long number = atomic_fetch_add(&seen, 1) + 1;
  if (number != fail_at && !(is_sticky && fail_at && number > fail_at)) return 0;
  if (number == fail_at) snprintf(hit, sizeof hit, "%s %s", call, path + length);
  if (fail_with == -1) kill(getpid(), SIGKILL);
  errno = fail_with;
  return 1;
}

static int fails_at(const char *call, int at, const char *path) {
  char link[64], whole[2 * PATH_MAX];
  if (path && path[0] == '/') return fails(call, path);
  if (at == AT_FDCWD)
    snprintf(link, sizeof link, "/proc/self/cwd");
  else
    snprintf(link, sizeof link, "/proc/self/fd/%d", at);
  ssize_t length = readlink(link, whole, PATH_MAX);
  if (length < 0) return 0;
  whole[length] = 0;
  if (path) snprintf(whole + length, PATH_MAX, "/%s", path);
  return fails(call, whole);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))

#define OPEN(name)                                                  \
  int name(const char *path, int flags, ...) {                      \
    va_list rest;                                                   \
    va_start(rest, flags);                                          \
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                   \
    if (WRITES(flags) && fails_at("open", AT_FDCWD, path)) return -1; \
    return NEXT(name)(path, flags, mode);                           \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                \
  int name(int at, const char *path, int flags, ...) {              \
    va_list rest;                                                   \
    va_start(rest, flags);                                          \
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                   \
    if (WRITES(flags) && fails_at("open", at, path)) return -1;     \
    return NEXT(name)(at, path, flags, mode);                       \
  }
OPENAT(openat)
OPENAT(openat64)

#define OF_FILE(type, name, parameters, arguments)                  \
  type name parameters {                                            \
    if (fails_at(#name, file, NULL)) return -1;                     \
    return NEXT(name) arguments;                                    \
  }
OF_FILE(ssize_t, write, (int file, const void *b, size_t n), (file, b, n))
OF_FILE(ssize_t, pwrite, (int file, const void *b, size_t n, off_t o), (file, b, n, o))
OF_FILE(ssize_t, pwrite64, (int file, const void *b, size_t n, off64_t o), (file, b, n, o))
OF_FILE(ssize_t, writev, (int file, const struct iovec *v, int n), (file, v, n))
OF_FILE(ssize_t, pwritev, (int file, const struct iovec *v, int n, off_t o), (file, v, n, o))
OF_FILE(int, fsync, (int file), (file))
OF_FILE(int, fdatasync, (int file), (file))
OF_FILE(int, ftruncate, (int file, off_t n), (file, n))
OF_FILE(int, ftruncate64, (int file, off64_t n), (file, n))

#define OF_PATH(name, parameters, arguments)                        \
  int name parameters {                                             \
    if (fails_at(#name, AT_FDCWD, path)) return -1;                 \
    return NEXT(name) arguments;                                    \
  }
OF_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
OF_PATH(rename, (const char *path, const char *to), (path, to))
OF_PATH(unlink, (const char *path), (path))
OF_PATH(rmdir, (const char *path), (path))
OF_PATH(truncate, (const char *path, off_t n), (path, n))
OF_PATH(truncate64, (const char *path, off64_t n), (path, n))

#define OF_PLACE(name, parameters, arguments)                       \
  int name parameters {                                             \
    if (fails_at(#name, at, path)) return -1;                       \
    return NEXT(name) arguments;                                    \
  }
OF_PLACE(mkdirat, (int at, const char *path, mode_t mode), (at, path, mode))
OF_PLACE(unlinkat, (int at, const char *path, int flags), (at, path, flags))
OF_PLACE(renameat, (int at, const char *path, int b, const char *to), (at, path, b, to))
OF_PLACE(renameat2, (int at, const char *path, int b, const char *to, unsigned flags),
         (at, path, b, to, flags))
