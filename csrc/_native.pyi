"""Types of the native extension; the code is in csrc/."""
