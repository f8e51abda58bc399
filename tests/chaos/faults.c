// A preloaded library that counts the file operations of a process below one folder and injects a fault at one of them.
// Off until fault_arm is called. A power cut is a kill after which what was not flushed is undone: directory entries
// since the last fsync of their folder, bytes since the last fsync of their file. Linux only.
#define _GNU_SOURCE
#include <dirent.h>
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
#include <unistd.h>

enum kind { LIST, OPEN, READ, CREATE, WRITE, FSYNC, RENAME, UNLINK, MKDIR, RMDIR, TRUNCATE, CLOSE, RELEASE };
static const char *NAMES[] = {"list",   "open",   "read",  "create", "write",    "fsync",
                              "rename", "unlink", "mkdir", "rmdir",  "truncate", "close", "release"};
enum action { COUNT, KILL, TORN, FAIL, SHORT, SIGNAL, POWER };

static char root[PATH_MAX], stash[PATH_MAX];
static int action, value, sticky, entries, data, log_fd = -1, fired;
static long target, count, kinds;
static pid_t process;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned char watched[1 << 16];

// -- the journal of a power cut ---------------------------------------------------------------------------------------

static struct node { dev_t dev; ino_t ino; int fd; off_t durable; int regular; } nodes[4096];
static struct entry { int kind, from, to, durable, saved; char old[256], new[256]; } journal[8192];
static int node_count, entry_count;

static int node_of(int fd) {  // takes the descriptor
  struct stat s;
  fstat(fd, &s);
  for (int i = 0; i < node_count; i++)
    if (nodes[i].dev == s.st_dev && nodes[i].ino == s.st_ino) return syscall(SYS_close, fd), i;
  nodes[node_count] = (struct node){s.st_dev, s.st_ino, fd, s.st_size, S_ISREG(s.st_mode)};
  return node_count++;
}

static int raw_open(const char *path, int flags) { return syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0); }

static int folder_of(const char *path, char *name) {
  char folder[PATH_MAX];
  strcpy(folder, path);
  char *slash = strrchr(folder, '/');
  snprintf(name, 256, "%s", slash + 1);
  *slash = 0;
  return node_of(raw_open(folder, O_PATH | O_DIRECTORY));
}

static char *stashed(int number) {
  static char path[PATH_MAX + 16];
  snprintf(path, sizeof path, "%s/%d", stash, number);
  return path;
}

static void record(int kind, const char *path, const char *to) {  // before the operation
  struct entry *e = &journal[entry_count];
  *e = (struct entry){.kind = kind};
  e->from = e->to = folder_of(path, e->old);
  if (to) e->to = folder_of(to, e->new);
  if (kind == UNLINK || kind == RENAME)
    e->saved = !linkat(AT_FDCWD, to ? to : path, AT_FDCWD, stashed(entry_count), 0);
  entry_count++;
}

static void flushed(int fd) {
  struct stat s;
  fstat(fd, &s);
  for (int i = 0; i < node_count; i++)
    if (nodes[i].dev == s.st_dev && nodes[i].ino == s.st_ino) {
      nodes[i].durable = s.st_size;
      for (int j = 0; j < entry_count; j++)
        if (!nodes[i].regular && (journal[j].from == i || journal[j].to == i)) journal[j].durable = 1;
    }
}

static void cut_power(void) {
  for (int i = entry_count - 1; i >= 0 && entries; i--) {
    struct entry *e = &journal[i];
    int from = nodes[e->from].fd, to = nodes[e->to].fd;
    if (e->durable || (entries == 2 && (i * 2654435761u + target * 40503u) >> 16 & 1)) continue;
    if (e->kind == CREATE) syscall(SYS_unlinkat, from, e->old, 0);
    if (e->kind == MKDIR) syscall(SYS_renameat2, from, e->old, AT_FDCWD, stashed(100000 + i), 0);
    if (e->kind == RMDIR) syscall(SYS_mkdirat, from, e->old, 0777);
    if (e->kind == RENAME) syscall(SYS_renameat2, to, e->new, from, e->old, 0);
    if (e->saved) linkat(AT_FDCWD, stashed(i), to, e->kind == RENAME ? e->new : e->old, 0);
  }
  for (int i = 0; i < node_count && data; i++) {
    struct stat s;
    if (!nodes[i].regular || fstat(nodes[i].fd, &s) || s.st_size <= nodes[i].durable) continue;
    off_t lost = s.st_size - nodes[i].durable, variant = target % 3;  // all, half, or zeros in its place
    syscall(SYS_ftruncate, nodes[i].fd, nodes[i].durable + (variant == 1 ? lost / 2 : 0));
    if (variant == 2) syscall(SYS_ftruncate, nodes[i].fd, s.st_size);
  }
}

// -- the fault --------------------------------------------------------------------------------------------------------

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

static int active(void) { return process && getpid() == process; }

static int below(int dirfd, const char *path, char *full) {  // 1 with the absolute path if it is watched
  if (!active() || !path) return 0;
  if (path[0] == '/') {
    snprintf(full, PATH_MAX, "%s", path);
  } else {
    char link[64], folder[PATH_MAX];
    snprintf(link, sizeof link, dirfd == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", dirfd);
    ssize_t size = readlink(link, folder, sizeof folder - 1);
    if (size < 0) return 0;
    folder[size] = 0;
    if (snprintf(full, PATH_MAX, "%s/%s", folder, path) >= PATH_MAX) return 0;
  }
  size_t size = strlen(root);
  return !strncmp(full, root, size) && (full[size] == '/' || !full[size]);
}

static int is_watched(int fd, char *full) {
  if (fd < 0 || fd >= 1 << 16 || !watched[fd] || !active()) return 0;
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, full, PATH_MAX - 1);
  full[size < 0 ? 0 : size] = 0;
  return 1;
}

static int begin(int kind, const char *path) {  // takes the lock; 1: act on this operation
  pthread_mutex_lock(&mutex);
  long number = count++;
  int now = action != COUNT && kinds >> kind & 1 && number >= target && (!fired || sticky);
  dprintf(log_fd, "%ld %s%s %s\n", number, now && !fired ? "FAULT " : "", NAMES[kind], path);
  if (!now) return 0;
  fired = 1;
  if (action == POWER) cut_power();
  if (action == POWER || action == KILL) die();
  if (action == SIGNAL) kill(getpid(), value);
  return 1;
}

static long end(long result, int error, int kind, const char *path) {  // releases the lock
  if (error) dprintf(log_fd, "- failed %s %s\n", NAMES[kind], path);
  pthread_mutex_unlock(&mutex);
  if (error) errno = error;
  return error ? -1 : result;
}

#define FAULTY(kind, path, call)                                             \
  do {                                                                       \
    if (begin(kind, path) && action == FAIL) return end(-1, value, kind, path); \
    long result = call;                                                      \
    return end(result, result < 0 ? errno : 0, kind, path);                  \
  } while (0)

void fault_arm(const char *folder, const char *stash_folder, const char *log, int what, int number, int again,
               int undo_entries, int undo_data, long of_kinds, long at) {
  snprintf(root, sizeof root, "%s", folder);
  snprintf(stash, sizeof stash, "%s", stash_folder);
  log_fd = raw_open(log, O_WRONLY | O_APPEND);
  action = what, value = number, sticky = again, entries = undo_entries, data = undo_data;
  kinds = of_kinds, target = at, process = getpid();
}

// -- the functions of the C library -----------------------------------------------------------------------------------

static int opened(int dirfd, const char *path, int flags, mode_t mode) {
  char full[PATH_MAX];
  if (!below(dirfd, path, full)) return syscall(SYS_openat, dirfd, path, flags, mode);
  int writes = (flags & O_ACCMODE) != O_RDONLY, missing = faccessat(dirfd, path, F_OK, 0);
  int kind = writes ? CREATE : OPEN;
  if (begin(kind, full) && action == FAIL && !(value == ENOSPC && !missing)) return end(-1, value, kind, full);
  if (action == POWER && writes && missing) record(CREATE, full, NULL);
  int fd = syscall(SYS_openat, dirfd, path, flags, mode), error = errno;
  if (fd < 0) return end(-1, error, kind, full);
  if (fd < 1 << 16) watched[fd] = writes ? 2 : 1;
  if (action == POWER && writes) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int node = node_of(raw_open(link, O_RDWR));
    if (missing || flags & O_TRUNC) nodes[node].durable = 0;
  }
  return end(fd, 0, kind, full);
}

#define MODE(flags, mode)                       \
  mode_t mode = 0;                              \
  if ((flags) & (O_CREAT | __O_TMPFILE)) {      \
    va_list list;                               \
    va_start(list, flags);                      \
    mode = va_arg(list, mode_t);                \
    va_end(list);                               \
  }
int open(const char *path, int flags, ...) { MODE(flags, mode) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, mode) return opened(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags, mode) return opened(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags, mode) return opened(at, path, flags, mode); }

DIR *opendir(const char *path) {
  static DIR *(*real)(const char *);
  if (!real) real = dlsym(RTLD_NEXT, "opendir");
  char full[PATH_MAX];
  if (!below(AT_FDCWD, path, full)) return real(path);
  if (begin(LIST, full) && action == FAIL) return end(-1, value, LIST, full), NULL;
  DIR *result = real(path);
  int error = result ? 0 : errno;
  return end(0, error, LIST, full), result;
}

ssize_t read(int fd, void *buffer, size_t size) {
  char full[PATH_MAX];
  if (!is_watched(fd, full)) return syscall(SYS_read, fd, buffer, size);
  FAULTY(READ, full, syscall(SYS_read, fd, buffer, size));
}

ssize_t write(int fd, const void *buffer, size_t size) {
  char full[PATH_MAX];
  if (!is_watched(fd, full)) return syscall(SYS_write, fd, buffer, size);
  int first = !fired;
  if (begin(WRITE, full)) {
    if (action == TORN) syscall(SYS_write, fd, buffer, size / 2), die();
    if (action == SHORT || (value == ENOSPC && first)) size = (size + 1) / 2;  // a full disk takes what still fits
    else if (action == FAIL) return end(-1, value, WRITE, full);
  }
  long result = syscall(SYS_write, fd, buffer, size);
  return end(result, result < 0 ? errno : 0, WRITE, full);
}

int fsync(int fd) {
  char full[PATH_MAX];
  if (!is_watched(fd, full)) return syscall(SYS_fsync, fd);
  if (begin(FSYNC, full) && action == FAIL) return end(-1, value, FSYNC, full);
  if (action == POWER) flushed(fd);
  return end(0, 0, FSYNC, full);  // the disk itself is not waited for
}

int fdatasync(int fd) { return fsync(fd); }

int renameat(int from, const char *old, int to, const char *new) {
  char full[PATH_MAX], target_path[PATH_MAX];
  if (!below(from, old, full) || !below(to, new, target_path)) return syscall(SYS_renameat2, from, old, to, new, 0);
  if (begin(RENAME, target_path) && action == FAIL) return end(-1, value, RENAME, target_path);
  if (action == POWER) record(RENAME, full, target_path);
  long result = syscall(SYS_renameat2, from, old, to, new, 0);
  return end(result, result < 0 ? errno : 0, RENAME, target_path);
}

int rename(const char *old, const char *new) { return renameat(AT_FDCWD, old, AT_FDCWD, new); }

int unlinkat(int at, const char *path, int flags) {
  char full[PATH_MAX];
  if (!below(at, path, full)) return syscall(SYS_unlinkat, at, path, flags);
  int kind = flags & AT_REMOVEDIR ? RMDIR : UNLINK;
  if (begin(kind, full) && action == FAIL) return end(-1, value, kind, full);
  if (action == POWER && !faccessat(at, path, F_OK, 0)) record(kind, full, NULL);
  long result = syscall(SYS_unlinkat, at, path, flags);
  return end(result, result < 0 ? errno : 0, kind, full);
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int at, const char *path, mode_t mode) {
  char full[PATH_MAX];
  if (!below(at, path, full)) return syscall(SYS_mkdirat, at, path, mode);
  if (begin(MKDIR, full) && action == FAIL) return end(-1, value, MKDIR, full);
  if (action == POWER && faccessat(at, path, F_OK, 0)) record(MKDIR, full, NULL);
  long result = syscall(SYS_mkdirat, at, path, mode);
  return end(result, result < 0 ? errno : 0, MKDIR, full);
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int ftruncate(int fd, off_t size) {
  char full[PATH_MAX];
  if (!is_watched(fd, full)) return syscall(SYS_ftruncate, fd, size);
  FAULTY(TRUNCATE, full, syscall(SYS_ftruncate, fd, size));
}

int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }

int close(int fd) {
  char full[PATH_MAX];
  if (!is_watched(fd, full)) return syscall(SYS_close, fd);
  char *dot = strrchr(full, '.');  // what was read, or a lock, has nothing to lose
  int written = watched[fd] == 2 && !(dot && !strcmp(dot, ".lock"));
  int failed = begin(written ? CLOSE : RELEASE, full) && action == FAIL;
  watched[fd] = 0;
  long result = syscall(SYS_close, fd);
  return end(result, failed ? value : 0, CLOSE, full);
}
