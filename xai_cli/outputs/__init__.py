"""What a run leaves behind: raw arrays, pictures, the manifest and the overview, each file whole or absent."""
