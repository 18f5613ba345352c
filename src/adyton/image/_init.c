/* The first program of a guest image, in the initrd: it puts the root file system under dm-verity and starts it.

   It takes nothing from the host but blocks that dm-verity checks. Its own input lies beside it in the initrd, which is
   measured:

     /command-line   the one kernel command line that is accepted
     /modules        paths of kernel modules, one a line, in their order
     /verity         line 1: the root file system's size in sectors; line 2: the device mapper's table, where @ stands
                     for the device

   On any failure it says so on the console and powers off. There is no shell to fall into. It uses no library, as
   runtime/_launcher.c does, and is built in the same way. Sources: the kernel's Documentation/admin-guide/device-mapper
   and include/uapi/linux/dm-ioctl.h. */

#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/reboot.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <time.h>

#if !defined(__x86_64__)
#error "a guest image is for x86-64"
#endif

__asm__(".globl _start\n_start: and $-16, %rsp\n call start\n");

static long call(long number, long a, long b, long c, long d, long e)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

/* The compiler may make calls of these. Hidden, because there is no dynamic linker that would fill in their addresses. */
__attribute__((visibility("hidden"))) void *memset(void *to, int value, size_t size)
{
    unsigned char *at = to;
    while (size--) {
        *at++ = (unsigned char)value;
        __asm__ volatile("" ::: "memory");
    }
    return to;
}

__attribute__((visibility("hidden"))) void *memcpy(void *to, const void *from, size_t size)
{
    unsigned char *at = to;
    const unsigned char *source = from;
    while (size--) {
        *at++ = *source++;
        __asm__ volatile("" ::: "memory");
    }
    return to;
}

static size_t length(const char *text)
{
    size_t found = 0;
    while (text[found]) {
        found++;
        __asm__ volatile("" ::: "memory"); /* or the compiler makes it a call of strlen */
    }
    return found;
}

static int same(const char *one, const char *other, size_t size)
{
    for (size_t at = 0; at < size; at++)
        if (one[at] != other[at])
            return 0;
    return 1;
}

static void say(const char *text)
{
    call(SYS_write, 2, (long)text, (long)length(text), 0, 0);
}

static __attribute__((noreturn)) void fail(const char *what)
{
    say("adyton: this image does not start: ");
    say(what);
    say("\n");
    call(SYS_sync, 0, 0, 0, 0, 0);
    for (;;)
        call(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, 0, 0);
}

/* Reads a whole file of less than `size` bytes and puts a NUL behind it; -1 where that fails. */
static long read_file(const char *path, char *into, size_t size)
{
    long descriptor = call(SYS_open, (long)path, O_RDONLY | O_CLOEXEC, 0, 0, 0);
    size_t filled = 0;
    long got;
    if (descriptor < 0)
        return -1;
    while ((got = call(SYS_read, descriptor, (long)(into + filled), (long)(size - filled), 0, 0)) > 0) {
        filled += (size_t)got;
        if (filled >= size)
            break;
    }
    call(SYS_close, descriptor, 0, 0, 0, 0);
    if (got < 0 || filled >= size)
        return -1;
    into[filled] = 0;
    return (long)filled;
}

static void mount_or_fail(const char *source, const char *target, const char *kind, long flags)
{
    if (call(SYS_mount, (long)source, (long)target, (long)kind, flags, 0) != 0)
        fail(kind ? kind : target);
}

static char buffer[8192];
static char expected[4096];
static char table[2048];
static char device[64];

static void check_command_line(void)
{
    long wanted = read_file("/command-line", expected, sizeof expected);
    long found = read_file("/proc/cmdline", buffer, sizeof buffer);
    if (wanted < 0 || found < 0)
        fail("the kernel command line cannot be read");
    if (found > 0 && buffer[found - 1] == '\n')
        found--;
    if (found != wanted || !same(buffer, expected, (size_t)wanted))
        fail("the kernel command line is not the image's: boot the image without arguments of your own");
}

static void load_modules(void)
{
    long size = read_file("/modules", buffer, sizeof buffer);
    char *line = buffer;
    if (size < 0)
        fail("the list of modules cannot be read");
    for (long at = 0; at < size; at++) {
        if (buffer[at] != '\n')
            continue;
        buffer[at] = 0;
        long descriptor = call(SYS_open, (long)line, O_RDONLY | O_CLOEXEC, 0, 0, 0);
        long result = call(SYS_finit_module, descriptor, (long)"", 0, 0, 0);
        if (descriptor < 0 || (result != 0 && result != -ENODEV && result != -EEXIST)) /* no such bus; built in */
            fail(line);
        call(SYS_close, descriptor, 0, 0, 0, 0);
        line = buffer + at + 1;
    }
}

struct entry {
    uint64_t inode;
    int64_t offset;
    uint16_t size;
    uint8_t kind;
    char name[];
};

/* Whether a block device's uevent says that it is the partition "adyton-root"; its number is put into `device`. */
static int is_root(const char *name)
{
    static const char mark[] = "\nPARTNAME=adyton-root\n";
    char path[320] = "/sys/class/block/";
    size_t at = length(path), size = length(name);
    long found;
    if (size > 200)
        return 0;
    memcpy(path + at, name, size);
    memcpy(path + at + size, "/uevent", 8);
    found = read_file(path, buffer, sizeof buffer);
    if (found < 0)
        return 0;
    for (long start = 0; start + (long)sizeof mark - 1 <= found; start++) {
        if (!same(buffer + start, mark, sizeof mark - 1))
            continue;
        memcpy(path + at + size, "/dev", 5);
        found = read_file(path, device, sizeof device);
        if (found < 2)
            return 0;
        device[found - 1] = 0; /* the newline */
        return 1;
    }
    return 0;
}

static int look_for_root(void)
{
    static char listing[8192] __attribute__((aligned(8)));
    long folder = call(SYS_open, (long)"/sys/class/block", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0, 0, 0);
    long size;
    int found = 0;
    if (folder < 0)
        return 0;
    while (!found && (size = call(SYS_getdents64, folder, (long)listing, sizeof listing, 0, 0)) > 0) {
        for (long at = 0; at < size && !found;) {
            const struct entry *item = (const struct entry *)(listing + at);
            found = item->name[0] != '.' && is_root(item->name);
            at += item->size;
        }
    }
    call(SYS_close, folder, 0, 0, 0, 0);
    return found;
}

static void wait_for_root(void)
{
    struct timespec pause = {0, 100 * 1000 * 1000};
    for (int tries = 0; tries < 600; tries++) {
        if (look_for_root())
            return;
        call(SYS_nanosleep, (long)&pause, 0, 0, 0, 0);
    }
    fail("no disk has a partition named adyton-root");
}

static void start_ioctl(struct dm_ioctl *request, size_t size)
{
    memset(request, 0, size);
    request->version[0] = DM_VERSION_MAJOR;
    request->data_size = (uint32_t)size;
    request->data_start = sizeof *request;
    request->flags = DM_READONLY_FLAG;
    memcpy(request->name, "root", 5);
}

static void set_up_verity(void)
{
    static struct {
        struct dm_ioctl request;
        struct dm_target_spec target;
        char parameters[2048];
    } message;
    uint64_t sectors = 0;
    size_t at = 0, out = 0;
    long control;
    if (read_file("/verity", table, sizeof table) < 0)
        fail("the root file system's table cannot be read");
    for (; table[at] >= '0' && table[at] <= '9'; at++)
        sectors = sectors * 10 + (uint64_t)(table[at] - '0');
    if (!sectors || table[at++] != '\n')
        fail("the root file system's table is wrong");
    control = call(SYS_open, (long)"/dev/mapper/control", O_RDWR | O_CLOEXEC, 0, 0, 0);
    if (control < 0)
        fail("the device mapper cannot be opened");
    start_ioctl(&message.request, sizeof message);
    if (call(SYS_ioctl, control, DM_DEV_CREATE, (long)&message, 0, 0) != 0)
        fail("dm-verity: create");
    start_ioctl(&message.request, sizeof message);
    message.request.target_count = 1;
    memset(&message.target, 0, sizeof message.target);
    message.target.length = sectors;
    memcpy(message.target.target_type, "verity", 7);
    for (; table[at] && table[at] != '\n'; at++) {
        size_t size = table[at] == '@' ? length(device) : 1;
        if (out + size >= sizeof message.parameters)
            fail("the root file system's table is too long");
        memcpy(message.parameters + out, table[at] == '@' ? device : table + at, size);
        out += size;
    }
    message.parameters[out] = 0;
    if (call(SYS_ioctl, control, DM_TABLE_LOAD, (long)&message, 0, 0) != 0)
        fail("dm-verity: the root file system is not the image's");
    start_ioctl(&message.request, sizeof message);
    if (call(SYS_ioctl, control, DM_DEV_SUSPEND, (long)&message, 0, 0) != 0)
        fail("dm-verity: resume");
    call(SYS_close, control, 0, 0, 0, 0);
}

__attribute__((used, noreturn)) void start(void)
{
    const char *volatile argv[6], *volatile environment[4]; /* filled at run time: nobody relocates a table */
    long console;
    argv[0] = "/usr/bin/python3";
    argv[1] = "-I";
    argv[2] = "-B";
    argv[3] = "-m";
    argv[4] = "adyton.image.guest";
    argv[5] = NULL;
    environment[0] = "PATH=/usr/bin";
    environment[1] = "HOME=/run";
    environment[2] = "LANG=C.UTF-8";
    environment[3] = NULL;
    mount_or_fail("dev", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC);
    mount_or_fail("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC);
    mount_or_fail("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC);
    console = call(SYS_open, (long)"/dev/console", O_RDWR | O_NOCTTY, 0, 0, 0);
    for (long descriptor = 0; console >= 0 && descriptor < 3; descriptor++)
        if (console != descriptor)
            call(SYS_dup2, console, descriptor, 0, 0, 0);
    check_command_line();
    load_modules();
    wait_for_root();
    set_up_verity();
    mount_or_fail("/dev/dm-0", "/system", "erofs", MS_RDONLY | MS_NOSUID | MS_NODEV);
    mount_or_fail("/dev", "/system/dev", NULL, MS_MOVE);
    mount_or_fail("/proc", "/system/proc", NULL, MS_MOVE);
    mount_or_fail("/sys", "/system/sys", NULL, MS_MOVE);
    if (call(SYS_chdir, (long)"/system", 0, 0, 0, 0) != 0)
        fail("the root file system");
    mount_or_fail(".", "/", NULL, MS_MOVE);
    if (call(SYS_chroot, (long)".", 0, 0, 0, 0) != 0 || call(SYS_chdir, (long)"/", 0, 0, 0, 0) != 0)
        fail("the change to the root file system");
    call(SYS_execve, (long)argv[0], (long)argv, (long)environment, 0, 0);
    fail("the first program of the root file system cannot be started");
}
