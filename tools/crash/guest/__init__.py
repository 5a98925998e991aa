"""What runs in the guest of the virtual machine rig. The host imports ``workload`` too, to know what the guest was doing."""
