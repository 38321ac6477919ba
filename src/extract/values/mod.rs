//! Parses single values by their form, and by their checksum if they have one.
//!
//! Each parser returns the value, or the reason why the text is doubtful.

mod amount;
mod chain_and_token;
mod explorer_link;
mod identifiers;
mod status;
mod time;

pub(crate) use amount::{Amount, dollar_amounts, parse_amount};
pub(crate) use chain_and_token::{chain_family, is_known_token, parse_blockchain, parse_token};
pub(crate) use explorer_link::{hex_numbers_in_link, parse_explorer_link, transaction_in_link};
pub(crate) use identifiers::{
    base58_length, is_transaction_hash, parse_hash, parse_of_any_chain, parse_session_id, parse_wallet,
};
pub(crate) use status::{parse_status, status_of_signs};
pub(crate) use time::parse_time;
