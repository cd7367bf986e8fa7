/* Makes Rust code of a process panic once, at a chosen place, without a line for it in the program: the clock fails, and
 * `Instant::now` and `SystemTime::now` cannot report that. Preloaded; see panics.rs.
 *
 * FAULT_MARKER: fails for the thread that has just received these words over the network.
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
  if ((armed || (clock == CLOCK_REALTIME && !spent && is_chosen())) && !atomic_exchange(&spent, 1)) {
    armed = 0;
    errno = EINVAL;
    return -1;
  }
  return (int)syscall(SYS_clock_gettime, clock, now);
}

ssize_t recv(int socket, void *buffer, size_t size, int flags) {
  static ssize_t (*next)(int, void *, size_t, int);
  if (next == NULL) *(void **)&next = dlsym(RTLD_NEXT, "recv");
  ssize_t length = next(socket, buffer, size, flags);
  const char *marker = getenv("FAULT_MARKER");
  armed = marker != NULL && length > 0 && !spent && memmem(buffer, (size_t)length, marker, strlen(marker)) != NULL;
  return length;
}
