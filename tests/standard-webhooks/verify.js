// Reads {secret, headers, body} from standard input. Fails if the official verifier refuses them.
const { Webhook } = require("standardwebhooks");
const { secret, headers, body } = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(new Webhook(secret).verify(body, headers)));
