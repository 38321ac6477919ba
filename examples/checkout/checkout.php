<?php
// A shop's whole checkout, without dependencies (PHP 8). Settings come from the environment:
//   RESMIC_API_KEY RESMIC_USER_ID WALLET   from Resmic, and the wallet that receives the money
//   MAILBOX ADDRESS_KEY WEBHOOK_SECRET     as in config.toml: [sessions] address, and the secret of [[forward]]
//   ORDERS                                 a JSON file in place of the shop's database
// Start it with `php -S 127.0.0.1:3000 checkout.php`, and set url = "http://127.0.0.1:3000/payment-webhook" in [[forward]].
declare(strict_types=1);

// Changes the orders under a lock. A shop keeps them in its database. The amounts are US dollars.
function with_orders(callable $change): mixed {
    $file = fopen(getenv('ORDERS') ?: '/tmp/orders.json', 'c+');
    flock($file, LOCK_EX);
    $shop = json_decode(stream_get_contents($file), true)
        ?? ['orders' => ['1001' => ['amount' => '20.50', 'state' => 'open', 'tries' => 0]], 'sessions' => []];
    $result = $change($shop);
    ftruncate($file, 0);
    rewind($file);
    fwrite($file, json_encode($shop));
    fclose($file);
    return $result;
}

// docs/sessions.md, "A signed address for each order"
function base32(string $bytes): string {
    $bits = implode('', array_map(fn($byte) => sprintf('%08b', $byte), unpack('C*', $bytes)));
    $letter = fn($five) => 'abcdefghijklmnopqrstuvwxyz234567'[bindec(str_pad($five, 5, '0'))];
    return implode('', array_map($letter, str_split($bits, 5)));
}
function address_for(string $reference, string $mailbox, string $key): string {
    $mac = substr(hash_hmac('sha256', "resmic-mailhook address\n$reference", $key, true), 0, 10);
    $name = preg_match('/^[a-z0-9-][a-z0-9_-]*\z/', $reference) ? $reference : '_' . base32($reference);
    if (strpos($mailbox, '@') + strlen($name) > 46) throw new LengthException('order reference too long');
    return str_replace('@', "+$name." . base32($mac) . '@', $mailbox);
}

// Creates a session at Resmic and registers it. Returns the URL of the payment page.
function checkout(string $id): string {
    $order = with_orders(function (&$shop) use ($id) {
        $shop['orders'][$id]['tries']++;
        return $shop['orders'][$id];
    });
    $reference = "order-$id-{$order['tries']}"; // a separate reference for each session
    $page = (getenv('SHOP_URL') ?: 'https://shop.example') . "/order/$id";
    $body = json_encode([
        'amount' => (float) $order['amount'],
        'blockchain' => ['Polygon'],
        'token' => ['USDC'],
        'title' => "Order $id",
        'description' => "Order $id",
        'wallet_address' => getenv('WALLET'),
        'blockchain_confirmation' => 2,
        'redirect_url' => $page,
        'cancel_url' => $page,
        'webhook_url' => address_for($reference, getenv('MAILBOX'), getenv('ADDRESS_KEY')),
    ]);
    $headers = ['Content-Type: application/json', 'x-api-key: ' . getenv('RESMIC_API_KEY'), 'x-user-id: ' . getenv('RESMIC_USER_ID')];
    $http = ['method' => 'POST', 'header' => $headers, 'content' => $body, 'timeout' => 20, 'ignore_errors' => true];
    $url = (getenv('RESMIC_URL') ?: 'https://api.resmic.com') . '/api/v1/makepayment';
    $answer = json_decode((string) file_get_contents($url, false, stream_context_create(['http' => $http])), true);
    if (($answer['success'] ?? null) !== true) throw new RuntimeException('Resmic: ' . ($answer['message'] ?? 'no answer'));
    $session = $answer['data']['session_id'];
    // Register the session before the customer can pay. If this fails, there is no checkout.
    $command = ['resmic-mailhook', 'session', 'add', $session, '--order', $reference, '--amount', $order['amount']];
    $process = proc_open($command, [1 => ['file', '/dev/null', 'w']], $pipes);
    if (proc_close($process) !== 0) throw new RuntimeException('cannot register the session');
    with_orders(function (&$shop) use ($session, $id) { $shop['sessions'][$session] = $id; });
    return $answer['data']['payment_url'];
}

// Receives an event. The same event may arrive twice, so this function only sets a state.
function receive(string $body, string $signature): int {
    if (!hash_equals(hash_hmac('sha256', $body, getenv('WEBHOOK_SECRET')), $signature)) return 401;
    $event = json_decode($body, true);
    return with_orders(function (&$shop) use ($event) {
        $id = $shop['sessions'][$event['session_id']] ?? null;
        if ($id === null) return 404; // the daemon delivers the event again later
        $order = &$shop['orders'][$id];
        if ($event['status'] === true) {
            $order['state'] = (float) $event['amount'] === (float) $order['amount'] ? 'paid' : 'review';
        } elseif (($event['state'] ?? '') !== 'pending' && $order['state'] === 'open') {
            $order['state'] = 'failed';
        }
        return 200;
    });
}

[, $page, $id] = explode('/', $_SERVER['REQUEST_URI']) + ['', '', ''];
$is_post = $_SERVER['REQUEST_METHOD'] === 'POST';
$order = with_orders(fn(&$shop) => $shop['orders'][$id] ?? null);
if ($is_post && $page === 'payment-webhook') {
    http_response_code(receive(file_get_contents('php://input'), $_SERVER['HTTP_X_SIGNATURE'] ?? ''));
} elseif ($order === null) {
    http_response_code(404);
} elseif ($is_post && $page === 'checkout') {
    try {
        header('Location: ' . checkout($id), true, 303);
    } catch (RuntimeException $error) {
        error_log($error->getMessage());
        http_response_code(502);
    }
} else {
    echo $order['state'];
}
