"""What the commands do, one file each; every one can be called from Python too."""
