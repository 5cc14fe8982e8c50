/* A kernel for the launcher, made of bytes: launcher_target.py says what is in a case.
 *
 * Every call looks at its arguments as a kernel might use them: the whole of a buffer, not only
 * what happens to be written. One byte of the script says how a call goes; when the script is over
 * all goes well. What must not be ends the process with a sentence on stderr, as the sanitizers do.
 *
 * stdin:  a case, again and again: struct asked, then its parts one behind the other.
 * stdout: struct told, then its parts. */
#include "launcher_calls.h"
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int __asan_address_is_poisoned(void const volatile *at);
void *__asan_region_is_poisoned(void *at, size_t size);
void start(char **stack);

enum { MIB = 1 << 20, ROOM = 4 * MIB, BLOCKS = 1024, BLOCKS_RUN_MAX = 60 * MIB, CALLS_MAX = 1 << 20,
       EINTR = 4, EBADF = 9, EAGAIN = 11, ENOENT = 2, ENOSPC = 28, EPIPE = 32, ECONNREFUSED = 111,
       AGENT = 3, NETNS = 4, DIRECTORY = 5, RECORD = 6, SIGALRM = 14, SIGPIPE = 13 };

struct asked {
    uint32_t environment, input, answer, script; /* octets of each */
    uint32_t input_times, answer_times;          /* how often stdin and the answer are repeated */
    uint32_t arguments, alarm_at;                /* of main; after how many blocks the time is over */
};
struct told {
    int32_t status;
    uint32_t output, sent, path, record; /* octets of each */
    uint32_t happened;                   /* bits below */
    uint8_t blocks[BLOCKS / 8];
};
enum { RANG = 1, OUTPUT_FAILED = 2, CONNECTED = 4, AWAY = 8, ANSWERED = 16, RENAMED = 32,
       DURABLE = 64, LEFT_TEMPORARY = 128, OUTPUT_CLOSED = 256, SENDING_FAILED = 512 };

static struct asked asked;
static struct told told;
static uint8_t *environment, *input, *answer, *script;
static uint8_t output[ROOM], sent[ROOM], record[ROOM];
static char path[256];
static uint64_t input_at, answer_at, script_at, dialled, calls, run;
static long entries_left;
static void (*on_alarm)(int);
static int is_armed, is_blocked, ignores_pipe, is_file_synced, is_namespace,
           in_launcher;
static jmp_buf exited;

static _Noreturn void broken(const char *what) {
    fprintf(stderr, "launcher: %s\n", what);
    fflush(stderr);
    abort();
}

/* -- which blocks of the launcher ran ---------------------------------------------------------- */

static uintptr_t places[4 * BLOCKS];
static uint16_t numbers[4 * BLOCKS], known;

static void ring(void) {
    if (!is_armed || !on_alarm || is_blocked) return;
    is_armed = 0;
    is_blocked = 1; /* while its handler runs */
    told.happened |= RANG;
    in_launcher = 1;
    on_alarm(SIGALRM);
    broken("goes on after its time is over");
}

void __sanitizer_cov_trace_pc(void) {
    uintptr_t place = (uintptr_t)__builtin_return_address(0);
    if (!in_launcher) return;
    for (uintptr_t at = place * 0x9E3779B1u >> 7;; at++) {
        at &= 4 * BLOCKS - 1;
        if (!places[at] && known < BLOCKS) places[at] = place, numbers[at] = known++;
        if (places[at] != place && places[at]) continue;
        if (places[at]) told.blocks[numbers[at] / 8] |= 1 << numbers[at] % 8;
        break;
    }
    if (++run > BLOCKS_RUN_MAX) broken("does not end");
    if (run == asked.alarm_at) ring();
}

/* -- memory ------------------------------------------------------------------------------------ */

static void *whole(long at, long size) {
    if (size < 0) broken("a negative size");
    if (size && __asan_region_is_poisoned((void *)at, size))
        broken("hands the kernel memory that is not its own");
    return (void *)at;
}

static const char *name_at(long at) {
    for (const char *each = (const char *)at;; each++) {
        if (__asan_address_is_poisoned(each)) broken("a name without an end");
        if (!*each) return (const char *)at;
    }
}

/* -- the script -------------------------------------------------------------------------------- */

static int next(void) { return script_at < asked.script ? script[script_at++] : 0; }

/* What may wait does so here: for ever, when the byte says so. */
static int waits(int how) {
    if (how != 255) return how;
    if (!is_armed || !on_alarm) broken("waits without a deadline");
    if (is_blocked) broken("waits with the alarm blocked");
    ring();
    return how;
}

static long some_of(int how, long size) { /* all of it, or as little as one octet */
    if (how < 128 || size < 2) return size;
    return how < 192 ? 1 + size * (how - 128) / 64 : 1;
}

static long taken(uint8_t *to, uint32_t *have, const void *from, long size) {
    if (*have + size > ROOM) broken("writes without an end");
    memcpy(to + *have, from, size);
    *have += size;
    return size;
}

/* -- the calls --------------------------------------------------------------------------------- */

static long reads(long fd, char *to, long size) {
    int how = waits(next());
    if (fd == 0 || fd == AGENT) {
        uint8_t *from = fd ? answer : input;
        uint64_t length = fd ? asked.answer : asked.input, *at = fd ? &answer_at : &input_at;
        uint64_t left = length * (fd ? asked.answer_times : asked.input_times) - *at;
        if (fd == AGENT && !(told.happened & CONNECTED)) broken("reads without an agent");
        if (how >= 250) return -EINTR;
        size = size < (long)left ? size : (long)left;
        size = some_of(how, size);
        for (long done = 0; done < size; done++) to[done] = from[(*at)++ % length];
        if (fd == AGENT && !size) told.happened |= ANSWERED;
        return size;
    }
    return -EBADF;
}

static long writes(long fd, const void *from, long size) {
    int how = next();
    if (fd == 1) {
        if (is_armed) broken("its alarm may cut the answer in two");
        if (how >= 240) return told.happened |= OUTPUT_FAILED, how >= 250 ? 0 : -EAGAIN;
        return taken(output, &told.output, from, some_of(how, size));
    }
    if (fd != RECORD) return -EBADF;
    if (waits(how) >= 240) return how >= 250 ? 0 : -ENOSPC;
    is_file_synced = 0;
    return taken(record, &told.record, from, some_of(how, size));
}

static long connects(long fd, const uint16_t *to, long size) {
    if (fd != AGENT) return -EBADF;
    if (to[0] != 1 || size < 3 || size > 110) broken("no address of AF_UNIX");
    if (!memchr(to + 1, 0, size - 2)) broken("a path without an end");
    strcpy(path, (const char *)(to + 1));
    told.path = strlen(path);
    if (told.path > 107) broken("a path that is too long");
    dialled++;
    int how = waits(next());
    if (how >= 64 && how < 192) {
        if (dialled == 1) told.happened |= AWAY;
        return how < 128 ? -ENOENT : -ECONNREFUSED;
    }
    if (how >= 192) return -EAGAIN;
    told.happened |= CONNECTED;
    return 0;
}

static long sends(long fd, long at, long flags) {
    struct { long name; int name_size, pad; long parts, count, control, control_size; } *message =
        whole(at, 56);
    struct { long at, size; } *part = whole(message->parts, 16);
    struct { long size; int level, type, fd; } *rights;
    if (fd != AGENT || !(told.happened & CONNECTED)) return -EBADF;
    if (message->count != 1 || message->name) broken("an unusual message");
    if (!(flags & 0x4000) && !ignores_pipe) broken("dies when the agent closes");
    whole(part->at, part->size);
    if (message->control_size) {
        rights = whole(message->control, message->control_size);
        if (rights->size != 20 || rights->level != 1 || rights->type != 1 || rights->fd != NETNS)
            broken("sends a descriptor that is no namespace");
        if (told.sent) broken("sends its descriptor behind the first octet");
    }
    int how = waits(next());
    if (how >= 240) return told.happened |= SENDING_FAILED, -EPIPE;
    return taken(sent, &told.sent, (void *)part->at, some_of(how, part->size));
}

static long opens(long at, const char *name, long flags) {
    int how = waits(next());
    if (flags == 02000301) { /* exclusively, for writing */
        if (at != DIRECTORY || strlen(name) != 17 || name[0] != '.' || strchr(name, '/'))
            broken("makes a file where it should not");
        if (!(told.happened & (AWAY | RANG))) broken("records what the agent may have");
        if (how >= 240) return -ENOSPC;
        told.happened |= LEFT_TEMPORARY;
        told.record = is_file_synced = 0; /* another file, when one went before it */
        return RECORD;
    }
    if (flags != 02004000 || at != -100) broken("opens in another way");
    if (how >= 240) return -ENOENT;
    size_t size = strlen(name);
    /* The directory is beside the socket; whatever else is opened is a namespace. When its time is
     * over between two blocks before it dials, nobody has told us yet where the socket is. */
    if (told.happened & RANG || (dialled && !(told.happened & CONNECTED))) {
        size_t beside = dialled ? (size_t)(strrchr(path, '/') + 1 - path) : size - 7;
        if (size < 8 || size != beside + 7 || memcmp(name, dialled ? path : name, beside)
            || memcmp(name + size - 8, "/deleted", 8))
            broken("opens a directory that is not beside the socket");
        entries_left = how < 200 ? 2 + how % 4 : how < 220 ? 4097 : 4098;
        return DIRECTORY;
    }
    if (!is_namespace) broken("opens what is no namespace");
    return NETNS;
}

static long lists(char *to, long size) {
    int how = waits(next()), place = 0;
    if (how >= 250) return -EBADF;
    for (; entries_left > 0; entries_left--) {
        int length = 24 + 8 * (entries_left % 5);
        if (place + length > size || place > 30000 + how) break;
        memset(to + place, entries_left % 256, length);
        *(uint16_t *)(to + place + 16) = length;
        place += length;
    }
    return place;
}

static long renames(const char *from, const char *to) {
    if (strlen(from) != 17 || *from != '.' || strlen(to) != 16 || strchr(to, '/') || *to == '.')
        broken("a record of another name");
    if (!is_file_synced) broken("a record that is not on disk gets its name");
    if (waits(next()) >= 240) return -ENOSPC;
    told.happened = (told.happened | RENAMED) & ~LEFT_TEMPORARY;
    return 0;
}

static long kernel_call(long number, long a, long b, long c, long d) {
    long *words;
    if (++calls > CALLS_MAX) broken("calls without an end");
    switch (number) {
    case READ: return reads(a, whole(b, c), c);
    case WRITE: return writes(a, whole(b, c), c);
    case SIGACTION:
        words = whole(b, 32);
        if (a == SIGALRM) on_alarm = (void (*)(int))words[0];
        if (a == SIGPIPE) ignores_pipe = words[0] == 1;
        return d == 8 ? 0 : -EBADF;
    case SIGPROCMASK:
        if (a == 1 && *(long *)whole(b, 8) & 1L << (SIGALRM - 1)) is_blocked = 0;
        return 0;
    case SETITIMER:
        words = whole(b, 32);
        is_armed = words[2] || words[3];
        if (words[2] < 0 || words[2] > 30 || words[3] < 0 || words[3] > 999999)
            broken("a deadline that cannot be");
        return 0;
    case SOCKET: return next() >= 240 ? -24 : AGENT;
    case CONNECT: return connects(a, whole(b, c), c);
    case SENDMSG: return sends(a, b, c);
    case SHUTDOWN: return 0;
    case FCNTL:
        if (next() < 250) return 0;
        told.happened |= OUTPUT_CLOSED;
        return -EBADF;
    case FSYNC:
        if (waits(next()) >= 240) return -ENOSPC;
        if (a == RECORD) is_file_synced = 1;
        else if (a == DIRECTORY && told.happened & RENAMED) told.happened |= DURABLE;
        return 0;
    case GETDENTS: return lists(whole(b, c), c);
    case CLOCK_GETTIME:
        words = whole(b, 16);
        words[0] = 1800000000 + next(), words[1] = 999999999 - next();
        return 0;
    case OPENAT: return opens(a, name_at(b), c);
    case FSTATAT: {
        uint32_t *status = memset(whole(c, 144), 0xff, 144);
        int how = waits(next());
        name_at(b);
        if (how >= 200) return -ENOENT;
        is_namespace = how < 150;
        status[6] = how < 150 ? 0100644 : how < 170 ? 020666 : how < 190 ? 040755 : 010644;
        return 0;
    }
    case UNLINKAT:
        name_at(b);
        if (next() >= 240) return -ENOENT;
        told.happened &= *(char *)b == '.' ? ~LEFT_TEMPORARY : ~(RENAMED | DURABLE);
        return 0;
    case RENAMEAT: return renames(name_at(b), name_at(d));
    case EXIT_GROUP:
        told.status = a;
        longjmp(exited, 1);
    }
    broken("an unknown call");
}

long kernel(long number, long a, long b, long c, long d) {
    in_launcher = 0;
    long result = kernel_call(number, a, b, c, d);
    in_launcher = 1;
    return result;
}

/* -- one case after the other ------------------------------------------------------------------ */

/* The launcher's variables, in sections of their own (launcher_target.py): as at the start of a
 * process. Past the sanitizer, which has its red zones among them. */
extern unsigned long __start_launcher_data[], __stop_launcher_data[];
extern unsigned long __start_launcher_zero[], __stop_launcher_zero[];
static unsigned long *first;

__attribute__((no_sanitize_address, noinline)) static void forget(void) {
    unsigned long *from = __start_launcher_data, *zero = __start_launcher_zero;
    long size = __stop_launcher_data - from;
    if (!first) {
        first = malloc(size * sizeof *first);
        for (long at = 0; at < size; at++) first[at] = from[at];
    }
    for (long at = 0; at < size; at++) from[at] = first[at];
    for (; zero < __stop_launcher_zero; zero++) *(volatile unsigned long *)zero = 0;
}

static uint8_t *part(uint32_t size) {
    uint8_t *at = malloc(size + !size);
    if (fread(at, 1, size, stdin) != size) exit(0);
    return at;
}

static void one_case(void) {
    /* Each entry in memory of its own, so that looking behind its end is seen. */
    long count = 0, at;
    char **stack = calloc(asked.arguments + asked.environment + 4, sizeof *stack);
    *(long *)stack = asked.arguments;
    for (at = 0; at < asked.arguments; at++) stack[1 + at] = "launcher";
    for (at = 0; at < asked.environment; at += strlen((char *)environment + at) + 1)
        stack[2 + asked.arguments + count++] = strdup((char *)environment + at);
    memset(&told, 0, sizeof told);
    input_at = answer_at = script_at = dialled = calls = run = 0;
    on_alarm = 0, is_armed = ignores_pipe = is_file_synced = is_namespace = 0, is_blocked = 1;
    *path = 0;
    if (!setjmp(exited)) {
        in_launcher = 1;
        start(stack);
        broken("returns");
    }
    in_launcher = 0;
    for (at = 0; at < count; at++) free(stack[2 + asked.arguments + at]);
    free(stack);
}

int main(void) {
    forget();
    while (fread(&asked, sizeof asked, 1, stdin) == 1) {
        environment = part(asked.environment), input = part(asked.input);
        answer = part(asked.answer), script = part(asked.script);
        one_case();
        forget();
        free(environment), free(input), free(answer), free(script);
        fwrite(&told, sizeof told, 1, stdout);
        fwrite(output, 1, told.output, stdout);
        fwrite(sent, 1, told.sent, stdout);
        fwrite(path, 1, told.path, stdout);
        fwrite(record, 1, told.record, stdout);
        fflush(stdout);
    }
    return 0;
}
