// Loaded before the C library by tests/killed_commands.py: counts the calls that change a file below a directory, and
// ends the process at one of them, before it or, for a write, when half of it is done.
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <mutex>
#include <string>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

namespace {

std::string root;  // empty: nothing is counted
long deadly = 0;   // the call that is the last one, counted from 1; 0: none
bool torn = false;
std::string made;  // a letter for each call that was counted
std::mutex mutex;

[[noreturn]] void die() {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

bool below(const std::string& path) {
  return path.compare(0, root.size(), root) == 0 && (path.size() == root.size() || path[root.size()] == '/');
}

std::string of(int descriptor) {
  char target[4096];
  std::string link = "/proc/self/fd/" + std::to_string(descriptor);
  ssize_t size = readlink(link.c_str(), target, sizeof target);
  return size < 0 ? "" : std::string(target, size);
}

std::string whole(int directory, const char* path) {
  if (path[0] == '/') return path;
  char here[4096];
  std::string start = directory == AT_FDCWD ? (getcwd(here, sizeof here) ? here : "") : of(directory);
  return start + "/" + path;
}

bool deadly_now(const std::string& path, char letter) {
  if (root.empty() || !below(path)) return false;
  std::lock_guard<std::mutex> lock(mutex);
  made += letter;
  return static_cast<long>(made.size()) == deadly;
}

void change(const std::string& path) {
  if (deadly_now(path, '.')) die();
}

template <class F>
F* next(const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}

bool writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }

}  // namespace

extern "C" {

void kills_arm(const char* directory, long at, int half) {
  root = directory;
  deadly = at;
  torn = half;
  made.clear();
}

const char* kills_made() { return made.c_str(); }

#define OPEN(name)                                          \
  int name(const char* path, int flags, ...) {              \
    va_list rest;                                           \
    va_start(rest, flags);                                  \
    mode_t mode = flags & O_CREAT ? va_arg(rest, int) : 0;  \
    va_end(rest);                                           \
    if (writes(flags)) change(whole(AT_FDCWD, path));       \
    static auto real = next<int(const char*, int, ...)>(#name); \
    return real(path, flags, mode);                         \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                            \
  int name(int directory, const char* path, int flags, ...) {   \
    va_list rest;                                               \
    va_start(rest, flags);                                      \
    mode_t mode = flags & O_CREAT ? va_arg(rest, int) : 0;      \
    va_end(rest);                                               \
    if (writes(flags)) change(whole(directory, path));          \
    static auto real = next<int(int, const char*, int, ...)>(#name); \
    return real(directory, path, flags, mode);                  \
  }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int descriptor, const void* bytes, size_t size) {
  static auto real = next<ssize_t(int, const void*, size_t)>("write");
  if (!root.empty() && deadly_now(of(descriptor), 'w')) {
    if (torn) real(descriptor, bytes, size / 2);
    die();
  }
  return real(descriptor, bytes, size);
}

ssize_t writev(int descriptor, const iovec* parts, int number) {
  static auto real = next<ssize_t(int, const iovec*, int)>("writev");
  if (!root.empty()) change(of(descriptor));
  return real(descriptor, parts, number);
}

// Calls that name a file by its descriptor, by a path, by a directory and a path, or that name two.
#define BY_DESCRIPTOR(name, ARGUMENTS, VALUES)             \
  int name ARGUMENTS {                                     \
    static auto real = next<int ARGUMENTS>(#name);         \
    if (!root.empty()) change(of(descriptor));             \
    return real VALUES;                                    \
  }
#define BY_PATH(name, directory, ARGUMENTS, VALUES)        \
  int name ARGUMENTS {                                     \
    static auto real = next<int ARGUMENTS>(#name);         \
    if (!root.empty()) change(whole(directory, path));     \
    return real VALUES;                                    \
  }
BY_DESCRIPTOR(fsync, (int descriptor), (descriptor))
BY_DESCRIPTOR(fdatasync, (int descriptor), (descriptor))
BY_DESCRIPTOR(ftruncate, (int descriptor, off_t size), (descriptor, size))
BY_DESCRIPTOR(ftruncate64, (int descriptor, off64_t size), (descriptor, size))
BY_DESCRIPTOR(fchmod, (int descriptor, mode_t mode), (descriptor, mode))
BY_PATH(truncate, AT_FDCWD, (const char* path, off_t size), (path, size))
BY_PATH(chmod, AT_FDCWD, (const char* path, mode_t mode), (path, mode))
BY_PATH(fchmodat, directory, (int directory, const char* path, mode_t mode, int flags), (directory, path, mode, flags))
BY_PATH(mkdir, AT_FDCWD, (const char* path, mode_t mode), (path, mode))
BY_PATH(mkdirat, directory, (int directory, const char* path, mode_t mode), (directory, path, mode))
BY_PATH(rmdir, AT_FDCWD, (const char* path), (path))
BY_PATH(unlink, AT_FDCWD, (const char* path), (path))
BY_PATH(unlinkat, directory, (int directory, const char* path, int flags), (directory, path, flags))
BY_PATH(rename, AT_FDCWD, (const char* from, const char* path), (from, path))
BY_PATH(renameat, to, (int directory, const char* from, int to, const char* path), (directory, from, to, path))
BY_PATH(link, AT_FDCWD, (const char* from, const char* path), (from, path))
BY_PATH(linkat, to, (int directory, const char* from, int to, const char* path, int flags),
        (directory, from, to, path, flags))
BY_PATH(symlink, AT_FDCWD, (const char* target, const char* path), (target, path))

}  // extern "C"
