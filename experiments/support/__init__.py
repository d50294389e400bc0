"""What the scripts share, and parts of the long ones: modules that are imported and not run."""
