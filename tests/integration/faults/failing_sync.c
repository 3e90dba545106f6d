/* Preloaded into a store: fsync and fdatasync fail with EIO while the file that FAILING_SYNC names exists.
   What was written stays in the page cache, as with a real disk that loses a write-back. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static int failing(void)
{
    const char *control = getenv("FAILING_SYNC");
    return control != NULL && access(control, F_OK) == 0;
}

static int sync_or_fail(const char *name, int fd)
{
    int (*real)(int);
    if (failing()) {
        errno = EIO;
        return -1;
    }
    real = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(fd);
}

int fsync(int fd)
{
    return sync_or_fail("fsync", fd);
}

int fdatasync(int fd)
{
    return sync_or_fail("fdatasync", fd);
}
