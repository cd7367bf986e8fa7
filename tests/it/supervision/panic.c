/* Makes Rust code of a process panic once, at a chosen place, without a line for it in the program: the clock fails, and
 * `Instant::now` and `SystemTime::now` cannot report that. Preloaded; see panics.rs.
 *
 * FAULT_MARKER: fails for the thread that has just received something on a connection over which these words came.
 * FAULT_FILE, FAULT_THREAD: while the file exists, fails for the threads whose names begin so and that ask for the date. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static atomic_int spent;
static __thread int armed;

static int is_chosen(void) {
  const char *thread = getenv("FAULT_THREAD"), *file = getenv("FAULT_FILE");
  char name[16] = "";
  if (thread == NULL || file == NULL) return 0;
  pthread_getname_np(pthread_self(), name, sizeof name);
  return strncmp(name, thread, strlen(thread)) == 0 && access(file, F_OK) == 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int is_rust = clock == CLOCK_MONOTONIC || clock == CLOCK_REALTIME; /* the allocator asks a coarse one, now and then */
  if (((armed && is_rust) || (clock == CLOCK_REALTIME && !spent && is_chosen())) && !atomic_exchange(&spent, 1)) {
    armed = 0;
    errno = EINVAL;
    return -1;
  }
  return (int)syscall(SYS_clock_gettime, clock, now);
}

static int ends_with(const char *buffer, ssize_t length, const char *end, ssize_t size) {
  return length >= size && memcmp(buffer + length - size, end, (size_t)size) == 0;
}

/* The words and the end of an answer may come in different pieces, and between two pieces a thread may do something else,
 * for which a clock that fails is no panic. So a connection that has had the words stays chosen, and it arms a thread with
 * the end of an answer (ReadyForQuery of Postgres, the empty line of HTTP), until that thread sends or receives again. */
ssize_t recv(int socket, void *buffer, size_t size, int flags) {
  static ssize_t (*next)(int, void *, size_t, int);
  static atomic_int chosen = -1;
  if (next == NULL) *(void **)&next = dlsym(RTLD_NEXT, "recv");
  ssize_t length = next(socket, buffer, size, flags);
  const char *marker = getenv("FAULT_MARKER");
  if (marker != NULL && length > 0 && memmem(buffer, (size_t)length, marker, strlen(marker)) != NULL) chosen = socket;
  int is_complete = ends_with(buffer, length - 1, "Z\0\0\0\5", 5) || ends_with(buffer, length, "\r\n\r\n", 4);
  armed = chosen == socket && is_complete && !spent;
  return length;
}

ssize_t send(int socket, const void *buffer, size_t size, int flags) {
  static ssize_t (*next)(int, const void *, size_t, int);
  if (next == NULL) *(void **)&next = dlsym(RTLD_NEXT, "send");
  armed = 0;
  return next(socket, buffer, size, flags);
}
