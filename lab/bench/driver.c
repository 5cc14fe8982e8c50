/* Executes a CNI plugin as a runtime does and measures the whole process: wall from before the
 * spawn to after the wait, CPU of it and of every child it waited for (wait4). In C, because a
 * fork from Python costs as much as the call that is measured.
 *
 *     driver PLUGIN CNI_PATH CONFIGURATION
 *
 * Reads commands on stdin, answers on stdout:
 *     netns PATH...              makes network namespaces and binds them to the (new) files: "ok"
 *     drop PATH...               unmounts and removes them: "ok"
 *     run N                      then N lines "COMMAND CONTAINER NETNS IFNAME", all at once;
 *                                N lines "STATUS WALL_US CPU_US STDOUT...", then "total WALL_US"
 * Anything that fails is one line "error: ..." and the end. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { JOBS_MAX = 256, STDOUT_SHOWN = 4096 };

struct job {
    char command[16], container[80], netns[256], ifname[16];
    char env_command[32], env_container[96], env_netns[280], env_ifname[32];
    char *env[6];
    int in, out, status; /* read ends: what becomes its stdin, what it wrote to stdout */
    int in_given, out_given;
    pid_t pid;
    double began_us, wall_us, cpu_us;
};

static struct job jobs[JOBS_MAX];
static char conf[1 << 16], env_path[512];
static size_t conf_len;

static void fail(const char *what) {
    printf("error: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void make_netns(const char *path, int home) {
    int file = open(path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0) fail(path);
    close(file);
    if (unshare(CLONE_NEWNET)) fail("unshare");
    if (mount("/proc/thread-self/ns/net", path, "none", MS_BIND, NULL)) fail("mount");
    if (setns(home, CLONE_NEWNET)) fail("setns");
}

/* Everything that a runtime has done before it executes the plugin: not measured. */
static void prepare(struct job *job) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC)) fail("pipe");
    if (write(in[1], conf, conf_len) != (ssize_t)conf_len) fail("write"); /* fits into the pipe */
    close(in[1]);
    job->in = in[0], job->out = out[0], job->out_given = out[1];
    snprintf(job->env_command, sizeof job->env_command, "CNI_COMMAND=%s", job->command);
    snprintf(job->env_container, sizeof job->env_container, "CNI_CONTAINERID=%s", job->container);
    snprintf(job->env_netns, sizeof job->env_netns, "CNI_NETNS=%s", job->netns);
    snprintf(job->env_ifname, sizeof job->env_ifname, "CNI_IFNAME=%s", job->ifname);
    job->env[0] = job->env_command, job->env[1] = job->env_container, job->env[2] = job->env_netns;
    job->env[3] = job->env_ifname, job->env[4] = env_path, job->env[5] = NULL;
}

static void start(struct job *job, const char *plugin) {
    char *argv[] = {(char *)plugin, NULL};
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, job->in, 0);
    posix_spawn_file_actions_adddup2(&files, job->out_given, 1);
    job->began_us = now_us();
    if ((errno = posix_spawn(&job->pid, plugin, &files, NULL, argv, job->env))) fail(plugin);
    posix_spawn_file_actions_destroy(&files);
}

static void collect(int count) {
    for (int left = count; left; left--) {
        struct rusage used;
        int status, i = 0;
        pid_t pid = wait4(-1, &status, 0, &used);
        double ended_us = now_us();
        if (pid < 0) fail("wait4");
        while (jobs[i].pid != pid) i++;
        jobs[i].status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        jobs[i].wall_us = ended_us - jobs[i].began_us;
        jobs[i].cpu_us = (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e6 +
                         used.ru_utime.tv_usec + used.ru_stime.tv_usec;
    }
}

static void report(struct job *job) {
    static char text[STDOUT_SHOWN];
    close(job->in), close(job->out_given);
    ssize_t len = read(job->out, text, sizeof text - 1);
    close(job->out);
    text[len > 0 ? len : 0] = 0;
    for (char *c = text; *c; c++) if (*c == '\n') *c = ' ';
    printf("%d %.1f %.1f %s\n", job->status, job->wall_us, job->cpu_us, text);
}

static void run(int count, const char *plugin) {
    char line[512];
    for (int i = 0; i < count; i++) {
        struct job *job = &jobs[i];
        if (!fgets(line, sizeof line, stdin) || sscanf(line, "%15s %79s %255s %15s", job->command,
            job->container, job->netns, job->ifname) != 4) fail("job");
        prepare(job);
    }
    double began_us = now_us();
    for (int i = 0; i < count; i++) start(&jobs[i], plugin);
    collect(count);
    double total_us = now_us() - began_us;
    for (int i = 0; i < count; i++) report(&jobs[i]);
    printf("total %.1f\n", total_us);
}

int main(int argc, char **argv) {
    static char line[1 << 16];
    if (argc != 4) return 2;
    int home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC), file = open(argv[3], O_RDONLY | O_CLOEXEC);
    if (home < 0 || file < 0) fail(argv[3]);
    conf_len = read(file, conf, sizeof conf / 2);
    snprintf(env_path, sizeof env_path, "CNI_PATH=%s", argv[2]);
    while (fgets(line, sizeof line, stdin)) {
        char *word = strtok(line, " \n");
        if (word && !strcmp(word, "run")) {
            char *count = strtok(NULL, " \n");
            int n = count ? atoi(count) : 0;
            if (n < 1 || n > JOBS_MAX) fail("run");
            run(n, argv[1]);
        } else if (word && (!strcmp(word, "netns") || !strcmp(word, "drop"))) {
            int is_new = *word == 'n';
            while ((word = strtok(NULL, " \n"))) {
                if (is_new) make_netns(word, home);
                else if (umount2(word, MNT_DETACH) || unlink(word)) fail(word);
            }
            printf("ok\n");
        } else fail("command");
        fflush(stdout);
    }
    return 0;
}
