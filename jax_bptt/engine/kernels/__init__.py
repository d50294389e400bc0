"""The two time loops of pointwise cells, each as one kernel of an NVIDIA GPU."""
