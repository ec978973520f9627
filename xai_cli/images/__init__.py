"""From the names on the command line to upright pixels, model input and the way back to the photo."""
