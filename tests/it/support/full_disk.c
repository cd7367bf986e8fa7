/* A full disk for one server, which loads this first (LD_PRELOAD): while the file FLAG is there, no file whose path contains
   FOLDER grows. What a file has already may be overwritten, as on a real disk. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_full(int fd, off_t offset, size_t size) {
  char link[64], path[4096];
  struct stat file;
  ssize_t length;
  int before = errno, full = 0;
  if (access(FLAG, F_OK) == 0 && fstat(fd, &file) == 0 && S_ISREG(file.st_mode)) {
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    if (offset < 0) offset = fcntl(fd, F_GETFL) & O_APPEND ? file.st_size : lseek(fd, 0, SEEK_CUR);
    full = strstr(path, FOLDER) && offset + (off_t)size > file.st_size;
  }
  errno = full ? ENOSPC : before;
  return full;
}

static size_t sum(const struct iovec *parts, int count) {
  size_t size = 0;
  while (count-- > 0) size += parts[count].iov_len;
  return size;
}

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
  return is_full(fd, -1, size) ? -1 : REAL(write)(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  return is_full(fd, -1, sum(parts, count)) ? -1 : REAL(writev)(fd, parts, count);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
  return is_full(fd, offset, size) ? -1 : REAL(pwrite)(fd, data, size, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
  return is_full(fd, offset, size) ? -1 : REAL(pwrite64)(fd, data, size, offset);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
  return is_full(fd, offset, sum(parts, count)) ? -1 : REAL(pwritev)(fd, parts, count, offset);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
  return is_full(fd, offset, sum(parts, count)) ? -1 : REAL(pwritev64)(fd, parts, count, offset);
}
int posix_fallocate(int fd, off_t offset, off_t size) {
  return is_full(fd, offset, size) ? ENOSPC : REAL(posix_fallocate)(fd, offset, size);
}
int posix_fallocate64(int fd, off64_t offset, off64_t size) {
  return is_full(fd, offset, size) ? ENOSPC : REAL(posix_fallocate64)(fd, offset, size);
}
