//! How the program is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |key: &str, value: &str| std::env::var(key).is_ok_and(|found| found == value);
    if is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") {
        // Where in itself an executable at a random address has to be put right is a list of its own, which all of it is
        // read at each start: packed (glibc from 2.36 on), it takes 20 KB and not 660. An older linker says that it does
        // not know of it, and goes on.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        // In a program that is optimised what is seldom run takes no memory; see there. rustc's own linker and GNU's read it,
        // and who chooses another goes without.
        println!("cargo::rerun-if-changed=seldom.ld");
        let chosen = std::env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
        if is("PROFILE", "release") && !chosen.contains("fuse-ld") && !chosen.contains("linker") {
            let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
            println!("cargo::rustc-link-arg-bins=-Wl,-T,{folder}/seldom.ld");
        }
    }
}
