"""What runs in the guest. The host imports ``workload`` too, to know what the guest was doing."""
