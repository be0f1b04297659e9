/* A disk with a write cache that a power cut empties, for the kernel of tests/kernel/uml.
 *
 * Preloaded into that process, it stands between it and the file of its first disk: what is
 * written stays in memory, where reads find it, until the kernel flushes (fdatasync).  One sector
 * in eight reaches the file at once, as a disk may write what it likes when it likes, so that after
 * SIGKILL the file holds everything that was flushed, and of the rest single sectors in no order.
 *
 *   VOLATILE_DISK   the file's path      VOLATILE_SEED   chooses those sectors
 *
 * One thread of that kernel does all reading and writing of its disks, so nothing is locked here.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SECTOR = 512, THROUGH = 8, RANGES = 1 << 16 };

static struct stat disk; /* its file; st_ino is 0 while there is none */
static uint64_t random_state;
static char *cached;        /* the disk's content where a sector is held */
static char *held;          /* by sector: not in the file yet */
static uint64_t disk_bytes;
static struct { uint64_t offset, bytes; } ranges[RANGES]; /* written since the last flush */
static int range_count;

static char *memory(size_t bytes)
{
	char *found = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (found == MAP_FAILED)
		abort();
	return found;
}

__attribute__((constructor)) static void begin(void)
{
	const char *seed = getenv("VOLATILE_SEED");
	const char *path = getenv("VOLATILE_DISK");

	if (!path || stat(path, &disk) != 0)
		return;
	random_state = (seed ? strtoull(seed, NULL, 10) : 1) * 2 + 1;
	disk_bytes = disk.st_size;
	cached = memory(disk_bytes);
	held = memory(disk_bytes / SECTOR);
}

static unsigned random_below(unsigned limit)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (random_state >> 33) % limit;
}

static int is_disk(int fd)
{
	struct stat status;

	return disk.st_ino && fstat(fd, &status) == 0 && status.st_ino == disk.st_ino
	       && status.st_dev == disk.st_dev;
}

static int is_of_disk(int fd, uint64_t offset, uint64_t bytes)
{
	return is_disk(fd) && offset % SECTOR == 0 && bytes % SECTOR == 0
	       && offset + bytes <= disk_bytes;
}

static int write_back(int fd)
{
	for (int i = 0; i < range_count; i++) {
		uint64_t at = ranges[i].offset, end = at + ranges[i].bytes;
		while (at < end) {
			uint64_t from = at;
			while (at < end && held[at / SECTOR])
				at += SECTOR;
			if (at > from) {
				if (syscall(SYS_pwrite64, fd, cached + from, at - from, from)
				    != (long)(at - from))
					return -1;
				memset(held + from / SECTOR, 0, (at - from) / SECTOR);
			}
			while (at < end && !held[at / SECTOR])
				at += SECTOR;
		}
	}
	range_count = 0;
	return 0;
}

ssize_t pwrite64(int fd, const void *from, size_t bytes, off64_t offset)
{
	if (!is_of_disk(fd, offset, bytes))
		return syscall(SYS_pwrite64, fd, from, bytes, offset);
	memcpy(cached + offset, from, bytes);
	for (uint64_t at = offset; at < offset + bytes; at += SECTOR) {
		held[at / SECTOR] = 1;
		if (random_below(THROUGH) == 0
		    && syscall(SYS_pwrite64, fd, cached + at, SECTOR, at) == SECTOR)
			held[at / SECTOR] = 0;
	}
	if (range_count == RANGES && write_back(fd) != 0)
		return -1;
	ranges[range_count].offset = offset;
	ranges[range_count++].bytes = bytes;
	return bytes;
}

ssize_t pread64(int fd, void *into, size_t bytes, off64_t offset)
{
	ssize_t got = syscall(SYS_pread64, fd, into, bytes, offset);

	if (got <= 0 || !is_of_disk(fd, offset, got))
		return got;
	for (ssize_t at = 0; at < got; at += SECTOR)
		if (held[(offset + at) / SECTOR])
			memcpy((char *)into + at, cached + offset + at, SECTOR);
	return got;
}

int fdatasync(int fd)
{
	/* The host keeps its power: what is in the file is durable. */
	if (is_disk(fd))
		return write_back(fd);
	return syscall(SYS_fdatasync, fd);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t bytes)
{
	int failed = syscall(SYS_fallocate, fd, mode, offset, bytes);

	if (!failed && is_of_disk(fd, offset, bytes))
		memset(held + offset / SECTOR, 0, bytes / SECTOR);
	return failed;
}
