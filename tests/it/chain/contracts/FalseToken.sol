// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.20;

/// Has the symbol and the decimals of a real token, and emits any Transfer event.
contract FalseToken {
    event Transfer(address indexed from, address indexed to, uint256 value);

    string public constant symbol = "USDC";
    uint8 public constant decimals = 6;

    function forge(address from, address to, uint256 value) external {
        emit Transfer(from, to, value);
    }
}
