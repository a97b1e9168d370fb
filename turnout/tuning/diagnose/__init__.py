"""`turnout diagnose`: why the slowest requests are so much slower than the middle ones."""
