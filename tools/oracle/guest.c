/*
 * The first process of the recording machine: runs op programs, each in a fresh task, and writes the answers of
 * the kernel to the second serial port. docs/oracle.md says what the ops are; record.py builds and boots it.
 *
 * What decides where a page goes must be the program's own doing, so this program takes care to do nothing else
 * in the task that runs it: all its buffers are one shared mapping, touched before the program begins (a fork does not
 * copy it); page tables of a region are made when it is mapped; what would take memory of the kernel (cgroups,
 * reading /proc) is done by the parent, on demand, over two futex words.
 *
 * Input, /programs:  "boot" lines for the machine, then "program NAME", op lines, "end".
 * Output, /dev/ttyS1: "program NAME", a result line for each op, "end"; "fact ..." lines; "bye" at the end.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define FIRST 0x100000000000UL
#define REGION 0x40000000UL
#define NR_REGIONS 64
#define TABLE_PAGES 512 /* pages that one page of a page table maps */
#define PAGES_MAX (REGION / PAGE)
#define NR_FILES 4
#define OUT_BYTES (1 << 20)
#define SYS_set_mempolicy_home_node_nr 450
#define POPULATE_READ 22
#define INODE_PERIOD 12

static const int file_pages[NR_FILES] = {64, 32, 128, 2048};

/* Everything that the task needs while a program runs. Shared with the parent. */
struct shared {
	int request, done; /* futex words */
	char command[256]; /* what the parent shall do */
	long answer;
	size_t out_len;
	char out[OUT_BYTES];
	void *pages[PAGES_MAX];
	int nodes[PAGES_MAX];
	int status[PAGES_MAX];
	unsigned char resident[PAGES_MAX];
	char data[PAGE];
	char scratch[1 << 17]; /* files of /proc */
	/* The op that runs: words of its line, the same as numbers. */
	char *words[16];
	long numbers[16];
	int nr_words;
	sigjmp_buf on_signal;
	volatile int guarded;
	int ahead; /* whether the machine reads ahead */
};
static struct shared *sh;
static int files[NR_FILES];
static int out_fd, pagemap_fd, drop_fd;
static pid_t held; /* child of `hold` */
#define w (sh->words)
#define n (sh->numbers)
#define nw (sh->nr_words)

/* ---- small things */

static void say(const char *format, ...)
{
	va_list list;
	va_start(list, format);
	sh->out_len += vsnprintf(sh->out + sh->out_len, OUT_BYTES - sh->out_len, format, list);
	va_end(list);
	if (sh->out_len >= OUT_BYTES)
		sh->out_len = OUT_BYTES - 1;
}

static long rc(long answer)
{
	return answer < 0 ? -errno : answer;
}

static void say_runs(const int *values, long count)
{
	for (long at = 0; at < count;) {
		long start = at;
		while (at < count && values[at] == values[start])
			at++;
		say("%s%d*%ld", start ? "," : "", values[start], at - start);
	}
}

static unsigned long mask_of(const char *text)
{
	unsigned long mask = 0;
	if (*text == '-')
		return 0;
	while (*text) {
		mask |= 1UL << strtoul(text, (char **)&text, 10);
		if (*text == ',')
			text++;
	}
	return mask;
}

static void say_mask(unsigned long mask)
{
	int first = 1;
	for (int node = 0; node < 64; node++)
		if (mask >> node & 1) {
			say("%s%d", first ? "" : ",", node);
			first = 0;
		}
	if (first)
		say("-");
}

static char *page_of(long region, long offset)
{
	return (char *)(FIRST + region * REGION + offset * PAGE);
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC);
	if (fd < 0)
		return -errno;
	long wrote = rc(write(fd, text, strlen(text)));
	close(fd);
	return wrote < 0 ? wrote : 0;
}

static long read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY);
	if (fd < 0)
		return -errno;
	size_t got = 0;
	long more;
	while (got < size - 1 && (more = read(fd, text + got, size - 1 - got)) > 0)
		got += more;
	text[got] = 0;
	close(fd);
	return got;
}

static void wait_word(int *word, int value)
{
	while (__atomic_load_n(word, __ATOMIC_SEQ_CST) != value) {
		int now = __atomic_load_n(word, __ATOMIC_SEQ_CST);
		struct timespec soon = {0, 20 * 1000 * 1000};
		if (now != value)
			syscall(SYS_futex, word, FUTEX_WAIT, now, &soon, NULL, 0);
	}
}

static void set_word(int *word, int value)
{
	__atomic_store_n(word, value, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* Let the parent do something, and wait for its answer. */
static long ask(const char *format, ...)
{
	va_list list;
	va_start(list, format);
	vsnprintf(sh->command, sizeof sh->command, format, list);
	va_end(list);
	sh->done = 0;
	set_word(&sh->request, 1);
	wait_word(&sh->done, 1);
	return sh->answer;
}

static void caught(int number)
{
	if (sh->guarded)
		siglongjmp(sh->on_signal, number);
	_exit(100 + number);
}

/* One access; 0, or the signal that it ended in. */
static int access_page(volatile char *page, int is_write)
{
	int number = sigsetjmp(sh->on_signal, 0);
	if (!number) {
		sh->guarded = 1;
		if (is_write)
			*page = 1;
		else
			(void)*page;
	}
	sh->guarded = 0;
	return number;
}

/* ---- ops: words of the line in w[1..], numbers in n[1..] */

static char *start_of(void)
{
	return page_of(n[1], n[2]);
}

static void op_cpu(void)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(n[1], &set);
	say("%ld", rc(sched_setaffinity(0, sizeof set, &set)));
}

/* The page tables of a region are made now, so that no later fault takes memory of the kernel. */
static long make_tables(char *at, long pages, int shared)
{
	if (madvise(at, pages * PAGE, POPULATE_READ) < 0)
		return -errno;
	if (madvise(at, pages * PAGE, shared ? MADV_REMOVE : MADV_DONTNEED) < 0)
		return -errno;
	return 0;
}

static void op_mmap(void)
{
	int shared = w[3][0] == 's';
	char *at = page_of(n[1], 0);
	void *got = mmap(at, n[2] * PAGE, PROT_READ | PROT_WRITE,
			 (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	say("%ld", got == MAP_FAILED ? (long)-errno : make_tables(at, n[2], shared));
}

/* A guard at the end of the last page table keeps the table while one mapping is put in the place of another. */
static void op_fmap(void)
{
	char *at = page_of(n[1], 0);
	long end = (n[3] / TABLE_PAGES + 1) * TABLE_PAGES;
	int flags = MAP_ANONYMOUS | MAP_PRIVATE | MAP_FIXED;
	if (mmap(at, (end - 1) * PAGE, PROT_READ, flags, -1, 0) == MAP_FAILED ||
	    mmap(at + (end - 1) * PAGE, PAGE, PROT_NONE, flags, -1, 0) == MAP_FAILED ||
	    madvise(at, (end - 1) * PAGE, POPULATE_READ) < 0) {
		say("%d", -errno);
		return;
	}
	munmap(at + n[3] * PAGE, (end - 1 - n[3]) * PAGE);
	int shared = !strcmp(w[4], "fs");
	void *got = mmap(at, n[3] * PAGE, PROT_READ | PROT_WRITE, (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED,
			 files[n[2]], 0);
	say("%ld", got == MAP_FAILED ? (long)-errno : 0L);
}

static void op_munmap(void)
{
	say("%ld", rc(munmap(start_of(), n[3] * PAGE)));
}

static void op_setpol(void)
{
	unsigned long mask = mask_of(w[2]);
	say("%ld", rc(syscall(SYS_set_mempolicy, n[1], mask ? &mask : NULL, mask ? 65 : 0)));
}

static void op_mbind(void)
{
	unsigned long mask = mask_of(w[5]);
	say("%ld", rc(syscall(SYS_mbind, start_of(), n[3] * PAGE, n[4], mask ? &mask : NULL, mask ? 65 : 0, n[6])));
}

static void op_homenode(void)
{
	say("%ld", rc(syscall(SYS_set_mempolicy_home_node_nr, start_of(), n[3] * PAGE, n[4], n[5])));
}

static void op_touch(void)
{
	for (long at = 0; at < n[3]; at++) {
		int number = access_page(start_of() + at * PAGE, w[4][0] == 'w');
		if (number) {
			say("%d", number == SIGBUS ? -ENXIO : -EFAULT);
			return;
		}
	}
	say("0");
}

/* Like touch, but goes on: the signal of each page, or 0. */
static void op_try(void)
{
	for (long at = 0; at < n[3]; at++)
		sh->status[at] = access_page(start_of() + at * PAGE, w[4][0] == 'w');
	say_runs(sh->status, n[3]);
}

/* Wait until no page is on its way from the disk. */
static void quiet(void)
{
	ask("quiet");
}

/* A page that is still being read is not mapped around a fault: each fault waits for the disk. */
static void op_faults(void)
{
	struct rusage before, after;
	int number = 0;
	getrusage(RUSAGE_SELF, &before);
	long seen = before.ru_majflt + before.ru_minflt;
	for (long at = 0; at < n[3] && !number; at++) {
		number = access_page(start_of() + at * PAGE, w[4][0] == 'w');
		getrusage(RUSAGE_SELF, &after);
		if (sh->ahead && after.ru_majflt + after.ru_minflt > seen) {
			seen = after.ru_majflt + after.ru_minflt;
			quiet();
		}
	}
	getrusage(RUSAGE_SELF, &after);
	if (number)
		say("%d", number == SIGBUS ? -ENXIO : -EFAULT);
	else
		say("%ld %ld", after.ru_minflt - before.ru_minflt, after.ru_majflt - before.ru_majflt);
}

static void where(char *at, long pages)
{
	for (long page = 0; page < pages; page++) {
		sh->pages[page] = at + page * PAGE;
		sh->status[page] = -999;
	}
	say("%ld ", rc(syscall(SYS_move_pages, 0, pages, sh->pages, NULL, sh->status, 0)));
	say_runs(sh->status, pages);
}

static void op_where(void)
{
	where(start_of(), n[3]);
}

/* `move` to one node, `moves` to a list of nodes in turn; without a mask, so that any number may stand there. */
static void op_move(void)
{
	int list[16], count = 0;
	for (char *text = w[4]; *text; text += *text == ',')
		list[count++] = strtol(text, &text, 10);
	for (long page = 0; page < n[3]; page++) {
		sh->pages[page] = start_of() + page * PAGE;
		sh->nodes[page] = list[page % count];
		sh->status[page] = -999;
	}
	say("%ld ", rc(syscall(SYS_move_pages, 0, n[3], sh->pages, sh->nodes, sh->status, n[5])));
	say_runs(sh->status, n[3]);
}

/* migrate_pages from nowhere moves nothing, and drains the LRU batches of all CPUs. */
static void drain_batches(void)
{
	unsigned long none = 0, node = 1;
	syscall(SYS_migrate_pages, 0, 65, &none, &node);
}

static void op_migrate(void)
{
	unsigned long from = mask_of(w[1]), to = mask_of(w[2]);
	say("%ld", rc(syscall(SYS_migrate_pages, 0, 65, &from, &to)));
}

static void get_policy(void *at, unsigned long flags)
{
	unsigned long mask[16] = {0};
	int mode = 0;
	long answer = rc(syscall(SYS_get_mempolicy, &mode, mask, 1024, at, flags));
	say("%ld %d ", answer, mode);
	say_mask(mask[0]);
}

static void op_getpol(void)
{
	get_policy(NULL, 0);
}

static void op_getpolat(void)
{
	get_policy(page_of(n[1], n[2]), 2);
}

/* get_mempolicy with any flags, without and with an address. */
static void op_query(void)
{
	get_policy(NULL, n[1]);
}

static void op_queryat(void)
{
	get_policy(page_of(n[2], n[3]), n[1]);
}

static void op_allowed(void)
{
	unsigned long mask[16] = {0};
	say("%ld ", rc(syscall(SYS_get_mempolicy, NULL, mask, 1024, NULL, 4)));
	say_mask(mask[0]);
}

static void op_madvise(void)
{
	say("%ld", rc(madvise(start_of(), n[3] * PAGE, n[4])));
}

static void op_protect(void)
{
	int prot = (strchr(w[4], 'r') ? PROT_READ : 0) | (strchr(w[4], 'w') ? PROT_WRITE : 0);
	say("%ld", rc(mprotect(start_of(), n[3] * PAGE, prot)));
}

static void op_mlock(void)
{
	say("%ld", rc(mlock2(start_of(), n[3] * PAGE, n[4])));
}

static void op_munlock(void)
{
	say("%ld", rc(munlock(start_of(), n[3] * PAGE)));
}

/* Resize in place, or bring the pages to an offset of a region. */
static void op_mremap(void)
{
	char *to = page_of(n[4], n[5]);
	int flags = to == start_of() ? 0 : MREMAP_MAYMOVE | MREMAP_FIXED;
	void *got = mremap(start_of(), n[3] * PAGE, n[6] * PAGE, flags, to);
	say("%ld", got == MAP_FAILED ? (long)-errno : 0L);
}

/* After a fork the task's own pages are write-protected: write to those that are in use before the program goes on. */
static void settle(void)
{
	volatile char stack[PAGE];
	stack[0] = stack[PAGE - 1] = 0;
	held = *(volatile pid_t *)&held;
	errno = *(volatile int *)&errno;
}

static void op_forkwrite(void)
{
	pid_t child = fork();
	if (child < 0) {
		say("%d", -errno);
		return;
	}
	if (!child) {
		int number = 0;
		for (long at = 0; at < n[3] && !number; at++)
			number = access_page(start_of() + at * PAGE, 1);
		say("%d | child where ", number == SIGBUS ? -ENXIO : number ? -EFAULT : 0);
		where(start_of(), n[3]);
		_exit(0);
	}
	settle();
	waitpid(child, NULL, 0);
}

/* A child that keeps what it got from the fork until `release`, so that every page is mapped twice. */
static void op_hold(void)
{
	held = fork();
	if (!held) {
		pause();
		_exit(0);
	}
	settle();
	say("%d", held < 0 ? -errno : 0);
}

static void op_release(void)
{
	if (held > 0) {
		kill(held, SIGKILL);
		waitpid(held, NULL, 0);
	}
	held = 0;
	say("0");
}

/* Entries of the page table: 0 none, 1 a page, 2 swapped out. */
static void op_ptes(void)
{
	unsigned long entry;
	for (long at = 0; at < n[3]; at++) {
		if (pread(pagemap_fd, &entry, 8, ((unsigned long)start_of() / PAGE + at) * 8) != 8)
			entry = 0;
		sh->status[at] = entry >> 63 ? 1 : entry >> 62 & 1 ? 2 : 0;
	}
	say_runs(sh->status, n[3]);
}

static void op_fread(void)
{
	long pages = 0;
	while (pages < n[3] && pread(files[n[1]], sh->data, PAGE, (n[2] + pages) * PAGE) == PAGE)
		pages++;
	say("%ld", pages);
}

/* One pread of all pages, as a program with a large buffer does it. */
static void op_freadv(void)
{
	static char *big;
	if (!big)
		big = (char *)sh->pages; /* not used otherwise meanwhile, and touched */
	long got = pread(files[n[1]], big, n[3] * PAGE, n[2] * PAGE);
	say("%ld", got < 0 ? (long)-errno : (got + (long)PAGE - 1) / (long)PAGE);
}

static void op_fwrite(void)
{
	long pages = 0;
	while (pages < n[3] && pwrite(files[n[1]], sh->data, PAGE, (n[2] + pages) * PAGE) == PAGE)
		pages++;
	say("%ld", pages);
}

static void op_fadvise(void)
{
	say("%d", -posix_fadvise(files[n[1]], n[2] * PAGE, n[3] * PAGE, n[4]));
}

/* Which pages of a file are cached, and on which node: -2 for those that are not. */
static void op_cached(void)
{
	char *at = page_of(NR_REGIONS, 0);
	long pages = n[3];
	quiet();
	if (mmap(at, pages * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, files[n[1]], n[2] * PAGE) == MAP_FAILED) {
		say("%d", -errno);
		return;
	}
	madvise(at, pages * PAGE, MADV_RANDOM);
	mincore(at, pages * PAGE, sh->resident);
	for (long page = 0; page < pages; page++)
		if (sh->resident[page] & 1)
			(void)*(volatile char *)(at + page * PAGE);
	for (long page = 0; page < pages; page++)
		sh->pages[page] = at + page * PAGE;
	syscall(SYS_move_pages, 0, pages, sh->pages, NULL, sh->status, 0);
	for (long page = 0; page < pages; page++)
		if (!(sh->resident[page] & 1))
			sh->status[page] = -2;
	say_runs(sh->status, pages);
	munmap(at, pages * PAGE);
}

/* Which pages of a file are cached, by mincore alone: nothing is touched. */
static void op_incore(void)
{
	char *at = page_of(NR_REGIONS, 0);
	quiet();
	if (mmap(at, n[3] * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, files[n[1]], n[2] * PAGE) == MAP_FAILED) {
		say("%d", -errno);
		return;
	}
	mincore(at, n[3] * PAGE, sh->resident);
	for (long page = 0; page < n[3]; page++)
		sh->status[page] = sh->resident[page] & 1;
	say_runs(sh->status, n[3]);
	munmap(at, n[3] * PAGE);
}

/* Nodes of the pages in order of their first appearance. */
static void op_order(void)
{
	unsigned long seen = 0;
	for (long page = 0; page < n[3]; page++)
		sh->pages[page] = start_of() + page * PAGE;
	long answer = rc(syscall(SYS_move_pages, 0, n[3], sh->pages, NULL, sh->status, 0));
	say("%ld ", answer);
	for (long page = 0; page < n[3]; page++)
		if (sh->status[page] >= 0 && !(seen >> sh->status[page] & 1)) {
			say("%s%d", seen ? "," : "", sh->status[page]);
			seen |= 1UL << sh->status[page];
		}
	if (!seen)
		say("-");
}

/* By the task itself: only the batches of its own CPU are drained before the pages go. */
static void op_drop(void)
{
	sync();
	say("%ld", rc(pwrite(drop_fd, "1", 1, 0)) == 1 ? 0L : -1L);
}

/* Pages that wait in a batch of a CPU are out of reach of reclaim: empty the batches first. */
static void op_reclaim(void)
{
	drain_batches();
	say("%ld", ask("reclaim %ld", n[1]));
}

static void op_asked(void) /* sync, cpuset, ...: the parent does it */
{
	char line[256] = "";
	for (int at = 0; at < nw; at++)
		snprintf(line + strlen(line), sizeof line - strlen(line), "%s%s", at ? " " : "", w[at]);
	say("%ld", ask("%s", line));
}

static const struct {
	const char *name;
	void (*run)(void);
} ops[] = {
	{"cpu", op_cpu}, {"mmap", op_mmap}, {"fmap", op_fmap}, {"munmap", op_munmap}, {"setpol", op_setpol},
	{"mbind", op_mbind}, {"homenode", op_homenode}, {"touch", op_touch}, {"try", op_try}, {"faults", op_faults},
	{"where", op_where}, {"move", op_move}, {"moves", op_move}, {"migrate", op_migrate}, {"getpol", op_getpol},
	{"getpolat", op_getpolat}, {"query", op_query}, {"queryat", op_queryat}, {"allowed", op_allowed},
	{"madvise", op_madvise}, {"protect", op_protect}, {"mremap", op_mremap}, {"mlock", op_mlock}, {"munlock", op_munlock},
	{"forkwrite", op_forkwrite}, {"hold", op_hold}, {"release", op_release}, {"ptes", op_ptes},
	{"fread", op_fread}, {"freadv", op_freadv}, {"fwrite", op_fwrite}, {"fadvise", op_fadvise},
	{"cached", op_cached}, {"incore", op_incore}, {"order", op_order},
	{"drop", op_drop}, {"sync", op_asked}, {"cpuset", op_asked}, {"weight", op_asked}, {"delta", op_asked},
	{"fill", op_asked}, {"unfill", op_asked}, {"demotion", op_asked}, {"reclaim", op_reclaim}, {"free", op_asked},
};

static void run_op(char *line)
{
	nw = 0;
	for (char *word = strtok(line, " "); word && nw < 16; word = strtok(NULL, " ")) {
		w[nw] = word;
		n[nw++] = strtol(word, NULL, 0);
	}
	for (size_t at = 0; at < sizeof ops / sizeof *ops; at++)
		if (!strcmp(ops[at].name, w[0])) {
			say("%s ", w[0]);
			ops[at].run();
			say("\n");
			return;
		}
	say("%s no such op\n", w[0]);
}

/* ---- the task of a program */

static long inode_of_shared(void)
{
	char *maps = sh->scratch;
	char *at = mmap(NULL, PAGE, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unsigned long from, to, inode = 0;
	read_file("/proc/self/maps", maps, sizeof sh->scratch);
	for (char *line = strtok(maps, "\n"); line; line = strtok(NULL, "\n")) {
		unsigned long number;
		if (sscanf(line, "%lx-%lx %*s %*s %*s %lu", &from, &to, &number) == 3 && from <= (unsigned long)at &&
		    (unsigned long)at < to)
			inode = number;
	}
	munmap(at, PAGE);
	return inode;
}

/* The next shared mapping on each CPU shall have an inode number of 1 modulo 12, far from the end of a batch. */
static void align_inodes(void)
{
	for (int cpu = 1; cpu >= 0; cpu--) {
		cpu_set_t set;
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		if (sched_setaffinity(0, sizeof set, &set) < 0)
			continue;
		for (;;) {
			long inode = inode_of_shared();
			if (inode % INODE_PERIOD == 0 && inode % 1024 < 1024 - 2 * NR_REGIONS)
				break;
		}
	}
}

static void run_program(char *text)
{
	struct sigaction action = {.sa_handler = caught, .sa_flags = SA_NODEFER};
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	char name[64];
	for (int file = 0; file < NR_FILES; file++) {
		snprintf(name, sizeof name, "/mnt/f%d", file);
		files[file] = open(name, O_RDWR | O_NOATIME);
	}
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
	drop_fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
	align_inodes();
	for (char *at = (char *)sh; at < (char *)(sh + 1); at += PAGE)
		(void)*(volatile char *)at;
	settle();
	drain_batches();
	for (char *line = text; line && *line;) {
		char *end = strchr(line, '\n');
		if (end)
			*end = 0;
		run_op(line);
		line = end ? end + 1 : NULL;
	}
	if (held > 0)
		kill(held, SIGKILL);
	_exit(0);
}

/* ---- the parent: what the task asks for */

static char group[64];

static long counter(const char *name)
{
	char *text = sh->scratch, wanted[80];
	read_file("/proc/vmstat", text, sizeof sh->scratch);
	snprintf(wanted, sizeof wanted, "%s ", name);
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
		if (!strncmp(line, wanted, strlen(wanted)))
			return atol(line + strlen(wanted));
	return -1;
}

/* A number of /proc/zoneinfo for the zones of one node: free pages, or the sum of a watermark. */
static long zones(int node, const char *field)
{
	char *text = sh->scratch;
	int in = -1;
	long sum = 0;
	char word[64];
	long value;
	read_file("/proc/zoneinfo", text, sizeof sh->scratch);
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		sscanf(line, "Node %d, zone", &in);
		if (in == node && sscanf(line, " pages %63s %ld", word, &value) == 2 && !strcmp(field, word))
			sum += value;
		else if (in == node && sscanf(line, " %63s %ld", word, &value) == 2 && !strcmp(field, word))
			sum += value;
	}
	return sum;
}

static pid_t fillers[8];
static int nr_fillers;

/* Take memory of one node until `left` pages are free above the sum of its high watermarks. */
static long fill(int node, long left)
{
	int *ready = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t child = fork();
	if (child < 0)
		return -errno;
	if (!child) {
		unsigned long mask = 1UL << node;
		size_t most = 256UL << 20;
		char *at = mmap(NULL, most, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		syscall(SYS_mbind, at, most, 2, &mask, 65, 0);
		for (size_t done = 0; done < most;) {
			long room = zones(node, "nr_free_pages") - zones(node, "high") - left;
			if (room <= 0)
				break;
			for (long page = 0; page < (room > 64 ? room / 2 : room) && done < most; page++, done += PAGE)
				at[done] = 1;
		}
		*ready = 1;
		for (;;)
			pause();
	}
	while (!__atomic_load_n(ready, __ATOMIC_SEQ_CST) && !waitpid(child, NULL, WNOHANG))
		usleep(1000);
	munmap(ready, PAGE);
	fillers[nr_fillers++] = child;
	return 0;
}

static void unfill(void)
{
	while (nr_fillers) {
		pid_t child = fillers[--nr_fillers];
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
}

static struct {
	char name[48];
	long value;
} counters[32];
static int nr_counters;

static long delta(const char *name)
{
	long now = counter(name), last = now;
	for (int at = 0; at < nr_counters; at++)
		if (!strcmp(counters[at].name, name)) {
			last = counters[at].value;
			counters[at].value = now;
			return now - last;
		}
	snprintf(counters[nr_counters].name, sizeof counters[0].name, "%s", name);
	counters[nr_counters++].value = now;
	return 0;
}

static long serve(char *command)
{
	char path[128], text[64], *word[8] = {0};
	int count = 0;
	for (char *at = strtok(command, " "); at && count < 8; at = strtok(NULL, " "))
		word[count++] = at;
	if (!strcmp(word[0], "quiet")) {
		int reads = 1, writes = 1;
		while (reads || writes) {
			read_file("/sys/block/vda/inflight", text, sizeof text);
			if (sscanf(text, "%d %d", &reads, &writes) != 2)
				return -EIO;
		}
		return 0;
	}
	if (!strcmp(word[0], "sync")) {
		sync();
		return 0;
	}
	if (!strcmp(word[0], "cpuset")) {
		snprintf(path, sizeof path, "%s/cpuset.mems", group);
		snprintf(text, sizeof text, "%s\n", *word[1] == '-' ? "" : word[1]);
		return write_file(path, text);
	}
	if (!strcmp(word[0], "weight")) {
		snprintf(path, sizeof path, "/sys/kernel/mm/mempolicy/weighted_interleave/node%s", word[1]);
		return write_file(path, word[2]);
	}
	if (!strcmp(word[0], "demotion"))
		return write_file("/sys/kernel/mm/numa/demotion_enabled", !strcmp(word[1], "on") ? "1" : "0");
	if (!strcmp(word[0], "reclaim")) {
		snprintf(path, sizeof path, "%s/memory.reclaim", group);
		snprintf(text, sizeof text, "%ld", atol(word[1]) * (long)PAGE);
		return write_file(path, text);
	}
	if (!strcmp(word[0], "delta"))
		return delta(word[1]);
	if (!strcmp(word[0], "fill"))
		return fill(atoi(word[1]), atol(word[2]));
	if (!strcmp(word[0], "unfill")) {
		unfill();
		return 0;
	}
	if (!strcmp(word[0], "free"))
		return zones(atoi(word[1]), "nr_free_pages");
	return -ENOSYS;
}

static void emit(const char *text, size_t length)
{
	while (length) {
		long wrote = write(out_fd, text, length);
		if (wrote <= 0)
			return;
		text += wrote;
		length -= wrote;
	}
}

static void record(int number, char *name, char *text)
{
	static char path[128], line[64];
	sh->out_len = 0;
	sh->request = 0;
	nr_counters = 0;
	snprintf(group, sizeof group, "/sys/fs/cgroup/t%d", number);
	mkdir(group, 0755);
	snprintf(path, sizeof path, "%s/cpuset.mems", group);
	write_file(path, "0-3");
	say("program %s\n", name);
	pid_t child = fork();
	if (!child) {
		snprintf(path, sizeof path, "%s/cgroup.procs", group);
		snprintf(line, sizeof line, "%d", getpid());
		write_file(path, line);
		run_program(text);
	}
	int status = 0;
	for (;;) {
		if (__atomic_load_n(&sh->request, __ATOMIC_SEQ_CST)) {
			sh->request = 0;
			sh->answer = serve(sh->command);
			set_word(&sh->done, 1);
		} else if (waitpid(child, &status, WNOHANG) == child) {
			break;
		}
		struct timespec soon = {0, 2 * 1000 * 1000};
		syscall(SYS_futex, &sh->request, FUTEX_WAIT, 0, &soon, NULL, 0);
	}
	unfill();
	if (status)
		say("died %x\n", status);
	say("end\n");
	emit(sh->out, sh->out_len);
	while (rmdir(group) < 0 && errno == EBUSY)
		usleep(1000);
}

/* ---- boot */

static void fact(const char *format, ...)
{
	char line[512] = "fact ";
	va_list list;
	va_start(list, format);
	vsnprintf(line + 5, sizeof line - 6, format, list);
	va_end(list);
	strcat(line, "\n");
	emit(line, strlen(line));
}

static void load_module(char *name, char *parameters)
{
	char path[256];
	snprintf(path, sizeof path, "/modules/%s.ko", name);
	int fd = open(path, O_RDONLY);
	if (fd < 0 || (syscall(SYS_finit_module, fd, parameters ? parameters : "", 0) < 0 && errno != EEXIST))
		fact("module %s: errno %d", name, errno);
	if (fd >= 0)
		close(fd);
}

/* A swap area in memory: all its pages are taken now, not while a program runs. */
static void ram_swap(char *device, long pages)
{
	static char page[PAGE];
	int fd = open(device, O_RDWR);
	for (long at = pages - 1; at >= 0; at--) {
		if (!at) {
			int last = pages - 1;
			page[1024] = 1; /* version */
			memcpy(page + 1028, &last, 4);
			memcpy(page + PAGE - 10, "SWAPSPACE2", 10);
		}
		if (pwrite(fd, page, PAGE, at * PAGE) != PAGE)
			fact("cannot write %s: errno %d", device, errno);
	}
	fsync(fd);
	close(fd);
	if (swapon(device, 0) < 0)
		fact("swapon %s: errno %d", device, errno);
}

static void make_files(void)
{
	static char page[PAGE];
	char name[64];
	for (int file = 0; file < NR_FILES; file++) {
		snprintf(name, sizeof name, "/mnt/f%d", file);
		int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
		for (int at = 0; at < file_pages[file]; at++) {
			memset(page, at + 1, PAGE);
			if (write(fd, page, PAGE) != PAGE)
				fact("cannot write %s: errno %d", name, errno);
		}
		close(fd);
	}
	sync();
}

/* "boot VERB ARGS": one thing to do to the machine before the first program. */
static void boot_line(char *line)
{
	char *verb = strtok(line, " "), *path = strtok(NULL, " "), *value = strtok(NULL, "");
	static char text[4096];
	if (!strcmp(verb, "module")) {
		load_module(path, value);
	} else if (!strcmp(verb, "write")) {
		int error = write_file(path, value);
		if (error)
			fact("write %s %s: %d", path, value, error);
	} else if (!strcmp(verb, "files")) {
		if (mount(path, "/mnt", "ext4", MS_NOATIME, NULL) < 0)
			fact("mount %s: errno %d", path, errno);
		make_files();
	} else if (!strcmp(verb, "swapon")) {
		if (swapon(path, 0) < 0)
			fact("swapon %s: errno %d", path, errno);
	} else if (!strcmp(verb, "ahead")) {
		sh->ahead = 1;
	} else if (!strcmp(verb, "ramswap")) {
		ram_swap(path, atol(value));
	} else if (!strcmp(verb, "show")) {
		long got = read_file(path, text, sizeof text);
		if (got < 0)
			fact("%s: %ld", path, got);
		for (char *row = strtok(text, "\n"); got >= 0 && row; row = strtok(NULL, "\n"))
			fact("%s: %s", path, row);
	} else if (!strcmp(verb, "list")) {
		DIR *dir = opendir(path);
		for (struct dirent *entry; dir && (entry = readdir(dir));)
			fact("%s: %s", path, entry->d_name);
	} else if (!strcmp(verb, "sleep")) {
		usleep(atoi(path) * 1000);
	}
}

int main(void)
{
	mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/dev", 0755), mkdir("/mnt", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("debugfs", "/sys/kernel/debug", "debugfs", 0, NULL);
	mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL);
	write_file("/sys/fs/cgroup/cgroup.subtree_control", "+cpuset +memory");
	out_fd = open("/dev/ttyS1", O_WRONLY | O_NOCTTY);
	sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memset(sh, 0, sizeof *sh);
	struct stat st;
	int fd = open("/programs", O_RDONLY);
	fstat(fd, &st);
	char *text = mmap(NULL, st.st_size + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (long got = 0, more; got < st.st_size && (more = read(fd, text + got, st.st_size - got)) > 0;)
		got += more;
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(0, &set);
	sched_setaffinity(0, sizeof set, &set);
	int number = 0;
	for (char *line = text; *line;) {
		char *next = strchr(line, '\n');
		*next++ = 0;
		if (!strncmp(line, "boot ", 5)) {
			boot_line(line + 5);
		} else if (!strncmp(line, "program ", 8)) {
			char *end = strstr(next, "\nend\n");
			*end++ = 0;
			record(number++, line + 8, next);
			next = end + 4;
		}
		line = next;
	}
	emit("bye\n", 4);
	sync();
	reboot(RB_POWER_OFF);
	return 0;
}
