// Reads ids and labels of all integer types. Values of an unsigned type are never negative.
#pragma once

#include "args.cuh"

namespace xact {

// The label `index`, of one of the types that labels may have.
__device__ inline long long read_label(unsigned long long labels, unsigned type, unsigned long long index) {
    if (type == ID_I64) return reinterpret_cast<const long long*>(labels)[index];
    const int label = reinterpret_cast<const int*>(labels)[index];
    return type == ID_U32 ? static_cast<unsigned>(label) : static_cast<long long>(label);
}

// The id `index`, of any type.
__device__ inline long long read_id(unsigned long long ids, unsigned type, unsigned long long index) {
    if (type == ID_U8) return reinterpret_cast<const unsigned char*>(ids)[index];
    if (type == ID_U16) return reinterpret_cast<const unsigned short*>(ids)[index];
    return read_label(ids, type, index);
}

}  // namespace xact
