/* The slash32 CNI launcher: carries a runtime's call to the agent's socket, and the answer back.
 * The same program as cni/plugin.py (the reference, which says what travels), for hosts without
 * Python and without libc: no header, no library, no allocation. It decides only what needs no
 * agent: VERSION, hopeless calls (codes 4 to 7), an agent that is away or too slow (11, STATUS
 * 50), and a DEL without an agent, which it leaves on disk for the agent's next start. */
#ifndef DEADLINE_MS
#define DEADLINE_MS 30000 /* for the whole call */
#endif
enum { STATUS_MS = 10000, RECORD_MS = 10000, REQUEST_MAX = 1 << 20, PATH_MAX = 107, RECORDS_MAX = 4096 };
/* Two architectures: numbers of the system calls, how one is made, where a program starts. */
#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, SIGACTION = 13, SIGPROCMASK = 14, SETITIMER = 38, SOCKET = 41,
       CONNECT = 42, SENDMSG = 46, SHUTDOWN = 48, FCNTL = 72, FSYNC = 74, GETDENTS = 217,
       CLOCK_GETTIME = 228, EXIT_GROUP = 231, OPENAT = 257, FSTATAT = 262, UNLINKAT = 263,
       RENAMEAT = 264, ST_MODE = 6 /* of struct stat, in 32-bit words */ };
#define TRAP(n, a, b, c, d) register long r10 __asm__("r10") = d; __asm__ volatile("syscall" \
    : "+a"(n) : "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory"); return n
__asm__(".globl _start\n_start: xor %ebp, %ebp\n mov %rsp, %rdi\n call start");
#elif defined(__aarch64__)
enum { READ = 63, WRITE = 64, SIGACTION = 134, SIGPROCMASK = 135, SETITIMER = 103, SOCKET = 198,
       CONNECT = 203, SENDMSG = 211, SHUTDOWN = 210, FCNTL = 25, FSYNC = 82, GETDENTS = 61,
       CLOCK_GETTIME = 113, EXIT_GROUP = 94, OPENAT = 56, FSTATAT = 79, UNLINKAT = 35,
       RENAMEAT = 38, ST_MODE = 4 };
#define TRAP(n, a, b, c, d) register long x8 __asm__("x8") = n, x0 __asm__("x0") = a; \
    register long x1 __asm__("x1") = b, x2 __asm__("x2") = c, x3 __asm__("x3") = d; __asm__ \
    volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory"); return x0
__asm__(".globl _start\n_start: mov x29, 0\n mov x0, sp\n bl start");
#endif
static long trap(long n, long a, long b, long c, long d) { TRAP(n, a, b, c, d); }
#define SYS(...) SYS_(__VA_ARGS__, 0, 0, 0, 0)
#define SYS_(n, a, b, c, d, ...) trap(n, (long)(a), (long)(b), (long)(c), (long)(d))
enum { AT_FDCWD = -100, O_READ = 02004000, O_CREATE = 02000301, /* with CLOEXEC; NONBLOCK, EXCL */
       ENOENT = 2, ECONNREFUSED = 111, MSG_NOSIGNAL = 0x4000, SIGPIPE = 13, SIGALRM = 14 };

typedef struct { const char *at; long len; } Text; /* a stretch of bytes, not terminated */
#define T(literal) ((Text){literal, sizeof literal - 1})
#define VERSIONS T("\"0.3.0\", \"0.3.1\", \"0.4.0\", \"1.0.0\", \"1.1.0\"")
#define COMMANDS T("ADD, DEL, CHECK, STATUS, GC, VERSION")
static char request[REQUEST_MAX + 1], reply[REQUEST_MAX + 1], out[1024];
static Text call = {request, 0}, command, netns; /* at is 0 of what the environment lacks */
static Text named, version = {"1.1.0", 5}, socket_path; /* of the configuration */
static Text text(const char *s) {
    Text t = {s, 0};
    while (s[t.len]) t.len++;
    return t;
}
static int same(Text a, Text b) {
    while (a.len && b.len && *a.at == *b.at) a.at++, b.at++, a.len--, b.len--;
    return !a.len && !b.len;
}
static int among(Text t, Text list) { /* of words that commas, quotes and spaces part */
    for (Text word = {list.at, 0}; list.len-- >= 0; list.at++)
        if (list.len >= 0 && *list.at != ',' && *list.at != '"' && *list.at != ' ') word.len++;
        else if (word.len && same(t, word)) return 1;
        else word = (Text){list.at + 1, 0};
    return 0;
}
static char *put(char *to, Text t) {
    while (t.len--) *to++ = *t.at++;
    return to;
}
static void put_hex(char *to, unsigned long n) {
    for (int i = 15; i >= 0; i--, n >>= 4) to[i] = "0123456789abcdef"[n & 15];
}
static _Noreturn void finish(int status, const char *data, long len) {
    long n, no_alarm[4] = {0}; /* from here on nothing may cut the answer in two */
    for (SYS(SETITIMER, 0, no_alarm); len > 0; data += n, len -= n)
        if ((n = SYS(WRITE, 1, data, len)) <= 0) status = 1, n = len;
    for (;;) SYS(EXIT_GROUP, status);
}
/* A CNI error (specification, section 5); its text must need no escaping in JSON. */
static _Noreturn void fail(Text code, Text msg, Text more) {
    char *o = put(put(out, T("{\"cniVersion\": \"")), version);
    if (same(code, T("11")) && same(command, T("STATUS"))) code = T("50");
    o = put(put(put(put(o, T("\", \"code\": ")), code), T(", \"msg\": \"")), msg);
    finish(1, out, put(put(o, more), T("\", \"details\": \"\"}\n")) - out);
}
#define FAIL(code, msg) fail(T(code), T(msg), T(""))
static void answer_version(void) {
    int dots = 0; /* three numbers are repeated, whichever they are */
    for (long i = 0; i < named.len; i++)
        dots += named.at[i] == '.' ? 1 : named.at[i] >= '0' && named.at[i] <= '9' ? 0 : 9;
    char *o = put(out, T("{\"cniVersion\": \""));
    o = put(put(o, dots == 2 && named.len < 18 ? named : version), T("\", \"supportedVersions"));
    finish(0, out, put(put(put(o, T("\": [")), VERSIONS), T("]}\n")) - out);
}
/* Finds cniVersion and socket in a JSON object; 0 when it is none. Looks at strings and brackets
 * only: whether all between them is JSON is the agent's to say. */
static int object(const char *at, const char *end) {
    Text key = T(""), word;
    int depth = 0, after_colon = 0;
    for (; at < end; at++) {
        if (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r') continue;
        if (depth == 0 && (*at != '{' || key.len)) return 0; /* before the object, or behind it */
        if (*at == '{' || *at == '[') depth++;
        if (*at == '}' || *at == ']') key = --depth ? key : T("end");
        if (*at == '"') {
            for (word.at = ++at; at < end && *at != '"'; at++) at += *at == '\\';
            word.len = at - word.at;
            if (at >= end || depth > 1) continue;
            if (!after_colon) key = word;
            else if (same(key, T("cniVersion"))) named = word;
            else if (same(key, T("socket"))) socket_path = word;
        } else if (depth == 1 && (*at == ':' || *at == ',')) {
            after_colon = *at == ':';
            if (after_colon && same(key, T("socket"))) socket_path = T("not a string");
        }
    }
    return key.len && !depth;
}
static int is_kept; /* this DEL is recorded when the agent is there and does not answer in time */
static long dial(void) { /* a descriptor, or the error's number, negative */
    static struct { short family; char path[PATH_MAX + 1]; } to = {1, ""}; /* AF_UNIX */
    if (!socket_path.len) socket_path = T("/run/slash32/cni.sock");
    int good = socket_path.len <= PATH_MAX && *socket_path.at == '/';
    for (long i = 0; i < socket_path.len; i++) /* an error's text may repeat it */
        good &= socket_path.at[i] >= ' ' && socket_path.at[i] <= '~' && socket_path.at[i] != '\\';
    if (!good) FAIL("7", "socket must be an absolute path of at most 107 plain characters");
    is_kept = same(command, T("DEL")); /* not before: record trusts the path */
    put(to.path, socket_path);
    long fd = SYS(SOCKET, 1, 02000001), error; /* SOCK_STREAM, SOCK_CLOEXEC */
    return (error = SYS(CONNECT, fd, &to, sizeof to)) ? error : fd;
}
static void exchange(long agent) {
    struct { long len; int level, type, fd, pad; } rights = {20, 1, 1, -1, 0}; /* SCM_RIGHTS */
    Text left = call;
    long message[7] = {0, 0, (long)&left, 1, (long)&rights, 0, 0}, len = 0, n; /* struct msghdr */
    static unsigned info[64]; /* a namespace is a regular file; opening a device does something */
    if (netns.len && !SYS(FSTATAT, AT_FDCWD, netns.at, info) && (info[ST_MODE] >> 12) == 010)
        rights.fd = SYS(OPENAT, AT_FDCWD, netns.at, O_READ);
    if (rights.fd >= 0) message[5] = sizeof rights;
    for (; left.len > 0; left.at += n, left.len -= n, message[5] = 0)
        if ((n = SYS(SENDMSG, agent, message, MSG_NOSIGNAL)) < 0) n = left.len; /* it refuses */
    for (SYS(SHUTDOWN, agent, 1); n = SYS(READ, agent, reply + len, sizeof reply - len), n > 0;)
        len += n;
    if (!len) FAIL("11", "the slash32 agent closed the connection without an answer");
    if (len == sizeof reply || (*reply | 1) != 1 || /* or cut in two, its agent was killed: */
        ((len > 1 || *reply || same(command, T("ADD"))) && !object(reply + 1, reply + len)))
        FAIL("5", "the slash32 agent sent an answer that is none");
    finish(*reply, reply + 1, len - 1);
}
/* DEL without an agent, or a late one: the request goes to deleted/ beside the socket, and is
 * durable before we say yes. The agent listens, replays what is there, then accepts, and looks
 * again now and then; when it still cannot be reached, it has yet to look. A repeated request has
 * the same name: one record. */
static long record(int is_late) {
    static char directory[PATH_MAX + 9], name[17], temp[18] = ".";
    long now[2], entries = -2, cut = socket_path.len, dir, file, n, agent; /* less "." and ".." */
    unsigned long hash = 0xcbf29ce484222325; /* FNV-1a */
    while (socket_path.at[cut - 1] != '/') cut--;
    put(put(directory, (Text){socket_path.at, cut}), T("deleted"));
    if ((dir = SYS(OPENAT, AT_FDCWD, directory, O_READ)) < 0) return dir;
    while ((n = SYS(GETDENTS, dir, reply, sizeof reply)) > 0)
        for (long i = 0; i < n; i += *(unsigned short *)(reply + i + 16)) entries++; /* d_reclen */
    if (entries >= RECORDS_MAX)
        fail(T("11"), T("too many deletions wait for the slash32 agent in "), text(directory));
    for (n = 0; n < call.len; n++) hash = (hash ^ (unsigned char)request[n]) * 0x100000001b3;
    SYS(CLOCK_GETTIME, 1, now);
    put_hex(name, hash), put_hex(temp + 1, hash ^ (now[0] << 30 | now[1]));
    n = file = SYS(OPENAT, dir, temp, O_CREATE, 0600);
    for (long done = 0; done < call.len && n > 0; done += n)
        n = SYS(WRITE, file, request + done, call.len - done);
    if (n > 0) n = !SYS(FSYNC, file) && !SYS(RENAMEAT, dir, temp, dir, name) && !SYS(FSYNC, dir);
    if (n <= 0) {
        SYS(UNLINKAT, dir, temp);
        fail(T("5"), T("the deletion cannot be recorded in "), text(directory));
    }
    if (is_late || (agent = dial()) < 0) finish(0, out, 0);
    SYS(UNLINKAT, dir, name); /* it has just started, and can answer this itself */
    return agent;
}
static void ring_in(long ms) {
    long timer[4] = {0, 0, ms / 1000, ms % 1000 * 1000}, alarms = 1 << (SIGALRM - 1);
    SYS(SIGPROCMASK, 1, &alarms, 0, 8); /* a runtime may have it blocked, and too_slow runs so */
    SYS(SETITIMER, 0, timer);
}
static void too_slow(int signal) {
    if (is_kept) is_kept = 0, ring_in(RECORD_MS), record(1); /* a disk may hang as well */
    FAIL("11", "the slash32 agent did not answer in time");
}
__attribute__((used)) void start(char **stack) { /* argc, argv, 0, environment, 0 */
    static long ignore[4] = {1}, ring[4] = {(long)too_slow, 0x04000000, (long)too_slow};
    long n = 1, agent;
    char *o = put(request, T("slash32-cni 1\0")), *end = request + REQUEST_MAX, *conf;
    for (char **each = stack + (long)*stack + 2; *each; each++) {
        if (!same((Text){*each, 4}, T("CNI_"))) continue; /* same never looks behind the end */
        if (!command.at && same((Text){*each, 12}, T("CNI_COMMAND="))) command = text(*each + 12);
        if (!netns.at && same((Text){*each, 10}, T("CNI_NETNS="))) netns = text(*each + 10);
        o = text(*each).len + 2 > end - o ? end + 1 : put(o, text(*each)) + 1;
    }
    if (SYS(FCNTL, 1, 1) < 0) SYS(EXIT_GROUP, 1); /* F_GETFD: nobody could read the answer */
    SYS(SIGACTION, SIGPIPE, ignore, 0, 8), SYS(SIGACTION, SIGALRM, ring, 0, 8);
    long ms = same(command, T("STATUS")) && DEADLINE_MS > STATUS_MS ? STATUS_MS : DEADLINE_MS;
    ring_in(ms);
    if (!among(command, COMMANDS)) fail(T("4"), T("CNI_COMMAND must be one of "), COMMANDS);
    for (conf = ++o; n > 0; o += n) {
        if (o > end) FAIL("7", "stdin and the CNI_* environment are larger than 1048576 bytes");
        if ((n = SYS(READ, 0, o, end + 1 - o)) < 0) FAIL("5", "stdin cannot be read");
    }
    call.len = o - request;
    if (!(n = object(conf, o))) named.len = 0;
    if (same(command, T("VERSION"))) answer_version();
    if (!n) FAIL("6", "network configuration on stdin is not a JSON object");
    if (among(named, VERSIONS)) version = named;
    agent = dial();
    if ((agent == -ENOENT || agent == -ECONNREFUSED) && is_kept) is_kept = 0, agent = record(0);
    if (agent < 0) fail(T("11"), T("the slash32 agent does not answer on "), socket_path);
    exchange(agent);
}
