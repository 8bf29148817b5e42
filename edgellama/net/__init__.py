"""Sockets, mDNS, files, threads, and the facts of this machine."""
