// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.20;

interface IToken {
    function balanceOf(address owner) external view returns (uint256);
    function transfer(address to, uint256 value) external returns (bool);
}

/// A temporary wallet, which pays out its balance. Anyone may set the recipient and start the payout.
contract TemporaryWallet {
    event TokenWithdrawn(address token, address client, uint256 value);
    event NativeWithdrawn(address client, uint256 value);

    address public client;

    receive() external payable {}

    function setClient(address client_) external {
        client = client_;
    }

    function withdrawToken(IToken token) external {
        uint256 value = token.balanceOf(address(this));
        token.transfer(client, value);
        emit TokenWithdrawn(address(token), client, value);
    }

    function withdrawNative() external {
        uint256 value = address(this).balance;
        (bool done,) = client.call{value: value}("");
        require(done);
        // `client` is read after the call, so a client that changes it during the call forges this event.
        emit NativeWithdrawn(client, value);
    }
}

/// Deploys temporary wallets at addresses that are known in advance (CREATE2).
contract Wallets {
    function create(bytes32 salt, address client) external returns (TemporaryWallet wallet) {
        wallet = new TemporaryWallet{salt: salt}();
        wallet.setClient(client);
    }

    function addressOf(bytes32 salt) external view returns (address) {
        bytes32 code = keccak256(type(TemporaryWallet).creationCode);
        return address(uint160(uint256(keccak256(abi.encodePacked(bytes1(0xff), address(this), salt, code)))));
    }
}
