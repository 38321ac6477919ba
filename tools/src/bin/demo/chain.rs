//! Two genuine mails. The money of the one mail arrives on a real EVM node. The money of the other mail never arrives.

use testkit::anvil::{self, Anvil, calldata};
use testkit::daemon::{Home, account, forward};
use testkit::dkim::{Key, SigningOptions, sign};
use testkit::dns::Dns;
use testkit::dovecot::Dovecot;
use testkit::paid::Paid;
use testkit::receiver::{Receiver, status};
use testkit::shop::MAILBOX;

use super::PATIENCE;
use super::screen::{command, fact, heading, query};

pub(super) fn tell(dovecot: &Dovecot, dns: &Dns, key: &Key) {
    heading("7. A genuine mail about money that never came");
    if !anvil::is_installed() {
        println!("Left out: it needs anvil (an EVM node), which is not installed. `make anvil` shows why.");
        return;
    }
    println!("With a [[chain]], the daemon asks an EVM node about each payment before it delivers the event.");
    println!("Two genuine mails report 20 USDC. One sum arrives. The transaction of the other does not exist.");
    let node = Anvil::start();
    let [shop, payer] = [&node.accounts[0], &node.accounts[1]];
    let token = node.deploy("Token", &["6"]);
    node.send(payer, Some(&token), 0, &calldata("mint(address,uint256)", &[payer, "1000000000"]));
    let handler = Receiver::new(|_, _| status(200));
    let address = tokio::runtime::Handle::current().block_on(handler.listen());
    let home = Home::new(&format!(
        "{}[dns]\nservers = [\"{}\"]\n{}[[chain]]\nname = \"Sepolia\"\nnodes = [{{ command = [\"echo\", \"{}\"] }}]\n\
         wallets = [\"{shop}\"]\nsettle = \"1s\"\n[chain.tokens]\nUSDC = {{ contract = \"{token}\", decimals = 6 }}\n",
        account(dovecot.imap, "dedicated = true\nmailboxes = [\"INBOX\"]\nstart = \"now\""),
        dns.address,
        forward(&format!("http://{address}/payment-webhook"), "confirm = \"require\""),
        node.url(),
    ));
    let daemon = home.start();
    home.until("SELECT count(*) FROM mailboxes WHERE state = 'idle'", "1", PATIENCE);
    let deliver = |paid: &Paid| {
        dovecot.deliver(MAILBOX, &sign(paid.mail().as_bytes(), key, &SigningOptions::default()));
    };
    deliver(&Paid::new(1, &format!("0x{:064x}", 0xbad), payer));
    let hash = node.send(payer, Some(&token), 0, &calldata("transfer(address,uint256)", &[shop, "20000000"]));
    deliver(&Paid::new(2, &hash, payer));
    node.mine(5);
    home.until("SELECT count(*) FROM deliveries WHERE state = 'delivered'", "1", PATIENCE);
    home.until("SELECT count(*) FROM confirmations WHERE state = 'waiting' AND reason LIKE 'unseen:%'", "1", PATIENCE);
    let both = query(
        &home,
        "SELECT p.confirmation, p.delivery, p.amount, p.token, c.received, c.received_token, c.reason\n\
         FROM payments p JOIN confirmations c ON c.event_id = p.event_id ORDER BY p.confirmation;",
        2,
    );
    fact(both == 2, "both mails are genuine, and both are events");
    let requests = handler.requests();
    let arrivals: Vec<_> = requests.iter().filter_map(|request| request.header("x-mailhook-arrival")).collect();
    fact(
        arrivals == [hash.as_str()],
        "the handler received only the payment whose 20 USDC arrived in the shop's wallet",
    );
    let held = home.ask("SELECT event_id FROM deliveries WHERE state = 'held'");
    let looked = command(&home, &["confirm", &held], 0);
    fact(looked.contains("unseen"), "no node knows the transaction of the other mail, so its event is held");
    assert_eq!(daemon.end(), Some(0), "the daemon ends cleanly");
}
