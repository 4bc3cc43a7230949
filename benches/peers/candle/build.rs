//! The version of candle, for its name in the table: it does not tell it itself.

fn main() {
    println!("cargo::rerun-if-changed=Cargo.lock");
    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    let mut lines = lock
        .lines()
        .skip_while(|line| *line != "name = \"candle-core\"");
    let version = lines.nth(1).and_then(|line| line.split('"').nth(1));
    println!(
        "cargo::rustc-env=CANDLE={}",
        version.unwrap_or("of unknown version")
    );
}
