"""What deployments should be, and what their documents claim: plain numbers, never a device."""
