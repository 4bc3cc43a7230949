// The blocks of a cluster: their ranks, their barrier, and stores into the shared memory of a peer (sm_90).
//
// The caller must store only to a peer that has begun and not yet returned, which the cluster barrier
// guarantees. The stored bytes may be read once the mbarrier beside them has counted them. That publishes no
// other writes of the sender, but it shows that the sender has completed its earlier reads.
#pragma once

namespace xact {

// The number of the block in its cluster.
__device__ inline unsigned cluster_rank() {
    unsigned rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Blocks of the cluster.
__device__ inline unsigned cluster_size() {
    unsigned size;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}

// The number of the cluster in the grid, and how many there are.
__device__ inline unsigned cluster_id() {
    unsigned id;
    asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(id));
    return id;
}
__device__ inline unsigned clusters() {
    unsigned count;
    asm volatile("mov.u32 %0, %%nclusterid.x;" : "=r"(count));
    return count;
}

// Every thread of the cluster arrives and then waits, alternately. Writes before an arrival are visible to
// every thread after its wait. The lanes of a warp do both together.
__device__ inline void cluster_arrive() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ inline void cluster_wait() {
    __syncwarp();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// A shared address of this block, as the other instructions of this file take it.
__device__ inline unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// The same place in the shared memory of the block `rank` of the cluster.
__device__ inline unsigned peer_address(const void* p, unsigned rank) {
    unsigned address;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)), "r"(rank));
    return address;
}

// Counts the bytes that peers store into this block. A phase is complete when the block has set the expected
// number of bytes and these bytes have arrived. Phases have alternating parity; that of the first is 0.
struct Mbarrier {
    unsigned long long state;

    // Called by one thread, before an arrival at the cluster barrier.
    __device__ void init() {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(this)) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }

    // Called by one thread, once per phase. Bytes may have arrived before.
    __device__ void expect(unsigned bytes) {
        asm volatile(
            "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(this)),
            "r"(bytes)
            : "memory");
    }

    // Returns when the phase is complete. The thread then sees the stored bytes.
    __device__ void wait(unsigned parity) {
        unsigned complete;
        do {
            asm volatile(
                "{\n"
                ".reg .pred p;\n"
                "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
                "selp.u32 %0, 1, 0, p;\n"
                "}"
                : "=r"(complete)
                : "r"(shared_address(this)), "r"(parity)
                : "memory");
        } while (complete == 0);
    }
};

// Stores 4 or 16 bytes into a peer, whose mbarrier counts them; both addresses are the peer's.
__device__ inline void store_async(unsigned to, unsigned value, unsigned mbarrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to),
                 "r"(value), "r"(mbarrier)
                 : "memory");
}
__device__ inline void store_async(unsigned to, uint4 value, unsigned mbarrier) {
    asm volatile(
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
            to),
        "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(mbarrier)
        : "memory");
}

}  // namespace xact
