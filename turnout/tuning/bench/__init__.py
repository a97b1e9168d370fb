"""`turnout bench`: servers under load, side by side, and where speculation stops to pay."""
