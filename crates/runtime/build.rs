//! The program's entry is `gantry_linux::entry`, which goes on to the C library's.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        println!("cargo:rustc-link-arg-bins=-Wl,-e,gantry_protected_entry");
    }
}
