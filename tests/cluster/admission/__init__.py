"""What tagpin does with pods, in a real cluster; one installation serves the whole folder."""
