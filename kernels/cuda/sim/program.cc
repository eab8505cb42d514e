// A program that runs one kernel: it reads a launch from its standard input and writes the buffers to its standard output.
// `tests/cuda_simulated/simulator.rs` has the other side.
#include <new>

#include "cusim.h"

using cusim::fail;

static void read_exactly(void* to, size_t bytes) {
    if (std::fread(to, 1, bytes, stdin) != bytes) fail("the launch ends early");
}

static uint64_t read_number() {
    uint64_t number;
    read_exactly(&number, sizeof(number));
    return number;
}

// A device buffer: the bytes of the launch between two fields of guards, which AddressSanitizer brings along.
class Buffer {
   public:
    explicit Buffer(size_t bytes)
        : bytes_(bytes), memory_(static_cast<char*>(::operator new(padded(bytes), std::align_val_t{ALIGNMENT}))) {
        std::memset(memory_, PATTERN, padded(bytes));
        read_exactly(start(), bytes);
    }

    char* start() { return memory_ + GUARD; }
    size_t bytes() const { return bytes_; }

    bool is_intact() {
        for (size_t at = 0; at < padded(bytes_); ++at) {
            bool inside = at >= GUARD && at < GUARD + bytes_;
            if (!inside && memory_[at] != PATTERN) return false;
        }
        return true;
    }

   private:
    // As allocations of a device are at least.
    static constexpr size_t ALIGNMENT = 256;
#ifdef __SANITIZE_ADDRESS__
    static constexpr size_t GUARD = 0;
#else
    static constexpr size_t GUARD = ALIGNMENT;
#endif
    static constexpr char PATTERN = 0x5a;
    static size_t padded(size_t bytes) { return bytes + 2 * GUARD; }

    size_t bytes_;
    char* memory_;
};

// An argument: a number's bytes, or the address of a buffer.
struct Argument {
    alignas(8) char bytes[8];
};

// Numbers of eight bytes: length of the name and the name; grid and block; the arguments, each 0 and its eight bytes, or 1 and
// the length of a buffer and its bytes. The answer is the bytes of all buffers.
int main() {
    std::string name(read_number(), '\0');
    read_exactly(name.data(), name.size());
    unsigned extents[6];
    for (unsigned& extent : extents) extent = unsigned(read_number());
    std::vector<Argument> arguments(read_number());
    std::vector<Buffer> buffers;
    for (Argument& argument : arguments) {
        if (read_number() == 0) {
            read_exactly(argument.bytes, sizeof(argument.bytes));
        } else {
            buffers.emplace_back(read_number());
            char* start = buffers.back().start();
            std::memcpy(argument.bytes, &start, sizeof(start));
        }
    }
    for (const cusim::Kernel& kernel : cusim::kernels()) {
        if (kernel.name != name) continue;
        if (kernel.parameters.size() != arguments.size()) {
            fail("%s has %zu parameters, not %zu", name.c_str(), kernel.parameters.size(), arguments.size());
        }
        for (const cusim::Parameter& parameter : kernel.parameters) {
            if (parameter.bytes > sizeof(Argument)) fail("%s has parameters that are no numbers", name.c_str());
        }
        std::vector<const void*> addresses;
        for (const Argument& argument : arguments) addresses.push_back(argument.bytes);
        cusim::launch(name.c_str(), {extents[0], extents[1], extents[2]}, {extents[3], extents[4], extents[5]}, 0,
                      [&] { kernel.call(addresses.data()); });
        for (size_t at = 0; at < buffers.size(); ++at) {
            if (!buffers[at].is_intact()) fail("%s wrote beyond buffer %zu", name.c_str(), at);
            std::fwrite(buffers[at].start(), 1, buffers[at].bytes(), stdout);
        }
        return 0;
    }
    fail("there is no kernel %s", name.c_str());
}
