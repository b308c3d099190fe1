/*
 * The first process of the zram machine: loads the modules of /modules in the order of /order, writes each page set
 * of /sets to a fresh zram device with each algorithm of /algorithms, and prints what mm_stat says. Pages are written
 * with O_DIRECT, one page a bio, in the order of the set.
 *
 * Output, /dev/ttyS1: "ALGORITHM SET mm_stat...", or "ALGORITHM SET missing"; "bye" at the end.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define PAGE 4096
#define ZRAM "/sys/block/zram0/"

static int out_fd;

static void out(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	vdprintf(out_fd, format, list);
	va_end(list);
}

static void fail(const char *what)
{
	out("failed: %s: %m\n", what);
	reboot(RB_AUTOBOOT);
}

static int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY), bad;

	if (fd < 0)
		return -1;
	bad = write(fd, text, strlen(text)) < 0;
	close(fd);
	return bad ? -1 : 0;
}

static void load_modules(void)
{
	char name[128], path[160];
	FILE *order = fopen("/order", "r");

	while (order && fscanf(order, "%127s", name) == 1) {
		snprintf(path, sizeof(path), "/modules/%s.ko", name);
		int fd = open(path, O_RDONLY);

		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			fail(name);
		close(fd);
	}
	if (order)
		fclose(order);
}

static void open_zram(int *zram)
{
	unsigned int major_nr, minor_nr;
	FILE *dev = fopen(ZRAM "dev", "r");

	if (!dev || fscanf(dev, "%u:%u", &major_nr, &minor_nr) != 2)
		fail("zram0/dev");
	fclose(dev);
	unlink("/zram0");
	if (mknod("/zram0", S_IFBLK | 0600, makedev(major_nr, minor_nr)))
		fail("mknod");
	*zram = open("/zram0", O_RDWR | O_DIRECT);
	if (*zram < 0)
		fail("/zram0");
}

static void measure(const char *algorithm, const char *set)
{
	char path[160], stat_line[512], disk_size[32];
	static char page[PAGE] __attribute__((aligned(PAGE))), back[PAGE] __attribute__((aligned(PAGE)));
	struct stat about;
	int pages, zram, bad = 0;
	long nr = 0, at;

	snprintf(path, sizeof(path), "/pages/%s", set);
	pages = open(path, O_RDONLY);
	if (pages < 0 || fstat(pages, &about))
		fail(path);
	put(ZRAM "reset", "1");
	if (put(ZRAM "comp_algorithm", algorithm)) {
		out("%s %s missing\n", algorithm, set);
		close(pages);
		return;
	}
	snprintf(disk_size, sizeof(disk_size), "%ld", (long)about.st_size);
	if (put(ZRAM "disksize", disk_size))
		fail("disksize");
	open_zram(&zram);
	for (; read(pages, page, PAGE) == PAGE; nr++)
		if (pwrite(zram, page, PAGE, nr * PAGE) != PAGE)
			fail("write");
	for (at = 0; at < nr; at++) /* what is counted must be what was written */
		if (pread(zram, back, PAGE, at * PAGE) != PAGE || pread(pages, page, PAGE, at * PAGE) != PAGE
		    || memcmp(page, back, PAGE))
			bad = 1;
	if (bad)
		fail("pages do not read back");
	close(zram);
	close(pages);
	int fd = open(ZRAM "mm_stat", O_RDONLY);
	ssize_t length = read(fd, stat_line, sizeof(stat_line) - 1);

	close(fd);
	stat_line[length > 0 ? length : 0] = 0;
	out("%s %s %s", algorithm, set, stat_line);
}

int main(void)
{
	char algorithm[64], set[64];
	FILE *algorithms, *sets;

	mkdir("/dev", 0755);
	mkdir("/sys", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("sys", "/sys", "sysfs", 0, NULL);
	out_fd = open("/dev/ttyS1", O_WRONLY);
	load_modules();
	algorithms = fopen("/algorithms", "r");
	while (algorithms && fscanf(algorithms, "%63s", algorithm) == 1) {
		sets = fopen("/sets", "r");
		while (sets && fscanf(sets, "%63s", set) == 1)
			measure(algorithm, set);
		fclose(sets);
	}
	out("bye\n");
	sync();
	reboot(RB_AUTOBOOT);
	return 0;
}
