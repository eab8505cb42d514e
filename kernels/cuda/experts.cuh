// What kernels of experts share. `ops/experts/mod.rs` says what experts, pairs and tiles are.
#pragma once

#include "launch.cuh"

// Neighbouring pairs of one expert, which are multiplied together; without rows, nothing.
struct ExpertTile {
    u32 expert, first_pair, rows;
};
