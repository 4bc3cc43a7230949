//! The devices that exist, and their limits.

/// What distinguishes one GPU model from another.
pub(crate) struct Profile {
    pub name: &'static str,
    pub compute: (u32, u32),
    pub multiprocessors: u32,
    /// Those of its smallest GPC: all blocks of a cluster are on one GPC.
    pub gpc_multiprocessors: u32,
    /// The data sheet's gigabytes are GiB.
    pub memory: u64,
    /// Shared memory of a block: as usual, with opt-in, and of a multiprocessor.
    pub shared: u32,
    pub shared_optin: u32,
    pub shared_per_multiprocessor: u32,
    pub l2: u32,
    pub clock_khz: i32,
    pub memory_clock_khz: i32,
    pub bus_bits: i32,
    /// Bytes of kernel parameters.
    pub params: u64,
}

const H100: Profile = Profile {
    name: "NVIDIA H100 80GB HBM3 (emulated)",
    compute: (9, 0),
    multiprocessors: 132,
    gpc_multiprocessors: 16,
    memory: 80 << 30,
    shared: 48 << 10,
    shared_optin: 227 << 10,
    shared_per_multiprocessor: 228 << 10,
    l2: 50 << 20,
    clock_khz: 1_980_000,
    memory_clock_khz: 2_619_000,
    bus_bits: 5120,
    params: 32_764,
};

/// The H100 with more and faster memory.
const H200: Profile = Profile {
    name: "NVIDIA H200 (emulated)",
    memory: 141 << 30,
    l2: 60 << 20,
    memory_clock_khz: 3_201_000,
    bus_bits: 6144,
    ..H100
};

/// Devices by ordinal.
pub(crate) static DEVICES: [Profile; 5] = [
    H100,
    Profile {
        name: "NVIDIA A100-SXM4-80GB (emulated)",
        compute: (8, 0),
        multiprocessors: 108,
        gpc_multiprocessors: 14,
        memory: 80 << 30,
        shared: 48 << 10,
        shared_optin: 163 << 10,
        shared_per_multiprocessor: 164 << 10,
        l2: 40 << 20,
        clock_khz: 1_410_000,
        memory_clock_khz: 1_593_000,
        bus_bits: 5120,
        params: 32_764,
    },
    // What a client of MPS has of one whose limit is 1 % of the threads.
    Profile {
        name: "NVIDIA H100 80GB HBM3, 2 SMs (emulated)",
        multiprocessors: 2,
        gpc_multiprocessors: 2,
        ..H100
    },
    H200,
    // As an H100 in what is not said here, shared memory above all.
    Profile {
        name: "NVIDIA B200 (emulated)",
        compute: (10, 0),
        multiprocessors: 148,
        memory: 180 << 30,
        l2: 126 << 20,
        clock_khz: 1_965_000,
        memory_clock_khz: 3_996_000,
        bus_bits: 8192,
        ..H100
    },
];

/// The names of the devices, by ordinal.
pub fn device_names() -> impl Iterator<Item = &'static str> {
    DEVICES.iter().map(|device| device.name)
}

/// Driver version that `cuDriverGetVersion` gives, and the newest PTX version that it takes.
pub(crate) const DRIVER_VERSION: i32 = 13000;
pub(crate) const PTX_VERSION: (u32, u32) = (9, 0);
