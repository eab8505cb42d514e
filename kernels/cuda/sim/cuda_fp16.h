#pragma once
#include "cusim.h"

// The compiler's own type, where the processor has no instructions for it in software.
struct __half {
    _Float16 value;
};

inline float __half2float(__half x) { return float(x.value); }
inline __half __float2half_rn(float x) { return {_Float16(x)}; }
