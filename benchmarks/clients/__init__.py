"""One script for each client, all with the same arguments and the same answer: contract.py."""
