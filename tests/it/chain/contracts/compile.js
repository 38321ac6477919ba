// Compiles the contracts in this folder. It is needed only after a change; the tests read the .hex files.
//   npm install --ignore-scripts --prefix /tmp/solc solc@0.8.37
//   NODE_PATH=/tmp/solc/node_modules node tests/it/chain/contracts/compile.js
const fs = require("fs");
const path = require("path");
const solc = require("solc");

// The bytecode of Wallets contains TemporaryWallet.
const DEPLOYED = ["Token", "FalseToken", "Wallets", "Readdresser", "FalseWallet"];

const files = fs.readdirSync(__dirname).filter((file) => file.endsWith(".sol"));
const sources = Object.fromEntries(
  files.map((file) => [file, { content: fs.readFileSync(path.join(__dirname, file), "utf8") }]),
);
const settings = {
  optimizer: { enabled: true, runs: 200 },
  evmVersion: "paris",
  // No metadata, so that the bytecode depends only on the code.
  metadata: { bytecodeHash: "none", appendCBOR: false },
  outputSelection: { "*": { "*": ["evm.bytecode.object"] } },
};
const output = JSON.parse(solc.compile(JSON.stringify({ language: "Solidity", sources, settings })));
const errors = (output.errors || []).filter((error) => error.severity === "error");
if (errors.length > 0) {
  throw new Error(errors.map((error) => error.formattedMessage).join("\n"));
}
for (const contracts of Object.values(output.contracts)) {
  for (const name of Object.keys(contracts).filter((name) => DEPLOYED.includes(name))) {
    fs.writeFileSync(path.join(__dirname, `${name}.hex`), `${contracts[name].evm.bytecode.object}\n`);
  }
}
