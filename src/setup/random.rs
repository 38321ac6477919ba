//! Random secrets.

use data_encoding::HEXLOWER;
use ring::rand::{SecureRandom, SystemRandom};

/// 256 bits from the system's random source, as 64 hexadecimal digits.
///
/// # Errors
/// A message, if the random source fails.
pub fn random_hex() -> Result<String, String> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| "the system's random source does not work".to_owned())?;
    Ok(HEXLOWER.encode(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_have_256_bits() {
        let (first, second) = (random_hex().unwrap(), random_hex().unwrap());
        assert_eq!(first.len(), 64);
        assert_ne!(first, second);
    }
}
