// Ranks of a group as processes of their own, on the simulated driver: their kernels sum over memory that they have mapped of each other.
//
//     all_reduce DIR/libcuda.so
//
// Every scenario forks its ranks. One that finds something wrong says so and ends with an error, and so does the program.
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <random>

#include "types.cuh"

// --- The driver ----------------------------------------------------------------------------------------------------

typedef unsigned long long Pointer;
struct IpcHandle {
    char bytes[64];
};

static void* library;
static int rank = -1;

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (condition) break;                                                                                \
        std::fprintf(stderr, "rank %d, line %d: %s\n", rank, __LINE__, #condition);                          \
        std::_Exit(1);                                                                                       \
    } while (0)

// Calls a function of the driver; what it returns.
template <typename... A>
static unsigned ask(const char* name, A... arguments) {
    auto function = reinterpret_cast<unsigned (*)(A...)>(dlsym(library, name));
    if (function == nullptr) cusim::fail("there is no %s", name);
    return function(arguments...);
}

#define CALL(...) CHECK(ask(__VA_ARGS__) == 0)

// --- What ranks share ----------------------------------------------------------------------------------------------

constexpr unsigned MAX_RANKS = 8;

struct Board {
    std::atomic<unsigned> arrived;
    IpcHandle handles[MAX_RANKS];
};
static Board* board;

// Until all ranks have come here as often.
static void meet(unsigned num_ranks) {
    static unsigned meetings = 0;
    board->arrived++;
    ++meetings;
    while (board->arrived < meetings * num_ranks) usleep(100);
}

// --- A rank --------------------------------------------------------------------------------------------------------

constexpr unsigned HEAD_BYTES = 256, MAX_BLOCKS = 128, TWO_SHOT_BLOCKS = 64, TWO_SHOT_FLAGS_BYTES = 4096;

enum Way { ONE_SHOT, TWO_SHOT };

static void* load_module(const char* file) {
    void *program, *module;
    size_t bytes;
    const char* options[] = {"--gpu-architecture=sm_90a"};
    CALL("nvrtcCreateProgram", &program, "// simulated", file, 0, nullptr, nullptr);
    CALL("nvrtcCompileProgram", program, 1, static_cast<const char* const*>(options));
    CALL("nvrtcGetCUBINSize", program, &bytes);
    std::vector<char> cubin(bytes);
    CALL("nvrtcGetCUBIN", program, cubin.data());
    CALL("cuModuleLoadData", &module, static_cast<const void*>(cubin.data()));
    return module;
}

static Pointer allocate(size_t bytes) {
    Pointer pointer;
    CALL("cuMemAlloc_v2", &pointer, bytes);
    return pointer;
}

struct Rank {
    unsigned num_ranks, room;
    void *stream, *context, *norms;
    // By way.
    void* sums[2];
    Pointer own = 0, peers[MAX_RANKS - 1] = {};
    // What kernels are told of them, by way.
    struct {
        Pointer own, peers[MAX_RANKS - 1];
    } regions[2] = {};
    std::atomic<unsigned>* aborted;

    // `calls`: how many there were already, each way.
    Rank(unsigned num_ranks, unsigned room, unsigned calls = 0) : num_ranks(num_ranks), room(room) {
        CALL("cuInit", 0u);
        CALL("cuDevicePrimaryCtxRetain", &context, rank);
        CALL("cuCtxSetCurrent", context);
        CALL("cuStreamCreate", &stream, 1u);
        sums[ONE_SHOT] = load_module("all_reduce.cu");
        sums[TWO_SHOT] = load_module("all_reduce_two_shot.cu");
        norms = load_module("rms_norm.cu");
        void* words;
        CALL("cuMemHostAlloc", &words, sizeof(unsigned), 2u);
        aborted = new (words) std::atomic<unsigned>(0);

        own = allocate(region_bytes());
        CALL("cuMemsetD8Async", own, 0, region_bytes(), stream);
        CALL("cuMemsetD32Async", own, calls, size_t(1), stream);
        CALL("cuMemsetD32Async", own + one_shot_bytes(), calls, size_t(1), stream);
        CALL("cuStreamSynchronize", stream);
        CALL("cuIpcGetMemHandle", &board->handles[rank], own);
        meet(num_ranks);
        for (unsigned at = 1; at < num_ranks; ++at) {
            CALL("cuIpcOpenMemHandle_v2", &peers[at - 1], board->handles[(unsigned(rank) + at) % num_ranks], 1u);
        }
        for (Way way : {ONE_SHOT, TWO_SHOT}) {
            Pointer offset = way == ONE_SHOT ? 0 : one_shot_bytes();
            regions[way].own = own + offset;
            for (unsigned at = 1; at < num_ranks; ++at) regions[way].peers[at - 1] = peers[at - 1] + offset;
        }
        meet(num_ranks);
    }

    // What is for one shot; that for two follows.
    size_t one_shot_bytes() const { return HEAD_BYTES + size_t(64) * num_ranks * room; }

    size_t region_bytes() const {
        size_t vectors = 2 * room + TWO_SHOT_BLOCKS * (num_ranks - 1);
        return one_shot_bytes() + HEAD_BYTES + TWO_SHOT_FLAGS_BYTES + 16 * vectors;
    }

    void launch(void* module, const char* name, unsigned grid, unsigned threads, std::vector<void*> arguments) const {
        void* function;
        CALL("cuModuleGetFunction", &function, module, name);
        CALL("cuLaunchKernel", function, grid, 1u, 1u, threads, 1u, 1u, 0u, stream, arguments.data(), static_cast<void**>(nullptr));
    }

    std::vector<void*> with_group(Way way, std::vector<void*> arguments) {
        static Pointer word;
        CALL("cuMemHostGetDevicePointer_v2", &word, static_cast<void*>(aborted), 0u);
        for (void* argument : {static_cast<void*>(&rank), static_cast<void*>(&num_ranks), static_cast<void*>(&room),
                               static_cast<void*>(&word), static_cast<void*>(&regions[way].own)}) {
            arguments.push_back(argument);
        }
        for (Pointer& peer : regions[way].peers) arguments.push_back(&peer);
        return arguments;
    }

    void all_reduce(Way way, const char* type, Pointer x, unsigned vectors) {
        std::string name = std::string(way == ONE_SHOT ? "all_reduce_" : "all_reduce_two_shot_") + type;
        unsigned threads = way == ONE_SHOT ? 128 : 256, most = way == ONE_SHOT ? MAX_BLOCKS : TWO_SHOT_BLOCKS;
        launch(sums[way], name.c_str(), std::min((vectors + threads - 1) / threads, most), threads, with_group(way, {&x, &vectors}));
    }

    // With two shots blocks have two rows, the last one what is left.
    void all_reduce_add_rms_norm(Way way, const char* type, Pointer out, Pointer residual, Pointer x, Pointer weight, unsigned rows, unsigned cols) {
        float eps = 1e-5f;
        unsigned rounds_first = 1;
        std::string name = std::string(way == ONE_SHOT ? "all_reduce_add_rms_norm_" : "all_reduce_two_shot_add_rms_norm_") + type;
        std::vector<void*> arguments = {&out, &residual, &x, &weight};
        if (way == TWO_SHOT) arguments.push_back(&rows);
        arguments.insert(arguments.end(), {&eps, &rounds_first, &cols});
        launch(sums[way], name.c_str(), way == ONE_SHOT ? rows : (rows + 1) / 2, 256, with_group(way, arguments));
    }

    void add_rms_norm(const char* type, Pointer out, Pointer residual, Pointer x, Pointer weight, unsigned rows, unsigned cols) const {
        float eps = 1e-5f;
        unsigned rounds_first = 1;
        std::string name = std::string("add_rms_norm_") + type;
        launch(norms, name.c_str(), rows, 256, {&out, &residual, &x, &weight, &eps, &rounds_first, &cols});
    }

    template <typename T>
    void upload(Pointer to, const std::vector<T>& values) const {
        CALL("cuMemcpyHtoDAsync_v2", to, static_cast<const void*>(values.data()), values.size() * sizeof(T), stream);
    }

    template <typename T>
    std::vector<T> download(Pointer from, size_t length) const {
        std::vector<T> values(length);
        CALL("cuMemcpyDtoHAsync_v2", static_cast<void*>(values.data()), from, length * sizeof(T), stream);
        CALL("cuStreamSynchronize", stream);
        return values;
    }

    void be_late(unsigned seed) const {
        // A third of the calls at once, some far behind.
        usleep(std::mt19937(seed * 31 + unsigned(rank))() % 3 * 1500);
    }
};

// --- What is summed ------------------------------------------------------------------------------------------------

// What a rank brings to a call.
template <typename T>
static std::vector<T> part(unsigned seed, unsigned of, size_t length) {
    std::mt19937 random(seed * 64 + of);
    std::vector<T> values(length);
    for (T& value : values) {
        // -0 as well, whose sum is -0 only if nothing else was added; and sizes whose order of addition shows.
        unsigned bits = random();
        float size = std::ldexp(float(int(bits >> 16) - 32768), int(bits % 12) - 20);
        value = round_to<T>(bits % 7 == 0 ? -0.0f : size);
    }
    return values;
}

// That of all ranks, in their order.
template <typename T>
static std::vector<T> sum(unsigned seed, unsigned num_ranks, size_t length) {
    std::vector<float> sums(length);
    for (unsigned of = 0; of < num_ranks; ++of) {
        std::vector<T> values = part<T>(seed, of, length);
        for (size_t at = 0; at < length; ++at) sums[at] = of == 0 ? to_f32(values[at]) : sums[at] + to_f32(values[at]);
    }
    std::vector<T> rounded(length);
    for (size_t at = 0; at < length; ++at) rounded[at] = round_to<T>(sums[at]);
    return rounded;
}

template <typename T>
static bool are_equal(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <typename T>
constexpr const char* NAME = std::is_same_v<T, bf16> ? "bf16" : "f16";

// --- Scenarios -----------------------------------------------------------------------------------------------------

// Calls of many lengths, one by one, with ranks that come late.
template <typename T>
static void sum_lengths(Rank& self) {
    Pointer x = allocate(self.room * 16);
    unsigned seed = 0;
    for (unsigned vectors : {1u, 3u, 127u, 128u, 129u, 1025u, 1u, self.room, 2u, self.room}) {
        for (Way way : {ONE_SHOT, TWO_SHOT}) {
            self.be_late(++seed);
            self.upload(x, part<T>(seed, unsigned(rank), vectors * VECTOR));
            self.all_reduce(way, NAME<T>, x, vectors);
            CHECK(are_equal(self.download<T>(x, vectors * VECTOR), sum<T>(seed, self.num_ranks, vectors * VECTOR)));
        }
    }
    CALL("cuMemFree_v2", x);
}

// Fifty calls that are asked for at once, of lengths of their own, some with one shot and some with two; ranks are late on their streams.
static void sum_in_a_row(Rank& self) {
    constexpr unsigned CALLS = 50;
    static unsigned seeds[CALLS];
    std::vector<Pointer> all;
    auto length = [&](unsigned call) { return 1 + call * 37 % std::min(self.room, 300u); };
    for (unsigned call = 0; call < CALLS; ++call) {
        all.push_back(allocate(length(call) * 16));
        self.upload(all[call], part<bf16>(call, unsigned(rank), length(call) * VECTOR));
    }
    for (unsigned call = 0; call < CALLS; ++call) {
        seeds[call] = call * 31 + unsigned(rank);
        auto sleep = [](void* seed) { usleep(std::mt19937(*static_cast<unsigned*>(seed))() % 3 * 1500); };
        CALL("cuLaunchHostFunc", self.stream, static_cast<void (*)(void*)>(sleep), static_cast<void*>(&seeds[call]));
        self.all_reduce(call % 5 < 2 ? ONE_SHOT : TWO_SHOT, "bf16", all[call], length(call));
    }
    for (unsigned call = 0; call < CALLS; ++call) {
        CHECK(are_equal(self.download<bf16>(all[call], length(call) * VECTOR), sum<bf16>(call, self.num_ranks, length(call) * VECTOR)));
        CALL("cuMemFree_v2", all[call]);
    }
}

// A graph of three calls with one shot, so that each meets both buffers, and two with two shots, launched again and again; what is fused
// has the bits of what is not.
template <typename T>
static void sum_in_graphs(Rank& self) {
    constexpr unsigned ROWS = 3, COLS = 2056, LENGTH = ROWS * COLS, VECTORS = LENGTH / VECTOR, FEW = 40;
    Pointer few = allocate(FEW * 16), weight = allocate(COLS * 4), parts[4], residuals[3], outs[3];
    for (Pointer& part : parts) part = allocate(LENGTH * 2);
    for (Pointer& residual : residuals) residual = allocate(LENGTH * 2);
    for (Pointer& out : outs) out = allocate(LENGTH * 2);
    std::vector<float> scale(COLS);
    for (unsigned col = 0; col < COLS; ++col) scale[col] = 1.0f + float(col % 17) / 16.0f;
    self.upload(weight, scale);
    void *graph, *exec;
    CALL("cuStreamBeginCapture_v2", self.stream, 1u);
    self.all_reduce(ONE_SHOT, NAME<T>, parts[0], VECTORS);
    self.add_rms_norm(NAME<T>, outs[0], residuals[0], parts[0], weight, ROWS, COLS);
    self.all_reduce_add_rms_norm(ONE_SHOT, NAME<T>, outs[1], residuals[1], parts[1], weight, ROWS, COLS);
    self.all_reduce_add_rms_norm(TWO_SHOT, NAME<T>, outs[2], residuals[2], parts[2], weight, ROWS, COLS);
    self.all_reduce(ONE_SHOT, NAME<T>, few, FEW);
    self.all_reduce(TWO_SHOT, NAME<T>, parts[3], VECTORS);
    CALL("cuStreamEndCapture", self.stream, &graph);
    CALL("cuGraphInstantiateWithFlags", &exec, graph, 0ull);
    for (unsigned seed = 0; seed < 15; ++seed) {
        self.be_late(seed);
        std::vector<T> own = part<T>(seed, unsigned(rank), LENGTH), before = part<T>(seed, 50, LENGTH);
        for (Pointer part : parts) self.upload(part, own);
        for (Pointer residual : residuals) self.upload(residual, before);
        self.upload(few, part<T>(seed + 100, unsigned(rank), FEW * VECTOR));
        CALL("cuGraphLaunch", exec, self.stream);
        std::vector<T> expected = sum<T>(seed, self.num_ranks, LENGTH);
        for (unsigned at : {0u, 3u}) CHECK(are_equal(self.download<T>(parts[at], LENGTH), expected));
        CHECK(are_equal(self.download<T>(few, FEW * VECTOR), sum<T>(seed + 100, self.num_ranks, FEW * VECTOR)));
        for (unsigned at = 0; at < LENGTH; ++at) expected[at] = round_to<T>(to_f32(before[at]) + to_f32(expected[at]));
        for (Pointer residual : residuals) CHECK(are_equal(self.download<T>(residual, LENGTH), expected));
        for (unsigned at : {1u, 2u}) CHECK(are_equal(self.download<T>(outs[at], LENGTH), self.download<T>(outs[0], LENGTH)));
    }
    CALL("cuGraphExecDestroy", exec);
    CALL("cuGraphDestroy", graph);
}

// As many calls with one shot as have every word of a region written, however short they are.
static void sweep(Rank& self) {
    Pointer x = allocate(16);
    unsigned calls = 2 * self.room + 2, before = self.download<unsigned>(self.own, 1)[0];
    for (unsigned call = 0; call < calls; ++call) self.all_reduce(ONE_SHOT, "f16", x, 1);
    std::vector<unsigned> region = self.download<unsigned>(self.own, self.one_shot_bytes() / 4);
    CHECK(region[0] == before + calls);
    size_t part_words = size_t(self.room) * 8;
    for (size_t at = HEAD_BYTES / 4; at < region.size(); at += 2) {
        bool is_own = (at - HEAD_BYTES / 4) / part_words % self.num_ranks == size_t(rank);
        CHECK(is_own || region[at + 1] - before <= calls);
    }
}

// The last rank never comes: who waits for it returns when its host says so, at once thereafter, however sums go.
static void abort_without_a_peer(Rank& self, Way first, bool is_killed) {
    if (unsigned(rank) == self.num_ranks - 1) {
        if (is_killed) kill(getpid(), SIGKILL);
        std::exit(0);
    }
    Pointer x = allocate(300 * 16), out = allocate(300 * 16), weight = allocate(2400 * 4);
    for (Way way : {first, first == ONE_SHOT ? TWO_SHOT : ONE_SHOT}) {
        self.all_reduce(way, "bf16", x, 300);
        self.all_reduce_add_rms_norm(way, "bf16", out, x, x, weight, 1, 2400);
    }
    CHECK(ask("cuStreamQuery", self.stream) == 600);
    usleep(50000);
    CHECK(ask("cuStreamQuery", self.stream) == 600);
    auto start = std::chrono::steady_clock::now();
    *self.aborted = 1;
    CALL("cuStreamSynchronize", self.stream);
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
}

// What the driver says about memory of others.
static void map_memory(Rank& self) {
    int can;
    CALL("cuDeviceCanAccessPeer", &can, rank, (rank + 1) % int(self.num_ranks));
    CHECK(can == 1);
    CALL("cuDeviceCanAccessPeer", &can, rank, rank);
    CHECK(can == 0);
    Pointer again;
    unsigned peer = unsigned(rank + 1) % self.num_ranks;
    CHECK(ask("cuIpcOpenMemHandle_v2", &again, board->handles[rank], 1u) == 201);
    CHECK(ask("cuIpcOpenMemHandle_v2", &again, board->handles[peer], 0u) == 1);
    CHECK(ask("cuIpcOpenMemHandle_v2", &again, IpcHandle{}, 1u) == 400);
    CALL("cuIpcOpenMemHandle_v2", &again, board->handles[peer], 1u);
    CHECK(again == self.peers[0]);
    CALL("cuIpcCloseMemHandle", again);
    // The end of the region is the end of what may be written.
    std::vector<char> bytes(self.region_bytes(), 7);
    self.upload(again, bytes);
    CHECK(ask("cuMemcpyHtoDAsync_v2", again + 1, static_cast<const void*>(bytes.data()), bytes.size(), self.stream) == 1);
    CALL("cuStreamSynchronize", self.stream);
    meet(self.num_ranks);
    CHECK(self.download<char>(self.own, bytes.size()) == bytes);
    meet(self.num_ranks);
    CALL("cuIpcCloseMemHandle", again);
    CHECK(ask("cuIpcCloseMemHandle", again) == 1);
    // Of memory that is gone there is nothing to map.
    CALL("cuMemFree_v2", self.own);
    meet(self.num_ranks);
    CHECK(ask("cuIpcOpenMemHandle_v2", &again, board->handles[peer], 1u) == 400);
    meet(self.num_ranks);
}

// A process that ends does not wait for its kernel, if that waits for others.
static void end_while_waiting(Rank& self) {
    if (rank != 0) return;
    self.all_reduce(TWO_SHOT, "bf16", allocate(16), 1);
    CHECK(ask("cuStreamQuery", self.stream) == 600);
    usleep(20000);
}

template <typename F>
static bool run(const char* path, const char* name, unsigned num_ranks, F scenario) {
    auto start = std::chrono::steady_clock::now();
    new (board) Board{};
    std::vector<pid_t> children;
    for (unsigned at = 0; at < num_ranks; ++at) {
        pid_t child = fork();
        if (child == 0) {
            rank = int(at);
            // Far more than any takes.
            alarm(240);
            library = dlopen(path, RTLD_NOW);
            if (library == nullptr) cusim::fail("%s", dlerror());
            scenario();
            std::exit(0);
        }
        children.push_back(child);
    }
    bool is_right = true;
    for (pid_t child : children) {
        int status;
        waitpid(child, &status, 0);
        bool was_killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        bool ended = WIFEXITED(status) && WEXITSTATUS(status) == 0;
        if (ended || was_killed) continue;
        is_right = false;
        // Who is left would wait.
        for (pid_t other : children) kill(other, SIGKILL);
    }
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%-28s %u ranks: %s, %.2f s\n", name, num_ranks, is_right ? "right" : "WRONG", seconds);
    std::fflush(stdout);
    return is_right;
}

// What the simulator's header asks for; nothing runs here.
namespace cusim {
Block block;
void fail(const char* format, ...) {
    std::fprintf(stderr, "%s\n", format);
    std::_Exit(1);
}
void wait_for_warp() {}
void wait_for_block(unsigned) {}
void spin() {}
}  // namespace cusim

int main(int, char** arguments) {
    setenv("CUSIM_DEVICES", "8", 1);
    // Between what a rank pushes and what it reads, so that the others are ahead of it.
    setenv("CUSIM_PAUSE_US", "2000", 1);
    void* shared = mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    board = static_cast<Board*>(shared);
    const char* path = arguments[1];
    bool is_right = true;
    for (unsigned ranks : {2u, 3u, 4u}) {
        is_right &= run(path, "lengths", ranks, [=] {
            Rank self(ranks, 1300);
            sum_lengths<bf16>(self);
            sum_lengths<f16>(self);
        });
        is_right &= run(path, "in a row", ranks, [=] {
            // Across the last number that a flag can have.
            Rank self(ranks, 300, 0u - 20);
            sum_in_a_row(self);
        });
        is_right &= run(path, "graphs", ranks, [=] {
            Rank self(ranks, 771);
            sum_in_graphs<bf16>(self);
            sum_in_graphs<f16>(self);
        });
        is_right &= run(path, "every word in turn", ranks, [=] {
            // Not those of a region that is still all zeros.
            Rank self(ranks, 19, 1000);
            sweep(self);
        });
        for (bool is_killed : {false, true}) {
            is_right &= run(path, is_killed ? "a peer is killed" : "a peer ends", ranks, [=] {
                Rank self(ranks, 300);
                abort_without_a_peer(self, is_killed ? ONE_SHOT : TWO_SHOT, is_killed);
            });
        }
        is_right &= run(path, "memory of others", ranks, [=] {
            Rank self(ranks, 5);
            map_memory(self);
        });
        is_right &= run(path, "the end while it waits", ranks, [=] {
            Rank self(ranks, 5);
            end_while_waiting(self);
        });
    }
    is_right &= run(path, "lengths", 8, [=] {
        Rank self(8, 1300);
        sum_lengths<bf16>(self);
    });
    return is_right ? 0 : 1;
}
