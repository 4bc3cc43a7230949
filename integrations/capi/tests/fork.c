/*
 * A process uses the library's threads and then forks, as a DataLoader does for its workers. Its children and grandchildren
 * compute masks and gradients too. A child without threads would wait forever, so each has a time limit of one minute.
 */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "xact.h"

/* Large enough that several threads are used. */
enum { LABELS = 1 << 17 };

static int32_t ids[LABELS];
static uint8_t expected[LABELS], keep[LABELS];

static void check(xact_status status)
{
    if (status != XACT_OK) {
        fprintf(stderr, "xact: error %d: %s\n", (int)status, xact_last_error());
        _exit(1);
    }
}

static void mask(const xact_goldfish *goldfish, uint8_t *to)
{
    xact_decision decision = {0};
    decision.size = sizeof decision;
    decision.goldfish = goldfish;
    decision.hash_ids = ids;
    decision.id_type = XACT_ID_I32;
    xact_goldfish_args args = {0};
    args.size = sizeof args;
    args.labels = LABELS;
    args.decision = &decision;
    args.keep = to;
    check(xact_goldfish_mask_host(&args));
}

/* Does the same in `depth` generations of children, and returns 0 if all have the same results. */
static int generations(const xact_goldfish *goldfish, int depth)
{
    pid_t child = fork();
    if (child < 0)
        return 1;
    if (child == 0) {
        alarm(60);
        memset(keep, 7, sizeof keep);
        mask(goldfish, keep);
        int wrong = memcmp(keep, expected, sizeof keep) != 0;
        _exit(wrong || (depth > 1 && generations(goldfish, depth - 1)));
    }
    int status = 0;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "a child ended with status %d\n", status);
        return 1;
    }
    return 0;
}

int main(void)
{
    for (int i = 0; i < LABELS; i++)
        ids[i] = i * 37 % 1009;
    xact_goldfish_strategy strategy = {0};
    strategy.size = sizeof strategy;
    strategy.kind = XACT_STRATEGY_HASH64;
    strategy.k = 4;
    strategy.h = 13;
    xact_goldfish *goldfish;
    check(xact_set_num_threads(3));
    check(xact_goldfish_create(&strategy, &goldfish));
    mask(goldfish, expected);
    for (int worker = 0; worker < 2; worker++)
        if (generations(goldfish, 2))
            return 1;
    /* The parent continues with its own threads. */
    mask(goldfish, keep);
    if (memcmp(keep, expected, sizeof keep) != 0)
        return 1;
    check(xact_goldfish_free(goldfish));
    puts("ok");
    return 0;
}
