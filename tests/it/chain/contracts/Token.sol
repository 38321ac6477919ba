// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.20;

/// The part of an ERC-20 token that payments need. Anyone may mint.
contract Token {
    event Transfer(address indexed from, address indexed to, uint256 value);

    uint8 public immutable decimals;
    mapping(address => uint256) public balanceOf;

    constructor(uint8 decimals_) {
        decimals = decimals_;
    }

    function mint(address to, uint256 value) external {
        balanceOf[to] += value;
        emit Transfer(address(0), to, value);
    }

    function transfer(address to, uint256 value) public returns (bool) {
        balanceOf[msg.sender] -= value;
        balanceOf[to] += value;
        emit Transfer(msg.sender, to, value);
        return true;
    }

    /// Two transfers in one transaction.
    function split(address to, uint256 first, uint256 second) external {
        transfer(to, first);
        transfer(to, second);
    }

    /// Many real tokens allow a stranger a transfer of zero ("address poisoning").
    function transferFrom(address from, address to, uint256 value) external returns (bool) {
        require(value == 0, "allowance");
        emit Transfer(from, to, value);
        return true;
    }
}
