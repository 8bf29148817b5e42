"""One reliable datagram link between two peers, as a value with time as an argument."""
