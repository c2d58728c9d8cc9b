"""What people say of pictures: tasks, votes and their files, and from votes to labels that a scorer can learn from."""
