/* A program that starts another under a name of the manifest's choice (argv[0]).

   `LAUNCHER PATH ARGV0 ARGS...` calls execve(PATH, [ARGV0, ARGS...], environ), and exits with 127 where that fails.
   bubblewrap before 0.9 (Debian 12) cannot choose argv[0]; later ones have --argv0.

   It runs inside the sandbox, where there may be no C library and no dynamic linker, so it uses neither: the kernel
   starts it at `_start`, with argc, argv and the environment on the stack. It is built as a shared object, as the other
   C parts are. The kernel runs one of these as it is, if it has an entry point and names no interpreter. */

#include <sys/syscall.h>

#if defined(__x86_64__)
__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call launch\n");

static long call(long number, const void *first, char **second, char **third)
{
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(first), "S"(second), "d"(third)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
__asm__(".globl _start\n_start: mov x0, sp\n b launch\n");

static long call(long number, const void *first, char **second, char **third)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = (long)first;
    register char **x1 __asm__("x1") = second;
    register char **x2 __asm__("x2") = third;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    return x0;
}
#else
#error "no launcher for this processor"
#endif

__attribute__((used, noreturn)) void launch(char **stack)
{
    long argc = (long)stack[0];
    char **argv = stack + 1;
    if (argc > 2)
        call(SYS_execve, argv[1], argv + 2, argv + argc + 1);
    for (;;)
        call(SYS_exit_group, (const void *)127, 0, 0);
}
