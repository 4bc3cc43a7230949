//! How the shared library is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // The threads of the host's functions run its code for as long as the process lives, so that `dlclose` must not
        // unload it.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
