"""One emulated Linux host: address spaces, page faults, allocation, reclaim, migration."""
