"""Virtual clock, simulated network and checkers, shipped for whoever tests against edgellama."""
