//! Sets how the shared library is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // The threads of the host functions run the library's code until the process ends, so `dlclose` must not unload it.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
