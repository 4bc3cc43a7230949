pub struct xact_goldfish(u8);
