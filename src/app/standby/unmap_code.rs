//! Unmaps the program's code. Most of a standby's memory is mapped code that only the start of the process has executed.

use std::io;
use std::ops::Range;

use rustix::mm::{Advice, madvise};

/// Unmaps the code of the program and of its libraries from this process. The kernel maps a part of the code again when this
/// process executes it.
///
/// # Errors
/// The memory mappings of this process cannot be read or changed.
pub(super) fn unmap_code() -> io::Result<()> {
    for code in code_mappings(&std::fs::read_to_string("/proc/self/maps")?) {
        // SAFETY: The kernel reads the pages of this mapping from the file again (MADV_DONTNEED in madvise(2)). The mapping is
        // not writable, so its content stays the same.
        #[expect(unsafe_code, reason = "no safe function can unmap pages")]
        unsafe {
            madvise(std::ptr::with_exposed_provenance_mut(code.start), code.len(), Advice::LinuxDontNeed)?;
        }
    }
    Ok(())
}

/// Returns the addresses of the mappings that are a part of a file, executable and not writable. `maps` has the format of
/// proc_pid_maps(5).
fn code_mappings(maps: &str) -> impl Iterator<Item = Range<usize>> {
    maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let addresses = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        let is_code = fields.next() == Some("r-xp") && fields.nth(3).is_some_and(|path| path.starts_with('/'));
        is_code.then_some(addresses)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c8a00000-55d0c8d05000 r--p 00000000 fe:00 5310293                    /usr/bin/resmic-mailhook
55d0c8d05000-55d0c9565000 r-xp 00305000 fe:00 5310293                    /usr/bin/resmic-mailhook
55d0c9565000-55d0c95fc000 rw-p 00b64000 fe:00 5310293                    /usr/bin/resmic-mailhook
55d0d0000000-55d0d0021000 r-xp 00000000 00:00 0 
7f4915df1000-7f4915df3000 r-xp 00026000 fe:00 131200                     /usr/lib/libc.so.6 (deleted)
7f4915df5000-7f4915df6000 rwxp 00000000 fe:00 131200                     /usr/lib/patched.so
7fff705b1000-7fff705db000 r-xp 00000000 00:00 0                          [vdso]
";

    #[test]
    fn only_unwritable_code_of_files_is_found() {
        let expected = [0x55d0_c8d0_5000..0x55d0_c956_5000, 0x7f49_15df_1000..0x7f49_15df_3000];
        assert!(code_mappings(MAPS).eq(expected));
        assert_eq!(code_mappings("no mappings\n\n-").count(), 0);
    }

    #[test]
    fn unmapped_code_runs_again() {
        unmap_code().unwrap();
        unmap_code().unwrap();
    }
}
