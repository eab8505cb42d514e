// A simulated CUDA driver and NVRTC: a library in place of libcuda.so.1 and libnvrtc.so.13, with which the host's side of the backend
// runs and is tested where there is no device. Declarations follow the manuals of CUDA 13.0; none of its headers is needed.
//
//     c++ -std=c++17 -O2 -fPIC -pthread -shared -fvisibility=hidden -fno-strict-aliasing -DCUSIM -Wall -Wextra -Werror
//         -Wno-unknown-pragmas -I sim -I . -Wl,-soname,libcuda.so -o DIR/libcuda.so -x c++ sim/driver.cc sim/cusim.cc *.cu
//     ln -s libcuda.so DIR/libnvrtc.so.13
//
// What is asked of a stream waits in its queue until somebody waits for it or asks whether it is done, and then a thread of the stream
// does it, as far as was asked. So whoever forgets to wait reads what was there before, every time, and a page-locked buffer that is
// written too early arrives as it was written last. Calls that wait: those to synchronize, copies without a stream, and those that free
// memory, unload a module or end the context. Queries do not, but begin the work. What can be found wrong when it is asked
// for is an error of that call; what a kernel does wrong ends the process with a sentence. What is not simulated is an error.
//
// What is stricter than on a device: work that nobody asks about never begins, and a copy to memory that is not page-locked is as late
// as any other; memory is filled with 0xff bytes when it is allocated, and its addresses are not used a second time; a copy beyond an
// allocation is refused, a kernel that reads or writes there ends the process; handles that are no longer valid are found.
//
// Memory that a process exports (cuIpcGetMemHandle) moves into a file without a name, which other processes of the user find through
// /proc: nothing is left of it when the last of them has ended, however it did. A kernel that spins until another process writes something
// lets it run (`cusim::spin`). Ranks that are threads of one process cannot wait for each other in kernels: a process runs one at a time.
//
// The environment, read once by cuInit: CUSIM_DEVICES (1), CUSIM_DEVICE_MEMORY (bytes, 8 GiB), CUSIM_PEER_ACCESS (1: devices reach each
// other's memory), CUSIM_COMPUTE_CAPABILITY ("9.0"), and of CUDA_VISIBLE_DEVICES how many devices it leaves; CUSIM_UNASKED_MS, after so
// many milliseconds without a question a stream begins by itself, which hosts need that leave a stream alone while others wait for what
// it does (never); by cuDriverGetVersion CUSIM_DRIVER_VERSION (13000); by the first kernel CUSIM_PAUSE_US (0), how many microseconds at
// most a block pauses at each barrier, so that processes meet at other places, and CUSIM_WGMMA_DESCENDING, with which products of
// warpgroups are added in another order than those of warps.
//
// NVRTC compiles nothing: its cubin names the file of kernels, and a module has those that this library was built with from that file.
// A source without text, or with the word CUSIM_COMPILE_ERROR in it, is one with an error.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

#include "cusim.h"

#define API extern "C" __attribute__((visibility("default")))

// --- What cuda.h declares ------------------------------------------------------------------------------------------

#define ERRORS(X)                                                                             \
    X(INVALID_VALUE, 1, "invalid argument")                                                   \
    X(OUT_OF_MEMORY, 2, "out of memory")                                                      \
    X(NOT_INITIALIZED, 3, "initialization error")                                             \
    X(NO_DEVICE, 100, "no CUDA-capable device is detected")                                   \
    X(INVALID_DEVICE, 101, "invalid device ordinal")                                          \
    X(INVALID_IMAGE, 200, "device kernel image is invalid")                                   \
    X(INVALID_CONTEXT, 201, "invalid device context")                                         \
    X(NO_BINARY_FOR_GPU, 209, "no kernel image is available for execution on the device")     \
    X(PEER_ACCESS_UNSUPPORTED, 217, "peer access is not supported between these two devices") \
    X(INVALID_HANDLE, 400, "invalid resource handle")                                         \
    X(ILLEGAL_STATE, 401, "the operation cannot be performed in the present state")           \
    X(NOT_FOUND, 500, "named symbol not found")                                               \
    X(NOT_READY, 600, "device not ready")                                                     \
    X(ILLEGAL_ADDRESS, 700, "an illegal memory access was encountered")                       \
    X(CONTEXT_IS_DESTROYED, 709, "context is destroyed")                                      \
    X(NOT_SUPPORTED, 801, "operation not supported")                                          \
    X(STREAM_CAPTURE_UNSUPPORTED, 900, "operation not permitted when stream is capturing")    \
    X(STREAM_CAPTURE_INVALIDATED, 901, "operation failed due to a previous error during capture") \
    X(STREAM_CAPTURE_ISOLATION, 905, "dependency created on uncaptured work in another stream")   \
    X(STREAM_CAPTURE_IMPLICIT, 906, "operation would make the legacy stream depend on a capturing blocking stream") \
    X(CAPTURED_EVENT, 907, "operation not permitted on an event last recorded in a capturing stream") \
    X(STREAM_CAPTURE_WRONG_THREAD, 908, "attempt to terminate a thread-local capture sequence from another thread") \
    X(INVALID_CLUSTER_SIZE, 912, "invalid cluster configuration")                             \
    X(UNKNOWN, 999, "unknown error")

#define ERROR_CODE(name, code, sentence) CUDA_ERROR_##name = code,
enum CUresult : unsigned { CUDA_SUCCESS = 0, ERRORS(ERROR_CODE) };

typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st* CUcontext;
typedef struct CUstream_st* CUstream;
typedef struct CUevent_st* CUevent;
typedef struct CUmod_st* CUmodule;
typedef struct CUfunc_st* CUfunction;
typedef struct CUgraph_st* CUgraph;
typedef struct CUgraphExec_st* CUgraphExec;

struct CUuuid {
    char bytes[16];
};

enum CUstreamCaptureMode : unsigned { CAPTURE_MODE_GLOBAL = 0, CAPTURE_MODE_THREAD_LOCAL = 1, CAPTURE_MODE_RELAXED = 2 };
enum CUstreamCaptureStatus : unsigned { CAPTURE_NONE = 0, CAPTURE_ACTIVE = 1, CAPTURE_INVALIDATED = 2 };

struct CUlaunchAttribute {
    unsigned id;
    char pad[4];
    union {
        char bytes[64];
        unsigned cluster[3];
        int programmatic_stream_serialization;
        void* alignment;
    } value;
};
static_assert(sizeof(CUlaunchAttribute) == 72, "as cuda.h lays it out");
constexpr unsigned LAUNCH_ATTRIBUTE_IGNORE = 0;
constexpr unsigned LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION = 4;
constexpr unsigned LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6;

struct CUlaunchConfig {
    unsigned grid[3], block[3];
    unsigned shared_bytes;
    CUstream stream;
    CUlaunchAttribute* attributes;
    unsigned num_attributes;
};
static_assert(sizeof(CUlaunchConfig) == 56, "as cuda.h lays it out");

struct CUipcMemHandle {
    char reserved[64];
};

constexpr unsigned IPC_MEM_LAZY_ENABLE_PEER_ACCESS = 1;
constexpr unsigned EVENT_DISABLE_TIMING = 2;
constexpr unsigned STREAM_NON_BLOCKING = 1;
constexpr int FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0;
constexpr int FUNC_ATTRIBUTE_BINARY_VERSION = 6;
constexpr int FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
constexpr int FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9;

using cusim::fail;

// --- State ---------------------------------------------------------------------------------------------------------

// What tests ask for, by these names. `launches` are those of launch calls, outside of graphs; `graph_nodes` those of graph launches;
// `allocations` those of device memory, all there ever were; `synchronisations` calls that are there to wait, copies without a stream
// among them. Bytes count when they are copied, calls when they are made.
static struct {
    std::atomic<uint64_t> launches, graph_launches, graph_nodes, allocations, live_bytes, synchronisations, htod_bytes, dtoh_bytes;
} counters;

// Objects by handles, which are not used a second time.
template <typename H, typename T>
class Handles {
   public:
    H insert(std::unique_ptr<T> object) {
        H handle = reinterpret_cast<H>(next_);
        next_ += 16;
        objects_.emplace(handle, std::move(object));
        return handle;
    }
    T* find(H handle) {
        auto at = objects_.find(handle);
        return at == objects_.end() ? nullptr : at->second.get();
    }
    bool erase(H handle) { return objects_.erase(handle) > 0; }
    void clear() { objects_.clear(); }
    const std::map<H, std::unique_ptr<T>>& all() const { return objects_; }

   private:
    // Beyond the numbers of streams that have a meaning of their own.
    uintptr_t next_ = 0x1000;
    std::map<H, std::unique_ptr<T>> objects_;
};

// Work of a stream. What it needs may be gone when a graph runs it again, so it is checked every time.
struct Operation {
    std::function<CUresult()> check;
    std::function<void()> run;
};
using Operations = std::vector<Operation>;

struct Queue;

// How far a stream is when so much of what it was asked for is done.
struct Place {
    std::shared_ptr<Queue> queue;
    uint64_t position;
};

// Operations of a stream that are not done, in order.
struct Queue {
    struct Task {
        // Of other streams, what comes first.
        std::vector<Place> after;
        std::function<void()> run;
    };
    std::deque<Task> tasks;
    // How many there ever were, how many of them somebody has asked about, and how many are done.
    uint64_t enqueued = 0, wanted = 0, done = 0;
    bool has_worker = false;
    // Whether the stream is gone: nothing is added any more.
    bool is_closed = false;
};

struct Capture {
    CUstreamCaptureMode mode;
    std::thread::id thread;
    bool is_valid = true;
    Operations operations;
};

struct Stream {
    // Whether it waits for the legacy stream, and that one for it.
    bool is_blocking;
    std::unique_ptr<Capture> capture;
    std::shared_ptr<Queue> queue = std::make_shared<Queue>();

    Place end() const { return {queue, queue->enqueued}; }
};

struct Event {
    using Time = std::chrono::steady_clock::time_point;

    bool has_timing;
    bool is_captured = false;
    // Where it was recorded last, and when that was passed. Without a queue it never was.
    Place place = {nullptr, 0};
    std::shared_ptr<Time> time;
};

struct Module {
    std::string file;
    std::map<std::string, CUfunction> functions;
};

struct Function {
    const cusim::Kernel* kernel;
    size_t max_dynamic_shared_bytes = cusim::STATIC_SHARED_BYTES;
};

// A file that holds an allocation's pages, if other processes may map them.
struct Shared {
    int file = -1;
    uint64_t id = 0;
};

struct Allocation {
    size_t bytes;
    char* pages;
    size_t pages_bytes;
    Shared shared = {};
};

// An allocation of another process.
struct Import {
    Allocation allocation;
    unsigned opened = 1;
};

struct Device {
    int ordinal;
    // How often the primary context is held. The device has no other.
    unsigned retained = 0;
    std::map<uintptr_t, Allocation> allocations;
    std::map<uintptr_t, Import> imports;
    size_t used_bytes = 0;
    Stream legacy_stream = {true, nullptr};
    // Those of streams, and those that are closed but not done.
    std::vector<std::shared_ptr<Queue>> queues = {legacy_stream.queue};
    Handles<CUstream, Stream> streams;
    Handles<CUevent, Event> events;
    Handles<CUmodule, Module> modules;
    Handles<CUfunction, Function> functions;
    Handles<CUgraph, Operations> graphs;
    // Shared with launches that are not done.
    Handles<CUgraphExec, std::shared_ptr<const Operations>> graph_execs;

    CUcontext context() { return reinterpret_cast<CUcontext>(this); }
    Stream* stream(CUstream handle) {
        // None, CU_STREAM_LEGACY and CU_STREAM_PER_THREAD, of which the last is no other here than the first two.
        return reinterpret_cast<uintptr_t>(handle) <= 2 ? &legacy_stream : streams.find(handle);
    }
};

// Of all state. Never held while an operation runs: that may wait for another process.
static std::mutex lock;
// Some queue is further than it was, or is to go further. It waits with the lock itself, so that calls can wait wherever they hold it.
// Like the state below it never ends: threads of streams still use it when the process does.
static auto& changed = *new std::condition_variable_any;
static auto& devices = *new std::vector<std::unique_ptr<Device>>;
static bool is_initialized = false;
static size_t memory_bytes = size_t(8) << 30;
static unsigned capability_major = 9, capability_minor = 0;
static bool has_peer_access = true;
// When a stream begins by itself; 0 is never.
static std::chrono::milliseconds unasked_time{0};
// Page-locked memory of the host, by its start.
static auto& pinned = *new std::map<uintptr_t, size_t>;
// Held by the thread that runs a kernel, of which the simulator has one at a time. Within it `lock` may be taken, not the other way round.
static std::mutex kernel_lock;

static thread_local Device* current = nullptr;

template <typename F>
static CUresult with_driver(F call) {
    std::lock_guard<std::mutex> guard(lock);
    return is_initialized ? call() : CUDA_ERROR_NOT_INITIALIZED;
}

template <typename F>
static CUresult with_device(CUdevice ordinal, F call) {
    return with_driver([&] {
        bool is_valid = 0 <= ordinal && size_t(ordinal) < devices.size();
        return is_valid ? call(*devices[size_t(ordinal)]) : CUDA_ERROR_INVALID_DEVICE;
    });
}

// With the device whose context the calling thread has as its current one.
template <typename F>
static CUresult with_context(F call) {
    return with_driver([&] {
        if (current == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
        return current->retained > 0 ? call(*current) : CUDA_ERROR_CONTEXT_IS_DESTROYED;
    });
}

// --- Devices and contexts ------------------------------------------------------------------------------------------

static const char* environment(const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return value != nullptr ? value : otherwise;
}

static size_t number_of(const char* name, const char* text) {
    char* end;
    size_t number = std::strtoull(text, &end, 10);
    if (end == text || *end != '\0') fail("%s is no number: %s", name, text);
    return number;
}

// How many of the devices a list of ordinals leaves: those before the first that is none.
static size_t num_visible(const char* list, size_t num_devices) {
    size_t visible = 0;
    while (true) {
        char* end;
        long ordinal = std::strtol(list, &end, 10);
        if (end == list || ordinal < 0 || size_t(ordinal) >= num_devices) return visible;
        visible++;
        if (*end != ',') return visible;
        list = end + 1;
    }
}

API CUresult cuInit(unsigned flags) {
    std::lock_guard<std::mutex> guard(lock);
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (is_initialized) return CUDA_SUCCESS;
    size_t num_devices = number_of("CUSIM_DEVICES", environment("CUSIM_DEVICES", "1"));
    if (const char* list = std::getenv("CUDA_VISIBLE_DEVICES")) num_devices = num_visible(list, num_devices);
    if (num_devices == 0) return CUDA_ERROR_NO_DEVICE;
    memory_bytes = number_of("CUSIM_DEVICE_MEMORY", environment("CUSIM_DEVICE_MEMORY", "8589934592"));
    const char* capability = environment("CUSIM_COMPUTE_CAPABILITY", "9.0");
    if (std::sscanf(capability, "%u.%u", &capability_major, &capability_minor) != 2) {
        fail("CUSIM_COMPUTE_CAPABILITY is no version: %s", capability);
    }
    has_peer_access = number_of("CUSIM_PEER_ACCESS", environment("CUSIM_PEER_ACCESS", "1")) != 0;
    unasked_time = std::chrono::milliseconds(number_of("CUSIM_UNASKED_MS", environment("CUSIM_UNASKED_MS", "0")));
    for (size_t ordinal = 0; ordinal < num_devices; ++ordinal) {
        devices.push_back(std::make_unique<Device>());
        devices.back()->ordinal = int(ordinal);
    }
    // Made after the simulator's block it ends before: after a kernel that runs at the end of the process, and then keeps others from
    // what is gone. Nothing else waits for work that is pending then, and of kernels none for one that itself waits for other processes.
    static struct AtExit {
        ~AtExit() {
            while (!kernel_lock.try_lock() && !cusim::stop_spinning()) usleep(50);
        }
    } at_exit;
    is_initialized = true;
    return CUDA_SUCCESS;
}

API CUresult cuDriverGetVersion(int* version) {
    if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *version = int(number_of("CUSIM_DRIVER_VERSION", environment("CUSIM_DRIVER_VERSION", "13000")));
    return CUDA_SUCCESS;
}

API CUresult cuDeviceGetCount(int* count) {
    return with_driver([&] {
        if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *count = int(devices.size());
        return CUDA_SUCCESS;
    });
}

API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    return with_device(ordinal, [&](Device&) {
        if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *device = ordinal;
        return CUDA_SUCCESS;
    });
}

API CUresult cuDeviceGetName(char* name, int length, CUdevice ordinal) {
    return with_device(ordinal, [&](Device&) {
        if (name == nullptr || length <= 0) return CUDA_ERROR_INVALID_VALUE;
        std::snprintf(name, size_t(length), "simulated GPU");
        return CUDA_SUCCESS;
    });
}

API CUresult cuDeviceGetUuid_v2(CUuuid* uuid, CUdevice ordinal) {
    return with_device(ordinal, [&](Device&) {
        if (uuid == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *uuid = {{'s', 'i', 'm', 'u', 'l', 'a', 't', 'e', 'd', ' ', 'G', 'P', 'U', ' ', char(ordinal >> 8), char(ordinal)}};
        return CUDA_SUCCESS;
    });
}

API CUresult cuDeviceGetUuid(CUuuid* uuid, CUdevice ordinal) { return cuDeviceGetUuid_v2(uuid, ordinal); }

API CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice ordinal) {
    return with_device(ordinal, [&](Device&) {
        if (bytes == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *bytes = memory_bytes;
        return CUDA_SUCCESS;
    });
}

// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
static size_t max_shared_bytes() {
    if (capability_major < 8) return 64 << 10;
    if (capability_major == 8) return capability_minor == 0 || capability_minor == 7 ? 163 << 10 : 99 << 10;
    return capability_major == 12 ? 99 << 10 : 227 << 10;
}

static constexpr int MAX_BLOCK_THREADS = 1024;
static constexpr int MAX_BLOCK[3] = {1024, 1024, 64};
static constexpr int MAX_GRID[3] = {0x7fffffff, 65535, 65535};

API CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice ordinal) {
    return with_device(ordinal, [&](Device& device) {
        if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
        switch (attribute) {
            case 1: *value = MAX_BLOCK_THREADS; break;
            case 2: case 3: case 4: *value = MAX_BLOCK[attribute - 2]; break;
            case 5: case 6: case 7: *value = MAX_GRID[attribute - 5]; break;
            case 8: *value = int(cusim::STATIC_SHARED_BYTES); break;
            case 10: *value = 32; break;                        // WARP_SIZE
            case 12: case 82: *value = 64 << 10; break;         // MAX_REGISTERS_PER_BLOCK, ..._PER_MULTIPROCESSOR
            case 16: *value = 32; break;                         // MULTIPROCESSOR_COUNT
            case 18: *value = 0; break;                         // INTEGRATED
            case 20: *value = 0; break;                         // COMPUTE_MODE: any number of processes
            case 33: *value = device.ordinal + 1; break;        // PCI_BUS_ID
            case 34: case 50: *value = 0; break;                // PCI_DEVICE_ID, PCI_DOMAIN_ID
            case 38: *value = 4 << 20; break;                   // L2_CACHE_SIZE
            case 39: *value = 2048; break;                      // MAX_THREADS_PER_MULTIPROCESSOR
            case 41: *value = 1; break;                         // UNIFIED_ADDRESSING
            case 75: *value = int(capability_major); break;
            case 76: *value = int(capability_minor); break;
            case 81: *value = int(max_shared_bytes()) + 1024; break;  // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
            case 97: *value = int(max_shared_bytes()); break;         // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
            case 115: *value = 0; break;                              // MEMORY_POOLS_SUPPORTED
            default: return CUDA_ERROR_INVALID_VALUE;
        }
        return CUDA_SUCCESS;
    });
}

// What the ordinals must be: two devices.
template <typename F>
static CUresult with_peers(CUdevice first, CUdevice second, F call) {
    return with_device(first, [&](Device&) {
        bool is_valid = 0 <= second && size_t(second) < devices.size();
        return is_valid ? call() : CUDA_ERROR_INVALID_DEVICE;
    });
}

API CUresult cuDeviceCanAccessPeer(int* can, CUdevice ordinal, CUdevice peer) {
    return with_peers(ordinal, peer, [&] {
        if (can == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *can = has_peer_access && ordinal != peer;
        return CUDA_SUCCESS;
    });
}

API CUresult cuDeviceGetP2PAttribute(int* value, int attribute, CUdevice ordinal, CUdevice peer) {
    return with_peers(ordinal, peer, [&] {
        if (value == nullptr || ordinal == peer) return CUDA_ERROR_INVALID_VALUE;
        switch (attribute) {
            case 1: *value = 0; break;                           // PERFORMANCE_RANK
            case 2: case 3: *value = has_peer_access; break;     // ACCESS_SUPPORTED, NATIVE_ATOMIC_SUPPORTED: NVLink
            default: return CUDA_ERROR_INVALID_VALUE;
        }
        return CUDA_SUCCESS;
    });
}

API CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice ordinal) {
    return with_device(ordinal, [&](Device& device) {
        if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
        device.retained++;
        *context = device.context();
        return CUDA_SUCCESS;
    });
}

static void release(Device& device, std::map<uintptr_t, Allocation>::iterator at);
static void close_import(Device& device, std::map<uintptr_t, Import>::iterator at);

static void wait_for_device(Device& device);
static void close(const Stream& stream);

API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice ordinal) {
    return with_device(ordinal, [&](Device& device) {
        if (device.retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
        if (--device.retained > 0) return CUDA_SUCCESS;
        wait_for_device(device);
        // Somebody wanted it again in the meantime.
        if (device.retained > 0) return CUDA_SUCCESS;
        // All that is of the context ends with it.
        while (!device.allocations.empty()) release(device, device.allocations.begin());
        while (!device.imports.empty()) close_import(device, device.imports.begin());
        for (const auto& [handle, stream] : device.streams.all()) close(*stream);
        device.streams.clear();
        device.events.clear();
        device.modules.clear();
        device.functions.clear();
        device.graphs.clear();
        device.graph_execs.clear();
        return CUDA_SUCCESS;
    });
}

API CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice ordinal, unsigned flags) {
    return with_device(ordinal, [&](Device&) { return flags > 31 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; });
}

API CUresult cuCtxSetCurrent(CUcontext context) {
    return with_driver([&] {
        Device* found = nullptr;
        for (const auto& device : devices) {
            if (device->retained > 0 && device->context() == context) found = device.get();
        }
        if (context != nullptr && found == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
        current = found;
        return CUDA_SUCCESS;
    });
}

API CUresult cuCtxGetCurrent(CUcontext* context) {
    return with_driver([&] {
        if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *context = current != nullptr ? current->context() : nullptr;
        return CUDA_SUCCESS;
    });
}

// --- Queues --------------------------------------------------------------------------------------------------------

static bool is_passed(const Place& place) { return place.queue->done >= place.position; }

static void start_worker(const std::shared_ptr<Queue>& queue);

// Has a stream go so far, without waiting for it.
static void demand(const Place& place) {
    Queue& queue = *place.queue;
    if (queue.wanted >= place.position) return;
    queue.wanted = place.position;
    if (!queue.has_worker) start_worker(place.queue);
    changed.notify_all();
}

// Whatever was looked up before may be gone afterwards: others have the lock meanwhile.
static void wait_for(const std::vector<Place>& places) {
    for (const Place& place : places) demand(place);
    for (const Place& place : places) changed.wait(lock, [&] { return is_passed(place); });
}

// The thread of a stream.
static void work(std::shared_ptr<Queue> queue) {
    // A signal's handler needs it when a fiber has used up its stack.
    std::vector<char> signal_stack(64 << 10);
    stack_t stack = {};
    stack.ss_sp = signal_stack.data();
    stack.ss_size = signal_stack.size();
    sigaltstack(&stack, nullptr);

    std::unique_lock<std::mutex> guard(lock);
    while (true) {
        auto has_work = [&] { return queue->done < queue->wanted || queue->is_closed; };
        if (unasked_time.count() == 0) {
            changed.wait(lock, has_work);
        } else if (!changed.wait_for(lock, unasked_time, has_work)) {
            queue->wanted = queue->enqueued;
            continue;
        }
        // All that a closed one had is wanted.
        if (queue->done == queue->wanted) break;
        Queue::Task task = std::move(queue->tasks.front());
        queue->tasks.pop_front();
        wait_for(task.after);
        guard.unlock();
        task.run();
        // What it holds ends without the lock as well.
        task = {};
        guard.lock();
        queue->done++;
        changed.notify_all();
    }
    stack.ss_flags = SS_DISABLE;
    sigaltstack(&stack, nullptr);
}

static void start_worker(const std::shared_ptr<Queue>& queue) {
    queue->has_worker = true;
    // The host's handlers run on the host's threads.
    sigset_t hidden, before;
    sigfillset(&hidden);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&hidden, fault);
    pthread_sigmask(SIG_SETMASK, &hidden, &before);
    std::thread(work, queue).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// The end of the queue is where the operation is done.
static Place push(Device& device, const Stream& stream, std::vector<Place> after, std::function<void()> run) {
    // The legacy stream and those that are not beside it take turns.
    if (&stream == &device.legacy_stream) {
        for (const auto& [handle, other] : device.streams.all()) {
            if (other->is_blocking) after.push_back(other->end());
        }
    } else if (stream.is_blocking) {
        after.push_back(device.legacy_stream.end());
    }
    stream.queue->tasks.push_back({std::move(after), std::move(run)});
    stream.queue->enqueued++;
    if (unasked_time.count() > 0 && !stream.queue->has_worker) start_worker(stream.queue);
    return stream.end();
}

// Lets what a stream still has be done, after which its thread ends.
static void close(const Stream& stream) {
    stream.queue->is_closed = true;
    demand(stream.end());
    changed.notify_all();
}

static void wait_for_device(Device& device) {
    std::vector<Place> places;
    for (const auto& queue : device.queues) places.push_back({queue, queue->enqueued});
    wait_for(places);
    auto is_over = [](const std::shared_ptr<Queue>& queue) { return queue->is_closed && queue->done == queue->enqueued; };
    device.queues.erase(std::remove_if(device.queues.begin(), device.queues.end(), is_over), device.queues.end());
}

// --- Streams and captures ------------------------------------------------------------------------------------------

// Of calls that a capture forbids: those whose effect on the device is not that of one stream.
static CUresult refuse_in_capture() {
    CUresult result = CUDA_SUCCESS;
    for (const auto& device : devices) {
        for (const auto& [handle, stream] : device->streams.all()) {
            if (!stream->capture) continue;
            bool is_own = stream->capture->thread == std::this_thread::get_id();
            CUstreamCaptureMode mode = stream->capture->mode;
            if (is_own ? mode == CAPTURE_MODE_RELAXED : mode != CAPTURE_MODE_GLOBAL) continue;
            stream->capture->is_valid = false;
            result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    return result;
}

// Whether work of the legacy stream would have to wait for a capture.
static bool is_implicitly_captured(Device& device, const Stream& stream) {
    bool found = false;
    if (&stream != &device.legacy_stream) return found;
    for (const auto& [handle, other] : device.streams.all()) {
        if (!other->is_blocking || !other->capture) continue;
        other->capture->is_valid = false;
        found = true;
    }
    return found;
}

// Adds the work to the stream's queue, or to its capture, of which it must be capable.
static CUresult enqueue(Device& device, CUstream handle, bool can_be_captured, Operation operation) {
    Stream* stream = device.stream(handle);
    if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (is_implicitly_captured(device, *stream)) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    if (stream->capture) {
        if (!stream->capture->is_valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        if (!can_be_captured) {
            stream->capture->is_valid = false;
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    if (CUresult error = operation.check()) return error;
    if (stream->capture) {
        stream->capture->operations.push_back(std::move(operation));
    } else {
        push(device, *stream, {}, std::move(operation.run));
    }
    return CUDA_SUCCESS;
}

// Of calls that wait for a stream or ask whether it is done: a capture never is.
static CUresult settle(Device& device, CUstream handle) {
    Stream* stream = device.stream(handle);
    if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    if (is_implicitly_captured(device, *stream)) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    if (!stream->capture) return CUDA_SUCCESS;
    stream->capture->is_valid = false;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

API CUresult cuStreamCreateWithPriority(CUstream* handle, unsigned flags, int) {
    return with_context([&](Device& device) {
        if (handle == nullptr || flags > STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
        auto stream = std::make_unique<Stream>(Stream{flags != STREAM_NON_BLOCKING, nullptr});
        device.queues.push_back(stream->queue);
        *handle = device.streams.insert(std::move(stream));
        return CUDA_SUCCESS;
    });
}

API CUresult cuStreamCreate(CUstream* handle, unsigned flags) { return cuStreamCreateWithPriority(handle, flags, 0); }

API CUresult cuStreamDestroy_v2(CUstream handle) {
    return with_context([&](Device& device) {
        Stream* stream = device.streams.find(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        // It goes at once, its work when it is done.
        close(*stream);
        device.streams.erase(handle);
        return CUDA_SUCCESS;
    });
}

API CUresult cuStreamSynchronize(CUstream handle) {
    return with_context([&](Device& device) {
        counters.synchronisations++;
        if (CUresult error = settle(device, handle)) return error;
        wait_for({device.stream(handle)->end()});
        return CUDA_SUCCESS;
    });
}

API CUresult cuStreamQuery(CUstream handle) {
    return with_context([&](Device& device) {
        if (CUresult error = settle(device, handle)) return error;
        Place end = device.stream(handle)->end();
        demand(end);
        return is_passed(end) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
    });
}

API CUresult cuCtxSynchronize() {
    return with_context([&](Device& device) {
        counters.synchronisations++;
        for (const auto& [handle, stream] : device.streams.all()) {
            if (CUresult error = settle(device, handle)) return error;
        }
        wait_for_device(device);
        return CUDA_SUCCESS;
    });
}

// What `call` returns from is done. It may not call the driver.
API CUresult cuLaunchHostFunc(CUstream stream, void (*call)(void*), void* data) {
    return with_context([&](Device& device) {
        if (call == nullptr) return CUDA_ERROR_INVALID_VALUE;
        return enqueue(device, stream, true, {[] { return CUDA_SUCCESS; }, [=] { call(data); }});
    });
}

API CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    return with_context([&](Device& device) {
        Stream* stream = device.stream(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (mode > CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
        if (stream == &device.legacy_stream) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
        stream->capture = std::make_unique<Capture>();
        stream->capture->mode = mode;
        stream->capture->thread = std::this_thread::get_id();
        return CUDA_SUCCESS;
    });
}

API CUresult cuStreamEndCapture(CUstream handle, CUgraph* graph) {
    return with_context([&](Device& device) {
        Stream* stream = device.stream(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *graph = nullptr;
        if (!stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
        if (stream->capture->mode != CAPTURE_MODE_RELAXED && stream->capture->thread != std::this_thread::get_id()) {
            return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
        }
        std::unique_ptr<Capture> capture = std::move(stream->capture);
        if (!capture->is_valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        *graph = device.graphs.insert(std::make_unique<Operations>(std::move(capture->operations)));
        return CUDA_SUCCESS;
    });
}

API CUresult cuStreamIsCapturing(CUstream handle, CUstreamCaptureStatus* status) {
    return with_context([&](Device& device) {
        Stream* stream = device.stream(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (status == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (is_implicitly_captured(device, *stream)) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        *status = !stream->capture ? CAPTURE_NONE : stream->capture->is_valid ? CAPTURE_ACTIVE : CAPTURE_INVALIDATED;
        return CUDA_SUCCESS;
    });
}

API CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph handle, unsigned long long flags) {
    // Those that change nothing here: to free what a graph allocates, to upload it, to use priorities of nodes.
    constexpr unsigned long long KNOWN_FLAGS = 1 | 2 | 8;
    return with_context([&](Device& device) {
        Operations* graph = device.graphs.find(handle);
        if (exec == nullptr || graph == nullptr || (flags & ~KNOWN_FLAGS) != 0) return CUDA_ERROR_INVALID_VALUE;
        auto operations = std::make_shared<const Operations>(*graph);
        *exec = device.graph_execs.insert(std::make_unique<std::shared_ptr<const Operations>>(std::move(operations)));
        return CUDA_SUCCESS;
    });
}

API CUresult cuGraphLaunch(CUgraphExec handle, CUstream stream) {
    return with_context([&](Device& device) {
        auto* found = device.graph_execs.find(handle);
        if (found == nullptr) return CUDA_ERROR_INVALID_VALUE;
        std::shared_ptr<const Operations> exec = *found;
        auto check = [exec] {
            for (const Operation& operation : *exec) {
                if (CUresult error = operation.check()) return error;
            }
            return CUDA_SUCCESS;
        };
        auto run = [exec] {
            for (const Operation& operation : *exec) operation.run();
        };
        // A graph in a graph is not simulated.
        if (CUresult error = enqueue(device, stream, false, {check, run})) return error;
        counters.graph_launches++;
        counters.graph_nodes += exec->size();
        return CUDA_SUCCESS;
    });
}

API CUresult cuGraphExecDestroy(CUgraphExec handle) {
    return with_context([&](Device& device) {
        return device.graph_execs.erase(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

API CUresult cuGraphDestroy(CUgraph handle) {
    return with_context([&](Device& device) {
        return device.graphs.erase(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

// --- Events --------------------------------------------------------------------------------------------------------

API CUresult cuEventCreate(CUevent* handle, unsigned flags) {
    return with_context([&](Device& device) {
        // Without those for other processes.
        if (handle == nullptr || flags > 3) return CUDA_ERROR_INVALID_VALUE;
        auto event = std::make_unique<Event>();
        event->has_timing = (flags & EVENT_DISABLE_TIMING) == 0;
        *handle = device.events.insert(std::move(event));
        return CUDA_SUCCESS;
    });
}

API CUresult cuEventDestroy_v2(CUevent handle) {
    return with_context([&](Device& device) {
        return device.events.erase(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
    });
}

API CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
    return with_context([&](Device& device) {
        Event* event = device.events.find(handle);
        Stream* stream = device.stream(stream_handle);
        if (event == nullptr || stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (is_implicitly_captured(device, *stream)) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        if (stream->capture && !stream->capture->is_valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        // Within a capture it marks a place of the graph, on which streams may depend, and is no node.
        event->is_captured = stream->capture != nullptr;
        if (event->is_captured) return CUDA_SUCCESS;
        auto time = std::make_shared<Event::Time>();
        event->time = time;
        event->place = push(device, *stream, {}, [time] { *time = std::chrono::steady_clock::now(); });
        return CUDA_SUCCESS;
    });
}

// Of calls that wait for an event or ask for it: those for one that was never recorded have nothing to wait for.
template <typename F>
static CUresult with_event(CUevent handle, F call) {
    return with_context([&](Device& device) {
        Event* event = device.events.find(handle);
        if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (event->is_captured) return CUDA_ERROR_CAPTURED_EVENT;
        return event->place.queue != nullptr ? call(Place(event->place)) : CUDA_SUCCESS;
    });
}

API CUresult cuEventQuery(CUevent handle) {
    return with_event(handle, [](const Place& place) {
        demand(place);
        return is_passed(place) ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
    });
}

API CUresult cuEventSynchronize(CUevent handle) {
    counters.synchronisations++;
    return with_event(handle, [](const Place& place) {
        wait_for({place});
        return CUDA_SUCCESS;
    });
}

API CUresult cuStreamWaitEvent(CUstream stream_handle, CUevent handle, unsigned flags) {
    return with_context([&](Device& device) {
        Event* event = device.events.find(handle);
        Stream* stream = device.stream(stream_handle);
        if (event == nullptr || stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (flags > 1) return CUDA_ERROR_INVALID_VALUE;
        if (is_implicitly_captured(device, *stream)) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        bool is_recorded = event->is_captured || event->place.queue != nullptr;
        if (stream->capture && is_recorded && !event->is_captured) {
            stream->capture->is_valid = false;
            return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
        }
        // A second stream that joins a capture is not simulated.
        if (event->is_captured && !stream->capture) return CUDA_ERROR_NOT_SUPPORTED;
        if (is_recorded && !event->is_captured) push(device, *stream, {event->place}, [] {});
        return CUDA_SUCCESS;
    });
}

API CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent start_handle, CUevent end_handle) {
    return with_context([&](Device& device) {
        Event *start = device.events.find(start_handle), *end = device.events.find(end_handle);
        if (milliseconds == nullptr) return CUDA_ERROR_INVALID_VALUE;
        for (const Event* event : {start, end}) {
            if (event == nullptr || !event->has_timing) return CUDA_ERROR_INVALID_HANDLE;
            if (event->is_captured) return CUDA_ERROR_CAPTURED_EVENT;
            if (event->place.queue == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        }
        for (const Event* event : {start, end}) demand(event->place);
        if (!is_passed(start->place) || !is_passed(end->place)) return CUDA_ERROR_NOT_READY;
        *milliseconds = std::chrono::duration<float, std::milli>(*end->time - *start->time).count();
        return CUDA_SUCCESS;
    });
}

API CUresult cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

// --- Memory --------------------------------------------------------------------------------------------------------

constexpr size_t ALIGNMENT = 256;
constexpr size_t PAGE_BYTES = 4 << 10;
constexpr char GUARD = 0x5a;

static size_t round_up(size_t bytes, size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

// An allocation lies at the end of its pages, as far as its alignment allows. In front of it are guards, behind it up to the end of the
// page as well, and then a page that cannot be touched.
static CUdeviceptr allocate(Device& device, size_t bytes) {
    size_t padded = round_up(bytes, ALIGNMENT), pages_bytes = round_up(ALIGNMENT + padded, PAGE_BYTES);
    void* mapped = mmap(nullptr, pages_bytes + PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return 0;
    char* pages = static_cast<char*>(mapped);
    if (mprotect(pages + pages_bytes, PAGE_BYTES, PROT_NONE) != 0) fail("a page cannot be protected");
    char* start = pages + pages_bytes - padded;
    std::memset(pages, GUARD, size_t(start - pages));
    std::memset(start, 0xff, bytes);
    std::memset(start + bytes, GUARD, padded - bytes);
    device.allocations.emplace(reinterpret_cast<uintptr_t>(start), Allocation{bytes, pages, pages_bytes});
    device.used_bytes += bytes;
    counters.allocations++;
    counters.live_bytes += bytes;
    return reinterpret_cast<CUdeviceptr>(start);
}

// Gives the memory back, but keeps the addresses, so that whoever still uses them is found.
static void give_back(const Allocation& allocation) {
    void* kept = mmap(allocation.pages, allocation.pages_bytes + PAGE_BYTES, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (kept == MAP_FAILED) fail("pages cannot be given back");
    // Other processes keep what they have mapped.
    if (allocation.shared.file >= 0) ::close(allocation.shared.file);
}

static void release(Device& device, std::map<uintptr_t, Allocation>::iterator at) {
    const Allocation& allocation = at->second;
    give_back(allocation);
    device.used_bytes -= allocation.bytes;
    counters.live_bytes -= allocation.bytes;
    device.allocations.erase(at);
}

// The last entry of a map from addresses that begins at `address` or before it.
template <typename Map>
static auto last_before(Map& map, uintptr_t address) {
    auto at = map.upper_bound(address);
    return at == map.begin() ? map.end() : std::prev(at);
}

static bool is_within(uintptr_t start, size_t length, uintptr_t address, size_t bytes) {
    return address - start <= length && bytes <= length - (address - start);
}

static bool has_range(Device& device, CUdeviceptr address, size_t bytes) {
    auto at = last_before(device.allocations, address);
    if (at != device.allocations.end() && is_within(at->first, at->second.bytes, address, bytes)) return true;
    auto import = last_before(device.imports, address);
    return import != device.imports.end() && is_within(import->first, import->second.allocation.bytes, address, bytes);
}

static bool has_pinned_range(const void* start, size_t bytes) {
    uintptr_t address = reinterpret_cast<uintptr_t>(start);
    auto at = last_before(pinned, address);
    return at != pinned.end() && is_within(at->first, at->second, address, bytes);
}

// Whether it may be memory of the host: not that of a device.
static bool is_host_range(const void* start, size_t bytes) {
    if (start == nullptr) return false;
    uintptr_t address = reinterpret_cast<uintptr_t>(start);
    for (const auto& device : devices) {
        auto at = last_before(device->allocations, address + bytes - 1);
        if (at != device->allocations.end() && address < at->first + at->second.bytes) return false;
        auto import = last_before(device->imports, address + bytes - 1);
        if (import != device->imports.end() && address < import->first + import->second.allocation.bytes) return false;
    }
    return true;
}

static void check_guards(const char* kernel) {
    static const auto& intact = *new std::vector<char>(PAGE_BYTES + ALIGNMENT, GUARD);
    std::lock_guard<std::mutex> guard(lock);
    for (const auto& device : devices) {
        for (const auto& [address, allocation] : device->allocations) {
            const char* start = reinterpret_cast<const char*>(address);
            const char* end = start + allocation.bytes;
            if (std::memcmp(allocation.pages, intact.data(), size_t(start - allocation.pages)) != 0) {
                fail("%s wrote in front of an allocation of %zu bytes", kernel, allocation.bytes);
            }
            if (std::memcmp(end, intact.data(), size_t(allocation.pages + allocation.pages_bytes - end)) != 0) {
                fail("%s wrote beyond an allocation of %zu bytes", kernel, allocation.bytes);
            }
        }
    }
}

API CUresult cuMemAlloc_v2(CUdeviceptr* pointer, size_t bytes) {
    return with_context([&](Device& device) {
        if (pointer == nullptr || bytes == 0) return CUDA_ERROR_INVALID_VALUE;
        if (CUresult error = refuse_in_capture()) return error;
        if (bytes > memory_bytes - device.used_bytes) return CUDA_ERROR_OUT_OF_MEMORY;
        *pointer = allocate(device, bytes);
        return *pointer != 0 ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    });
}

API CUresult cuMemFree_v2(CUdeviceptr pointer) {
    return with_context([&](Device& device) {
        if (CUresult error = refuse_in_capture()) return error;
        if (device.allocations.count(pointer) == 0) return CUDA_ERROR_INVALID_VALUE;
        // Whatever uses it.
        wait_for_device(device);
        auto at = device.allocations.find(pointer);
        if (at == device.allocations.end()) return CUDA_ERROR_INVALID_VALUE;
        release(device, at);
        return CUDA_SUCCESS;
    });
}

API CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* total_bytes) {
    return with_context([&](Device& device) {
        if (free_bytes == nullptr || total_bytes == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *free_bytes = memory_bytes - device.used_bytes;
        *total_bytes = memory_bytes;
        return CUDA_SUCCESS;
    });
}

API CUresult cuMemHostAlloc(void** pointer, size_t bytes, unsigned flags) {
    return with_context([&](Device&) {
        if (pointer == nullptr || bytes == 0 || flags > 7) return CUDA_ERROR_INVALID_VALUE;
        if (CUresult error = refuse_in_capture()) return error;
        void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
        std::memset(pages, 0xff, bytes);
        pinned.emplace(reinterpret_cast<uintptr_t>(pages), bytes);
        *pointer = pages;
        return CUDA_SUCCESS;
    });
}

API CUresult cuMemAllocHost_v2(void** pointer, size_t bytes) { return cuMemHostAlloc(pointer, bytes, 0); }

API CUresult cuMemFreeHost(void* pointer) {
    return with_context([&](Device& device) {
        if (CUresult error = refuse_in_capture()) return error;
        if (pinned.count(reinterpret_cast<uintptr_t>(pointer)) == 0) return CUDA_ERROR_INVALID_VALUE;
        // Not for other devices, though they may copy from it: ranks that are threads of one process could wait for each other.
        wait_for_device(device);
        auto at = pinned.find(reinterpret_cast<uintptr_t>(pointer));
        if (at == pinned.end()) return CUDA_ERROR_INVALID_VALUE;
        munmap(pointer, at->second);
        pinned.erase(at);
        return CUDA_SUCCESS;
    });
}

// All memory of the host that is page-locked is the device's as well, at the same addresses.
API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr* pointer, void* start, unsigned flags) {
    return with_context([&](Device&) {
        if (pointer == nullptr || flags != 0 || !has_pinned_range(start, 1)) return CUDA_ERROR_INVALID_VALUE;
        *pointer = reinterpret_cast<CUdeviceptr>(start);
        return CUDA_SUCCESS;
    });
}

// --- Memory of other processes -------------------------------------------------------------------------------------

// What a handle's bytes are.
struct IpcHandle {
    char magic[8];
    uint64_t id, bytes, pages_bytes;
    int process, file, ordinal;
};
static_assert(sizeof(IpcHandle) <= sizeof(CUipcMemHandle), "a handle holds it");
constexpr char IPC_MAGIC[8] = {'c', 'u', 's', 'i', 'm', 'i', 'p', 'c'};

// Of the file, by which it is known again: a process's number and those of its files are used a second time.
static std::string shared_name(uint64_t id) {
    char name[32];
    std::snprintf(name, sizeof(name), "cusim-%016llx", static_cast<unsigned long long>(id));
    return name;
}

// Maps a file in place of an allocation's pages.
static bool map_shared(const Allocation& allocation, int file) {
    return mmap(allocation.pages, allocation.pages_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) != MAP_FAILED;
}

// Moves an allocation's pages into a file, where nothing notices. Returns whether there was room for it.
static bool share(Allocation& allocation) {
    std::random_device random;
    uint64_t id = uint64_t(random()) << 32 | random();
    int file = memfd_create(shared_name(id).c_str(), MFD_CLOEXEC);
    if (file < 0) return false;
    size_t written = 0;
    while (written < allocation.pages_bytes) {
        ssize_t more = write(file, allocation.pages + written, allocation.pages_bytes - written);
        if (more <= 0) break;
        written += size_t(more);
    }
    if (written < allocation.pages_bytes || !map_shared(allocation, file)) {
        ::close(file);
        return false;
    }
    allocation.shared = {file, id};
    return true;
}

API CUresult cuIpcGetMemHandle(CUipcMemHandle* handle, CUdeviceptr pointer) {
    return with_context([&](Device& device) {
        // Not while its device works with it. What nobody has asked for does not begin.
        auto is_idle = [&] {
            for (const auto& queue : device.queues) {
                if (queue->done < queue->wanted) return false;
            }
            return true;
        };
        changed.wait(lock, is_idle);
        auto at = device.allocations.find(pointer);
        if (handle == nullptr || at == device.allocations.end()) return CUDA_ERROR_INVALID_VALUE;
        Allocation& allocation = at->second;
        if (allocation.shared.file < 0 && !share(allocation)) return CUDA_ERROR_OUT_OF_MEMORY;
        IpcHandle content = {{}, allocation.shared.id, allocation.bytes, allocation.pages_bytes, int(getpid()), allocation.shared.file,
                             device.ordinal};
        std::memcpy(content.magic, IPC_MAGIC, sizeof(IPC_MAGIC));
        *handle = {};
        std::memcpy(handle, &content, sizeof(content));
        return CUDA_SUCCESS;
    });
}

// The file of a handle, or -1 if it is no longer there.
static int open_shared(const IpcHandle& handle) {
    std::string path = "/proc/" + std::to_string(handle.process) + "/fd/" + std::to_string(handle.file);
    int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (file < 0) return -1;
    char target[64] = {};
    std::string own = "/proc/self/fd/" + std::to_string(file), expected = "/memfd:" + shared_name(handle.id) + " ";
    bool is_known = readlink(own.c_str(), target, sizeof(target) - 1) > 0 && std::string(target).rfind(expected, 0) == 0;
    if (is_known) return file;
    ::close(file);
    return -1;
}

API CUresult cuIpcOpenMemHandle_v2(CUdeviceptr* pointer, CUipcMemHandle handle, unsigned flags) {
    return with_context([&](Device& device) {
        IpcHandle content;
        std::memcpy(&content, &handle, sizeof(content));
        if (pointer == nullptr || flags != IPC_MEM_LAZY_ENABLE_PEER_ACCESS) return CUDA_ERROR_INVALID_VALUE;
        if (std::memcmp(content.magic, IPC_MAGIC, sizeof(IPC_MAGIC)) != 0) return CUDA_ERROR_INVALID_HANDLE;
        // As on a device, a process does not open what it has exported itself.
        if (content.process == getpid()) return CUDA_ERROR_INVALID_CONTEXT;
        if (CUresult error = refuse_in_capture()) return error;
        for (auto& [start, import] : device.imports) {
            if (import.allocation.shared.id != content.id) continue;
            import.opened++;
            *pointer = start;
            return CUDA_SUCCESS;
        }
        if (content.ordinal != device.ordinal && !has_peer_access) return CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
        int file = open_shared(content);
        if (file < 0) return CUDA_ERROR_INVALID_HANDLE;
        // With a page behind it that cannot be touched.
        void* pages = mmap(nullptr, content.pages_bytes + PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        Allocation allocation = {content.bytes, static_cast<char*>(pages), content.pages_bytes, {-1, content.id}};
        bool is_mapped = pages != MAP_FAILED && map_shared(allocation, file);
        ::close(file);
        if (!is_mapped) return CUDA_ERROR_OUT_OF_MEMORY;
        uintptr_t start = reinterpret_cast<uintptr_t>(allocation.pages) + content.pages_bytes - round_up(content.bytes, ALIGNMENT);
        device.imports.emplace(start, Import{allocation});
        *pointer = start;
        return CUDA_SUCCESS;
    });
}

static void close_import(Device& device, std::map<uintptr_t, Import>::iterator at) {
    give_back(at->second.allocation);
    device.imports.erase(at);
}

API CUresult cuIpcCloseMemHandle(CUdeviceptr pointer) {
    return with_context([&](Device& device) {
        if (CUresult error = refuse_in_capture()) return error;
        if (device.imports.count(pointer) == 0) return CUDA_ERROR_INVALID_VALUE;
        // Whatever uses it.
        wait_for_device(device);
        auto at = device.imports.find(pointer);
        if (at == device.imports.end()) return CUDA_ERROR_INVALID_VALUE;
        if (--at->second.opened == 0) close_import(device, at);
        return CUDA_SUCCESS;
    });
}

// --- Copies --------------------------------------------------------------------------------------------------------

static void* address_of(CUdeviceptr pointer) { return reinterpret_cast<void*>(pointer); }

// Memory of the host that a capture notes must be there when its graph runs, which only page-locked memory tells.
static CUresult check_host_range(const void* start, size_t bytes, bool was_pinned) {
    bool is_valid = was_pinned ? has_pinned_range(start, bytes) : is_host_range(start, bytes);
    return is_valid ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

static Operation copy_to_device(Device& device, CUdeviceptr to, const void* from, size_t bytes, bool is_pinned) {
    auto check = [=, &device] {
        return has_range(device, to, bytes) ? check_host_range(from, bytes, is_pinned) : CUDA_ERROR_INVALID_VALUE;
    };
    auto run = [=] {
        std::memcpy(address_of(to), from, bytes);
        counters.htod_bytes += bytes;
    };
    return {check, run};
}

static Operation copy_to_host(Device& device, void* to, CUdeviceptr from, size_t bytes, bool is_pinned) {
    auto check = [=, &device] {
        return has_range(device, from, bytes) ? check_host_range(to, bytes, is_pinned) : CUDA_ERROR_INVALID_VALUE;
    };
    auto run = [=] {
        std::memcpy(to, address_of(from), bytes);
        counters.dtoh_bytes += bytes;
    };
    return {check, run};
}

API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
    return with_context([&](Device& device) {
        if (bytes == 0) return CUDA_SUCCESS;
        bool is_pinned = has_pinned_range(from, bytes);
        Operation operation = copy_to_device(device, to, from, bytes, is_pinned);
        if (is_pinned) return enqueue(device, stream, true, std::move(operation));
        // The bytes leave other memory of the host at once, if the call is one that will be followed.
        auto staged = std::make_shared<std::vector<char>>();
        auto check = [=] {
            CUresult error = operation.check();
            const char* start = static_cast<const char*>(from);
            if (error == CUDA_SUCCESS) staged->assign(start, start + bytes);
            return error;
        };
        auto run = [=] {
            std::memcpy(address_of(to), staged->data(), bytes);
            counters.htod_bytes += bytes;
        };
        return enqueue(device, stream, false, {check, run});
    });
}

API CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return with_context([&](Device& device) {
        if (bytes == 0) return CUDA_SUCCESS;
        bool is_pinned = has_pinned_range(to, bytes);
        return enqueue(device, stream, is_pinned, copy_to_host(device, to, from, bytes, is_pinned));
    });
}

API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return with_context([&](Device& device) {
        if (bytes == 0) return CUDA_SUCCESS;
        auto check = [=, &device] {
            // Between ranges that overlap, what arrives is undefined.
            bool is_valid = has_range(device, to, bytes) && has_range(device, from, bytes) &&
                            (to + bytes <= from || from + bytes <= to);
            return is_valid ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
        };
        return enqueue(device, stream, true, {check, [=] { std::memcpy(address_of(to), address_of(from), bytes); }});
    });
}

// Without a stream a copy is one of the legacy stream, and waits.
static CUresult copy_now(Device& device, const Operation& operation) {
    counters.synchronisations++;
    if (CUresult error = refuse_in_capture()) return error;
    if (CUresult error = enqueue(device, nullptr, false, operation)) return error;
    wait_for({device.legacy_stream.end()});
    return CUDA_SUCCESS;
}

API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    return with_context([&](Device& device) {
        return bytes == 0 ? CUDA_SUCCESS : copy_now(device, copy_to_device(device, to, from, bytes, false));
    });
}

API CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    return with_context([&](Device& device) {
        return bytes == 0 ? CUDA_SUCCESS : copy_now(device, copy_to_host(device, to, from, bytes, false));
    });
}

template <typename T>
static CUresult set(CUdeviceptr to, T value, size_t length, CUstream stream) {
    return with_context([&](Device& device) {
        if (length == 0) return CUDA_SUCCESS;
        auto check = [=, &device] {
            bool is_valid = length <= SIZE_MAX / sizeof(T) && has_range(device, to, length * sizeof(T)) && to % sizeof(T) == 0;
            return is_valid ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
        };
        return enqueue(device, stream, true, {check, [=] {
            T* elements = static_cast<T*>(address_of(to));
            for (size_t at = 0; at < length; ++at) elements[at] = value;
        }});
    });
}

API CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t length, CUstream stream) {
    return set<uint8_t>(to, value, length, stream);
}

API CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t length, CUstream stream) {
    return set<uint32_t>(to, value, length, stream);
}

// --- Modules -------------------------------------------------------------------------------------------------------

// A cubin: lines that end with the last of these, and a zero.
constexpr char CUBIN_MAGIC[] = "simulated cubin\n";
constexpr char CUBIN_END[] = "\nend\n";

// Whether a kernel's file is the one of this name. Files are known by the paths that the compiler was given.
static bool is_file(const std::string& path, const std::string& name) {
    if (path.size() < name.size() || path.compare(path.size() - name.size(), name.size(), name) != 0) return false;
    return path.size() == name.size() || path[path.size() - name.size() - 1] == '/';
}

// Whether the device runs code for an architecture ("sm_90a"): of its own major version and no later minor one, and with features of one
// architecture alone on no other.
static bool is_runnable(const std::string& architecture) {
    unsigned number = 0;
    char feature = '\0';
    int fields = std::sscanf(architecture.c_str(), "sm_%u%c", &number, &feature);
    if (fields < 1 || number / 10 != capability_major) return false;
    return feature == 'a' ? number % 10 == capability_minor : number % 10 <= capability_minor;
}

API CUresult cuModuleLoadData(CUmodule* handle, const void* image) {
    return with_context([&](Device& device) {
        if (handle == nullptr || image == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (CUresult error = refuse_in_capture()) return error;
        const char* start = static_cast<const char*>(image);
        if (std::strncmp(start, CUBIN_MAGIC, std::strlen(CUBIN_MAGIC)) != 0) return CUDA_ERROR_NO_BINARY_FOR_GPU;
        std::string text = start + std::strlen(CUBIN_MAGIC);
        size_t line = text.find('\n'), end = text.find(CUBIN_END, line);
        if (end == std::string::npos || end + std::strlen(CUBIN_END) != text.size()) return CUDA_ERROR_INVALID_IMAGE;
        if (!is_runnable(text.substr(0, line))) return CUDA_ERROR_NO_BINARY_FOR_GPU;
        auto module = std::make_unique<Module>();
        module->file = text.substr(line + 1, end - line - 1);
        *handle = device.modules.insert(std::move(module));
        return CUDA_SUCCESS;
    });
}

API CUresult cuModuleUnload(CUmodule handle) {
    return with_context([&](Device& device) {
        Module* module = device.modules.find(handle);
        if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (CUresult error = refuse_in_capture()) return error;
        wait_for_device(device);
        module = device.modules.find(handle);
        if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        for (const auto& [name, function] : module->functions) device.functions.erase(function);
        device.modules.erase(handle);
        return CUDA_SUCCESS;
    });
}

API CUresult cuModuleGetFunction(CUfunction* handle, CUmodule module_handle, const char* name) {
    return with_context([&](Device& device) {
        Module* module = device.modules.find(module_handle);
        if (module == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (handle == nullptr || name == nullptr) return CUDA_ERROR_INVALID_VALUE;
        for (const cusim::Kernel& kernel : cusim::kernels()) {
            if (kernel.name != name || !is_file(kernel.file, module->file)) continue;
            CUfunction& known = module->functions[name];
            if (known == nullptr) known = device.functions.insert(std::make_unique<Function>(Function{&kernel}));
            *handle = known;
            return CUDA_SUCCESS;
        }
        return CUDA_ERROR_NOT_FOUND;
    });
}

API CUresult cuFuncSetAttribute(CUfunction handle, int attribute, int value) {
    return with_context([&](Device& device) {
        Function* function = device.functions.find(handle);
        if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (attribute == FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) {
            return -1 <= value && value <= 100 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
        }
        bool is_valid = attribute == FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && 0 <= value && size_t(value) <= max_shared_bytes();
        if (!is_valid) return CUDA_ERROR_INVALID_VALUE;
        function->max_dynamic_shared_bytes = size_t(value);
        return CUDA_SUCCESS;
    });
}

API CUresult cuFuncGetAttribute(int* value, int attribute, CUfunction handle) {
    return with_context([&](Device& device) {
        Function* function = device.functions.find(handle);
        if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
        switch (attribute) {
            case FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = MAX_BLOCK_THREADS; break;
            case FUNC_ATTRIBUTE_BINARY_VERSION: *value = int(capability_major * 10 + capability_minor); break;
            case FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = int(function->max_dynamic_shared_bytes); break;
            // The compiler of the device alone knows the others.
            default: return CUDA_ERROR_INVALID_VALUE;
        }
        return CUDA_SUCCESS;
    });
}

// --- Launches ------------------------------------------------------------------------------------------------------

struct Launch {
    const cusim::Kernel* kernel;
    dim3 grid, size;
    size_t dynamic_shared_bytes;
    // All arguments one after the other.
    std::vector<char> bytes;
};

// Whether this thread runs a kernel.
static thread_local bool is_running = false;
static struct sigaction previous_actions[2];

static void report_fault(int signal, siginfo_t* info, void*) {
    // Of another thread: what would have happened without this function.
    if (!is_running) {
        sigaction(signal, &previous_actions[signal == SIGBUS], nullptr);
        return;
    }
    const dim3& block = cusim::block.index;
    const dim3& thread = cusim::block.current->index;
    std::fprintf(stderr, "%s: thread (%u, %u, %u) of block (%u, %u, %u) touched %p, ", cusim::block.kernel, thread.x, thread.y,
                 thread.z, block.x, block.y, block.z, info->si_addr);
    // A kernel runs without it, and so does this thread.
    std::lock_guard<std::mutex> guard(lock);
    uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
    for (const auto& device : devices) {
        auto at = last_before(device->allocations, address);
        if (at == device->allocations.end()) continue;
        const Allocation& allocation = at->second;
        uintptr_t last_page = reinterpret_cast<uintptr_t>(allocation.pages + allocation.pages_bytes);
        if (address < last_page + PAGE_BYTES) fail("byte %zu of an allocation of %zu", address - at->first, allocation.bytes);
    }
    fail("which is no memory: never allocated, freed, or beyond a thread's stack");
}

static void run_kernel(const Launch& launch) {
    std::vector<const void*> arguments;
    size_t offset = 0;
    for (const cusim::Parameter& parameter : launch.kernel->parameters) {
        arguments.push_back(launch.bytes.data() + offset);
        offset += parameter.bytes;
    }
    std::lock_guard<std::mutex> guard(kernel_lock);
    struct sigaction action = {};
    action.sa_sigaction = report_fault;
    // On the thread's stack for signals: the fiber's may be what is missing.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &previous_actions[0]);
    sigaction(SIGBUS, &action, &previous_actions[1]);
    is_running = true;
    const char* name = launch.kernel->name.c_str();
    cusim::launch(name, launch.grid, launch.size, launch.dynamic_shared_bytes, [&] { launch.kernel->call(arguments.data()); });
    is_running = false;
    sigaction(SIGSEGV, &previous_actions[0], nullptr);
    sigaction(SIGBUS, &previous_actions[1], nullptr);
    check_guards(name);
}

// Pointers that a kernel is given itself, not within a structure, must be to memory that it may touch, or just behind it.
static CUresult check_pointers(Device& device, const Launch& launch) {
    size_t offset = 0;
    for (const cusim::Parameter& parameter : launch.kernel->parameters) {
        uintptr_t address = 0;
        if (parameter.is_pointer) std::memcpy(&address, launch.bytes.data() + offset, sizeof(address));
        offset += parameter.bytes;
        bool is_valid = address == 0 || has_range(device, address, 0) || has_pinned_range(reinterpret_cast<void*>(address), 0);
        if (!is_valid) return CUDA_ERROR_ILLEGAL_ADDRESS;
    }
    return CUDA_SUCCESS;
}

API CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction handle, void** arguments, void** extra) {
    return with_context([&](Device& device) {
        Function* function = device.functions.find(handle);
        if (function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        const cusim::Kernel& kernel = *function->kernel;
        if (config == nullptr || extra != nullptr || (arguments == nullptr && !kernel.parameters.empty())) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        for (unsigned axis = 0; axis < 3; ++axis) {
            if (config->grid[axis] - 1 >= unsigned(MAX_GRID[axis])) return CUDA_ERROR_INVALID_VALUE;
            if (config->block[axis] - 1 >= unsigned(MAX_BLOCK[axis])) return CUDA_ERROR_INVALID_VALUE;
        }
        if (config->block[0] * config->block[1] * config->block[2] > unsigned(MAX_BLOCK_THREADS)) return CUDA_ERROR_INVALID_VALUE;
        if (config->shared_bytes > function->max_dynamic_shared_bytes) return CUDA_ERROR_INVALID_VALUE;
        if (config->num_attributes > 0 && config->attributes == nullptr) return CUDA_ERROR_INVALID_VALUE;
        for (unsigned at = 0; at < config->num_attributes; ++at) {
            const CUlaunchAttribute& attribute = config->attributes[at];
            const unsigned* cluster = attribute.value.cluster;
            switch (attribute.id) {
                case LAUNCH_ATTRIBUTE_IGNORE: case LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION: break;
                case LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
                    if (cluster[0] != 1 || cluster[1] != 1 || cluster[2] != 1) return CUDA_ERROR_INVALID_CLUSTER_SIZE;
                    break;
                default: return CUDA_ERROR_NOT_SUPPORTED;
            }
        }
        Launch launch = {&kernel, {config->grid[0], config->grid[1], config->grid[2]},
                         {config->block[0], config->block[1], config->block[2]}, config->shared_bytes, {}};
        for (size_t at = 0; at < kernel.parameters.size(); ++at) {
            if (arguments[at] == nullptr) return CUDA_ERROR_INVALID_VALUE;
            const char* start = static_cast<const char*>(arguments[at]);
            launch.bytes.insert(launch.bytes.end(), start, start + kernel.parameters[at].bytes);
        }
        auto shared = std::make_shared<const Launch>(std::move(launch));
        auto check = [shared, &device] { return check_pointers(device, *shared); };
        Stream* stream = device.stream(config->stream);
        bool is_captured = stream != nullptr && stream->capture;
        CUresult result = enqueue(device, config->stream, true, {check, [shared] { run_kernel(*shared); }});
        if (result == CUDA_SUCCESS && !is_captured) counters.launches++;
        return result;
    });
}

API CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                            unsigned block_z, unsigned shared_bytes, CUstream stream, void** arguments, void** extra) {
    CUlaunchConfig config = {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, stream, nullptr, 0};
    return cuLaunchKernelEx(&config, function, arguments, extra);
}

// --- Errors and counters -------------------------------------------------------------------------------------------

static CUresult describe(CUresult error, const char** name, const char** sentence) {
    *name = *sentence = nullptr;
    switch (error) {
        case CUDA_SUCCESS: *name = "CUDA_SUCCESS"; *sentence = "no error"; break;
#define ERROR_TEXT(id, code, text) case CUDA_ERROR_##id: *name = "CUDA_ERROR_" #id; *sentence = text; break;
        ERRORS(ERROR_TEXT)
    }
    return *name != nullptr ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API CUresult cuGetErrorName(CUresult error, const char** name) {
    const char* sentence;
    return name != nullptr ? describe(error, name, &sentence) : CUDA_ERROR_INVALID_VALUE;
}

API CUresult cuGetErrorString(CUresult error, const char** sentence) {
    const char* name;
    return sentence != nullptr ? describe(error, &name, sentence) : CUDA_ERROR_INVALID_VALUE;
}

// For the simulated NCCL: whether these bytes are memory of the current device, or of any if the calling thread has none.
API int cusim_is_memory(CUdeviceptr address, size_t bytes) {
    std::lock_guard<std::mutex> guard(lock);
    for (const auto& device : devices) {
        if ((current == nullptr || current == device.get()) && has_range(*device, address, bytes)) return 1;
    }
    return 0;
}

// For tests. What a counter counts stands where they are declared.
API uint64_t cusim_counter(const char* name) {
    std::lock_guard<std::mutex> guard(lock);
#define COUNTER(id) if (std::strcmp(name, #id) == 0) return counters.id;
    COUNTER(launches)
    COUNTER(graph_launches)
    COUNTER(graph_nodes)
    COUNTER(allocations)
    COUNTER(live_bytes)
    COUNTER(synchronisations)
    COUNTER(htod_bytes)
    COUNTER(dtoh_bytes)
    fail("there is no counter %s", name);
}

// --- NVRTC ---------------------------------------------------------------------------------------------------------

enum nvrtcResult : unsigned {
    NVRTC_SUCCESS = 0,
    NVRTC_ERROR_INVALID_INPUT = 3,
    NVRTC_ERROR_INVALID_PROGRAM = 4,
    NVRTC_ERROR_INVALID_OPTION = 5,
    NVRTC_ERROR_COMPILATION = 6,
};

struct Program {
    std::string name, source;
    std::map<std::string, std::string> headers;
    std::string log, cubin;
};
typedef struct _nvrtcProgram* nvrtcProgram;

// Its own: compilation needs no device, and waits for none.
static std::mutex nvrtc_lock;
static Handles<nvrtcProgram, Program> programs;

template <typename F>
static nvrtcResult with_program(nvrtcProgram handle, F call) {
    std::lock_guard<std::mutex> guard(nvrtc_lock);
    Program* program = programs.find(handle);
    return program != nullptr ? call(*program) : NVRTC_ERROR_INVALID_PROGRAM;
}

// The options of NVRTC's manual that need nothing of a simulation, without their dashes and values.
static bool is_known_option(const std::string& option) {
    static const char* const known[] = {
        "std", "default-device", "device-as-default-execution-space", "define-macro", "undefine-macro", "include-path",
        "generate-line-info", "lineinfo", "modify-stack-limit", "device-debug", "G", "use_fast_math", "fmad", "ftz", "prec-div", "prec-sqrt",
        "maxrregcount", "restrict", "extra-device-vectorization", "disable-warnings", "w", "diag-error", "diag-suppress", "diag-warn",
        "ptxas-options", "split-compile", "minimal", "no-source-include", "builtin-initializer-list", "optimization-info", "pch",
    };
    if (option[0] == 'D' || option[0] == 'U' || option[0] == 'I') return true;
    for (const char* name : known) {
        if (option == name) return true;
    }
    return false;
}

// The first #include "..." of a text whose header was not passed. Lines for this simulator do not count.
static std::string missing_header(const std::string& text, const std::map<std::string, std::string>& headers) {
    bool is_skipped = false;
    for (size_t at = 0; at < text.size();) {
        size_t end = std::min(text.find('\n', at), text.size());
        std::string line = text.substr(at, end - at);
        at = end + 1;
        if (line.rfind("#ifdef CUSIM", 0) == 0) is_skipped = true;
        if (line.rfind("#else", 0) == 0 || line.rfind("#endif", 0) == 0) is_skipped = false;
        if (is_skipped || line.rfind("#include \"", 0) != 0) continue;
        size_t start = line.find('"') + 1;
        std::string name = line.substr(start, line.find('"', start) - start);
        if (headers.count(name) == 0) return name;
    }
    return "";
}

// The error of a program, or nothing.
static std::string error_of(const Program& program) {
    if (program.source.find_first_not_of(" \t\r\n") == std::string::npos) return "there is no source";
    std::vector<const std::string*> texts = {&program.source};
    for (const auto& [name, header] : program.headers) texts.push_back(&header);
    for (const std::string* text : texts) {
        if (text->find("CUSIM_COMPILE_ERROR") != std::string::npos) return "identifier \"CUSIM_COMPILE_ERROR\" is undefined";
        std::string missing = missing_header(*text, program.headers);
        if (!missing.empty()) return "cannot open source file \"" + missing + "\"";
    }
    for (const cusim::Kernel& kernel : cusim::kernels()) {
        if (is_file(kernel.file, program.name)) return "";
    }
    return "the simulator was built without kernels of a file of this name";
}

API nvrtcResult nvrtcVersion(int* major, int* minor) {
    if (major == nullptr || minor == nullptr) return NVRTC_ERROR_INVALID_INPUT;
    *major = 13;
    *minor = 0;
    return NVRTC_SUCCESS;
}

API nvrtcResult nvrtcCreateProgram(nvrtcProgram* handle, const char* source, const char* name, int num_headers,
                                   const char* const* headers, const char* const* include_names) {
    std::lock_guard<std::mutex> guard(nvrtc_lock);
    bool has_headers = num_headers == 0 || (num_headers > 0 && headers != nullptr && include_names != nullptr);
    if (handle == nullptr || source == nullptr || !has_headers) return NVRTC_ERROR_INVALID_INPUT;
    auto program = std::make_unique<Program>();
    program->name = name != nullptr ? name : "default_program";
    program->source = source;
    for (int at = 0; at < num_headers; ++at) program->headers.emplace(include_names[at], headers[at]);
    *handle = programs.insert(std::move(program));
    return NVRTC_SUCCESS;
}

API nvrtcResult nvrtcDestroyProgram(nvrtcProgram* handle) {
    std::lock_guard<std::mutex> guard(nvrtc_lock);
    if (handle == nullptr || !programs.erase(*handle)) return NVRTC_ERROR_INVALID_PROGRAM;
    *handle = nullptr;
    return NVRTC_SUCCESS;
}

API nvrtcResult nvrtcCompileProgram(nvrtcProgram handle, int num_options, const char* const* options) {
    return with_program(handle, [&](Program& program) {
        std::string architecture;
        for (int at = 0; at < num_options; ++at) {
            std::string option = options[at];
            size_t start = option.find_first_not_of('-'), equals = option.find('=');
            std::string name = start == 1 || start == 2 ? option.substr(start, std::min(equals, option.size()) - start) : "";
            if (name == "gpu-architecture" || name == "arch") {
                architecture = equals == std::string::npos ? "" : option.substr(equals + 1);
            } else if (name.empty() || !is_known_option(name)) {
                program.log = "nvrtc: error: unrecognized option " + option + " found\n";
                return NVRTC_ERROR_INVALID_OPTION;
            }
        }
        // "sm_", digits, and perhaps a letter. There is no PTX here, which other architectures would give.
        size_t digits = architecture.rfind("sm_", 0) == 0 ? architecture.find_first_not_of("0123456789", 3) : 3;
        std::string feature = architecture.substr(std::min(digits, architecture.size()));
        if (architecture.size() < 5 || digits < 5 || (feature != "" && feature != "a" && feature != "f")) {
            program.log = "nvrtc: error: invalid value for --gpu-architecture (-arch)\n";
            return NVRTC_ERROR_INVALID_OPTION;
        }
        std::string error = error_of(program);
        if (!error.empty()) {
            program.log = program.name + "(1): error: " + error + "\n\n1 error detected in the compilation of \"" + program.name + "\".\n";
            return NVRTC_ERROR_COMPILATION;
        }
        program.log = "";
        program.cubin = CUBIN_MAGIC + architecture + "\n" + program.name + CUBIN_END;
        return NVRTC_SUCCESS;
    });
}

API nvrtcResult nvrtcGetCUBINSize(nvrtcProgram handle, size_t* bytes) {
    return with_program(handle, [&](Program& program) {
        if (bytes == nullptr) return NVRTC_ERROR_INVALID_INPUT;
        *bytes = program.cubin.empty() ? 0 : program.cubin.size() + 1;
        return NVRTC_SUCCESS;
    });
}

API nvrtcResult nvrtcGetCUBIN(nvrtcProgram handle, char* cubin) {
    return with_program(handle, [&](Program& program) {
        if (cubin == nullptr || program.cubin.empty()) return NVRTC_ERROR_INVALID_INPUT;
        std::memcpy(cubin, program.cubin.c_str(), program.cubin.size() + 1);
        return NVRTC_SUCCESS;
    });
}

API nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram handle, size_t* bytes) {
    return with_program(handle, [&](Program& program) {
        if (bytes == nullptr) return NVRTC_ERROR_INVALID_INPUT;
        *bytes = program.log.size() + 1;
        return NVRTC_SUCCESS;
    });
}

API nvrtcResult nvrtcGetProgramLog(nvrtcProgram handle, char* log) {
    return with_program(handle, [&](Program& program) {
        if (log == nullptr) return NVRTC_ERROR_INVALID_INPUT;
        std::memcpy(log, program.log.c_str(), program.log.size() + 1);
        return NVRTC_SUCCESS;
    });
}

API const char* nvrtcGetErrorString(nvrtcResult result) {
    switch (result) {
        case NVRTC_SUCCESS: return "NVRTC_SUCCESS";
        case NVRTC_ERROR_INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
        case NVRTC_ERROR_INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
        case NVRTC_ERROR_INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
        case NVRTC_ERROR_COMPILATION: return "NVRTC_ERROR_COMPILATION";
    }
    return "NVRTC_ERROR unknown";
}
