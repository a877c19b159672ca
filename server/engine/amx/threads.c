/* The threads that share a step's work.
 *
 * Work is a number of independent items that whoever is free takes. The caller works too and never
 * waits for a thread that has not begun: on a machine whose cores also serve HTTP, a worker that is
 * not scheduled costs its help and nothing more. Workers spin between the products of a step, which
 * follow each other within microseconds, and sleep when nothing comes. (OpenMP's own threads sleep
 * at once where there are more threads than cores, and waking them costs as much as a small product.)
 */
#define _GNU_SOURCE
#include "common.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18, SPINS = 2000 };

static struct {
    atomic_flag is_taken;
    Work *work;
    const void *argument;
    int num_items, num_threads;
    _Atomic int next_item;   /* first item that nobody took */
    _Atomic int is_open;     /* items may be taken */
    _Atomic int num_active;  /* workers that may be taking items */
    _Atomic int num_sleeping;
    _Atomic int generation;  /* counts calls of share */
} job;

static int num_workers;
static _Thread_local int team = 1;             /* threads that share this thread's work */
static _Thread_local const TileConfig *loaded; /* configuration of this thread's tile registers */

int num_threads(void) { return team; }

void use_threads(int num) { team = num; }

void use_tiles(const TileConfig *config) {
    if (loaded != config) _tile_loadconfig(config);
    loaded = config;
}

static void release_tiles(void) {
    if (loaded) _tile_release();
    loaded = NULL;
}

static void take_items(int thread) {
    for (int i; (i = atomic_fetch_add(&job.next_item, 1)) < job.num_items;)
        job.work(job.argument, i, thread);
    release_tiles();
}

static void *work_forever(void *argument) {
    int thread = (int)(intptr_t)argument, seen = 0;
    for (;;) {
        for (int spins = 0; atomic_load(&job.generation) == seen; spins++) {
            _mm_pause();
            if (spins < SPINS) continue;
            atomic_fetch_add(&job.num_sleeping, 1);
            syscall(SYS_futex, &job.generation, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
            atomic_fetch_sub(&job.num_sleeping, 1);
        }
        seen = atomic_load(&job.generation);
        atomic_fetch_add(&job.num_active, 1); /* before looking: share waits for who looked in time */
        if (atomic_load(&job.is_open) && thread < job.num_threads) take_items(thread);
        atomic_fetch_sub(&job.num_active, 1);
    }
    return NULL;
}

void share(Work *work, const void *argument, int num_items) {
    if (atomic_flag_test_and_set(&job.is_taken)) { /* by another engine of this process: do without */
        for (int i = 0; i < num_items; i++) work(argument, i, 0);
        release_tiles();
        return;
    }
    job.work = work;
    job.argument = argument;
    job.num_items = num_items;
    job.num_threads = team;
    atomic_store(&job.next_item, 0);
    if (team > 1 && num_items > 1) {
        atomic_store(&job.is_open, 1);
        atomic_fetch_add(&job.generation, 1);
        if (atomic_load(&job.num_sleeping))
            syscall(SYS_futex, &job.generation, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    }
    take_items(0);
    atomic_store(&job.is_open, 0);
    while (atomic_load(&job.num_active)) _mm_pause();
    atomic_flag_clear(&job.is_taken);
}

/* Ask the system for the tile registers; 0 if it allows them. Workers are started once per process,
 * as many as the largest of its engines wants; where the system has no more, their help is missed
 * and nothing else. */
int amx_init(int threads) {
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) != 0) return 1;
    for (; num_workers + 1 < threads; num_workers++) {
        pthread_t id;
        if (pthread_create(&id, NULL, work_forever, (void *)(intptr_t)(num_workers + 1))) break;
        pthread_detach(id);
    }
    use_threads(threads); /* this thread packs the weights */
    return 0;
}
