//! How the program is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |key: &str, value: &str| std::env::var(key).is_ok_and(|found| found == value);
    if is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") {
        // Where in itself an executable at a random address has to be put right is a list of its own, which all of it is
        // read at each start: packed (glibc from 2.36 on), it takes 20 KB and not 660. An older linker says that it does
        // not know of it, and goes on.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
