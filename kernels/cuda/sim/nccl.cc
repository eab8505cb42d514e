// A simulated NCCL: a library in place of libnccl.so.2, with which ranks on simulated GPUs of one machine work together. Ranks are
// processes, or threads of one. Declarations follow the manual of NCCL 2.29; none of its headers is needed.
//
//     c++ -std=c++17 -O2 -fPIC -pthread -shared -fvisibility=hidden -Wall -Wextra -Werror -Wl,-soname,libnccl.so.2
//         -o DIR/libnccl.so.2 sim/nccl.cc -ldl -lrt
//
// What a group asks for becomes one host function of its stream (`driver.cc`, found by TGI_CUDA_DRIVER): it runs when the stream comes
// to it, any number of times if a graph holds it. Memory of a simulated device is the process's own, and moves piece by piece through a
// mailbox for each pair of ranks, in shared memory that the unique id names. The name is gone once all ranks have joined.
//
// As in the original, a peer that is gone is waited for until somebody aborts. What it is stricter about: a group that was enqueued is in
// progress until somebody has asked; ranks that ask for different things fail, all of them, with a sentence; a buffer that is no
// memory of a device is refused. Sums start at a rank that depends on where the element lies and how many there are, and small ones
// go the other way round, so that whoever relies on an order of additions is found.
//
// Not simulated, and an error: reductions but sums of floating-point numbers, groups on several streams, ranks on several machines.
// Within a group, what is sent and received comes first, all at the same time, and then collectives in order.
#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

// --- What nccl.h declares ------------------------------------------------------------------------------------------

enum ncclResult_t : int {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7,
};

enum ncclDataType_t : int { ncclFloat16 = 6, ncclFloat32 = 7, ncclBfloat16 = 9 };
constexpr size_t TYPE_BYTES[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
constexpr int NUM_TYPES = 10;
constexpr int SUM = 0;

struct ncclUniqueId {
    char internal[128];
};

// Its beginning, which all versions share.
struct ncclConfig_t {
    size_t size;
    unsigned magic, version;
    int blocking;
};
constexpr unsigned CONFIG_MAGIC = 0xcafebeef;

struct Comm;
typedef Comm* ncclComm_t;

constexpr int VERSION = 22907;

// --- The driver ----------------------------------------------------------------------------------------------------

typedef void* Stream;
typedef void* Context;

struct Driver {
    int (*launch_host_func)(Stream, void (*)(void*), void*);
    int (*stream_is_capturing)(Stream, int*);
    int (*stream_query)(Stream);
    int (*ctx_get_current)(Context*);
    int (*ctx_set_current)(Context);
    int (*is_memory)(unsigned long long, size_t);
};

// The one that the process has loaded, or null.
static const Driver* driver() {
    static const Driver* const found = []() -> const Driver* {
        const char* path = std::getenv("TGI_CUDA_DRIVER");
        if (path == nullptr) path = "libcuda.so";
        void* library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
        if (library == nullptr) library = dlopen(path, RTLD_NOW);
        if (library == nullptr) return nullptr;
        auto* driver = new Driver;
        auto find = [&](auto& function, const char* name) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
            return function != nullptr;
        };
        // The last is what a real driver does not have: its memory is not the process's.
        bool is_whole = find(driver->launch_host_func, "cuLaunchHostFunc") && find(driver->stream_is_capturing, "cuStreamIsCapturing") &&
                        find(driver->stream_query, "cuStreamQuery") && find(driver->ctx_get_current, "cuCtxGetCurrent") &&
                        find(driver->ctx_set_current, "cuCtxSetCurrent") && find(driver->is_memory, "cusim_is_memory");
        return is_whole ? driver : nullptr;
    }();
    return found;
}

// --- Shared memory -------------------------------------------------------------------------------------------------

constexpr int MAX_RANKS = 16;
constexpr size_t PIECE_BYTES = 256 << 10;

enum Kind : int { SEND, BROADCAST, ALL_GATHER, REDUCE_SCATTER, ALL_REDUCE };
static const char* const KIND_NAMES[] = {"send to a peer", "broadcast", "all-gather", "reduce-scatter", "all-reduce"};

// What both ends of a mailbox must have asked for.
struct Request {
    Kind kind;
    int type, root;
    uint64_t count;

    bool operator==(const Request& other) const {
        return kind == other.kind && type == other.type && root == other.root && count == other.count;
    }
};

// From one rank to another, one piece at a time. All of it zero is how it begins, as shared memory does.
struct Mailbox {
    alignas(64) std::atomic<uint64_t> written;
    alignas(64) std::atomic<uint64_t> read;
    Request request;
    alignas(4096) char bytes[PIECE_BYTES];
};

struct Segment {
    std::atomic<int> num_ranks, joined;
    std::atomic<int> is_present[MAX_RANKS];
    // Ranks disagree, and none goes on.
    std::atomic<int> has_failed;
    // By sender and receiver.
    Mailbox mailboxes[];

    static size_t bytes(int num_ranks) { return sizeof(Segment) + size_t(num_ranks) * num_ranks * sizeof(Mailbox); }
};
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<uint64_t>::is_always_lock_free, "processes share them");

// --- Communicators -------------------------------------------------------------------------------------------------

struct Comm {
    std::string name;
    int rank, num_ranks;
    bool is_blocking;
    Segment* segment;

    // Under `lock`.
    bool is_finalized = false;
    // Whether something was enqueued since somebody asked for its state.
    bool is_unasked = false;
    ncclResult_t error = ncclSuccess;
    std::string words;
    // Where it was asked for something.
    std::set<std::pair<Context, Stream>> streams;

    // Of one stream at a time, in which it also ends.
    std::mutex running;
    std::atomic<bool> is_aborted{false};
    // Enqueued, and not done.
    std::atomic<int> pending{0};

    bool is_joined() const { return segment->joined.load() == num_ranks; }
    Mailbox& mailbox(int from, int to) const { return segment->mailboxes[from * num_ranks + to]; }
};

// Of what callers share. Never held while anybody waits.
static std::mutex lock;
// Those that are in use, which the rest outlives. Never ended: streams may still run when the process does.
static auto& comms = *new std::map<ncclComm_t, std::shared_ptr<Comm>>;
static thread_local std::string last_words;

static std::string sentence(const char* format, va_list arguments) {
    char text[512];
    std::vsnprintf(text, sizeof(text), format, arguments);
    return text;
}

// An error of a call, with its reason.
__attribute__((format(printf, 2, 3))) static ncclResult_t refuse(ncclResult_t result, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    last_words = sentence(format, arguments);
    va_end(arguments);
    return result;
}

// An error that a stream meets: the communicator is of no more use.
__attribute__((format(printf, 3, 4))) static void break_down(Comm& comm, ncclResult_t result, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::string words = sentence(format, arguments);
    va_end(arguments);
    std::fprintf(stderr, "simulated NCCL, rank %d of %d: %s\n", comm.rank, comm.num_ranks, words.c_str());
    comm.segment->has_failed = 1;
    std::lock_guard<std::mutex> guard(lock);
    if (comm.error != ncclSuccess) return;
    comm.error = result;
    comm.words = words;
}

static std::shared_ptr<Comm> find(ncclComm_t handle) {
    std::lock_guard<std::mutex> guard(lock);
    auto at = comms.find(handle);
    return at == comms.end() ? nullptr : at->second;
}

// --- What ranks do together ----------------------------------------------------------------------------------------

struct Operation {
    Request request;
    // Of a send or receive.
    int peer;
    bool is_receive;
    const char* send;
    char* recv;

    size_t bytes() const { return request.count * TYPE_BYTES[request.type]; }
};

// One side of what passes a mailbox. Of no bytes, it is one empty piece.
struct Transfer {
    Mailbox* mailbox;
    int peer;
    // Whose bytes these are; null on the other side.
    const char* from;
    char* to;
    size_t left;
    bool is_done = false;
};

static std::string describe(const Request& request) {
    std::string text = KIND_NAMES[request.kind];
    if (request.kind == BROADCAST) text += " from rank " + std::to_string(request.root);
    return text + " of " + std::to_string(request.count) + " elements of type " + std::to_string(request.type);
}

// Does what can be done of it now. Returns whether that was anything.
static bool advance(Comm& comm, const Request& request, Transfer& transfer) {
    Mailbox& mailbox = *transfer.mailbox;
    uint64_t read = mailbox.read.load(std::memory_order_acquire), written = mailbox.written.load(std::memory_order_acquire);
    bool is_full = written != read;
    if (is_full == (transfer.to == nullptr)) return false;
    size_t piece = std::min(transfer.left, PIECE_BYTES);
    if (transfer.to == nullptr) {
        mailbox.request = request;
        if (piece > 0) std::memcpy(mailbox.bytes, transfer.from, piece);
        transfer.from += piece;
        mailbox.written.store(written + 1, std::memory_order_release);
    } else {
        if (!(mailbox.request == request)) {
            break_down(comm, ncclInternalError, "this rank asks for: %s; rank %d asks for: %s", describe(request).c_str(), transfer.peer,
                       describe(mailbox.request).c_str());
            return false;
        }
        if (piece > 0) std::memcpy(transfer.to, mailbox.bytes, piece);
        transfer.to += piece;
        mailbox.read.store(read + 1, std::memory_order_release);
    }
    transfer.left -= piece;
    transfer.is_done = transfer.left == 0;
    return true;
}

// Whether to go on.
static bool is_usable(Comm& comm) {
    if (comm.is_aborted) return false;
    if (comm.segment->has_failed == 0) return true;
    std::lock_guard<std::mutex> guard(lock);
    if (comm.error == ncclSuccess) {
        comm.error = ncclRemoteError;
        comm.words = "another rank has failed, and has said why";
    }
    return false;
}

// All at the same time; those of one mailbox in order, if they go the same way. Returns whether they are done.
static bool transfer_all(Comm& comm, const std::vector<const Operation*>& requests, std::vector<Transfer>& transfers) {
    // Looks without result, of which the first are in quick succession: ranks come at about the same time.
    constexpr unsigned QUICK_LOOKS = 50;
    for (unsigned looks = 0;; ++looks) {
        if (!is_usable(comm)) return false;
        std::set<std::pair<Mailbox*, bool>> occupied;
        bool is_done = true;
        for (size_t at = 0; at < transfers.size(); ++at) {
            Transfer& transfer = transfers[at];
            bool is_first = !transfer.is_done && occupied.emplace(transfer.mailbox, transfer.to == nullptr).second;
            if (is_first && advance(comm, requests[at]->request, transfer)) looks = 0;
            is_done = is_done && transfer.is_done;
        }
        if (is_done) return true;
        if (looks < QUICK_LOOKS) {
            sched_yield();
        } else {
            usleep(50);
        }
    }
}

static float from_half(uint16_t bits) {
    uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023, word;
    if (exponent == 0) {
        float value = std::ldexp(float(fraction), -24);
        return sign != 0 ? -value : value;
    }
    word = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    float value;
    std::memcpy(&value, &word, sizeof(value));
    return value;
}

// To the nearest, of two to the even one.
static uint16_t to_half(float value) {
    uint32_t word;
    std::memcpy(&word, &value, sizeof(word));
    uint16_t sign = uint16_t(word >> 16 & 0x8000);
    float size = std::fabs(value);
    if (size != size) return sign | 0x7e00;
    if (size >= 65520.0f) return sign | 0x7c00;
    // Below the least normal number the steps are those of 2^-24; the processor rounds.
    if (size < 0x1p-14f) return sign | uint16_t(std::nearbyint(size * 0x1p24f));
    word &= 0x7fffffff;
    word += 0xfff + (word >> 13 & 1);
    return sign | uint16_t((word >> 13) - (112 << 10));
}

static float load(const char* elements, size_t at, int type) {
    if (type == ncclFloat32) {
        float value;
        std::memcpy(&value, elements + at * 4, 4);
        return value;
    }
    uint16_t bits;
    std::memcpy(&bits, elements + at * 2, 2);
    if (type == ncclFloat16) return from_half(bits);
    uint32_t word = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, sizeof(value));
    return value;
}

static void store(char* elements, size_t at, int type, float value) {
    if (type == ncclFloat32) {
        std::memcpy(elements + at * 4, &value, 4);
        return;
    }
    uint32_t word;
    std::memcpy(&word, &value, sizeof(word));
    uint16_t bits = type == ncclFloat16 ? to_half(value)
                    : value != value    ? uint16_t(word >> 16 | 0x40)
                                        : uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
    std::memcpy(elements + at * 2, &bits, 2);
}

// Sums of an element of all ranks in f32, as rank `computer` of a ring would have them.
static void add(const std::vector<const char*>& inputs, size_t at, int type, int computer, bool is_small, char* out) {
    int num_ranks = int(inputs.size());
    float sum = 0;
    for (int step = 1; step <= num_ranks; ++step) {
        int rank = is_small ? (computer + num_ranks - step) % num_ranks : (computer + step) % num_ranks;
        float value = load(inputs[size_t(rank)], at, type);
        sum = step == 1 ? value : sum + value;
    }
    store(out, at, type, sum);
}

// What the original does otherwise than in a ring.
constexpr size_t SMALL_BYTES = 16 << 10;

static bool run_collective(Comm& comm, const Operation& operation) {
    const Request& request = operation.request;
    size_t bytes = operation.bytes(), ranks = size_t(comm.num_ranks), self = size_t(comm.rank);
    // Of each rank, what comes from it.
    std::vector<std::vector<char>> received(ranks);
    std::vector<Transfer> transfers;
    for (int peer = 0; peer < comm.num_ranks; ++peer) {
        if (peer == comm.rank) continue;
        const char* from = operation.send;
        char* to = operation.recv;
        size_t bytes_out = bytes, bytes_in = bytes;
        switch (request.kind) {
            case BROADCAST:
                // Ranks that are not the root say so to each other: they may not agree who is.
                if (comm.rank != request.root) bytes_out = 0;
                if (peer != request.root) bytes_in = 0;
                break;
            case ALL_GATHER: to += size_t(peer) * bytes; break;
            case REDUCE_SCATTER: from += size_t(peer) * bytes; [[fallthrough]];
            default:
                received[size_t(peer)].resize(bytes);
                to = received[size_t(peer)].data();
        }
        transfers.push_back({&comm.mailbox(comm.rank, peer), peer, from, nullptr, bytes_out});
        transfers.push_back({&comm.mailbox(peer, comm.rank), peer, nullptr, to, bytes_in});
    }
    if (!transfer_all(comm, std::vector<const Operation*>(transfers.size(), &operation), transfers)) return false;

    if (request.kind == BROADCAST && comm.rank == request.root) std::memmove(operation.recv, operation.send, bytes);
    if (request.kind == ALL_GATHER) std::memmove(operation.recv + self * bytes, operation.send, bytes);
    if (request.kind != REDUCE_SCATTER && request.kind != ALL_REDUCE) return true;
    const char* own = operation.send + (request.kind == REDUCE_SCATTER ? self * bytes : 0);
    received[self].assign(own, own + bytes);
    std::vector<const char*> inputs;
    for (const auto& of_rank : received) inputs.push_back(of_rank.data());
    size_t share = (request.count + ranks - 1) / ranks;
    for (size_t at = 0; at < request.count; ++at) {
        int computer = request.kind == REDUCE_SCATTER ? comm.rank : int(at / share);
        add(inputs, at, request.type, computer, bytes < SMALL_BYTES, operation.recv);
    }
    return true;
}

// Bytes that an operation reads and writes.
static size_t send_bytes(const Comm& comm, const Operation& operation) {
    const Request& request = operation.request;
    bool is_read = request.kind == SEND ? !operation.is_receive : request.kind != BROADCAST || comm.rank == request.root;
    return is_read ? operation.bytes() * (request.kind == REDUCE_SCATTER ? size_t(comm.num_ranks) : 1) : 0;
}

static size_t recv_bytes(const Comm& comm, const Operation& operation) {
    if (operation.request.kind == SEND) return operation.is_receive ? operation.bytes() : 0;
    return operation.bytes() * (operation.request.kind == ALL_GATHER ? size_t(comm.num_ranks) : 1);
}

static bool has_memory(const Comm& comm, const Operation& operation) {
    auto is_memory = [](const void* start, size_t bytes) {
        return bytes == 0 || driver()->is_memory(reinterpret_cast<uintptr_t>(start), bytes) != 0;
    };
    return is_memory(operation.send, send_bytes(comm, operation)) && is_memory(operation.recv, recv_bytes(comm, operation));
}

static void run_operations(Comm& comm, const std::vector<Operation>& operations) {
    std::vector<const Operation*> requests;
    std::vector<Transfer> transfers;
    for (const Operation& operation : operations) {
        // Again, since a graph may have kept it.
        if (!has_memory(comm, operation)) {
            return break_down(comm, ncclUnhandledCudaError, "%s: a buffer is no memory any more", describe(operation.request).c_str());
        }
        if (operation.request.kind != SEND) continue;
        int peer = operation.peer;
        Mailbox& mailbox = operation.is_receive ? comm.mailbox(peer, comm.rank) : comm.mailbox(comm.rank, peer);
        requests.push_back(&operation);
        transfers.push_back({&mailbox, peer, operation.send, operation.recv, operation.bytes()});
    }
    if (!transfer_all(comm, requests, transfers)) return;
    for (const Operation& operation : operations) {
        if (operation.request.kind != SEND && !run_collective(comm, operation)) return;
    }
}

// What a stream holds.
struct Work {
    std::shared_ptr<Comm> comm;
    std::vector<Operation> operations;
    // Whether a graph has it, which nobody says when it ends.
    bool is_captured;
};

static void run_work(void* data) {
    Work* work = static_cast<Work*>(data);
    Comm& comm = *work->comm;
    {
        std::lock_guard<std::mutex> guard(comm.running);
        if (comm.segment != nullptr) {
            run_operations(comm, work->operations);
        } else if (!comm.is_aborted) {
            std::fprintf(stderr, "simulated NCCL: a graph runs what it has of a communicator that was destroyed\n");
            std::_Exit(1);
        }
    }
    if (work->is_captured) return;
    comm.pending--;
    delete work;
}

// --- Calls ---------------------------------------------------------------------------------------------------------

API ncclResult_t ncclGetVersion(int* version) {
    if (version == nullptr) return refuse(ncclInvalidArgument, "there is no place for the version");
    *version = VERSION;
    return ncclSuccess;
}

API ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    if (id == nullptr) return refuse(ncclInvalidArgument, "there is no place for the id");
    std::random_device random;
    std::memset(id, 0, sizeof(*id));
    std::snprintf(id->internal, sizeof(id->internal), "/simulated-nccl-%08x%08x", random(), random());
    return ncclSuccess;
}

static ncclResult_t state_of(Comm& comm);

static ncclResult_t wait_for(Comm& comm) {
    while (true) {
        ncclResult_t state = state_of(comm);
        if (state != ncclInProgress) return state;
        usleep(50);
    }
}

API ncclResult_t ncclCommInitRankConfig(ncclComm_t* handle, int num_ranks, ncclUniqueId id, int rank, ncclConfig_t* config) {
    if (handle == nullptr) return refuse(ncclInvalidArgument, "there is no place for the communicator");
    *handle = nullptr;
    if (num_ranks < 1 || num_ranks > MAX_RANKS || rank < 0 || rank >= num_ranks) {
        return refuse(ncclInvalidArgument, "rank %d of %d; at most %d are simulated", rank, num_ranks, MAX_RANKS);
    }
    if (config != nullptr && (config->magic != CONFIG_MAGIC || config->size < sizeof(ncclConfig_t))) {
        return refuse(ncclInvalidArgument, "the configuration was not initialized");
    }
    if (driver() == nullptr) return refuse(ncclSystemError, "the process has no simulated driver; TGI_CUDA_DRIVER names it");
    Context context = nullptr;
    if (driver()->ctx_get_current(&context) != 0 || context == nullptr) {
        return refuse(ncclUnhandledCudaError, "no device is current on this thread");
    }
    if (id.internal[0] != '/' || std::memchr(id.internal, 0, sizeof(id.internal)) == nullptr) {
        return refuse(ncclInvalidArgument, "the id is none of this library");
    }
    // Whoever comes first makes it, all in the same way: as many zeros as the number of ranks needs.
    int file = shm_open(id.internal, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0) return refuse(ncclSystemError, "shm_open: %s", std::strerror(errno));
    size_t bytes = Segment::bytes(num_ranks);
    void* mapped = ftruncate(file, off_t(bytes)) == 0 ? mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0) : MAP_FAILED;
    close(file);
    if (mapped == MAP_FAILED) return refuse(ncclSystemError, "shared memory cannot be mapped: %s", std::strerror(errno));
    auto* segment = static_cast<Segment*>(mapped);
    int of_others = 0;
    bool is_agreed = segment->num_ranks.compare_exchange_strong(of_others, num_ranks) || of_others == num_ranks;
    if (!is_agreed || segment->is_present[rank].exchange(1) != 0) {
        munmap(mapped, bytes);
        return !is_agreed ? refuse(ncclInvalidArgument, "of %d ranks, of which others say that they are %d", num_ranks, of_others)
                          : refuse(ncclInvalidUsage, "rank %d has joined before", rank);
    }
    auto comm = std::make_shared<Comm>();
    comm->name = id.internal;
    comm->rank = rank;
    comm->num_ranks = num_ranks;
    // Which is what its default means as well.
    comm->is_blocking = config == nullptr || config->blocking != 0;
    comm->segment = segment;
    if (segment->joined.fetch_add(1) + 1 == num_ranks) shm_unlink(id.internal);
    {
        std::lock_guard<std::mutex> guard(lock);
        comms.emplace(comm.get(), comm);
    }
    *handle = comm.get();
    return comm->is_blocking ? wait_for(*comm) : comm->is_joined() ? ncclSuccess : ncclInProgress;
}

// Has streams go on that hold something of the communicator: whoever finalizes it waits for them.
static void push_on(Comm& comm) {
    std::set<std::pair<Context, Stream>> streams;
    {
        std::lock_guard<std::mutex> guard(lock);
        streams = comm.streams;
    }
    Context before = nullptr;
    driver()->ctx_get_current(&before);
    for (const auto& [context, stream] : streams) {
        int capture = 0;
        // Those that are gone have been told to end. To ask one that is capturing would spoil it.
        bool is_there = driver()->ctx_set_current(context) == 0 && driver()->stream_is_capturing(stream, &capture) == 0;
        if (is_there && capture == 0) driver()->stream_query(stream);
    }
    driver()->ctx_set_current(before);
}

static ncclResult_t state_of(Comm& comm) {
    {
        std::lock_guard<std::mutex> guard(lock);
        if (comm.error != ncclSuccess) return comm.error;
        if (comm.segment == nullptr || comm.is_aborted) return ncclInvalidUsage;
        if (!comm.is_joined()) return ncclInProgress;
        comm.is_unasked = false;
        if (!comm.is_finalized || comm.pending == 0) return ncclSuccess;
    }
    push_on(comm);
    return ncclInProgress;
}

API ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* state) {
    std::shared_ptr<Comm> comm = find(handle);
    if (comm == nullptr || state == nullptr) return refuse(ncclInvalidArgument, "there is no such communicator");
    *state = state_of(*comm);
    return ncclSuccess;
}

API ncclResult_t ncclCommFinalize(ncclComm_t handle) {
    std::shared_ptr<Comm> comm = find(handle);
    if (comm == nullptr) return refuse(ncclInvalidArgument, "there is no such communicator");
    {
        std::lock_guard<std::mutex> guard(lock);
        if (comm->is_finalized) return refuse(ncclInvalidArgument, "the communicator is finalized");
        if (!comm->is_joined()) return refuse(ncclInvalidArgument, "ranks are still missing");
        comm->is_finalized = true;
    }
    return comm->is_blocking ? wait_for(*comm) : state_of(*comm);
}

// Takes the communicator from its users, and its memory when no stream is in the middle of it.
static ncclResult_t end(ncclComm_t handle, bool is_abort) {
    std::shared_ptr<Comm> comm = find(handle);
    if (comm == nullptr) return refuse(ncclInvalidArgument, "there is no such communicator");
    {
        std::lock_guard<std::mutex> guard(lock);
        if (comm->segment == nullptr) return refuse(ncclInvalidArgument, "there is no such communicator");
        // One whose ranks never joined has nothing to finish.
        is_abort = is_abort || !comm->is_joined();
        if (is_abort) comm->is_aborted = true;
        comm->is_finalized = true;
    }
    if (!is_abort) wait_for(*comm);
    std::lock_guard<std::mutex> running(comm->running);
    std::lock_guard<std::mutex> guard(lock);
    // Another thread was faster.
    if (comms.erase(handle) == 0) return refuse(ncclInvalidArgument, "there is no such communicator");
    if (!comm->is_joined()) shm_unlink(comm->name.c_str());
    munmap(comm->segment, Segment::bytes(comm->num_ranks));
    comm->segment = nullptr;
    return ncclSuccess;
}

API ncclResult_t ncclCommDestroy(ncclComm_t handle) { return end(handle, false); }

API ncclResult_t ncclCommAbort(ncclComm_t handle) { return end(handle, true); }

API const char* ncclGetErrorString(ncclResult_t result) {
    switch (result) {
        case ncclSuccess: return "no error";
        case ncclUnhandledCudaError: return "unhandled cuda error";
        case ncclSystemError: return "unhandled system error";
        case ncclInternalError: return "internal error";
        case ncclInvalidArgument: return "invalid argument";
        case ncclInvalidUsage: return "invalid usage";
        case ncclRemoteError: return "remote process exited or there was a network error";
        case ncclInProgress: return "NCCL operation in progress";
    }
    return "unknown result code";
}

// The text stays until the thread asks again.
API const char* ncclGetLastError(ncclComm_t handle) {
    static thread_local std::string shown;
    shown = last_words;
    if (std::shared_ptr<Comm> comm = find(handle)) {
        std::lock_guard<std::mutex> guard(lock);
        if (!comm->words.empty()) shown = comm->words;
    }
    return shown.c_str();
}

// --- Groups --------------------------------------------------------------------------------------------------------

struct Group {
    int depth = 0;
    ncclResult_t error = ncclSuccess;
    // Of each communicator, its stream and what it is to do.
    std::map<ncclComm_t, std::pair<Stream, std::vector<Operation>>> operations;
};
static thread_local Group group;

static ncclResult_t enqueue(const std::shared_ptr<Comm>& comm, Stream stream, std::vector<Operation> operations) {
    int capture = 0;
    Context context = nullptr;
    driver()->ctx_get_current(&context);
    if (driver()->stream_is_capturing(stream, &capture) != 0) return refuse(ncclUnhandledCudaError, "there is no such stream");
    bool is_captured = capture != 0;
    auto* work = new Work{comm, std::move(operations), is_captured};
    if (!is_captured) comm->pending++;
    if (int error = driver()->launch_host_func(stream, run_work, work)) {
        if (!is_captured) comm->pending--;
        delete work;
        return refuse(ncclUnhandledCudaError, "cuLaunchHostFunc: error %d", error);
    }
    std::lock_guard<std::mutex> guard(lock);
    if (!is_captured) comm->streams.emplace(context, stream);
    comm->is_unasked = !comm->is_blocking;
    return ncclSuccess;
}

API ncclResult_t ncclGroupStart() {
    group.depth++;
    return ncclSuccess;
}

API ncclResult_t ncclGroupEnd() {
    if (group.depth == 0) return refuse(ncclInvalidUsage, "no group has begun");
    if (--group.depth > 0) return ncclSuccess;
    Group ended = std::move(group);
    group = Group();
    if (ended.error != ncclSuccess) return ended.error;
    ncclResult_t result = ncclSuccess;
    for (auto& [handle, operations] : ended.operations) {
        std::shared_ptr<Comm> comm = find(handle);
        if (comm == nullptr) return refuse(ncclInvalidArgument, "a communicator ended within a group");
        if (ncclResult_t error = enqueue(comm, operations.first, std::move(operations.second))) return error;
        if (!comm->is_blocking) result = ncclInProgress;
    }
    return result;
}

static ncclResult_t check(ncclComm_t handle, Stream stream, const Operation& operation, int op) {
    const Request& request = operation.request;
    std::shared_ptr<Comm> comm = find(handle);
    if (comm == nullptr) return refuse(ncclInvalidArgument, "there is no such communicator");
    {
        std::lock_guard<std::mutex> guard(lock);
        if (comm->error != ncclSuccess) return comm->error;
        if (comm->is_finalized) return refuse(ncclInvalidUsage, "the communicator is finalized");
        if (comm->segment == nullptr || !comm->is_joined() || comm->is_unasked) {
            return refuse(ncclInvalidArgument, "nobody has seen the call before complete");
        }
    }
    if (request.type < 0 || request.type >= NUM_TYPES) return refuse(ncclInvalidArgument, "there is no type %d", request.type);
    if (request.kind == REDUCE_SCATTER || request.kind == ALL_REDUCE) {
        bool is_float = request.type == ncclFloat16 || request.type == ncclFloat32 || request.type == ncclBfloat16;
        if (!is_float || op != SUM) return refuse(ncclInvalidArgument, "reduction %d of type %d is not simulated", op, request.type);
    }
    for (int rank : {operation.peer, request.root}) {
        if (rank < 0 || rank >= comm->num_ranks) return refuse(ncclInvalidArgument, "there is no rank %d", rank);
    }
    if (request.count > SIZE_MAX / 8 / MAX_RANKS) return refuse(ncclInvalidArgument, "too many elements");
    if (!has_memory(*comm, operation)) {
        return refuse(ncclInvalidArgument, "%s: a buffer is no memory of the device", describe(request).c_str());
    }
    // Nothing is done then, on no rank.
    if (request.count == 0) return ncclSuccess;
    auto of_comm = group.operations.try_emplace(handle, stream, std::vector<Operation>()).first;
    if (of_comm->second.first != stream) return refuse(ncclInvalidUsage, "a group on two streams is not simulated");
    of_comm->second.second.push_back(operation);
    return ncclSuccess;
}

// A call outside of a group is one of its own.
static ncclResult_t add_to_group(ncclComm_t handle, Stream stream, const Operation& operation, int op = SUM) {
    group.depth++;
    ncclResult_t result = check(handle, stream, operation, op);
    if (result != ncclSuccess && group.error == ncclSuccess) group.error = result;
    if (group.depth == 1) return ncclGroupEnd();
    group.depth--;
    return result;
}

static const char* read(const void* start) { return static_cast<const char*>(start); }
static char* write(void* start) { return static_cast<char*>(start); }

API ncclResult_t ncclAllReduce(const void* send, void* recv, size_t count, int type, int op, ncclComm_t comm, Stream stream) {
    return add_to_group(comm, stream, {{ALL_REDUCE, type, 0, count}, 0, false, read(send), write(recv)}, op);
}

API ncclResult_t ncclReduceScatter(const void* send, void* recv, size_t count, int type, int op, ncclComm_t comm, Stream stream) {
    return add_to_group(comm, stream, {{REDUCE_SCATTER, type, 0, count}, 0, false, read(send), write(recv)}, op);
}

API ncclResult_t ncclAllGather(const void* send, void* recv, size_t count, int type, ncclComm_t comm, Stream stream) {
    return add_to_group(comm, stream, {{ALL_GATHER, type, 0, count}, 0, false, read(send), write(recv)});
}

API ncclResult_t ncclBroadcast(const void* send, void* recv, size_t count, int type, int root, ncclComm_t comm, Stream stream) {
    return add_to_group(comm, stream, {{BROADCAST, type, root, count}, 0, false, read(send), write(recv)});
}

API ncclResult_t ncclSend(const void* send, size_t count, int type, int peer, ncclComm_t comm, Stream stream) {
    return add_to_group(comm, stream, {{SEND, type, 0, count}, peer, false, read(send), nullptr});
}

API ncclResult_t ncclRecv(void* recv, size_t count, int type, int peer, ncclComm_t comm, Stream stream) {
    return add_to_group(comm, stream, {{SEND, type, 0, count}, peer, true, nullptr, write(recv)});
}
