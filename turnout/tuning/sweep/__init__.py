"""`turnout sweep`: what speculation does to each task at each temperature, one at a time."""
