/* cni/launcher/launcher.c as a part of a program with libc: its system calls go to
 * launcher_kernel.c, and `start` is a function like any other. The source is included as it is;
 * without an architecture it takes the numbers and the trap from here. */
#undef __x86_64__
#undef __aarch64__
#include "launcher_calls.h"
enum { ST_MODE = 6 };
long kernel(long number, long a, long b, long c, long d);
#define TRAP(n, a, b, c, d) return kernel(n, a, b, c, d)
#include LAUNCHER
