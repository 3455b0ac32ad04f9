"""Ray started and watched, nodes found and checked, CPUs and GPUs allocated."""
