"""The compressed RAM service of the kernel side, in its generations."""
