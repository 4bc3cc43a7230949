//! The Mersenne Twister, from which the official tables are drawn.

const WORDS: usize = 624;
const SHIFT: usize = 397;

/// MT19937 (Matsumoto & Nishimura, "Mersenne Twister", ACM TOMACS 8, 1998), seeded as `init_genrand` of
/// the authors' mt19937ar.c and PyTorch's CPU generator are.
pub(super) struct Mt19937 {
    state: [u32; WORDS],
    /// The index of the next word. The words before it are already of the next generation.
    next: usize,
}

impl Mt19937 {
    pub(super) fn new(seed: u32) -> Mt19937 {
        let mut state = [seed; WORDS];
        for i in 1..WORDS {
            let last = state[i - 1];
            state[i] = (last ^ (last >> 30))
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i as u32);
        }
        Mt19937 { state, next: 0 }
    }

    pub(super) fn next_u32(&mut self) -> u32 {
        let i = self.next;
        let following = (i + 1) % WORDS;
        let joined = (self.state[i] & 0x8000_0000) | (self.state[following] & 0x7fff_ffff);
        let twist = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
        self.state[i] = self.state[(i + SHIFT) % WORDS] ^ (joined >> 1) ^ twist;
        self.next = following;
        let mut y = self.state[i];
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_generator_of_the_cpp_standard() {
        // [rand.predef]: the 10000th value of a default-constructed std::mt19937.
        let mut generator = Mt19937::new(5489);
        let last = (0..10_000).map(|_| generator.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
