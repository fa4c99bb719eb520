/* The client of the benchmarks: tight loops of one system call, so that its own cost does not count.
 *
 *   client stat|negative|open|readopen|create|unlink DIR COUNT
 *   client readdir|readdirstat DIR 1
 *   client hotstat|hotopen|fsync|fdatasync|getattr FILE COUNT       (getattr: statx(2) that must ask)
 *   client seqwrite|seqread FILE MEBIBYTES
 *   client compute-stat|compute-negative DIR COUNT   (computes 200 us between two calls, which are timed alone)
 *   client wait DIR 0        (until its stdin ends: looks up, creates and removes a name each millisecond)
 *
 * Prints one number: nanoseconds per operation (per MiB for seq*, per directory for readdir*); `wait` the longest
 * time that one of its calls took.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MIB (1 << 20)

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void spin(double ns)
{
    double end = now() + ns;
    volatile unsigned x = 0;
    while (now() < end)
        for (int i = 0; i < 200; i++)
            x += i;
}

static int is(const char *what, const char *name) { return strcmp(what, name) == 0; }

static void list(const char *path, int with_stat)
{
    DIR *d = opendir(path);
    struct dirent *e;
    struct stat st;
    if (!d)
        err(1, "%s", path);
    while ((e = readdir(d)))
        if (with_stat && fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW))
            err(1, "%s", e->d_name);
    closedir(d);
}

static void one(const char *what, int at, int i, char *buffer)
{
    char name[32];
    struct stat st;
    int fd;
    snprintf(name, sizeof name, "f%05d", i);
    if (is(what, "stat")) {
        if (fstatat(at, name, &st, 0))
            err(1, "stat %s", name);
    } else if (is(what, "negative")) {
        name[0] = 'n';
        if (fstatat(at, name, &st, 0) == 0 || errno != ENOENT)
            err(1, "negative %s", name);
    } else if (is(what, "open") || is(what, "readopen")) {
        if ((fd = openat(at, name, O_RDONLY)) < 0)
            err(1, "open %s", name);
        if (is(what, "readopen") && read(fd, buffer, 4096) < 0)
            err(1, "read %s", name);
        close(fd);
    } else if (is(what, "create")) {
        if ((fd = openat(at, name, O_WRONLY | O_CREAT | O_EXCL, 0644)) < 0)
            err(1, "create %s", name);
        close(fd);
    } else if (is(what, "unlink")) {
        if (unlinkat(at, name, 0))
            err(1, "unlink %s", name);
    } else
        errx(2, "unknown operation %s", what);
}

static double on_file(const char *what, const char *path, int count, char *buffer)
{
    struct statx stx;
    struct stat st;
    double start;
    int fd = -1;
    if (is(what, "seqwrite"))
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    else if (is(what, "seqread"))
        fd = open(path, O_RDONLY);
    else if (is(what, "fsync") || is(what, "fdatasync") || is(what, "getattr"))
        fd = open(path, O_RDWR);
    else if (stat(path, &st))
        err(1, "%s", path);
    if (fd < 0 && !is(what, "hotstat") && !is(what, "hotopen"))
        err(1, "%s", path);
    start = now();
    for (int i = 0; i < count; i++) {
        int bad = 0;
        if (is(what, "seqwrite"))
            bad = write(fd, buffer, MIB) != MIB;
        else if (is(what, "seqread"))
            bad = read(fd, buffer, MIB) != MIB;
        else if (is(what, "fsync"))
            bad = fsync(fd);
        else if (is(what, "fdatasync"))
            bad = fdatasync(fd);
        else if (is(what, "getattr"))
            bad = statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &stx);
        else if (is(what, "hotstat"))
            bad = stat(path, &st);
        else if (is(what, "hotopen")) {
            int f = open(path, O_RDONLY);
            bad = f < 0;
            close(f);
        } else
            errx(2, "unknown operation %s", what);
        if (bad)
            err(1, "%s %s", what, path);
    }
    return (now() - start) / count;
}

static void longest(double *max, double start)
{
    double took = now() - start;
    if (took > *max)
        *max = took;
}

/* Somebody else on the mount, who is to be served while others do what takes long. */
static double wait_for_answers(int at)
{
    struct pollfd in = {.fd = 0, .events = POLLIN};
    double start, max = 0;
    struct stat st;
    char name[32];
    for (int i = 0; poll(&in, 1, 1) == 0; i++) {
        int fd;
        snprintf(name, sizeof name, "w%d", i);
        start = now();
        if (fstatat(at, name, &st, 0) == 0 || errno != ENOENT)
            err(1, "stat %s", name);
        longest(&max, start);
        start = now();
        if ((fd = openat(at, name, O_WRONLY | O_CREAT | O_EXCL, 0644)) < 0)
            err(1, "create %s", name);
        longest(&max, start);
        close(fd);
        start = now();
        if (unlinkat(at, name, 0))
            err(1, "unlink %s", name);
        longest(&max, start);
    }
    return max;
}

int main(int argc, char **argv)
{
    const char *what, *path;
    char *buffer = aligned_alloc(4096, MIB);
    struct stat st;
    double total = 0;
    int at, count;

    if (argc != 4 || !buffer)
        errx(2, "usage: client OPERATION PATH COUNT");
    what = argv[1], path = argv[2], count = atoi(argv[3]);
    memset(buffer, 'v', MIB);

    if (is(what, "readdir") || is(what, "readdirstat")) {
        double start = now();
        list(path, is(what, "readdirstat"));
        printf("%.1f\n", now() - start);
        return 0;
    }
    if (stat(path, &st) || !S_ISDIR(st.st_mode)) {
        printf("%.1f\n", on_file(what, path, count, buffer));
        return 0;
    }
    if ((at = open(path, O_RDONLY | O_DIRECTORY)) < 0)
        err(1, "%s", path);
    if (is(what, "wait")) {
        printf("%.1f\n", wait_for_answers(at));
        return 0;
    }
    if (strncmp(what, "compute-", 8) == 0) {
        for (int i = 0; i < count; i++) {
            double start;
            spin(200e3);
            start = now();
            one(what + 8, at, i, buffer);
            total += now() - start;
        }
    } else {
        double start = now();
        for (int i = 0; i < count; i++)
            one(what, at, i, buffer);
        total = now() - start;
    }
    printf("%.1f\n", total / count);
    return 0;
}
