/// A mail about a payment on a chain.
#[derive(Clone)]
pub struct Paid {
    /// The last part of the session's id; 0 if the mail names no session.
    pub session: u32,
    pub hash: String,
    /// The payer's wallet.
    pub wallet: String,
    pub amount: &'static str,
    pub chain: &'static str,
    pub token: &'static str,
}

impl Paid {
    /// A payment of 20 USDC on Sepolia.
    pub fn new(session: u32, hash: &str, wallet: &str) -> Paid {
        let (hash, wallet) = (hash.to_owned(), wallet.to_owned());
        Paid { session, hash, wallet, amount: "20", chain: "SEPOLIA", token: "USDC" }
    }

    /// The bytes of the mail, with the current time as its Date.
    pub fn mail(&self) -> String {
        let Paid { session, hash, wallet, amount, chain, token } = self;
        let line =
            if *session == 0 { String::new() } else { format!("Session: 591abe63-aa61-411d-a419-{session:012x}\r\n") };
        format!(
            "From: Resmic <no-reply@resmic.com>\r\nTo: payments@shop.example\r\nSubject: Payment received\r\nDate: {}\r\n\
             MIME-Version: 1.0\r\nMessage-ID: <{session}.{amount}.{hash}@resmic.com>\r\n\r\nAmount: ${amount}\r\n\
             Blockchain: {chain}\r\nToken: {token}\r\nFrom Wallet Address: {wallet}\r\nTransaction Hash: {hash}\r\n{line}",
            jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_string(&jiff::Timestamp::now()).unwrap(),
        )
    }
}
