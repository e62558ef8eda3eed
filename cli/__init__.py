"""The commands: what a person types, and what it says back. docs/cli.md has every flag.

Commands put the other rooms together; none of those knows this one.
"""
