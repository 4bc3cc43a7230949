//! Counts of memory traffic.

/// Accesses to a buffer in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccessCounts {
    /// Accesses of single threads, by the bytes that each moves: 1, 2, 4, 8, 16 or more.
    pub by_width: [u64; 5],
    /// Accesses of warps: lanes that execute an instruction together are one request.
    pub requests: u64,
    /// 32-byte sectors touched by the requests.
    pub sectors: u64,
    /// The fewest sectors that could hold the bytes of each request.
    pub minimum_sectors: u64,
}

/// The traffic of a launch to and from one buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BufferTraffic {
    /// The first address of the buffer.
    pub address: u64,
    /// The size of the buffer in bytes.
    pub len: u64,
    /// The number of bytes read. A byte that is read twice counts twice.
    pub bytes_read: u64,
    /// The number of bytes written. A byte that is written twice counts twice.
    pub bytes_written: u64,
    /// Loads, and atomics.
    pub loads: AccessCounts,
    /// Stores, and atomics.
    pub stores: AccessCounts,
}

/// Counts of shared-memory phases. Shared memory serves one word of each of its 32 banks per phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BankPhases {
    /// Accesses of warps.
    pub requests: u64,
    /// Phases that the requests take.
    pub phases: u64,
    /// Phases that the requests would take without bank conflicts.
    pub minimum_phases: u64,
}

impl AccessCounts {
    /// Counts a request: the addresses of its lanes (which are sorted here), and bytes per lane.
    pub(crate) fn add(&mut self, addresses: &mut [u64], size: u64) {
        self.by_width[(size.min(16)).trailing_zeros() as usize] += addresses.len() as u64;
        self.requests += 1;
        let (sectors, bytes) = spread(addresses, size);
        self.sectors += sectors;
        self.minimum_sectors += bytes.div_ceil(32);
    }

    /// Adds the accesses of others.
    fn join(&mut self, other: &AccessCounts) {
        let AccessCounts {
            by_width,
            requests,
            sectors,
            minimum_sectors,
        } = other;
        for (sum, n) in self.by_width.iter_mut().zip(by_width) {
            *sum += n;
        }
        self.requests += requests;
        self.sectors += sectors;
        self.minimum_sectors += minimum_sectors;
    }
}

impl BufferTraffic {
    /// Adds what others moved from and to the same buffer.
    pub(crate) fn join(&mut self, other: &BufferTraffic) {
        let BufferTraffic {
            address: _,
            len: _,
            bytes_read,
            bytes_written,
            loads,
            stores,
        } = other;
        self.bytes_read += bytes_read;
        self.bytes_written += bytes_written;
        self.loads.join(loads);
        self.stores.join(stores);
    }
}

/// Distinct sectors and distinct bytes of a request.
fn spread(addresses: &mut [u64], size: u64) -> (u64, u64) {
    let (first, n) = (addresses[0], addresses.len() as u64);
    if addresses
        .iter()
        .enumerate()
        .all(|(i, &a)| a == first + i as u64 * size)
    {
        let end = first + n * size;
        return ((end - 1) / 32 - first / 32 + 1, n * size);
    }
    if !addresses.is_sorted() {
        addresses.sort_unstable();
    }
    let (mut sectors, mut bytes) = (0, 0);
    let (mut next_sector, mut next_byte) = (0, 0);
    for &a in addresses.iter() {
        let end = a + size;
        bytes += end - a.max(next_byte).min(end);
        let (s, e) = ((a / 32).max(next_sector), (end - 1) / 32 + 1);
        sectors += e.saturating_sub(s);
        next_sector = next_sector.max(e);
        next_byte = next_byte.max(end);
    }
    (sectors, bytes)
}

impl BankPhases {
    /// Adds the accesses of others.
    pub(crate) fn join(&mut self, other: &BankPhases) {
        let BankPhases {
            requests,
            phases,
            minimum_phases,
        } = other;
        self.requests += requests;
        self.phases += phases;
        self.minimum_phases += minimum_phases;
    }

    /// Counts a request to shared memory. Accesses of 8 and 16 bytes are served by half and
    /// quarter warps.
    pub(crate) fn add(&mut self, addresses: &[u64], size: u64) {
        self.requests += 1;
        let words = (size / 4).max(1);
        let group = (32 / words) as usize;
        for lanes in addresses.chunks(group.max(1)) {
            let mut distinct = [0u64; 32 * 2];
            let mut n = 0;
            for &a in lanes {
                for w in 0..words {
                    let word = a / 4 + w;
                    if !distinct[..n].contains(&word) {
                        distinct[n] = word;
                        n += 1;
                    }
                }
            }
            let mut banks = [0u64; 32];
            for w in &distinct[..n] {
                banks[(w % 32) as usize] += 1;
            }
            self.phases += banks.iter().max().copied().unwrap_or(0);
            self.minimum_phases += (n as u64).div_ceil(32);
        }
    }
}
