/* A library with NCCL's functions that computes nothing: it notes what it is called with, and fails or delays as the first bytes of
 * a group's name say. Compiled by the test beside it. */
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct { char internal[128]; } Id;
typedef struct { size_t size; unsigned magic, version; int blocking; } Config;
typedef struct {
    int polls;   /* so often "in progress" is the answer; for ever if it is 127 */
    int failure; /* what the answer is then */
} Comm;

#define IN_PROGRESS 7
#define FOR_EVER 127

/* What this thread called. */
static _Thread_local char notes[4096];
static _Thread_local size_t length;

static void note(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    length += vsnprintf(notes + length, sizeof notes - length, format, arguments);
    va_end(arguments);
}

/* The notes since the last time. */
const char *fakeNotes(void) {
    static _Thread_local char taken[sizeof notes];
    snprintf(taken, sizeof taken, "%s", notes);
    length = 0;
    notes[0] = 0;
    return taken;
}

int ncclGetVersion(int *version) { *version = VERSION; return 0; }
int ncclGetUniqueId(Id *id) {
    for (int i = 0; i < 128; i++) id->internal[i] = (char)i;
    return 0;
}
int ncclCommInitRankConfig(Comm **comm, int ranks, Id id, int rank, Config *config) {
    note("join %d of %d, id ..%d, config %zu %x %u %d\n", rank, ranks, id.internal[127], config->size, config->magic,
         config->version, config->blocking);
    *comm = calloc(1, sizeof **comm);
    (*comm)->polls = id.internal[0];
    (*comm)->failure = id.internal[1];
    return (*comm)->polls ? IN_PROGRESS : (*comm)->failure;
}
int ncclCommGetAsyncError(Comm *comm, int *state) {
    if (comm->polls > 0 && comm->polls != FOR_EVER) comm->polls--;
    *state = comm->polls ? IN_PROGRESS : comm->failure;
    return 0;
}
int ncclCommFinalize(Comm *comm) { (void)comm; note("finalize\n"); return 0; }
int ncclCommDestroy(Comm *comm) { note("destroy\n"); free(comm); return 0; }
int ncclCommAbort(Comm *comm) { note("abort\n"); free(comm); return 0; }
const char *ncclGetErrorString(int result) { return result == 6 ? "remote process exited" : "something else"; }
const char *ncclGetLastError(Comm *comm) { return comm ? "socket closed by peer\n" : ""; }
int ncclGroupStart(void) { note("("); return 0; }
int ncclGroupEnd(void) { note(")\n"); return 0; }
int ncclAllReduce(const void *send, void *recv, size_t count, int type, int op, Comm *comm, void *stream) {
    (void)comm;
    note("all_reduce %zx %zx %zu %d %d %zx;", (size_t)send, (size_t)recv, count, type, op, (size_t)stream);
    return count == 13 ? 4 : 0;
}
int ncclReduceScatter(const void *send, void *recv, size_t count, int type, int op, Comm *comm, void *stream) {
    (void)comm;
    note("reduce_scatter %zx %zx %zu %d %d %zx;", (size_t)send, (size_t)recv, count, type, op, (size_t)stream);
    return 0;
}
int ncclAllGather(const void *send, void *recv, size_t count, int type, Comm *comm, void *stream) {
    (void)comm;
    note("all_gather %zx %zx %zu %d %zx;", (size_t)send, (size_t)recv, count, type, (size_t)stream);
    return IN_PROGRESS;
}
int ncclBroadcast(const void *send, void *recv, size_t count, int type, int root, Comm *comm, void *stream) {
    (void)comm;
    note("broadcast %zx %zx %zu %d %d %zx;", (size_t)send, (size_t)recv, count, type, root, (size_t)stream);
    return 0;
}
int ncclSend(const void *send, size_t count, int type, int peer, Comm *comm, void *stream) {
    (void)comm;
    note("send %zx %zu %d %d %zx;", (size_t)send, count, type, peer, (size_t)stream);
    return 0;
}
#ifndef WITHOUT_RECV
int ncclRecv(void *recv, size_t count, int type, int peer, Comm *comm, void *stream) {
    (void)comm;
    note("recv %zx %zu %d %d %zx;", (size_t)recv, count, type, peer, (size_t)stream);
    return 0;
}
#endif
