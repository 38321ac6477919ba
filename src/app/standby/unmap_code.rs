//! Unmaps the program's code and constants. Most of a standby's memory is mapped code that only the start of the process has
//! executed.

use std::io;
use std::ops::Range;

use rustix::mm::{Advice, madvise};

/// Unmaps the code and the constants of the program and of its libraries from this process. The kernel maps a part again when
/// this process executes or reads it.
///
/// # Errors
/// The memory mappings of this process cannot be read or changed.
pub(super) fn unmap_code() -> io::Result<()> {
    for addresses in unchanged_mappings(&std::fs::read_to_string("/proc/self/smaps")?) {
        // SAFETY: The kernel reads the pages of this mapping from the file again (MADV_DONTNEED in madvise(2)). The process has
        // changed none of them, and cannot change them, so their content stays the same.
        #[expect(unsafe_code, reason = "no safe function can unmap pages")]
        unsafe {
            madvise(std::ptr::with_exposed_provenance_mut(addresses.start), addresses.len(), Advice::LinuxDontNeed)?;
        }
    }
    Ok(())
}

/// Returns the addresses of the mappings that are a part of a file, not writable, and the same as in the file. The dynamic linker
/// has changed other mappings, and made them read-only afterwards. `smaps` has the format of proc_pid_smaps(5).
fn unchanged_mappings(smaps: &str) -> Vec<Range<usize>> {
    let (mut found, mut candidate) = (Vec::new(), None);
    for line in smaps.lines() {
        match line.split_once(char::is_whitespace) {
            Some((addresses, rest)) if !addresses.ends_with(':') => candidate = read_only_file(addresses, rest),
            // Pages that the process has changed, in memory or in the swap space.
            Some(("Anonymous:" | "Swap:", size)) if size.trim() != "0 kB" => candidate = None,
            // The last line of a mapping.
            Some(("VmFlags:", _)) => found.extend(candidate.take()),
            _ => {}
        }
    }
    found
}

/// Parses the first line of a mapping, and returns its addresses if it is a part of a file and not writable.
fn read_only_file(addresses: &str, rest: &str) -> Option<Range<usize>> {
    let (start, end) = addresses.split_once('-')?;
    let mut fields = rest.split_ascii_whitespace();
    let is_read_only = matches!(fields.next()?, "r-xp" | "r--p");
    let is_file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
    let addresses = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    (is_read_only && is_file).then_some(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mapping in the format of proc_pid_smaps(5).
    fn mapping(first: &str, anonymous: u32, swap: u32) -> String {
        format!(
            "{first}\nSize: 20 kB\nRss: 8 kB\nAnonymous: {anonymous:>11} kB\nAnonHugePages: 0 kB\nSwap: {swap:>11} kB\n\
             SwapPss: 0 kB\nVmFlags: rd mr mw me \n"
        )
    }

    #[test]
    fn only_unchanged_parts_of_files_are_found() {
        let program = "fe:00 5310293                    /usr/bin/resmic-mailhook";
        let smaps = [
            mapping(&format!("55d0c8a00000-55d0c8d05000 r--p 00000000 {program}"), 0, 0),
            mapping(&format!("55d0c8d05000-55d0c9565000 r-xp 00305000 {program}"), 0, 0),
            mapping(&format!("55d0c9565000-55d0c95fc000 r--p 00b64000 {program}"), 604, 0),
            mapping(&format!("55d0c95fc000-55d0c9600000 r--p 00bfb000 {program}"), 0, 4),
            mapping(&format!("55d0c9600000-55d0c9601000 rw-p 00bff000 {program}"), 0, 0),
            mapping("55d0d0000000-55d0d0021000 r-xp 00000000 00:00 0 ", 0, 0),
            mapping(
                "7f4915df1000-7f4915df3000 r-xp 00026000 fe:00 131200             /usr/lib/libc.so.6 (deleted)",
                0,
                0,
            ),
            mapping("7f4915df5000-7f4915df6000 rwxp 00000000 fe:00 131200             /usr/lib/patched.so", 0, 0),
            mapping("7fff705b1000-7fff705db000 r-xp 00000000 00:00 0                  [vdso]", 0, 0),
        ];
        let expected = [
            0x55d0_c8a0_0000..0x55d0_c8d0_5000,
            0x55d0_c8d0_5000..0x55d0_c956_5000,
            0x7f49_15df_1000..0x7f49_15df_3000,
        ];
        assert_eq!(unchanged_mappings(&smaps.concat()), expected);
        assert!(unchanged_mappings("no mappings\n\n-").is_empty());
    }

    #[test]
    fn unmapped_code_runs_again() {
        unmap_code().unwrap();
        unmap_code().unwrap();
    }
}
