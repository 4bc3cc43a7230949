// The Goldfish mask as a tensor, and the counts of kept and dropped labels. Cross-entropy calls the same
// function and needs no mask.

#include "goldfish.cuh"

#if !defined(XACT_BLOCK)
#error "the XACT_ numbers come from src/geometry.rs through build.rs"
#endif

namespace xact {

// The sum of one number per thread over the block, in thread 0. Every thread must call it, once.
__device__ inline unsigned long long block_count(unsigned long long count) {
    __shared__ unsigned long long scratch[XACT_BLOCK / 32];
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        count += __shfl_down_sync(0xffffffffu, count, offset);
    }
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = count;
    __syncthreads();
    if (threadIdx.x == 0) {
#pragma unroll
        for (int w = 1; w < XACT_BLOCK / 32; ++w) count += scratch[w];
    }
    return count;
}

}  // namespace xact

// One thread per label, in a grid-stride loop. Each block writes the number of labels that it dropped to
// args.partials.
extern "C" __global__ void __launch_bounds__(XACT_BLOCK)
    goldfish_mask(const __grid_constant__ xact::GoldfishMaskArgs args) {
    unsigned char* keep = reinterpret_cast<unsigned char*>(args.keep);
    float* weights = reinterpret_cast<float*>(args.weights);
    unsigned long long dropped = 0;
    const unsigned long long stride = static_cast<unsigned long long>(gridDim.x) * XACT_BLOCK;
    for (unsigned long long i = blockIdx.x * static_cast<unsigned long long>(XACT_BLOCK) + threadIdx.x;
         i < args.labels; i += stride) {
        const bool drops = xact::goldfish_drops<1>(args.goldfish, i);
        if (keep != nullptr) keep[i] = !drops;
        if (weights != nullptr) weights[i] = drops ? 0.0f : 1.0f;
        dropped += drops;
    }
    if (args.partials == 0) return;
    dropped = xact::block_count(dropped);
    if (threadIdx.x == 0) {
        reinterpret_cast<unsigned long long*>(args.partials)[blockIdx.x] = dropped;
    }
}

// The second stage: one block adds up the numbers of dropped labels.
extern "C" __global__ void __launch_bounds__(XACT_BLOCK)
    goldfish_counts(const __grid_constant__ xact::GoldfishMaskArgs args) {
    const unsigned long long* partials = reinterpret_cast<const unsigned long long*>(args.partials);
    unsigned long long dropped = 0;
    for (unsigned long long b = threadIdx.x; b < args.blocks; b += XACT_BLOCK) dropped += partials[b];
    dropped = xact::block_count(dropped);
    if (threadIdx.x == 0) {
        unsigned long long* counts = reinterpret_cast<unsigned long long*>(args.counts);
        counts[0] = args.labels - dropped;
        counts[1] = dropped;
    }
}
