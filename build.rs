//! Linker options of the program.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |key: &str, value: &str| std::env::var(key).is_ok_and(|found| found == value);
    if is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") {
        // The dynamic linker reads the relocations of a position-independent executable at each start. Packed relocations (glibc
        // 2.36 and newer) take 20 KB instead of 660 KB. A linker that does not know the option prints a warning and goes on.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
