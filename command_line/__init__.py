"""What the command lines of all parts share: how they print and how they fail.

Invariant: nothing here knows a part, and importing it imports nothing that a cold start would feel.
"""
