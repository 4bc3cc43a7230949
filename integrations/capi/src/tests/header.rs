//! `xact.h` equals the output of cbindgen for the sources.

use std::fs;
use std::path::Path;

#[test]
fn header_is_up_to_date() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml")).unwrap();
    let sources = ["types", "device", "goldfish", "functions"];
    let builder = sources.iter().fold(
        cbindgen::Builder::new().with_config(config),
        |builder, source| builder.with_src(folder.join(format!("src/{source}.rs"))),
    );
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let path = folder.join("include/xact.h");
    if std::env::var_os("XACT_GOLDEN_UPDATE").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let made = String::from_utf8(made).unwrap();
    assert!(
        made == fs::read_to_string(&path).unwrap(),
        "include/xact.h is out of date: XACT_GOLDEN_UPDATE=1 cargo test -p xact-capi header"
    );
}
