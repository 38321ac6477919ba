// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.20;

interface IReaddressable {
    function setClient(address client) external;
}

/// Takes a temporary wallet's money, and has the wallet say that the shop got it.
contract Readdresser {
    address private immutable shop;

    constructor(address shop_) {
        shop = shop_;
    }

    receive() external payable {
        IReaddressable(msg.sender).setClient(shop);
    }
}

/// Keeps the money that it is sent, and leaves traces that look as if the shop got it.
contract FalseWallet {
    event NativeWithdrawn(address client, uint256 value);

    receive() external payable {}

    /// A DELEGATECALL has the value of the call around it, and moves none.
    function delegate(address shop) external payable {
        (bool done,) = shop.delegatecall("");
        require(done);
        emit NativeWithdrawn(shop, msg.value);
    }

    /// The call to the shop has no error; the one around it has, and takes it back.
    function takeBack(address shop) external payable {
        try this.payAndRevert(shop, msg.value) {} catch {}
        emit NativeWithdrawn(shop, msg.value);
    }

    function payAndRevert(address shop, uint256 value) external {
        (bool done,) = shop.call{value: value}("");
        require(done && false);
    }
}
