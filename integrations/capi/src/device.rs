pub struct xact_device { x: u8 }
