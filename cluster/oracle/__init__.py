"""What a real Linux answered, replayed: recordings (`recording`), the recorded machine (`machine`), and the
comparison (`replay`). docs/oracle.md has the format.
"""
