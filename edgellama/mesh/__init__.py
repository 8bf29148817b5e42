"""Membership, epochs, sessions and requests, as values with time as an argument."""
